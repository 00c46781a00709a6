"""From a dataset to batches: shuffled and augmented to train on, whole to evaluate on."""

import threading
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from isa_tf.data import augment
from isa_tf.data.base import Dataset, SegmentationDataset, python_operation, read_indices
from isa_tf.hints import Size
from isa_tf.names import two_ints
from isa_tf.runtime import processors

# `eval_pipeline` looks for images of one size among this many batches' worth of examples. More
# make fuller batches where sizes differ; all of them may be held in memory.
_BLOCK_BATCHES = 8


def train_pipeline(
    dataset: SegmentationDataset,
    split: str,
    batch_size: int,
    crop_size: Size,
    *,
    scale_range: Sequence[float] | None = (0.5, 2.0),
    aspect_range: Sequence[float] | None = None,
    cat_max_ratio: float = 1.0,
    short_side: int | None = None,
    fit_size: Sequence[int] | None = None,
    exact_size: Sequence[int] | None = None,
    flip: bool = True,
    brightness: int = 0,
    photometric: bool = True,
    seed: int = 0,
    shuffle: bool = True,
    repeat: bool = True,
    start_step: int = 0,
    cache: bool = False,
    input_context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
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
        short_side: int, what the shorter side is resized to before all else, keeping proportions;
            `None` for the image's own size. Defaults to `None`.
        fit_size: (long, short) sides that images are made to fit into instead, keeping
            proportions. Defaults to `None`.
        exact_size: (height, width) that images are brought to instead, whatever their
            proportions. Defaults to `None`.
        flip: bool, whether to mirror at random; the dataset's `flip_pairs` of classes then change
            places in the label. Defaults to `True`.
        brightness: int, the most that is added to all of an image or taken away, of 255, before
            it is padded. Defaults to 0.
        photometric: bool, whether to change the colours at random. Defaults to `True`.
        seed: int. Defaults to 0.
        shuffle: bool, whether each epoch is read in a new order. Defaults to `True`.
        repeat: bool, whether to go on for ever; otherwise one epoch. The last batch of an
            epoch is filled from the next, or dropped where there is none. Defaults to `True`.
        start_step: int, the number of batches to leave out. Defaults to 0.
        cache: bool, whether decoded examples stay in memory, once for all pipelines over
            `dataset`. Defaults to `False`.
        input_context: `tf.distribute.InputContext`, for one of several workers: of each batch
            it reads the rows that are its replicas' and gives them replica after replica, so
            that its batches have batch_size / replicas rows. Together the workers' are the
            batch that one worker would see, row for row. Defaults to `None`, for one worker.

    Shapes:
        Batches of image (B, h, w, 3) and label (B, h, w), both uint8.

    Raises:
        ValueError: for an unknown split, a size or range that is not positive, more than one of
            the three resizings, a negative `brightness`, or nothing left; for a `batch_size` that
            the replicas do not divide.

    Example:

    >>> data = isa_tf.data.create("camvid", data_dir)
    >>> train = isa_tf.data.train_pipeline(data, "train", 2, (96, 96), cache=True)
    >>> history = model.fit(train, steps_per_epoch=2, shuffle=False, verbose=0)
    """
    dataset.size(split)  # an unknown split is an error before all others
    crop_size = two_ints("crop_size", crop_size)
    check_positive("batch_size", (batch_size,))
    for name, span in (("scale_range", scale_range), ("aspect_range", aspect_range)):
        if span is not None:
            check_positive(name, span, 2)
    if brightness < 0 or brightness != int(brightness):
        raise ValueError(f"brightness must be a whole number from 0 on, got {brightness}")
    resize = augment.make_resize(short_side, fit_size, exact_size)
    running, replica_batch = places(dataset, split, batch_size, start_step, repeat, input_context)
    to_index = example_order(dataset, split, batch_size, seed, shuffle)

    def place_of(i, label):
        return augment.crop_place(
            label,
            crop_size,
            place_seeds(seed, i)[0],
            scale_range,
            aspect_range,
            cat_max_ratio,
            resize,
        )

    resized = augment.resizes(scale_range, aspect_range, resize)

    def distort(i, image, label, place):
        seeds = place_seeds(seed, i)
        if brightness:
            # Folded in, so that what was drawn before there was this stays as it was.
            shift_seed = tf.random.fold_in(seeds[2], 1)
            image = augment.random_brightness(image, shift_seed, int(brightness))
        image, label = augment.fit_crop(image, label, place, crop_size, resized)
        if flip:
            image, label = augment.random_flip(image, label, seeds[1], dataset.flip_pairs)
        if photometric:
            image = augment.photometric_distortion(image, seeds[2])
        return image, label

    data = read_indices(dataset, split, running, to_index, cache, place_of)
    data = data.map(distort, num_parallel_calls=processors(), deterministic=True)
    return finish(data.batch(replica_batch, drop_remainder=True))


def place_seeds(seed: int, place: tf.Tensor) -> tf.Tensor:
    """What is drawn at a place of `train_pipeline`'s stream is drawn from these.

    Args:
        seed: int, the pipeline's.
        place: int64 scalar tensor.

    Returns:
        (3, 2) int32 tensor: a seed of the window, one of the mirror and one of the colours.
    """
    return tf.random.split((tf.constant(seed, tf.int64), place), 3)


def batch_examples(
    dataset: SegmentationDataset,
    split: str,
    batch_size: int,
    step: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
) -> list[str]:
    """The names of the examples that `train_pipeline`, or that of instances, makes one batch of.

    Where training stopped at a batch, this tells its files. (Examples left out by
    `on_error="skip"` shift the places after them, of which this knows nothing.)

    Args:
        dataset: `SegmentationDataset` or `InstanceDataset`.
        split: str, such as "train".
        batch_size: int, over all replicas.
        step: int, the batch's place in the stream, from 0.
        seed: int, the pipeline's. Defaults to 0.
        shuffle: bool, the pipeline's. Defaults to `True`.

    Returns:
        A list of str, of `dataset.examples(split)`, one a row.

    Raises:
        ValueError: for an unknown split or one without examples, a `batch_size` that is not
            positive or a negative `step`.

    Example:

    >>> data = isa_tf.data.SyntheticDataset(num_examples={"train": 4, "val": 2})
    >>> isa_tf.data.batch_examples(data, "train", 2, step=1, shuffle=False)
    ['train/000002', 'train/000003']
    """
    names = dataset.examples(split)
    check_positive("batch_size", (batch_size,))
    if step < 0 or not names:
        raise ValueError(
            f"there is no batch of step {step}: split {split!r} has {len(names)} examples"
        )
    rows = tf.range(step * batch_size, (step + 1) * batch_size, dtype=tf.int64)
    to_index = example_order(dataset, split, batch_size, seed, shuffle)
    return [names[int(to_index(i))] for i in rows]


def eval_pipeline(
    dataset: SegmentationDataset,
    split: str,
    batch_size: int = 1,
    cache: bool = False,
    input_context: tf.distribute.InputContext | None = None,
    with_index: bool = False,
) -> tf.data.Dataset:
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
        input_context: `tf.distribute.InputContext`, for one of several workers: it reads its
            share of the split, in which no other has a part; shares differ by one example at
            most and may be empty. Batches are a replica's. Defaults to `None`, for all.
        with_index: bool, whether to tell which examples a batch has: it is a dict of "image",
            "label" and "index" then. Defaults to `False`.

    Shapes:
        Batches of image (B, H, W, 3) and label (B, H, W), both uint8; index (B,), int64, positions
        in the split.

    Raises:
        ValueError: for an unknown split or a `batch_size` that is not positive.

    Example:

    >>> metric = isa_tf.metrics.MeanIoU(data.num_classes)
    >>> for image, label in isa_tf.data.eval_pipeline(data, "val"):
    ...     metric.update_state(label, model(image))
    """
    check_positive("batch_size", (batch_size,))
    running = share_of_split(dataset, split, input_context)
    data = read_indices(dataset, split, running, cache=cache)

    def as_asked(index, image, label):
        return {"image": image, "label": label, "index": index} if with_index else (image, label)

    return finish(batch_by_size(data, batch_size).map(as_asked))


def batch_by_size(data: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
    """Batches of labels of one size, put together within blocks of eight batches' worth.

    Args:
        data: `tf.data.Dataset` of tuples of which the last part is a label (H, W).
        batch_size: int.

    Returns:
        `tf.data.Dataset` of the same tuples, of at most `batch_size` rows.
    """
    if batch_size == 1:
        return data.batch(1)

    def size_key(*parts):
        height, width = tf.unstack(tf.shape(parts[-1], tf.int64))
        return height * 2**31 + width

    def batches_of_one_size(*parts):
        return tf.data.Dataset.zip(parts).group_by_window(
            size_key, lambda key, same: same.batch(batch_size), window_size=batch_size
        )

    return data.window(_BLOCK_BATCHES * batch_size).flat_map(batches_of_one_size)


def share_of_split(
    dataset: Dataset, split: str, input_context: tf.distribute.InputContext | None = None
) -> tf.data.Dataset:
    """The positions of a split that this worker evaluates: `tf.data.Dataset` of int64 scalars.

    Args:
        dataset, split, input_context: see `eval_pipeline`.

    Raises:
        ValueError: for an unknown split.
    """
    size, workers, worker = dataset.size(split), 1, 0
    if input_context is not None:
        workers, worker = input_context.num_input_pipelines, input_context.input_pipeline_id
    return tf.data.Dataset.range(worker * size // workers, (worker + 1) * size // workers)


def places(
    dataset: Dataset,
    split: str,
    batch_size: int,
    start_step: int,
    repeat: bool,
    input_context: tf.distribute.InputContext | None,
) -> tuple[tf.data.Dataset, int]:
    """The places of the stream that this worker reads for training.

    Args:
        dataset, split, batch_size, start_step, repeat, input_context: see `train_pipeline`.

    Returns:
        `tf.data.Dataset` of int64 scalars, and how many of them make a batch.

    Raises:
        ValueError: see `train_pipeline`.
    """
    size = dataset.size(split)
    first = start_step * batch_size
    if size == 0 or first < 0 or (not repeat and first + batch_size > size):
        raise ValueError(
            f"no whole batch is left: split {split!r} has {size} examples, "
            f"got batch_size={batch_size}, start_step={start_step}"
        )
    # This worker has `rows` in each batch, from the batch's `first_row` on.
    rows, first_row, replica_batch = _share_of_batch(batch_size, input_context)
    start, stop = start_step * rows, size if rows == batch_size else size // batch_size * rows
    running = tf.data.Dataset.counter(start) if repeat else tf.data.Dataset.range(start, stop)
    if rows < batch_size:
        running = running.map(lambda j: j // rows * batch_size + first_row + j % rows)
    return running, replica_batch


def _share_of_batch(batch_size, input_context):
    """A worker's rows in a batch: (how many, the first, how many are a replica's)."""
    if input_context is None:
        return batch_size, 0, batch_size
    workers, replicas = input_context.num_input_pipelines, input_context.num_replicas_in_sync
    if batch_size % replicas or replicas % workers:
        raise ValueError(
            f"batch_size must divide among replicas, and they among workers, got "
            f"batch_size={batch_size} for {replicas} replicas of {workers} workers"
        )
    rows = batch_size // workers
    return rows, input_context.input_pipeline_id * rows, batch_size // replicas


def example_order(
    dataset: Dataset, split: str, batch_size: int, seed: int, shuffle: bool
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Which example stands at a place of the stream.

    Each epoch is a permutation, drawn from (seed, epoch). Where the dataset tells which of its
    images stand (`InstanceDataset.orientations`), what is shuffled is put together so that all of
    a batch stand or all lie, but for those at the end of an epoch.

    Args:
        dataset, split, batch_size, seed, shuffle: see `train_pipeline`.

    Returns:
        Function of a place, an int64 scalar tensor, that gives a position in the split.
    """
    size = dataset.size(split)
    if not shuffle:
        return lambda i: i % size
    stands = getattr(dataset, "orientations", lambda split: None)(split)
    if batch_size == 1 or stands is None or stands.all() or not stands.any():
        return lambda i: _shuffled(i % size, i // size, size, seed)
    order = _OrderOfKinds(stands, batch_size, seed)
    return lambda i: tf.ensure_shape(python_operation(order, [i], tf.int64), ())


class _OrderOfKinds:
    """A permutation for every epoch in which whole batches are of one kind."""

    def __init__(self, kinds, batch_size, seed):
        self._kinds, self._batch_size, self._seed = kinds, batch_size, seed
        self._lock, self._epochs = threading.Lock(), {}

    def __call__(self, i):
        epoch, place = divmod(int(i), len(self._kinds))
        with self._lock:
            if epoch not in self._epochs:
                self._epochs = {n: e for n, e in self._epochs.items() if abs(n - epoch) == 1}
                self._epochs[epoch] = self._epoch(epoch)
            return self._epochs[epoch][place]

    def _epoch(self, epoch):
        size, batch_size = len(self._kinds), self._batch_size
        with tf.init_scope():
            order = _shuffled(tf.range(size, dtype=tf.int64), epoch, size, self._seed).numpy()
        head = -epoch * size % batch_size  # what fills the batch that the last epoch has begun
        rest = order[head:]
        batches, left = [], []
        for kind in np.unique(self._kinds):
            some = rest[self._kinds[rest] == kind]
            whole = len(some) // batch_size * batch_size
            batches.extend(some[:whole].reshape(-1, batch_size))
            left.append(some[whole:])
        mixed = np.random.default_rng([abs(self._seed), epoch]).permutation(len(batches))
        return np.concatenate([order[:head], *(batches[i] for i in mixed), *left])


def _shuffled(place, epoch, size, seed):
    """Where `place` of an epoch lies in the split: a permutation for every (seed, epoch)."""
    key = tf.random.stateless_uniform(
        (2,), (tf.constant(seed, tf.int64), epoch), minval=None, maxval=None, dtype=tf.int32
    )
    return tf.random.experimental.index_shuffle(place, key, tf.constant(size - 1, tf.int64))


def finish(data: tf.data.Dataset) -> tf.data.Dataset:
    """What a pipeline ends with: in order, some ahead, and dealt out to workers by nobody else."""
    options = tf.data.Options()
    options.deterministic = True
    # Letting go of an iterator that TensorFlow (2.21) tunes waits for its tuner, which now and then
    # sleeps through the call to end: the longer the iterator has lived the longer, to a minute,
    # behind every validation and where a job is told to end. There is nothing to tune: as many
    # examples are read at once as there are processors.
    options.autotune.enabled = False
    # Workers share the examples by `input_context`, before any is read.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return data.prefetch(tf.data.AUTOTUNE).with_options(options)


def check_positive(name: str, values: Sequence[float], count: int = 1) -> None:
    """Raises ValueError for what is not `count` numbers above 0, of a range in their order."""
    values = tuple(values)
    if (
        len(values) != count
        or min(values) <= 0
        or (name.endswith("range") and values[0] > values[1])
    ):
        raise ValueError(f"{name} must be {count} positive number(s), got {values}")
