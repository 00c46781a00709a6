"""Files of models that find instances: each format, with and without this package."""

import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from finding import IDS, NAMES, PALETTE, PROTOCOL, assert_agrees, expected, make_detector, photos
from PIL import Image

import isa_tf
from isa_tf import formats
from isa_tf.inference import (
    DetectionProtocol,
    InstancePredictor,
    Instances,
    contract_of,
    fuse,
)

NOTHING = (0, 255, 0)
SIZES = ((2, 50, 70), (1, 96, 61), (1, 33, 120))


@pytest.fixture(scope="module")
def detector():
    """One that finds nothing in an image of one green: what wins there is the background."""
    model = make_detector()
    layer = model.get_layer("box_head").get_layer("logits")
    layer.set_weights([weight[..., [3, 1, 2, 0]] for weight in layer.get_weights()])
    return model


@pytest.fixture(scope="module")
def truth(detector):
    """`expected` of an image by the detector, computed once for all files."""
    known = {}

    def of(image):
        key = image.shape, image.tobytes()
        if key not in known:
            known[key] = expected(detector, image)
        return known[key]

    return of


def nothing(*size):
    """An image of one colour, in which the detector finds nothing."""
    return np.full((*size, 3), NOTHING, np.uint8)


def assert_empty(found, size):
    shapes = [part.shape for part in found]
    assert shapes == [(0, 4), (0,), (0,), (0, *size)]


@pytest.fixture(scope="module")
def saved(detector, tmp_path_factory):
    return isa_tf.export(detector, tmp_path_factory.mktemp("saved") / "model")


@pytest.mark.parametrize(
    "weights_dtype", [pytest.param("float32", marks=pytest.mark.slow), "float16"]
)
def test_a_keras_file(detector, truth, tmp_path, weights_dtype):
    path = isa_tf.export(detector, tmp_path / "model.keras", weights_dtype=weights_dtype)
    predictor = isa_tf.load_predictor(path)
    assert isinstance(predictor, InstancePredictor)
    assert predictor.protocol == DetectionProtocol(**PROTOCOL) and predictor.category_ids == IDS
    if weights_dtype == "float32":
        for size in SIZES:
            images = photos(*size)
            for found, image in zip(predictor(images), images, strict=True):
                assert_agrees(found, truth(image))
        assert formats.find(path).verify(path, detector, images).agreement == 1
    other = {"short_side": 48, "long_side": 96, "size_divisor": 32}
    found = isa_tf.load_predictor(path, protocol=other)(photos(1, 50, 70)[0])
    if weights_dtype == "float32":
        assert_agrees(found, expected(detector, photos(1, 50, 70)[0], other))


@pytest.mark.slow
def test_a_saved_model_takes_any_size(truth, saved):
    predictor = isa_tf.load_predictor(saved)
    assert isinstance(predictor, InstancePredictor)
    assert predictor.class_names == NAMES and predictor.palette == PALETTE
    assert predictor.category_ids == IDS and predictor.image_size is None
    for size in SIZES:
        images = photos(*size)
        for found, image in zip(predictor(images), images, strict=True):
            assert_agrees(found, truth(image))
    assert isa_tf.load_predictor(saved, protocol=PROTOCOL).protocol == predictor.protocol
    with pytest.raises(ValueError, match="sees images by DetectionProtocol"):
        isa_tf.load_predictor(saved, protocol={"short_side": 400})
    assert (saved / "assets.extra/labels.txt").read_text().split() == list(NAMES)
    assert json.loads((saved / "assets.extra/isa_tf.json").read_text())["category_ids"] == [*IDS]


@pytest.mark.slow
def test_verify(detector, saved):
    images = photos(2, 50, 70)
    found = formats.find(saved).verify(saved, detector, images)
    count = sum(map(len, (part.scores for part in isa_tf.load_predictor(saved)(images))))
    assert found.agreement == 1 and found.decisions == count > 2 and found.kinds >= 2
    assert found.score_difference < 1e-5 and found.bytes > 1000
    # Another model's file differs.
    assert formats.find(saved).verify(saved, make_detector(finds=False), images).agreement == 0


@pytest.mark.slow
def test_a_twin_for_inference_is_a_detector_too(detector, truth, tmp_path):
    image = photos(1, 96, 61)[0]
    twin = fuse(detector)
    assert contract_of(twin) == contract_of(detector)
    path = isa_tf.export(twin, tmp_path / "twin")
    for predictor in (InstancePredictor.from_model(twin), isa_tf.load_predictor(path)):
        assert_agrees(predictor(image), truth(image))


_ELSEWHERE = """
import sys
sys.modules["isa_tf"] = None  # an import of it is an error
import numpy as np
import tensorflow as tf

loaded = tf.saved_model.load(sys.argv[1])
for name in sys.argv[2:]:
    content = open(name, "rb").read()
    out = loaded.signatures["encoded"](image_bytes=tf.constant([content]))
    image = tf.io.decode_image(content, channels=3)
    raw = loaded.signatures["serving_default"](image=image[None])
    assert sorted(out) == sorted(raw) == ["boxes", "classes", "masks", "scores", "valid"]
    for key in out:
        np.testing.assert_array_equal(out[key], raw[key])
    np.savez(name + ".npz", image=image, **{k: v.numpy() for k, v in out.items()})
assert not [name for name in sys.modules if name.startswith("isa_tf.")]
"""


def serve_elsewhere(saved, folder, names):
    """What the SavedModel answers to files of a folder, in a process with TensorFlow alone."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", _ELSEWHERE, str(saved), *names],
        cwd=folder,
        env={**env, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [dict(np.load(folder / f"{name}.npz")) for name in names]


@pytest.mark.slow
def test_from_jpeg_bytes_to_detections_without_the_package(truth, saved, tmp_path):
    """Of an image without anything the answer is empty."""
    names = ["a.jpg", "b.jpg", "c.png"]
    for name, size in zip(names, SIZES, strict=True):
        Image.fromarray(photos(1, *size[1:])[0]).save(tmp_path / name)
    Image.fromarray(nothing(40, 64)).save(tmp_path / "d.png")
    *answers, empty = serve_elsewhere(saved, tmp_path, [*names, "d.png"])
    for answer in answers:
        assert answer["valid"].all() and answer["valid"].shape[1] >= 2
        found = Instances(*(answer[field][0] for field in Instances._fields))
        assert_agrees(found, truth(answer["image"]))
    assert {name: value.shape for name, value in empty.items() if name != "image"} == {
        "boxes": (1, 0, 4), "classes": (1, 0), "scores": (1, 0), "valid": (1, 0),
        "masks": (1, 0, 40, 64),
    }  # fmt: skip


@pytest.fixture(scope="module")
def litert(detector, tmp_path_factory):
    pytest.importorskip("ai_edge_litert")
    folder = tmp_path_factory.mktemp("litert")
    return isa_tf.export(detector, folder / "model.tflite", image_size=(50, 70))


def test_litert(detector, truth, litert):
    assert zipfile.ZipFile(litert).namelist() == ["isa_tf.json", "labels.txt"]
    predictor = isa_tf.load_predictor(litert)
    images = np.stack([*photos(2, 50, 70), nothing(50, 70)])
    assert predictor.image_size == (50, 70) and predictor.protocol.short_side == 64
    found = predictor(images)
    for some, image in zip(found, images, strict=True):
        assert_agrees(some, truth(image))
    assert len({len(some.scores) for some in found}) > 1  # what is fewer was filled up
    assert formats.find(litert).verify(litert, detector, images).agreement == 1


def test_litert_takes_images_of_other_sizes_by_resizing(truth, litert):
    image = photos(1, 100, 210)[0]
    seen = np.asarray(Image.fromarray(image).resize((70, 50), Image.Resampling.BILINEAR))
    found = isa_tf.load_predictor(litert)(image)
    boxes, classes, scores, masks = truth(seen)
    assert found.masks.shape == (len(boxes), 100, 210) and len(boxes) > 2
    small = found._replace(
        boxes=found.boxes / np.float32([3, 2] * 2), masks=found.masks[:, ::2, 1::3]
    )
    assert_agrees(small, (boxes, classes, scores, masks))


def test_litert_finds_nothing(litert):
    predictor = isa_tf.load_predictor(litert)
    for size in ((50, 70), (96, 61)):
        assert_empty(predictor(nothing(*size)), size)


@pytest.mark.slow
def test_litert_in_halves(detector, tmp_path):
    pytest.importorskip("ai_edge_litert")
    path = isa_tf.export(detector, tmp_path / "m.tflite", "litert_fp16", image_size=(96, 61))
    images = photos(3, 96, 61)
    found = formats.find(path).verify(path, detector, images)
    # Weights are rounded: a detection that nearly is none may become one.
    assert found.agreement > 0.6 and found.decisions > 8


@pytest.mark.slow
def test_onnx_takes_any_size_and_finds_nothing(detector, truth, tmp_path):
    for package in ("onnx", "tf2onnx", "onnxruntime"):
        pytest.importorskip(package)
    path = isa_tf.export(detector, tmp_path / "model.onnx")
    predictor = isa_tf.load_predictor(path)
    assert isinstance(predictor, InstancePredictor) and predictor.category_ids == IDS
    assert predictor.class_names == NAMES and predictor.image_size is None
    for size in (*SIZES, (1, 192, 300), (1, 64, 96)):
        images = photos(*size)
        for found, image in zip(predictor(images), images, strict=True):
            assert_agrees(found, truth(image))
    for size in ((40, 64), (50, 70)):
        assert_empty(predictor(nothing(*size)), size)
    with pytest.raises(ValueError, match="sees images by DetectionProtocol"):
        isa_tf.load_predictor(path, protocol={"short_side": 400})
