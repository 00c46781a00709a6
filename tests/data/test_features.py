"""Kept feature maps: what was written is read, in the order that seed and place tell."""

import json

import numpy as np
import pytest
import tensorflow as tf

from isa_tf import data
from isa_tf.data import DataError

LEVELS = {"c3": 3, "c4": 5}


def example(i, size=(4, 6)):
    rng = np.random.default_rng(i)
    maps = {level: rng.normal(size=(*size, c)).astype("float32") for level, c in LEVELS.items()}
    return maps, rng.integers(0, 3, (size[0] * 8, size[1] * 8)).astype("uint8")


@pytest.fixture
def dataset():
    return data.SyntheticDataset(num_examples={"train": 4, "val": 2})


def kept(folder, dataset, count=5, val_sizes=((4, 6), (3, 5), (4, 6))):
    examples = {"train": [f"t{i}" for i in range(count)], "val": [f"v{i}" for i in range(3)]}
    features = data.create_features(folder, dataset, examples, LEVELS, {"seed": 0})
    for i in range(count):
        data.write_features(features, "train", i, *example(i))
    for i, size in enumerate(val_sizes):
        data.write_features(features, "val", i, *example(100 + i, size))
    return features


def test_what_was_written_is_read(tmp_path, dataset):
    kept(tmp_path / "maps", dataset)
    features = data.FeatureDataset(tmp_path / "maps")
    assert features.splits == ("train", "val") and features.size("train") == 5
    assert features.levels == LEVELS and features.about == {"seed": 0}
    assert features.class_names == dataset.class_names and features.palette == dataset.palette
    maps, label = features.read("train", 3)
    wanted, wanted_label = example(3)
    assert list(maps) == list(LEVELS)
    for level, x in maps.items():
        np.testing.assert_array_equal(x, wanted[level].astype(np.float16))
    np.testing.assert_array_equal(label, wanted_label)
    with pytest.raises(ValueError, match="no split 'test'"):
        features.size("test")


def test_what_is_missing_is_told_and_asked_for(tmp_path, dataset):
    features = kept(tmp_path / "maps", dataset)
    assert features.missing("train") == []
    features.path("train", 2).unlink()
    again = data.create_features(
        tmp_path / "maps",
        dataset,
        {split: features.examples(split) for split in features.splits},
        LEVELS,
        {"seed": 0},
    )
    assert again.missing("train") == [2] and again.missing("val") == []
    with pytest.raises(DataError, match="000002.npz: not there"):
        again.read("train", 2)


def snapshot(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"levels": {"c3": 3}}, "levels.c4"),
        ({"about": {"seed": 1}}, "about.seed"),
        ({"examples": {"train": ["t0"], "val": []}}, "examples.train, examples.val"),
    ],
)
def test_a_folder_of_other_maps_is_refused(tmp_path, dataset, change, named):
    features = kept(tmp_path / "maps", dataset)
    before = snapshot(tmp_path)
    given = {
        "examples": {split: features.examples(split) for split in features.splits},
        "levels": LEVELS,
        "about": {"seed": 0},
        **change,
    }
    with pytest.raises(ValueError, match=f"differ in {named} "):
        data.create_features(tmp_path / "maps", dataset, **given)
    assert snapshot(tmp_path) == before


def test_a_folder_with_other_things_is_refused(tmp_path, dataset):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty and holds no features.json"):
        data.create_features(tmp_path, dataset, {"val": ["a"]}, LEVELS)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(DataError, match="no feature maps were kept there"):
        data.FeatureDataset(tmp_path)


def test_one_that_was_killed_as_it_began_is_gone_on_with(tmp_path, dataset):
    (tmp_path / ".new-0f3a-features.json").write_text('{"versi')
    features = data.create_features(tmp_path, dataset, {"val": ["a"]}, LEVELS)
    assert list(features.examples("val")) == ["a"]


@pytest.mark.parametrize("content", ["", "[]", '{"version": 2}', '{"version": 1, "of": 3}'])
def test_a_damaged_description_is_named(tmp_path, dataset, content):
    kept(tmp_path, dataset)
    (tmp_path / "features.json").write_text(content)
    with pytest.raises(DataError, match="features.json: tells of no feature maps"):
        data.FeatureDataset(tmp_path)


def test_damaged_maps_are_named(tmp_path, dataset):
    features = kept(tmp_path, dataset)
    path = features.path("train", 1)
    whole = path.read_bytes()
    for damaged in (b"", whole[:300], whole[:-40], whole[:200] + b"xx" + whole[202:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="000001.npz"):
            features.read("train", 1)
    maps, label = example(0)
    halves = {level: x.astype(np.float16) for level, x in maps.items()}
    for wrong in (
        {"label": label, "c3": halves["c3"]},
        {"label": label, **halves, "c4": halves["c3"]},
        {"label": label, **halves, "c4": maps["c4"]},
        {"label": label.astype(np.int64), **halves},
    ):
        np.savez(path, **wrong)
        with pytest.raises(DataError, match="000001.npz"):
            features.read("train", 1)


def test_what_float16_does_not_hold_is_refused(tmp_path, dataset):
    features = kept(tmp_path, dataset)
    before = snapshot(tmp_path)
    for value in (1e5, np.nan):
        maps, label = example(0)
        maps["c4"][0, 0, 0] = value
        with pytest.raises(ValueError, match="000000.npz: map 'c4' has values"):
            data.write_features(features, "train", 0, maps, label)
    assert snapshot(tmp_path) == before


def labels_of(batches):
    return np.concatenate([label for _, label in batches])


def test_batches_are_those_of_their_places(tmp_path, dataset):
    features = kept(tmp_path, dataset)
    batches = list(data.feature_pipeline(features, "train", 2, seed=3).take(6).as_numpy_iterator())
    inputs, label = batches[0]
    assert {name: x.shape for name, x in inputs.items()} == {
        "c3": (2, 4, 6, 3),
        "c4": (2, 4, 6, 5),
        "image": (2, 32, 48, 3),
    }
    assert inputs["c4"].dtype == np.float32 and label.dtype == np.uint8
    names = [data.batch_examples(features, "train", 2, step, seed=3) for step in range(6)]
    for (inputs, label), row in zip(batches, names, strict=True):
        for maps, one, name in zip(inputs["c4"], label, row, strict=True):
            wanted, wanted_label = example(int(name[1:]))
            np.testing.assert_array_equal(maps, wanted["c4"].astype(np.float16).astype(np.float32))
            np.testing.assert_array_equal(one, wanted_label)
    assert sorted(sum(names, [])[:5]) == [f"t{i}" for i in range(5)]  # an epoch
    later = data.feature_pipeline(features, "train", 2, seed=3, start_step=4, cache=True)
    np.testing.assert_array_equal(labels_of(later.take(2)), labels_of(batches[4:]))


def test_two_workers_read_their_rows(tmp_path, dataset):
    features = kept(tmp_path, dataset)
    whole = labels_of(data.feature_pipeline(features, "train", 4).take(3))
    parts = []
    for worker in range(2):
        context = tf.distribute.InputContext(2, worker, 2)
        part = data.feature_pipeline(features, "train", 4, input_context=context).take(3)
        parts.append([label.numpy() for _, label in part])
    rows = [np.concatenate(rows) for rows in zip(*parts, strict=True)]
    np.testing.assert_array_equal(np.concatenate(rows), whole)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_every_example_is_scored_once(tmp_path, dataset, batch_size):
    features = kept(tmp_path, dataset)
    batches = list(data.feature_eval_pipeline(features, "val", batch_size))
    assert len(batches) == (3 if batch_size == 1 else 2)
    found = sorted(int(x.numpy().sum()) for _, label in batches for x in label)
    assert found == sorted(int(features.read("val", i)[1].sum()) for i in range(3))
    for inputs, label in batches:
        assert inputs["image"].shape[:3] == label.shape and not np.any(inputs["image"])
        assert inputs["c3"].shape[1] * 8 == label.shape[1]


def test_a_bad_example_can_be_left_out(tmp_path, dataset):
    features = kept(tmp_path, dataset)
    features.path("val", 1).write_bytes(b"")
    with pytest.raises(tf.errors.OpError, match="000001.npz"):
        list(data.feature_eval_pipeline(features, "val"))
    features = data.FeatureDataset(tmp_path, on_error="skip")
    assert len(list(data.feature_eval_pipeline(features, "val"))) == 2


def test_bad_arguments_are_refused(tmp_path, dataset):
    features = kept(tmp_path, dataset)
    for pipeline in (data.feature_pipeline, data.feature_eval_pipeline):
        with pytest.raises(ValueError, match="batch_size"):
            pipeline(features, "train", 0)
        with pytest.raises(ValueError, match="no split"):
            pipeline(features, "test", 1)
    assert json.loads((tmp_path / "features.json").read_text())["version"] == 1
