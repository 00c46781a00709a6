"""OpenVINO, which is quick on Intel's processors."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from isa_tf import files
from isa_tf.formats.base import Format, check_model, check_task, missing, one_at_a_time
from isa_tf.formats.serving import float32_clone, served
from isa_tf.hints import StrPath
from isa_tf.inference import (
    METADATA_FILE,
    InstancePredictor,
    Predictor,
    predictor_of_run,
    read_contract,
)
from isa_tf.inference.protocol import ProtocolBase

_GRAPH = "model.xml"  # beside model.bin, its weights
_EXTRA, _SECTION = "openvino", "isa_tf"


class OpenVINO(Format):
    """A folder with OpenVINO's `model.xml` and `model.bin`, for batches of images of any size.

    Its input is `image`, uint8 RGB images (B, H, W, 3), its outputs what the model's contract
    answers: `class_id`, uint8 (B, H, W) (int32 of more than 256 classes), the most probable class,
    and `score`, float32 (B, H, W), its probability. What there is to know of the model is in the
    runtime information of the `.xml` file, `isa_tf.json` and `labels.txt` in the section `isa_tf`.

    The weights are float32, and what is loaded here computes in float32. OpenVINO itself, unless it
    is told `INFERENCE_PRECISION_HINT="f32"`, takes bfloat16 where the processor is quicker so.

    OpenVINO's own converter converts: pip install isa_tf[openvino]. Models that find instances are
    refused: what it makes of them finds other things in images that have to be padded.

        path = isa_tf.export(model, "exported/openvino", "openvino")
        class_id, score = isa_tf.load_predictor(path)(images)
    """

    name, by_suffix = "openvino", False

    def recognises(self, path: Path) -> bool:
        if path.suffix == ".xml":
            return path.is_file() and path.with_suffix(".bin").is_file()
        return (path / _GRAPH).is_file()

    def export(self, model: keras.Model, path: StrPath) -> Path:
        """Writes a folder for OpenVINO.

        Args:
            model: `keras.Model` from RGB 0..255 (B, H, W, 3) to logits.
            path: of the folder to write; its parents are made. An older one there is replaced.

        Returns:
            The path, a `pathlib.Path`.

        Raises:
            ValueError: for a model that is not of segmentation, or a path at which there is
                something else than such a folder.
            RuntimeError: for a model with an operation that OpenVINO does not have.
            ImportError: where the extra is not installed.
        """
        check_model(model)
        check_task(self, model)
        path = self.check_folder(path, _GRAPH, "an OpenVINO model")
        try:
            import openvino
        except ImportError as error:
            raise missing(path, "OpenVINO", _EXTRA) from error
        with served(model) as (serving, signature, contract), files.replacing_folder(path) as new:
            with tempfile.TemporaryDirectory() as folder:
                graph = str(Path(folder) / _GRAPH)
                try:
                    serving.export(
                        graph, format="openvino", verbose=False, input_signature=signature
                    )
                except OSError:
                    raise
                except Exception as error:
                    raise RuntimeError(
                        f"{path}: cannot be written for OpenVINO ({error})"
                    ) from error
                made = openvino.Core().read_model(graph)
                for name, text in contract.files().items():
                    made.set_rt_info(text, [_SECTION, name])
                new.mkdir()
                openvino.save_model(made, str(new / _GRAPH), compress_to_fp16=False)
        return path

    def load(
        self,
        path: Path,
        num_threads: int | None = None,
        protocol: ProtocolBase | Mapping[str, Any] | None = None,
        precision: str = "f32",
    ) -> Predictor | InstancePredictor:
        """See `Format.load`; `precision` is OpenVINO's own hint, such as "bf16"."""
        try:
            import openvino
        except ImportError as error:
            raise missing(path, "OpenVINO", _EXTRA) from error
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
        }
        if num_threads is not None:
            config["INFERENCE_NUM_THREADS"] = num_threads
        core = openvino.Core()
        try:
            graph = core.read_model(str(path if path.is_file() else path / _GRAPH))
            compiled = core.compile_model(graph, "CPU", config)
        except Exception as error:
            raise ValueError(f"{path}: cannot be read as an OpenVINO model ({error})") from error
        try:
            where = [_SECTION, METADATA_FILE]
            told = graph.get_rt_info(where).astype(str) if graph.has_rt_info(where) else None
            contract = read_contract(told)
            inputs = [name for port in graph.inputs for name in port.names]
            outputs = {name for port in graph.outputs for name in port.names}
            if inputs != ["image"] or outputs != {*contract.outputs}:
                raise ValueError("not an OpenVINO model that isa_tf.export wrote")

            @one_at_a_time  # each call is of the same request
            def run(images):
                found = compiled({"image": images})
                # Copies: what it gives is overwritten by the next call.
                return {name: found[name].copy() for name in contract.outputs}

            return predictor_of_run(contract, run, protocol)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def reference(self, model: keras.Model) -> keras.Model:
        return float32_clone(model)
