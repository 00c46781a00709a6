"""Files of models, by format: Keras, SavedModel, LiteRT, ONNX, OpenVINO, and what is registered.

`isa_tf.export` writes any, `isa_tf.load_predictor` predicts with any.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from isa_tf.formats.base import Format, Verification
from isa_tf.formats.keras_file import KerasFile, load_model
from isa_tf.formats.litert import LiteRT, LiteRTFloat16, LiteRTInt8
from isa_tf.formats.onnx import ONNX
from isa_tf.formats.openvino import OpenVINO
from isa_tf.formats.saved_model import SavedModel
from isa_tf.formats.serving import float32_clone
from isa_tf.formats.tf_serving import TensorFlowServing
from isa_tf.hints import StrPath
from isa_tf.inference import InstancePredictor, Predictor
from isa_tf.inference.protocol import ProtocolBase
from isa_tf.names import Registry

__all__ = [
    "ONNX",
    "Format",
    "KerasFile",
    "LiteRT",
    "LiteRTFloat16",
    "LiteRTInt8",
    "OpenVINO",
    "SavedModel",
    "TensorFlowServing",
    "Verification",
    "create",
    "export",
    "find",
    "float32_clone",
    "list_names",
    "load_model",
    "load_predictor",
    "register",
]

_formats = Registry("format")


def register(format: type[Format]) -> type[Format]:
    """Makes a format known by its `name`; a decorator of subclasses of `Format`.

    Returns:
        The class.

    Raises:
        ValueError: for no name, or one that is taken.
    """
    return _formats.register(getattr(format, "name", ""), format)


for _format in (
    *(KerasFile, SavedModel, LiteRT, LiteRTFloat16, LiteRTInt8, ONNX, OpenVINO),
    TensorFlowServing,
):
    register(_format)


def list_names() -> list[str]:
    """The names of the formats, which `create` knows."""
    return list(_formats)


def create(name: str) -> Format:
    """A format by its name.

    Raises:
        ValueError: for an unknown name, with the nearest.

    Example:

    >>> create("litert").suffix
    '.tflite'
    """
    return _formats[name]()


def find(path: StrPath) -> Format:
    """The format that what lies at a path is of; of several, the one registered last.

    Raises:
        FileNotFoundError: where there is nothing at the path.
        ValueError: for something of no format.

    Example:

    >>> find("model.keras").name
    'keras'
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    for name in reversed(list_names()):
        if (format := create(name)).recognises(path):
            return format
    raise ValueError(f"{path}: not a model; known are {_known()}")


def export(model: keras.Model, path: StrPath, format: str | None = None, **options: Any) -> Path:
    """Writes a model to a file, or folder, of any format: whole, or not at all.

    Args:
        model: `keras.Model` from RGB 0..255 (B, H, W, 3), such as a `Segmenter` or a `MaskRCNN`.
        path: what to write; its parents are made. What was there is replaced at the end, by
            something complete.
        format: str, one of `list_names()`: "keras", "saved_model", "litert", ...; `None` for the
            one whose files end as the path does: a path without ending is a SavedModel's, one that
            ends in `.tflite` is of "litert". Defaults to `None`.
        **options: of the format's `export`: `weights_dtype` of "keras" (`KerasFile`), `jit_compile`
            and `minimal_filtering` of "saved_model" (`SavedModel`), these and `image_size` of
            "tf_serving" (`TensorFlowServing`), `image_size` of "litert" (`LiteRT`) and
            "litert_fp16", this and `calibration` of "litert_int8" (`LiteRTInt8`).

    Returns:
        The path, a `pathlib.Path`.

    Raises:
        ValueError: for an unknown format, a path that is not of the format, or a model that is
            none of its task.
        TypeError: for an option that the format does not have, or lacks.
        ImportError: for a format whose converter is not installed, naming the extra.

    Example:

    >>> path = export(model, "exported/model.tflite", image_size=(96, 128))
    >>> path = export(model, "exported/saved_model")
    >>> path = export(model, "exported/small.keras", weights_dtype="float16")
    """
    if format is None:
        suffix = Path(path).suffix
        for name in reversed(list_names()):
            known = create(name)
            if known.by_suffix and known.suffix == suffix:
                format = name
                break
        else:
            raise ValueError(f"{path} ends as no format's files do; known are {_known()}")
    return create(format).export(model, path, **options)


def load_predictor(
    path: StrPath,
    num_threads: int | None = None,
    protocol: ProtocolBase | Mapping[str, Any] | None = None,
) -> Predictor | InstancePredictor:
    """Loads a predictor from a file, whichever format it is of.

    Args:
        path: of a file, or folder, that `export` wrote, or a `.keras` file that Keras did. A
            `.tflite` file has a fixed image size: images of another are resized to it, and the
            result is resized back.
        num_threads: int, of LiteRT, ONNX Runtime and OpenVINO; `None` for their own choice.
            Defaults to `None`.
        protocol: `isa_tf.inference.Protocol`, or a mapping of its arguments. Other ones than the
            whole image need a `.keras` file: the other kinds do not tell their logits. `None` for
            the model's own, as in `Predictor.from_model`, or the whole image. Of a model that finds
            instances a `DetectionProtocol`; another than its own needs a `.keras` file too.
            Defaults to `None`.

    Returns:
        `isa_tf.inference.Predictor`, or what predicts for the model's task: `InstancePredictor`.

    Raises:
        FileNotFoundError: where there is nothing at the path.
        ValueError: for a file of no format, one that cannot be read, a model that was not exported
            by this package, or one that cannot follow the protocol; with the path.
        ImportError: for a file whose runtime is not installed, such as LiteRT, naming the extra.

    Example:

    >>> predictor = load_predictor("model.tflite")
    >>> class_id, score = predictor(image)
    >>> what_is_there = predictor.class_names[class_id[40, 60]]
    """
    path = Path(path)
    return find(path).load(path, num_threads=num_threads, protocol=protocol)


def _known():
    """The formats and how their files end, in words."""
    formats = map(create, list_names())
    return ", ".join(f"{f.name} ({f.suffix or 'a folder'})" for f in formats)
