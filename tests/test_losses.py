"""Losses against loops over pixels."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from dealt_out import over_replicas

from isa_tf import losses
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


def on_one_device(loss, labels, logits, *weights):
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(labels, logits, *weights)
    return float(value), tape.gradient(value, logits).numpy()


LOSSES = {
    "plain": PixelCrossEntropy(),
    "weighted": PixelCrossEntropy(class_weights=(0.5, 1.0, 2.0, 0.0)),
    "all": PixelCrossEntropy(average="all"),
    "jaccard": SoftJaccard(),
    "sum": SumOfLosses([PixelCrossEntropy(class_weights=(3, 1, 2, 1)), SoftJaccard()], [1, 0.5]),
    "mean_with_sample_weight": PixelCrossEntropy(reduction="mean_with_sample_weight"),
    "summed": PixelCrossEntropy(reduction="sum"),
}


@pytest.mark.some(20)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "sample_weight"])
@pytest.mark.parametrize("ignored", ["few", "half", "all of one"])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_a_batch_dealt_out_to_replicas_is_the_same_batch(loss, ignored, weighted, mirrored):
    labels, logits = batch(shape=(4, 3, 5))
    if ignored == "half":
        labels[2:, 1:] = 255
    elif ignored == "all of one":
        labels[:2] = 255
        labels[3] = 2  # with fewer classes than there are
    given = (labels, logits)
    if weighted:
        given += (np.random.default_rng(3).uniform(0, 2, (4, 3, 5)).astype("float32"),)
    value, gradient = over_replicas(mirrored, loss, *given)
    expected, as_expected = on_one_device(loss, *given)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert np.abs(gradient - as_expected).max() < 1e-5 * np.abs(as_expected).max()


@pytest.mark.parametrize("loss", [PixelCrossEntropy(), SoftJaccard()], ids=["pixels", "jaccard"])
def test_alone_a_replica_has_the_loss_of_its_own_batch(loss, mirrored):
    labels, logits = batch(shape=(4, 3, 5))
    labels[2:, 1:] = 255
    value, _ = over_replicas(mirrored, loss, labels, logits, evaluated_alone=True)
    halves = [float(loss(labels[i : i + 2], logits[i : i + 2])) for i in (0, 2)]
    np.testing.assert_allclose(value, np.mean(halves), rtol=1e-5)


# === Sample weights ===


def weighted_by_loops(labels, logits, sample, average="valid", mean_with=False, classes=None):
    total, divisor = 0.0, 0.0
    for position in np.ndindex(labels.shape):
        mine = sample[position] if sample.ndim == 3 else sample[position[0]]
        label = labels[position]
        if label == 255:
            divisor += (average == "all") * (mine if mean_with else 1.0)
            continue
        z = logits[position].astype(np.float64)
        weight = 1.0 if classes is None else classes[label]
        total += mine * weight * (np.log(np.exp(z).sum()) - z[label])
        divisor += (1.0 if average == "all" else weight) * (mine if mean_with else 1.0)
    return total / divisor


@pytest.mark.parametrize("per", ["image", "pixel"])
@pytest.mark.parametrize("average", ["valid", "all"])
@pytest.mark.parametrize("classes", [None, (0.5, 1.0, 2.0, 0.0)], ids=["plain", "weighted"])
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean_with_sample_weight"])
def test_sample_weights(per, average, classes, reduction):
    labels, logits = batch()
    shape = labels.shape[:1] if per == "image" else labels.shape
    sample = np.random.default_rng(5).uniform(0.5, 2.0, shape)
    loss = PixelCrossEntropy(class_weights=classes, average=average, reduction=reduction)
    mean_with = reduction == "mean_with_sample_weight"
    expected = weighted_by_loops(labels, logits, sample, average, mean_with, classes)
    np.testing.assert_allclose(loss(labels, logits, sample), expected, rtol=1e-5)
    np.testing.assert_allclose(loss(labels, logits, sample[..., None]), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [PixelCrossEntropy(), SoftJaccard(), LOSSES["sum"]],
    ids=lambda loss: loss.name,
)
def test_a_weight_is_of_its_image_and_of_its_pixel(loss):
    labels, logits = batch(shape=(1, 1, 2), ignored=0)
    left, right = (float(loss(labels, logits, [[w]])) for w in ([1.0, 0.0], [0.0, 1.0]))
    assert abs(left - right) > 1e-3
    labels, logits = batch()
    first = loss(labels, logits, [1.0, 0.0])
    rest = np.ones(labels.shape)
    rest[1] = 0
    np.testing.assert_allclose(first, loss(labels, logits, rest), rtol=1e-6)
    np.testing.assert_allclose(loss(labels, logits, [1.0, 1.0]), loss(labels, logits), rtol=1e-6)


def test_other_reductions():
    labels, logits = batch()
    sample = np.random.default_rng(5).uniform(0.5, 2.0, labels.shape).astype("float32")
    pixels = PixelCrossEntropy(reduction=None)(labels, logits, sample)
    assert pixels.shape == labels.shape and not np.any(pixels.numpy()[labels == 255])
    np.testing.assert_allclose(pixels, sample * PixelCrossEntropy().call(labels, logits), rtol=1e-6)
    total = PixelCrossEntropy(reduction="sum")(labels, logits, sample)
    np.testing.assert_allclose(total, np.sum(pixels), rtol=1e-6)
    mean = total / np.sum(labels != 255)
    np.testing.assert_allclose(PixelCrossEntropy()(labels, logits, sample), mean, rtol=1e-6)
    with pytest.raises(ValueError, match="reduction"):
        PixelCrossEntropy(reduction="median")


def test_soft_jaccard_of_weighted_pixels_is_that_of_repeated_ones():
    labels, logits = batch(shape=(2, 3, 5))
    repeats = np.random.default_rng(5).integers(0, 4, labels.shape)
    expected = jaccard_by_loops(
        np.repeat(labels.ravel(), repeats.ravel()),
        np.repeat(logits.reshape(-1, CLASSES), repeats.ravel(), axis=0),
    )
    np.testing.assert_allclose(SoftJaccard()(labels, logits, repeats), expected, rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_what_does_not_count_may_be_anything(loss, value):
    labels, logits = batch()
    expected, as_expected = on_one_device(loss, labels, logits, labels != 0)
    logits[labels == 255] = logits[labels == 0] = value
    found, gradient = on_one_device(loss, labels, logits, labels != 0)
    assert found == expected
    np.testing.assert_array_equal(gradient, as_expected)


def test_gradient_is_that_of_tensorflow():
    labels, logits = batch(ignored=0)
    mean = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    expected = on_one_device(mean, labels, logits)[1]
    np.testing.assert_allclose(
        on_one_device(PixelCrossEntropy(), labels, logits)[1], expected, rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_float64_is_computed_in_float64(loss):
    labels, logits = batch()
    found = loss(labels, logits.astype("float64"), np.ones(2))
    assert found.dtype == tf.float64
    if loss is LOSSES["plain"]:
        np.testing.assert_allclose(found, by_loops(labels, logits), rtol=1e-12)
    if loss is LOSSES["jaccard"]:
        np.testing.assert_allclose(found, jaccard_by_loops(labels, logits), rtol=1e-12)
    single = loss(labels, logits, np.ones(2))
    assert single.dtype == tf.float32
    np.testing.assert_allclose(single, found, rtol=1e-5)


def test_fit_passes_the_weights_on():
    labels, logits = batch()
    model = keras.Sequential([keras.Input((3, 5, CLASSES)), keras.layers.Activation("linear")])
    loss = LOSSES["sum"]
    model.compile(loss=loss, jit_compile=False)
    for sample in (np.array([0.5, 2.0]), np.random.default_rng(1).uniform(0, 1, labels.shape)):
        found = model.evaluate(logits, labels, sample_weight=sample, batch_size=2, verbose=0)
        np.testing.assert_allclose(found, loss(labels, logits, sample), rtol=1e-5)


def test_config_round_trip():
    loss = PixelCrossEntropy(7, (1, 2, 3, 4), "all", "ce", "mean_with_sample_weight")
    twin = keras.losses.deserialize(keras.losses.serialize(loss))
    assert isinstance(twin, PixelCrossEntropy) and twin.get_config() == loss.get_config()
    labels, logits = batch(ignored=0)
    assert float(twin(labels, logits)) == float(loss(labels, logits))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="average"):
        PixelCrossEntropy(average="mean")
    with pytest.raises(ValueError, match="negative"):
        PixelCrossEntropy(class_weights=(1, -1))
    for weights in ((1, 1, 1), ()):
        with pytest.raises(ValueError, match=f"{len(weights)} class_weights for 4 classes"):
            PixelCrossEntropy(class_weights=weights)(*batch())


@pytest.mark.parametrize("name", losses.list_names())
def test_no_label_to_ignore_is_a_number_that_no_pixel_has(name):
    """`None` made a mean of pixels their sum."""
    labels, logits = batch(ignored=0)
    for none in (None, "void"):
        with pytest.raises(ValueError, match="ignore_label must be an int, -1 where every pixel"):
            losses.create(name, ignore_label=none)
    loss = losses.create(name, ignore_label=np.int64(-1))
    assert type(loss.get_config()["ignore_label"]) is int
    np.testing.assert_allclose(loss(labels, logits), losses.create(name)(labels, logits))


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
