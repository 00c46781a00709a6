"""A model as the exporters of Keras take it: folded, in float32, from images to answers."""

import contextlib
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf

from isa_tf import runtime
from isa_tf.compat import flatten_layers
from isa_tf.formats.base import check_model, portable
from isa_tf.inference import contract_of, fuse
from isa_tf.inference.contract import Contract

HALF = ("float16", "bfloat16")


@contextlib.contextmanager
def served(
    model: keras.Model, size: tuple[int, int] | None = None
) -> Iterator[tuple[keras.Model, list[tf.TensorSpec], Contract]]:
    """What a model answers to images as a model of its own, for as long as it lasts.

    It computes in float32 (see `float32_clone`), is the network's `twin_of`, with the
    normalisations in its convolutions and no operation that XLA must compile.

    Args:
        model: `keras.Model` from RGB 0..255 (B, H, W, 3) to its task's outputs.
        size: (height, width) of one image at a time; `None` for batches of any images that the
            model takes. Defaults to `None`.

    Returns:
        A context manager that gives (serving, signature, contract): a `keras.Model` from uint8
        `image` to the contract's outputs, the list of its inputs' `tf.TensorSpec`, and the contract
        as `check` gave it.

    Raises:
        ValueError: for a model that is none of its task.

    Example:

    >>> with served(model, (96, 128)) as (serving, signature, contract):
    ...     answer = serving(tf.zeros((1, 96, 128, 3), tf.uint8))
    >>> sorted(answer), contract.image_size
    (['class_id', 'score'], (96, 128))
    """
    check_model(model)
    with twin_of(float32_clone(model)) as model, runtime.memory_checks(False):
        contract = contract_of(model)
        contract = contract.check(model, size)
        batch, shape = (None if size is None else 1), (*contract.image_size, 3)
        image = keras.Input(shape, batch_size=batch, dtype="uint8", name="image")
        # Named, so that the same model makes the same file.
        serving = keras.Model(image, _Serving(model, contract)(image), name="serving")
        yield serving, [tf.TensorSpec((batch, *shape), tf.uint8, name="image")], contract


@contextlib.contextmanager
def twin_of(
    model: keras.Model,
    minimal_filtering: int | None = None,
    product_dtype: str = "float32",
    jit_compile: bool = False,
) -> Iterator[keras.Model]:
    """The twin of a network, see `isa_tf.inference.fuse`, for as long as it lasts.

    A network whose graph cannot be walked, or has layers that cannot be copied, is taken as it is,
    without what XLA compiles, unless that is asked for.

    Args:
        model: `keras.Model`.
        minimal_filtering, product_dtype, jit_compile: as of `fuse`, with other defaults: `None`,
            "float32", `False`.

    Example:

    >>> with twin_of(model) as network:
    ...     logits = network(images)
    """
    check_model(model)
    try:
        network = fuse(model, minimal_filtering, product_dtype, jit_compile)
    except (ValueError, NotImplementedError):  # no graph to walk; a layer that has no config
        network = None
    if network is not None:
        yield network
        return
    with contextlib.nullcontext(model) if jit_compile else portable(model) as model:
        yield model


def of_size(
    serving: keras.Model, size: Sequence[int]
) -> tuple[keras.layers.Layer, list[tf.TensorSpec]]:
    """What `served` gave for one image size, for another: (what to call, its signature)."""
    layer = serving.get_layer("model")
    spec = tf.TensorSpec((1, *size, 3), tf.uint8, name="image")
    return _Serving(layer.model, layer.contract.of_size(size)), [spec]


def float32_clone(model: keras.Model) -> keras.Model:
    """The same model with the same weights, computing in float32 throughout.

    Args:
        model: `keras.Model` that Keras can serialise.

    Returns:
        `keras.Model`; the model itself where it computes in float32 already.

    Example:

    >>> model = Segmenter("tiny", num_classes=5, dtype="mixed_bfloat16")
    >>> float32_clone(model).context.compute_dtype
    'float32'
    """
    check_model(model)
    if not any(
        layer.compute_dtype in HALF or layer.variable_dtype in HALF
        for layer in flatten_layers(model)
    ):
        return model
    config = _widen(keras.saving.serialize_keras_object(model))
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")  # for layers whose config names none
    try:
        clone = keras.saving.deserialize_keras_object(config)
    finally:
        keras.config.set_dtype_policy(policy)
    clone.set_weights([weight.astype("float32") for weight in model.get_weights()])
    return clone


class _Serving(keras.layers.Layer):
    """A model from uint8 images to what its contract answers."""

    def __init__(self, model, contract):
        super().__init__(dtype="float32", name="model")
        self.model = model
        self.contract = contract

    def call(self, image):
        return self.contract.run(self.model, image)


def _widen(config):
    """A serialised object with float32 in place of every dtype policy of half precision."""
    if isinstance(config, (list, tuple)):
        return type(config)(map(_widen, config))
    if not isinstance(config, dict):
        return config
    if str(config.get("class_name", "")).endswith("DTypePolicy"):
        name = config.get("config", {}).get("name", "")
        return {**config, "config": {"name": "float32"}} if name.endswith(HALF) else config
    return {
        key: "float32"
        if key in ("dtype", "product_dtype", "default_policy")
        and isinstance(value, str)
        and value.endswith(HALF)
        else _widen(value)
        for key, value in config.items()
    }
