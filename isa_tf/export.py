"""Writing models for use without this package: SavedModel and LiteRT."""

import contextlib
import json
import re
import zipfile
from pathlib import Path

import keras
import tensorflow as tf

from isa_tf.inference import (
    ASSETS,
    MAX_CLASSES,
    METADATA_FILE,
    SIGNATURE,
    classify,
    describe,
    fixed_size,
)

LABELS_FILE = "labels.txt"
_HALF = ("float16", "bfloat16")


def export_saved_model(model, path):
    """Writes a SavedModel, which TensorFlow runs without this package.

    It has two signatures. "serving_default" takes `image`, uint8 RGB images (B, H, W, 3) of any
    size. "encoded" takes `image_bytes`, a vector of B strings with the content of JPEG or PNG
    (also BMP) files, which must be of one size, since their results are one array; send files
    of different sizes one at a time. EXIF orientation is not looked at. Both return

    * `class_id`: uint8 (B, H, W), the most probable class;
    * `score`: float32 (B, H, W), its probability.

    Number, names and colours of the classes lie in `assets.extra/isa_tf.json`, where
    `inference.load_predictor` finds them. The layers keep their dtype policies. Attention that
    XLA compiles is exported uncompiled, so that nothing where it is run needs XLA.

    Args:
        model: `keras.Model` from RGB 0..255 (B, H, W, 3) to logits (B, H, W, classes).
        path: of the folder to write; its parents are made.

    Returns:
        The path, a `pathlib.Path`.

    Raises:
        ValueError: for a model that is none of segmentation, one of more than 256 classes, or one
            that `inference.fuse` made.

    Example:

    >>> path = export_saved_model(model, "exported/saved_model")
    >>> serve = tf.saved_model.load(path).signatures["serving_default"]
    >>> serve(image=tf.zeros((1, 360, 480, 3), tf.uint8))["class_id"].shape
    TensorShape([1, 360, 480])
    """
    path = Path(path)
    with _uncompiled(model):
        metadata = _check_model(model)
        spec = tf.TensorSpec((None, *fixed_size(model), 3), tf.uint8, name="image")

        @tf.function(input_signature=[spec], autograph=False)
        def serve(image):
            class_id, score = classify(model(tf.cast(image, tf.float32), training=False))
            return {"class_id": class_id, "score": score}

        spec = tf.TensorSpec((None,), tf.string, name="image_bytes")

        @tf.function(input_signature=[spec], autograph=False)
        def encoded(image_bytes):
            one = tf.TensorSpec((None, None, 3), tf.uint8)
            return serve(tf.map_fn(_decode, image_bytes, fn_output_signature=one))

        # Keras's ExportArchive would write every weight twice: as the variable that the functions
        # read, and as a copy of it for the layer.
        served = tf.Module()
        served.weights = [variable.value for variable in model.variables]
        path.parent.mkdir(parents=True, exist_ok=True)
        signatures = {SIGNATURE: serve, "encoded": encoded}
        tf.saved_model.save(served, str(path), signatures=signatures)
    assets = path / ASSETS
    assets.mkdir(exist_ok=True)
    (assets / METADATA_FILE).write_text(_json(metadata), encoding="utf-8")
    return path


def export_litert(model, path, image_size):
    """Writes a LiteRT (TensorFlow Lite) model of built-in operations, for images of one size.

    Its signature "serving_default" takes `image`, one uint8 RGB image (1, H, W, 3), and returns
    `class_id`, uint8 (1, H, W), the most probable class, and `score`, float32 (1, H, W), its
    probability. It computes in float32: a model of half precision is exported as its
    `float32_clone`, whose results differ from the model's own by the rounding of the latter.

    The names of the classes, one a line, are in `labels.txt`, and their number, names and
    colours in `isa_tf.json`. Both files are packed the way TensorFlow Lite packs associated
    files: as a zip archive at the end of the `.tflite` file, which `zipfile` opens.

    Args:
        model: `keras.Model` from RGB 0..255 (B, H, W, 3) to logits (B, H, W, classes).
        path: of the file to write, ending in `.tflite`; its parents are made.
        image_size: (height, width).

    Returns:
        The path, a `pathlib.Path`.

    Raises:
        ValueError: for a model that is none of segmentation, one of more than 256 classes, or one
            that `inference.fuse` made; for another ending of the path, or an image size that is not
            two positive ints.
        RuntimeError: for a model that needs more than the built-in operations, naming them.

    Example:

    >>> path = export_litert(model, "exported/model.tflite", image_size=(96, 128))
    >>> predictor = isa_tf.inference.load_predictor(path)
    >>> class_id, score = predictor(image[None])
    """
    path, size = Path(path), _check_size(image_size)
    if path.suffix != ".tflite":
        raise ValueError(f"a LiteRT file ends in .tflite, got {path}")
    model = float32_clone(model)
    with _uncompiled(model):
        metadata = _check_model(model, size)
        image = keras.Input((*size, 3), batch_size=1, dtype="uint8", name="image")
        serving = keras.Model(image, _Serving(model)(image))
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            serving.export(
                path,
                format="litert",
                verbose=False,
                input_signature=[tf.TensorSpec((1, *size, 3), tf.uint8, name="image")],
                target_spec={"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]},
            )
        except Exception as error:
            foreign = re.search(r"^(?:TF Select|Custom) ops: (.*)$", str(error), re.MULTILINE)
            if foreign is None:
                raise
            raise RuntimeError(
                f"LiteRT has no built-in operation for {foreign[1]}, which this model needs"
            ) from error
    with zipfile.ZipFile(path, "a") as archive:
        if metadata["class_names"] is not None:
            _pack(archive, LABELS_FILE, "\n".join(metadata["class_names"]) + "\n")
        _pack(archive, METADATA_FILE, _json(metadata))
    return path


def float32_clone(model):
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
    _check_keras(model)
    policies = [layer.dtype_policy for layer in model._flatten_layers()]
    if not any(p.compute_dtype in _HALF or p.variable_dtype in _HALF for p in policies):
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
    """A model from uint8 images to class ids and scores."""

    def __init__(self, model):
        super().__init__(dtype="float32")
        self.model = model

    def call(self, image):
        class_id, score = classify(self.model(tf.cast(image, tf.float32), training=False))
        return {"class_id": class_id, "score": score}

    def compute_output_spec(self, image):
        return {
            "class_id": keras.KerasTensor(image.shape[:3], "uint8"),
            "score": keras.KerasTensor(image.shape[:3], "float32"),
        }


def _check_keras(model):
    if not isinstance(model, keras.Model):
        raise ValueError(f"a keras.Model is needed, got {type(model).__name__}")
    if getattr(model, "is_fused", False):
        raise ValueError(f"{model.name} is fused for inference: export the model it was made of")


def _check_model(model, size=None):
    """What there is to know of the classes of a model; raises ValueError for a wrong one."""
    _check_keras(model)
    shape = (1, *(size or (own or 64 for own in fixed_size(model))), 3)
    try:
        logits = model(tf.zeros(shape), training=False)
    except Exception as error:
        raise ValueError(
            f"{model.name} is no segmentation model: it does not take images {shape} ({error})"
        ) from error
    if not tf.is_tensor(logits) or tuple(logits.shape[:-1]) != shape[:-1]:
        got = tuple(logits.shape) if tf.is_tensor(logits) else type(logits).__name__
        raise ValueError(
            f"{model.name} is no segmentation model: of images {shape} it makes {got}, not "
            f"logits {shape[:-1]} + (classes,)"
        )
    metadata = {**describe(model), "num_classes": int(logits.shape[-1])}
    if metadata["num_classes"] > MAX_CLASSES:
        raise ValueError(
            f"class ids are one byte: {MAX_CLASSES} classes at most, got {metadata['num_classes']}"
        )
    return metadata


def _check_size(image_size):
    try:
        height, width = (int(n) for n in image_size)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise ValueError(f"image_size is (height, width) in pixels, got {image_size!r}")
    return height, width


@contextlib.contextmanager
def _uncompiled(model):
    """Turns off the XLA compilation of a model's layers, for as long as the context lasts."""
    _check_keras(model)
    layers = [
        layer
        for layer in model._flatten_layers()
        if not isinstance(layer, keras.Model) and getattr(layer, "jit_compile", False)
    ]
    before = [layer.jit_compile for layer in layers]
    try:
        for layer in layers:
            layer.jit_compile = False
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.jit_compile = value


def _widen(config):
    """A serialised object with float32 in place of every dtype policy of half precision."""
    if isinstance(config, (list, tuple)):
        return type(config)(map(_widen, config))
    if not isinstance(config, dict):
        return config
    if str(config.get("class_name", "")).endswith("DTypePolicy"):
        name = config.get("config", {}).get("name", "")
        return "float32" if name.endswith(_HALF) else config
    return {
        key: "float32"
        if key == "dtype" and isinstance(value, str) and value.endswith(_HALF)
        else _widen(value)
        for key, value in config.items()
    }


def _decode(content):
    image = tf.io.decode_image(content, channels=3, expand_animations=False)
    return tf.ensure_shape(image, (None, None, 3))


def _json(metadata):
    # A palette may hold NumPy integers.
    return json.dumps(metadata, indent=1, ensure_ascii=False, default=int) + "\n"


def _pack(archive, name, text):
    # With a date of its own, so that the same model makes the same file.
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    archive.writestr(info, text)
