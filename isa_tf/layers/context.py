"""Context modules by name: what stands between backbone and classifier."""

from isa_tf.layers.compact import CompactGeneralizedNonLocal, DoubleAttention
from isa_tf.layers.criss_cross import RecurrentCrissCrossAttention
from isa_tf.layers.interlaced import InterlacedSparseAttention
from isa_tf.layers.non_local import NonLocal2D
from isa_tf.layers.pyramid import AtrousSpatialPyramidPooling, PyramidPooling
from isa_tf.names import unknown


def _dense(**kwargs):
    """Dense self-attention in the module's form: one group, concatenation, 1x1 convolution."""
    return InterlacedSparseAttention(**{**kwargs, "partition": 1, "order": "long"})


_CONTEXTS = {
    "none": None,
    "isa": InterlacedSparseAttention,
    "self_attention": _dense,
    "nonlocal": NonLocal2D,
    "ppm": PyramidPooling,
    "aspp": AtrousSpatialPyramidPooling,
    "rcca": RecurrentCrissCrossAttention,
    "cgnl": CompactGeneralizedNonLocal,
    "a2": DoubleAttention,
}


def list_contexts():
    """The names that `create_context` knows."""
    return list(_CONTEXTS)


def create_context(name, /, **kwargs):
    """Makes a context module: a layer from a map (B, H, W, C) to one of the same height and width.

    Args:
        name: str; "isa" for `InterlacedSparseAttention`, "self_attention" for the same module with
            dense attention, "none" for no module; "nonlocal", "ppm", "aspp", "rcca", "cgnl" or "a2"
            for other authors' modules, each with the defaults of its paper.
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
    if name not in _CONTEXTS:
        raise ValueError(unknown("context module", name, _CONTEXTS))
    if _CONTEXTS[name] is None:
        return None
    return _CONTEXTS[name](**kwargs)
