"""LiteRT, formerly TensorFlow Lite: models for phones and small computers."""

import re
import zipfile

import keras
import tensorflow as tf

from isa_tf import files, runtime
from isa_tf.formats.base import SIGNATURE, Format, check_model, portable
from isa_tf.inference import METADATA_FILE, contract_of, predictor_of_run, read_contract
from isa_tf.names import two_ints

_HALF = ("float16", "bfloat16")


class LiteRT(Format):
    """A `.tflite` file of built-in operations, for images of one size.

    Its signature "serving_default" takes `image`, one uint8 RGB image (1, H, W, 3), and returns
    what the model's contract answers; of a segmentation model `class_id`, uint8 (1, H, W) (int32 of
    more than 256 classes), the most probable class, and `score`, float32 (1, H, W), its
    probability. It computes in float32: a model of half precision is exported as its
    `float32_clone`, whose results differ from the model's own by the rounding of the latter.

    The names of the classes, one a line, are in `labels.txt`, and what else there is to know of the
    model in `isa_tf.json`. Both files are packed the way TensorFlow Lite packs associated files: as
    a zip archive at the end of the `.tflite` file, which `zipfile` opens.

    Example:

    >>> path = isa_tf.export(model, "exported/model.tflite", image_size=(96, 128))
    >>> class_id, score = isa_tf.load_predictor(path)(image)
    """

    name, suffix = "litert", ".tflite"

    def export(self, model, path, image_size):
        """Writes a LiteRT model.

        Args:
            model: `keras.Model` from RGB 0..255 (B, H, W, 3) to its task's outputs.
            path: of the file to write, ending in `.tflite`; its parents are made.
            image_size: (height, width), or one int for both.

        Returns:
            The path, a `pathlib.Path`.

        Raises:
            ValueError: for a model that is none of its task, another ending of the path, or an
                image size that is not one or two positive ints.
            RuntimeError: for a model that needs more than the built-in operations, naming them.
        """
        path, size = self.check_path(path), two_ints("image_size", image_size)
        check_model(model)
        model = float32_clone(model)
        with portable(model) as model, runtime.memory_checks(False):
            contract = contract_of(model)
            contract = contract.check(model, size)
            image = keras.Input((*size, 3), batch_size=1, dtype="uint8", name="image")
            serving = keras.Model(image, _Serving(model, contract)(image))
            with files.replacing(path) as new:
                try:
                    serving.export(
                        new,
                        format="litert",
                        verbose=False,
                        input_signature=[tf.TensorSpec((1, *size, 3), tf.uint8, name="image")],
                        target_spec={"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]},
                    )
                except Exception as error:
                    foreign = r"^(?:TF Select|Custom) ops: (.*)$"
                    foreign = re.search(foreign, str(error), re.MULTILINE)
                    if foreign is None:
                        raise
                    raise RuntimeError(
                        f"LiteRT has no built-in operation for {foreign[1]}, which this model needs"
                    ) from error
                with zipfile.ZipFile(new, "a") as archive:
                    for name, text in contract.files().items():
                        # With a date of its own, so that the same model makes the same file.
                        info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
                        archive.writestr(info, text)
        return path

    def load(self, path, num_threads=None, protocol=None):
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise ImportError(
                f"{path} needs LiteRT, which is not installed: pip install isa_tf[litert]"
            ) from error
        try:
            interpreter = Interpreter(str(path), num_threads=num_threads)
            interpreter.allocate_tensors()
            signature = interpreter.get_signature_list().get(SIGNATURE)
        except Exception as error:
            raise ValueError(f"{path}: cannot be read as a LiteRT model ({error})") from error
        try:
            contract = read_contract(_metadata(path))
            if signature is None or {*signature["outputs"]} != {*contract.outputs}:
                raise ValueError("not a LiteRT model that isa_tf.export wrote")
            runner = interpreter.get_signature_runner(SIGNATURE)

            def run(images):
                return contract.join([runner(image=image[None]) for image in images])

            _, height, width, _ = runner.get_input_details()["image"]["shape"].tolist()
            return predictor_of_run(contract.of_size((height, width)), run, protocol)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def reference(self, model):
        return float32_clone(model)


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
    check_model(model)
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
    """A model from uint8 images to what its contract answers."""

    def __init__(self, model, contract):
        super().__init__(dtype="float32")
        self.model = model
        self.contract = contract

    def call(self, image):
        return self.contract.run(self.model, image)


def _metadata(path):
    """The text of the metadata that is packed into a file; `None` where there is none."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return archive.read(METADATA_FILE) if METADATA_FILE in archive.namelist() else None


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
        if key in ("dtype", "product_dtype") and isinstance(value, str) and value.endswith(_HALF)
        else _widen(value)
        for key, value in config.items()
    }
