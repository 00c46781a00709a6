"""Twins: what stands in a network for inference where a layer stood in the one for training.

A twin is a layer of its own, with weights of its own that were made of the other's; it saves, loads
and exports like any. A layer has one where `inference_twin(options)` returns it; what has no such
method is copied. `isa_tf.inference.fuse` puts the twins of a whole network together.
"""

import dataclasses
from typing import Any

import keras

from isa_tf.compat import flatten_layers, own_trainable_variables


@dataclasses.dataclass(frozen=True)
class TwinOptions:
    """What twins may use.

    Args:
        minimal_filtering: int, from how many channels on 3x3 convolutions are computed by minimal
            filtering; `None` for never. Defaults to 64: narrower ones gain less by fewer products
            than the transforms cost.
        product_dtype: str, the precision of the products of convolutions; the maps keep the
            layers' own. Defaults to "float32".
        jit_compile: bool, whether XLA compiles attention inside groups, and the transforms of
            minimal filtering. Defaults to `True`.

    Raises:
        ValueError: for a width below 1, or a precision that is none.

    Example:

    >>> TwinOptions().minimal_filtering
    64
    """

    minimal_filtering: int | None = 64
    product_dtype: str = "float32"
    jit_compile: bool = True

    def __post_init__(self):
        if self.minimal_filtering is not None and self.minimal_filtering < 1:
            raise ValueError(
                f"minimal_filtering must be at least 1 or None, got {self.minimal_filtering}"
            )
        if self.product_dtype not in ("float32", "bfloat16", "float16", "float64"):
            raise ValueError(f"product_dtype must be a float's, got {self.product_dtype!r}")

    @property
    def compile_transforms(self) -> bool:
        """`jit_compile`, by the name that convolutions have for it."""
        return self.jit_compile

    @property
    def of_convolutions(self) -> dict[str, Any]:
        """dict of what a `ConvBiasAct` is told."""
        names = ("minimal_filtering", "product_dtype", "compile_transforms")
        return {name: getattr(self, name) for name in names}


def inference_twin(layer: keras.layers.Layer, options: TwinOptions) -> keras.layers.Layer:
    """The twin of a layer, or a copy of it where it has none.

    Args:
        layer: built `keras.layers.Layer`; what is none, such as an operation, stands for itself.
        options: `TwinOptions`.

    Returns:
        A layer with weights of its own.

    Example:

    >>> conv = layers.ConvNormAct(4)
    >>> conv.build((None, None, None, 3))
    >>> type(inference_twin(conv, TwinOptions())).__name__
    'ConvBiasAct'
    """
    if hasattr(layer, "inference_twin"):
        return layer.inference_twin(options)
    if not isinstance(layer, keras.layers.Layer):
        return layer
    return copy(layer, type(layer))


def copy(
    layer: keras.layers.Layer, cls: type[keras.layers.Layer], **changes: Any
) -> keras.layers.Layer:
    """A layer of class `cls` with a layer's config but for the changes, and its weights.

    Its `fill_twin(twin)` sets them where it has this method; else they are the layer's own.
    """
    twin = cls.from_config({**layer.get_config(), **changes})
    if layer.weights:
        twin.build_from_config(layer.get_build_config())
        fill_twin(layer, twin)
    return twin


def fill_twin(layer: keras.layers.Layer, twin: keras.layers.Layer) -> None:
    """Gives a built twin the weights that are made of a layer's."""
    if hasattr(layer, "fill_twin"):
        layer.fill_twin(twin)
    elif layer.weights:
        twin.set_weights(layer.get_weights())


def fill_parts(layer: keras.layers.Layer, twin: keras.layers.Layer) -> None:
    """Gives a twin of the same parts the weights that are made of them, one by one."""
    for theirs, ours in zip(*map(own_trainable_variables, (twin, layer)), strict=True):
        theirs.assign(ours)
    pairs = (flatten_layers(m, include_self=False, recursive=False) for m in (layer, twin))
    for part, theirs in zip(*pairs, strict=True):
        fill_twin(part, theirs)
