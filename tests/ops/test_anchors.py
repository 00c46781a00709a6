"""Anchors against loops over positions, ratios and sizes."""

import math

import numpy as np
import pytest
import tensorflow as tf

from isa_tf import ops

RATIOS = (0.5, 1.0, 2.0)


def by_loops(map_size, stride, sizes, ratios):
    anchors = []
    for row, column in np.ndindex(*map_size):
        for ratio in ratios:
            for size in sizes:
                width, height = size / math.sqrt(ratio), size * math.sqrt(ratio)
                corners = [round(v / 2) for v in (-width, -height, width, height)]
                shift = [column * stride[1], row * stride[0]] * 2
                anchors.append([c + s for c, s in zip(corners, shift, strict=True)])
    return np.array(anchors)


@pytest.mark.parametrize("sizes", [(32,), (11, 64, 512)])
@pytest.mark.parametrize(("map_size", "stride"), [((3, 5), (8, 8)), ((2, 1), (15, 33))])
def test_equal_loops(map_size, stride, sizes):
    found = ops.map_anchors(map_size, stride, sizes, RATIOS)
    np.testing.assert_array_equal(found, by_loops(map_size, stride, sizes, RATIOS))


def test_corners_in_the_middle_are_rounded_to_even():
    # 5 / 2 and 7 / 2 are exact in binary.
    found = ops.base_anchors([5, 7], [1.0])
    np.testing.assert_array_equal(found, [[-2, -2, 2, 2], [-4, -4, 4, 4]])


def test_order_is_that_of_a_flattened_map():
    height, width, ratios = 3, 4, len(RATIOS)
    anchors = tf.reshape(ops.map_anchors((height, width), 16, [32]), (height, width, ratios, 4))
    base = ops.base_anchors([32])
    np.testing.assert_array_equal(anchors[2, 1, 2], base[2] + [16, 32, 16, 32])


def test_pyramid_with_sizes_known_when_it_runs():
    sizes, strides = [(4, 6), (2, 3)], [(4, 4), (8, 8)]

    @tf.function(input_signature=[tf.TensorSpec((None, None)), tf.TensorSpec((None, None))])
    def anchors(*maps):
        known_late = [tf.unstack(tf.shape(m)) for m in maps]
        return ops.pyramid_anchors(known_late, strides, [[32], [64]])

    for found, *level in zip(
        anchors(*(tf.zeros(s) for s in sizes)), sizes, strides, [[32], [64]], strict=True
    ):
        np.testing.assert_array_equal(found, by_loops(*level, RATIOS))


def test_what_is_wrong_is_told():
    with pytest.raises(ValueError, match="sizes must be positive numbers"):
        ops.base_anchors([32, 0])
    with pytest.raises(ValueError, match="aspect_ratios must be positive numbers"):
        ops.base_anchors([32], [])
    with pytest.raises(ValueError, match="2 maps need as many strides and sizes, got 2 and 1"):
        ops.pyramid_anchors([(1, 1), (1, 1)], [4, 8], [32])
