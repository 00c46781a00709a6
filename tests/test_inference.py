import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from isa_tf import inference, metrics
from isa_tf.data import SyntheticDataset, eval_pipeline
from isa_tf.export import export_litert, export_saved_model
from isa_tf.inference import Predictor, confusion_matrix, load_model, load_predictor
from isa_tf.models import Segmenter


def make_model(**kwargs):
    keras.utils.set_random_seed(1)
    return Segmenter("tiny", None, 7, head_filters=8, head_kernel_size=1, **kwargs)


def echo(images):
    """A stand-in for a model: the red channel is the class."""
    return images[..., 0], images[..., 1] / 255


# === Predictor ===


def test_of_a_model_that_is_being_trained():
    model = make_model()
    predictor = Predictor.from_model(model)
    images = np.random.default_rng(0).integers(0, 256, (1, 33, 21, 3), np.uint8)
    before = predictor(images)[0]
    model.set_weights([weight[..., ::-1] for weight in model.get_weights()])
    after = predictor(images)[0]
    assert (before != after).any()
    np.testing.assert_array_equal(after, np.argmax(model(images), axis=-1))


def test_score_is_the_probability_of_the_class():
    predictor = Predictor.from_model(make_model())
    class_id, score = predictor(np.full((2, 16, 16, 3), 200, np.uint8))
    assert class_id.dtype == np.uint8 and score.dtype == np.float32
    assert (score >= 1 / 7 - 1e-6).all() and (score <= 1).all()


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((1, 8, 8, 4), np.uint8),
        np.zeros((1, 8, 8, 3), np.float32),
    ],
)
def test_wrong_images(images):
    with pytest.raises(ValueError, match=r"uint8 \(B, H, W, 3\).*Received"):
        Predictor(echo)(images)


def test_another_size_is_resized_and_back():
    seen = []

    def run(images):
        seen.append(images.shape)
        return echo(images)

    images = np.zeros((2, 16, 24, 3), np.uint8)
    images[:, :, 12:, 0] = 6
    images[:, 8:, :, 1] = 255
    class_id, score = Predictor(run, image_size=(32, 48))(images)
    assert seen == [(2, 32, 48, 3)]
    assert class_id.shape == score.shape == (2, 16, 24)
    # Far from the edges the result is that of the image as it is.
    np.testing.assert_array_equal(class_id[:, :, :11], 0)
    np.testing.assert_array_equal(class_id[:, :, 13:], 6)
    np.testing.assert_array_equal(score[:, 9:], 1)
    class_id, _ = Predictor(run, image_size=(16, 24))(images)
    np.testing.assert_array_equal(class_id, images[..., 0])


def test_litert_of_another_size(tmp_path):
    pytest.importorskip("ai_edge_litert")
    model = make_model()
    path = export_litert(model, tmp_path / "model.tflite", (32, 48))
    predictor = load_predictor(path, num_threads=1)
    assert predictor.image_size == (32, 48)
    flat = np.full((1, 50, 70, 3), (200, 30, 90), np.uint8)
    class_id, score = predictor(flat)
    assert class_id.shape == score.shape == (1, 50, 70)
    inner = np.s_[:, 20:30, 30:40]
    truth = Predictor.from_model(model)(flat)
    np.testing.assert_array_equal(class_id[inner], truth[0][inner])


# === load_predictor ===


def test_nothing_there(tmp_path):
    for name in ("no.keras", "no.tflite", "no"):
        with pytest.raises(FileNotFoundError, match=name):
            load_predictor(tmp_path / name)


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
        ("foreign.tflite", "not a LiteRT model of isa_tf"),
        ("empty", "no SavedModel"),
        ("broken", "cannot be read as a SavedModel"),
        ("foreign", "not a SavedModel of isa_tf"),
    ):
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            load_predictor(tmp_path / name)
    with pytest.raises(ValueError, match="not a Keras model"):
        load_model(tmp_path / "text.keras")


def test_damaged_metadata(tmp_path):
    path = export_saved_model(make_model(), tmp_path / "saved")
    file = path / inference.ASSETS / inference.METADATA_FILE
    for text in ("{", "[]", "{}"):
        file.write_text(text)
        with pytest.raises(ValueError, match="saved: damaged isa_tf.json"):
            load_predictor(path)
    file.unlink()  # the model runs without it
    assert load_predictor(path).num_classes is None


def test_without_litert(tmp_path, monkeypatch):
    (tmp_path / "model.tflite").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(ImportError, match=r"pip install isa_tf\[litert\]"):
        load_predictor(tmp_path / "model.tflite")


# === confusion_matrix ===


def test_counts():
    images = np.zeros((1, 2, 3, 3), np.uint8)
    images[0, :, :, 0] = [[0, 1, 2], [2, 2, 1]]
    labels = np.array([[[0, 1, 1], [2, 255, 0]]], np.uint8)
    matrix = confusion_matrix(echo, [(images, labels), {"image": images, "label": labels}], 3)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[2, 2, 0], [0, 2, 2], [0, 0, 2]]
    # The label of ignored pixels may be any.
    signed = np.where(labels == 255, -1, labels.astype(int))
    matrix = confusion_matrix(echo, [(images, signed)], 3, ignore_label=-1)
    assert matrix.sum() == 5


def test_of_a_pipeline_and_the_metric_agree():
    data = SyntheticDataset((80, 128), {"val": 3}, min_distance=16)
    model = make_model()
    batches = eval_pipeline(data, "val", batch_size=2)
    matrix = confusion_matrix(Predictor.from_model(model), batches, 7)
    metric = metrics.MeanIoU(7)
    for image, label in batches:
        metric.update_state(label, model(tf.cast(image, tf.float32)))
    assert matrix.sum() == 3 * 80 * 128
    np.testing.assert_array_equal(matrix, metric.confusion)
    assert metrics.scores(matrix)["miou"] == pytest.approx(float(metric.result()), abs=1e-6)


def test_out_of_range():
    images, labels = np.zeros((1, 2, 2, 3), np.uint8), np.zeros((1, 2, 2), np.int32)
    sound = (images, labels)
    for value in (3, -1, 254):
        wrong = np.array([[[0, value], [255, value]]])
        with pytest.raises(ValueError, match=f"batch 1: label {value} in 2 pixels"):
            confusion_matrix(echo, [sound, (images, wrong)], 3)
    with pytest.raises(ValueError, match="batch 0: prediction 9 in 4 pixels"):
        confusion_matrix(echo, [(images + np.uint8(9), labels)], 3)
    with pytest.raises(ValueError, match=r"batch 0: labels \(1, 2, 1\) for images"):
        confusion_matrix(echo, [(images, labels[:, :, :1])], 3)
