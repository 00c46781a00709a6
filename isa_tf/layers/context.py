"""Context modules by name: what stands between backbone and classifier."""

import difflib

from isa_tf.layers.interlaced import InterlacedSparseAttention


def _dense(**kwargs):
    """Dense self-attention in the module's form: one group, concatenation, 1x1 convolution."""
    return InterlacedSparseAttention(**{**kwargs, "partition": 1, "order": "long"})


_CONTEXTS = {"none": None, "isa": InterlacedSparseAttention, "self_attention": _dense}


def list_contexts():
    """The names that `create_context` knows."""
    return list(_CONTEXTS)


def create_context(name, /, **kwargs):
    """Makes a context module: a layer from a map (B, H, W, C) to one of the same height and width.

    Args:
        name: str; "isa" for `InterlacedSparseAttention`, "self_attention" for the same module with
            dense attention, "none" for no module.
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
        nearest = difflib.get_close_matches(str(name), _CONTEXTS, n=1)
        hint = f'did you mean "{nearest[0]}"? ' if nearest else ""
        raise ValueError(f"unknown context module {name!r}; {hint}known: {', '.join(_CONTEXTS)}")
    if _CONTEXTS[name] is None:
        return None
    return _CONTEXTS[name](**kwargs)
