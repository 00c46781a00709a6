"""What every segmentation dataset is: names, colours, splits, and `read(split, index)`."""

import numpy as np
import tensorflow as tf
from absl import logging

IGNORE_LABEL = 255


class DataError(ValueError):
    """A file or folder that cannot be used as it is: carries its `path` and the `reason`."""

    def __init__(self, path, reason):
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


def voc_palette(num_classes):
    """The PASCAL VOC colour map: `num_classes` RGB triples, class 0 black."""
    colors = []
    for index in range(num_classes):
        color = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                color[channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
        colors.append(tuple(color))
    return tuple(colors)


class SegmentationDataset:
    """Images with one class id a pixel, in named splits, in a fixed order.

    A dataset is this class with `examples` and `read` filled in. `load` and the pipelines are
    built on them alone, so a dataset read from elsewhere needs nothing more. What pipelines with
    `cache=True` have decoded is kept here, once for all of them, as long as the dataset is.

    Args:
        name: str, shown in logs and tables.
        class_names: sequence of str; class ids are positions in it.
        splits: sequence of str, such as `("train", "val")`.
        palette: sequence of RGB triples, one a class. Defaults to the PASCAL VOC colour map.
        on_error: "raise" or "skip": what `load` and the pipelines do about an example that
            `read` raises `DataError` for. "skip" leaves it out and logs a warning, once a
            file. Defaults to "raise".

    Shapes:
        `read` gives an image (H, W, 3) and a label (H, W), both uint8; 255 is ignored.

    Raises:
        ValueError: for no classes, more than 255 of them, a palette of another length, or an
            unknown `on_error`.

    Example:

    >>> data = isa_tf.data.SyntheticDataset(num_examples={"train": 4, "val": 2})
    >>> data.splits, data.size("train"), data.num_classes
    (('train', 'val'), 4, 7)
    >>> image, label = data.read("train", 0)
    """

    ignore_label = IGNORE_LABEL

    def __init__(self, name, class_names, splits, palette=None, on_error="raise"):
        class_names = tuple(class_names)
        if not 1 <= len(class_names) <= IGNORE_LABEL:
            raise ValueError(
                f"A dataset has 1 to {IGNORE_LABEL} classes ({IGNORE_LABEL} itself is the "
                f"ignored label). Received {len(class_names)} class names."
            )
        palette = tuple(map(tuple, palette or voc_palette(len(class_names))))
        if len(palette) != len(class_names):
            raise ValueError(
                f"`palette` needs one colour a class. Received {len(palette)} colours for "
                f"{len(class_names)} classes."
            )
        if on_error not in ("raise", "skip"):
            raise ValueError(f"`on_error` is 'raise' or 'skip'. Received: {on_error!r}")
        self.name = name
        self.class_names = class_names
        self.palette = palette
        self.splits = tuple(splits)
        self.on_error = on_error
        self._logged = set()
        self._decoded = {}  # (split, index): (image, label)

    @property
    def num_classes(self):
        """int, the number of classes (the ignored label is not one)."""
        return len(self.class_names)

    def size(self, split):
        """int, the number of examples of a split."""
        return len(self.examples(split))

    def examples(self, split):
        """Tuple of str, what names each example (a path for files), in the order of `read`."""
        raise NotImplementedError

    def read(self, split, index):
        """Image (H, W, 3) and label (H, W), uint8 arrays. Raises `DataError` for a bad file."""
        raise NotImplementedError

    def load(self, split):
        """`tf.data.Dataset` of `{"image": (H, W, 3), "label": (H, W)}`, uint8, in order."""
        data = read_indices(self, split, tf.data.Dataset.range(self.size(split)))
        return data.map(lambda _, image, label: {"image": image, "label": label})

    def _check_split(self, split):
        if split not in self.splits:
            raise ValueError(
                f"Dataset {self.name!r} has no split {split!r}; it has "
                f"{', '.join(map(repr, self.splits))}."
            )


def read_indices(dataset, split, running, to_index=lambda i: i, cache=False):
    """Reads examples named by their position.

    Args:
        dataset: `SegmentationDataset`.
        split: str.
        running: `tf.data.Dataset` of int64 scalars.
        to_index: function from such a scalar to a position in the split. Defaults to itself.
        cache: bool, whether decoded examples stay in memory, with the dataset. Defaults to
            `False`.

    Returns:
        `tf.data.Dataset` of (scalar, image (H, W, 3), label (H, W)), in the order of `running`.
    """
    empty = np.zeros((0, 0, 3), np.uint8), np.zeros((0, 0), np.uint8)

    def read(index):
        index = int(index)
        if cache and (split, index) in dataset._decoded:
            return dataset._decoded[split, index]
        try:
            example = dataset.read(split, index)
        except DataError as error:
            if dataset.on_error == "raise":
                raise
            if error.path not in dataset._logged:
                dataset._logged.add(error.path)
                logging.warning("Left out of %s/%s: %s", dataset.name, split, error)
            example = empty
        if cache:
            dataset._decoded[split, index] = example
        return example

    def fetch(i):
        image, label = tf.numpy_function(read, [to_index(i)], (tf.uint8, tf.uint8))
        return i, tf.ensure_shape(image, (None, None, 3)), tf.ensure_shape(label, (None, None))

    dataset.size(split)  # an unknown split is an error now, not at the first batch
    data = running.map(fetch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    if dataset.on_error == "skip":
        data = data.filter(lambda i, image, label: tf.size(label) > 0)
    return data
