"""The twin of a whole network: what computes the same in inference, faster, on CPUs."""

import dataclasses
from typing import Any, Self

import keras

from isa_tf.inference.contract import contract_of
from isa_tf.layers import twin


def fuse(
    model: keras.Model,
    minimal_filtering: int | None = 64,
    product_dtype: str = "float32",
    jit_compile: bool = True,
) -> "FusedModel":
    """The twin of a network for inference, which computes the same, faster, on CPUs.

    Each layer of the graph is asked for its `inference_twin` (see `isa_tf.layers.twin`):
    normalisations go into their convolutions, the output convolution of an attention into its
    value's, wide 3x3 convolutions are computed by Winograd's minimal filtering. Other layers are
    copied. What comes out is an ordinary functional model with weights of its own, which can be
    saved, loaded, exported, and made a twin of by other options.

    Args:
        model: built functional `keras.Model`, or a layer.
        minimal_filtering: int, from how many channels on 3x3 convolutions are computed by minimal
            filtering, in float32; `None` for never. Where products of half precision are quick, 128
            is better, without `jit_compile` 256. Defaults to 64.
        product_dtype: str, the precision of the other convolutions' products.
            `isa_tf.runtime.product_dtype("bfloat16")` tells which is quicker on this processor.
            Defaults to "float32".
        jit_compile: bool, whether XLA compiles the attention inside groups and the transforms of
            minimal filtering, anew for each size of image. Defaults to `True`.

    Returns:
        `FusedModel` of a model, a layer of a layer.

    Raises:
        ValueError: for a model that is not built or not functional, or options that are none.

    Example:

    >>> model = Segmenter("tiny", num_classes=5)
    >>> image = np.zeros((1, 65, 97, 3), "uint8")
    >>> np.allclose(fuse(model)(image), model(image), atol=1e-4)
    True
    """
    options = twin.TwinOptions(minimal_filtering, product_dtype, jit_compile)
    if not model.built:
        raise ValueError(f"{model.name} is not built: call it on an image first")
    if not isinstance(model, keras.Model):
        return twin.inference_twin(model, options)
    if not hasattr(model, "operations"):
        raise ValueError(f"{model.name} is no functional model, whose graph could be walked")
    graph = _graph_twin(model, options)
    told = ["task", *(field.name for field in dataclasses.fields(contract_of(model)))]
    facts = {name: getattr(model, name) for name in told if hasattr(model, name)}
    fused = FusedModel(graph.input, graph.output, facts, name=model.name)
    fused.trainable = False
    return fused


@keras.saving.register_keras_serializable("isa_tf")
class FusedModel(keras.Model):
    """What `fuse` returns: a functional model whose config is its graph.

    Args:
        inputs: keras tensor, or a dict of them.
        outputs: keras tensor, or a dict of them.
        facts: dict of what the model tells of itself (see `isa_tf.inference.contract_of`), each an
            attribute: num_classes, class_names, ... Defaults to `None`.
        **kwargs: name, trainable.
    """

    def __init__(
        self, inputs: Any, outputs: Any, facts: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        self.facts = dict(facts or {})
        for name, value in self.facts.items():
            setattr(self, name, value)

    def get_config(self) -> dict[str, Any]:
        graph = keras.Model(self.input, self.output, name=self.name)
        return {
            "name": self.name,
            "trainable": self.trainable,
            "graph": graph.get_config(),
            "facts": self.facts,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Self:
        config = dict(config)
        graph = keras.Model.from_config(dict(config.pop("graph")), custom_objects)
        return cls(graph.input, graph.output, **config)


def _graph_twin(model, options):
    """A functional model of the twins of a functional model's layers."""

    def twin_of(layer):
        if hasattr(layer, "operations"):  # a network within the network
            return _graph_twin(layer, options)
        return twin.inference_twin(layer, options)

    if isinstance(model, keras.Sequential):
        return keras.Sequential([twin_of(layer) for layer in model.layers], name=model.name)
    return keras.models.clone_model(model, clone_function=twin_of)
