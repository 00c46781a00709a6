"""Test protocols of a config: from the command line into the scores."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from ml_collections import config_flags
from PIL import Image

from experiments import setup
from experiments.configs import synthetic
from experiments.evaluate import evaluate, write_predictions
from experiments.tasks import segmentation
from isa_tf import load_predictor, training
from isa_tf.inference import Protocol

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config():
    config = synthetic.get_config()
    config.data.options.num_examples = {"train": 2, "val": 2}
    config.data.options.image_size = (80, 128)
    config.data.options.min_distance = 16
    config.data.cache = False
    config.model.head_filters = 8
    return config


def parsed(*arguments):
    """The config of a command line."""
    values = flags.FlagValues()
    argv = ["evaluate", f"--config={ROOT / 'experiments/configs/synthetic.py'}", *arguments]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    return values.config


@pytest.mark.parametrize(
    ("arguments", "protocol"),
    [
        ([], Protocol()),
        (["flip=True", "scales=0.5,1.0"], Protocol(scales=(0.5, 1.0), flip=True)),
        (["scales=0.5"], Protocol(scales=(0.5,))),
        (["scales=(0.5,1)", "fit_size=2048,512"], Protocol(scales=(0.5, 1), fit_size=(2048, 512))),
        (
            ["mode=slide", "crop_size=769", "stride=513,400"],
            Protocol("slide", (769, 769), (513, 400)),
        ),
        (["flip_pairs=(14,15),(16,17)"], Protocol(flip_pairs=((14, 15), (16, 17)))),
        (["flip_pairs=((14,15),)"], Protocol(flip_pairs=((14, 15),))),
        (["crop_size=None", "stride=None"], Protocol()),
    ],
)
def test_protocol_of_a_command_line(arguments, protocol):
    config = parsed(*(f"--config.test.{argument}" for argument in arguments))
    assert segmentation.make_protocol(config) == protocol


def test_what_changes_places_in_a_mirror_is_the_dataset_s_own(config):
    dataset = segmentation.make_dataset(config)
    dataset.flip_pairs = ((1, 2),)
    assert segmentation.make_protocol(config, dataset).flip_pairs == ()
    config.test.flip = True
    assert segmentation.make_protocol(config, dataset).flip_pairs == ((1, 2),)
    config.test.flip_pairs = ((3, 4),)
    assert segmentation.make_protocol(config, dataset).flip_pairs == ((3, 4),)
    config.test.flip_pairs = ()
    assert segmentation.make_protocol(config, segmentation.make_dataset(config)).flip_pairs == ()


def test_predictions_for_a_server(config, tmp_path):
    dataset = segmentation.make_dataset(config)
    model = segmentation.make_model(config, dataset)
    model.save(tmp_path / training.BEST)
    folder = tmp_path / "results"
    paths = write_predictions(config, tmp_path, folder, split="val")
    assert [path.name for path in paths] == ["000000.png", "000001.png"]
    predictor = load_predictor(tmp_path / training.BEST)
    for index, path in enumerate(paths):
        expected = predictor(dataset.read("val", index)[0])[0]
        np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)
    # Another model is told from this one by its bytes, and its results are not mixed in.
    model.weights[-1].assign_add(tf.ones_like(model.weights[-1]))
    model.save(tmp_path / training.BEST)
    with pytest.raises(FileExistsError, match="of another sha256"):
        write_predictions(config, tmp_path, folder, split="val")


def test_wrong_flags():
    with pytest.raises(ValueError, match="skips pixels"):
        segmentation.make_protocol(
            parsed(*(f"--config.test.{a}" for a in ("mode=slide", "crop_size=8", "stride=9")))
        )
    with pytest.raises((AttributeError, KeyError), match="crop_size"):
        parsed("--config.test.crop_sise=8")


def test_scores_are_those_of_the_protocol(config, tmp_path):
    dataset = segmentation.make_dataset(config)
    segmentation.make_model(config, dataset).save(tmp_path / training.BEST)
    config.test.mode, config.test.crop_size, config.test.stride = "slide", (48, 64), (32, 40)
    config.test.scales, config.test.flip = (0.75, 1.0), True
    result = evaluate(config, tmp_path, pictures=1)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written == result
    protocol = Protocol("slide", (48, 64), (32, 40), (0.75, 1.0), flip=True)
    assert Protocol.from_dict(written["protocol"]) == protocol
    predictor = load_predictor(tmp_path / training.BEST, protocol=protocol)
    whole = load_predictor(tmp_path / training.BEST)
    matrix, differing = np.zeros((dataset.num_classes,) * 2, int), 0
    for index in range(2):
        image, label = dataset.read("val", index)
        predicted = predictor(image[None])[0]
        np.add.at(matrix, (label.ravel(), predicted.ravel()), 1)
        differing += (predicted != whole(image[None])[0]).sum()
    np.testing.assert_array_equal(result["confusion_matrix"], matrix)
    assert differing


def test_the_protocol_may_change_in_a_workdir(config, tmp_path):
    setup.prepare_workdir(tmp_path, config)
    config.test.flip = True
    setup.prepare_workdir(tmp_path, config)
    # A workdir from before there were protocols.
    kept = json.loads((tmp_path / training.CONFIG).read_text())
    del kept["test"]
    (tmp_path / training.CONFIG).write_text(json.dumps(kept))
    setup.prepare_workdir(tmp_path, config)
    config.train.learning_rate = 7.0
    with pytest.raises(ValueError, match="differs in train.learning_rate "):
        setup.prepare_workdir(tmp_path, config)


def test_a_report_beside_the_scores(config, tmp_path):
    config.data.options.num_examples = {"train": 2, "val": 5}
    config.data.val_batch_size = 2
    dataset = segmentation.make_dataset(config)
    segmentation.make_model(config, dataset).save(tmp_path / training.BEST)
    result = evaluate(config, tmp_path, pictures=1, report_images=3)
    names = {"metrics.json", "predictions.png", training.BEST}
    assert {path.name for path in tmp_path.iterdir()} == names | {"report.html", "images.csv"}
    assert json.loads((tmp_path / "metrics.json").read_text()) == result
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"<h1>synthetic val: mIoU {result['miou']:.4f}</h1>" in html
    for score in (*result["iou"].values(), result["mean_accuracy"], result["context_miou"]):
        assert score is None or f">{score:.4f}<" in html
    assert html.count("<article") == 3 and 'id="training"' not in html
    with open(tmp_path / "images.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    # Image by image, by another way.
    predictor = load_predictor(tmp_path / training.BEST)
    scores = []
    for index, row in enumerate(rows):
        image, label = dataset.read("val", index)
        found = predictor(image[None])[0][0]
        present = np.union1d(label, found)
        hits = [((label == i) & (found == i)).sum() for i in present]
        unions = [((label == i) | (found == i)).sum() for i in present]
        scores.append(np.mean(np.divide(hits, unions)))
        assert row["image"] == f"{index:06d}" and int(row["pixels"]) == label.size
        assert float(row["miou"]) == pytest.approx(scores[-1])
        assert float(row["pixel_accuracy"]) == pytest.approx((label == found).mean())
    assert len(rows) == 5
    order = np.argsort(scores)
    shown = re.findall(r'<article class="card" id="image-(\d)"', html)
    assert shown[:2] == [str(order[0]), str(order[-1])]

    # The same scores without it.
    plain = evaluate(config, tmp_path, pictures=1)
    assert plain | {"seconds": 0} == result | {"seconds": 0}


def test_a_report_tells_of_the_training(config, tmp_path):
    dataset = segmentation.make_dataset(config)
    segmentation.make_model(config, dataset).save(tmp_path / training.BEST)
    head = "step,loss,val_loss,val_miou,val_iou/sea"
    (tmp_path / training.LOG).write_text(f"{head}\n5,2.0,2.5,0.2,0.4\n9,1.0,1.5,0.3,0.5\n")
    (tmp_path / training.BEST_SCORE).write_text('{"step": 9, "miou": 0.3}')
    evaluate(config, tmp_path, pictures=1, report_images=0)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'id="training"' in html and "last values 0.400, 0.500" in html
    assert "<dt>seed</dt><dd>0</dd>" in html and "<dt>training step</dt><dd>9</dd>" in html
    assert "<article" not in html
    # Of a model from elsewhere nobody knows the seed.
    other = tmp_path / "other.keras"
    (tmp_path / training.BEST).rename(other)
    evaluate(config, tmp_path, model=other, pictures=1, report_images=0)
    assert "<dt>seed</dt>" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_what_a_report_cannot_be_made_of_is_told_first(config, tmp_path):
    dataset = segmentation.make_dataset(config)
    segmentation.make_model(config, dataset).save(tmp_path / training.BEST)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="report_images must be at least 0, got -1"):
        evaluate(config, tmp_path, report_images=-1)
    (tmp_path / training.LOG).write_text("step,loss\n5,many\n")
    with pytest.raises(ValueError, match="log.csv: line 2 is no row of a log"):
        evaluate(config, tmp_path, report_images=2)
    assert {path.name for path in tmp_path.iterdir()} == before | {training.LOG}
