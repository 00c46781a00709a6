"""What the graph reads is what Pillow reads: every kind of file, whole, cut, and damaged."""

import re

import numpy as np
import pytest
import tensorflow as tf
from odd_pictures import NUM_CLASSES, images, labels, saved, smooth_image, some_label, write
from PIL import Image

from isa_tf import data
from isa_tf.data.base import read_indices


def same(example, wanted):
    for got, array in zip(example, wanted, strict=True):
        np.testing.assert_array_equal(got, array)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A folder of every kind, and {name: plain} by the names of the files."""
    root, plain = tmp_path_factory.mktemp("kinds"), {}
    grey = labels()["grey"][0]
    for name, (contents, suffix, is_plain) in images().items():
        write(root, f"image {name}", contents, suffix, grey)
        plain[f"image {name}"] = is_plain
    for name, (contents, is_plain) in labels().items():
        write(root, f"label {name}", images()["png"][0], "png", contents)
        plain[f"label {name}"] = is_plain
    return root, plain


def stems(dataset):
    return [path.rsplit("/", 1)[-1].rsplit(".", 1)[0] for path in dataset.examples("train")]


def test_what_is_plain_is_known_by_its_header(everything):
    root, plain = everything
    dataset = data.FolderDataset(root, num_classes=NUM_CLASSES)
    able = dataset.graph_reader("train").able
    assert dict(zip(stems(dataset), able.tolist(), strict=True)) == plain


def test_every_kind_is_read_as_by_pillow(everything):
    dataset = data.FolderDataset(everything[0], num_classes=NUM_CLASSES)
    for i, element in enumerate(dataset.load("train")):
        same((element["image"], element["label"]), dataset.read("train", i))


def test_what_is_plain_does_not_enter_python(everything, monkeypatch):
    dataset = data.FolderDataset(everything[0], num_classes=NUM_CLASSES)
    wanted = [dataset.read("train", i) for i in range(dataset.size("train"))]
    asked, read = set(), dataset.read
    monkeypatch.setattr(dataset, "read", lambda split, i: asked.add(i) or read(split, i))
    for element, arrays in zip(dataset.load("train"), wanted, strict=True):
        same((element["image"], element["label"]), arrays)
    list(data.train_pipeline(dataset, "train", 1, 16).take(2 * len(wanted)))
    assert asked == set(np.flatnonzero(~dataset.graph_reader("train").able))


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize(
    "place", [(3, 17, 20, 31), (-5, 40, 30, 60), (0, 0, 45, 61), (44, 60, 1, 1)]
)
def test_a_part_is_the_part_of_the_whole(everything, place, cache):
    """No pixel at the edge of what a JPEG was decoded of differs."""
    y, x, height, width = place
    dataset = data.FolderDataset(everything[0], num_classes=NUM_CLASSES)
    window = slice(max(y, 0), y + height), slice(max(x, 0), x + width)
    running = tf.data.Dataset.range(dataset.size("train"))
    parts = read_indices(
        dataset, "train", running, cache=cache, place_of=lambda i, label: tf.reshape(place, (2, 2))
    )
    for i, image, label, _ in parts:
        whole_image, whole_label = dataset.read("train", int(i))
        same((image, label), (whole_image[window], whole_label[window]))


class InPython(data.FolderDataset):
    def graph_reader(self, split):
        return None


@pytest.mark.some(1)
@pytest.mark.parametrize("groups", [None, {"few": ["class_3", "class_7"], "one": ["class_0"]}])
def test_training_sees_what_it_saw(everything, groups):
    batches = [
        data.train_pipeline(
            kind(everything[0], num_classes=NUM_CLASSES, groups=groups),
            "train",
            3,
            (24, 40),
            cat_max_ratio=0.5,
            seed=4,
        ).take(20)
        for kind in (data.FolderDataset, InPython)
    ]
    for batch, wanted in zip(*batches, strict=True):
        same(batch, wanted)


@pytest.mark.parametrize("cache", [False, True])
def test_cached_examples_are_whole_and_read_once(everything, cache, monkeypatch):
    dataset = data.FolderDataset(everything[0], num_classes=NUM_CLASSES)
    list(data.train_pipeline(dataset, "train", 1, 16, cache=cache).take(dataset.size("train")))
    assert len(dataset._decoded) == (dataset.size("train") if cache else 0)
    for (_, index), example in dataset._decoded.items():
        same(example, dataset.read("train", index))
    if cache:
        gone = [("gone", "gone")] * dataset.size("train")
        monkeypatch.setattr(dataset, "_pairs", {"train": gone})
        monkeypatch.setattr(dataset, "read", None)
    kept = list(data.eval_pipeline(dataset, "train", cache=cache))
    assert len(kept) == dataset.size("train")


# === Damage ===


def damaged(contents, rng):
    yield "half", contents[: len(contents) // 2]
    for bytes_less in (1, 2, 5, 12, 13, 20):
        yield f"{bytes_less} bytes less", contents[:-bytes_less]
    yield "header alone", contents[:40]
    yield "empty", b""
    yield "text", b"not an image"
    for at in rng.integers(0, len(contents), 24):
        changed = bytearray(contents)
        changed[at] ^= 1 << rng.integers(8)
        yield f"bit at {at}", bytes(changed)


@pytest.mark.some(1)
@pytest.mark.parametrize("kind", ["png", "jpg", "label"])
def test_damage_is_found_as_by_pillow(tmp_path, kind):
    """Behind construction: an error with the file's name, where Pillow's is one."""
    label = saved(Image.fromarray(some_label()), "PNG")
    picture = Image.fromarray(smooth_image())
    suffix = "jpg" if kind == "jpg" else "png"
    image = saved(picture, "JPEG" if suffix == "jpg" else "PNG")
    write(tmp_path, "a", image, suffix, label)
    dataset = data.FolderDataset(tmp_path, num_classes=NUM_CLASSES)
    assert dataset.graph_reader("train").able.all()
    path = tmp_path / "train" / ("labels/a.png" if kind == "label" else f"images/a.{suffix}")
    loaded = dataset.load("train")
    found = 0
    for name, contents in damaged(path.read_bytes(), np.random.default_rng(0)):
        path.write_bytes(contents)
        try:
            wanted = dataset.read("train", 0)
        except data.DataError as error:
            found += 1
            with pytest.raises(tf.errors.OpError, match=re.escape(str(error.path))):
                list(loaded)
            assert error.path == str(path), name
            continue
        (element,) = loaded
        same((element["image"], element["label"]), wanted)
    assert found >= 10


def test_a_jpeg_cut_short_is_found_whatever_is_cropped(tmp_path):
    image = saved(Image.fromarray(smooth_image()), "JPEG")
    write(tmp_path, "a", image, "jpg", saved(Image.fromarray(some_label()), "PNG"))
    dataset = data.FolderDataset(tmp_path, num_classes=NUM_CLASSES)
    (tmp_path / "train/images/a.jpg").write_bytes(image[:-3])
    for seed in range(6):
        train = data.train_pipeline(dataset, "train", 1, 8, scale_range=None, seed=seed)
        with pytest.raises(tf.errors.OpError, match="images/a.jpg"):
            next(iter(train))


@pytest.mark.some(2)
@pytest.mark.parametrize("change", ["colours", "16 bits", "another size", "gone", "value"])
def test_a_label_changed_behind_construction(tmp_path, change):
    plain = saved(Image.fromarray(smooth_image()), "PNG")
    write(tmp_path, "a", plain, "png", saved(Image.fromarray(some_label()), "PNG"))
    dataset = data.FolderDataset(tmp_path, num_classes=NUM_CLASSES)
    path = tmp_path / "train/labels/a.png"
    wrong = some_label()
    wrong[3, :7] = 31
    new = {
        "colours": Image.fromarray(smooth_image()),
        "16 bits": Image.fromarray(some_label().astype(np.uint16) + 1024),
        "another size": Image.new("L", (9, 9)),
        "value": Image.fromarray(wrong),
    }
    reason = {
        "colours": "a label in colours .mode RGB",
        "16 bits": r"label value 1024, 1025.* the ids are 0 to 18",
        "another size": "the label is 9x9 and its image .* is 61x45",
        "gone": "no such file",
        "value": "label value 31 in 7 pixels; the ids are 0 to 18",
    }[change]
    if change == "gone":
        path.unlink()
    else:
        new[change].save(path)
    for pipeline in (dataset.load("train"), data.train_pipeline(dataset, "train", 1, 16)):
        with pytest.raises(tf.errors.OpError, match=re.escape(str(path)) + ".*" + reason):
            next(iter(pipeline))


# === A reader of one's own ===


class Own(data.SegmentationDataset):
    """Example i is filled with i, by TensorFlow for those below `limit`."""

    def __init__(self, limit=10, able=None):
        super().__init__("own", [str(i) for i in range(10)], ("train",))
        self.limit, self.able, self.reads = limit, able, []

    def examples(self, split):
        return tuple(map(str, range(10)))

    def read(self, split, index):
        self.reads.append(index)
        return np.full((12, 16, 3), index, np.uint8), np.full((12, 16), index, np.uint8)

    def graph_reader(self, split):
        def read(index):
            tf.debugging.assert_less(index, tf.constant(self.limit, tf.int64))
            value = tf.cast(index, tf.uint8)
            return tf.fill((12, 16, 3), value), tf.fill((12, 16), value)

        return data.GraphReader(read, self.able)


@pytest.mark.parametrize(
    "arguments, reads",
    [({}, []), ({"limit": 7}, [7, 8, 9]), ({"able": np.arange(10) % 5 > 0}, [0, 5])],
)
def test_a_reader_of_ones_own(arguments, reads):
    dataset = Own(**arguments)
    for i, (image, label) in enumerate(data.eval_pipeline(dataset, "train")):
        assert image.shape == (1, 12, 16, 3)
        assert (image.numpy() == i).all() and (label.numpy() == i).all()
    assert sorted(dataset.reads) == reads
    plain = {"scale_range": None, "flip": False, "photometric": False, "shuffle": False}
    image, label = next(iter(data.train_pipeline(dataset, "train", 10, 8, **plain)))
    assert (image[:, 0, 0, 0].numpy() == range(10)).all() and image.shape == (10, 8, 8, 3)
