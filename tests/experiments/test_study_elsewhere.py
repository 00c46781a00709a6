"""Studies on frozen maps, done elsewhere: images, first weights, scores, and the tables of it."""

import base64
import csv
import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from experiments.elsewhere import study
from isa_tf.data import augment
from isa_tf.metrics import MeanIoU

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "../shared/data/camvid"


@pytest.fixture
def device():
    jax = pytest.importorskip("jax")
    from experiments.elsewhere import device_study

    jax.config.update("jax_enable_x64", True)  # as the import does, the first time
    yield device_study
    jax.config.update("jax_enable_x64", False)


# === Images ===


@pytest.mark.parametrize("width", [40, 48, 61])
def test_images_are_cut_as_by_the_augmentation(device, width):
    random = np.random.default_rng(width)
    image = random.integers(0, 256, (32, width, 3), np.uint8)
    label = random.integers(0, 5, (32, width), np.uint8)
    for seed in range(5):
        place = augment.crop_place(label, (32, 48), (seed, 0))
        ours = augment.random_scale_crop(image, label, (32, 48), (seed, 0))
        theirs = device.cut(image, label, *place.numpy().tolist())
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


# === First weights ===


@pytest.mark.parametrize(
    "initializer",
    [
        keras.initializers.HeNormal(seed=0),
        keras.initializers.GlorotUniform(seed=0),
        keras.initializers.VarianceScaling(3.0, "fan_out", "untruncated_normal", seed=0),
        keras.initializers.RandomNormal(stddev=0.01, seed=0),
    ],
)
def test_first_weights_have_the_distribution_of_the_layer(device, initializer):
    shape = (3, 3, 40, 64)
    told = {"name": "kernel", "shape": shape, "dtype": "float32"}
    if isinstance(initializer, keras.initializers.RandomNormal):
        told["normal"] = initializer.stddev
    else:
        parts = ("scale", "mode", "distribution")
        told["variance_scaling"] = {part: getattr(initializer, part) for part in parts}
    ours = device.draw(told, 0, 0)
    theirs = keras.ops.convert_to_numpy(initializer(shape))
    assert ours.dtype == np.float32
    quantiles = np.linspace(0, 1, 11)[1:-1]
    spread = theirs.std()
    np.testing.assert_allclose(
        np.quantile(ours, quantiles), np.quantile(theirs, quantiles), atol=0.06 * spread
    )
    assert np.abs(ours).max() == pytest.approx(np.abs(theirs).max(), rel=0.25)
    assert (device.draw(told, 0, 3) == ours).all()
    assert (device.draw(told, 1, 0) != ours).any()
    assert (device.draw({**told, "name": "other"}, 0, 0) != ours).any()


def test_weights_that_are_told_are_taken(device):
    told = {"name": "x", "shape": [2], "dtype": "float32"}
    assert (device.draw({**told, "constant": 1.5}, 0, 0) == [1.5, 1.5]).all()
    values = [np.array(v, np.float32) for v in ([1, 2], [3, 4])]
    values = [base64.b64encode(v.tobytes()).decode() for v in values]
    assert (device.draw({**told, "values": values}, 7, 1) == [3, 4]).all()


# === Scores ===


def test_the_confusion_is_that_of_the_metric(device):
    random = np.random.default_rng(0)
    logits = random.normal(size=(3, 6, 8, 4)).astype(np.float32)
    labels = random.integers(0, 4, (3, 48, 60)).astype(np.uint8)
    labels[:, :5] = 255
    metric = MeanIoU(4)
    metric.update_state(labels, tf.image.resize(logits, (48, 60)))
    found = np.asarray(device.confusion_of(logits, labels, 4))
    ours = keras.ops.convert_to_numpy(metric.confusion)
    assert found.sum() == ours.sum() == (labels != 255).sum()
    assert np.abs(found - ours).sum() <= 4  # of two classes that are as good, to the last digit


# === Tables ===


@pytest.mark.skipif(not DATA.exists(), reason=f"there are no images in {DATA}")
def test_what_comes_back_is_tabled(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    random = np.random.default_rng(0)
    brought, confusions = tmp_path / "brought", {}
    brought.mkdir()
    with open(brought / "runs.jsonl", "w") as file:
        for variant in ("pointwise", "isa"):
            for seed in (0, 1):
                confusion = random.integers(1, 50, (11, 11)) + 100 * np.eye(11, dtype=int)
                confusions[variant, seed] = confusion
                told = {"study": "frozen", "what": "camvid-c3", "variant": variant, "seed": seed}
                told |= {"steps": 1500, "parameters": 7, "seconds": 2.5}
                file.write(json.dumps({**told, "confusion": confusion.tolist()}) + "\n")
    planned = [study.Planned.parse(f"frozen/camvid-c3{x}:pointwise+isa") for x in ("", "@2")]
    study.collect([brought], tmp_path / "tables", planned, [0, 1])
    with open(tmp_path / "tables/camvid-c3/frozen/results.csv", newline="") as file:
        rows = {row["frozen"]: row for row in csv.DictReader(file)}
    for (variant, seed), matrix in confusions.items():
        inside = np.diag(matrix)
        miou = np.mean(inside / (matrix.sum(0) + matrix.sum(1) - inside))
        assert float(rows[variant][f"miou_seed{seed}"]) == pytest.approx(miou)
    assert rows["isa"]["parameters"] == "7" and rows["isa"]["miou_difference"]
    # Of twice the length nothing has come back.
    longer = (tmp_path / "tables/camvid-c3-x2/frozen/results.md").read_text()
    assert "0 of 4 runs are done" in longer and "3000 steps" in longer


def test_studies_are_told_by_name():
    assert study.Planned.parse("levels/ccp") == ("levels", "ccp", 1, None)
    assert study.Planned.parse("frozen/camvid-c3@4:none+isa") == (
        *("frozen", "camvid-c3", 4),
        ["none", "isa"],
    )
    with pytest.raises(ValueError, match="STUDY/WHAT"):
        study.Planned.parse("frozen")


# === All of it ===


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason=f"there are no images in {DATA}")
def test_a_study_goes_there_and_back(device, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    planned = [study.Planned.parse("frozen/camvid-c3:none+isa")]
    study.pack(tmp_path / "packed", planned, [0])
    arguments = ["device_study.py", f"--folder={tmp_path / 'packed'}", f"--data={DATA}"]
    arguments += ["--images=3", "--steps=4", "--chunk=2", "--threads=1"]
    arguments += [f"--out={tmp_path / 'brought'}", "--keep", "camvid-c3-frozen-isa"]
    monkeypatch.setattr("sys.argv", arguments)
    device.main()
    runs = [json.loads(line) for line in open(tmp_path / "brought/runs.jsonl")]
    assert [run["variant"] for run in runs] == ["none", "isa"]
    assert all(np.sum(run["confusion"]) > 3 * 360 * 480 * 0.9 for run in runs)
    with np.load(tmp_path / "brought/losses.npz") as losses:
        assert all(loss.shape == (4,) and np.isfinite(loss).all() for loss in losses.values())
    with np.load(tmp_path / "brought/kept.npz") as kept:
        assert any(name.endswith("logits_classifier/kernel") for name in kept.files)
    monkeypatch.setattr("sys.argv", [*arguments, "--after", str(tmp_path / "brought/runs.jsonl")])
    device.main()
    assert len(open(tmp_path / "brought/runs.jsonl").readlines()) == 2  # nothing is done twice
