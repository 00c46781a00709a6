"""Every layer of `isa_tf.layers` through the shared battery."""

import pytest
from detecting import OF_BOXES

from isa_tf import layers
from isa_tf.layers import interlaced, module, self_attention
from isa_tf.layers.conv import leaky_relu_001
from isa_tf.layers.normalization import FusedBatchNormalization
from isa_tf.testing import LayerBattery

MAP = (2, 10, 7, 6)
CASES = {
    "conv": (layers.ConvNormAct, {"filters": 5, "kernel_size": 3}, MAP),
    "conv-strided": (
        layers.ConvNormAct,
        {"filters": 5, "kernel_size": 3, "strides": 2, "padding": "symmetric"},
        MAP,
    ),
    "conv-depthwise": (
        layers.ConvNormAct,
        {"filters": None, "kernel_size": 5, "dilation_rate": 2, "activation": "relu6"},
        MAP,
    ),
    "conv-filtered": (
        layers.ConvNormAct,
        {"filters": 5, "kernel_size": 3, "dilation_rate": 2, "minimal_filtering": 5},
        MAP,
    ),
    "conv-bias": (layers.ConvBiasAct, {"filters": 5, "product_dtype": "float32"}, MAP),
    "conv-bias-strided": (
        layers.ConvBiasAct,
        {"filters": 5, "kernel_size": 3, "strides": 2, "padding": "symmetric"},
        MAP,
    ),
    "conv-bias-depthwise": (
        layers.ConvBiasAct,
        {"filters": None, "kernel_size": 5, "dilation_rate": 2, "activation": None},
        MAP,
    ),
    "conv-bias-filtered": (
        layers.ConvBiasAct,
        {"filters": 5, "kernel_size": 3, "minimal_filtering": 5},
        MAP,
    ),
    # Layers of which a layer is made are made anew each time, with the same dtype.
    "recomputed": (
        layers.Recomputed,
        lambda **more: {
            "convs": [
                layers.ConvNormAct(8, name="a", **more),
                layers.ConvNormAct(None, 3, 2, name="b", **more),
                layers.ConvNormAct(5, activation=None, name="c", **more),
            ],
            "convolve_again": True,
        },
        MAP,
    ),
    "norm": (FusedBatchNormalization, {"epsilon": 1e-5, "momentum": 0.9}, MAP),
    "norm-synchronized": (FusedBatchNormalization, {"synchronized": True}, MAP),
    "dense": (layers.SelfAttention2D, {"filters": 8, "key_filters": 3}, MAP),
    "long": (layers.LongRangeAttention, {"partition": (4, 3)}, MAP),
    "short": (layers.ShortRangeAttention, {"partition": 4, "mask_padding": False}, MAP),
    "range": (layers.RangeAttention, {"partition": 2, "level": 1, "levels": 3}, MAP),
    "factorized": (layers.FactorizedAttention, {"partition": (4, 3), "filters": 5}, MAP),
    "factorized-unmasked": (
        layers.FactorizedAttention,
        {"partition": ((2, 1), (2, 2)), "levels": 3, "mask_padding": False, "order": "short_long"},
        MAP,
    ),
    "isa": (layers.InterlacedSparseAttention, {"partition": 4}, MAP),
    "isa-levels": (
        layers.InterlacedSparseAttention,
        {"partition": ((3, 1), (2, 2)), "levels": 3, "order": "short_long"},
        MAP,
    ),
    "isa-shared": (
        layers.InterlacedSparseAttention,
        {"partition": [4, (2, 3)], "share_projections": True, "depth": 2},
        MAP,
    ),
    "isa-shared-levels": (
        layers.InterlacedSparseAttention,
        {"partition": 2, "levels": 3, "share_projections": True, "residual": True},
        MAP,
    ),
    "isa-shared-auto": (
        layers.InterlacedSparseAttention,
        {"partition": "auto", "levels": "auto", "share_projections": True, "filters": 5},
        MAP,
    ),
    "isa-auto-deep": (
        layers.InterlacedSparseAttention,
        {"partition": "auto", "order": "short_long", "depth": 2, "filters": 8},
        MAP,
    ),
    "isa-several": (
        layers.InterlacedSparseAttention,
        {"partition": [4, (2, 3)], "key_filters": 4, "mask_padding": False},
        MAP,
    ),
    "isa-bare": (
        layers.InterlacedSparseAttention,
        {"partition": [(5, 4), 3], "fuse": False, "filters": 4},
        MAP,
    ),
    "isa-leaky": (
        layers.InterlacedSparseAttention,
        {"partition": 4, "activation": leaky_relu_001},
        MAP,
    ),
    "isa-residual": (
        layers.InterlacedSparseAttention,
        {"partition": 4, "residual": True},
        MAP,
    ),
    "isa-begins": (
        layers.InterlacedSparseAttention,
        {
            "partition": 4,
            "position_bias": True,
            "query_scale": 2.0,
            "key_initializer": "orthogonal",
            "zero_context": True,
        },
        MAP,
    ),
    "isa-heads": (
        layers.InterlacedSparseAttention,
        {
            **{"partition": 4, "num_heads": 3, "key_filters": 3},
            **{"position_bias": True, "context_norm": None},
        },
        MAP,
    ),
    "isa-of-the-map": (
        layers.InterlacedSparseAttention,
        # With a large epsilon: without it gradients of 1e-4 are rounding errors of larger ones.
        {"partition": 4, "num_heads": 2, "key_filters": 4, "context_norm": "map", "epsilon": 0.1},
        MAP,
    ),
    "isa-half": (layers.InterlacedSparseAttention, {"partition": 3, "order": "long"}, MAP),
    "rcca": (layers.RecurrentCrissCrossAttention, {"key_filters": 3, "filters": 5}, MAP),
    "rcca-residual": (
        layers.RecurrentCrissCrossAttention,
        {"key_filters": 3, "residual": True},
        MAP,
    ),
    "rcca-bare": (layers.RecurrentCrissCrossAttention, {"fuse": False, "recurrence": 1}, MAP),
    # With a large epsilon, phi and g have gradients above the rounding errors; and in these groups
    # no scalar is a small difference of large sums, which bfloat16 would get wrong.
    "cgnl": (
        layers.CompactGeneralizedNonLocal,
        {"groups": 2, "key_filters": 4, "epsilon": 0.1},
        MAP,
    ),
    "cgnl-rbf": (
        layers.CompactGeneralizedNonLocal,
        {"groups": 2, "key_filters": 4, "kernel": "rbf", "use_scale": True, "filters": 6},
        MAP,
    ),
    "a2": (layers.DoubleAttention, {"gather_filters": 4, "key_filters": 3}, MAP),
    "nonlocal": (layers.NonLocal2D, {"key_filters": 3, "use_scale": True}, MAP),
    "nonlocal-sampled": (layers.NonLocal2D, {"sub_sample": "before", "filters": 6}, MAP),
    "pointwise": (layers.PointwiseConvolutions, {"parameters": 60, "filters": 5}, MAP),
    "local": (layers.LocalConvolutions, {"parameters": 300, "filters": 5}, MAP),
    "pointwise-residual": (layers.PointwiseConvolutions, {"residual": True}, MAP),
    "ppm": (layers.PyramidPooling, {"filters": 5}, MAP),
    "ppm-corners": (
        layers.PyramidPooling,
        {"pool_sizes": (1, 4), "pool_filters": 3, "coordinates": "align_corners"},
        MAP,
    ),
    "aspp": (
        layers.AtrousSpatialPyramidPooling,
        {"dilation_rates": (2, 3), "branch_filters": 4, "filters": 5},
        MAP,
    ),
    "add-upsampled": (layers.AddUpsampled, {}, [(2, 9, 7, 3), (2, 5, 4, 3)]),
    "resize-by": (layers.ResizeBy, {"factor": 1.5}, MAP),
    "resize": (layers.ResizeLike, {}, [(2, 5, 4, 3), (2, 9, 7, 2)]),
    "resize-twice": (layers.ResizeLike, {"factor": 2}, [(2, 5, 4, 3), (2, 9, 7, 2)]),
    "resize-corners": (
        layers.ResizeLike,
        {"coordinates": "align_corners"},
        [(2, 5, 4, 3), (2, 9, 7, 2)],
    ),
}


# Twins have the arguments of what they stand for.
TWINS = {
    f"{name}-twin": (cls.twin_class, {**arguments, "product_dtype": "float32"}, shape)
    for name, (cls, arguments, shape) in CASES.items()
    if getattr(cls, "twin_class", None)
}
CASES |= TWINS


def first_of_each(cases):
    """The name of the first case of each class."""
    return list({cls: name for name, (cls, *_) in reversed(cases.items())}.values())


# Twins of one class share their code, so one of each goes through the whole battery.
_one_of_each = first_of_each(TWINS)
WHOLE = {name: CASES[name] for name in CASES if name not in TWINS or name in _one_of_each}
# Keras's own battery is of a class's manners, whatever its arguments.
KERAS = first_of_each(WHOLE)
# What has a twin: all but what is nothing but a resizing or a normalisation.
HAS_TWIN = {name for name, (cls, *_) in CASES.items() if hasattr(cls, "inference_twin")}


@pytest.fixture(params=WHOLE.values(), ids=WHOLE.keys())
def battery(request):
    return LayerBattery(*request.param)


def test_the_cases_cover_every_layer():
    covered = {cls for cls, *_ in CASES.values()}
    # The bias is of pairs of positions, not of maps: test_position.py.
    others = ("ContextModule", "PositionBias")
    public = {getattr(layers, name) for name in layers.__all__ if name not in others}
    assert {c for c in public if isinstance(c, type)} <= covered | OF_BOXES


def test_the_cases_cover_every_twin():
    covered = {cls for cls, *_ in TWINS.values()}
    found = {
        cls
        for cls in module.ModuleTwin.__subclasses__()
        + self_attention.AttentionTwin.__subclasses__()
        if cls is not self_attention.AttentionTwin
    }
    assert interlaced.LongRangeAttentionTwin in found and found == covered


@pytest.mark.some(24)
@pytest.mark.parametrize("name", sorted(HAS_TWIN))
def test_twin(name):
    LayerBattery(*CASES[name]).check_twin()


@pytest.mark.some(180)
@pytest.mark.parametrize(
    "check", [c for c in LayerBattery.list_checks() if c not in ("twin", "keras")]
)
def test_battery(battery, check):
    battery.run(check)


@pytest.mark.some(16)
@pytest.mark.parametrize("name", KERAS)
def test_keras(name):
    LayerBattery(*CASES[name]).run("keras")
