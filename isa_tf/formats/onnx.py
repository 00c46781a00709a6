"""ONNX, which ONNX Runtime and many others run, on all kinds of processors."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from isa_tf import files
from isa_tf.formats.base import Format, check_model, missing
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

_EXTRA = "onnx"


class ONNX(Format):
    """An `.onnx` file of standard operations, for batches of images of any size.

    Its input is `image`, uint8 RGB images (B, H, W, 3), its outputs what the model's contract
    answers: of a segmentation model `class_id`, uint8 (B, H, W) (int32 of more than 256 classes),
    the most probable class, and `score`, float32 (B, H, W), its probability; of one that finds
    instances the same as of `SavedModel`. It computes in float32, as `LiteRT` does. What there is
    to know of the model lies in the file's metadata, `isa_tf.json` and `labels.txt`.

    tf2onnx converts, ONNX's checker checks and ONNX Runtime predicts: pip install isa_tf[onnx].

        path = isa_tf.export(model, "model.onnx")
        class_id, score = isa_tf.load_predictor(path)(images)
    """

    name, suffix = "onnx", ".onnx"

    def export(self, model: keras.Model, path: StrPath) -> Path:
        """Writes an ONNX model.

        Args:
            model: `keras.Model` from RGB 0..255 (B, H, W, 3) to its task's outputs.
            path: of the file to write, ending in `.onnx`; its parents are made.

        Returns:
            The path, a `pathlib.Path`.

        Raises:
            ValueError: for a model that is none of its task, or another ending of the path.
            RuntimeError: for a model with an operation that ONNX does not have, or not so.
            ImportError: where the extra is not installed.
        """
        path = self.check_path(path)
        check_model(model)
        try:
            import onnx
            import tf2onnx  # noqa: F401
        except ImportError as error:
            raise missing(path, "tf2onnx and onnx", _EXTRA) from error
        with served(model) as (serving, signature, contract), files.replacing(path) as new:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", FutureWarning)  # of `np.object`, by Keras
                    serving.export(
                        str(new), format="onnx", verbose=False, input_signature=signature
                    )
                made = onnx.load(str(new))
                _pad_explicitly(made.graph, onnx.helper)
                onnx.helper.set_model_props(made, contract.files())
                onnx.save(made, str(new))
                onnx.checker.check_model(str(new), full_check=True)
            except OSError:
                raise
            except Exception as error:
                raise RuntimeError(f"{path}: cannot be written as ONNX ({error})") from error
        return path

    def load(
        self,
        path: Path,
        num_threads: int | None = None,
        protocol: ProtocolBase | Mapping[str, Any] | None = None,
    ) -> Predictor | InstancePredictor:
        try:
            import onnxruntime
        except ImportError as error:
            raise missing(path, "ONNX Runtime", _EXTRA) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads or 0
        options.log_severity_level = 4  # what goes wrong is raised
        try:
            session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ValueError(f"{path}: cannot be read as an ONNX model ({error})") from error
        try:
            contract = read_contract(session.get_modelmeta().custom_metadata_map.get(METADATA_FILE))
            inputs, outputs = session.get_inputs(), session.get_outputs()
            names = [output.name for output in outputs]
            if [i.name for i in inputs] != ["image"] or {*names} != {*contract.outputs}:
                raise ValueError("not an ONNX model that isa_tf.export wrote")

            def run(images):
                return dict(zip(names, session.run(names, {"image": images}), strict=True))

            return predictor_of_run(contract, run, protocol)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def reference(self, model: keras.Model) -> keras.Model:
        return float32_clone(model)


def _pad_explicitly(graph, helper):
    """Says of each convolution of stride 1 what its automatic padding is, whatever the size.

    ONNX Runtime 1.32 refuses dilated ones that are padded by "SAME_UPPER", where the processor has
    it compute in blocks of channels.
    """
    shapes = {tensor.name: tensor.dims for tensor in graph.initializer}
    for node in graph.node:
        told = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type != "Conv" or not told.get("auto_pad", helper.make_attribute("x", "")).s:
            continue
        kernel = told["kernel_shape"].ints if "kernel_shape" in told else shapes[node.input[1]][2:]
        strides = told["strides"].ints if "strides" in told else [1, 1]
        rates = told["dilations"].ints if "dilations" in told else [1, 1]
        if told["auto_pad"].s.startswith(b"SAME") and {*strides} == {1}:
            sides = [rate * (size - 1) // 2 for rate, size in zip(rates, kernel, strict=True)]
            if all(size % 2 for size in kernel):
                node.attribute.remove(told["auto_pad"])
                node.attribute.append(helper.make_attribute("pads", sides * 2))
