"""Matching and sampling against loops over predictions."""

import numpy as np
import pytest
import tensorflow as tf

from isa_tf import ops

# Few values, so that there are ties and that thresholds are met exactly.
VALUES = np.float32([0, 0.1, 0.3, 0.5, 0.7, 0.8])


def match_by_loops(quality, low, high, valid, ignored, low_quality):
    true, predictions = quality.shape
    matches, labels = np.zeros(predictions, int), np.zeros(predictions, int)
    for k in range(predictions):
        best = -1.0
        for n in range(true):
            if valid[n] and quality[n, k] > best:
                best, matches[k] = quality[n, k], n
        labels[k] = 1 if best >= high else -1 if best >= low or ignored[k] else 0
    for n in range(true):
        highest = max(quality[n])
        for k in range(predictions):
            if low_quality and valid[n] and quality[n, k] == highest > 0:
                labels[k] = 1
    return matches, labels


@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_matches_equal_loops(seed, low_quality):
    rng = np.random.default_rng(seed)
    quality = rng.choice(VALUES[:-2] if seed == 2 else VALUES, size=(3, 6, 25))
    quality[1, 2] = 0  # A true box that overlaps nothing, as one without area does.
    valid = np.array([[True] * 6, [True] * 4 + [False] * 2, [False] * 6])
    ignored = rng.uniform(size=(3, 25)) < 0.3
    low, high = np.float32(0.3), np.float32(0.7)
    found = ops.match_boxes(quality, low, high, valid, ignored, low_quality)
    for matches, labels, *image in zip(*found, quality, valid, ignored, strict=True):
        own = match_by_loops(image[0], low, high, *image[1:], low_quality)
        np.testing.assert_array_equal(matches, own[0])
        np.testing.assert_array_equal(labels, own[1])
    assert (found[1][2] <= 0).numpy().all()
    assert (found[1][0] == 1).numpy().any() or not low_quality


def test_nothing_left_out_is_no_padding_and_nothing_ignored():
    quality = np.random.default_rng(0).choice(VALUES, size=(6, 25))
    found = ops.match_boxes(quality, 0.3, 0.7)
    own = ops.match_boxes(quality, 0.3, 0.7, np.full(6, True), np.full(25, False))
    for a, b in zip(found, own, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_in_a_crowd_is_no_negative():
    true, crowd = np.float32([[[0, 0, 10, 10]]]), np.float32([[[20, 20, 90, 90]]])
    anchors = np.float32([[0, 0, 10, 9], [30, 30, 40, 40], [0, 90, 9, 99]])
    in_crowd = tf.reduce_any(ops.box_coverage(anchors[None], crowd) > 0.7, -1)
    labels = ops.match_boxes(ops.box_iou(true, anchors), 0.3, 0.7, ignored=in_crowd)[1]
    np.testing.assert_array_equal(labels, [[1, -1, 0]])


def test_thresholds_the_wrong_way_round():
    with pytest.raises(ValueError, match="low must not be above high, got 0.7 and 0.3"):
        ops.match_boxes(np.zeros((1, 2), "float32"), 0.7, 0.3)


def sample_by_loops(labels, scores, count, fraction):
    ranked = sorted(range(len(labels)), key=lambda k: (-scores[k], k))
    positives = [k for k in ranked if labels[k] == 1][: int(count * fraction)]
    negatives = [k for k in ranked if labels[k] == 0][: count - len(positives)]
    return positives + negatives


@pytest.mark.parametrize(("count", "fraction"), [(8, 0.5), (8, 0.25), (5, 0.0), (4, 1.0), (60, 1)])
def test_samples_equal_loops(count, fraction):
    rng = np.random.default_rng(0)
    # The usual, few positives, few negatives, none of either, only what is neither.
    shares = [(0.3, 0.3), (0.05, 0.9), (0.9, 0.05), (0, 1), (1, 0), (0, 0)]
    labels = np.stack(
        [rng.choice([1, 0, -1], size=40, p=[p, n, max(1 - p - n, 0)]) for p, n in shares]
    )
    scores = rng.uniform(size=labels.shape).astype("float32").round(1)
    indices, valid = ops.sample_balanced(labels, scores, count, fraction)
    assert indices.shape == valid.shape == (len(shares), count)
    assert (indices >= 0).numpy().all() and (indices < 40).numpy().all()
    for found, is_valid, *image in zip(indices, valid, labels, scores, strict=True):
        expected = sample_by_loops(*image, count, fraction)
        np.testing.assert_array_equal(found[: len(expected)], expected)
        assert is_valid.numpy().tolist() == [i < len(expected) for i in range(count)]


def test_samples_are_drawn_evenly():
    labels = np.tile(np.int32([[1] * 4 + [0] * 4]), (2000, 1))
    scores = tf.random.stateless_uniform(labels.shape, (1, 2))
    indices, valid = ops.sample_balanced(labels, scores, 4, 0.5)
    assert valid.numpy().all()
    counts = np.bincount(np.ravel(indices), minlength=8)
    np.testing.assert_allclose(counts / 2000, 0.5, atol=0.06)


def test_compiled_equals_eager_with_unknown_batches():
    def both(quality, scores):
        labels = ops.match_boxes(quality, 0.3, 0.7, allow_low_quality_matches=True)[1]
        return labels, *ops.sample_balanced(labels, scores, 8, 0.5)

    rng = np.random.default_rng(0)
    arguments = rng.choice(VALUES, size=(2, 5, 30)), rng.uniform(size=(2, 30)).astype("float32")
    specs = [tf.TensorSpec((None, 5, 30)), tf.TensorSpec((None, 30))]
    compiled = tf.function(both, input_signature=specs, jit_compile=True)
    for a, b in zip(compiled(*arguments), both(*arguments), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_wrong_is_told():
    labels, scores = np.zeros((1, 4), int), np.zeros((1, 4), "float32")
    with pytest.raises(ValueError, match=r"positive_fraction must be in \[0, 1\], got 1.5"):
        ops.sample_balanced(labels, scores, 2, 1.5)


def test_few_or_unknown_numbers_are_filled_up():
    labels = np.random.default_rng(1).choice([-1, 0, 1], (2, 5))
    scores = np.random.default_rng(2).uniform(size=(2, 5)).astype("float32")
    specs = [tf.TensorSpec((2, None), tf.int32), tf.TensorSpec((2, None))]
    draw = tf.function(lambda *given: ops.sample_balanced(*given, 8, 0.5), input_signature=specs)
    indices, valid = (part.numpy() for part in draw(labels, scores))
    for image in range(2):
        positives = np.flatnonzero(labels[image] == 1)
        positives = positives[np.argsort(-scores[image, positives])][:4]
        negatives = np.flatnonzero(labels[image] == 0)
        negatives = negatives[np.argsort(-scores[image, negatives])]
        drawn = [*positives, *negatives]
        np.testing.assert_array_equal(indices[image][valid[image]], drawn)
        assert valid[image].sum() == len(drawn) and (indices[image] < 5).all()
