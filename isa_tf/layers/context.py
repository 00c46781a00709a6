"""Context modules by name: what stands between backbone and classifier."""

from collections.abc import Callable
from typing import Any

import keras

from isa_tf.layers.compact import CompactGeneralizedNonLocal, DoubleAttention
from isa_tf.layers.criss_cross import RecurrentCrissCrossAttention
from isa_tf.layers.interlaced import InterlacedSparseAttention
from isa_tf.layers.non_local import NonLocal2D
from isa_tf.layers.pointwise import LocalConvolutions, PointwiseConvolutions
from isa_tf.layers.pyramid import AtrousSpatialPyramidPooling, PyramidPooling
from isa_tf.names import Registry


def _dense(**kwargs):
    """Dense self-attention in the module's form: one group, concatenation, 1x1 convolution."""
    return InterlacedSparseAttention(**{**kwargs, "partition": 1, "order": "long"})


def _plus(**kwargs):
    """ISA whose affinities know distances, which learns faster; see docs/frozen_study.md."""
    return InterlacedSparseAttention(**{"position_bias": True, **kwargs})


_CONTEXTS = Registry("context module")
for _name, _make in {
    "none": lambda **kwargs: None,
    "isa": InterlacedSparseAttention,
    "isa_plus": _plus,
    "self_attention": _dense,
    "nonlocal": NonLocal2D,
    "ppm": PyramidPooling,
    "aspp": AtrousSpatialPyramidPooling,
    "rcca": RecurrentCrissCrossAttention,
    "cgnl": CompactGeneralizedNonLocal,
    "a2": DoubleAttention,
    "pointwise": PointwiseConvolutions,
    "local": LocalConvolutions,
}.items():
    _CONTEXTS.register(_name, _make)


def register_context(
    name: str, make: Callable[..., keras.layers.Layer] | None = None
) -> Callable[..., Any]:
    """Gives a context module of one's own a name that `create_context`, models and configs know.

    Args:
        name: str.
        make: the layer's class, or a function that makes one of keyword arguments; among them are
            those that all modules share (see `ContextModule`). Without it, a decorator of the
            class. Defaults to `None`.

    Returns:
        `make`.

    Raises:
        ValueError: for a name that is taken.

    Example:

    >>> @register_context("mean")
    ... class Mean(layers.ContextModule):
    ...     def call(self, inputs, training=None):
    ...         return inputs - tf.reduce_mean(inputs, axis=(1, 2), keepdims=True)
    >>> create_context("mean")(np.ones((1, 4, 4, 2), "float32")).shape
    TensorShape([1, 4, 4, 2])
    """
    return _CONTEXTS.register(name, make)


def list_contexts() -> list[str]:
    """The names that `create_context` knows."""
    return list(_CONTEXTS)


def create_context(name: str, /, **kwargs: Any) -> keras.layers.Layer | None:
    """Makes a context module: a layer from a map (B, H, W, C) to one of the same height and width.

    Args:
        name: str; "isa" for `InterlacedSparseAttention`, "isa_plus" for the same module with a bias
            of its affinities by position, which learns faster, "self_attention" for the same
            module with dense attention, "none" for no module; "nonlocal", "ppm", "aspp", "rcca",
            "cgnl" or "a2" for other authors' modules, each with the defaults of its paper;
            "pointwise" for as many parameters without context, "local" with that of the next
            positions alone; or one that `register_context` was told.
        **kwargs: the module's arguments; "self_attention" sets `partition` and `order` itself, and
            "none" takes no notice of any.

    Returns:
        A Keras layer; `None` for "none".

    Raises:
        ValueError: for an unknown name, with the known ones.

    Example:

    >>> create_context("isa", partition=4).order
    'long_short'
    """
    return _CONTEXTS[name](**kwargs)
