"""Data sets that were prepared once: shards of records, read by their position."""

import os
import struct
import threading
from pathlib import Path

import numpy as np
import tensorflow as tf

from isa_tf.data import pictures
from isa_tf.data.base import (
    DataError,
    SegmentationDataset,
    python_operation,
)
from isa_tf.data.groups import group

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

    def __init__(self, folder, groups=None, on_error="raise", name=None):
        import tensorflow_datasets as tfds  # takes a second

        self.folder = Path(folder)
        if not (self.folder / "dataset_info.json").is_file():
            raise DataError(folder, "no prepared data set: it has no dataset_info.json")
        try:
            info = tfds.builder_from_directory(self.folder).info
        except Exception as error:  # what it raises for a damaged file is not told
            raise DataError(
                self.folder / "dataset_info.json", f"cannot be read ({error!r})"
            ) from error
        told = info.metadata or {}
        if "names" not in told:
            raise DataError(folder, "not prepared by isa_tf: its metadata.json has no names")
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
        self._records = {
            split: _Records(info.splits[split].filepaths, info.splits[split].shard_lengths)
            for split in self.splits
        }
        if groups is None:  # see `isa_tf.inference.Encoding`
            self.submission_ids = told["submission_ids"]
            self.submission_palette = told["submission_palette"]

    def examples(self, split):
        self._check_split(split)
        return self._names[split]

    def read(self, split, index):
        self._check_split(split)
        record = tf.train.Example.FromString(self._records[split].read(index))
        feature = record.features.feature
        where = f"{self.folder}/{split}/{self._names[split][index]}"
        (image,), (label,) = (feature[key].bytes_list.value for key in ("image", "label"))
        (upright,) = feature["upright"].int64_list.value
        label = pictures.read_label(where, self._stored_classes, label)
        image = pictures.read_image(where, image, bool(upright))
        return image, label if self._group_of is None else self._group_of[label]

    def graph_reader(self, split):
        self._check_split(split)
        records = self._records[split]
        features = {
            **dict.fromkeys(("image", "label"), tf.io.FixedLenFeature((), tf.string)),
            "plain": tf.io.FixedLenFeature((), tf.int64),
        }

        def fetch(index):
            record = tf.ensure_shape(python_operation(records.read, [index], tf.string), ())
            found = tf.io.parse_single_example(record, features)
            plain = tf.debugging.Assert(found["plain"] == 1, ["not a plain image"])
            with tf.control_dependencies([plain]):
                return found["image"], tf.identity(found["label"])

        return pictures.graph_reader(fetch, self._stored_classes, self._group_of)


def prepared_folders(data_dir, name):
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
            raise IndexError(f"{index} of {self._firsts[-1]} records")
        number = int(np.searchsorted(self._firsts, index, "right")) - 1
        file, places = self._opened(number)
        start, size = places[index - self._firsts[number]]
        record = os.pread(file, size, start)
        if len(record) < size:
            raise DataError(self._paths[number], "a record is cut off; prepare the data set anew")
        return record

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
