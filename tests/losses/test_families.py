"""The hard pixels, the focus, the boundary, Dice and Lovász, against slow NumPy in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from dealt_out import over_replicas

from isa_tf import losses
from isa_tf.losses import (
    BoundaryCrossEntropy,
    DiceLoss,
    FocalLoss,
    LovaszSoftmax,
    OHEMCrossEntropy,
    PixelCrossEntropy,
)

CLASSES = 4
WEIGHTS = (0.5, 1.0, 2.0, 0.25)


def batch(seed=0, shape=(2, 3, 5), ignored=0.3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, shape)
    labels[rng.uniform(size=shape) < ignored] = 255
    return labels, rng.normal(0, 2, (*shape, CLASSES)).astype("float32")


def softmax(logits):
    scores = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return scores / scores.sum(-1, keepdims=True)


def image_weights(sample, shape):
    """Sample weights (B,) or (B, H, W), or `None`, as those of pixels."""
    if sample is None:
        return np.ones(shape)
    sample = np.asarray(sample, np.float64)
    return np.broadcast_to(sample.reshape(sample.shape + (1,) * (3 - sample.ndim)), shape)


# === Slowly ===


def mean_over_pixels(labels, logits, sample, cost, count, average="valid"):
    """The weighted mean of cost(probability) with the weights count(position)."""
    probabilities, total, divisor = softmax(logits), 0.0, 0.0
    for position in np.ndindex(labels.shape):
        label = labels[position]
        if label != 255:
            mine = count(position)
            total += sample[position] * mine * cost(probabilities[position][label])
            divisor += mine
    return total / (labels.size if average == "all" else divisor)


def slow_ohem(labels, logits, sample, threshold, min_kept, class_weights=None, average="valid"):
    probabilities = softmax(logits)
    candidates = [p for p in np.ndindex(labels.shape) if labels[p] != 255 and sample[p]]
    own = {p: probabilities[p][labels[p]] for p in candidates}
    hardest = set(sorted(candidates, key=own.get)[:min_kept])
    kept = {p for p in candidates if own[p] < threshold} | hardest
    weight = np.ones(CLASSES) if class_weights is None else class_weights

    def count(position):
        return weight[labels[position]] * (position in kept)

    return mean_over_pixels(labels, logits, sample, lambda p: -np.log(p), count, average)


def slow_focal(labels, logits, sample, gamma, class_weights=None):
    weight = np.ones(CLASSES) if class_weights is None else class_weights
    return mean_over_pixels(
        labels,
        logits,
        sample,
        lambda p: -((1 - p) ** gamma) * np.log(p),
        lambda position: weight[labels[position]],
    )


def slow_near(labels, width):
    near = np.zeros(labels.shape, bool)
    for b, y, x in np.ndindex(labels.shape):
        top, left = max(y - width, 0), max(x - width, 0)
        around = labels[b, top : y + width + 1, left : x + width + 1]
        near[b, y, x] = labels[b, y, x] != 255 and len(set(around[around != 255])) > 1
    return near


def slow_boundary(labels, logits, sample, boundary_weight, width):
    near = slow_near(labels, width)
    return mean_over_pixels(
        labels,
        logits,
        sample,
        lambda p: -np.log(p),
        lambda position: 1 + boundary_weight * near[position],
    )


def slow_dice(labels, logits, sample, class_weights=None):
    scores, missed, divisor = softmax(logits), 0.0, 0.0
    valid = (labels != 255) * sample
    for c in range(CLASSES):
        of_class = (labels == c) * valid
        if of_class.any():
            weight = 1.0 if class_weights is None else class_weights[c]
            both = (scores[..., c] * of_class).sum()
            total = (scores[..., c] * valid).sum() + of_class.sum()
            missed, divisor = missed + weight * (1 - 2 * both / total), divisor + weight
    return missed / divisor


def slow_lovasz(labels, logits, sample, class_weights=None):
    """By the definition: of the sorted pixels, what each set of the worst makes of the index."""
    scores, lost, divisor = softmax(logits), 0.0, 0.0
    valid = labels != 255
    weights = sample[valid]
    for c in range(CLASSES):
        of_class = labels[valid] == c
        if not (of_class * weights).any():
            continue
        errors = np.abs(of_class - scores[valid][:, c])
        order, before, loss = np.argsort(-errors), 0.0, 0.0
        total = (of_class * weights).sum()
        for k, i in enumerate(order, 1):
            worst = order[:k]
            missed = (of_class * weights)[worst].sum()
            false = (~of_class * weights)[worst].sum()
            jaccard_loss = 1 - (total - missed) / (total + false)
            loss, before = loss + errors[i] * (jaccard_loss - before), jaccard_loss
        weight = 1.0 if class_weights is None else class_weights[c]
        lost, divisor = lost + weight * loss, divisor + weight
    return lost / divisor


CASES = {
    "ohem": (OHEMCrossEntropy, slow_ohem, {"threshold": 0.3, "min_kept": 3}),
    "ohem_few_are_hard": (OHEMCrossEntropy, slow_ohem, {"threshold": 1e-6, "min_kept": 9}),
    "ohem_more_than_there_are": (OHEMCrossEntropy, slow_ohem, {"threshold": 0.1, "min_kept": 999}),
    "ohem_weighted": (
        OHEMCrossEntropy,
        slow_ohem,
        {"threshold": 0.3, "min_kept": 3, "class_weights": WEIGHTS},
    ),
    "ohem_all": (
        OHEMCrossEntropy,
        slow_ohem,
        {"threshold": 0.5, "min_kept": 1, "average": "all"},
    ),
    "focal": (FocalLoss, slow_focal, {"gamma": 2.0}),
    "focal_root": (FocalLoss, slow_focal, {"gamma": 0.5, "class_weights": WEIGHTS}),
    "boundary": (BoundaryCrossEntropy, slow_boundary, {"boundary_weight": 3.0, "width": 1}),
    "dice": (DiceLoss, slow_dice, {}),
    "dice_weighted": (DiceLoss, slow_dice, {"class_weights": WEIGHTS}),
    "lovasz": (LovaszSoftmax, slow_lovasz, {}),
    "lovasz_weighted": (LovaszSoftmax, slow_lovasz, {"class_weights": WEIGHTS}),
}
LOSSES = {
    name: CASES[name][0](**CASES[name][2])
    for name in ("ohem", "focal", "boundary", "dice", "lovasz")
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def on_one_device(loss, labels, logits, *weights):
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(labels, logits, *weights)
    return float(value), tape.gradient(value, logits).numpy()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("per", [None, "image", "pixel"])
@pytest.mark.parametrize("make, slowly, options", CASES.values(), ids=CASES.keys())
def test_equals_slow_numpy(make, slowly, options, per, dtype):
    labels, logits = batch()
    rng = np.random.default_rng(5)
    sample = {None: None, "image": rng.uniform(0.5, 2, 2), "pixel": rng.uniform(0, 2, (2, 3, 5))}
    sample = sample[per]
    if per == "pixel":
        sample[rng.uniform(size=sample.shape) < 0.2] = 0
    found = make(**options)(labels, logits.astype(dtype), sample)
    assert found.shape == () and found.dtype == dtype
    expected = slowly(labels, logits, image_weights(sample, labels.shape), **options)
    np.testing.assert_allclose(found, expected, rtol=1e-5 if dtype == "float32" else 1e-11)


@each_loss
def test_gradient_is_the_slope(loss):
    """By differences, in float64; what is kept and sorted does not change in so small a step."""
    labels, logits = batch(shape=(1, 2, 3))
    logits = logits.astype("float64")
    _, gradient = on_one_device(loss, labels, logits)
    for position in np.ndindex(logits.shape):
        ends = []
        for step in (-1e-6, 1e-6):
            moved = logits.copy()
            moved[position] += step
            ends.append(float(loss(labels, moved)))
        slope = (ends[1] - ends[0]) / 2e-6
        np.testing.assert_allclose(gradient[position], slope, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@each_loss
def test_what_does_not_count_may_be_anything(loss, value):
    labels, logits = batch()
    expected, as_expected = on_one_device(loss, labels, logits, labels != 0)
    logits[labels == 255] = logits[labels == 0] = value
    found, gradient = on_one_device(loss, labels, logits, labels != 0)
    assert found == expected
    np.testing.assert_array_equal(gradient, as_expected)
    assert not gradient[(labels == 255) | (labels == 0)].any() and gradient.any()


@each_loss
def test_a_batch_of_ignored_pixels_is_zero(loss):
    labels, logits = batch(ignored=1.0)
    value, gradient = on_one_device(loss, labels, logits)
    assert value == 0 and not gradient.any()


@each_loss
def test_sure_predictions_have_finite_gradients(loss):
    labels, _ = batch()
    right = np.eye(CLASSES, dtype="float32")[np.where(labels == 255, 0, labels)]
    for sign in (1, -1):  # sure, and right or wrong
        value, gradient = on_one_device(loss, labels, sign * 300 * right)
        assert np.isfinite(value) and np.isfinite(gradient).all()
        assert (value < 1e-6) == (sign == 1)


@each_loss
def test_xla_computes_the_same(loss):
    labels, logits = batch()
    function = tf.function(lambda x: loss(labels, x), jit_compile=True)
    np.testing.assert_allclose(function(tf.constant(logits)), loss(labels, logits), rtol=1e-5)


@each_loss
def test_config_round_trip(loss):
    twin = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(twin) is type(loss) and twin.get_config() == loss.get_config()
    labels, logits = batch()
    assert float(twin(labels, logits)) == float(loss(labels, logits))


@pytest.mark.parametrize("ignored", ["few", "all of one"])
@each_loss
def test_a_batch_dealt_out_to_replicas_is_the_same_batch(loss, ignored, mirrored):
    labels, logits = batch(shape=(4, 3, 5))
    given = (labels, logits)
    if ignored == "all of one":
        labels[:2] = 255
        given += (np.random.default_rng(3).uniform(0, 2, (4, 3, 5)).astype("float32"),)
    value, gradient = over_replicas(mirrored, loss, *given)
    expected, as_expected = on_one_device(loss, *given)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert np.abs(gradient - as_expected).max() < 1e-5 * np.abs(as_expected).max()


@pytest.mark.parametrize("name", ["ohem", "lovasz"])
def test_alone_a_replica_has_the_loss_of_its_own_batch(name, mirrored):
    labels, logits = batch(shape=(4, 3, 5))
    value, _ = over_replicas(mirrored, LOSSES[name], labels, logits, evaluated_alone=True)
    halves = [float(LOSSES[name](labels[i : i + 2], logits[i : i + 2])) for i in (0, 2)]
    np.testing.assert_allclose(value, np.mean(halves), rtol=1e-5)


# === What is particular ===


def test_the_kept_pixels_are_of_all_replicas(mirrored):
    """The hard ones lie in one replica's half, and are kept there alone."""
    labels, logits = np.zeros((2, 1, 8), int), np.zeros((2, 1, 8, 2), "float32")
    logits[..., 0] = 5 + np.arange(16).reshape(2, 1, 8)
    loss = OHEMCrossEntropy(threshold=0.5, min_kept=4)
    _, gradient = over_replicas(mirrored, loss, labels, logits)
    assert gradient.any(-1).ravel().tolist() == [True] * 4 + [False] * 12


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kth_smallest_is_exact(dtype):
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.uniform(size=60), [0, 0, 1, 1, 1, 1e-30]]).astype(dtype)
    candidates = rng.uniform(size=len(values)) < 0.8
    ordered = np.sort(values[candidates])
    select = tf.function(losses.kth_smallest)
    for k in (1, 2, 3, 17, len(ordered) - 1, len(ordered), len(ordered) + 5):
        found = select(tf.constant(values), tf.constant(candidates), tf.constant(k))
        assert found.numpy() == ordered[min(k, len(ordered)) - 1]
    assert select(tf.constant(values), tf.constant(candidates), tf.constant(0)).numpy() == -1
    nothing = np.zeros_like(candidates)
    assert select(tf.constant(values), tf.constant(nothing), tf.constant(3)).numpy() == -1


def test_equally_hard_pixels_are_kept_together():
    """At the start every pixel may be: the published code's strict comparison then keeps none."""
    labels, logits = np.zeros((1, 2, 4), int), np.full((1, 2, 4, 2), 30.0, "float32")
    logits[..., 1] = 0
    value, gradient = on_one_device(OHEMCrossEntropy(threshold=0.7, min_kept=3), labels, logits)
    expected, as_expected = on_one_device(PixelCrossEntropy(), labels, logits)
    assert value == expected
    np.testing.assert_array_equal(gradient, as_expected)


def test_focal_without_focus_is_cross_entropy():
    labels, logits = batch()
    for one, other in zip(
        on_one_device(FocalLoss(gamma=0.0), labels, logits),
        on_one_device(PixelCrossEntropy(), labels, logits),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("width", [1, 2])
def test_near_a_boundary(width):
    labels, _ = batch(shape=(2, 7, 9), ignored=0.2)
    labels[0, :, :5] = 1
    np.testing.assert_array_equal(
        losses.near_boundary(tf.constant(labels), width), slow_near(labels, width)
    )


def test_lovasz_of_sure_predictions_is_the_jaccard_loss():
    labels, logits = batch(ignored=0.2, shape=(2, 6, 6))
    predicted = logits.argmax(-1)
    valid = labels != 255
    missed = []
    for c in np.unique(labels[valid]):
        both = ((labels == c) & (predicted == c))[valid].sum()
        missed.append(1 - both / ((labels == c) | (predicted == c))[valid].sum())
    found = LovaszSoftmax()(labels, np.eye(CLASSES, dtype="float32")[predicted] * 100)
    np.testing.assert_allclose(found, np.mean(missed), rtol=1e-5)


def test_lovasz_of_weighted_pixels_is_that_of_repeated_ones():
    labels, logits = batch(ignored=0)
    repeats = np.random.default_rng(5).integers(0, 4, labels.shape)
    expected = LovaszSoftmax()(
        np.repeat(labels.ravel(), repeats.ravel())[None, None],
        np.repeat(logits.reshape(-1, CLASSES), repeats.ravel(), axis=0)[None, None],
    )
    np.testing.assert_allclose(LovaszSoftmax()(labels, logits, repeats), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: OHEMCrossEntropy(threshold=0.0), "threshold"),
        (lambda: OHEMCrossEntropy(min_kept=-1), "min_kept"),
        (lambda: FocalLoss(gamma=-1.0), "gamma"),
        (lambda: BoundaryCrossEntropy(boundary_weight=-1.0), "boundary_weight"),
        (lambda: BoundaryCrossEntropy(width=0), "width"),
        (lambda: DiceLoss(class_weights=(1, -1)), "negative"),
        (lambda: LovaszSoftmax(class_weights=(1, 1))(*batch()), "2 class_weights for 4 classes"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
