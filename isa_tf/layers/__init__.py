"""Keras layers: the attention family and the bricks of the networks."""

from isa_tf.layers.compact import CompactGeneralizedNonLocal, DoubleAttention
from isa_tf.layers.context import create_context, list_contexts, register_context
from isa_tf.layers.conv import ConvNormAct
from isa_tf.layers.criss_cross import RecurrentCrissCrossAttention
from isa_tf.layers.detection import (
    AddUpsampled,
    Detections,
    FillPadding,
    MasksOfClasses,
    Proposals,
    PyramidAnchors,
    PyramidRoIAlign,
)
from isa_tf.layers.factorized import FactorizedAttention
from isa_tf.layers.fused import ConvBiasAct
from isa_tf.layers.interlaced import (
    InterlacedSparseAttention,
    LongRangeAttention,
    RangeAttention,
    ShortRangeAttention,
)
from isa_tf.layers.module import ContextModule
from isa_tf.layers.non_local import NonLocal2D
from isa_tf.layers.pointwise import LocalConvolutions, PointwiseConvolutions
from isa_tf.layers.position import PositionBias
from isa_tf.layers.pyramid import AtrousSpatialPyramidPooling, PyramidPooling
from isa_tf.layers.recompute import Recomputed
from isa_tf.layers.resize import ResizeBy, ResizeLike
from isa_tf.layers.self_attention import SelfAttention2D

__all__ = [
    "AddUpsampled",
    "AtrousSpatialPyramidPooling",
    "CompactGeneralizedNonLocal",
    "ContextModule",
    "ConvBiasAct",
    "ConvNormAct",
    "Detections",
    "DoubleAttention",
    "FactorizedAttention",
    "FillPadding",
    "InterlacedSparseAttention",
    "LocalConvolutions",
    "LongRangeAttention",
    "MasksOfClasses",
    "NonLocal2D",
    "PointwiseConvolutions",
    "PositionBias",
    "Proposals",
    "PyramidAnchors",
    "PyramidPooling",
    "PyramidRoIAlign",
    "RangeAttention",
    "Recomputed",
    "RecurrentCrissCrossAttention",
    "ResizeBy",
    "ResizeLike",
    "SelfAttention2D",
    "ShortRangeAttention",
    "create_context",
    "list_contexts",
    "register_context",
]
