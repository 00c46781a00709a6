"""The non-local block against NumPy float64 and explicit loops, and what it must mean."""

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf

from isa_tf.layers.non_local import NonLocal2D
from isa_tf.testing import randomize, relative_error

SIZES = [(6, 6), (5, 7), (3, 2), (1, 4)]


def a_map(height, width, channels=6, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    return tf.constant(rng.normal(size=(batch, height, width, channels)), "float32")


def made(channels=6, **arguments):
    layer = NonLocal2D(**arguments)
    layer.build((None, None, None, channels))
    randomize(layer)
    return layer


# --- The block in NumPy --------------------------------------------------------------------------


def pooled(x):
    """The largest of every 2x2 positions, or of what of them lies on the map."""
    height, width, channels = x.shape
    y = np.zeros((-(-height // 2), -(-width // 2), channels))
    for row, column in np.ndindex(*y.shape[:2]):
        block = x[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        y[row, column] = block.max((0, 1))
    return y


def numpy_non_local(x, layer, use_scale, sub_sample):
    """(output, affinity) of one map (H, W, C) and its N positions."""

    def conv(layer, x):
        kernel, bias = (np.asarray(w, np.float64) for w in (layer.kernel, layer.bias))
        return x @ kernel[0, 0] + bias

    read = pooled(x) if sub_sample == "before" else x
    query, key, value = conv(layer.theta, x), conv(layer.phi, read), conv(layer.g, read)
    if sub_sample is True:
        key, value = pooled(key), pooled(value)
    keys, values = list(np.ndindex(*key.shape[:2])), value.reshape(-1, value.shape[-1])
    context, affinity = np.zeros_like(query), []
    for position in np.ndindex(*x.shape[:2]):
        logits = np.array([query[position] @ key[other] for other in keys])
        if use_scale:
            logits /= np.sqrt(query.shape[-1])
        affinity.append(reference.softmax(logits))
        for weight, v in zip(affinity[-1], values, strict=True):
            context[position] += weight * v
    norm = layer.output_conv.norm
    kernel, gamma, beta, mean, variance = (
        np.asarray(w, np.float64)
        for w in (
            layer.output_conv.conv.kernel,
            norm.gamma,
            norm.beta,
            norm.moving_mean,
            norm.moving_variance,
        )
    )
    y = (context @ kernel[0, 0] - mean) / np.sqrt(variance + norm.epsilon) * gamma + beta
    return x + y, np.array(affinity)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    "sub_sample", [False, True, "before"], ids=["whole", "sub_sample", "sub_sample_before"]
)
@pytest.mark.parametrize("use_scale", [False, True], ids=["plain", "scaled"])
def test_equals_the_reference(size, sub_sample, use_scale):
    layer = made(use_scale=use_scale, sub_sample=sub_sample, key_filters=4, epsilon=0.01)
    x = a_map(*size)
    truth = [
        numpy_non_local(image, layer, use_scale, sub_sample) for image in np.asarray(x, np.float64)
    ]
    outputs, affinities = (np.stack(t) for t in zip(*truth, strict=True))
    assert np.abs(outputs - x).max() > 0.5  # the block does something
    found, affinity = layer(x, return_affinity=True)
    assert relative_error(found, outputs) < 1e-5
    assert relative_error(affinity, affinities[:, None]) < 1e-5
    np.testing.assert_array_equal(layer(x), found)


def test_half_the_channels_by_default():
    layer = made(channels=6)
    assert layer.theta.filters == layer.phi.filters == layer.g.filters == 3
    assert made(channels=1).g.filters == 1


# --- What it must mean ---------------------------------------------------------------------------


@pytest.mark.parametrize("sub_sample", [False, True])
def test_fresh_it_is_the_identity_and_can_learn(sub_sample):
    layer = NonLocal2D(sub_sample=sub_sample)
    x = a_map(5, 7)
    for training in (False, True):
        np.testing.assert_array_equal(layer(x, training=training), x)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x, training=True) ** 3)
    assert np.all(tape.gradient(loss, layer.output_conv.norm.gamma).numpy() != 0)


def test_fresh_projections_are_small_and_differ():
    layer = NonLocal2D()
    layer.build((None, None, None, 64))
    kernels = np.stack([conv.kernel for conv in (layer.theta, layer.phi, layer.g)])
    np.testing.assert_allclose(kernels.std((1, 2, 3, 4)), 0.01, rtol=0.1)
    assert np.abs(np.corrcoef(kernels.reshape(3, -1)) - np.eye(3)).max() < 0.1


@pytest.mark.parametrize("use_scale", [False, True])
def test_commutes_with_permutations(use_scale):
    """Positions are a set: neither their order nor the map's shape matters."""
    layer = made(use_scale=use_scale)
    x = a_map(5, 6).numpy().reshape(2, 30, 6)
    order = np.random.default_rng(1).permutation(30)
    expected = layer(x.reshape(2, 5, 6, 6)).numpy().reshape(2, 30, 6)[:, order]
    found = layer(x[:, order].reshape(2, 3, 10, 6)).numpy().reshape(2, 30, 6)
    assert relative_error(found, expected) < 1e-5


def test_the_scale_is_a_scale_of_theta():
    plain, scaled = made(key_filters=4), made(key_filters=4, use_scale=True)
    x = a_map(4, 5)
    assert relative_error(plain(x), scaled(x)) > 0.01
    scaled.theta.kernel.assign(2 * scaled.theta.kernel)
    scaled.theta.bias.assign(2 * scaled.theta.bias)
    assert relative_error(plain(x), scaled(x)) < 1e-5


def test_affinities_of_functional_models():
    x = keras.Input((None, None, 6))
    model = keras.Model(x, made(sub_sample=True)(x, return_affinity=True))
    _, affinity = model(a_map(5, 7))
    assert affinity.shape == (2, 1, 35, 12) and affinity.dtype == "float32"
    np.testing.assert_allclose(np.sum(affinity, -1), 1, rtol=1e-5)


def test_large_affinities_in_half_precision():
    """theta phi^T beyond float16's range: no infinity, no NaN."""
    layer, whole = made(dtype="mixed_float16"), made(dtype="float32")
    for each in (layer, whole):
        for conv in (each.theta, each.phi):
            conv.kernel.assign(100 * conv.kernel)
    x = 4 * a_map(5, 7)
    query, key = (np.abs(conv(x)).max() for conv in (whole.theta, whole.phi))
    assert query < 65504 and query * key > 65504
    found = layer(x)
    assert found.dtype == "float16" and np.isfinite(found).all()
    assert np.ptp(whole(x, return_affinity=True)[1]) == 1
    assert relative_error(found, whole(x)) < 0.02


def test_dropout_takes_whole_channels_of_the_output():
    layer = made(channels=64, dropout=0.5)
    y = layer(a_map(4, 4, channels=64), training=True).numpy()
    dropped = (y == 0).mean((1, 2))
    assert set(np.unique(dropped)) == {0, 1} and 0.25 < dropped.mean() < 0.75


# --- Wrong arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"key_filters": 0}, "key_filters .* got 0"),
        ({"filters": -1}, "filters .* got -1"),
        ({"dropout": 1}, "dropout .* got 1"),
        ({"sub_sample": "after"}, "sub_sample must be a bool or .* got 'after'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        NonLocal2D(**arguments)


def test_only_maps_of_as_many_channels_are_read():
    with pytest.raises(ValueError, match="6 channels; filters must be None or 6, got 8"):
        NonLocal2D(filters=8).build((None, None, None, 6))
    for shape in ((None, 5, 6), (None, 5, 5, None)):
        with pytest.raises(ValueError, match="feature map"):
            NonLocal2D().build(shape)
