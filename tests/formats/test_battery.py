"""What every format of segmentation models is to do, of whatever kind its files are."""

import contextlib
import io
import os
import sys

import keras
import numpy as np
import pytest
from exporting import NAMES, PALETTE, SIZES, expected, make_model, random_images
from finding import make_detector

import isa_tf
from isa_tf import formats
from isa_tf.inference import Protocol

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
    "litert": {"image_size": SIZE},
    "litert_fp16": {"image_size": SIZE},
    "litert_int8": {"image_size": SIZE, "calibration": random_images(8, *SIZE, seed=5)},
}
SCORES_TO = {"litert_fp16": 0.02, "litert_int8": 0.3}  # of the others, 1e-4


def needs(name):
    for module in NEEDS.get(name, ()):
        pytest.importorskip(module, reason=f"{module} is not installed, which {name} needs")


@pytest.fixture(scope="module")
def trained():
    """A model with all there is to it, that has learnt to tell six colours.

    A network of noise decides by differences that 8 bits do not hold; a trained one does not.
    """
    model = make_model(jit_compile=True, auxiliary_level="c1", protocol={"flip": True})
    images = random_images(16, *SIZE, seed=1)
    label = 2 * images.argmax(-1) + (images.max(-1) > 140)
    model.compile(keras.optimizers.Adam(3e-3), isa_tf.losses.PixelCrossEntropy(), jit_compile=False)
    model.fit(images.astype("float32"), label.astype("uint8"), 4, 25, verbose=0)
    return model


@pytest.fixture(scope="module")
def other():
    return make_model()


@pytest.fixture(scope="module", params=formats.list_names())
def written(request, trained, tmp_path_factory):
    """A model, its format, and the path of its file."""
    needs(request.param)
    model = trained
    format = formats.create(request.param)
    path = tmp_path_factory.mktemp("battery") / "new" / format.file_name
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        given = format.export(model, path, **OPTIONS.get(format.name, {}))
    assert given == path and output.getvalue() == ""
    assert os.listdir(path.parent) == [format.file_name]
    return model, format, path


def agree(format, result, truth):
    (class_id, score), (true_id, true_score) = result, truth
    assert len(np.unique(true_id)) > 2
    assert (class_id == true_id).mean() >= format.least_agreement
    assert np.abs(score - true_score).max() <= SCORES_TO.get(format.name, 1e-4)


def test_its_files_are_known_as_its_own(written):
    _, format, path = written
    assert formats.find(path).name == format.name


def test_it_decides_as_the_model(written):
    model, format, path = written
    images = random_images(2, *SIZE)
    predictor = isa_tf.load_predictor(path, num_threads=1, protocol=Protocol())
    result = predictor(images)
    assert result[0].dtype == np.uint8 and result[1].dtype == np.float32
    agree(format, result, expected(model, images))
    # Answers stay what they are when the next image comes, and are the same alone and in a batch.
    before = [part.copy() for part in result]
    for i, image in enumerate(images):
        alone = predictor(image)
        np.testing.assert_allclose(alone[1], before[1][i], rtol=1e-4)
    for part, old in zip(result, before, strict=True):
        np.testing.assert_array_equal(part, old)


def test_it_takes_images_of_any_size(written):
    model, format, path = written
    predictor = isa_tf.load_predictor(path, protocol=Protocol())
    fixed = format.options.get("image_size", False)  # needed, and not to warm up with alone
    assert predictor.image_size == (SIZE if fixed else None)
    for size in SIZES:
        images = random_images(*size)
        class_id, score = predictor(images)
        assert class_id.shape == score.shape == size
        if not fixed and size[1] > 1:
            agree(format, (class_id, score), expected(model, images))


def test_it_carries_what_there_is_to_know(written):
    _, format, path = written
    predictor = isa_tf.load_predictor(path)
    assert predictor.class_names == NAMES and predictor.palette == PALETTE
    assert predictor.num_classes == 7
    if format.name == "keras":
        assert predictor.protocol == Protocol(flip=True)
    else:
        with pytest.raises(ValueError, match="an exported model sees whole images alone"):
            isa_tf.load_predictor(path, protocol={"flip": True})


def test_it_is_verified(written, other):
    model, format, path = written
    images = random_images(1, *SIZE)
    found = format.verify(path, model, images)
    assert found.agreement >= format.least_agreement
    assert found.decisions == SIZE[0] * SIZE[1] and found.kinds > 2 and found.seconds > 0
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    assert found.bytes == sum(p.stat().st_size for p in files)
    # Another model's file differs.
    assert format.verify(path, other, images).agreement < 0.8


def test_it_is_written_whole_or_not_at_all(written, other, tmp_path):
    _, format, path = written
    options = OPTIONS.get(format.name, {})
    image = keras.Input((None, None, 3))
    pooled = keras.Model(image, keras.layers.GlobalAveragePooling2D()(image))
    with pytest.raises(ValueError, match="a keras.Model is needed, got function"):
        format.export(lambda x: x, tmp_path / format.file_name, **options)
    if format.name != "keras":
        with pytest.raises(ValueError, match="no segmentation model"):
            format.export(pooled, tmp_path / format.file_name, **options)
    if format.suffix:
        with pytest.raises(ValueError, match=f"ends in {format.suffix}"):
            format.export(other, tmp_path / "model.other", **options)
    assert not os.listdir(tmp_path)


def test_what_is_not_its_own_is_told(written, tmp_path):
    _, format, path = written
    broken = tmp_path / format.file_name
    if path.is_file():
        broken.write_bytes(path.read_bytes()[:200])
    else:
        broken.mkdir()
        for file in path.rglob("*.*"):
            if file.is_file() and file.parent == path:
                (broken / file.name).write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=f"{broken}: "):
        isa_tf.load_predictor(broken)


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
