"""SavedModels: what is in them, and that TensorFlow runs them without this package."""

import io
import json
import os
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from exporting import (
    BEYOND,
    assert_agree,
    assert_agrees_at_any_size,
    expected,
    make_model,
    random_images,
)
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2

import isa_tf
from isa_tf import inference
from isa_tf.formats.saved_model import ASSETS
from isa_tf.layers import ConvNormAct
from isa_tf.testing import randomize


def test_saved_model_holds_each_weight_once(exported):
    model, paths = exported
    kept = tf.train.list_variables(str(paths["saved"] / "variables" / "variables"))
    shapes = sorted(tuple(shape) for name, shape in kept if "GRAPH" not in name)
    assert shapes == sorted(tuple(v.shape) for v in inference.fuse(model).variables)


def test_saved_model_agrees_at_any_size(exported):
    model, paths = exported
    assert_agrees_at_any_size(model, paths["saved"])


@pytest.mark.some(3)
@pytest.mark.parametrize(
    "context", [{"partition": "auto"}, {"partition": [4, (2, 8)]}, *BEYOND.values()], ids=str
)
def test_saved_model_of_other_partitions(tmp_path, context):
    model = make_model(**context)
    assert_agrees_at_any_size(model, isa_tf.export(model, tmp_path / "saved"))


_ELSEWHERE = """
import sys
sys.modules["isa_tf"] = None  # an import of it is an error
import numpy as np
import tensorflow as tf

loaded = tf.saved_model.load(sys.argv[1])
images = np.load("images.npy")
out = loaded.signatures["serving_default"](image=tf.constant(images))
assert sorted(out) == ["class_id", "score"]
np.savez("raw.npz", **{k: v.numpy() for k, v in out.items()})
for kind in ("png", "jpg"):
    files = [open(f"{i}.{kind}", "rb").read() for i in range(len(images))]
    out = loaded.signatures["encoded"](image_bytes=tf.constant(files))
    decoded = np.stack([tf.io.decode_image(f, channels=3).numpy() for f in files])
    np.savez(f"{kind}.npz", images=decoded, **{k: v.numpy() for k, v in out.items()})
"""


def test_saved_model_in_a_process_without_the_package(tmp_path, exported):
    model, paths = exported
    images = random_images(2, 45, 70)
    np.save(tmp_path / "images.npy", images)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
        Image.fromarray(image).save(tmp_path / f"{i}.jpg", quality=80)
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", _ELSEWHERE, str(paths["saved"])],
        cwd=tmp_path,
        env={**env, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for kind in ("raw", "png", "jpg"):
        out = np.load(tmp_path / f"{kind}.npz")
        seen = out["images"] if kind == "jpg" else images
        assert_agree((out["class_id"], out["score"]), expected(model, seen))


def test_encoded_images_of_two_sizes_are_refused(exported):
    loaded = tf.saved_model.load(str(exported[1]["saved"]))
    files = []
    for size in ((32, 32), (32, 40)):
        buffer = io.BytesIO()
        Image.new("RGB", size).save(buffer, "PNG")
        files.append(buffer.getvalue())
    with pytest.raises(tf.errors.InvalidArgumentError):
        loaded.signatures["encoded"](image_bytes=tf.constant(files))


def compiled_functions(path):
    proto = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    functions = proto.meta_graphs[0].graph_def.library.function
    assert len(functions) > 1
    return [f.signature.name for f in functions if f.attr["_XlaMustCompile"].b]


def test_attention_is_compiled_in_the_file_only_where_asked(exported, tmp_path):
    model, paths = exported
    layers = [x for x in model._flatten_layers() if not isinstance(x, keras.Model)]
    assert sum(getattr(layer, "jit_compile", False) for layer in layers) == 3
    assert not compiled_functions(paths["saved"])
    compiled = isa_tf.export(model, tmp_path / "compiled", jit_compile=True)
    assert compiled_functions(compiled)
    assert_agrees_at_any_size(model, compiled)


def test_wide_convolutions_are_filtered_by_ordinary_operations(tmp_path):
    image = x = keras.Input((None, None, 3))
    for rate in (1, 2):
        x = ConvNormAct(8, 3, dilation_rate=rate)(x)
    model = keras.Model(image, keras.layers.Conv2D(7, 1)(x))
    randomize(model)
    paths = {
        width: isa_tf.export(model, tmp_path / str(width), minimal_filtering=width)
        for width in (8, None)
    }
    shapes = {
        width: [shape for _, shape in tf.train.list_variables(str(path / "variables/variables"))]
        for width, path in paths.items()
    }
    assert shapes[8].count([36, 8, 8]) == 1 and not any(shape[:1] == [36] for shape in shapes[None])
    assert not compiled_functions(paths[8])
    predictor = isa_tf.load_predictor(paths[8])
    for size in ((2, 45, 29), (1, 3, 17)):
        images = random_images(*size)
        assert_agree(predictor(images), expected(model, images), rtol=1e-3)


def test_a_network_that_has_no_twin_is_written_as_it_is(tmp_path):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = keras.layers.Conv2D(4, 3, padding="same")

        def call(self, x):
            return self.conv(x)

    model, images = Own(), random_images(1, 24, 40)
    truth = expected(model, images)
    assert_agree(isa_tf.load_predictor(isa_tf.export(model, tmp_path / "own"))(images), truth)


@pytest.fixture
def saved(exported, tmp_path):
    """A copy of a SavedModel, alone in its folder."""
    return shutil.copytree(exported[1]["saved"], tmp_path / "saved")


def test_an_older_one_is_replaced_whole(saved):
    path = saved
    (path / "note.txt").write_text("of the older one")
    other = make_model(partition=4)
    assert isa_tf.export(other, path) == path
    assert sorted(p.name for p in path.iterdir()) == [
        *("assets", "assets.extra", "fingerprint.pb", "saved_model.pb", "variables")
    ]
    assert os.listdir(path.parent) == ["saved"]
    images = random_images(1, 40, 44)
    assert_agree(isa_tf.load_predictor(path)(images), expected(other, images))


@pytest.mark.parametrize("older", [True, False])
def test_an_export_that_fails_leaves_what_was_there(saved, monkeypatch, older):
    path, folder = saved, saved.parent
    if not older:
        shutil.rmtree(path)
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}

    def fail(self):
        raise RuntimeError("the disk is full")

    # Once the graph has been written, but not all of the rest.
    monkeypatch.setattr(inference.SegmentationContract, "files", fail)
    with pytest.raises(RuntimeError, match="the disk is full"):
        isa_tf.export(make_model(partition=4), path)
    assert os.listdir(folder) == ["saved"] * older
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before


def test_nothing_else_is_replaced(tmp_path):
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "photo.jpg").write_text("a photo")
    (tmp_path / "empty").mkdir()
    model = make_model()
    for name in ("file", "folder"):
        with pytest.raises(ValueError, match=f"{name}: there is something else than a SavedModel"):
            isa_tf.export(model, tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "folder"]
    assert (tmp_path / "file").read_text() == "a file"
    assert os.listdir(tmp_path / "folder") == ["photo.jpg"]
    assert isa_tf.export(model, tmp_path / "empty").joinpath("saved_model.pb").is_file()


def test_damaged_metadata(saved):
    path = saved
    file = path / ASSETS / inference.METADATA_FILE
    whole = json.loads(file.read_text())
    assert whole["task"] == "segmentation"
    for text in ("{", "[]", "{}", json.dumps({**whole, "task": "poetry"})):
        file.write_text(text)
        with pytest.raises(ValueError, match="saved: damaged isa_tf.json"):
            isa_tf.load_predictor(path)
    file.unlink()  # the model runs without it
    assert isa_tf.load_predictor(path, protocol=inference.Protocol()).num_classes is None
    with pytest.raises(ValueError, match="saved: an exported model sees whole images alone"):
        isa_tf.load_predictor(path, protocol=inference.Protocol(scales=(0.5, 1)))
