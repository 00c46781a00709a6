"""Losses against loops over pixels."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from isa_tf.losses import PixelCrossEntropy, SoftJaccard, SumOfLosses
from isa_tf.metrics import MeanIoU

CLASSES = 4


def batch(seed=0, shape=(2, 3, 5), ignored=0.3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, shape)
    labels[rng.uniform(size=shape) < ignored] = 255
    return labels, rng.normal(0, 3, (*shape, CLASSES)).astype("float32")


def by_loops(labels, logits, weights=None, average="valid", ignore_label=255):
    total, divisor = 0.0, 0.0
    for position in np.ndindex(labels.shape):
        label = labels[position]
        if label == ignore_label:
            divisor += average == "all"
            continue
        z = logits[position].astype(np.float64)
        weight = 1.0 if weights is None else weights[label]
        total += weight * (np.log(np.exp(z).sum()) - z[label])
        divisor += 1.0 if average == "all" else weight
    return total / divisor


@pytest.mark.parametrize("average", ["valid", "all"])
@pytest.mark.parametrize("weights", [None, (0.5, 1.0, 2.0, 0.0)], ids=["plain", "weighted"])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float32"])
def test_equals_loops(average, weights, dtype):
    labels, logits = batch()
    loss = PixelCrossEntropy(class_weights=weights, average=average)
    found = loss(labels.astype(dtype), logits)
    assert found.dtype == tf.float32 and found.shape == ()
    np.testing.assert_allclose(found, by_loops(labels, logits, weights, average), rtol=1e-5)


def test_another_ignore_label():
    labels, logits = batch(ignored=0)
    found = PixelCrossEntropy(ignore_label=0)(labels, logits)
    np.testing.assert_allclose(found, by_loops(labels, logits, ignore_label=0), rtol=1e-5)


def test_equals_keras_without_ignored_pixels():
    labels, logits = batch(ignored=0)
    expected = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, logits)
    np.testing.assert_allclose(PixelCrossEntropy()(labels, logits), expected, rtol=1e-5)


@pytest.mark.parametrize("average", ["valid", "all"])
def test_a_batch_of_ignored_pixels_is_zero(average):
    labels, logits = batch(ignored=1.0)
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = PixelCrossEntropy(average=average)(labels, logits)
    assert float(loss) == 0
    assert not np.any(tape.gradient(loss, logits).numpy())


def test_ignored_pixels_have_no_gradient_whatever_their_logits():
    labels, logits = batch()
    logits[labels == 255] = 1e30
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = PixelCrossEntropy()(labels, logits)
    gradient = tape.gradient(loss, logits).numpy()
    assert np.isfinite(loss) and np.isfinite(gradient).all()
    assert not np.any(gradient[labels == 255]) and np.any(gradient[labels != 255])


def test_low_precision_logits_are_summed_in_float32():
    labels, logits = batch(shape=(2, 64, 64))
    half = tf.cast(logits, tf.float16)
    expected = by_loops(labels, half.numpy())
    np.testing.assert_allclose(PixelCrossEntropy()(labels, half), expected, rtol=1e-5)


@pytest.mark.parametrize("label", [CLASSES, 200, -1])
@pytest.mark.parametrize("weights", [None, (1.0,) * CLASSES], ids=["plain", "weighted"])
def test_a_label_out_of_range_is_refused(label, weights):
    labels, logits = batch()
    labels[0, 0, 0] = label
    with pytest.raises(tf.errors.InvalidArgumentError):
        PixelCrossEntropy(class_weights=weights)(labels, logits)


def test_graph_and_xla_agree():
    labels, logits = batch()
    expected = by_loops(labels, logits)
    for jit_compile in (False, True):
        compiled = tf.function(PixelCrossEntropy(), jit_compile=jit_compile)
        np.testing.assert_allclose(compiled(labels, logits), expected, rtol=1e-5)


def test_replicas_share_the_mean(mirrored):
    """Keras sums the replicas' gradients, so a replica gives its share of the mean."""
    labels, logits = batch(shape=(4, 3, 5))
    loss = PixelCrossEntropy()

    def part(values):
        parts = np.split(values, 2)
        return mirrored.experimental_distribute_values_from_function(
            lambda context: tf.constant(parts[context.replica_id_in_sync_group])
        )

    shares = mirrored.run(loss, (part(labels), part(logits)))
    total = mirrored.reduce("SUM", shares, axis=None)
    halves = [by_loops(labels[i : i + 2], logits[i : i + 2]) for i in (0, 2)]
    np.testing.assert_allclose(total, np.mean(halves), rtol=1e-5)


def test_config_round_trip():
    loss = PixelCrossEntropy(7, (1, 2, 3, 4), "all", name="ce")
    twin = keras.losses.deserialize(keras.losses.serialize(loss))
    assert isinstance(twin, PixelCrossEntropy) and twin.get_config() == loss.get_config()
    labels, logits = batch(ignored=0)
    assert float(twin(labels, logits)) == float(loss(labels, logits))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="average"):
        PixelCrossEntropy(average="mean")
    with pytest.raises(ValueError, match="negative"):
        PixelCrossEntropy(class_weights=(1, -1))
    with pytest.raises(ValueError, match="3 class_weights for 4 classes"):
        PixelCrossEntropy(class_weights=(1, 1, 1))(*batch())


def jaccard_by_loops(labels, logits, ignore_label=255):
    both, either = np.zeros(CLASSES), np.zeros(CLASSES)
    held = set()
    for position in np.ndindex(labels.shape):
        label = labels[position]
        if label == ignore_label:
            continue
        held.add(label)
        scores = np.exp(logits[position].astype(np.float64))
        scores /= scores.sum()
        for c in range(CLASSES):
            both[c] += scores[c] * (c == label)
            either[c] += scores[c] + (c == label) - scores[c] * (c == label)
    return np.mean([1 - both[c] / either[c] for c in held])


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
@pytest.mark.parametrize("absent", [None, 2])
def test_soft_jaccard_equals_loops(dtype, absent):
    labels, logits = batch()
    labels[labels == absent] = 0
    found = SoftJaccard()(labels.astype(dtype), logits)
    assert found.dtype == tf.float32 and found.shape == ()
    np.testing.assert_allclose(found, jaccard_by_loops(labels, logits), rtol=1e-5)


def test_soft_jaccard_of_sure_predictions_is_what_mean_iou_measures():
    labels, logits = batch(seed=1, ignored=0.1)
    predicted = logits.argmax(-1)
    metric = MeanIoU(CLASSES)
    metric.update_state(labels, logits)
    found = SoftJaccard()(labels, np.eye(CLASSES, dtype="float32")[predicted] * 100)
    np.testing.assert_allclose(1 - found, metric.result(), rtol=1e-5)


def test_soft_jaccard_ignores_what_is_ignored():
    labels, logits = batch()
    logits[labels == 255] = np.nan
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = SoftJaccard()(labels, logits)
    gradient = tape.gradient(loss, logits).numpy()
    assert np.isfinite(float(loss)) and np.isfinite(gradient).all()
    assert not gradient[labels == 255].any() and gradient[labels != 255].any()
    assert float(SoftJaccard()(np.full((1, 2, 2), 255), np.zeros((1, 2, 2, CLASSES)))) == 0


def test_sum_of_losses():
    labels, logits = batch()
    parts = [PixelCrossEntropy(average="all"), SoftJaccard()]
    expected = 2 * parts[0](labels, logits) + 0.5 * parts[1](labels, logits)
    loss = SumOfLosses(parts, [2.0, 0.5])
    np.testing.assert_allclose(loss(labels, logits), expected, rtol=1e-6)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    np.testing.assert_allclose(copy(labels, logits), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="1 weights for 2 losses"):
        SumOfLosses(parts, [1.0])
    with pytest.raises(ValueError, match="0 losses"):
        SumOfLosses([])
