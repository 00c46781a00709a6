"""FusedBatchNormalization against Keras's layer and against loops."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from isa_tf.layers.normalization import FusedBatchNormalization
from isa_tf.testing import randomize, relative_error

SHAPE = (3, 5, 4, 6)
COUNT = 3 * 5 * 4


def inputs():
    return tf.constant(np.random.default_rng(0).normal(1, 2, SHAPE), "float32")


def pair(**arguments):
    made = []
    for cls in (FusedBatchNormalization, keras.layers.BatchNormalization):
        layer = cls(epsilon=1e-5, momentum=0.9, **arguments)
        layer.build(SHAPE)
        randomize(layer)
        made.append(layer)
    return made


def run(layer, x, training):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=training)
        loss = tf.reduce_sum(tf.sin(y))
    return [y, *tape.gradient(loss, [x, *layer.trainable_variables])]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"center": False}, {"scale": False}, {"scale": False, "center": False}],
    ids=str,
)
def test_equals_keras(arguments, training):
    fused, plain = pair(**arguments)
    x = inputs()
    for found, expected in zip(run(fused, x, training), run(plain, x, training), strict=True):
        assert relative_error(found, expected) < 1e-5


def test_moving_variance_is_unbiased():
    fused, plain = pair()
    old = fused.moving_variance.numpy()
    x = inputs()
    fused(x, training=True), plain(x, training=True)
    np.testing.assert_allclose(fused.moving_mean, plain.moving_mean, rtol=1e-5, atol=1e-6)
    variance = np.var(x, axis=(0, 1, 2), dtype=np.float64)
    np.testing.assert_allclose(plain.moving_variance, 0.9 * old + 0.1 * variance, rtol=1e-5)
    unbiased = variance * COUNT / (COUNT - 1)
    np.testing.assert_allclose(fused.moving_variance, 0.9 * old + 0.1 * unbiased, rtol=1e-5)


def test_falls_back_on_keras():
    fused, plain = pair(renorm=True)
    for training in (True, False):
        for found, expected in zip(
            run(fused, inputs(), training), run(plain, inputs(), training), strict=True
        ):
            np.testing.assert_array_equal(found, expected)


def test_other_ranks_fall_back_on_keras():
    x = tf.random.normal((8, 3))
    y = FusedBatchNormalization()(x, training=True)
    assert relative_error(y, keras.layers.BatchNormalization()(x, training=True)) < 1e-6


def test_not_trainable_means_inference():
    fused, _ = pair()
    expected = fused(inputs(), training=False)
    fused.trainable = False
    before = fused.get_weights()
    np.testing.assert_array_equal(fused(inputs(), training=True), expected)
    for old, new in zip(before, fused.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def per_replica(strategy, x):
    parts = tf.split(x, strategy.num_replicas_in_sync)
    return strategy.experimental_distribute_values_from_function(
        lambda context: parts[context.replica_id_in_sync_group]
    )


def test_synchronized_statistics_are_those_of_the_whole_batch(mirrored):
    x = tf.concat([inputs(), 3 * inputs() + 1], 0)
    with mirrored.scope():
        layer = FusedBatchNormalization(epsilon=1e-5, momentum=0.9, synchronized=True)
        layer.build(SHAPE)
    step = tf.function(lambda part: mirrored.run(lambda p: layer(p, training=True), (part,)))
    outputs = tf.concat(mirrored.experimental_local_results(step(per_replica(mirrored, x))), 0)
    mean, variance = (f(x.numpy(), axis=(0, 1, 2), dtype=np.float64) for f in (np.mean, np.var))
    assert relative_error(outputs, (x - mean) / np.sqrt(variance + 1e-5)) < 1e-5
    np.testing.assert_allclose(layer.moving_mean, 0.1 * mean, rtol=1e-5)
    unbiased = variance * 2 * COUNT / (2 * COUNT - 1)
    np.testing.assert_allclose(layer.moving_variance, 0.9 + 0.1 * unbiased, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_synchronized_gradients_are_those_of_the_whole_batch(dtype, mirrored):
    x = tf.cast(tf.concat([inputs(), 3 * inputs() + 1], 0), dtype)
    tolerance = 1e-5 if dtype == "float32" else 1e-12

    def made():
        layer = FusedBatchNormalization(synchronized=True, dtype=dtype)
        layer.build(SHAPE)
        randomize(layer)
        return layer

    def share(layer, x):
        variables = [v.value for v in layer.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.sin(layer(x, training=True)))
        return tape.gradient(loss, [x, *variables])

    one = made()
    expected = share(one, x)
    with mirrored.scope():
        layer = made()
    step = tf.function(lambda part: mirrored.run(share, (layer, part)))
    of_x, *of_variables = step(per_replica(mirrored, x))
    found = [tf.concat(mirrored.experimental_local_results(of_x), 0)]
    found += [mirrored.reduce("SUM", g, axis=None) for g in of_variables]
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < tolerance
    for a, b in zip(layer.weights, one.weights, strict=True):
        assert relative_error(a, b) < tolerance


@pytest.mark.parametrize(
    "arguments",
    [{"dtype": "float64"}, {"synchronized": True}, {"axis": 1}, {"axis": 1, "scale": False}],
    ids=str,
)
def test_composed_equals_keras_with_the_unbiased_variance(arguments):
    composed, plain = pair(**arguments)
    x = tf.cast(inputs(), arguments.get("dtype", "float32"))
    axis = arguments.get("axis", 3)
    axes = [i for i in range(4) if i != axis]
    old = composed.moving_variance.numpy()
    for found, expected in zip(run(composed, x, True), run(plain, x, True), strict=True):
        assert relative_error(found, expected) < 1e-5
    np.testing.assert_allclose(composed.moving_mean, plain.moving_mean, rtol=1e-5, atol=1e-6)
    unbiased = np.var(x, axis=tuple(axes), dtype=np.float64, ddof=1)
    np.testing.assert_allclose(composed.moving_variance, 0.9 * old + 0.1 * unbiased, rtol=1e-5)
    composed.set_weights(plain.get_weights())
    for found, expected in zip(run(composed, x, False), run(plain, x, False), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_large_mean_leaves_the_variance(mirrored):
    x = tf.concat([inputs(), 3 * inputs() + 1], 0) + 3000.0
    with mirrored.scope():
        layer = FusedBatchNormalization(momentum=0.0, synchronized=True)
        layer.build(SHAPE)
    step = tf.function(lambda part: mirrored.run(lambda p: layer(p, training=True), (part,)))
    step(per_replica(mirrored, x))
    unbiased = np.var(x, axis=(0, 1, 2), dtype=np.float64, ddof=1)
    np.testing.assert_allclose(layer.moving_variance, unbiased, rtol=1e-3)


def test_replicas_agree_on_the_moving_statistics(mirrored):
    x = tf.concat([inputs(), 3 * inputs() + 1], 0)
    with mirrored.scope():
        layer = FusedBatchNormalization(momentum=0.9)
        layer.build(SHAPE)
    step = tf.function(lambda part: mirrored.run(lambda p: layer(p, training=True), (part,)))
    step(per_replica(mirrored, x))
    for variable in (layer.moving_mean, layer.moving_variance):
        first, second = mirrored.experimental_local_results(variable.value)
        np.testing.assert_array_equal(first, second)
    mean = np.mean(x, axis=(0, 1, 2), dtype=np.float64)
    np.testing.assert_allclose(layer.moving_mean, 0.1 * mean, rtol=1e-4)
