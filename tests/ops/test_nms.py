"""Suppression against loops over boxes."""

import numpy as np
import pytest
import tensorflow as tf
from detecting import iou

from isa_tf import ops


def by_loops(boxes, scores, count, threshold, groups, valid):
    taken = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        rivals = [j for j in taken if groups[i] == groups[j]]
        if valid[i] and not any(iou(boxes[i], boxes[j]) > threshold for j in rivals):
            taken.append(i)
    return taken[:count]


def picture(seed, number=40):
    """Boxes on whole pixels, some of no area, twice the same, outside; scores with many ties."""
    rng = np.random.default_rng(seed)
    boxes = np.sort(rng.integers(0, 12, (number, 2, 2)), 1).reshape(number, 4).astype("float32")
    boxes[:3] = [[3, 3, 3, 3], [0, 5, 9, 5], [-90, -90, -80, -80]]
    boxes[3:6] = boxes[6:9]
    return boxes, rng.uniform(size=number).round(1).astype("float32")


def batch():
    boxes, scores = (np.stack(parts) for parts in zip(*map(picture, range(4)), strict=True))
    valid = np.random.default_rng(9).uniform(size=scores.shape) < 0.8
    valid[2] = False
    valid[3] = True
    groups = np.random.default_rng(8).integers(0, 20, scores.shape) // 2
    return boxes, scores, groups.astype("int32"), valid


@pytest.mark.some(8)
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("count", "threshold"), [(50, 0.5), (7, 0.3), (40, 0.0), (40, 1.0)])
def test_equals_loops(count, threshold, grouped, jit_compile):
    boxes, scores, groups, valid = batch()
    groups = groups if grouped else np.zeros_like(groups)

    @tf.function(
        input_signature=[tf.TensorSpec((None, *a.shape[1:]), a.dtype) for a in batch()],
        jit_compile=jit_compile,
    )
    def suppress(boxes, scores, groups, valid):
        groups = groups if grouped else None
        return ops.non_max_suppression(boxes, scores, count, threshold, groups, valid)

    indices, taken = suppress(boxes, scores, groups, valid)
    assert indices.shape == taken.shape == (4, count)
    for found, is_taken, *image in zip(indices, taken, boxes, scores, groups, valid, strict=True):
        expected = by_loops(*image[:2], count, threshold, *image[2:])
        np.testing.assert_array_equal(found[: len(expected)], expected)
        assert is_taken.numpy().tolist() == [i < len(expected) for i in range(count)]
        assert not found[len(expected) :].numpy().any()


def test_padding_may_be_anything():
    boxes, scores, groups, valid = batch()
    clean = ops.non_max_suppression(boxes, scores, 40, 0.5, groups, valid)
    boxes[~valid], groups[~valid] = np.inf, 10**6
    scores[~valid] = np.nan
    for a, b in zip(
        ops.non_max_suppression(boxes, scores, 40, 0.5, groups, valid), clean, strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_a_score_that_is_no_number_is_not_taken():
    boxes, scores = np.float32([[[0, 0, 2, 2], [5, 5, 7, 7]]]), np.float32([[np.nan, -3]])
    indices, taken = ops.non_max_suppression(boxes, scores, 2, 0.5)
    np.testing.assert_array_equal(indices, [[1, 0]])
    np.testing.assert_array_equal(taken, [[True, False]])


def test_groups_of_coco_size_do_not_meet():
    # Ninety classes on the same two boxes of a large image.
    pair = np.float32([[0, 0, 1333, 800], [1200.25, 700.5, 1333, 800]])
    boxes = np.tile(pair, (91, 1))[None]
    groups = np.repeat(np.arange(91, dtype="int32"), 2)[None]
    scores = np.linspace(1, 0, 182, dtype="float32")[None]
    taken = ops.non_max_suppression(boxes, scores, 182, 0.5, groups)[1]
    assert taken.numpy().all()
    twins = np.repeat(boxes, 2, axis=1)
    taken = ops.non_max_suppression(
        twins, np.repeat(scores, 2, axis=1), 364, 0.99, np.repeat(groups, 2, axis=1)
    )[1]
    assert taken.numpy().sum() == 182


def test_groups_do_not_meet_left_of_the_image():
    boxes = np.float32([[[0, 0, 10, 10], [-11, 0, -1, 10]]])
    groups = np.int32([[0, 1]])
    taken = ops.non_max_suppression(boxes, np.float32([[1, 0]]), 2, 0.5, groups)[1]
    assert taken.numpy().all()


def test_what_is_wrong_is_told():
    boxes, scores = np.zeros((1, 2, 4), "float32"), np.zeros((1, 2), "float32")
    with pytest.raises(ValueError, match=r"iou_threshold must be in \[0, 1\], got 50"):
        ops.non_max_suppression(boxes, scores, 2, 50)

    @tf.function(input_signature=[tf.TensorSpec((1, None))])
    def unknown(scores):
        return ops.non_max_suppression(boxes, scores, 2, 0.5)

    with pytest.raises(ValueError, match="how many boxes there are must be known"):
        unknown(scores)
