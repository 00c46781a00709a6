"""TensorFlow Serving's layout: versions, and requests that the model in it answers."""

import os
import sys

import numpy as np
import pytest
import tensorflow as tf
from exporting import assert_agree, expected, make_model, random_images

import isa_tf
from isa_tf import formats
from isa_tf.formats.tf_serving import versions

SIZES = [(40, 50), (33, 20)]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    pytest.importorskip("tensorflow_serving")
    path = tmp_path_factory.mktemp("served") / "street"
    model = make_model()
    return model, isa_tf.export(model, path, "tf_serving", image_size=SIZES)


def records_of(path):
    from tensorflow_serving.apis import prediction_log_pb2

    file = path / "assets.extra/tf_serving_warmup_requests"
    return [
        prediction_log_pb2.PredictionLog.FromString(record.numpy())
        for record in tf.data.TFRecordDataset(str(file))
    ]


def test_the_model_answers_the_requests_that_warm_it_up(served):
    """As the server does: of each record the signature that it names, with the inputs it holds."""
    model, path = served
    loaded = tf.saved_model.load(str(path / "1"))
    seen = []
    for record in records_of(path / "1"):
        assert record.WhichOneof("log_type") == "predict_log"
        request = record.predict_log.request
        assert request.model_spec.name == "street"
        signature = loaded.signatures[request.model_spec.signature_name]
        inputs = {name: tf.constant(tf.make_ndarray(t)) for name, t in request.inputs.items()}
        specs = signature.structured_input_signature[1]
        assert {*inputs} == {*specs}
        assert all(specs[name].is_compatible_with(value) for name, value in inputs.items())
        answer = signature(**inputs)
        seen.append((request.model_spec.signature_name, tuple(answer["class_id"].shape)))
        truth = expected(model, np.zeros((1, *answer["class_id"].shape[1:], 3), np.uint8))
        assert (answer["class_id"].numpy() == truth[0]).mean() > 0.99
    assert seen == [(name, (1, *s)) for s in SIZES for name in ("serving_default", "encoded")]


def test_each_export_is_the_next_version(served, tmp_path):
    model, first = served
    path = tmp_path / "street"
    first.rename(path)
    try:
        other, images = make_model(partition=4), random_images(1, 40, 44)
        (path / "batching_parameters.txt").write_text("max_batch_size { value: 2 }")
        (path / "7").mkdir()  # no model, so no version
        before = {p: p.read_bytes() for p in (path / "1").rglob("*") if p.is_file()}
        assert formats.find(path).export(other, path) == path
        assert versions(path) == [1, 2]
        assert sorted(os.listdir(path)) == ["1", "2", "7", "batching_parameters.txt"]
        assert (path / "batching_parameters.txt").read_text() == "max_batch_size { value: 2 }"
        assert {p: p.read_bytes() for p in (path / "1").rglob("*") if p.is_file()} == before
        assert_agree(isa_tf.load_predictor(path)(images), expected(other, images))
        assert_agree(isa_tf.load_predictor(path / "1")(images), expected(model, images))
        shape = records_of(path / "2")[0].predict_log.request.inputs["image"].tensor_shape
        assert [dim.size for dim in shape.dim] == [1, 256, 256, 3]
    finally:
        path.rename(first)


def test_what_fails_leaves_no_version(served, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("a photo")
    with pytest.raises(ValueError, match="photos: there is something else than versions"):
        isa_tf.export(served[0], tmp_path / "photos", "tf_serving")
    with pytest.raises(ValueError, match="image_size must be"):
        isa_tf.export(served[0], tmp_path / "new", "tf_serving", image_size=[])

    def fail(*args):
        raise OSError("the disk is full")

    monkeypatch.setattr(tf.io, "TFRecordWriter", fail)
    with pytest.raises(OSError, match="the disk is full"):
        isa_tf.export(served[0], tmp_path / "new", "tf_serving")
    assert os.listdir(tmp_path / "photos") == ["a.jpg"]
    assert not any((tmp_path / "new").iterdir())


def test_without_the_package_that_makes_requests(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    with pytest.raises(ImportError, match=r"pip install isa_tf\[tf_serving\]"):
        isa_tf.export(make_model(), tmp_path / "new", "tf_serving")
    assert not os.listdir(tmp_path)
