"""Counted operations against closed forms."""

import math
import re

import keras
import pytest
import tensorflow as tf

from isa_tf import backbones, layers
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


H, W, C = 24, 32, 64
N = H * W


def attention_block(keys, k=C // 2):
    """Query and key twice, value and output, and the affinities with so many keys a query."""
    return N * (2 * (C * k + k * k) + 2 * C * C) + N * keys * (k + C)


# Multiply-adds of every module with its defaults on a map of H x W x C, as its paper has it.
CLOSED_FORMS = {
    # 3 x 4 positions in a long-range group, 8 x 8 in a short-range one; then the 1x1 fusion.
    "isa": attention_block(3 * 4) + attention_block(8 * 8) + N * 2 * C * C,
    # The bias is a function of distances, of no map: 1 % at most.
    "isa_plus": attention_block(3 * 4) + attention_block(8 * 8) + N * 2 * C * C,
    "self_attention": attention_block(N) + N * 2 * C * C,
    # Three embeddings of half the width, the affinity and the sum it weighs, the way back.
    "nonlocal": N * 3 * C * C // 2 + N * N * 2 * (C // 2) + N * C * C // 2,
    # Sums of the rows for 1 + 2 + 3 + 6 bins; a quarter of the width at 1, 4, 9 and 36 places, 3
    # interpolations a value; 3x3 fusion.
    "ppm": N * C * 12 + 50 * C * C // 4 + N * C * 3 + N * 9 * 2 * C * C,
    # 256 channels each: mean, 1x1, three 3x3; 1x1 fusion.
    "aspp": C * 256 + N * (C + 3 * 9 * C) * 256 + N * 5 * 256 * C,
    # Twice: embeddings, and H + W - 1 keys; then the 3x3 fusion.
    "rcca": 2 * N * (2 * C * C // 8 + C * C + (H + W - 1) * (C // 8 + C)) + N * 9 * 2 * C * C,
    # Embeddings; in each of 8 groups a scalar product of all; the way back in 8 groups.
    "cgnl": N * 3 * C * C // 2 + N * C // 2 + N * C // 2 * C // 8,
    # Features, maps, distributions and the way back; a quarter of a quarter, twice.
    "a2": N * 4 * C * C // 4 + 2 * N * (C // 4) ** 2,
    # As many weights as "isa" has, nearly all of them used once a position: two attentions (query,
    # key, value, output) and a fusion of twice the width.
    "pointwise": N * (2 * (2 * (C * C // 2 + C * C // 4) + 2 * C * C) + 2 * C * C),
    # As many, in whole channels: 3x3 to 59 and back.
    "local": N * 10 * C * 59,
}


@pytest.mark.some(5)
@pytest.mark.parametrize("name", [name for name in layers.list_contexts() if name != "none"])
def test_every_context_module(name):
    # Dilated convolutions run on a map padded to a multiple of their rate, which here it is.
    arguments = {"dilation_rates": (2, 4, 8)} if name == "aspp" else {}
    found = flops_by_kind(layers.create_context(name, **arguments), (1, H, W, C)).total
    assert found == pytest.approx(2 * CLOSED_FORMS[name], rel=0.01)


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


def test_an_hrnet():
    """Each convolution at the scale that its name says."""
    model = backbones.HRNet(3, modules=(1, 1, 1), blocks=1, filters=4)
    expected = 0
    for layer in model.layers:
        if not isinstance(layer, layers.ConvNormAct):
            continue
        n = {part: int(number) for part, number in re.findall(r"([a-z]+)(\d+)", layer.name)}
        if "fuse" in n:  # read at the scale it comes from, and halved by each strided convolution
            stride = 2 << n["from"] + n.get("conv", 0)
        elif layer.name.startswith("stem"):
            stride = 1 << n["conv"]
        else:
            stride = 2 << n.get("branch", 1)
        expected += 2 * math.prod(layer.conv.kernel.shape) * (64 // stride) * (96 // stride)
    found = flops_by_kind(model, (1, 64, 96, 3))
    assert found.convolutions == expected and found.products == 0 < found.resizing


def test_a_transposed_convolution():
    """Each position read is multiplied with the whole kernel."""
    layer = keras.layers.Conv2DTranspose(5, 2, 2)
    assert flops_by_kind(layer, (2, 6, 7, 3)).convolutions == 2 * 2 * 6 * 7 * 3 * 2 * 2 * 5
