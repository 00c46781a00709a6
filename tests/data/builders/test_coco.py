"""COCO's instances, from archives as its publisher packs them."""

import os
import pickle
import shutil
import tempfile
from pathlib import Path

import coco_folders
import miniatures
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from isa_tf import data
from isa_tf.data.builders.archives import Files
from isa_tf.data.instance_pipeline import instance_train_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:pyc")

ARCHIVES = os.environ.get("ISA_TF_ARCHIVES")


@pytest.fixture
def archives(tmp_path):
    coco_folders.write_archives(tmp_path / "archives")
    return tmp_path / "archives"


def prepare(folder, tmp_path):
    return data.prepare("coco", folder, tmp_path / "data", check_sizes=False, num_threads=2)


@pytest.fixture
def both(archives, tmp_path):
    """The folder and what is prepared of the archives."""
    coco_folders.write_folder(tmp_path / "folder", layout="official")
    prepare(archives, tmp_path)
    return data.create("coco", tmp_path / "folder"), data.create("coco", tmp_path / "data")


def assert_same_annotations(one, other):
    for name, values in one._asdict().items():
        if name == "masks":
            assert values == other.masks
        else:
            np.testing.assert_array_equal(values, getattr(other, name))
            assert values.dtype == getattr(other, name).dtype


def test_it_reads_like_the_folder(both):
    folder, prepared = both
    assert isinstance(folder, data.CocoDataset) and isinstance(prepared, data.PreparedInstances)
    assert prepared.name == "coco" and prepared.splits == folder.splits == ("train", "val")
    for name in ("class_names", "category_ids", "palette"):
        assert getattr(prepared, name) == getattr(folder, name)
    for split in folder.splits:
        assert prepared.size(split) == folder.size(split)
        for i, path in enumerate(folder.examples(split)):
            assert prepared.examples(split)[i] == Path(path).stem
            assert prepared.image_id(split, i) == folder.image_id(split, i)
            assert prepared.size_of(split, i) == folder.size_of(split, i)
            (image, told), (pixels, found) = folder.read(split, i), prepared.read(split, i)
            np.testing.assert_array_equal(image, pixels)
            assert_same_annotations(told, found)
            assert_same_annotations(told, prepared.annotations(split, i))
        np.testing.assert_array_equal(folder.sizes(split), prepared.sizes(split))


def test_the_truth_has_the_numbers_as_they_were(both):
    """In double precision, which records have not."""
    folder, prepared = both
    for split, (told, _) in coco_folders.made().items():
        given = {entry["id"]: entry for entry in told["annotations"]}
        for truth in (folder.ground_truth(split), prepared.ground_truth(split)):
            assert len(truth["annotations"]) == len(given)
            for entry in truth["annotations"]:
                for key in ("bbox", "area", "iscrowd", "category_id", "image_id"):
                    assert entry[key] == given[entry["id"]][key]


def test_batches_are_the_folders(both):
    batches = [
        list(instance_train_pipeline(each, "train", 2, short_side=40, mask_size=14).take(3))
        for each in both
    ]
    for (x, y), (other_x, other_y) in zip(*batches, strict=True):
        for name in x:
            np.testing.assert_array_equal(x[name], other_x[name])
        for name in y:
            np.testing.assert_array_equal(y[name], other_y[name])


def test_what_is_unpacked_is_read_as_well(tmp_path):
    coco_folders.write_folder(tmp_path / "official", layout="official")
    prepare(tmp_path / "official", tmp_path)
    assert data.create("coco", tmp_path / "data").image_id("val", 1) == 20


def test_images_without_instances_are_dropped(both):
    for each in both:
        assert [each.image_id("train", i) for i in range(3)] == [7, 3, 5]
    prepared = data.PreparedInstances(both[1].folder, drop_empty=["train"])
    assert prepared.size("val") == 2
    assert [prepared.image_id("train", i) for i in range(prepared.size("train"))] == [7, 5]
    image, found = prepared.read("train", 1)
    assert found.ids.tolist() == [14, 15]
    pixels = prepared.image_reader("train").read(tf.constant(1, tf.int64))
    np.testing.assert_array_equal(image, pixels)
    with pytest.raises(ValueError, match="no split 'test'"):
        data.PreparedInstances(both[1].folder, drop_empty=["test"])


def test_tensorflow_datasets_reads_the_objects(both):
    _, prepared = both
    examples = list(tfds.load("isa_tf_coco", split="train", data_dir=prepared.folder.parents[1]))
    first = examples[0]
    assert [int(example["image_id"]) for example in examples] == [7, 3, 5]
    assert first["objects"]["category"].numpy().tolist() == [0, 79, 2, 0]
    assert first["objects"]["iscrowd"].numpy().tolist() == [False, False, True, False]
    np.testing.assert_array_equal(first["objects"]["bbox"][1], [24, 18, 8, 6])
    assert len(examples[1]["objects"]["id"]) == 0


def test_examples_go_to_other_processes(archives, tmp_path):
    files = Files(archives, tmp_path)
    builder = data.builder("coco")(data_dir=tmp_path)
    example = builder.examples(files)["train"][0]
    make = pickle.loads(pickle.dumps(builder.maker(files)))
    assert make(pickle.loads(pickle.dumps(example))).keys() == builder.features().keys()


# === What is amiss ===


def refused(match, tmp_path, error=data.DataError):
    with pytest.raises(error, match=match):
        prepare(tmp_path / "archives", tmp_path)
    assert not list((tmp_path / "data").rglob("*.tfrecord*"))


@pytest.mark.parametrize("name", ["train2017.zip", "annotations_trainval2017.zip"])
def test_a_missing_archive_is_named(name, archives, tmp_path):
    (archives / name).unlink()
    refused(f"neither {name} .* be had from http://images.cocodataset.org", tmp_path)


def test_a_part_of_it_is_told(archives, tmp_path):
    with pytest.raises(data.DataError, match="train has 3 images, not 118287; .* not 5000"):
        data.prepare("coco", archives, tmp_path / "data")


def test_a_missing_image_is_named(tmp_path):
    found = coco_folders.made()
    del found["train"][1]["000000000003.jpg"]
    coco_folders.write_archives(tmp_path / "archives", found)
    refused("instances_train2017.json: there is no 000000000003.jpg of image 3", tmp_path)


def test_an_image_that_is_not_listed_is_named(tmp_path):
    found = coco_folders.made()
    found["val"][1]["000000000099.jpg"] = miniatures.jpeg(9)
    coco_folders.write_archives(tmp_path / "archives", found)
    refused("000000000099.jpg: .*does not list it, as 1 of 3 images", tmp_path)


def test_other_categories_are_refused(tmp_path):
    found = coco_folders.made()
    found["train"][0]["categories"][3]["id"] = 12
    coco_folders.write_archives(tmp_path / "archives", found)
    refused("categories are not COCO's 80", tmp_path)


def test_an_image_of_another_size_is_named(tmp_path):
    found = coco_folders.made()
    found["val"][0]["images"][0]["height"] = miniatures.HEIGHT + 1
    coco_folders.write_archives(tmp_path / "archives", found)
    refused("000000000030.jpg: image 30: it is 32x24 and listed as 32x25", tmp_path)


def test_faulty_annotations_are_left_out_and_told(tmp_path):
    found = coco_folders.made()
    found["train"][0]["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
    coco_folders.write_archives(tmp_path / "archives", found)
    folder = prepare(tmp_path / "archives", tmp_path)
    prepared = data.create("coco", tmp_path / "data")
    assert prepared.annotations("train", 0).ids.tolist() == [12, 13, 16]
    (told,) = tfds.builder_from_directory(folder).info.metadata["faults"]
    assert "image 7, annotation 11: it has a polygon of fewer than three points" in told


def test_what_was_prepared_for_another_task(archives, tmp_path):
    prepare(archives, tmp_path)
    with pytest.raises(data.DataError, match="tells of no segmentation"):
        data.PreparedDataset(tmp_path / "data/isa_tf_coco/1.0.0")


def test_official_sizes_of_the_real_archives(tmp_path):
    if ARCHIVES is None or not (Path(ARCHIVES) / "coco").is_dir():
        pytest.skip("ISA_TF_ARCHIVES names no folder with a folder coco of the real archives")
    found = data.builder("coco")(data_dir=tmp_path).examples(Files(f"{ARCHIVES}/coco", tmp_path))
    assert {split: len(some) for split, some in found.items()} == {"train": 118287, "val": 5000}


# === tensorflow-datasets' own battery ===


class TestCoco(tfds.testing.DatasetBuilderTestCase):
    """Prepares the miniature as `tfds.load` would, and reads it by `as_dataset`."""

    @classmethod
    def setUpClass(cls):
        cls.EXAMPLE_DIR = tempfile.mkdtemp()
        cls.addClassCleanup(shutil.rmtree, cls.EXAMPLE_DIR)
        coco_folders.write_archives(Path(cls.EXAMPLE_DIR))
        cls.SPLITS = {"train": 3, "val": 2}
        cls.DATASET_CLASS = data.builder("coco")
        super().setUpClass()

    def _make_builder(self, config=None):
        return self.DATASET_CLASS(data_dir=self.tmp_dir, config=config, check_sizes=False)
