"""Keras layers: the attention family and the bricks of the networks."""

from isa_tf.layers.context import create_context, list_contexts
from isa_tf.layers.conv import ConvNormAct
from isa_tf.layers.interlaced import (
    InterlacedSparseAttention,
    LongRangeAttention,
    ShortRangeAttention,
)
from isa_tf.layers.resize import ResizeBy, ResizeLike
from isa_tf.layers.self_attention import SelfAttention2D

__all__ = [
    "ConvNormAct",
    "InterlacedSparseAttention",
    "LongRangeAttention",
    "ResizeBy",
    "ResizeLike",
    "SelfAttention2D",
    "ShortRangeAttention",
    "create_context",
    "list_contexts",
]
