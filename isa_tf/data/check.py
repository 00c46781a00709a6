"""Reads a whole dataset and says what is in it and what is wrong with it."""

import collections
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from isa_tf.data.base import IGNORE_LABEL, DataError


@dataclass
class SplitReport:
    """What one split holds.

    `sizes` counts the (height, width) of the images, `pixels` and `images` have one entry a
    class: its pixels, and the images that contain it. `ignored` counts pixels of 255.
    """

    num_classes: int
    examples: int = 0
    sizes: collections.Counter = field(default_factory=collections.Counter)
    pixels: np.ndarray = field(init=False)
    images: np.ndarray = field(init=False)
    ignored: int = 0

    def __post_init__(self):
        self.pixels = np.zeros(self.num_classes, np.int64)
        self.images = np.zeros(self.num_classes, np.int64)

    def add(self, size, counts):
        self.examples += 1
        self.sizes[size] += 1
        self.pixels += counts[: self.num_classes]
        self.images += counts[: self.num_classes] > 0
        self.ignored += int(counts[IGNORE_LABEL])


def check_dataset(dataset, num_threads=8):
    """Decodes every example of every split.

    Args:
        dataset: `SegmentationDataset`; a `FolderDataset` made with `on_error="skip"`, so that
            what is wrong is collected and not raised.
        num_threads: int. Defaults to 8.

    Returns:
        A dict from split to `SplitReport`, over the examples that can be read, and a list of
        `DataError`, one for each fault found at construction or now.

    Example:

    >>> data = isa_tf.data.create("folder", data_dir, num_classes=11, on_error="skip")
    >>> reports, faults = check_dataset(data)
    >>> reports["train"].examples > 0, len(faults)
    (True, 0)
    """
    faults = list(getattr(dataset, "faults", ()))
    reports = {}

    def look(split, index):
        try:
            image, label = dataset.read(split, index)
        except DataError as error:
            return error
        return image.shape[:2], np.bincount(label.ravel(), minlength=IGNORE_LABEL + 1)

    with ThreadPoolExecutor(num_threads) as pool:
        for split in dataset.splits:
            report = reports[split] = SplitReport(dataset.num_classes)
            size = dataset.size(split)
            for found in pool.map(look, [split] * size, range(size)):
                if isinstance(found, DataError):
                    faults.append(found)
                else:
                    report.add(*found)
    return reports, faults
