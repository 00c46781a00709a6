"""LiteRT, formerly TensorFlow Lite: models for phones and small computers."""

import contextlib
import functools
import io
import numbers
import re
import tempfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from PIL import Image
from tensorflow.lite.python import schema_py_generated as schema

from isa_tf import files
from isa_tf.data.listing import list_images
from isa_tf.data.pictures import read_image
from isa_tf.formats.base import (
    SIGNATURE,
    Format,
    check_model,
    check_task,
    missing,
    one_at_a_time,
)
from isa_tf.formats.serving import float32_clone, of_size, served
from isa_tf.hints import Size, StrPath
from isa_tf.inference import (
    METADATA_FILE,
    InstancePredictor,
    Predictor,
    predictor_of_run,
    read_contract,
)
from isa_tf.inference.predictor import resize_pictures
from isa_tf.inference.protocol import ProtocolBase
from isa_tf.names import two_ints

_FORMAT_FILE = "format.txt"  # packed into the files of formats that share the suffix
_MOST_IMAGES = 100  # to calibrate on
# Of a constant in int8: ai-edge-quantizer 0.10 fails at what is larger and has a scale a channel.
_MOST_BYTES = 32 * 2**20
# What int8 would spoil: masked affinities, for the mask is far beyond all others; weights of keys,
# which are few 256ths; logits between the classes, which decide at the boundaries; and what goes in
# and comes out.
_IN_FLOAT = ("SELECT_V2", "SOFTMAX", "RESIZE_BILINEAR", "OUTPUT")


class LiteRT(Format):
    """A `.tflite` file of built-in operations, for images of one size, or of several.

    Its signature "serving_default" takes `image`, one uint8 RGB image (1, H, W, 3), and returns
    what the model's contract answers; of a segmentation model `class_id`, uint8 (1, H, W) (int32 of
    more than 256 classes), the most probable class, and `score`, float32 (1, H, W), its
    probability. It computes in float32: a model of half precision is exported as its
    `float32_clone`, whose results differ from the model's own by the rounding of the latter.

    Of several sizes the first is "serving_default"'s, each other one has a signature of its own,
    such as "serving_size_480x360". They share the weights. A predictor takes the one whose size is
    nearest to the image's (`isa_tf.inference.seen_size`).

    The names of the classes, one a line, are in `labels.txt`, and what else there is to know of the
    model in `isa_tf.json`. Both files are packed the way TensorFlow Lite packs associated files: as
    a zip archive at the end of the `.tflite` file, which `zipfile` opens.

    Example:

    >>> path = isa_tf.export(model, "exported/model.tflite", image_size=(96, 128))
    >>> class_id, score = isa_tf.load_predictor(path)(image)
    """

    name, suffix = "litert", ".tflite"

    def export(self, model: keras.Model, path: StrPath, image_size: Size | list[Size]) -> Path:
        """Writes a LiteRT model.

        Args:
            model: `keras.Model` from RGB 0..255 (B, H, W, 3) to its task's outputs.
            path: of the file to write, ending in `.tflite`; its parents are made.
            image_size: (height, width), or one int for both; or a list of sizes.

        Returns:
            The path, a `pathlib.Path`.

        Raises:
            ValueError: for a model that is none of its task, another ending of the path, an image
                size that is not one or two positive ints, or one that is there twice.
            RuntimeError: for a model that needs more than the built-in operations, naming them.
        """
        return self._write(model, self.check_path(path), sizes_of(image_size))

    def _write(self, model, path, sizes, types=(), then=None, **converter):
        """Converts and packs.

        Args:
            model, path: see `export`.
            sizes: list of (height, width).
            types: of weights, besides float32.
            then: function of the path of what was converted, which it may write anew.
            **converter: attributes of the converter.
        """
        with (
            served(model, sizes[0]) as (serving, _, contract),
            files.replacing(path) as new,
            tempfile.TemporaryDirectory() as folder,
        ):
            # As Keras's `export`, which writes one signature.
            archive = keras.export.ExportArchive()
            archive.track(serving)
            for size in sizes:
                function, signature = of_size(serving, size)
                archive.add_endpoint(_signature(size), function, signature)
            archive.write_out(folder, verbose=False)
            keys = [SIGNATURE, *map(_signature, sizes[1:])]
            made = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=keys)
            made.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
            made.target_spec.supported_types = list(types)
            for name, value in converter.items():
                setattr(made, name, value)
            try:
                new.write_bytes(made.convert())
            except Exception as error:
                foreign = r"^(?:TF Select|Custom) ops: (.*)$"
                foreign = re.search(foreign, str(error), re.MULTILINE)
                if foreign is None:
                    raise
                raise RuntimeError(
                    f"LiteRT has no built-in operation for {foreign[1]}, which this model needs"
                ) from error
            if then is not None:
                then(new)
            texts = contract.of_sizes(sizes).files()
            if not self.by_suffix:
                texts[_FORMAT_FILE] = self.name
            with zipfile.ZipFile(new, "a") as archive:
                for name, text in texts.items():
                    # With a date of its own, so that the same model makes the same file.
                    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
                    archive.writestr(info, text)
        return path

    def load(
        self,
        path: Path,
        num_threads: int | None = None,
        protocol: ProtocolBase | Mapping[str, Any] | None = None,
    ) -> Predictor | InstancePredictor:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise missing(path, "LiteRT", "litert") from error
        try:
            interpreter = Interpreter(str(path), num_threads=num_threads)
            interpreter.allocate_tensors()
            signatures = interpreter.get_signature_list()
            signature = signatures.get(SIGNATURE)
        except Exception as error:
            raise ValueError(f"{path}: cannot be read as a LiteRT model ({error})") from error
        try:
            contract = read_contract(_packed(path, METADATA_FILE))
            if signature is None or {*signature["outputs"]} != {*contract.outputs}:
                raise ValueError("not a LiteRT model that isa_tf.export wrote")
            runners = {}
            for name in signatures:
                runner = interpreter.get_signature_runner(name)
                shape = runner.get_input_details()["image"]["shape"].tolist()
                runners[tuple(shape[1:3])] = runner

            @one_at_a_time  # the interpreter has one set of tensors
            def run(images):
                runner = runners[images.shape[1:3]]
                return contract.join([runner(image=image[None]) for image in images])

            # The interpreter names its signatures in the alphabet's order.
            order = contract.image_sizes or ()
            sizes = sorted(runners, key=lambda size: order.index(size) if size in order else -1)
            return predictor_of_run(contract.of_sizes(sizes), run, protocol)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def reference(self, model: keras.Model) -> keras.Model:
        return float32_clone(model)


class _Smaller(LiteRT):
    """A `.tflite` file that says of what format it is, for its suffix does not."""

    by_suffix = False

    @property
    def file_name(self) -> str:
        return f"model_{self.name.removeprefix('litert_')}.tflite"

    def recognises(self, path: Path) -> bool:
        return super().recognises(path) and _packed(path, _FORMAT_FILE) == self.name.encode()


class LiteRTFloat16(_Smaller):
    """A `.tflite` file with its weights in float16, half as large as `LiteRT`'s, else the same.

    On processors it computes in float32 with the rounded weights; GPU delegates take the halves.

    Example:

    >>> path = isa_tf.export(model, "half.tflite", "litert_fp16", image_size=(96, 128))
    >>> isa_tf.formats.find(path).name
    'litert_fp16'
    """

    name = "litert_fp16"

    def export(self, model: keras.Model, path: StrPath, image_size: Size | list[Size]) -> Path:
        """Writes a LiteRT model with weights in float16; see `LiteRT.export`."""
        optimizations = [tf.lite.Optimize.DEFAULT]
        path, sizes = self.check_path(path), sizes_of(image_size)
        return self._write(model, path, sizes, [tf.float16], optimizations=optimizations)


class LiteRTInt8(_Smaller):
    """A `.tflite` file that computes in int8, about a quarter as large as `LiteRT`'s.

    Weights are quantised a channel each, and what lies between the layers by the ranges that it
    takes on images of one's own (Jacob et al. 2018, https://arxiv.org/abs/1712.05877). Softmax,
    masks and the resizing of logits stay in float32, for 8 bits are too few for them, and so do
    what goes in and comes out, as of `LiteRT`, and convolutions with a kernel of more than 32 MB,
    which the quantiser cannot do. 97 % of the pixels are to be of the same class as
    before. Models that find instances are refused: the corners of boxes need more than 8 bits.

    ai-edge-quantizer quantises: pip install isa_tf[litert].

        path = isa_tf.export(
            model, "small.tflite", "litert_int8", image_size=(360, 480), calibration="my_images"
        )
        class_id, score = isa_tf.load_predictor(path)(image)
    """

    name, least_agreement = "litert_int8", 0.97

    def export(
        self,
        model: keras.Model,
        path: StrPath,
        image_size: Size | list[Size],
        calibration: StrPath | Sequence[np.ndarray] | np.ndarray,
    ) -> Path:
        """Writes a LiteRT model of int8.

        Args:
            model: `keras.Model` from RGB 0..255 (B, H, W, 3) to logits.
            path: of the file to write, ending in `.tflite`; its parents are made.
            image_size: (height, width), or one int for both; or a list of sizes.
            calibration: images such as the model is to see: a folder of them, a batch, uint8
                (B, H, W, 3), or a list of such images of any sizes. They are resized to
                `image_size`, to each of several; of more than 100, 100 are taken, evenly.

        Returns:
            The path, a `pathlib.Path`.

        Raises:
            ValueError: as of `LiteRT`, for a model that is not of segmentation, a folder without
                images, or other things than images.
            isa_tf.data.DataError: for an image that cannot be read.
            RuntimeError: for a model that needs more than the built-in operations, naming them.
            ImportError: where the extra is not installed.
        """
        path, sizes = self.check_path(path), sizes_of(image_size)
        check_model(model)
        check_task(self, model)
        images = _calibration(calibration)
        try:
            from ai_edge_quantizer import quantizer
        except ImportError as error:
            raise missing(path, "ai-edge-quantizer", "litert") from error
        then = functools.partial(_quantise, quantizer, sizes, images)
        return self._write(model, path, sizes, then=then)


def _quantise(quantizer, sizes, images, path):
    """Writes the float32 model at a path anew, in int8."""
    # It tells of its progress, and of the interpreter that it watches.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore", UserWarning)
        with contextlib.redirect_stderr(io.StringIO()):
            quantize = quantizer.Quantizer(str(path))
            quantize.add_static_config(".*", "*", activation_num_bits=8, weight_num_bits=8)
            for operation in _IN_FLOAT:
                quantize.update_quantization_recipe(".*", operation, algorithm_key="no_quantize")
            for name in _reading_more_than(_MOST_BYTES, path):
                quantize.update_quantization_recipe(
                    re.escape(name), "*", algorithm_key="no_quantize"
                )
            samples = {
                SIGNATURE if size == sizes[0] else _signature(size): [
                    {"image": _of_size(image, size)[None]} for image in images
                ]
                for size in sizes
            }
            result = quantize.quantize(quantize.calibrate(samples))
    path.write_bytes(result.quantized_model)


def _reading_more_than(size, path):
    """The names of what operations make that read a constant of more bytes than `size`."""
    file, names = schema.Model.GetRootAs(path.read_bytes()), []
    for graph in map(file.Subgraphs, range(file.SubgraphsLength())):
        for operation in map(graph.Operators, range(graph.OperatorsLength())):
            read = [graph.Tensors(i) for i in operation.InputsAsNumpy().tolist() if i >= 0]
            if any(file.Buffers(tensor.Buffer()).DataLength() > size for tensor in read):
                names.append(graph.Tensors(operation.Outputs(0)).Name().decode())
    return names


def sizes_of(given: Size | list[Size]) -> list[tuple[int, int]]:
    """[(height, width), ...] of one image size or a list of them.

    >>> sizes_of((360, 480)), sizes_of([(360, 480), 256])
    ([(360, 480)], [(360, 480), (256, 256)])
    """
    several: Sequence[Any] = [given]
    if isinstance(given, list) and not all(isinstance(n, numbers.Integral) for n in given):
        several = given
    sizes = [two_ints("image_size", size) for size in several]
    if not sizes or len({*sizes}) < len(sizes):
        raise ValueError(f"image_size must be a size or several different ones, got {given!r}")
    return sizes


def _signature(size):
    """The name of the signature of a size; after the default one in the alphabet and in files."""
    return "serving_size_{}x{}".format(*size)


def _calibration(given):
    """uint8 images (H, W, 3) of a folder, a batch or a list: all, or the most that are taken."""
    if isinstance(given, (str, Path)):
        try:
            paths = list_images(given)
        except ValueError as error:
            raise ValueError(f"calibration: {error}") from None
        return [read_image(path) for path in _evenly(paths)]
    images = [np.asarray(image) for image in _evenly(list(given))]
    if not images:
        raise ValueError("calibration: there is no image")
    for image in images:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(
                "calibration is a folder, or uint8 images (H, W, 3), got one of "
                f"{image.dtype} {image.shape}"
            )
    return images


def _evenly(values):
    """All of a list, or as many as are taken of it, at even distances."""
    if len(values) <= _MOST_IMAGES:
        return values
    return [values[i * len(values) // _MOST_IMAGES] for i in range(_MOST_IMAGES)]


def _of_size(image, size):
    """An image resized as predictors do it."""
    if image.shape[:2] == size:
        return image
    return resize_pictures(image[None], size, Image.Resampling.BILINEAR)[0]


def _packed(path, name):
    """The bytes of a file that is packed into another; `None` where there is none."""
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(name) if name in archive.namelist() else None
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: what is packed into it is damaged ({error})") from error
