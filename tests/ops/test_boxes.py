"""Boxes against loops over pairs, and against one another."""

import math

import numpy as np
import pytest
import tensorflow as tf

from isa_tf import ops

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def some_boxes(count, seed=0, size=40):
    corners = np.random.default_rng(seed).uniform(0, size, (count, 2, 2))
    return np.sort(corners, 1).reshape(count, 4).astype("float32")


# Without area: a point, two lines; one outside of all others.
DEGENERATE = np.float32([[3, 3, 3, 3], [0, 5, 9, 5], [7, 0, 7, 9], [-90, -90, -80, -80]])


def shared(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def test_overlaps_equal_loops_over_pairs():
    boxes = np.concatenate([some_boxes(20), DEGENERATE])
    others = np.concatenate([some_boxes(11, 1), DEGENERATE])
    iou, coverage = np.zeros((2, len(boxes), len(others)))
    for i, j in np.ndindex(*iou.shape):
        a, b = boxes[i].astype(float), others[j].astype(float)
        union = area(a) + area(b) - shared(a, b)
        iou[i, j] = shared(a, b) / union if union else 0.0
        coverage[i, j] = shared(a, b) / area(a) if area(a) else 0.0
    np.testing.assert_allclose(ops.box_iou(boxes, others), iou, atol=1e-6)
    np.testing.assert_allclose(ops.box_coverage(boxes, others), coverage, atol=1e-6)
    np.testing.assert_allclose(ops.box_area(boxes), [area(b) for b in boxes], rtol=1e-5)


def test_leading_axes_broadcast():
    batch = np.stack([some_boxes(5, seed) for seed in range(3)])
    found = ops.box_iou(batch, some_boxes(4, 9))
    assert found.shape == (3, 5, 4)
    np.testing.assert_array_equal(found[2], ops.box_iou(batch[2], some_boxes(4, 9)))


def test_codes_equal_the_formula_and_decode_to_the_boxes():
    boxes, anchors = some_boxes(30), some_boxes(30, 1)
    codes = ops.encode_boxes(boxes, anchors, WEIGHTS)
    for code, box, anchor in zip(codes.numpy(), *np.float64([boxes, anchors]), strict=True):
        for axis in range(2):
            side, unit = box[axis + 2] - box[axis], anchor[axis + 2] - anchor[axis]
            way = (box[axis] + box[axis + 2] - anchor[axis] - anchor[axis + 2]) / 2
            np.testing.assert_allclose(code[axis], WEIGHTS[axis] * way / unit, rtol=2e-3, atol=1e-4)
            expected = WEIGHTS[axis + 2] * math.log(side / unit)
            np.testing.assert_allclose(code[axis + 2], expected, rtol=2e-3, atol=1e-4)
    growth = (boxes - boxes[:, [2, 3, 0, 1]])[:, 2:] / (anchors - anchors[:, [2, 3, 0, 1]])[:, 2:]
    modest = (growth < 1000 / 16).all(1)
    assert modest.sum() > 20
    back = ops.decode_boxes(codes, anchors, WEIGHTS)
    np.testing.assert_allclose(back[modest], boxes[modest], atol=1e-3)


def test_no_side_grows_by_more_than_from_16_to_1000():
    decoded = ops.decode_boxes(tf.constant([0.0, 0.0, 50.0, 4.0]), tf.constant([0.0, 0, 16, 16]))
    width, height = ops.box_sides(decoded)
    np.testing.assert_allclose(width, 1000, rtol=1e-5)
    np.testing.assert_allclose(height, 16 * math.exp(4.0), rtol=1e-5)


def test_boxes_of_many_classes_decode_over_one_axis_of_references():
    codes = np.random.default_rng(0).normal(size=(2, 5, 3, 4)).astype("float32")
    boxes = np.stack([some_boxes(5), some_boxes(5, 1)])
    found = ops.decode_boxes(codes, boxes[:, :, None])
    np.testing.assert_array_equal(found[:, :, 1], ops.decode_boxes(codes[:, :, 1], boxes))


@pytest.mark.parametrize("padding", [np.zeros((4, 4), "float32"), DEGENERATE])
def test_codes_of_boxes_without_area_are_finite(padding):
    anchors = some_boxes(4)
    assert np.isfinite(ops.encode_boxes(padding, anchors)).all()
    assert np.isfinite(ops.encode_boxes(anchors, padding)).all()


def test_clipping_by_one_size_or_by_each_images_own():
    boxes = np.float32([[[-5, -6, 90, 80], [200, 300, 400, 500], [1, 2, 3, 4]]] * 2)
    one = ops.clip_boxes(boxes, (50, 60)).numpy()
    np.testing.assert_array_equal(one[0], [[0, 0, 60, 50], [60, 50, 60, 50], [1, 2, 3, 4]])
    np.testing.assert_array_equal(one[0], one[1])
    own = ops.clip_boxes(boxes, tf.constant([[50, 60], [3, 2]])).numpy()
    np.testing.assert_array_equal(own[0], one[0])
    np.testing.assert_array_equal(own[1], [[0, 0, 2, 3], [2, 3, 2, 3], [1, 2, 2, 3]])
    classes = ops.clip_boxes(boxes[:, :, None], tf.constant([[50, 60], [3, 2]]))
    np.testing.assert_array_equal(classes[:, :, 0], own)


def test_compiled_equals_eager_with_unknown_batches():
    def all_of_it(boxes, anchors):
        codes = ops.encode_boxes(boxes, anchors, WEIGHTS)
        decoded = ops.decode_boxes(codes, anchors, WEIGHTS)
        return ops.box_iou(ops.clip_boxes(decoded, (30, 20)), anchors)

    boxes = np.stack([np.concatenate([some_boxes(5, seed), DEGENERATE]) for seed in range(2)])
    specs = [tf.TensorSpec((None, 9, 4)), tf.TensorSpec((9, 4))]
    compiled = tf.function(all_of_it, input_signature=specs, jit_compile=True)
    anchors = some_boxes(9, 7)
    np.testing.assert_allclose(compiled(boxes, anchors), all_of_it(boxes, anchors), atol=1e-5)
