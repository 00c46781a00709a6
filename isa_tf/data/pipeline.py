"""From a dataset to batches: shuffled and augmented to train on, whole to evaluate on."""

import tensorflow as tf

from isa_tf.data import augment
from isa_tf.data.base import read_indices
from isa_tf.names import two_ints

# `eval_pipeline` looks for images of one size among this many batches' worth of examples. More
# make fuller batches where sizes differ; all of them may be held in memory.
_BLOCK_BATCHES = 8


def train_pipeline(
    dataset,
    split,
    batch_size,
    crop_size,
    *,
    scale_range=(0.5, 2.0),
    aspect_range=None,
    cat_max_ratio=1.0,
    flip=True,
    photometric=True,
    seed=0,
    shuffle=True,
    repeat=True,
    start_step=0,
    cache=False,
):
    """Shuffled, augmented batches of one size.

    What stands at a place of the stream depends on `seed` and that place alone: a run resumed
    with `start_step=n` sees the batches it would have seen, at no cost for those before.
    (Examples left out by `on_error="skip"` shift the places after them.)

    Args:
        dataset: `SegmentationDataset`.
        split: str, such as "train".
        batch_size: int, over all replicas.
        crop_size: int for both sides, or (height, width).
        scale_range: (low, high) of the random resizing; `None` for none. Defaults to (0.5, 2).
        aspect_range: see `augment.random_scale_crop`. Defaults to `None`.
        cat_max_ratio: see `augment.random_scale_crop`. Defaults to 1.0.
        flip: bool, whether to mirror at random. Defaults to `True`.
        photometric: bool, whether to change the colours at random. Defaults to `True`.
        seed: int. Defaults to 0.
        shuffle: bool, whether each epoch is read in a new order. Defaults to `True`.
        repeat: bool, whether to go on for ever; otherwise one epoch. The last batch of an
            epoch is filled from the next, or dropped where there is none. Defaults to `True`.
        start_step: int, the number of batches to leave out. Defaults to 0.
        cache: bool, whether decoded examples stay in memory, once for all pipelines over
            `dataset`. Defaults to `False`.

    Shapes:
        Batches of image (B, h, w, 3) and label (B, h, w), both uint8.

    Raises:
        ValueError: for an unknown split, a size or range that is not positive, or nothing left.

    Example:

    >>> data = isa_tf.data.create("camvid", data_dir)
    >>> train = isa_tf.data.train_pipeline(data, "train", 2, (96, 96), cache=True)
    >>> history = model.fit(train, steps_per_epoch=2, epochs=1, verbose=0)
    """
    size = dataset.size(split)
    crop_size = two_ints("crop_size", crop_size)
    _check_positive("batch_size", (batch_size,))
    for name, span in (("scale_range", scale_range), ("aspect_range", aspect_range)):
        if span is not None:
            _check_positive(name, span, 2)
    first = start_step * batch_size
    if size == 0 or first < 0 or (not repeat and first + batch_size > size):
        raise ValueError(
            f"No whole batch is left: split {split!r} has {size} examples. "
            f"Received: batch_size={batch_size}, start_step={start_step}"
        )

    def to_index(i):
        epoch, place = i // size, i % size
        if not shuffle:
            return place
        return _shuffled(place, epoch, size, seed)

    def distort(i, image, label):
        seeds = tf.random.split((tf.constant(seed, tf.int64), i), 3)
        image, label = augment.random_scale_crop(
            image, label, crop_size, seeds[0], scale_range, aspect_range, cat_max_ratio
        )
        if flip:
            image, label = augment.random_flip(image, label, seeds[1])
        if photometric:
            image = augment.photometric_distortion(image, seeds[2])
        return image, label

    running = tf.data.Dataset.counter(first) if repeat else tf.data.Dataset.range(first, size)
    data = read_indices(dataset, split, running, to_index, cache)
    data = data.map(distort, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return _finish(data.batch(batch_size, drop_remainder=True))


def eval_pipeline(dataset, split, batch_size=1, cache=False):
    """Every image of a split once, whole and as it is.

    A batch holds images of one size only, so nothing is padded and a score does not depend on
    `batch_size`; where sizes differ, a `batch_size` above 1 may change the order, and batches
    may be smaller. They are put together within blocks of eight batches' worth of examples, so
    that no more than a block is held in memory.

    Args:
        dataset: `SegmentationDataset`.
        split: str, such as "val".
        batch_size: int. Defaults to 1.
        cache: bool, whether decoded examples stay in memory, once for all pipelines over
            `dataset`. Defaults to `False`.

    Shapes:
        Batches of image (B, H, W, 3) and label (B, H, W), both uint8.

    Raises:
        ValueError: for an unknown split or a `batch_size` that is not positive.

    Example:

    >>> metric = isa_tf.metrics.MeanIoU(data.num_classes)
    >>> for image, label in isa_tf.data.eval_pipeline(data, "val"):
    ...     metric.update_state(label, model(image))
    """
    _check_positive("batch_size", (batch_size,))
    running = tf.data.Dataset.range(dataset.size(split))
    data = read_indices(dataset, split, running, cache=cache)
    data = data.map(lambda i, image, label: (image, label))
    if batch_size == 1:
        return _finish(data.batch(1))

    def size_key(image, label):
        height, width = tf.unstack(tf.shape(label, tf.int64))
        return height * 2**31 + width

    def batches_of_one_size(images, labels):
        return tf.data.Dataset.zip((images, labels)).group_by_window(
            size_key, lambda key, same: same.batch(batch_size), window_size=batch_size
        )

    return _finish(data.window(_BLOCK_BATCHES * batch_size).flat_map(batches_of_one_size))


def _shuffled(place, epoch, size, seed):
    """Where `place` of an epoch lies in the split: a permutation for every (seed, epoch)."""
    key = tf.random.stateless_uniform(
        (2,), (tf.constant(seed, tf.int64), epoch), minval=None, maxval=None, dtype=tf.int32
    )
    return tf.random.experimental.index_shuffle(place, key, tf.constant(size - 1, tf.int64))


def _finish(data):
    options = tf.data.Options()
    options.deterministic = True
    # Files cannot be dealt out among workers: every worker takes its share of the examples.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return data.prefetch(tf.data.AUTOTUNE).with_options(options)


def _check_positive(name, values, count=1):
    values = tuple(values)
    if (
        len(values) != count
        or min(values) <= 0
        or (name.endswith("range") and values[0] > values[1])
    ):
        raise ValueError(f"`{name}` needs {count} positive number(s). Received: {values}")
