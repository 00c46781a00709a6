"""From a dataset of instances to batches for a detector: resized, mirrored, padded."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from isa_tf.data.base import PythonReader, python_operation, read_each
from isa_tf.data.instances import InstanceDataset
from isa_tf.data.pipeline import check_positive, example_order, finish, places
from isa_tf.hints import Length, Size
from isa_tf.names import two_ints
from isa_tf.runtime import processors


def instance_train_pipeline(
    dataset: InstanceDataset,
    split: str,
    batch_size: int,
    *,
    short_side: Size = 800,
    long_side: int = 1333,
    pad_size: Size | Sequence[Sequence[int]] | None = None,
    size_divisor: int = 32,
    flip: bool = True,
    max_instances: int = 100,
    mask_size: int = 112,
    seed: int = 0,
    shuffle: bool = True,
    repeat: bool = True,
    start_step: int = 0,
    cache: bool = False,
    input_context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
    """Shuffled batches of images and of their instances, padded to a fixed number.

    What stands at a place of the stream depends on `seed` and that place alone, as in
    `train_pipeline`. Where the dataset knows which of its images lie and which stand, shuffled
    batches have one kind, but for one an epoch.

    An image is resized as torchvision's detectors do it (`resized_size`), bilinearly and without
    antialiasing, and stands at the top left of what is padded with zeros. Boxes are cut off at the
    image. Of each instance there is a small mask of its own, cut to its box: no map is as large as
    the image. Boxes without area are left out.

    Args:
        dataset: `InstanceDataset`.
        split: str, such as "train".
        batch_size: int, over all replicas.
        short_side: int, what the shorter side is resized to; or a sequence of ints, one of which is
            drawn for each image. Defaults to 800.
        long_side: int, what the longer side has at most, whatever becomes of the shorter. Defaults
            to 1333.
        pad_size: (height, width) of all batches, or an int for both; or a sequence of such pairs,
            of which a batch takes the smallest that holds its images; one must hold images that
            stand and lie, for batches of both. `None` for the largest height and width in the
            batch, rounded up to `size_divisor`. Defaults to `None`.
        size_divisor: int, see `pad_size`. Defaults to 32.
        flip: bool, whether to mirror at random. Defaults to `True`.
        max_instances: int, how many instances there is room for. Of more, crowds are left out
            first, then the last ones, and a warning says so once. Defaults to 100.
        mask_size: int, height and width of the masks. Defaults to 112.
        seed: int. Defaults to 0.
        shuffle: see `train_pipeline`. Defaults to `True`.
        repeat: see there. Defaults to `True`.
        start_step: see there. Defaults to 0.
        cache: see there. Defaults to `False`.
        input_context: see there. (Workers pad alike where `pad_size` is given.) Defaults to `None`.

    Returns:
        `tf.data.Dataset` of pairs of dicts. The first has "image" (B, H, W, 3), float32 RGB in
        0..255, and "size" (B, 2), int32, height and width of the image in it. The second has, with
        zeros where there are fewer than N instances: "boxes" (B, N, 4), float32 (x1, y1, x2, y2) in
        pixels of "image"; "classes" (B, N), int32; "crowd" and "valid" (B, N), bool, crowds being
        valid; "masks" (B, N, S, S), uint8, 255 inside and 0 outside, and between at borders, the
        mean over a cell; "mask_boxes" (B, N, 4), float32, what of the image a mask covers: the box,
        grown by one cell on each side; and "seed" (B, 2), int32, of the image, for what is drawn
        of it in training.

    Raises:
        ValueError: for an unknown split, a size that is not positive, a `mask_size` below 3, a
            `pad_size` that does not hold an image whose size is known, or nothing left; for a
            `batch_size` that the replicas do not divide.
        InvalidArgumentError: while reading, for an image or a batch that `pad_size` does not hold.

    Example:

    >>> data = isa_tf.data.SyntheticInstances(num_examples={"train": 4})
    >>> train = isa_tf.data.instance_train_pipeline(data, "train", 2, short_side=64, mask_size=28)
    >>> x, y = next(iter(train))
    >>> x["image"].shape, y["masks"].shape
    (TensorShape([2, 64, 64, 3]), TensorShape([2, 100, 28, 28]))

    Source: `torchvision.models.detection.transform.GeneralizedRCNNTransform`.
    """
    dataset.size(split)  # an unknown split is an error before all others
    check_positive("batch_size", (batch_size,))
    short_sides = tuple(np.atleast_1d(short_side).tolist())
    check_positive("short_side", short_sides, len(short_sides) or 1)
    check_positive("long_side", (long_side,))
    check_positive("size_divisor", (size_divisor,))
    check_positive("max_instances", (max_instances,))
    if mask_size < 3:
        raise ValueError(
            f"mask_size must be at least 3, with a border of one cell, got {mask_size}"
        )
    pads = _pads(pad_size)
    _check_pads(pads, dataset, split, short_sides, long_side)
    running, replica_batch = places(dataset, split, batch_size, start_step, repeat, input_context)
    to_index = example_order(dataset, split, batch_size, seed, shuffle)
    targets = _Targets(dataset, split, max_instances, mask_size)

    def load(split, index):
        image, annotations = dataset.read(split, index)
        return image, *targets.of(annotations, image.shape[:2])

    empty = np.zeros((0, 0, 3), np.uint8), *targets.empty()
    read = PythonReader(dataset, split, cache, load, empty, (max_instances, mask_size))
    # What is kept is kept in Python, which to ask is cheap.
    reader = None if cache else dataset.image_reader(split)

    def by_python(i):
        types = (tf.uint8, *_Targets.TYPES)
        image, *found = python_operation(read, [to_index(i)], types)
        return _image(image), *targets.shaped(found)

    def by_graph(i):
        found = python_operation(targets, [to_index(i)], _Targets.TYPES)
        return _image(reader.read(to_index(i))), *targets.shaped(found)

    able = reader and reader.able
    data = read_each(read, running, to_index, by_python, reader and by_graph, able)

    def as_asked(i, image, *found):
        seeds = tf.random.split((tf.constant(seed, tf.int64), i), 3)
        if len(short_sides) == 1:
            short = tf.constant(short_sides[0], tf.float64)
        else:
            drawn = tf.random.stateless_uniform((), seeds[0], 0, len(short_sides), tf.int32)
            short = tf.gather(tf.constant(short_sides, tf.float64), drawn)
        image, found = _resize(image, found, short, long_side)
        if flip:
            mirror = tf.random.stateless_uniform((), seeds[1]) < 0.5
            image, found = _flip(mirror, image, found)
        x = {"image": image, "size": tf.shape(image)[:2]}
        if len(pads) == 1:
            x["image"] = _pad(image, tf.constant(pads[0], tf.int32))
        elif not pads:
            x["image"] = _pad(image, -(-x["size"] // size_divisor) * size_divisor)
        return x, {**_filled(found, max_instances), "seed": tf.cast(seeds[2], tf.int32)}

    data = data.map(as_asked, num_parallel_calls=processors(), deterministic=True)
    data = data.padded_batch(replica_batch, drop_remainder=True)  # of one size they are as they are
    if len(pads) > 1:
        data = data.map(lambda x, y: ({**x, "image": _pad_to_one_of(x["image"], pads)}, y))
    return finish(data)


def resized_size_of(size: Sequence[int], short_side: int, long_side: int) -> tuple[int, int]:
    """`resized_size` in Python, of a (height, width): a tuple of ints.

    >>> resized_size_of((480, 640), 800, 1333)
    (800, 1066)
    """
    scale = min(short_side / min(size), long_side / max(size))
    height, width = (max(math.floor(side * scale), 1) for side in size)
    return height, width


def resized_size(size: tf.Tensor, short_side: Length, long_side: Length) -> tf.Tensor:
    """What an image is resized to: the short side as told, unless the long one were too long.

    In float64, as Python's floats are: torchvision's rule in every bit.

    Args:
        size: int tensor (2,), height and width.
        short_side: int or float64 tensor.
        long_side: int.

    Returns:
        int32 tensor (2,).

    Example:

    >>> resized_size((480, 640), 800, 1333).numpy().tolist()
    [800, 1066]
    >>> resized_size((427, 1280), 800, 1333).numpy().tolist()
    [444, 1333]

    Source: `torchvision.models.detection.transform._resize_image_and_masks`.
    """
    size = tf.cast(size, tf.float64)
    shortest, longest = tf.reduce_min(size), tf.reduce_max(size)
    scale = tf.minimum(
        tf.cast(short_side, tf.float64) / shortest, tf.cast(long_side, tf.float64) / longest
    )
    # (An image so long that nothing of its width were left keeps a pixel of it.)
    return tf.maximum(tf.cast(tf.floor(size * scale), tf.int32), 1)


# === Masks ===


def grown_box(box: np.ndarray, mask_size: int) -> np.ndarray:
    """What of an image a mask covers: the box, grown by one cell of the mask on each side.

    Args:
        box: array (..., 4), (x1, y1, x2, y2).
        mask_size: int, 3 or more.

    Returns:
        Array (..., 4).

    Example:

    >>> grown_box(np.array([10.0, 10.0, 20.0, 30.0]), 12)
    array([ 9.,  8., 21., 32.])
    """
    cells = (box[..., 2:] - box[..., :2]) / (mask_size - 2)
    return np.concatenate([box[..., :2] - cells, box[..., 2:] + cells], -1)


def cut_mask(lengths: dict[str, Any], box: np.ndarray, mask_size: int) -> np.ndarray:
    """Cuts the mask of one instance to its box.

    Args:
        lengths: dict of run lengths over the image, see `Annotations`.
        box: array (4,), (x1, y1, x2, y2) in pixels of the image, with an area.
        mask_size: int, 3 or more.

    Returns:
        uint8 array (mask_size, mask_size) over `grown_box(box, mask_size)`: 255 times the share of
        a cell that is inside, where every pixel of the image is a square. The outermost cells are
        0.

    Example:

    >>> from pycocotools import mask
    >>> whole = mask.encode(np.asfortranarray(np.ones((6, 6), np.uint8)))
    >>> cut_mask(whole, np.array([1.0, 1.0, 5.0, 5.0]), 4)
    array([[  0,   0,   0,   0],
           [  0, 255, 255,   0],
           [  0, 255, 255,   0],
           [  0,   0,   0,   0]], dtype=uint8)
    """
    from pycocotools import mask

    found = np.zeros((mask_size, mask_size), np.uint8)
    inside = mask.decode(lengths)
    x1, y1, x2, y2 = map(float, box)
    for axis, (first, last) in enumerate(((y1, y2), (x1, x2))):
        inside = _cell_means(inside, first, last, mask_size - 2, axis)
    found[1:-1, 1:-1] = np.clip(np.rint(255 * inside), 0, 255)
    return found


def _cell_means(values, first, last, cells, axis):
    """Means over equal parts of an axis, of which position p lasts from p to p + 1."""
    values = np.moveaxis(values, axis, 0)
    size = len(values)
    # What lies beyond the parts is left out before anything is summed up.
    start, stop = max(int(first), 0), min(int(np.ceil(last)), size)
    values = values[start:stop]
    sums = np.zeros((len(values) + 1, *values.shape[1:]), np.float32)
    np.cumsum(values, axis=0, dtype=np.float32, out=sums[1:])
    edges = np.clip(np.linspace(first, last, cells + 1) - start, 0, len(values))
    below = np.minimum(edges.astype(int), max(len(values) - 1, 0))
    share = (edges - below).astype(np.float32)
    share = share.reshape(-1, *[1] * (values.ndim - 1))
    at_edges = sums[below] * (1 - share) + sums[np.minimum(below + 1, len(values))] * share
    return np.moveaxis(np.diff(at_edges, axis=0) * np.float32(cells / (last - first)), 0, axis)


class _Targets:
    """What is learned of an image, arrays with one row an instance, in pixels of the source."""

    TYPES = (tf.float32, tf.int32, tf.bool, tf.uint8, tf.float32)
    NAMES = ("boxes", "classes", "crowd", "masks", "mask_boxes")

    def __init__(self, dataset, split, max_instances, mask_size):
        self._dataset, self._split = dataset, split
        self._max_instances, self._mask_size = max_instances, mask_size
        self._ends = ((4,), (), (), (mask_size, mask_size), (4,))

    def __call__(self, index):
        size = self._dataset.size_of(self._split, int(index))
        return self.of(self._dataset.annotations(self._split, int(index)), size)

    def empty(self):
        """Of an image without instances."""
        return tuple(
            np.zeros((0, *end), dtype.as_numpy_dtype)
            for end, dtype in zip(self._ends, self.TYPES, strict=True)
        )

    def shaped(self, found):
        """The tensors with what is known of their shapes."""
        return [
            tf.ensure_shape(each, (None, *end)) for each, end in zip(found, self._ends, strict=True)
        ]

    def of(self, annotations, size):
        """Of `Annotations` over an image of the size."""
        height, width = size
        boxes = np.clip(annotations.boxes, 0, np.float32([width, height, width, height]))
        kept = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(-1))
        if len(kept) > self._max_instances:
            self._tell(len(kept))
            crowds_last = kept[np.argsort(annotations.crowd[kept], kind="stable")]
            kept = np.sort(crowds_last[: self._max_instances])
        boxes = boxes[kept]
        masks = np.zeros((len(kept), self._mask_size, self._mask_size), np.uint8)
        for mask, i, box in zip(masks, kept, boxes, strict=True):
            mask[:] = cut_mask(annotations.masks[i], box, self._mask_size)
        return (
            boxes,
            annotations.classes[kept],
            annotations.crowd[kept],
            masks,
            grown_box(boxes, self._mask_size).astype(np.float32),
        )

    def _tell(self, count):
        key = "max_instances", self._split
        if key not in self._dataset._logged:
            self._dataset._logged.add(key)
            logging.warning(
                "%s/%s has images of more instances than max_instances=%d, such as one of %d: "
                "crowds are left out first, then the last ones",
                *(self._dataset.name, self._split, self._max_instances, count),
            )


# === In the graph ===


def _image(image):
    return tf.ensure_shape(image, (None, None, 3))


def _resize(image, found, short_side, long_side):
    boxes, classes, crowd, masks, mask_boxes = found
    old = tf.shape(image)[:2]
    new = resized_size(old, short_side, long_side)
    image = tf.image.resize(tf.cast(image, tf.float32), new)
    ratio = tf.cast(new / old, tf.float32)[::-1]
    ratio = tf.concat([ratio, ratio], 0)
    return image, (boxes * ratio, classes, crowd, masks, mask_boxes * ratio)


def _flip(mirror, image, found):
    width = tf.cast(tf.shape(image)[1], tf.float32)

    def turned(boxes):
        x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
        return tf.stack([width - x2, y1, width - x1, y2], -1)

    def mirrored():
        boxes, classes, crowd, masks, mask_boxes = found
        masks = tf.reverse(masks, [2])
        return tf.reverse(image, [1]), (turned(boxes), classes, crowd, masks, turned(mask_boxes))

    return tf.cond(mirror, mirrored, lambda: (tf.identity(image), tuple(map(tf.identity, found))))


def _pad(image, size):
    room = size - tf.shape(image)[:2]
    message = "an image, once resized, is larger than pad_size"
    with tf.control_dependencies([tf.debugging.assert_non_negative(room, message)]):
        pads = tf.stack([tf.zeros_like(room), room], 1)
    padded = tf.pad(image, tf.concat([pads, [[0, 0]]], 0))
    known = tf.get_static_value(size)
    return tf.ensure_shape(padded, (*((None, None) if known is None else known), 3))


def _pads(pad_size):
    """A list of (height, width), the smallest first; empty for none."""
    if pad_size is None:
        return []
    several = np.ndim(pad_size) == 2
    pads = [two_ints("pad_size", pad) for pad in (pad_size if several else [pad_size])]
    return sorted(pads, key=lambda pad: (pad[0] * pad[1], pad))


def _check_pads(pads, dataset, split, short_sides, long_side):
    sizes = dataset.sizes(split) if pads else None
    if sizes is None:
        return
    sizes, found = np.unique(sizes, axis=0, return_index=True)
    for size, index in zip(sizes.tolist(), found, strict=True):
        for short_side in short_sides:
            needed = resized_size_of(size, short_side, long_side)
            if not any(needed[0] <= height and needed[1] <= width for height, width in pads):
                raise ValueError(
                    f"pad_size must hold every image once it is resized, got {pads}, and "
                    f"{dataset.examples(split)[index]} becomes {needed} (height, width)"
                )


def _pad_to_one_of(images, pads):
    sizes = tf.constant(pads, tf.int32)
    holds = tf.reduce_all(sizes >= tf.shape(images)[1:3], -1)
    message = (
        "a batch of resized images is higher or wider than every pad_size; what stands beside what "
        "lies needs one that holds both"
    )
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_any(holds), [message])]):
        size = sizes[tf.argmax(tf.cast(holds, tf.int32))]
    room = size - tf.shape(images)[1:3]
    return tf.pad(images, tf.concat([[[0, 0]], tf.stack([[0, 0], room], 1), [[0, 0]]], 0))


def _filled(found, max_instances):
    """The instances with zeros behind them, up to the number there is room for."""
    count = tf.shape(found[0])[0]
    filled = {}
    for name, values in zip(_Targets.NAMES, found, strict=True):
        pads = [[0, max_instances - count], *[[0, 0]] * (values.shape.rank - 1)]
        shape = (max_instances, *values.shape[1:])
        filled[name] = tf.ensure_shape(tf.pad(values, pads), shape)
    return {**filled, "valid": tf.range(max_instances) < count}
