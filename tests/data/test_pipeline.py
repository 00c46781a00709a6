import numpy as np
import pytest
import tensorflow as tf

from isa_tf.data import DataError, SegmentationDataset, eval_pipeline, train_pipeline


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


def test_shards_by_examples():
    for data in (train_pipeline(Numbered(), "train", 2, 8), eval_pipeline(Numbered(), "train")):
        policy = data.options().experimental_distribute.auto_shard_policy
        assert policy == tf.data.experimental.AutoShardPolicy.OFF


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
        ({"repeat": False, "batch_size": 11}, "10 examples"),
        ({"split": "test"}, "no split 'test'"),
    ],
)
def test_wrong_arguments(changes, message):
    arguments = {"split": "train", "batch_size": 2, "crop_size": 8} | changes
    with pytest.raises(ValueError, match=message):
        train_pipeline(Numbered(), **arguments)
