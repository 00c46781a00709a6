"""Every format of segmentation models through the battery, and what else is told of them."""

import os
import sys

import keras
import pytest
from exporting import make_model, random_images
from finding import make_detector

import isa_tf
from isa_tf import formats
from isa_tf.inference import Protocol
from isa_tf.testing import FormatBattery, trained_segmenter

SIZE = (66, 74)  # of formats with one size: a map of 17x19, which no partition divides
# What is needed to write and read files of a format; the rest needs nothing.
NEEDS = {
    "litert": ["ai_edge_litert"],
    "litert_fp16": ["ai_edge_litert"],
    "litert_int8": ["ai_edge_litert", "ai_edge_quantizer"],
    "onnx": ["onnx", "tf2onnx", "onnxruntime"],
    "openvino": ["openvino"],
    "tf_serving": ["tensorflow_serving"],
}
OPTIONS = {
    "litert_int8": {"image_size": SIZE, "calibration": random_images(8, *SIZE, seed=5)},
}
SCORES_TO = {"litert_fp16": 0.02, "litert_int8": 0.3}  # of the others, 1e-4


def needs(name):
    for module in NEEDS.get(name, ()):
        pytest.importorskip(module, reason=f"{module} is not installed, which {name} needs")


@pytest.fixture(scope="module")
def trained():
    """A model with all there is to it, that has learnt to tell six colours."""
    return trained_segmenter(SIZE, jit_compile=True, auxiliary_level="c1", protocol={"flip": True})


@pytest.fixture(scope="module", params=formats.list_names())
def battery(request, trained):
    needs(request.param)
    tolerance = SCORES_TO.get(request.param, 1e-4)
    return FormatBattery(request.param, OPTIONS.get(request.param), trained, SIZE, tolerance)


@pytest.mark.parametrize("check", FormatBattery.list_checks())
def test_battery(battery, check):
    battery.run(check)


def test_a_protocol_is_for_keras_files_alone(battery):
    predictor = isa_tf.load_predictor(battery.path)
    if battery.format.name == "keras":
        assert predictor.protocol == Protocol(flip=True)
    else:
        with pytest.raises(ValueError, match="an exported model sees whole images alone"):
            isa_tf.load_predictor(battery.path, protocol={"flip": True})


def test_what_it_says_of_what_it_refuses(battery, tmp_path):
    format = battery.format
    options = battery.options
    image = keras.Input((None, None, 3))
    pooled = keras.Model(image, keras.layers.GlobalAveragePooling2D()(image))
    with pytest.raises(ValueError, match="a keras.Model is needed, got function"):
        format.export(lambda x: x, tmp_path / format.file_name, **options)
    if format.name != "keras":
        with pytest.raises(ValueError, match="no segmentation model"):
            format.export(pooled, tmp_path / format.file_name, **options)
    if format.suffix:
        with pytest.raises(ValueError, match=f"ends in {format.suffix}"):
            format.export(battery.model, tmp_path / "model.other", **options)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["litert_int8", "openvino"])
def test_models_that_find_instances_are_refused(name, tmp_path):
    format = formats.create(name)
    options = {**OPTIONS.get(name, {}), "image_size": (96, 61)} if name in OPTIONS else {}
    with pytest.raises(ValueError, match=f"of instance_segmentation, the format '{name}' is for"):
        format.export(make_detector(), tmp_path / format.file_name, **options)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "name,module", [("onnx", "tf2onnx"), ("onnx", "onnx"), ("openvino", "openvino")]
)
def test_without_the_converter(name, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    format = formats.create(name)
    with pytest.raises(ImportError, match=rf"pip install isa_tf\[{name}\]"):
        format.export(make_model(), tmp_path / format.file_name)
    assert not os.listdir(tmp_path)


def test_without_the_runtime(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"x")
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "model.xml").write_text("x")
    for module in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, module, None)
    for name in ("onnx", "openvino"):
        path = tmp_path / ("model.onnx" if name == "onnx" else name)
        with pytest.raises(ImportError, match=rf"pip install isa_tf\[{name}\]"):
            isa_tf.load_predictor(path)
