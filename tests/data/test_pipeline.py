import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from isa_tf.data import (
    DataError,
    FolderDataset,
    SegmentationDataset,
    batch_examples,
    eval_pipeline,
    train_pipeline,
)
from isa_tf.data.base import PythonReader


class Numbered(SegmentationDataset):
    """Image and label of example i are filled with i; the heights are as many as asked for."""

    def __init__(self, size=10, heights=1, **kwargs):
        super().__init__("numbered", [str(i) for i in range(size)], ("train",), **kwargs)
        self._size, self._heights, self.reads = size, heights, []

    def examples(self, split):
        self._check_split(split)
        return tuple(map(str, range(self._size)))

    def read(self, split, index):
        self.reads.append(index)
        shape = (12 + index % self._heights, 16)
        return np.full((*shape, 3), index, np.uint8), np.full(shape, index, np.uint8)


PLAIN = {"scale_range": None, "flip": False, "photometric": False}


def order(batches):
    return np.concatenate([label[:, 0, 0] for _, label in batches]).tolist()


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_shapes_and_types():
    image, label = next(iter(train_pipeline(Numbered(), "train", 4, (24, 20))))
    assert image.shape == (4, 24, 20, 3) and image.dtype == tf.uint8
    assert label.shape == (4, 24, 20) and label.dtype == tf.uint8


@pytest.mark.parametrize(
    "make",
    [lambda data: train_pipeline(data, "train", 2, 12), lambda data: eval_pipeline(data, "train")],
)
def test_letting_go_waits_for_no_tuner(make):
    """The wait itself is a race of threads, which a test would seldom see."""
    assert make(Numbered()).options().autotune.enabled is False


@pytest.mark.parametrize("crop_size", [24, (24,), [24, 24], np.int64(24)])
def test_one_number_is_both_sides(crop_size):
    spec = train_pipeline(Numbered(), "train", 4, crop_size).element_spec
    assert spec[0].shape == (4, 24, 24, 3) and spec[1].shape == (4, 24, 24)


def test_each_epoch_is_a_new_permutation():
    batches = train_pipeline(Numbered(), "train", 5, (12, 16), **PLAIN)
    places = np.reshape(order(batches.take(6)), (3, 10))
    assert (np.sort(places, axis=1) == np.arange(10)).all()
    assert len({tuple(row) for row in places}) == 3


def test_without_shuffle_and_repeat():
    batches = train_pipeline(Numbered(), "train", 4, (12, 16), shuffle=False, repeat=False, **PLAIN)
    assert order(batches) == list(range(8))
    assert batches.cardinality() == 2
    endless = train_pipeline(Numbered(), "train", 4, (12, 16))
    assert endless.cardinality() == tf.data.INFINITE_CARDINALITY


@pytest.mark.parametrize("cache", [False, True])
def test_resumes_where_it_was(cache):
    data = Numbered(heights=3)
    through = list(train_pipeline(data, "train", 4, (10, 14), seed=3, cache=cache).take(9))
    for step in (1, 4, 8):
        resumed = train_pipeline(data, "train", 4, (10, 14), seed=3, cache=cache, start_step=step)
        for batch, again in zip(through[step:], resumed, strict=False):
            assert equal(batch, again)


def test_resuming_reads_nothing_before():
    data = Numbered(size=100)
    train = train_pipeline(data, "train", 1, 8, shuffle=False, repeat=False, start_step=97, **PLAIN)
    assert order(train) == [97, 98, 99]
    assert sorted(data.reads) == [97, 98, 99]


def test_seeds():
    def first(seed):
        return next(iter(train_pipeline(Numbered(heights=3), "train", 4, (10, 14), seed=seed)))

    assert equal(first(1), first(1))
    assert not equal(first(1), first(2))


def test_cache_reads_each_example_once():
    data = Numbered()
    list(train_pipeline(data, "train", 5, 8, cache=True, **PLAIN).take(8))
    assert sorted(data.reads) == list(range(10))


def test_cache_is_shared_by_pipelines():
    data = Numbered()
    for start_step in (0, 3):  # as where training is resumed
        list(train_pipeline(data, "train", 5, 8, start_step=start_step, cache=True).take(4))
    seen = list(eval_pipeline(data, "train", cache=True))
    assert sorted(data.reads) == list(range(10))
    assert order(seen) == list(range(10))
    for i, (image, label) in enumerate(seen):  # training's distortions left the cache alone
        assert (image.numpy() == i).all() and (label.numpy() == i).all()
    assert len(list(eval_pipeline(data, "train"))) == 10
    assert len(data.reads) == 20  # without `cache` it reads


def test_cache_keeps_splits_apart():
    class TwoSplits(Numbered):
        def __init__(self):
            super().__init__(3)
            self.splits = ("train", "val")

        def read(self, split, index):
            image, label = super().read(split, index)
            return image, label + (100 if split == "val" else 0)

    data = TwoSplits()
    assert order(eval_pipeline(data, "train", cache=True)) == [0, 1, 2]
    assert order(eval_pipeline(data, "val", cache=True)) == [100, 101, 102]


def test_eval_gives_whole_images_in_order():
    data = Numbered(heights=3)
    batches = list(eval_pipeline(data, "train"))
    assert order(batches) == list(range(10))
    assert [image.shape[1] for image, _ in batches[:3]] == [12, 13, 14]


def test_eval_batches_hold_one_size():
    data = Numbered(heights=3)
    batches = list(eval_pipeline(data, "train", batch_size=3))
    assert sorted(order(batches)) == list(range(10))
    assert max(image.shape[0] for image, _ in batches) == 3
    assert order(eval_pipeline(Numbered(), "train", batch_size=4)) == list(range(10))
    even = [len(label) for _, label in eval_pipeline(Numbered(50), "train", batch_size=4)]
    assert even == [4] * 12 + [2]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_eval_tells_which_examples_a_batch_has(batch_size):
    """Whatever the order of sizes makes of it, and with one left out."""

    class Lacking(Numbered):
        def read(self, split, index):
            if index == 4:
                raise DataError("4", "broken")
            return super().read(split, index)

    data = Lacking(heights=3, on_error="skip")
    told = list(eval_pipeline(data, "train", batch_size, with_index=True))
    plain = list(eval_pipeline(data, "train", batch_size))
    for batch, (image, label) in zip(told, plain, strict=True):
        assert set(batch) == {"image", "label", "index"} and batch["index"].dtype == tf.int64
        np.testing.assert_array_equal(batch["label"][:, 0, 0], batch["index"])
        assert equal((batch["image"], batch["label"]), (image, label))
    found = np.concatenate([batch["index"] for batch in told]).tolist()
    assert sorted(found) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert (found == sorted(found)) == (batch_size == 1)


def test_eval_holds_few_examples_of_many_sizes():
    data, given, held = Numbered(size=250, heights=250), [], 0
    for image, label in eval_pipeline(data, "train", batch_size=2):
        given.extend(label[:, 0, 0].numpy().tolist())
        assert (image[:, 0, 0, 0] == label[:, 0, 0]).numpy().all()
        held = max(held, len(data.reads) - len(given))
    assert sorted(given) == list(range(250))
    # A block of 8 batches, and what tf.data reads ahead of it and keeps ready behind it.
    assert held < 16 + 64


def test_a_fault_in_a_batch_of_several_is_told():
    class Broken(Numbered):
        def read(self, split, index):
            if index == 7:
                raise DataError("seven.png", "torn")
            return super().read(split, index)

    with pytest.raises(tf.errors.OpError, match="seven.png: torn"):
        list(eval_pipeline(Broken(), "train", batch_size=3))
    skipping = eval_pipeline(Broken(heights=3, on_error="skip"), "train", batch_size=3)
    assert sorted(order(skipping)) == [0, 1, 2, 3, 4, 5, 6, 8, 9]


def workers(count, replicas):
    return [tf.distribute.InputContext(count, worker, replicas) for worker in range(count)]


@pytest.mark.some(6)
@pytest.mark.parametrize("count, replicas", [(1, 1), (1, 3), (2, 2), (2, 6), (3, 6), (6, 6)])
@pytest.mark.parametrize("start_step, repeat", [(0, True), (3, True), (1, False)])
def test_workers_train_on_the_batches_of_one(count, replicas, start_step, repeat):
    """Row for row, augmentation and all, and none reads what it does not train on."""
    arguments = {"seed": 3, "start_step": start_step, "repeat": repeat}
    one = train_pipeline(Numbered(26, heights=3), "train", 12, (10, 14), **arguments).take(5)
    wanted = list(one)
    assert len(wanted) == (5 if repeat else 1)
    shares = []
    for context in workers(count, replicas):
        data = Numbered(26, heights=3)
        own = train_pipeline(data, "train", 12, (10, 14), input_context=context, **arguments).take(
            len(wanted) * replicas // count
        )
        assert own.element_spec[0].shape == (12 // replicas, 10, 14, 3)
        shares.append(list(own))
        if not repeat and count > 1:  # one alone reads the rows that fill no batch as well
            assert len(data.reads) == 12 // count
    for step, batch in enumerate(wanted):
        local = replicas // count
        rows = [b for share in shares for b in share[step * local : (step + 1) * local]]
        for whole, parts in zip(batch, zip(*rows, strict=True), strict=True):
            np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_a_worker_reads_what_it_trains_on():
    for context in workers(2, 4):
        data = Numbered(40)
        arguments = {"shuffle": False, "repeat": False, "input_context": context}
        rows = order(train_pipeline(data, "train", 8, 8, **arguments, **PLAIN))
        first = 4 * context.input_pipeline_id
        assert rows == [8 * t + first + row for t in range(5) for row in range(4)]
        assert sorted(data.reads) == rows


@pytest.mark.parametrize(
    "batch_size, count, replicas", [(10, 2, 4), (9, 1, 2), (6, 2, 3), (1, 2, 2)]
)
def test_batches_that_replicas_do_not_divide(batch_size, count, replicas):
    message = f"batch_size={batch_size} for {replicas} replicas of {count} workers"
    with pytest.raises(ValueError, match=message):
        context = workers(count, replicas)[0]
        train_pipeline(Numbered(), "train", batch_size, 8, input_context=context)


@pytest.mark.some(5)
@pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_workers_evaluate_every_image_once(count, batch_size):
    given, shares = [], []
    for context in workers(count, count):
        data = Numbered(heights=2)
        own = eval_pipeline(data, "train", batch_size, input_context=context)
        batches = list(own)
        assert all(len(label) <= batch_size for _, label in batches)
        seen = order(batches) if batches else []
        assert sorted(data.reads) == sorted(seen)
        given.extend(seen)
        shares.append(len(seen))
    assert sorted(given) == list(range(10))
    assert max(shares) - min(shares) <= 1


def test_nothing_else_deals_examples_out():
    for data in (train_pipeline(Numbered(), "train", 2, 8), eval_pipeline(Numbered(), "train")):
        policy = data.options().experimental_distribute.auto_shard_policy
        assert policy == tf.data.experimental.AutoShardPolicy.OFF


def test_runs_under_a_strategy_of_workers(mirrored):
    def make(context):
        return train_pipeline(
            Numbered(), "train", 4, 8, shuffle=False, input_context=context, **PLAIN
        )

    batches = iter(mirrored.distribute_datasets_from_function(make))
    for step in range(3):
        labels = mirrored.experimental_local_results(next(batches)[1])
        rows = np.concatenate([label[:, 0, 0] for label in labels])
        assert rows.tolist() == [(4 * step + row) % 10 for row in range(4)]


# === Names ===


@pytest.mark.parametrize("shuffle", [True, False])
def test_names_of_a_batch(shuffle):
    train = train_pipeline(Numbered(), "train", 4, (12, 16), seed=5, shuffle=shuffle, **PLAIN)
    for step, batch in enumerate(train.take(8)):
        names = batch_examples(Numbered(), "train", 4, step, seed=5, shuffle=shuffle)
        assert names == [str(i) for i in order([batch])]


def test_names_of_no_batch():
    with pytest.raises(ValueError, match="no split 'test'"):
        batch_examples(Numbered(), "test", 4, 0)
    with pytest.raises(ValueError, match="no batch of step -1"):
        batch_examples(Numbered(), "train", 4, -1)
    with pytest.raises(ValueError, match="batch_size"):
        batch_examples(Numbered(), "train", 0, 1)
    with pytest.raises(ValueError, match="has 0 examples"):
        batch_examples(NoneLeft(), "empty", 4, 0)


# === Nothing to read ===


class NoneLeft(Numbered):
    """Of whose examples those of `readable` can be read, from the `since`th reading on."""

    def __init__(self, size=10, readable=(), since=0):
        super().__init__(size, on_error="skip")
        self.splits = ("train", "empty")
        self.readable, self.since = readable, since

    def examples(self, split):
        return () if split == "empty" else super().examples(split)

    def read(self, split, index):
        example = super().read(split, index)
        if index in self.readable and len(self.reads) > self.since:
            return example
        raise DataError(f"{index}.png", "torn")


NOTHING = r"none/train: none of its 10 examples can be read; the last fault: \d.png: torn"


@pytest.mark.parametrize("cache", [False, True])
def test_a_split_of_which_nothing_can_be_read(cache):
    data = NoneLeft()
    data.name = "none"
    for pipeline in (
        train_pipeline(data, "train", 2, 8, cache=cache),
        train_pipeline(data, "train", 2, 8, repeat=False, cache=cache),
        eval_pipeline(data, "train", cache=cache),
        data.load("train"),
    ):
        with pytest.raises(tf.errors.OpError, match=NOTHING):
            next(iter(pipeline))


def test_what_could_not_be_read_once_is_not_cached_as_missing():
    data = NoneLeft(readable=[3], since=1)  # a disk that comes back
    read = PythonReader(data, "train", cache=True)
    assert [read(3)[0].size > 0 for _ in range(4)] == [False, True, True, True]
    assert data.reads == [3, 3]


@pytest.mark.some(3)
@pytest.mark.parametrize("readable", [0, 6, 9])
@pytest.mark.parametrize("shuffle", [False, True])
def test_one_example_that_can_be_read_is_enough(readable, shuffle):
    data = NoneLeft(readable=[readable])
    for seed in range(4):
        train = train_pipeline(data, "train", 2, 8, seed=seed, shuffle=shuffle, **PLAIN)
        assert set(order(train.take(6))) == {readable}
    assert order(eval_pipeline(data, "train")) == [readable]


def test_faults_from_before_an_example_was_read_count_no_more():
    """Every example fails once, but they never all fail: as where a disk comes and goes."""

    class Flaky(NoneLeft):
        def read(self, split, index):
            failed = self.reads.count(index) == 0 and index
            example = Numbered.read(self, split, index)
            if failed:
                raise DataError(f"{index}.png", "away")
            return example

    rows = order(train_pipeline(Flaky(), "train", 2, 8, shuffle=False, **PLAIN).take(10))
    assert rows[1:] == [i % 10 for i in range(19)]


def test_a_worker_whose_share_cannot_be_read_is_no_error():
    data = NoneLeft(readable=[0])
    contexts = workers(2, 2)
    assert order(eval_pipeline(data, "train", input_context=contexts[0])) == [0]
    assert list(eval_pipeline(data, "train", input_context=contexts[1])) == []


def test_runs_under_a_strategy():
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    batches = strategy.experimental_distribute_dataset(train_pipeline(Numbered(), "train", 2, 8))
    assert next(iter(batches))[0].shape == (2, 8, 8, 3)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batch_size": 0}, "batch_size"),
        ({"crop_size": (8, 0)}, "crop_size"),
        ({"crop_size": (8, 8, 3)}, "crop_size must be an int above 0 or two"),
        ({"crop_size": 8.5}, "crop_size must be an int above 0 or two"),
        ({"scale_range": (2.0, 0.5)}, "scale_range"),
        ({"scale_range": (0.0, 0.5)}, "scale_range"),
        ({"aspect_range": (1.1, 0.9)}, "aspect_range"),
        ({"brightness": -1}, "brightness"),
        ({"brightness": 1.5}, "brightness"),
        ({"short_side": 9, "exact_size": 9}, "resize by one of"),
        ({"repeat": False, "batch_size": 11}, "10 examples"),
        ({"split": "test"}, "no split 'test'"),
    ],
)
def test_wrong_arguments(changes, message):
    arguments = {"split": "train", "batch_size": 2, "crop_size": 8} | changes
    with pytest.raises(ValueError, match=message):
        train_pipeline(Numbered(), **arguments)


# === What recipes ask for ===


class Sided(SegmentationDataset):
    """A mirror exchanges the classes of the left and the right half."""

    def __init__(self, flip_pairs=((0, 1),)):
        super().__init__("sided", ("left", "right"), ("train",), flip_pairs=flip_pairs)

    def examples(self, split):
        return ("0", "1")

    def read(self, split, index):
        label = np.repeat([[0, 1]], 8, axis=1).repeat(12, axis=0).astype(np.uint8)
        return np.stack([label * 100 + 50] * 3, axis=-1), label


@pytest.mark.parametrize("flip_pairs, right", [(((0, 1),), True), ((), False)])
def test_flips_exchange_what_the_dataset_says(flip_pairs, right):
    train = train_pipeline(
        Sided(flip_pairs), "train", 12, (12, 16), scale_range=None, photometric=False
    )
    images, labels = next(iter(train))
    mirrored = images[:, 0, 0, 0] == 150
    assert 0 < np.count_nonzero(mirrored) < 12
    left = np.where(mirrored, int(not right), 0)  # the label at the left end
    np.testing.assert_array_equal(labels[:, 0, 0], left)


@pytest.mark.parametrize("flip_pairs", [((0, 2),), ((0, 1), (1, 0)), ((0,),), (0, 1), ((0, -1),)])
def test_pairs_that_are_none_are_refused(flip_pairs):
    with pytest.raises(ValueError, match="flip_pairs must be pairs of class ids, 0 to 1"):
        Sided(flip_pairs)


RECIPE = {
    "scale_range": (0.5, 2.0),
    "aspect_range": (0.9, 1.1),
    "short_side": 14,
    "brightness": 10,
    "photometric": False,
}


def test_a_recipe_resumes_where_it_was():
    data = Numbered(heights=3)
    through = list(train_pipeline(data, "train", 4, (10, 14), seed=3, **RECIPE).take(6))
    resumed = train_pipeline(data, "train", 4, (10, 14), seed=3, start_step=4, **RECIPE)
    for batch, again in zip(through[4:], resumed, strict=False):
        assert equal(batch, again)


def test_brightness_leaves_what_is_outside_the_image():
    arguments = {**RECIPE, "scale_range": (0.4, 0.4), "flip": False}
    images, labels = next(iter(train_pipeline(Numbered(), "train", 10, (20, 20), **arguments)))
    outside = labels.numpy() == 255
    assert outside.any() and (images.numpy()[outside] == (124, 116, 104)).all()
    shifts = images.numpy().astype(int)[..., 0] - labels.numpy()
    of_each = [np.unique(s[~o]) for s, o in zip(shifts, outside, strict=True)]
    assert {len(s) for s in of_each} == {1} and len({s[0] for s in of_each}) > 1


def test_brightness_changes_nothing_else():
    """What was drawn before there was any stays as it was."""
    arguments = {"seed": 3, "scale_range": (0.5, 2.0)}
    data = Numbered(heights=3)
    plain = next(iter(train_pipeline(data, "train", 4, (10, 14), photometric=False, **arguments)))
    bright = next(
        iter(
            train_pipeline(
                data, "train", 4, (10, 14), photometric=False, brightness=10, **arguments
            )
        )
    )
    np.testing.assert_array_equal(plain[1], bright[1])
    assert np.any(plain[0] != bright[0])


def test_crops_of_jpegs_are_those_of_whole_images(tmp_path):
    """Of a JPEG only the window is decoded; what is cached is decoded whole, and cut."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / split / kind).mkdir(parents=True)
        for i in range(2):
            rng = np.random.default_rng(i)
            small = rng.integers(0, 256, (5, 7, 3), np.uint8)
            photo = Image.fromarray(small).resize((88, 64), Image.BICUBIC)
            photo.save(tmp_path / split / "images" / f"{i}.jpg", quality=95)
            label = Image.fromarray(rng.integers(0, 3, (64, 88), np.uint8))
            label.save(tmp_path / split / "labels" / f"{i}.png")
    data = FolderDataset(tmp_path, ("a", "b", "c"))
    arguments = {**RECIPE, "short_side": None, "exact_size": (48, 48)}
    one, other = (
        next(iter(train_pipeline(data, "train", 6, (48, 48), cache=cache, **arguments)))
        for cache in (False, True)
    )
    np.testing.assert_array_equal(one[1], other[1])
    # Two decoders of JPEG round differently, by as much as they do without a crop.
    assert np.abs(one[0].numpy().astype(int) - other[0].numpy()).mean() < 1
