"""Whole segmenters trained elsewhere: what is packed is what would be trained on here."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from experiments import setup, tasks
from experiments.configs import default, synthetic
from experiments.elsewhere import replay, whole
from experiments.evaluate import evaluate
from experiments.tasks import segmentation
from isa_tf import formats, training
from isa_tf.data import augment

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path):
    """A data set of four pictures to train on and two to score."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for kind in ("images", "labels"):
            (tmp_path / "data" / split / kind).mkdir(parents=True)
        for i in range(count):
            label = rng.integers(0, 3, (6, 8), np.uint8).repeat(8, 0).repeat(8, 1)
            image = (80 * label[..., None] + rng.integers(0, 40, (48, 64, 3))).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / "data" / split / "images" / f"{i}.png")
            Image.fromarray(label).save(tmp_path / "data" / split / "labels" / f"{i}.png")
    return tmp_path / "data"


@pytest.fixture
def config(folder):
    config = default.get_config()
    config.data.data_dir = str(folder)
    config.data.num_classes = 3
    config.data.crop_size = (32, 48)
    config.data.batch_size = 2
    config.model.backbone = "tiny"
    config.model.head_filters = 8
    config.model.dropout = 0.0
    config.train.steps = 4
    config.train.ema = 0.9
    config.train.ema_batches = 2
    config.train.class_weights = (1.0, 2.0, 3.0)
    config.train.class_weight_steps = 2
    config.train.pictures = 0
    return config


@pytest.mark.some(2)
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"aspect_range": (0.8, 1.25), "cat_max_ratio": 0.7, "crop_size": (64, 96)},
        {"photometric": False, "short_side": 40, "seed": 3},
        {"photometric": False, "scale_range": None, "crop_size": (96, 96), "flip": False},
    ],
    ids=["as_camvid", "aspect", "resized", "as_it_is"],
)
def test_a_replayed_plan_is_the_pipeline(changed):
    config = synthetic.get_config()
    config.data.crop_size, config.data.scale_range = (72, 88), (0.5, 2.0)
    config.data.photometric = True
    config.data.options.num_examples = {"train": 5, "val": 2}
    config.data.batch_size = 4
    config.seed = changed.pop("seed", 0)
    with config.data.ignore_type():
        config.data.update(changed)
    task = tasks.of(config)
    dataset = task.make_dataset(config)
    plan = whole.plan(config, dataset, 8, 32)
    assert ("matrix" in plan) == config.data.photometric
    padding, crop_size = (augment.MEAN_COLOR, 255), config.data.crop_size
    batches = task.make_train_data(config, dataset, start_step=2).take(6)
    rows = [(x, y) for images, labels in batches for x, y in zip(images, labels, strict=True)]
    off = 0
    for i, (image, label) in enumerate(rows):
        read = dataset.read("train", int(plan["index"][i]))
        row = {name: plan[name][i] for name in replay.FIELDS if name in plan}
        crop, ids = replay.replay(np, *read, row, crop_size, padding)
        assert crop.dtype == ids.dtype == np.uint8
        np.testing.assert_array_equal(ids, label)
        difference = np.abs(crop.astype(int) - image.numpy())
        assert difference.max() <= 1  # where a product is rounded in another order
        off += (difference > 0).sum()
    assert off <= 1e-4 * sum(image.numpy().size for image, _ in rows)


def test_jax_replays_as_numpy():
    jax = pytest.importorskip("jax", reason="JAX is where it is trained, not where it is packed")
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (48, 64, 3), np.uint8), np.eye(48, 64, dtype=np.uint8)
    matrix, offset = rng.normal(size=(3, 3)).astype("float32"), np.float32(0.5)
    place = np.array([[-5, 9], [60, 40]], np.int32)
    row = {"place": place, "flip": np.bool_(True), "matrix": matrix, "offset": offset}
    given = (image, label, row, (32, 40), ((1, 2, 3), 255))
    ours, theirs = replay.replay(jax.numpy, *given), replay.replay(np, *given)
    np.testing.assert_allclose(np.asarray(ours[0], int), theirs[0], atol=1)
    np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("size", "strides", "rate"), [(3, 1, 1), (3, 2, 1), (5, 2, 1), (3, 1, 2)])
def test_shifted_is_a_depthwise_convolution(size, strides, rate, padding):
    rng = np.random.default_rng(0)
    for sides in ((12, 15), (9, 14)):
        x = tf.constant(rng.normal(size=(2, *sides, 4)).astype("float32"))
        kernel = tf.constant(rng.normal(size=(size, size, 4, 1)).astype("float32"))
        found = {}
        for form, convolve in whole.FORMS.items():
            with tf.GradientTape() as tape:
                tape.watch((x, kernel))
                y = convolve(x, kernel, strides, padding, "channels_last", rate)
                loss = tf.reduce_sum(tf.sin(y))
            found[form] = (y, *tape.gradient(loss, (x, kernel)))
        for ours, theirs in zip(found["shifted"], found["convolution"], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_what_is_not_packed_is_refused(config, tmp_path):
    config.data.brightness = 10
    with pytest.raises(ValueError, match="data.brightness"):
        whole.pack(config, tmp_path / "packed", "a")
    config.data.brightness = 0
    config.features.folder = "somewhere"
    with pytest.raises(ValueError, match="feature maps"):
        whole.pack(config, tmp_path / "packed", "a")
    assert not (tmp_path / "packed").exists()


@pytest.mark.slow
def test_packed_trained_and_collected(config, tmp_path):
    """All but the training between them, of which nothing stands here: it is of no steps."""
    packed, results = tmp_path / "packed", tmp_path / "results"
    about = whole.pack(config, packed, "a")
    assert whole.pack(config, packed, "b")["programs"] == about["programs"]
    assert about["phases"] == [(2, [1.0, 2.0, 3.0]), (4, [1.0, 1.0, 1.0])]
    with pytest.raises(ValueError, match="'a' already"):
        whole.pack(config, packed, "a")
    assert list(about["programs"]) == ["shifted", "convolution"]
    for program in about["programs"].values():
        inputs = json.loads((packed / f"{program}.json").read_text())["inputs"]
        assert [each["name"] for each in inputs[-3:]] == ["images", "class_weights", "labels"]

    # A training of no steps, of which the first weights are left.
    config.train.ema = 0.0
    plain = whole.pack(config, packed, "plain")
    initial = np.load(packed / plain["initial"])
    weights = {f"{i:05d}": initial[name] for i, name in enumerate(plain["weights"])}
    results.mkdir()
    np.savez(results / "plain.npz", **weights, losses=np.ones(4, np.float32), step=4)
    result = whole.collect(config, results, "plain", tmp_path / "work")
    kept = formats.load_model(tmp_path / "work" / training.BEST)
    for array, variable in zip(weights.values(), kept.variables, strict=True):
        np.testing.assert_array_equal(array, variable)
    assert training.best_score(tmp_path / "work") == {"step": 4, "miou": result["miou"]}
    assert evaluate(config, tmp_path / "work")["miou"] == result["miou"]

    # Averages get moving statistics of their own, as at the end of a training here.
    config.train.ema = 0.9
    whole.collect(config, results, "plain", tmp_path / "averaged")
    averaged = formats.load_model(tmp_path / "averaged" / training.BEST)
    for ours, theirs in zip(averaged.variables, kept.variables, strict=True):
        moving = ours.path.endswith(("moving_mean", "moving_variance"))
        assert np.array_equal(ours, theirs) != moving, ours.path

    weights["00000"] = weights["00000"][..., None]
    np.savez(results / "plain.npz", **weights, losses=np.ones(4, np.float32), step=4)
    with pytest.raises(ValueError, match="another model"):
        whole.collect(config, results, "plain", tmp_path / "other")


def test_the_folder_of_another_experiment_is_left_alone(config, tmp_path):
    config.train.ema = 0.0
    model = segmentation.make_model(config, segmentation.make_dataset(config))
    weights = {f"{i:05d}": v.numpy() for i, v in enumerate(model.variables)}
    np.savez(tmp_path / "plain.npz", **weights, losses=np.ones(4, np.float32), step=4)
    work = setup.prepare_workdir(tmp_path / "work", config)
    (work / training.BEST).write_text("theirs")
    config.train.learning_rate = 0.5
    with pytest.raises(ValueError, match="another experiment, which differs in train.learning"):
        whole.collect(config, tmp_path, "plain", work)
    assert (work / training.BEST).read_text() == "theirs"


def test_where_it_is_trained_tensorflow_is_not_imported():
    check = "import experiments.elsewhere.replay, sys; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0
