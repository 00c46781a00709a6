"""Batches for detectors: what they hold, against slow loops, and that they are always the same."""

import math
from pathlib import Path

import coco_folders
import numpy as np
import pytest
import tensorflow as tf
from absl import logging
from pycocotools import mask

from isa_tf.data import (
    Annotations,
    CocoDataset,
    DataError,
    InstanceDataset,
    SyntheticInstances,
    batch_examples,
    instance_train_pipeline,
)
from isa_tf.data.instance_pipeline import cut_mask, grown_box, resized_size, resized_size_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:pyc")

COCO_MINI = Path(__file__).parents[2].parent / "shared/data/coco_mini"


class Made(InstanceDataset):
    """Images of several sizes with rectangles; example i has i % 4 of them, and a crowd if odd."""

    def __init__(self, count=10, known=True, instances=None, sizes=None, **kwargs):
        super().__init__("made", ["a", "b", "c"], ("train",), **kwargs)
        self._count, self._known, self._instances = count, known, instances
        self._sizes = sizes or [(20, 30), (30, 20), (25, 30), (24, 24)]
        self.reads = []

    def examples(self, split):
        self._check_split(split)
        return tuple(map(str, range(self._count)))

    def size_of(self, split, index):
        return self._sizes[index % len(self._sizes)]

    def sizes(self, split):
        if not self._known:
            return None
        return np.array([self.size_of(split, i) for i in range(self._count)])

    def read(self, split, index):
        self.reads.append(int(index))
        height, width = self.size_of(split, index)
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        entries, masks = [], []
        for n in range(index % 4 if self._instances is None else self._instances):
            x, y = rng.integers(0, width - 8), rng.integers(0, height - 8)
            box = [int(x), int(y), int(rng.integers(3, 9)), int(rng.integers(3, 9))]
            inside = np.zeros((height, width), np.uint8)
            inside[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = 1
            inside &= rng.random((height, width)) < 0.8
            crowd = int(index % 2 and n == 0)
            told = {"bbox": box, "category_id": n % 3 + 1, "iscrowd": crowd}
            entries.append({**told, "id": 100 * index + n, "area": int(inside.sum())})
            masks.append(mask.encode(np.asfortranarray(inside)))
        return image, Annotations.of(entries, masks, self.class_ids)


SMALL = {"short_side": 40, "long_side": 64, "mask_size": 10, "max_instances": 5}
PLAIN = {**SMALL, "shuffle": False, "flip": False}


def arrays(batch):
    x, y = batch
    return {name: np.asarray(value) for name, value in {**x, **y}.items()}


def equal(one, other):
    one, other = arrays(one), arrays(other)
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def names_of(batch, dataset):
    """Which examples of `Made` a batch has, by their first pixels."""
    firsts = {
        dataset.read("train", i)[0][0, 0].astype(np.float32).tobytes(): i
        for i in range(dataset.size("train"))
    }
    return [firsts[image[0, 0].numpy().tobytes()] for image in batch[0]["image"]]


# === What a batch holds ===


def test_shapes_and_types():
    data = SyntheticInstances((48, 64), {"train": 8})
    batches = instance_train_pipeline(data, "train", 2, short_side=96, pad_size=128)
    x, y = next(iter(batches))
    wanted = {
        "image": ((2, 128, 128, 3), tf.float32),
        "size": ((2, 2), tf.int32),
        "boxes": ((2, 100, 4), tf.float32),
        "classes": ((2, 100), tf.int32),
        "crowd": ((2, 100), tf.bool),
        "valid": ((2, 100), tf.bool),
        "masks": ((2, 100, 112, 112), tf.uint8),
        "mask_boxes": ((2, 100, 4), tf.float32),
        "seed": ((2, 2), tf.int32),
    }
    assert x.keys() == {"image", "size"} and {**x, **y}.keys() == wanted.keys()
    for name, spec in {**batches.element_spec[0], **batches.element_spec[1]}.items():
        value = {**x, **y}[name]
        assert (tuple(value.shape), value.dtype) == (tuple(spec.shape), spec.dtype) == wanted[name]
    assert x["size"].numpy().tolist() == [[96, 128]] * 2


def resize_by_loops(image, height, width):
    """Bilinear with half pixel centres, in float64, without antialiasing."""
    old_height, old_width = image.shape[:2]
    found = np.zeros((height, width, 3))
    for y, x in np.ndindex(height, width):
        at_y = min(max((y + 0.5) * old_height / height - 0.5, 0), old_height - 1)
        at_x = min(max((x + 0.5) * old_width / width - 0.5, 0), old_width - 1)
        top, left = int(at_y), int(at_x)
        below, right = min(top + 1, old_height - 1), min(left + 1, old_width - 1)
        dy, dx = at_y - top, at_x - left
        found[y, x] = (1 - dy) * ((1 - dx) * image[top, left] + dx * image[top, right])
        found[y, x] += dy * ((1 - dx) * image[below, left] + dx * image[below, right])
    return found


def mask_by_loops(inside, box, cells):
    """The mean of each cell of a box grown by one cell, over pixels that are squares."""
    x1, y1, x2, y2 = map(float, box)
    wide, high = (x2 - x1) / (cells - 2), (y2 - y1) / (cells - 2)
    found = np.zeros((cells, cells))
    for i in range(1, cells - 1):
        for j in range(1, cells - 1):
            top, left = y1 + (i - 1) * high, x1 + (j - 1) * wide
            for y in range(inside.shape[0]):
                for x in range(inside.shape[1]):
                    over_y = max(min(top + high, y + 1) - max(top, y), 0)
                    over_x = max(min(left + wide, x + 1) - max(left, x), 0)
                    found[i, j] += inside[y, x] * over_y * over_x / (high * wide)
    return found


def test_against_loops():
    data = Made()
    for i, batch in enumerate(instance_train_pipeline(data, "train", 1, **PLAIN).take(6)):
        found = {name: value[0] for name, value in arrays(batch).items()}
        image, told = data.read("train", i)
        height, width = image.shape[:2]
        scale = min(40 / min(height, width), 64 / max(height, width))
        new = math.floor(height * scale), math.floor(width * scale)
        assert found["size"].tolist() == list(new)
        expected = resize_by_loops(image, *new)
        np.testing.assert_allclose(found["image"][: new[0], : new[1]], expected, atol=2e-3)
        padded = found["image"].shape[:2]
        assert padded == tuple(-(-side // 32) * 32 for side in new)
        assert not found["image"][new[0] :].any() and not found["image"][:, new[1] :].any()
        count = len(told.classes)
        assert found["valid"].tolist() == [True] * count + [False] * (5 - count)
        ratio = np.array([new[1] / width, new[0] / height] * 2)
        np.testing.assert_allclose(found["boxes"][:count], told.boxes * ratio, rtol=1e-6)
        np.testing.assert_array_equal(found["classes"][:count], told.classes)
        np.testing.assert_array_equal(found["crowd"][:count], told.crowd)
        for n in range(count):
            x1, y1, x2, y2 = told.boxes[n].astype(float)
            cells = np.array([(x2 - x1) / 8, (y2 - y1) / 8])
            grown = np.array([x1, y1, x2, y2]) + np.concatenate([-cells, cells])
            np.testing.assert_allclose(found["mask_boxes"][n], grown * ratio, rtol=1e-5, atol=1e-4)
            expected = 255 * mask_by_loops(mask.decode(told.masks[n]), told.boxes[n], 10)
            np.testing.assert_allclose(found["masks"][n], expected, atol=0.51)
        for name in ("boxes", "classes", "crowd", "masks", "mask_boxes"):
            assert not found[name][count:].any(), name


@pytest.mark.parametrize("box", [(3.3, 2.7, 9.1, 8.2), (0, 0, 12, 9), (4, 4, 4.5, 4.25)], ids=str)
@pytest.mark.parametrize("cells", [3, 7, 40])
def test_cut_masks_equal_loops(box, cells):
    """Boxes between pixels, of all the image, smaller than one; masks that shrink and grow."""
    inside = np.random.default_rng(1).random((9, 12)) < 0.6
    found = cut_mask(mask.encode(np.asfortranarray(inside.astype(np.uint8))), np.array(box), cells)
    expected = 255 * mask_by_loops(inside, box, cells)
    np.testing.assert_allclose(found, expected, atol=0.51)
    rim = np.ones((cells, cells), bool)
    rim[1:-1, 1:-1] = False
    assert not found[rim].any()


@pytest.mark.parametrize("long_side", [1333, 640])
def test_sizes_are_torchvisions(long_side):
    """Its rule in Python's floats, which a rule in float32 would break."""
    rng = np.random.default_rng(0)
    differs = 0
    for height, width in rng.integers(20, 3000, (400, 2)).tolist() + [[480, 640], [427, 640]]:
        for short in (800, 640, 333):
            scale = min(short / min(height, width), long_side / max(height, width))
            wanted = [math.floor(float(height) * scale), math.floor(float(width) * scale)]
            assert resized_size((height, width), short, long_side).numpy().tolist() == wanted
            assert list(resized_size_of((height, width), short, long_side)) == wanted
            single = np.float32(scale)
            differs += wanted != [math.floor(side * single) for side in (height, width)]
    assert differs  # so that the test could fail
    assert resized_size((1, 4000), 800, 1333).numpy().tolist() == [1, 1333]


def test_mirrored_or_not():
    """The same in a mirror: image, boxes, masks and what these cover."""
    data = SyntheticInstances((48, 64), {"train": 12}, crowds=True)
    arguments = {**SMALL, "short_side": 40, "shuffle": False, "repeat": False, "max_instances": 8}
    plain = instance_train_pipeline(data, "train", 1, flip=False, **arguments)
    mirrored = 0
    for one, other in zip(
        plain, instance_train_pipeline(data, "train", 1, **arguments), strict=True
    ):
        a, b = ({name: value[0] for name, value in arrays(each).items()} for each in (one, other))
        height, width = a["size"]
        valid = a["valid"]
        for name in ("size", "classes", "crowd", "valid", "seed"):
            np.testing.assert_array_equal(a[name], b[name])
        if np.array_equal(a["image"], b["image"]):
            assert equal(one, other)
            continue
        mirrored += 1
        np.testing.assert_array_equal(
            a["image"][:height, :width][:, ::-1], b["image"][:height, :width]
        )
        np.testing.assert_array_equal(a["masks"][:, :, ::-1], b["masks"])
        for name in ("boxes", "mask_boxes"):
            turned = np.float32([width, 0, width, 0]) + a[name] * [-1, 1, -1, 1]
            np.testing.assert_allclose(turned[valid][:, [2, 1, 0, 3]], b[name][valid], atol=1e-4)
            assert not b[name][~valid].any()
    assert 2 <= mirrored <= 10


# === Masks of real things ===


def paste(cells, box, height, width):
    """What of an image lies inside, by bilinear interpolation between the cells' centres."""
    found = np.zeros((height, width), bool)
    y, x = np.arange(height) + 0.5, np.arange(width) + 0.5
    size = len(cells)
    at_y = (y - box[1]) / (box[3] - box[1]) * size - 0.5
    at_x = (x - box[0]) / (box[2] - box[0]) * size - 0.5
    rows = np.flatnonzero((at_y >= 0) & (at_y < size - 1))
    columns = np.flatnonzero((at_x >= 0) & (at_x < size - 1))
    top, left = at_y[rows].astype(int), at_x[columns].astype(int)
    dy, dx = (at_y[rows] - top)[:, None], (at_x[columns] - left)[None]
    values = cells.astype(float)
    upper = values[np.ix_(top, left)] * (1 - dx) + values[np.ix_(top, left + 1)] * dx
    lower = values[np.ix_(top + 1, left)] * (1 - dx) + values[np.ix_(top + 1, left + 1)] * dx
    found[np.ix_(rows, columns)] = upper * (1 - dy) + lower * dy > 127.5
    return found


def test_pasted_masks_agree_with_the_whole_ones():
    if not COCO_MINI.is_dir():
        pytest.skip(f"no {COCO_MINI}")
    data = CocoDataset(COCO_MINI)
    overlaps = []
    for i in range(0, data.size("train"), 2):
        found = data.annotations("train", i)
        height, width = data.size_of("train", i)
        for n in np.flatnonzero((found.areas > 96**2) & ~found.crowd):
            box = np.clip(found.boxes[n], 0, [width, height, width, height])
            cells = cut_mask(found.masks[n], box, 112)
            pasted = paste(cells, grown_box(box, 112), height, width)
            whole = mask.decode(found.masks[n]) > 0
            overlaps.append((pasted & whole).sum() / (pasted | whole).sum())
    assert len(overlaps) > 30 and min(overlaps) > 0.97, sorted(overlaps)[:5]
    assert np.mean(overlaps) > 0.985


# === Always the same ===


@pytest.mark.parametrize("cache", [False, True])
def test_resumes_where_it_was(cache):
    data = Made()
    arguments = {**SMALL, "seed": 3, "cache": cache}
    through = list(instance_train_pipeline(data, "train", 4, **arguments).take(8))
    for step in (1, 5):
        resumed = instance_train_pipeline(data, "train", 4, start_step=step, **arguments)
        assert all(map(equal, through[step:], resumed))
    other = next(iter(instance_train_pipeline(data, "train", 4, **{**arguments, "seed": 4})))
    assert not equal(through[0], other)
    seeds = np.concatenate([y["seed"] for _, y in through])
    assert len({tuple(seed) for seed in seeds.tolist()}) == len(seeds)


def test_cache_changes_nothing_and_reads_once():
    plain, cached = Made(), Made()
    one = list(instance_train_pipeline(plain, "train", 2, **SMALL).take(12))
    data = instance_train_pipeline(cached, "train", 2, cache=True, **SMALL)
    other = list(data.take(12))
    assert all(map(equal, one, other))
    assert sorted(cached.reads) == list(range(10))


def test_what_is_cached_is_of_one_kind():
    """Two pipelines over one dataset may want masks of different sizes."""
    data = Made()
    for size in (10, 14, 10):
        arguments = {**SMALL, "mask_size": size, "cache": True}
        cached = next(iter(instance_train_pipeline(data, "train", 2, **arguments)))
        plain = instance_train_pipeline(Made(), "train", 2, **{**arguments, "cache": False})
        assert cached[1]["masks"].shape == (2, 5, size, size)
        assert equal(cached, next(iter(plain)))


def test_resuming_reads_nothing_before():
    data = Made(100)
    train = instance_train_pipeline(
        data, "train", 1, repeat=False, start_step=97, **{**PLAIN, "flip": True}
    )
    assert len(list(train)) == 3 and sorted(data.reads) == [97, 98, 99]


@pytest.mark.parametrize("count, replicas", [(2, 2), (2, 4), (1, 2)])
def test_workers_train_on_the_batches_of_one(count, replicas):
    arguments = {**SMALL, "seed": 5, "pad_size": 64, "start_step": 2}
    wanted = list(instance_train_pipeline(Made(26), "train", 4, **arguments).take(7))
    shares = []
    for worker in range(count):
        context = tf.distribute.InputContext(count, worker, replicas)
        own = instance_train_pipeline(Made(26), "train", 4, input_context=context, **arguments)
        shares.append(list(map(arrays, own.take(7 * replicas // count))))
    local = replicas // count
    for step, batch in enumerate(map(arrays, wanted)):
        rows = [each for share in shares for each in share[step * local : (step + 1) * local]]
        for name, whole in batch.items():
            np.testing.assert_array_equal(whole, np.concatenate([row[name] for row in rows]))
    with pytest.raises(ValueError, match="batch_size=3 for 2 replicas"):
        context = tf.distribute.InputContext(1, 0, 2)
        instance_train_pipeline(Made(), "train", 3, input_context=context)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("count, batch_size", [(26, 4), (10, 3), (3, 4), (8, 1)])
def test_each_epoch_is_a_new_permutation(count, batch_size, known):
    data = Made(count, known)
    steps = 3 * count // math.gcd(count, batch_size)
    order = [batch_examples(data, "train", batch_size, step, seed=1) for step in range(steps)]
    flat = [int(name) for batch in order for name in batch][: 3 * count]
    epochs = np.reshape(flat, (3, count))
    assert (np.sort(epochs, 1) == np.arange(count)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3


def test_batches_stand_or_lie():
    """Of 81 images every fourth stands. In 81 steps of 4 there are four epochs."""

    def kinds_of(data):
        return [
            {int(name) % 4 == 1 for name in batch_examples(data, "train", 4, step)}
            for step in range(81)
        ]

    kinds = kinds_of(Made(81))
    # In each epoch one batch was begun in the one before, and two may be of what is left over.
    assert sum(len(kind) > 1 for kind in kinds) <= 3 * 4
    assert sum(kind == {True} for kind in kinds) >= 3 * 4
    assert sum(len(kind) > 1 for kind in kinds_of(Made(81, known=False))) > 40


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_examples_of_a_batch_are_told(shuffle):
    data = Made(11, sizes=[(40, 60), (60, 40), (50, 60)])  # which are not resized
    arguments = {**SMALL, "flip": False, "short_side": 1000, "long_side": 60, "shuffle": shuffle}
    for step, batch in enumerate(instance_train_pipeline(data, "train", 3, **arguments).take(9)):
        told = batch_examples(data, "train", 3, step, shuffle=shuffle)
        assert list(map(str, names_of(batch, data))) == told


# === Sizes ===


def test_the_short_side_is_drawn_for_each_image():
    data = SyntheticInstances((48, 64), {"train": 40})
    arguments = {**SMALL, "short_side": (24, 48, 60), "long_side": 100, "pad_size": 96}
    sizes = np.concatenate(
        [x["size"] for x, _ in instance_train_pipeline(data, "train", 4, **arguments).take(10)]
    )
    found, counts = np.unique(sizes[:, 0], return_counts=True)
    assert found.tolist() == [24, 48, 60] and counts.min() >= 5
    assert (sizes[:, 1] == sizes[:, 0] * 4 // 3).all()


def test_pad_sizes():
    def shapes(batch_size=2, data=None, **arguments):
        batches = instance_train_pipeline(
            data or Made(12), "train", batch_size, **{**PLAIN, **arguments}
        )
        return {tuple(x["image"].shape[1:3]) for x, _ in batches.take(6)}

    # 40 x 60, 60 x 40, 40 x 48 and 40 x 40, in turn.
    assert shapes(1) == {(64, 64), (64, 64), (64, 64), (64, 64)}
    assert shapes(1, size_divisor=10) == {(40, 60), (60, 40), (40, 50), (40, 40)}
    assert shapes(2, size_divisor=10) == {(60, 60), (40, 50)}
    assert shapes(pad_size=(70, 80)) == {(70, 80)} and shapes(pad_size=66) == {(66, 66)}
    several = ((70, 70), (60, 40), (40, 60))
    assert shapes(1, pad_size=several) == {(60, 40), (40, 60)}
    assert shapes(2, pad_size=several) == {(70, 70), (40, 60)}


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"0 becomes \(40, 60\)"):
        instance_train_pipeline(Made(), "train", 2, pad_size=(64, 48), **SMALL)
    with pytest.raises(ValueError, match=r"1 becomes \(60, 40\)"):
        instance_train_pipeline(Made(), "train", 2, pad_size=((40, 60), (50, 50)), **SMALL)
    for pad_size, told in (((64, 48), "larger than pad_size"), ([(40, 60), (50, 50)], "every pad")):
        batches = instance_train_pipeline(Made(known=False), "train", 2, pad_size=pad_size, **SMALL)
        with pytest.raises(tf.errors.InvalidArgumentError, match=told):
            list(batches.take(5))
    # Each image has a place of its own, but not the two of a batch.
    batches = instance_train_pipeline(
        Made(), "train", 2, shuffle=False, pad_size=((40, 60), (60, 40)), **SMALL
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="a batch .* stands beside what lies"):
        list(batches.take(1))


@pytest.mark.parametrize(
    "arguments, told",
    [
        ({"batch_size": 0}, "batch_size must be"),
        ({"short_side": 0}, "short_side must be"),
        ({"short_side": ()}, "short_side must be"),
        ({"long_side": -1}, "long_side must be"),
        ({"size_divisor": 0}, "size_divisor must be"),
        ({"max_instances": 0}, "max_instances must be"),
        ({"mask_size": 2}, "mask_size must be at least 3"),
        ({"pad_size": (3, 4, 5)}, "pad_size must be"),
        ({"start_step": -1}, "no whole batch is left"),
        ({"batch_size": 11, "repeat": False}, "no whole batch is left"),
        ({"split": "val"}, "no split 'val'"),
    ],
)
def test_arguments_that_cannot_be(arguments, told):
    with pytest.raises(ValueError, match=told):
        instance_train_pipeline(Made(), **{"split": "train", "batch_size": 2, **SMALL, **arguments})


# === More instances than room, and none ===


def test_crowds_are_left_out_first_and_it_is_said_once(tmp_path, caplog):
    coco_folders.write_folder(tmp_path)  # image 7 has instances 11, 12, 16 and, third, a crowd
    data = CocoDataset(tmp_path)
    for room, classes in ((4, [0, 79, 2, 0]), (3, [0, 79, 0]), (2, [0, 79])):
        caplog.clear()
        data._logged.clear()
        with caplog.at_level(logging.WARNING, "absl"):
            arguments = {**PLAIN, "max_instances": room}
            batches = instance_train_pipeline(data, "train", 1, **arguments)
            firsts = [y for i, (_, y) in enumerate(batches.take(7)) if i % 3 == 0]
        for y in firsts:
            assert y["classes"].numpy().tolist() == [classes] and y["valid"].numpy().all()
            assert y["crowd"].numpy().any() == (room == 4)
        said = [r for r in caplog.records if "max_instances" in r.getMessage()]
        assert len(said) == (room < 4)
        if said:
            assert f"max_instances={room}, such as one of 4" in said[0].getMessage()


def test_images_without_annotations_and_boxes_without_area(tmp_path):
    coco_folders.write_folder(tmp_path)
    data = CocoDataset(tmp_path)
    batches = list(instance_train_pipeline(data, "train", 3, repeat=False, **PLAIN))
    ((x, y),) = batches
    assert y["valid"].numpy().sum(1).tolist() == [4, 0, 1]
    for name in ("boxes", "classes", "crowd", "masks", "mask_boxes"):
        assert not y[name][1].numpy().any()
    assert x["image"][1].numpy().any()


def test_a_crowd_is_valid_and_no_instance():
    data = SyntheticInstances(64, {"train": 9}, crowds=True)
    batches = instance_train_pipeline(data, "train", 9, **{**PLAIN, "max_instances": 9})
    _, y = next(iter(batches))
    crowd, valid = y["crowd"].numpy(), y["valid"].numpy()
    told = [data.annotations("train", i).crowd for i in range(9)]
    assert crowd.sum() == np.concatenate(told).sum() >= 2
    assert not (crowd & ~valid).any()


def test_nothing_to_be_read_is_an_error():
    class Broken(Made):
        def read(self, split, index):
            raise DataError(f"{index}.png", "torn")

        annotations = read

    with pytest.raises(Exception, match="0.png: torn"):
        next(iter(instance_train_pipeline(Broken(), "train", 1, **PLAIN)))
    with pytest.raises(Exception, match="none of its 10 examples can be read; .*torn"):
        next(iter(instance_train_pipeline(Broken(on_error="skip"), "train", 1, **PLAIN)))
