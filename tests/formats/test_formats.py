"""The registry of formats and its doors: what is written, found, loaded, compared, refused."""

import concurrent.futures
import contextlib
import io
import json
import os
import shutil
import time
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from exporting import NAMES, PALETTE, assert_agree, expected, make_model, random_images

import isa_tf
from isa_tf import formats
from isa_tf.formats import Format, load_model
from isa_tf.formats.base import one_at_a_time
from isa_tf.inference import Predictor, Protocol

FLIP = Protocol(flip=True)


def test_keras_saved_model_and_litert_through_one_interface(exported):
    pytest.importorskip("ai_edge_litert")
    model, paths = exported
    images = random_images(2, 66, 74)
    for path in paths.values():
        predictor = isa_tf.load_predictor(path)
        assert_agree(predictor(images), expected(model, images))
        assert predictor.class_names == NAMES
        assert predictor.palette == PALETTE
        assert predictor.num_classes == 7
    assert_agree(Predictor.from_model(model)(images), expected(model, images))


def test_without_names(tmp_path):
    pytest.importorskip("ai_edge_litert")
    model = make_model(names=None)
    saved = isa_tf.export(model, tmp_path / "saved")
    litert = isa_tf.export(model, tmp_path / "model.tflite", image_size=(32, 32))
    for predictor in (isa_tf.load_predictor(saved), isa_tf.load_predictor(litert)):
        assert predictor.num_classes == 7
        assert predictor.class_names is None and predictor.palette is None
    assert zipfile.ZipFile(litert).namelist() == ["isa_tf.json"]


def test_names_lie_where_other_tools_look(exported):
    _, paths = exported
    with zipfile.ZipFile(paths["litert"]) as archive:
        assert archive.read("labels.txt").decode().splitlines() == list(NAMES)
    metadata = json.loads((paths["saved"] / "assets.extra/isa_tf.json").read_text("utf-8"))
    assert metadata["class_names"] == list(NAMES)


def test_nothing_is_printed_and_nothing_changed(tmp_path):
    model = make_model()
    images = random_images(1, 40, 40).astype("float32")
    before = np.asarray(model(images))
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        isa_tf.export(model, tmp_path / "model.keras")
        isa_tf.export(model, tmp_path / "saved")
        isa_tf.export(model, tmp_path / "model.tflite", image_size=(32, 32))
    assert output.getvalue() == ""
    np.testing.assert_array_equal(before, np.asarray(model(images)))


def test_any_keras_model_of_the_right_shape(tmp_path):
    image = keras.Input((24, 40, 3))
    model = keras.Model(image, keras.layers.Conv2D(4, 3, padding="same")(image))
    images = random_images(2, 24, 40)
    predictor = isa_tf.load_predictor(isa_tf.export(model, tmp_path / "saved"))
    assert predictor.image_size == (24, 40) and predictor.num_classes == 4
    assert_agree(predictor(images), expected(model, images))
    with pytest.raises(ValueError, match="does not take images"):
        isa_tf.export(model, tmp_path / "model.tflite", image_size=(32, 32))


@pytest.mark.slow
def test_every_format_takes_an_hrnet(tmp_path):
    """After a step of training; of sizes that are no multiple of any stride."""
    keras.utils.set_random_seed(0)
    backbone = isa_tf.backbones.HRNet(2, modules=(1, 1, 1), blocks=1, filters=4)
    model = make_model(backbone=backbone)
    images = random_images(2, 41, 58)
    model.compile("sgd", isa_tf.losses.PixelCrossEntropy(), jit_compile=False)
    before = model.get_weights()
    label = expected(model, images)[0][:, ::-1].astype("uint8")
    losses = model.fit(images.astype("float32"), label, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    for weight, old in zip(model.weights, before, strict=True):
        if "seed_generator" not in weight.path:
            assert np.any(weight != old), weight.path
    # Every class wins somewhere, by logits of usual size: the statistics of one step are of none.
    logits = model(images.astype("float32")).numpy()
    classifier = model.get_layer("logits_classifier")
    kernel, bias = classifier.get_weights()
    classifier.set_weights([kernel / logits.std(), (bias - logits.mean((0, 1, 2))) / logits.std()])
    for name in ("model.keras", "saved", "model.tflite"):
        options = {"image_size": (41, 58)} if name.endswith("tflite") else {}
        predictor = isa_tf.load_predictor(isa_tf.export(model, tmp_path / name, **options))
        # Of maps that no training has made small, rounding errors are large.
        assert_agree(predictor(images), expected(model, images), rtol=1e-3)


def test_wrong_models(tmp_path):
    image = keras.Input((None, None, 3))
    pooled = keras.Model(image, keras.layers.GlobalAveragePooling2D()(image))
    halved = keras.Model(image, keras.layers.AveragePooling2D(2)(image))
    words = keras.Input((5,))
    vector = keras.Model(words, keras.layers.Dense(3)(words))
    for name, options in (("x", {}), ("x.tflite", {"image_size": 32})):
        for model, message in (
            (pooled, r"not logits \(1, \d+, \d+\) \+ \(classes,\)"),
            (halved, "no segmentation model"),
            (vector, "no segmentation model"),
            (lambda x: x, "a keras.Model is needed, got function"),
        ):
            with pytest.raises(ValueError, match=message):
                isa_tf.export(model, tmp_path / name, **options)
    with pytest.raises(ValueError, match="a keras.Model is needed, got function"):
        isa_tf.export(lambda x: x, tmp_path / "x.keras")
    assert not os.listdir(tmp_path)


def test_more_classes_than_a_byte_holds(tmp_path):
    pytest.importorskip("ai_edge_litert")
    image = keras.Input((None, None, 3))
    conv = keras.layers.Conv2D(300, 1)
    model = keras.Model(image, conv(image))
    kernel, bias = np.zeros((1, 1, 3, 300)), np.zeros(300)
    kernel[0, 0, 0, 299], kernel[0, 0, 1, 43] = 1, 1
    conv.set_weights([kernel, bias])
    images = np.zeros((1, 8, 8, 3), np.uint8)
    images[:, :, :4, 0] = images[:, :, 4:, 1] = 200
    isa_tf.export(model, tmp_path / "saved")
    isa_tf.export(model, tmp_path / "model.tflite", image_size=8)
    for name in ("saved", "model.tflite"):
        class_id, _ = isa_tf.load_predictor(tmp_path / name)(images)
        assert class_id.dtype == np.int32
        np.testing.assert_array_equal(class_id[0], [[299] * 4 + [43] * 4] * 8)


def test_the_path_tells_the_format(tmp_path):
    assert formats.list_names()[:3] == ["keras", "saved_model", "litert"]
    model = make_model()
    for name, format in (("a.keras", "keras"), ("b", "saved_model")):
        assert formats.find(isa_tf.export(model, tmp_path / name)).name == format
    assert isa_tf.export(model, tmp_path / "v1.5", "saved_model").is_dir()
    assert formats.find(tmp_path / "v1.5").name == "saved_model"
    with pytest.raises(ValueError, match=r"x.other ends as no format's .*keras \(.keras\)"):
        isa_tf.export(model, tmp_path / "x.other")
    with pytest.raises(ValueError, match="unknown format 'litrt'; did you mean \"litert\""):
        isa_tf.export(model, tmp_path / "x.tflite", "litrt")
    with pytest.raises(TypeError, match="weights_dtype"):
        isa_tf.export(model, tmp_path / "x", weights_dtype="float16")
    with pytest.raises(TypeError, match="image_size"):
        isa_tf.export(model, tmp_path / "x.tflite")
    assert sorted(os.listdir(tmp_path)) == ["a.keras", "b", "v1.5"]


def test_options_are_those_of_export():
    found = {name: formats.create(name).options for name in formats.list_names()[:3]}
    assert found == {
        "keras": {"weights_dtype": False},
        "saved_model": {"jit_compile": False, "minimal_filtering": False},
        "litert": {"image_size": True},
    }


@pytest.fixture
def bundle():
    """A format of one's own: a folder with a `.keras` file and a note."""

    @formats.register
    class Bundle(Format):
        name = "bundle"

        def recognises(self, path):
            return (path / "note.txt").is_file()

        def export(self, model, path, note):
            path.mkdir()
            (path / "note.txt").write_text(note)
            formats.export(model, path / "model.keras")
            return path

        def load(self, path, num_threads=None, protocol=None):
            return formats.load_predictor(path / "model.keras", num_threads, protocol)

    yield
    del formats._formats._entries["bundle"]


def test_a_format_of_ones_own(tmp_path, bundle):
    model, images = make_model(), random_images(1, 40, 44)
    path = isa_tf.export(model, tmp_path / "b", "bundle", note="mine")
    assert formats.find(path).name == "bundle"
    assert_agree(isa_tf.load_predictor(path)(images), expected(model, images))
    assert formats.create("bundle").verify(path, model, images).agreement == 1
    with pytest.raises(ValueError, match="there is a format 'keras' already"):
        formats.register(type("Other", (Format,), {"name": "keras"}))


def test_verify_tells_how_far_a_file_agrees(exported, tmp_path):
    model, paths = exported
    images = random_images(1, 66, 74)
    for name in ("keras", "saved"):
        format = formats.find(paths[name])
        found = format.verify(paths[name], model, images)
        assert found.agreement >= 0.999 and found.decisions == 66 * 74
        assert found.kinds == len(np.unique(expected(model, images)[0])) > 2
        assert found.score_difference < 1e-4
    assert formats.find(paths["keras"]).verify(paths["keras"], model, images).bytes == (
        paths["keras"].stat().st_size
    )
    copy = shutil.copytree(paths["saved"], tmp_path / "copy")
    (copy / "more").write_bytes(bytes(1000))
    saved = formats.create("saved_model")
    sizes = [saved.verify(path, model, images).bytes for path in (copy, paths["saved"])]
    assert sizes[0] - sizes[1] == 1000
    # Another model's file differs, and one whose scores are no numbers agrees with nothing.
    assert saved.verify(paths["saved"], make_model(partition=3), images).agreement < 0.999
    broken = make_model()
    broken.set_weights([np.nan * weight for weight in broken.get_weights()])
    path = isa_tf.export(broken, tmp_path / "broken")
    assert saved.verify(path, broken, images).agreement == 0


def test_verify_compares_whole_images_whatever_the_test_protocol(tmp_path):
    model = make_model(protocol={"scales": (0.5, 1.0), "flip": True})
    path = isa_tf.export(model, tmp_path / "saved")
    metadata = json.loads((path / "assets.extra" / "isa_tf.json").read_text())
    assert metadata["protocol"]["scales"] == [0.5, 1.0]
    found = formats.create("saved_model").verify(path, model, random_images(1, 40, 44))
    assert found.agreement == 1


# === Loading ===


def test_protocol_of_a_file(tmp_path):
    make_model().save(tmp_path / "model.keras")
    images = random_images(1, 20, 24)
    loaded = isa_tf.load_predictor(tmp_path / "model.keras", protocol=FLIP.to_dict())
    assert loaded.protocol == FLIP
    expected = Predictor.from_model(make_model(), FLIP)(images)
    np.testing.assert_array_equal(loaded(images)[1], expected[1])
    assert isa_tf.load_predictor(tmp_path / "model.keras").protocol == Protocol()
    with pytest.raises(ValueError, match=r"model.keras: flip_pairs has \(7, 8\)"):
        isa_tf.load_predictor(tmp_path / "model.keras", protocol=Protocol(flip_pairs=((7, 8),)))


def test_nothing_there(tmp_path):
    for name in ("no.keras", "no.tflite", "no"):
        with pytest.raises(FileNotFoundError, match=name):
            isa_tf.load_predictor(tmp_path / name)


def test_unusable_files(tmp_path):
    pytest.importorskip("ai_edge_litert")
    (tmp_path / "model.h5").write_bytes(b"x")
    (tmp_path / "text.keras").write_bytes(b"not a zip")
    (tmp_path / "text.tflite").write_bytes(b"not a flatbuffer")
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("a.txt", "a")
    whole = tmp_path / "whole.keras"
    make_model().save(whole)
    (tmp_path / "cut.keras").write_bytes(whole.read_bytes()[:-500])
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "saved_model.pb").write_bytes(b"xx")
    foreign = tf.Module()
    foreign.f = tf.function(lambda x: x, input_signature=[tf.TensorSpec((1,))])
    tf.saved_model.save(foreign, str(tmp_path / "foreign"))
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [foreign.f.get_concrete_function()], foreign
    )
    (tmp_path / "foreign.tflite").write_bytes(converter.convert())
    for name, message in (
        ("model.h5", "not a model; known are"),
        ("text.keras", "not a Keras model"),
        ("other.keras", "cannot be read as a Keras model"),
        ("cut.keras", "not a Keras model, or not the whole"),
        ("text.tflite", "cannot be read as a LiteRT model"),
        ("foreign.tflite", "not a LiteRT model that isa_tf"),
        ("empty", "not a model; known are"),
        ("broken", "cannot be read as a SavedModel"),
        ("foreign", "not a SavedModel that isa_tf"),
    ):
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            isa_tf.load_predictor(tmp_path / name)
    with pytest.raises(ValueError, match="not a Keras model"):
        load_model(tmp_path / "text.keras")


def test_threads_wait_for_what_is_done_one_at_a_time():
    inside, seen = [], []

    @one_at_a_time
    def call(number):
        inside.append(number)
        time.sleep(0.01)
        seen.append(len(inside))
        inside.pop()
        return number

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(call, range(8))) == list(range(8))
    assert seen == [1] * 8
