"""TensorFlow Serving's layout: the versions of a model, each with requests to warm it up with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from isa_tf.formats.base import SIGNATURE, check_model, missing
from isa_tf.formats.litert import sizes_of
from isa_tf.formats.saved_model import ASSETS, SavedModel
from isa_tf.hints import Size, StrPath
from isa_tf.inference import InstancePredictor, Predictor, contract_of
from isa_tf.inference.protocol import ProtocolBase

WARM_UP_FILE = "tf_serving_warmup_requests"
BATCHING_FILE = "batching_parameters.txt"
_WARM_UP_SIZE = (256, 256)
# `BatchingParameters` of TensorFlow Serving's session_bundle_config.proto. On processors a batch is
# no quicker than its images one by one, but for what each call costs beside.
_BATCHING = """\
max_batch_size { value: 4 }
batch_timeout_micros { value: 2000 }
max_enqueued_batches { value: 64 }
num_batch_threads { value: 2 }
"""


class TensorFlowServing(SavedModel):
    """A folder that TensorFlow Serving serves: `NAME/1`, `NAME/2`, ..., each a `SavedModel`.

    Each export adds a version, which is there at once and whole, as a server that watches the
    folder needs it. In a version lies `assets.extra/tf_serving_warmup_requests`, requests of both
    signatures that the server runs before it answers others. `NAME/batching_parameters.txt` is
    for --batching_parameters_file; one that is there already stays. A predictor that is loaded of
    the folder is of the highest version.

    The requests are made with tensorflow-serving-api: pip install isa_tf[tf_serving].

        path = isa_tf.export(model, "served/camvid", "tf_serving", image_size=(360, 480))
        class_id, score = isa_tf.load_predictor(path)(images)
    """

    name, by_suffix = "tf_serving", False

    def recognises(self, path: Path) -> bool:
        return bool(versions(path))

    def export(
        self,
        model: keras.Model,
        path: StrPath,
        image_size: Size | list[Size] | None = None,
        jit_compile: bool = False,
        minimal_filtering: int | None = 256,
    ) -> Path:
        """Adds a version of a model.

        Args:
            model: `keras.Model` from RGB 0..255 (B, H, W, 3) to its task's outputs.
            path: of the model's folder, whose name is the model's for the server; made where there
                is none, with its parents.
            image_size: (height, width) of the images of the requests to warm up with, an int for
                both, or a list of sizes; `None` for the model's own, or 256. Defaults to `None`.
            jit_compile, minimal_filtering: see `SavedModel.export`.

        Returns:
            The path, a `pathlib.Path`.

        Raises:
            ValueError: for a model that is none of its task, or a path at which there is something
                else than versions of a model.
            ImportError: where the extra is not installed.
        """
        check_model(model)
        path = self.check_path(path)
        default = contract_of(model).fixed_size or _WARM_UP_SIZE
        sizes = sizes_of(default if image_size is None else image_size)
        numbers = versions(path)
        is_empty = path.is_dir() and not any(path.iterdir())
        if path.exists() and not is_empty and not numbers:
            raise ValueError(
                f"{path}: there is something else than versions of a model; nothing written"
            )
        try:
            from tensorflow_serving.apis import prediction_log_pb2
        except ImportError as error:
            raise missing(path, "tensorflow-serving-api", self.name) from error

        def warm_up(folder):
            with tf.io.TFRecordWriter(str(folder / ASSETS / WARM_UP_FILE)) as writer:
                for record in _requests(prediction_log_pb2, path.name, sizes):
                    writer.write(record.SerializeToString())

        number = max(numbers, default=0) + 1
        self._write(model, path / str(number), jit_compile, minimal_filtering, then=warm_up)
        batching = path / BATCHING_FILE
        if not batching.exists():
            batching.write_text(_BATCHING, encoding="utf-8")
        return path

    def load(
        self,
        path: Path,
        num_threads: int | None = None,
        protocol: ProtocolBase | Mapping[str, Any] | None = None,
    ) -> Predictor | InstancePredictor:
        return super().load(path / str(max(versions(path))), num_threads, protocol)


def versions(path: Path) -> list[int]:
    """The numbers of the versions in a model's folder, rising; none where there is no folder."""
    if not path.is_dir():
        return []
    graph = SavedModel()
    inside = [p for p in path.iterdir() if p.name.isdecimal() and graph.recognises(p)]
    return sorted(int(p.name) for p in inside)


def _requests(prediction_log_pb2, name, sizes):
    """A `PredictionLog` for each signature and size."""
    for height, width in sizes:
        image = tf.zeros((height, width, 3), tf.uint8)
        inputs = {
            SIGNATURE: {"image": image[None]},
            "encoded": {"image_bytes": tf.io.encode_jpeg(image)[None]},
        }
        for signature, tensors in inputs.items():
            record = prediction_log_pb2.PredictionLog()
            request = record.predict_log.request
            request.model_spec.name = name
            request.model_spec.signature_name = signature
            for key, value in tensors.items():
                request.inputs[key].CopyFrom(tf.make_tensor_proto(value.numpy()))
            yield record
