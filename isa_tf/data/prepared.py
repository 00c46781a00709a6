"""Data sets that were prepared once: shards of records, read by their position."""

import json
import os
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from isa_tf.data import pictures
from isa_tf.data.base import (
    DataError,
    GraphReader,
    SegmentationDataset,
    python_operation,
)
from isa_tf.data.groups import group
from isa_tf.data.instances import Annotations, InstanceDataset, image_entry
from isa_tf.hints import StrPath

# Of a record in a TFRecord file: its length and the length's checksum, before; its own, behind.
_HEADER, _FOOTER = struct.Struct("<QI"), 4


class PreparedDataset(SegmentationDataset):
    """What a `isa_tf.data.builders.SegmentationBuilder` prepared: TFRecord shards.

    An example is found by its position: the headers of all records of a split are read once, at
    the first use of it. Images that TensorFlow decodes to the same pixels as Pillow are decoded by
    its operations, of a JPEG only what training crops.

    Args:
        folder: path of one version of a data set, where `dataset_info.json` lies.
        groups: see `FolderDataset`. Defaults to `None`.
        on_error: see `SegmentationDataset`. Defaults to "raise".
        name: str. Defaults to that of the data set.

    Shapes:
        `read` gives an image (H, W, 3) and a label (H, W), both uint8.

    Raises:
        DataError: for a folder that is not whole, or none that such a builder has prepared.
        ValueError: as `FolderDataset`, for `groups`.

    Example:

    >>> data = isa_tf.data.PreparedDataset("prepared/isa_tf_camvid/1.0.0")
    >>> data.examples("val")[:2], data.size("val")
    (('0', '1'), 2)
    """

    def __init__(
        self,
        folder: StrPath,
        groups: dict[str, Sequence[str]] | None = None,
        on_error: str = "raise",
        name: str | None = None,
    ) -> None:
        self.folder = Path(folder)
        info, told = _opened(self.folder)
        if "flip_pairs" not in told:
            raise DataError(folder, "its metadata.json tells of no segmentation")
        class_names = [str(class_name) for class_name in told["class_names"]]
        palette = told["palette"]
        self._stored_classes, self._group_of = len(class_names), None
        flip_pairs = told["flip_pairs"]
        if groups is not None:
            grouping = group(class_names, palette, groups)
            self._group_of, class_names, palette = grouping
            flip_pairs = grouping.pairs(flip_pairs)
        name = name or info.name.removeprefix("isa_tf_")
        super().__init__(name, class_names, info.splits, palette, on_error, flip_pairs)
        self._names = {split: tuple(told["names"][split]) for split in self.splits}
        self._records = _records(info)
        if groups is None:  # see `isa_tf.inference.Encoding`
            self.submission_ids = told["submission_ids"]
            self.submission_palette = told["submission_palette"]

    def examples(self, split: str) -> tuple[str, ...]:
        self._check_split(split)
        return self._names[split]

    def read(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        self._check_split(split)
        feature = self._records[split].features(index)
        where = f"{self.folder}/{split}/{self._names[split][index]}"
        (image,), (label,) = (feature[key].bytes_list.value for key in ("image", "label"))
        (upright,) = feature["upright"].int64_list.value
        label = pictures.read_label(where, self._stored_classes, label)
        image = pictures.read_image(where, image, bool(upright))
        return image, label if self._group_of is None else self._group_of[label]

    def graph_reader(self, split: str) -> GraphReader | None:
        self._check_split(split)
        records = self._records[split]
        features = dict.fromkeys(("image", "label"), tf.io.FixedLenFeature((), tf.string))

        def fetch(index):
            found = records.fetch_plain(index, features)
            return found["image"], found["label"]

        return pictures.graph_reader(fetch, self._stored_classes, self._group_of)


class PreparedInstances(InstanceDataset):
    """What a `isa_tf.data.builders.instances.InstanceBuilder` prepared: TFRecord shards.

    It is read as `CocoDataset` reads the folder, and as `PreparedDataset` does, by position.

    Args:
        folder: path of one version of a data set, where `dataset_info.json` lies.
        drop_empty: see `CocoDataset`. Defaults to `()`.
        on_error: see `InstanceDataset`. Defaults to "raise".
        name: str. Defaults to that of the data set.

    Shapes:
        `read` gives an image (H, W, 3), uint8, and `Annotations`.

    Raises:
        DataError: for a folder that is not whole, or none that such a builder has prepared.
        ValueError: for `drop_empty` that is no split.

    Example:

    >>> folder = isa_tf.data.prepare("coco", "coco_archives", "new_data", check_sizes=False)
    >>> data = isa_tf.data.PreparedInstances(folder)
    >>> data.size("val"), data.category_ids[:3]
    (2, (1, 2, 3))
    """

    def __init__(
        self,
        folder: StrPath,
        drop_empty: Sequence[str] = (),
        on_error: str = "raise",
        name: str | None = None,
    ) -> None:
        self.folder = Path(folder)
        info, told = _opened(self.folder)
        if "category_ids" not in told:
            raise DataError(folder, "its metadata.json tells of no instances")
        name = name or info.name.removeprefix("isa_tf_")
        classes = told["class_names"], info.splits, told["palette"], told["category_ids"]
        super().__init__(name, *classes, on_error)
        for split in drop_empty:
            self._check_split(split)
        self._records, self._positions, self._told = _records(info), {}, {}
        for split in self.splits:
            images = [dict(image) for image in told["images"][split]]
            self._positions[split] = [
                i for i, image in enumerate(images) if image["instances"] or split not in drop_empty
            ]
            names, kept = told["names"][split], self._positions[split]
            self._told[split] = [{"name": names[i], **images[i]} for i in kept]
            if not kept:
                raise DataError(folder, f"no image is left of split {split}")

    def examples(self, split: str) -> tuple[str, ...]:
        return tuple(image["name"] for image in self._images_of(split))

    def image_id(self, split: str, index: int) -> int:
        return self._images_of(split)[index]["id"]

    def size_of(self, split: str, index: int) -> tuple[int, ...]:
        return tuple(self._images_of(split)[index]["size"])

    def sizes(self, split: str) -> np.ndarray:
        return np.array([image["size"] for image in self._images_of(split)])

    def annotations(self, split: str, index: int) -> Annotations:
        return self._annotations_of(split, index, self._features(split, index))

    def read(self, split: str, index: int) -> tuple[np.ndarray, Annotations]:
        feature = self._features(split, index)
        where = f"{self.folder}/{split}/{self._images_of(split)[index]['name']}"
        (image,), (upright,) = (
            feature["image"].bytes_list.value,
            feature["upright"].int64_list.value,
        )
        image = pictures.read_image(where, image, bool(upright))
        if image.shape[:2] != self.size_of(split, index):
            raise DataError(where, "an image of another size than was prepared")
        return image, self._annotations_of(split, index, feature)

    def ground_truth(self, split: str) -> dict[str, list[dict[str, Any]]]:
        images, entries = [], []
        for index, told in enumerate(self._images_of(split)):
            images.append(image_entry(told["id"], told["name"], told["size"]))
            found = self._entries(split, index, self._features(split, index))
            for entry, mask in zip(*found, strict=True):
                entries.append({**entry, "image_id": told["id"], "segmentation": mask})
        return self._ground_truth(images, entries)

    def image_reader(self, split: str) -> GraphReader | None:
        records, images = self._records[split], self._images_of(split)
        positions = tf.constant(self._positions[split], tf.int64)
        sizes = tf.constant([image["size"] for image in images], tf.int32)
        features = {"image": tf.io.FixedLenFeature((), tf.string)}

        def read(index):
            found = records.fetch_plain(positions[index], features)
            return pictures.decode_image(found["image"], sizes[index])

        return GraphReader(read)

    def _images_of(self, split):
        self._check_split(split)
        return self._told[split]

    def _features(self, split, index):
        self._check_split(split)
        return self._records[split].features(self._positions[split][index])

    def _entries(self, split, index, feature):
        """Annotations as COCO's json has them, and their run lengths."""
        entries = json.loads(feature["annotations"].bytes_list.value[0])
        size = list(self.size_of(split, index))
        counts = feature["objects/counts"].bytes_list.value
        return entries, [{"size": size, "counts": each} for each in counts]

    def _annotations_of(self, split, index, feature):
        return Annotations.of(*self._entries(split, index, feature), self.class_ids)


def _opened(folder):
    """What tensorflow-datasets tells of a prepared folder, and the builder's own metadata."""
    import tensorflow_datasets as tfds  # takes a second

    if not (folder / "dataset_info.json").is_file():
        raise DataError(folder, "no prepared data set: it has no dataset_info.json")
    try:
        info = tfds.builder_from_directory(folder).info
    except Exception as error:  # what it raises for a damaged file is not told
        raise DataError(folder / "dataset_info.json", f"cannot be read ({error!r})") from error
    told = info.metadata or {}
    if "names" not in told:
        raise DataError(folder, "not prepared by isa_tf: its metadata.json has no names")
    return info, told


def prepared_folders(data_dir: Path, name: str) -> list[Path]:
    """What is prepared of a data set: a list of paths, each of one version.

    Args:
        data_dir: `Path` of the folder of all prepared data sets.
        name: str, of the data set.

    Example:

    >>> [folder.name for folder in prepared_folders(Path("prepared"), "camvid")]
    ['1.0.0']
    """
    found = (data_dir / f"isa_tf_{name}").glob("**/dataset_info.json")
    folders = sorted(path.parent for path in found)
    return [folder for folder in folders if not folder.name.startswith("incomplete.")]


def _records(info):
    """The `_Records` of every split."""
    return {
        split: _Records(told.filepaths, told.shard_lengths) for split, told in info.splits.items()
    }


class _Records:
    """The records of some TFRecord files, by their position over all of them."""

    def __init__(self, paths, lengths):
        self._paths, self._lengths = [Path(path) for path in paths], lengths
        self._firsts = np.cumsum([0, *lengths])
        self._lock = threading.Lock()
        self._files, self._places = {}, {}  # by the number of the file

    def read(self, index):
        """The bytes of a record."""
        if not 0 <= index < self._firsts[-1]:
            raise IndexError(f"no record {index}: there are {self._firsts[-1]}")
        number = int(np.searchsorted(self._firsts, index, "right")) - 1
        file, places = self._opened(number)
        start, size = places[index - self._firsts[number]]
        record = os.pread(file, size, start)
        if len(record) < size:
            raise DataError(self._paths[number], "a record is cut off; prepare the data set anew")
        return record

    def features(self, index):
        """What a record has, by name."""
        return tf.train.Example.FromString(self.read(index)).features.feature

    def fetch_plain(self, index, features):
        """Parses a record, in a graph; a failure where its image is not plain.

        Args:
            index: int64 scalar tensor.
            features: dict of name to `tf.io.FixedLenFeature`.
        """
        record = tf.ensure_shape(python_operation(self.read, [index], tf.string), ())
        features = {**features, "plain": tf.io.FixedLenFeature((), tf.int64)}
        found = tf.io.parse_single_example(record, features)
        plain = tf.debugging.Assert(found["plain"] == 1, ["not a plain image"])
        with tf.control_dependencies([plain]):
            return {name: tf.identity(value) for name, value in found.items()}

    def _opened(self, number):
        with self._lock:
            if number not in self._files:
                path = self._paths[number]
                try:
                    file = os.open(path, os.O_RDONLY)
                except OSError as error:
                    raise DataError(path, f"cannot be read ({error})") from error
                self._places[number] = _places(path, file, self._lengths[number])
                self._files[number] = file
            return self._files[number], self._places[number]

    def __del__(self):
        for file in getattr(self, "_files", {}).values():
            os.close(file)


def _places(path, file, count):
    """Where the records of a TFRecord file lie, int64 (count, 2): first byte and size."""
    places = np.empty((count, 2), np.int64)
    end, at = os.fstat(file).st_size, 0
    for i in range(count):
        header = os.pread(file, _HEADER.size, at)
        size = _HEADER.unpack(header)[0] if len(header) == _HEADER.size else end
        at += _HEADER.size
        if size > end - at:  # which may be any number where the file is damaged
            break
        places[i] = at, size
        at += size + _FOOTER
    if at != end:
        raise DataError(
            path, f"not the {count} records that were prepared; prepare the data set anew"
        )
    return places
