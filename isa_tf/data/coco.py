"""A folder of instances in COCO's format."""

import collections
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from isa_tf.data import pictures
from isa_tf.data.base import DataError, GraphReader
from isa_tf.data.coco_file import Instances, other_size
from isa_tf.data.instances import Annotations, InstanceDataset, image_entry
from isa_tf.data.listing import IMAGE_SUFFIXES, order_splits
from isa_tf.hints import Colors, StrPath

_FILES = "instances_*.json"


class CocoDataset(InstanceDataset):
    """Images, and for each split one JSON of instances in COCO's format.

    Layouts, found by looking:

    * `{data_dir}/annotations/instances_{split}.json` with `{data_dir}/{split}/*`, as COCO has it
    * `{data_dir}/instances_{split}.json` with `{data_dir}/{split}/*`
    * images in `{split}/images` or `images/{split}` with either

    A year at the end of a split's name ("train2017") is left out, unless there are several.
    Classes are the categories, in the order of their ids. Polygons and run lengths, packed or not,
    are read as COCO's own tools do. An image of which the JSON tells the size that is stored is
    taken as it is stored, whatever its EXIF orientation says; as COCO's tools take it.

    Construction checks the JSON files whole, and every image's header. A fault names the file, the
    image's id and the annotation's:

    * a category that is not listed; an id that is there twice or is no whole number
    * an annotation of an image that is not listed
    * a box that is not four finite numbers, has a negative side or reaches more than a pixel
      outside of its image (a box without area is none: COCO has two; nothing is trained on them)
    * a polygon of fewer than three points or an odd count of numbers, or that lies outside of its
      image by more than its size; one that is a crowd's, whose region is told by run lengths
    * run lengths of another size than the image, or that do not add up to it
    * an image that is not there, cannot be read, is of another size than listed, or listed twice;
      one below the images' folder that is not listed

    Args:
        data_dir: path of the folder.
        drop_empty: names of splits in which images without any instance (crowds are none) are left
            out, as detectors are trained. Defaults to `()`.
        on_error: "raise", or "skip" to leave out the faulty annotation or image: those found at
            construction are logged and kept in `faults`, those found later are logged. What is
            wrong with a whole file is raised all the same. Defaults to "raise".
        palette: sequence of RGB triples. Defaults to the PASCAL VOC colour map.
        name: str. Defaults to the folder's name.

    Shapes:
        `read` gives an image (H, W, 3), uint8, and `Annotations`.

    Raises:
        DataError: naming file, image and annotation, for what is listed above; for no such files,
            one that is no such JSON, or files whose categories differ.
        ValueError: for `drop_empty` that is no split.

    Example:

    >>> data = isa_tf.data.CocoDataset("coco_folder")
    >>> data.splits, data.class_names, data.category_ids
    (('train',), ('cat', 'dog'), (3, 7))
    >>> image, annotations = data.read("train", 0)
    >>> annotations.boxes
    array([[3., 1., 5., 3.],
           [5., 1., 7., 3.]], dtype=float32)

    Format: https://cocodataset.org/#format-data
    """

    def __init__(
        self,
        data_dir: StrPath,
        drop_empty: Sequence[str] = (),
        on_error: str = "raise",
        palette: Colors | None = None,
        name: str | None = None,
    ) -> None:
        self.data_dir = Path(data_dir)
        if not self.data_dir.is_dir():
            raise DataError(data_dir, "no such folder")
        found = {
            split: Instances(path, self._folder_of(path))
            for split, path in _find(self.data_dir).items()
        }
        first = next(iter(found.values()))
        for each in found.values():
            if each.categories != first.categories:
                raise DataError(each.path, f"its categories are not those of {first.path}")
        name = name or self.data_dir.resolve().name
        categories = first.categories
        names = tuple(categories.values())
        super().__init__(name, names, tuple(found), palette, list(categories), on_error)
        for split in drop_empty:
            self._check_split(split)
        self.faults = tuple(fault for each in found.values() for fault in each.faults)
        if self.faults and on_error == "raise":
            raise DataError.of_all(self.faults, "faults")
        for fault in self.faults:
            logging.warning("Left out of %s: %s", self.name, fault)
        self._paths = {split: each.path for split, each in found.items()}
        self._images = {
            split: [i for i in each.images if split not in drop_empty or i.has_instances]
            for split, each in found.items()
        }
        if empty := [split for split, images in self._images.items() if not images]:
            raise DataError(self._paths[empty[0]], "no image is left of it")
        self._names = {
            split: tuple(str(image.path) for image in images)
            for split, images in self._images.items()
        }

    def _folder_of(self, path):
        """The folder of the images of a JSON file."""
        split = _split_of(path)
        top = path.parent.parent if path.parent.name == "annotations" else path.parent
        folder = top / split
        if (folder / "images").is_dir() and not _has_pictures(folder):
            return folder / "images"
        if not folder.is_dir() and (top / "images" / split).is_dir():
            return top / "images" / split
        if not folder.is_dir():
            raise DataError(folder, f"no such folder, for the images of {path}")
        return folder

    def examples(self, split: str) -> tuple[str, ...]:
        self._check_split(split)
        return self._names[split]

    def image_id(self, split: str, index: int) -> int:
        return self._image(split, index).id

    def size_of(self, split: str, index: int) -> tuple[int, ...]:
        return self._image(split, index).size

    def sizes(self, split: str) -> np.ndarray:
        return np.array([image.size for image in self._images_of(split)])

    def annotations(self, split: str, index: int) -> Annotations:
        image = self._image(split, index)
        masks = [shape.run_lengths(image.size) for shape in image.shapes]
        return Annotations.of([shape.entry for shape in image.shapes], masks, self.class_ids)

    def read(self, split: str, index: int) -> tuple[np.ndarray, Annotations]:
        image = self._image(split, index)
        pixels = pictures.read_image(image.path, upright=image.upright)
        if pixels.shape[:2] != image.size:
            reason = other_size(pixels.shape[:2], image.size)
            raise DataError(image.path, f"image {image.id}: {reason}")
        return pixels, self.annotations(split, index)

    def ground_truth(self, split: str) -> dict[str, list[dict[str, Any]]]:
        images, entries = [], []
        for image in self._images_of(split):
            images.append(image_entry(image.id, image.file_name, image.size))
            for shape in image.shapes:
                mask = shape.run_lengths(image.size)
                entries.append({**shape.entry, "image_id": image.id, "segmentation": mask})
        return self._ground_truth(images, entries)

    def image_reader(self, split: str) -> GraphReader | None:
        images = self._images_of(split)
        able = np.array([image.plain for image in images], bool)
        if not able.any():
            return None
        paths = tf.constant([str(image.path) for image in images])
        sizes = tf.constant([image.size for image in images], tf.int32)

        def read(index):
            return pictures.decode_image(tf.io.read_file(paths[index]), sizes[index])

        return GraphReader(read, able)

    def _images_of(self, split):
        self._check_split(split)
        return self._images[split]

    def _image(self, split, index):
        return self._images_of(split)[index]


def _find(data_dir):
    """The JSON files of instances: a dict of split to path."""
    paths = sorted({*data_dir.glob(_FILES), *data_dir.glob(f"annotations/{_FILES}")})
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise DataError(data_dir, f"no {_FILES} here, nor in its folder annotations")
    named = collections.defaultdict(list)
    for path in paths:
        named[re.sub(r"(?<=.)(19|20)\d\d$", "", _split_of(path))].append(path)
    found = {}
    for name, some in named.items():
        for path in some:
            split = name if len(some) == 1 else _split_of(path)
            if split in found:
                raise DataError(path, f"the same name as {found[split]}")
            found[split] = path
    return {split: found[split] for split in order_splits(found)}


def _split_of(path):
    return path.stem.removeprefix("instances_")


def _has_pictures(folder):
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())
