"""Preparing: what is there at the end, and what is not when it went wrong."""

import json
import resource
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from isa_tf import data, files
from isa_tf.data.builders.archives import Archive
from isa_tf.data.builders.base import SegmentationBuilder, id_table, pair
from isa_tf.data.label_sets import LabelSet

ROOT = Path(__file__).parents[2]
ARCHIVE = Archive("coast.zip", "the lighthouse keeper")


class Coast(SegmentationBuilder):
    """A data set of one's own: stored ids 5 and 9 are sea and sand, 0 is ignored."""

    name = "isa_tf_coast"
    description, licence, homepage, citation = "Coasts.", "free", "https://coast.example", "@coast"
    archives = (ARCHIVE,)
    labels = LabelSet(("sea", "sand"), ((0, 0, 255), (255, 255, 0)))
    sizes = {"train": 6, "val": 2}
    train_ids = id_table([5, 9], ignored=[0])
    flip_pairs = ((0, 1),)
    submission_ids = (5, 9)

    def examples(self, files):
        return {
            split: pair(
                files.find(f"{split}/*.png", ARCHIVE), files.find(f"{split}_ids/*.png", ARCHIVE)
            )
            for split in self.sizes
        }


@pytest.fixture(autouse=True)
def coast():
    data.register("coast", builder=Coast)


def write(folder, seed=0, sizes=None):
    """The files of the archive; {(split, name): (image, stored ids)}."""
    rng, found = np.random.default_rng(seed), {}
    for split, size in (sizes or Coast.sizes).items():
        for i in range(size):
            image = rng.integers(0, 256, (20 + i, 30, 3), np.uint8)
            ids = rng.choice(np.uint8([0, 5, 9]), image.shape[:2])
            for kind, array in ((split, image), (f"{split}_ids", ids)):
                (folder / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / kind / f"{i}.png")
            found[split, str(i)] = image, ids
    return found


def pack(folder, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))


@pytest.fixture
def archives(tmp_path):
    wanted = write(tmp_path / "files")
    pack(tmp_path / "files", tmp_path / "archives" / "coast.zip")
    return tmp_path / "archives", wanted


def left(folder):
    """The files below a folder, but for the lock's."""
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "prepare.lock"]


def assert_is(prepared, wanted):
    ids = {5: 0, 9: 1, 0: 255}
    found = [(s, name) for s in prepared.splits for name in prepared.examples(s)]
    assert sorted(found) == sorted(wanted)
    for split in prepared.splits:
        for i, name in enumerate(prepared.examples(split)):
            image, label = prepared.read(split, i)
            np.testing.assert_array_equal(image, wanted[split, name][0])
            stored = wanted[split, name][1]
            np.testing.assert_array_equal(label, np.vectorize(ids.get)(stored))


def test_an_archive_is_prepared_and_read(archives, tmp_path):
    folder, wanted = archives
    told = []
    path = data.prepare("coast", folder, tmp_path / "data", progress=lambda *now: told.append(now))
    assert path == tmp_path / "data" / "isa_tf_coast" / "1.0.0"
    prepared = data.create("coast", tmp_path / "data", num_classes=None)
    assert prepared.name == "coast" and prepared.class_names == ("sea", "sand")
    assert prepared.palette == Coast.labels.palette and prepared.flip_pairs == ((0, 1),)
    assert tuple(prepared.submission_ids) == (5, 9)
    assert_is(prepared, wanted)
    assert told == [("train", i + 1, 6) for i in range(6)] + [("val", i + 1, 2) for i in range(2)]
    # Again: it is there, and is left as it is, whatever the archives have become.
    (folder / "coast.zip").unlink()
    before = {file: file.stat().st_mtime_ns for file in left(tmp_path / "data")}
    assert data.prepare("coast", folder, tmp_path / "data") == path
    assert before == {file: file.stat().st_mtime_ns for file in left(tmp_path / "data")}


def test_what_is_unpacked_is_read_as_well(archives, tmp_path):
    data.prepare("coast", tmp_path / "files", tmp_path / "data", num_threads=1)
    assert_is(data.create("coast", tmp_path / "data"), archives[1])


def test_tensorflow_datasets_prepares_it_too(archives, tmp_path):
    import tensorflow_datasets as tfds

    settings = tfds.download.DownloadConfig(manual_dir=str(archives[0]))
    found = tfds.load(
        "isa_tf_coast",
        data_dir=str(tmp_path / "data"),
        download_and_prepare_kwargs={"download_config": settings},
    )
    assert {split: int(found[split].cardinality()) for split in found} == Coast.sizes
    assert_is(data.create("coast", tmp_path / "data"), archives[1])


def test_beam_prepares_the_same(archives, tmp_path):
    pytest.importorskip("apache_beam", reason="the extra beam is not installed")
    data.prepare("coast", archives[0], tmp_path / "data", beam_options=["--runner=DirectRunner"])
    data.prepare("coast", archives[0], tmp_path / "threads")
    beam, threads = (data.create("coast", tmp_path / name) for name in ("data", "threads"))
    assert_is(beam, archives[1])
    assert [beam.examples(s) for s in beam.splits] == [threads.examples(s) for s in beam.splits]


# === What goes wrong ===


def refused(match, manual_dir, tmp_path, error=data.DataError, **kwargs):
    with pytest.raises(error, match=match):
        data.prepare("coast", manual_dir, tmp_path / "data", **kwargs)
    assert left(tmp_path / "data") == []
    with pytest.raises(data.DataError, match="coast is not prepared here; .*isa-tf prepare"):
        data.create("coast", tmp_path / "data")


def test_no_archive(tmp_path):
    (tmp_path / "archives").mkdir()
    refused(
        "(?s)an empty folder; .*coast.zip, from the lighthouse keeper",
        tmp_path / "archives",
        tmp_path,
    )
    (tmp_path / "archives" / "readme.txt").write_text("")
    refused(
        "neither coast.zip .* be had from the lighthouse keeper", tmp_path / "archives", tmp_path
    )
    refused("gone: no such folder", tmp_path / "gone", tmp_path)


@pytest.mark.parametrize("cut", [100, 2000])
def test_an_archive_cut_short(archives, tmp_path, cut):
    path = archives[0] / "coast.zip"
    path.write_bytes(path.read_bytes()[:-cut])
    refused("coast.zip: cannot be read.*again from the lighthouse keeper", archives[0], tmp_path)


def test_a_damaged_member(archives, tmp_path):
    path = archives[0] / "coast.zip"
    contents = bytearray(path.read_bytes())
    at = contents.index(b"IDAT")
    contents[at + 20 : at + 24] = b"junk"
    path.write_bytes(contents)
    refused("coast.zip/train/0.png: cannot be read", archives[0], tmp_path)


def test_an_image_without_a_label(archives, tmp_path):
    (tmp_path / "files" / "train_ids" / "3.png").unlink()
    refused("train/3.png: it has no label, as 1 of 6", tmp_path / "files", tmp_path)
    (tmp_path / "files" / "train" / "2.png").unlink()
    (tmp_path / "files" / "train" / "3.png").unlink()
    refused("train_ids/2.png: it has no image", tmp_path / "files", tmp_path)


def test_other_sizes(tmp_path):
    wanted = write(tmp_path / "files", sizes={"train": 4, "val": 2})
    refused("split train has 4 images, not 6", tmp_path / "files", tmp_path)
    data.prepare("coast", tmp_path / "files", tmp_path / "data", check_sizes=False)
    assert_is(data.create("coast", tmp_path / "data"), wanted)


def test_an_id_that_it_does_not_have(archives, tmp_path):
    path = tmp_path / "files" / "val_ids" / "1.png"
    ids = np.array(Image.open(path))
    ids[:2, 0] = 7, 77
    Image.fromarray(ids).save(path)
    refused("val_ids/1.png: label value 7, 77 in 2 pixels", tmp_path / "files", tmp_path)


def test_a_label_of_another_size(archives, tmp_path):
    Image.fromarray(np.full((5, 6), 5, np.uint8)).save(tmp_path / "files" / "val_ids" / "0.png")
    refused("val_ids/0.png: the label is 6x5 and the image .* 30x20", tmp_path / "files", tmp_path)


def test_a_label_in_colours(archives, tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "files" / "val_ids" / "0.png")
    refused("val_ids/0.png: a label in colours", tmp_path / "files", tmp_path)


def test_files_in_two_places(archives, tmp_path):
    write(tmp_path / "files" / "again")
    refused("train/.* is here more than once", tmp_path / "files", tmp_path)


def test_the_disk_is_full(archives, tmp_path):
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, kept[1]))
    try:
        with pytest.raises(OSError, match="isa_tf_coast"):
            data.prepare("coast", archives[0], tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    assert left(tmp_path / "data") == []
    data.prepare("coast", archives[0], tmp_path / "data")
    assert_is(data.create("coast", tmp_path / "data"), archives[1])


def test_one_that_was_killed_is_not_taken_for_complete(archives, tmp_path):
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_preparation
from isa_tf import data
data.register("coast", builder=test_preparation.Coast)
def progress(split, made, total):
    if split == "val":
        os.kill(os.getpid(), signal.SIGKILL)
data.prepare("coast", {str(archives[0])!r}, {str(tmp_path / "data")!r}, progress=progress)
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr[-2000:]
    assert left(tmp_path / "data")  # which is not to be taken for a data set
    with pytest.raises(data.DataError, match="not prepared"):
        data.create("coast", tmp_path / "data")
    data.prepare("coast", archives[0], tmp_path / "data")
    assert_is(data.create("coast", tmp_path / "data"), archives[1])
    assert not list((tmp_path / "data").rglob("incomplete*"))


def test_two_at_once(archives, tmp_path):
    (tmp_path / "data" / "isa_tf_coast").mkdir(parents=True)
    lock = tmp_path / "data" / "isa_tf_coast" / "prepare.lock"
    held, done = threading.Event(), threading.Event()

    def hold():
        with files.lock(lock):
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        refused("in use by process", archives[0], tmp_path, error=BlockingIOError)
    finally:
        done.set()
        thread.join()


def test_names():
    assert {"ade20k", "camvid", "ccp", "folder", "voc2012", "coast"} <= set(data.list_builders())
    with pytest.raises(ValueError, match='did you mean "coast"'):
        data.prepare("coat", ".", "nowhere")
    with pytest.raises(ValueError, match="unknown builder 'synthetic'"):
        data.builder("synthetic")


def test_instructions_name_the_archives():
    assert "coast.zip, from the lighthouse keeper" in Coast.MANUAL_DOWNLOAD_INSTRUCTIONS
    for name in data.list_builders():
        cls = data.builder(name)
        assert cls.name == f"isa_tf_{name}"
        assert cls.description and json.dumps(cls.sizes)
        assert all(archive.file in cls.MANUAL_DOWNLOAD_INSTRUCTIONS for archive in cls.archives)


def test_the_graph_reads_no_more_than_it_must(archives, tmp_path):
    data.prepare("coast", archives[0], tmp_path / "data")
    prepared = data.create("coast", tmp_path / "data")
    reader = prepared.graph_reader("train")
    image, label = tf.function(reader.read)(tf.constant(3, tf.int64))
    np.testing.assert_array_equal(image, archives[1]["train", "3"][0])
    assert label.dtype == tf.uint8
