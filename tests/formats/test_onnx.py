"""ONNX files: what ONNX Runtime would not run as it is converted."""

import keras
import pytest
from exporting import BEYOND, assert_agree, expected, make_model, random_images

import isa_tf
from isa_tf.layers import ConvBiasAct


def test_dilated_convolutions_are_padded_explicitly(tmp_path):
    """As ONNX Runtime needs them that computes in blocks of channels, where there is AVX."""
    onnx = pytest.importorskip("onnx")
    for package in ("tf2onnx", "onnxruntime"):
        pytest.importorskip(package)
    keras.utils.set_random_seed(0)
    image = x = keras.Input((None, None, 3))
    for size, options in ((3, {"strides": 2}), (3, {"dilation_rate": 2}), (5, {}), (1, {})):
        x = ConvBiasAct(32, size, **options)(x)
    x = keras.layers.UpSampling2D(2)(x)
    model = keras.Model(image, keras.layers.Conv2D(7, 1)(x))
    path = isa_tf.export(model, tmp_path / "model.onnx")
    pads = [
        [a.ints for a in node.attribute if a.name == "pads"]
        for node in onnx.load(path).graph.node
        if node.op_type == "Conv"
    ]
    assert [[2] * 4] in pads and pads.count([[2] * 4]) == 2  # of 3 by rate 2, and of 5
    predictor = isa_tf.load_predictor(path)
    for shape in ((1, 24, 30), (2, 32, 32)):
        images = random_images(*shape)
        assert_agree(predictor(images), expected(model, images))


# As many levels as a map has use for are branches within branches, of which every pass of tf2onnx
# makes a copy, and OpenVINO converts and compiles each.
@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("levels", "onnx"),
        pytest.param("levels", "openvino", marks=pytest.mark.slow),
        ("positions", "onnx"),
        pytest.param("positions", "openvino", marks=pytest.mark.slow),
        pytest.param("shared-auto", "onnx", marks=pytest.mark.slow),
        pytest.param("shared-auto", "openvino", marks=pytest.mark.slow),
    ],
)
def test_forms_beyond_the_paper(tmp_path, name, form):
    """At sizes that are known to nobody when the file is written."""
    for package in ("onnx", "tf2onnx", "onnxruntime") if name == "onnx" else ("openvino",):
        pytest.importorskip(package)
    model = make_model(**BEYOND[form])
    path = isa_tf.export(model, tmp_path / ("model.onnx" if name == "onnx" else "model"), name)
    predictor = isa_tf.load_predictor(path)
    for shape in ((2, 90, 118), (1, 64, 64), (3, 20, 26)):
        images = random_images(*shape)
        assert_agree(predictor(images), expected(model, images))
