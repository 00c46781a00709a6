"""Sizes that are rounded: the same in a graph that knows them and in one that does not."""

import pytest
import tensorflow as tf

from isa_tf.layers import ResizeBy


@pytest.mark.parametrize(
    ("factor", "size", "expected"),
    [
        (0.7, (45, 165), (32, 116)),  # 31.5 and 115.5, which in float64 are less
        (1.1, (55, 95), (60, 104)),  # 60.5 and 104.5, which in float64 are more
        (1.5, (3, 5), (4, 8)),
        (0.1, (4, 16), (1, 2)),
    ],
)
def test_halves_are_rounded_alike(factor, size, expected):
    layer, x = ResizeBy(factor), tf.zeros((1, *size, 1))
    graph = tf.function(layer, input_signature=[tf.TensorSpec((None, None, None, 1))])
    assert tuple(graph(x).shape) == tuple(layer(x).shape) == (1, *expected, 1)
    assert layer.compute_output_shape(x.shape) == (1, *expected, 1)
