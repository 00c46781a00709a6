"""Context modules inside a backbone: just before the last block of a stage."""

from collections.abc import Collection, Mapping
from typing import Any

import keras

from isa_tf.hints import DType
from isa_tf.layers import ContextModule, create_context
from isa_tf.names import unknown


class StageContexts:
    """Makes the context modules of a network's stages, and puts them in their places.

    A module inside adds to its input, by a normalisation whose scale begins at zero, so that a
    network that was trained without it computes what it did.

    Args:
        context_at: dict from the names of stages' maps to modules, or `None`. A module is a name
            that `isa_tf.layers.create_context` knows; a dict of that "name" and of arguments;
            what makes a layer of keyword arguments, such as the module's class; a layer; or what
            `keras.saving.serialize_keras_object` makes of one. `None` and "none" are no module.
            All but layers that there are already are told `residual=True` and what follows here.
        levels: names of the maps of which there are stages.
        dtype: name or policy. Defaults to `None`, the global policy.
        **shared: further arguments of the modules; `None` leaves one out.

    Raises:
        ValueError: for an unknown stage or module, with the nearest, or a wrong kind of module.

    Example:

    >>> place = StageContexts({"c4": {"name": "isa", "partition": 4}}, ["c4", "c5"])
    >>> x = place(keras.Input((None, None, 16)), "c4", "stage3_context")
    >>> place(x, "c5", "stage4_context") is x, place.names
    (True, {'c4': 'stage3_context'})

    Placement: Wang et al., "Non-local Neural Networks", CVPR 2018.
    """

    def __init__(
        self,
        context_at: Mapping[str, Any] | None,
        levels: Collection[str],
        dtype: DType = None,
        **shared: Any,
    ) -> None:
        context_at = {} if context_at is None else context_at
        if not isinstance(context_at, Mapping):
            raise ValueError(
                f"context_at must be a dict from stages to modules, got {context_at!r}"
            )
        for level in context_at:
            if level not in levels:
                raise ValueError(unknown("stage of context_at", level, list(levels)))
        self.modules = dict(context_at)
        self.shared = {k: v for k, v in shared.items() if v is not None}
        self.shared |= {"dtype": dtype, "residual": True}
        self.names: dict[str, str] = {}  # of the layers, by their stages

    def __call__(self, x: keras.KerasTensor, level: str, name: str) -> keras.KerasTensor:
        """The map `x` with the context of the stage `level`, if it has one, of this layer name."""
        layer = self._make(self.modules.get(level), level, name)
        if layer is None:
            return x
        if isinstance(layer, ContextModule) and not layer.residual:
            raise ValueError(
                f"context_at[{level!r}]: {layer.name} does not add to its input, which a network "
                "around it was not trained for; make it with residual=True"
            )
        y = layer(x)
        if y.shape != x.shape:
            raise ValueError(
                f"context_at[{level!r}]: {layer.name} makes {tuple(y.shape)} of {tuple(x.shape)}; "
                "the block after it needs the same"
            )
        self.names[level] = layer.name
        return y

    def _make(self, module, level, name):
        told = {**self.shared, "name": name}
        if isinstance(module, Mapping) and "class_name" in module:
            module = keras.saving.deserialize_keras_object(dict(module))
        if module is None or isinstance(module, keras.layers.Layer):
            return module
        if isinstance(module, str):
            return create_context(module, **told)
        if isinstance(module, Mapping) and "name" in module:
            options = dict(module)
            return create_context(options.pop("name"), **{**told, **options})
        layer = module(**told) if callable(module) else None
        if not isinstance(layer, keras.layers.Layer):
            raise ValueError(
                f"context_at[{level!r}] must be a module's name, a dict with its name, a layer, or "
                f"what makes one, got {module!r}"
            )
        return layer


def check_no_context(context_at: Mapping[str, Any] | None, who: str) -> None:
    """Raises ValueError where a network that has no place for context modules is given some.

    Args:
        context_at: as given, or `None`.
        who: str, the network, for the error.
    """
    if context_at:
        raise ValueError(
            f"{who} has no place for context modules inside; ResNet and HRNet have. Give it "
            "context_at=None, and the segmenter a context"
        )
