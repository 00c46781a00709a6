"""What was prepared is what was given, at every position, in any order."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from odd_pictures import NUM_CLASSES, images, labels, write

from isa_tf import data
from isa_tf.data.prepared import _Records


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A folder of pictures of every kind, and what is prepared of it."""
    root = tmp_path_factory.mktemp("prepared")
    for name, (contents, suffix, _) in images().items():
        write(root / "kinds", f"image {name}", contents, suffix, labels()["grey"][0])
    for name, (contents, _) in labels().items():
        write(root / "kinds", f"label {name}", images()["png"][0], "png", contents)
    names = [f"class_{i}" for i in range(NUM_CLASSES)]
    (root / "kinds" / "classes.json").write_text(json.dumps(names))
    data.prepare("folder", root / "kinds", root)
    return root / "kinds", root


def pairs(both, **kwargs):
    return data.create("folder", both[0], **kwargs), data.create("folder", both[1], **kwargs)


def assert_same(examples, others):
    for example, other in zip(examples, others, strict=True):
        for array, wanted in zip(example, other, strict=True):
            np.testing.assert_array_equal(array, wanted)


def test_it_is_the_same_dataset(both):
    folder, prepared = pairs(both)
    assert isinstance(prepared, data.PreparedDataset) and prepared.name == "folder"
    assert prepared.splits == ("train",) and prepared.size("train") == folder.size("train") > 40
    assert prepared.class_names == folder.class_names and prepared.palette == folder.palette
    stems = [path.rsplit("/", 1)[-1].rsplit(".", 1)[0] for path in folder.examples("train")]
    assert list(prepared.examples("train")) == stems
    order = np.random.default_rng(0).permutation(folder.size("train"))
    assert_same(
        (prepared.read("train", i) for i in order), (folder.read("train", i) for i in order)
    )


def test_pipelines_read_it_as_the_folder(both):
    folder, prepared = pairs(both)
    assert_same(*(data.eval_pipeline(d, "train", 2) for d in (prepared, folder)))


@pytest.mark.some(1)
@pytest.mark.parametrize("groups", [None, {"few": ["class_3", "class_7"], "one": ["class_0"]}])
def test_training_sees_the_same_batches(both, groups):
    found = [
        data.train_pipeline(d, "train", 3, (24, 40), cat_max_ratio=0.5, seed=4).take(20)
        for d in pairs(both, groups=groups)
    ]
    assert_same(*found)


def test_what_is_plain_is_not_decoded_by_python(both, monkeypatch):
    _, prepared = pairs(both)
    asked, read = set(), prepared.read
    monkeypatch.setattr(prepared, "read", lambda split, i: asked.add(int(i)) or read(split, i))
    list(prepared.load("train"))
    # Labels are plain whatever they were, for their ids are written anew.
    odd = {f"image {name}" for name, (_, _, plain) in images().items() if not plain}
    assert {prepared.examples("train")[i] for i in asked} == odd


def test_records_of_several_files(tmp_path):
    paths = [tmp_path / f"{i}.tfrecord" for i in range(3)]
    records = [bytes([i]) * (5 * i + 1) for i in range(9)]
    for path, some in zip(paths, (records[:2], records[2:8], records[8:]), strict=True):
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in some:
                writer.write(record)
    reader = _Records(paths, [2, 6, 1])
    for i in np.random.default_rng(0).integers(0, 9, 40):
        assert reader.read(i) == records[i]
    for i in (-1, 9):
        with pytest.raises(IndexError, match="there are 9"):
            reader.read(i)


@pytest.fixture
def copy(both, tmp_path):
    (folder,) = both[1].glob("isa_tf_folder/kinds/*.*.*")
    return shutil.copytree(folder, tmp_path / "copy" / folder.name)


def test_it_may_be_carried_elsewhere(copy, both):
    elsewhere = data.create("folder", copy)
    assert_same([elsewhere.read("train", 3)], [data.create("folder", both[1]).read("train", 3)])


@pytest.mark.parametrize("damage", ["cut", "longer", "gone", "header", "huge"])
def test_a_damaged_shard_is_named(copy, damage):
    (shard,) = copy.glob("*tfrecord*")
    contents = shard.read_bytes()
    if damage == "gone":
        shard.unlink()
    else:
        changed = {
            "cut": contents[:-100],
            "longer": contents + b"more",
            "header": b"\xff" + contents[1:],
            "huge": contents[:7] + b"\xff" + contents[8:],
        }
        shard.write_bytes(changed[damage])
    found = data.create("folder", copy)
    with pytest.raises(data.DataError, match=shard.name):
        found.read("train", 0)


def test_a_damaged_record_is_named_by_its_example(copy):
    (shard,) = copy.glob("*tfrecord*")
    contents = bytearray(shard.read_bytes())
    at = contents.index(b"\x89PNG")  # of the first label
    contents[at : at + 4] = b"junk"
    shard.write_bytes(contents)
    found = data.create("folder", copy)
    with pytest.raises(data.DataError, match="train/image bmp"):
        found.read("train", 0)
    with pytest.raises(tf.errors.OpError, match="train/image bmp"):
        next(iter(data.eval_pipeline(found, "train")))
    found = data.create("folder", copy, on_error="skip")
    assert sum(1 for _ in found.load("train")) == found.size("train") - 1


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("dataset_info.json", "{", "dataset_info.json: cannot be read"),
        ("dataset_info.json", None, "is not prepared here|no data|no classes are known|no images"),
        ("metadata.json", "{}", "not prepared by isa_tf"),
    ],
)
def test_a_folder_that_is_not_whole(copy, name, text, message):
    (copy / name).unlink()
    if text is not None:
        (copy / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        data.create("folder", copy)


@pytest.mark.parametrize("name", ["voc2012", "coco"])
def test_another_data_set_is_told(copy, name):
    told = f"what is prepared here is isa_tf_folder, not isa_tf_{name}"
    with pytest.raises(data.DataError, match=told):
        data.create(name, copy)


def test_another_version_is_told(both, tmp_path):
    (folder,) = both[1].glob("isa_tf_folder/kinds/*.*.*")
    shutil.copytree(folder, tmp_path / "isa_tf_folder" / "kinds" / "0.9.0")
    with pytest.raises(data.DataError, match="prepared as version 0.9.0, and this is for 1.0.0"):
        data.create("folder", tmp_path)


def test_one_of_several_folders_is_asked_for(both, tmp_path):
    (folder,) = both[1].glob("isa_tf_folder/kinds/*.*.*")
    for name in ("kinds", "others"):
        shutil.copytree(folder, tmp_path / "isa_tf_folder" / name / folder.name)
    with pytest.raises(data.DataError, match="there are several: .*kinds.*others"):
        data.create("folder", tmp_path)
    assert data.create("folder", tmp_path / "isa_tf_folder" / "kinds" / folder.name)


def test_pairs_that_change_places_follow_the_groups(copy):
    metadata = json.loads((copy / "metadata.json").read_text())
    metadata["flip_pairs"] = [[1, 2], [3, 4]]
    (copy / "metadata.json").write_text(json.dumps(metadata))
    assert data.create("folder", copy).flip_pairs == ((1, 2), (3, 4))
    groups = {"both": ["class_1", "class_2"], "left": ["class_4"], "right": ["class_3"]}
    assert data.create("folder", copy, groups=groups).flip_pairs == ((1, 2),)


def test_pairs_of_a_folder_do_so_too(both):
    groups = {"both": ["class_1", "class_2"], "left": ["class_4"], "right": ["class_3"]}
    pairs = ((1, 2), (3, 4), (5, 6))
    assert data.create("folder", both[0], flip_pairs=pairs).flip_pairs == pairs
    assert data.create("folder", both[0], flip_pairs=pairs, groups=groups).flip_pairs == ((1, 2),)


def test_tensorflow_datasets_loads_it(both):
    import tensorflow_datasets as tfds

    (folder,) = both[1].glob("isa_tf_folder/kinds/*.*.*")
    found = tfds.builder_from_directory(folder).as_dataset(split="train[-4:]")
    prepared = data.create("folder", both[1])
    for i, example in enumerate(found, prepared.size("train") - 4):
        assert example["name"].numpy().decode() == prepared.examples("train")[i]
        np.testing.assert_array_equal(example["label"][..., 0], prepared.read("train", i)[1])
