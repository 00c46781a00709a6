import numpy as np
import pytest
import tensorflow as tf

from isa_tf.data import SegmentationDataset, eval_pipeline, train_pipeline


class Numbered(SegmentationDataset):
    """Image and label of example i are filled with i; its size varies where asked."""

    def __init__(self, size=10, varied=False, **kwargs):
        super().__init__("numbered", [str(i) for i in range(size)], ("train",), **kwargs)
        self._size, self._varied, self.reads = size, varied, []

    def examples(self, split):
        self._check_split(split)
        return tuple(map(str, range(self._size)))

    def read(self, split, index):
        self.reads.append(index)
        shape = (12 + (index % 3 if self._varied else 0), 16)
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
    spec = train_pipeline(Numbered(), "train", 4, 24).element_spec
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
    data = Numbered(varied=True)
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
        return next(iter(train_pipeline(Numbered(varied=True), "train", 4, (10, 14), seed=seed)))

    assert equal(first(1), first(1))
    assert not equal(first(1), first(2))


def test_cache_reads_each_example_once():
    data = Numbered()
    list(train_pipeline(data, "train", 5, 8, cache=True, **PLAIN).take(8))
    assert sorted(data.reads) == list(range(10))


def test_eval_gives_whole_images_in_order():
    data = Numbered(varied=True)
    batches = list(eval_pipeline(data, "train"))
    assert order(batches) == list(range(10))
    assert [image.shape[1] for image, _ in batches[:3]] == [12, 13, 14]


def test_eval_batches_hold_one_size():
    data = Numbered(varied=True)
    batches = list(eval_pipeline(data, "train", batch_size=3))
    assert sorted(order(batches)) == list(range(10))
    assert max(image.shape[0] for image, _ in batches) == 3
    assert order(eval_pipeline(Numbered(), "train", batch_size=4)) == list(range(10))


def test_shards_by_examples():
    for data in (train_pipeline(Numbered(), "train", 2, 8), eval_pipeline(Numbered(), "train")):
        policy = data.options().experimental_distribute.auto_shard_policy
        assert policy == tf.data.experimental.AutoShardPolicy.DATA


def test_runs_under_a_strategy():
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    batches = strategy.experimental_distribute_dataset(train_pipeline(Numbered(), "train", 2, 8))
    assert next(iter(batches))[0].shape == (2, 8, 8, 3)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batch_size": 0}, "batch_size"),
        ({"crop_size": (8, 0)}, "crop_size"),
        ({"crop_size": (8, 8, 3)}, "crop_size"),
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
