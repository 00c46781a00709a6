"""Training a head on kept feature maps, beside the same training on images."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from stopping import Stop, assert_same_state, state

from experiments import setup
from experiments.configs import synthetic
from experiments.evaluate import evaluate
from experiments.tasks import segmentation
from experiments.train import train
from isa_tf import formats, training

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tmp_path):
    config = synthetic.get_config()
    config.data.options.num_examples = {"train": 12, "val": 5}
    config.data.batch_size = 4
    config.data.scale_range = None
    config.data.flip = False
    config.data.photometric = False
    config.data.crop_size = (128, 128)  # the whole image
    config.model.head_filters = 8
    config.model.freeze_backbone = True
    config.model.backbone_weights = str(tmp_path / "backbone.weights.h5")
    config.train.steps = 4
    config.train.validate_every = 2
    config.train.warmup_steps = 0
    config.train.pictures = 1
    plain = config.copy_and_resolve_references()
    plain.model.backbone_weights = None
    model = segmentation.make_model(plain, segmentation.make_dataset(plain))
    model.backbone.save_weights(config.model.backbone_weights)
    return config


def on_features(config, folder):
    config = config.copy_and_resolve_references()
    config.features.folder = str(folder)
    return config


def weights(path):
    return formats.load_model(path).get_weights()


def test_it_is_the_training_on_images(config, tmp_path):
    config.train.ema = 0.5
    config.train.ema_batches = 2
    images = train(config, tmp_path / "images", verbose=0)
    maps = train(on_features(config, tmp_path / "maps"), tmp_path / "features", verbose=0)
    assert images["step"] == maps["step"]
    assert maps["miou"] == pytest.approx(images["miou"], abs=5e-3)
    ours, theirs = (
        training.read_log(tmp_path / run / training.LOG) for run in ("features", "images")
    )
    for row, other in zip(ours, theirs, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=2e-3)
        assert row["val_loss"] == pytest.approx(other["val_loss"], rel=1e-2)
    # What is kept is the whole model, and it has seen what it was trained on.
    for one, other in zip(
        weights(tmp_path / "features/best.keras"),
        weights(tmp_path / "images/best.keras"),
        strict=True,
    ):
        assert np.abs(one - other).max() <= 0.05 * max(np.abs(other).max(), 0.2)
    scores = evaluate(config, tmp_path / "features", pictures=1)
    assert scores["miou"] == pytest.approx(maps["miou"], abs=5e-3)
    # Of the backbone nothing was kept in the state, and nothing has changed.
    _, arrays = state(tmp_path / "features")
    whole = formats.load_model(tmp_path / "features/best.keras")
    count = len(whole.variables) - len(whole.backbone.variables)
    assert sum(name.startswith("model/") for name in arrays) == count
    backbone = segmentation.make_model(config, segmentation.make_dataset(config)).backbone
    for one, other in zip(whole.backbone.variables, backbone.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not whole.backbone.trainable
    assert {v.path for v in whole.trainable_variables}.isdisjoint(
        v.path for v in whole.backbone.variables
    )


@pytest.mark.slow
def test_it_resumes_exactly(config, tmp_path):
    config.model.dropout = 0.1
    config = on_features(config, tmp_path / "maps")
    config.train.steps = 2
    train(config, tmp_path / "straight", verbose=0)
    with pytest.raises(training.Interrupted):
        train(config, tmp_path / "parts", verbose=0, callbacks=[Stop(1)])
    train(config, tmp_path / "parts", verbose=0)
    assert_same_state(tmp_path / "straight", tmp_path / "parts")


def kept(config):
    dataset = segmentation.make_dataset(config)
    model = segmentation.make_model(config, dataset)
    segmentation.part_to_train(config, dataset, model)
    return dataset, model, dataset.kept_features


def test_the_chief_alone_keeps_maps(config, tmp_path, monkeypatch):
    """Workers that wrote into one folder would sweep away what the others were writing."""
    config = on_features(config, tmp_path / "maps")
    waited = []

    def any_of(strategy, flag):
        waited.append((tmp_path / "maps").exists())
        monkeypatch.undo()
        kept(config)  # as the chief does meanwhile
        return flag

    monkeypatch.setattr(training.workers, "is_chief", lambda strategy: False)
    monkeypatch.setattr(training.workers, "any_of", any_of)
    _, _, features = kept(config)
    assert waited == [False] and not features.missing("train")


def test_rounds_and_mirror_images(config, tmp_path):
    """What is kept is what the backbone makes of the augmented images, and of their mirrors."""
    config.data.scale_range = (0.5, 2.0)
    config.data.photometric = True
    config.data.crop_size = (48, 56)
    config.model.decoder_levels = ("c1",)
    config = on_features(config, tmp_path / "maps")
    config.features.rounds = 2
    config.features.mirror = True
    config.features.label_stride = 3
    config.seed = 5  # which says nothing about the maps
    dataset, model, features = kept(config)
    assert features.size("train") == 2 * 2 * 12 and features.size("val") == 5
    assert features.examples("train")[1:3] == (
        "train/000000 #0 mirrored",
        "train/000001 #0",
    )
    assert set(features.levels) == {model.backbone.head_level, "c1"}
    plain = config.copy_and_resolve_references()
    plain.features.folder, plain.seed, plain.data.batch_size = None, 0, 12
    stream = segmentation.make_train_data(plain, dataset, shuffle=False).take(2)
    extractor, differ = model.feature_extractor(), 0
    for r, (images, labels) in enumerate(stream):
        for mirrored in (0, 1):
            step = -1 if mirrored else 1
            maps = extractor(images[:, :, ::step], training=False)
            for i in range(12):
                found, label = features.read("train", 2 * (12 * r + i) + mirrored)
                np.testing.assert_array_equal(label, labels[i, :, ::step][1::3, 1::3])
                for level, x in found.items():
                    np.testing.assert_allclose(x, maps[level][i], rtol=2e-3, atol=2e-3)
                first, _ = features.read("train", 2 * i)
                differ += r == 1 and not np.array_equal(first["c1"], found["c1"])
    assert differ > 12  # the second round has drawn anew


def test_classes_change_places_in_the_mirror(config, tmp_path, monkeypatch):
    config = on_features(config, tmp_path / "maps")
    config.features.mirror = True
    make = segmentation.make_dataset

    def with_pairs(config):
        dataset = make(config)
        dataset.flip_pairs = ((0, 1), (2, 5))
        return dataset

    monkeypatch.setattr(segmentation, "make_dataset", with_pairs)
    _, _, features = kept(config)
    one, mirrored = (features.read("train", i)[1] for i in (0, 1))
    place = {0: 1, 1: 0, 2: 5, 5: 2}
    swapped = np.vectorize(lambda c: place.get(c, c))(one[:, ::-1])
    np.testing.assert_array_equal(mirrored, swapped)


def test_what_is_missing_is_computed_again(config, tmp_path, capsys):
    config = on_features(config, tmp_path / "maps")
    config.features.mirror = True
    _, _, features = kept(config)
    before = {p: p.read_bytes() for p in (tmp_path / "maps").rglob("*.npz")}
    lost = [features.path("train", i) for i in (3, 8, 9, 22)] + [features.path("val", 4)]
    for path in lost:
        path.unlink()
    left = {p: p.stat().st_mtime_ns for p in before if p.exists()}
    capsys.readouterr()
    kept(config)
    assert "feature maps of 5 images" in capsys.readouterr().out
    for path, content in before.items():
        assert (
            np.load(path)["label"].tobytes() == np.load(_copy(tmp_path, content))["label"].tobytes()
        )
        assert path.exists() and (path in lost or path.stat().st_mtime_ns == left[path])


def _copy(folder, content):
    path = folder / "copy.npz"
    path.write_bytes(content)
    return path


@pytest.mark.slow
def test_command_line(config, tmp_path):
    command = [sys.executable, "-m", "experiments.features", "--config=synthetic"]
    command += [f"--config.model.backbone_weights={config.model.backbone_weights}"]
    command += ["--config.model.freeze_backbone=True", "--config.data.options.num_examples.train=3"]
    command += ["--config.data.options.num_examples.val=2", "--config.data.crop_size=64"]

    def start(*more):
        return subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True)

    done = start(f"--config.features.folder={tmp_path / 'maps'}")
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'maps/train'}: 3 images" in done.stdout and "GiB of c2" in done.stdout
    assert len(list((tmp_path / "maps").rglob("*.npz"))) == 5
    # Weights that are drawn are those of the config's seed, so a second call finds its maps.
    del command[4]
    for _ in range(2):
        done = start(f"--config.features.folder={tmp_path / 'drawn'}")
        assert done.returncode == 0, done.stderr
    refused = start()
    assert refused.returncode == 1 and "config.features.folder says where" in refused.stderr


def test_images_are_scored_at_the_protocols_size(config, tmp_path):
    config.test.scales = (0.5,)
    _, model, features = kept(on_features(config, tmp_path / "maps"))
    maps, label = features.read("val", 0)
    assert label.shape == (128, 128)
    stride = model.backbone.feature_strides[model.backbone.head_level]
    assert maps[model.backbone.head_level].shape[:2] == (64 // stride, 64 // stride)


def test_maps_of_another_backbone_are_refused(config, tmp_path):
    on_maps = on_features(config, tmp_path / "maps")
    kept(on_maps)
    before = {p: p.read_bytes() for p in (tmp_path / "maps").rglob("*.*")}
    on_maps.model.backbone_weights, on_maps.seed = None, 1
    with pytest.raises(ValueError, match=r"differ in about.backbone.sha256 \(see"):
        train(on_maps, tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()
    assert {p: p.read_bytes() for p in (tmp_path / "maps").rglob("*.*")} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.freeze_backbone": False}, "needs model.freeze_backbone=True"),
        ({"test.flip": True}, "one view of an image"),
        ({"test.scales": (0.5, 1.0)}, "one view of an image"),
        ({"test.size_divisor": 8}, "one view of an image"),
        ({"features.mirror": True, "data.flip": True}, "needs data.flip=False"),
        ({"features.rounds": 0}, "at least 1, got 0 and 1"),
        ({"features.label_stride": 0}, "at least 1, got 1 and 0"),
    ],
)
def test_what_cannot_be_kept_is_refused(config, tmp_path, change, message):
    config = on_features(config, tmp_path / "maps")
    config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run", verbose=0)
    assert not (tmp_path / "maps").exists() and not (tmp_path / "run").exists()


def test_a_bad_batch_is_named_by_its_maps(config, tmp_path):
    config = on_features(config, tmp_path / "maps")
    config.features.mirror = True
    dataset, _, _ = kept(config)
    names = segmentation.batch_files(config, dataset, 0)
    assert len(names) == 4 and all(" #0" in name for name in names)


@pytest.mark.slow
def test_a_training_begins_with_a_kept_model(config, tmp_path):
    """From the frozen backbone to the whole network."""
    train(on_features(config, tmp_path / "maps"), tmp_path / "head", verbose=0)
    config.model.initial = str(tmp_path / "head/best.keras")
    config.model.freeze_backbone = False
    config.train.head_rate = 10.0
    dataset = segmentation.make_dataset(config)
    model = segmentation.make_model(config, dataset)
    for one, other in zip(model.get_weights(), weights(tmp_path / "head/best.keras"), strict=True):
        np.testing.assert_array_equal(one, other)
    assert model.backbone.trainable_variables
    before = [v.numpy() for v in model.backbone.variables]
    train(config, tmp_path / "whole", verbose=0)
    after = formats.load_model(tmp_path / "whole/best.keras").backbone.variables
    changed = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    assert all(changed)
    config.model.head_filters = 16
    with pytest.raises(ValueError, match="is no model of this kind"):
        segmentation.make_model(config, dataset)


def test_a_folder_of_maps_is_no_part_of_what_a_run_is_compared_by(config, tmp_path):
    """It may lie elsewhere when the run goes on."""
    config = on_features(config, tmp_path / "maps")
    with setup.make_run(tmp_path / "run", config):
        pass
    config.features.folder = str(tmp_path / "moved")
    with setup.make_run(tmp_path / "run", config):
        pass
