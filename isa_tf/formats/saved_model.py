"""SavedModel, which TensorFlow and TensorFlow Serving run without this package."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from isa_tf.compat import flatten_layers
from isa_tf.files import replacing_folder
from isa_tf.formats.base import SIGNATURE, Format, check_model, portable
from isa_tf.formats.serving import HALF, twin_of
from isa_tf.hints import StrPath
from isa_tf.inference import (
    METADATA_FILE,
    FusedModel,
    InstancePredictor,
    Predictor,
    contract_of,
    predictor_of_run,
    read_contract,
)
from isa_tf.inference.protocol import ProtocolBase

ASSETS = "assets.extra"
_GRAPH = "saved_model.pb"
# On CamVid the kept model, taken to bfloat16, decides otherwise in 1.1 pixels of a thousand.
_LEAST_OF_HALF = 0.97


class SavedModel(Format):
    """The folder of a SavedModel.

    It has two signatures. "serving_default" takes `image`, uint8 RGB images (B, H, W, 3) of any
    size. "encoded" takes `image_bytes`, a vector of B strings with the content of JPEG or PNG
    (also BMP) files, which must be of one size, since their results are one array; send files
    of different sizes one at a time. EXIF orientation is not looked at. Both return what the
    model's contract answers; of a segmentation model

    * `class_id`: uint8 (B, H, W), the most probable class; int32 of more than 256 classes;
    * `score`: float32 (B, H, W), its probability;

    of one that finds instances, n being the most that an image of the batch has, maybe 0,

    * `boxes`: float32 (B, n, 4), (x1, y1, x2, y2) in pixels of the image that was sent;
    * `classes`: int32 (B, n), from 0;
    * `scores`: float32 (B, n), falling;
    * `valid`: bool (B, n), False where an image has fewer;
    * `masks`: bool (B, n, H, W).

    What there is to know of the model (number, names and colours of the classes, ...) lies in
    `assets.extra/isa_tf.json`, where `load` finds it.

    Example:

    >>> path = isa_tf.export(model, "exported/saved_model")
    >>> serve = tf.saved_model.load(path).signatures["serving_default"]
    >>> serve(image=tf.zeros((1, 360, 480, 3), tf.uint8))["class_id"].shape
    TensorShape([1, 360, 480])
    """

    name = "saved_model"

    def recognises(self, path: Path) -> bool:
        return (path / _GRAPH).is_file()

    def least_for(self, model: keras.Model) -> float:
        """0.97 of a model in half precision: folded, it rounds otherwise, to 8 or 11 bits."""
        half = _precisions(model).intersection(HALF)
        return _LEAST_OF_HALF if half else self.least_agreement

    def export(
        self,
        model: keras.Model,
        path: StrPath,
        jit_compile: bool = False,
        minimal_filtering: int | None = 256,
    ) -> Path:
        """Writes a SavedModel of the network's twin; its layers keep their dtype policies.

        Args:
            model: `keras.Model` from RGB 0..255 (B, H, W, 3) to its task's outputs.
            path: of the folder to write; its parents are made. An older SavedModel there is
                replaced.
            jit_compile: bool, whether XLA compiles what `isa_tf.inference.fuse` has it compile,
                where the SavedModel is run, anew for each size of image, which takes seconds.
                TensorFlow has XLA, TensorFlow Serving must be started with
                --xla_cpu_compilation_enabled=true, others may have none. Defaults to `False`, a
                graph of ordinary operations for all sizes.
            minimal_filtering: int, from how many channels on 3x3 convolutions are computed by
                minimal filtering, see `isa_tf.inference.fuse`: the time of wide ones falls to a
                third, the file holds their kernels at four times the size. `None` for never.
                Models of other precisions than float32 have none, and what `fuse` made stays as it
                is. Defaults to 256.

        Returns:
            The path, a `pathlib.Path`.

        Raises:
            ValueError: for a model that is none of its task, or a path at which there is something
                else than a SavedModel.
        """
        check_model(model)
        path = self.check_folder(path, _GRAPH, "a SavedModel")
        return self._write(model, path, jit_compile, minimal_filtering)

    def _write(self, model, path, jit_compile, minimal_filtering, then=None):
        """`export` to a checked path; `then` is a function of the folder, before it is there."""
        with _network(model, jit_compile, minimal_filtering) as model:
            contract = contract_of(model)
            contract = contract.check(model)
            spec = tf.TensorSpec((None, *contract.image_size, 3), tf.uint8, name="image")

            @tf.function(input_signature=[spec], autograph=False)
            def serve(image):
                return contract.run(model, image)

            spec = tf.TensorSpec((None,), tf.string, name="image_bytes")

            @tf.function(input_signature=[spec], autograph=False)
            def encoded(image_bytes):
                one = tf.TensorSpec((None, None, 3), tf.uint8)
                return serve(tf.map_fn(_decode, image_bytes, fn_output_signature=one))

            # Keras's ExportArchive would write every weight twice: as the variable that the
            # functions read, and as a copy of it for the layer.
            served = tf.Module()
            served.weights = [variable.value for variable in model.variables]
            signatures = {SIGNATURE: serve, "encoded": encoded}
            with replacing_folder(path) as new:
                tf.saved_model.save(served, str(new), signatures=signatures)
                assets = new / ASSETS
                assets.mkdir()
                for name, text in contract.files().items():
                    (assets / name).write_text(text, encoding="utf-8")
                if then is not None:
                    then(new)
        return path

    def load(
        self,
        path: Path,
        num_threads: int | None = None,
        protocol: ProtocolBase | Mapping[str, Any] | None = None,
    ) -> Predictor | InstancePredictor:
        try:
            loaded = tf.saved_model.load(str(path))
        except Exception as error:
            raise ValueError(f"{path}: cannot be read as a SavedModel ({error})") from error
        file = path / ASSETS / METADATA_FILE
        signature = loaded.signatures.get(SIGNATURE)
        try:
            contract = read_contract(file.read_text(encoding="utf-8") if file.is_file() else None)
            if signature is None or {*signature.structured_outputs} != {*contract.outputs}:
                raise ValueError("not a SavedModel that isa_tf.export wrote")

            def run(images):
                return signature(image=tf.constant(images))

            run.loaded = loaded  # type: ignore[attr-defined]  # its variables live no longer than this object
            size = signature.structured_input_signature[1]["image"].shape[1:3]
            return predictor_of_run(contract.of_size(size), run, protocol)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _precisions(model):
    """What a model's layers compute in, other than float32."""
    return {layer.compute_dtype for layer in flatten_layers(model)} & {*HALF, "float64"}


def _network(model, jit_compile, minimal_filtering):
    """A context manager of what is to be written of a model."""
    if isinstance(model, FusedModel):
        return contextlib.nullcontext(model) if jit_compile else portable(model)
    if other := _precisions(model):
        return twin_of(model, None, min(other), jit_compile)
    return twin_of(model, minimal_filtering, jit_compile=jit_compile)


def _decode(content):
    image = tf.io.decode_image(content, channels=3, expand_animations=False)
    return tf.ensure_shape(image, (None, None, 3))
