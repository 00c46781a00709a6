"""Reads a whole dataset and says what is in it and what is wrong with it."""

import collections
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isa_tf.data.base import IGNORE_LABEL, DataError, Dataset
from isa_tf.data.instances import Annotations, InstanceDataset


@dataclass
class SplitReport:
    """What one split holds.

    `sizes` counts the (height, width) of the images, `pixels` and `images` have one entry a
    class: its pixels, and the images that contain it. `ignored` counts pixels of 255.
    """

    num_classes: int
    examples: int = 0
    sizes: collections.Counter[tuple[int, int]] = field(default_factory=collections.Counter)
    pixels: np.ndarray = field(init=False)
    images: np.ndarray = field(init=False)
    ignored: int = 0

    def __post_init__(self):
        self.pixels = np.zeros(self.num_classes, np.int64)
        self.images = np.zeros(self.num_classes, np.int64)

    def add(self, size: tuple[int, int], label: np.ndarray) -> None:
        counts = np.bincount(label.ravel(), minlength=IGNORE_LABEL + 1)
        self.examples += 1
        self.sizes[size] += 1
        self.pixels += counts[: self.num_classes]
        self.images += counts[: self.num_classes] > 0
        self.ignored += int(counts[IGNORE_LABEL])


# COCO's bounds between small, medium and large, in pixels.
_AREAS = (32**2, 96**2)


@dataclass
class InstancesReport:
    """What one split of instances holds.

    `sizes` counts the (height, width) of the images; `instances`, `crowds`, `images` and `pixels`
    have one entry a class: its instances that are no crowds, its crowds, the images that contain
    either, and the pixels of the masks. `areas` counts instances by the area that is told: less
    than 32 x 32 pixels, up to 96 x 96, more. `empty` counts images without an instance or crowd,
    `most` is how many of both an image has at most. `no_area` counts boxes without an area.
    """

    num_classes: int
    examples: int = 0
    sizes: collections.Counter[tuple[int, int]] = field(default_factory=collections.Counter)
    instances: np.ndarray = field(init=False)
    crowds: np.ndarray = field(init=False)
    images: np.ndarray = field(init=False)
    pixels: np.ndarray = field(init=False)
    areas: np.ndarray = field(default_factory=lambda: np.zeros(len(_AREAS) + 1, np.int64))
    empty: int = 0
    most: int = 0
    no_area: int = 0

    def __post_init__(self):
        for name in ("instances", "crowds", "images", "pixels"):
            setattr(self, name, np.zeros(self.num_classes, np.int64))

    def add(self, size: tuple[int, int], annotations: Annotations) -> None:
        from pycocotools import mask

        classes, crowd = annotations.classes, annotations.crowd
        self.examples += 1
        self.sizes[size] += 1
        self.instances += np.bincount(classes[~crowd], minlength=self.num_classes)
        self.crowds += np.bincount(classes[crowd], minlength=self.num_classes)
        self.images[np.unique(classes)] += 1
        np.add.at(self.pixels, classes, [int(mask.area(lengths)) for lengths in annotations.masks])
        areas = np.searchsorted(_AREAS, annotations.areas[~crowd], "right")
        self.areas += np.bincount(areas, minlength=len(_AREAS) + 1)
        self.empty += not len(classes)
        self.most = max(self.most, len(classes))
        sides = annotations.boxes[:, 2:] - annotations.boxes[:, :2]
        self.no_area += int((sides.min(-1, initial=np.inf) <= 0).sum())


def check_dataset(dataset: Dataset, num_threads: int = 8) -> tuple[dict[str, Any], list[DataError]]:
    """Decodes every example of every split.

    Args:
        dataset: `SegmentationDataset` or `InstanceDataset`; a `FolderDataset` or a `CocoDataset`
            made with `on_error="skip"`, so that what is wrong is collected and not raised.
        num_threads: int. Defaults to 8.

    Returns:
        A dict from split to `SplitReport`, or to `InstancesReport`, over the examples that can be
        read, and a list of `DataError`, one for each fault found at construction or now.

    Example:

    >>> data = isa_tf.data.create("folder", data_dir, num_classes=11, on_error="skip")
    >>> reports, faults = check_dataset(data)
    >>> reports["train"].examples > 0, len(faults)
    (True, 0)
    """
    kind = InstancesReport if isinstance(dataset, InstanceDataset) else SplitReport
    faults = list(getattr(dataset, "faults", ()))
    reports = {}

    def look(split, index):
        try:
            image, told = dataset.read(split, index)
        except DataError as error:
            return error
        return image.shape[:2], told

    with ThreadPoolExecutor(num_threads) as pool:
        for split in dataset.splits:
            report = reports[split] = kind(dataset.num_classes)
            size = dataset.size(split)
            for found in pool.map(look, [split] * size, range(size)):
                if isinstance(found, DataError):
                    faults.append(found)
                else:
                    report.add(*found)
    return reports, faults
