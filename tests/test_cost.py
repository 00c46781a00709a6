"""Counted operations against closed forms."""

import keras
import pytest
import tensorflow as tf

from isa_tf import layers
from isa_tf.cost import count_flops, flops_by_kind
from isa_tf.models import ISANet


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (keras.layers.Conv2D(4, 3, padding="same"), 2 * 100 * 27 * 4),
        (keras.layers.Conv2D(4, 3, strides=2, padding="same"), 2 * 25 * 27 * 4),
        (keras.layers.Conv2D(4, 3, dilation_rate=2, padding="same"), 2 * 100 * 27 * 4),
        (keras.layers.DepthwiseConv2D(5, padding="same"), 2 * 100 * 25 * 3),
        (keras.layers.Dense(7), 2 * 100 * 3 * 7),
        (lambda x: tf.einsum("bhwc,bhvc->bhwv", x, x), 2 * 10 * 10 * 10 * 3),
        (lambda x: tf.matmul(x, x, transpose_b=True), 2 * 10 * 10 * 10 * 3),
    ],
    ids=["conv", "strided", "dilated", "depthwise", "dense", "einsum", "matmul"],
)
def test_one_operation(layer, expected):
    assert count_flops(layer, (10, 10)) == expected


def test_attention_of_isa():
    """Projections and both affinities of 16x24 positions, P = 8: 6 and 64 keys a query."""
    n, c, k = 16 * 24, 3, 2
    layer = layers.InterlacedSparseAttention(8, key_filters=k)
    projections = 2 * n * (2 * (c * k + k * k) + 2 * c * c)
    attention = 2 * n * (6 + 64) * (k + c)
    fusion = 2 * n * 2 * c * c
    assert count_flops(layer, (16, 24)) == 2 * projections + attention + fusion
    found = flops_by_kind(layer, (1, 16, 24, c))
    assert found == (2 * projections + fusion, attention, 0)


def test_compiled_attention_counts_too():
    plain, compiled = (layers.SelfAttention2D(key_filters=4, jit_compile=j) for j in (False, True))
    assert count_flops(plain, (6, 7)) == count_flops(compiled, (6, 7)) > 0


def test_a_model_of_another_size():
    model = ISANet("tiny", num_classes=3, head_filters=8, auxiliary_level=None, output_stride=4)
    small, large = count_flops(model, (64, 64)), count_flops(model, (128, 128))
    assert 3.5 < large / small < 5


def test_the_auxiliary_head_is_not_part_of_prediction():
    arguments = {"num_classes": 3, "head_filters": 8, "output_stride": 4}
    with_head = ISANet("tiny", auxiliary_level="c1", **arguments)
    without = ISANet("tiny", auxiliary_level=None, **arguments)
    assert count_flops(with_head, (64, 64)) == count_flops(without, (64, 64))
