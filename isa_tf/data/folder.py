"""Pairs of image and label files in folders or in a CSV table."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from isa_tf.data import pictures
from isa_tf.data.base import (
    DataError,
    GraphReader,
    SegmentationDataset,
    voc_palette,
)
from isa_tf.data.groups import group
from isa_tf.data.listing import (
    EQUAL_NAMES,
    FileNames,
    classes_of,
    order_splits,
    pairs_of_folder,
    pairs_of_table,
    split_by_name,
    split_by_patterns,
)
from isa_tf.hints import Colors, StrPath


class FolderDataset(SegmentationDataset):
    """Image files and label PNGs of the same stem, in folders, or listed in a CSV table.

    Layouts, found by looking:

    * `{data_dir}/{split}/images/*` with `{data_dir}/{split}/labels/*`
    * `{data_dir}/images/{split}/*` with `{data_dir}/labels/{split}/*`
    * `{data_dir}/images/*` with `{data_dir}/labels/*`: `val_fraction` of the pairs, chosen by
      a hash of their names, is split "val", the rest "train"
    * `data_dir` a CSV file with a header `image,label` or `image,label,split` and paths
      relative to it; without the third column, `val_fraction` as above

    Folders below these are searched as well. Where the names of an image and its label differ,
    patterns tell what they share, and files of other names are passed over. Images are JPEG, PNG,
    BMP or WebP with 8 bits a channel, turned upright as their EXIF orientation says; the label
    must match the upright image. Labels are PNGs of one channel that holds class ids, 255 for
    ignored pixels; of a palette PNG the indices are read, not the colours; of a 16-bit PNG, the
    ids it holds.
    Construction checks the pairing and every header; pixels are checked as they are read. A
    picture of another format (GIF, TIFF, HEIC, ...) is a fault; hidden files and folders, and
    files that are no pictures, are passed over.

    Pipelines read plain pairs (JPEG in grey or YCbCr and PNG of 8-bit grey, RGB or either with
    alpha, upright as stored, with a label of 8-bit grey) by TensorFlow, of a JPEG only what
    training crops; everything else, what TensorFlow cannot read and what `cache=True` keeps, by
    Pillow, about half as fast. The pixels are the same. (Of a JPEG whose end is there, what is
    torn outside the crop goes unnoticed.)

    Args:
        data_dir: path of the folder or of the CSV file.
        class_names: sequence of str. Defaults to the list in `classes.json` (of names, or of
            such as `{"name": "sky", "color": [128, 128, 128]}`) or the lines of `classes.txt`
            beside the data.
        num_classes: int, where there are no names. Defaults to the number of names.
        palette: sequence of RGB triples. Defaults to the colours in `classes.json`, without
            which to the PASCAL VOC colour map.
        val_fraction: float in [0, 1), where the data come without splits. Defaults to 0.2.
        splits: dict of a split's name to a pattern or patterns of image files, in place of the
            splits found: paths below the folder, such as "train/images/0001TP_*", where a star
            stands for folders too. An image may be in several, as in {"train": "*", "val":
            "val/*"}; one of no pattern is left out. Defaults to `None`.
        groups: dict of a new class's name to the names of the classes that it unites, or such
            pairs (in a config, whose dicts lose their order), in the order of the new ids;
            classes in no group are ignored. Colours are those of each group's first member.
            Defaults to `None`, the classes as they are.
        flip_pairs: pairs of stored class ids that change places in a mirror, see
            `SegmentationDataset`. Defaults to `()`.
        image_pattern: str, the names of images in a folder without their last suffix, such as
            "*_leftImg8bit"; the star stands for what an image and its label share. Defaults to
            "*", the whole name.
        label_pattern: str, the same of labels, such as "*_gtFine_labelIds". Defaults to "*".
        on_error: "raise", or "skip" to leave bad examples out: those found at construction are
            logged and kept in `faults`, those found later are logged. Defaults to "raise".
        name: str. Defaults to the folder's name.

    Shapes:
        `read` gives an image (H, W, 3) and a label (H, W), both uint8.

    Raises:
        DataError: naming the file, for no pairs, a missing partner, unequal sizes, a label with
            colours or ids out of range, a picture of a format that is not read, an unreadable
            file.
        ValueError: for neither names nor number of classes, or the two in disagreement; for a
            group without classes, of unknown ones or of one that is in another group; for a
            pattern without a star, with several, or beside a CSV table; for `splits` of which
            a pattern finds nothing.

    Example:

    >>> data = isa_tf.data.FolderDataset("camvid", num_classes=11)
    >>> data.splits
    ('train', 'val', 'test')
    >>> image, label = data.read("train", 0)

    The labels `0_ids.png`, ... of images `0.png`, ...:

    >>> data = isa_tf.data.FolderDataset("suffixed", num_classes=3, label_pattern="*_ids")
    >>> data.size("train")
    4

    A validation on one sequence of images, here "0", and a training on the others:

    >>> splits = {"train": ["*/images/[1-9]*"], "val": "*/images/0*"}
    >>> data = isa_tf.data.FolderDataset("camvid", num_classes=11, splits=splits)
    >>> data.size("train"), data.size("val")
    (5, 3)
    """

    def __init__(
        self,
        data_dir: StrPath,
        class_names: Sequence[str] | None = None,
        num_classes: int | None = None,
        palette: Colors | None = None,
        val_fraction: float = 0.2,
        splits: Mapping[str, str | Sequence[str]] | None = None,
        groups: dict[str, Sequence[str]] | None = None,
        flip_pairs: Sequence[Sequence[int]] = (),
        image_pattern: str = "*",
        label_pattern: str = "*",
        on_error: str = "raise",
        name: str | None = None,
    ) -> None:
        self.data_dir = Path(data_dir)
        if not self.data_dir.exists():
            raise DataError(data_dir, "no such file or folder")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction must lie in [0, 1), got {val_fraction}")
        is_table = self.data_dir.suffix.lower() == ".csv"
        if not is_table and not self.data_dir.is_dir():
            raise DataError(data_dir, "neither a folder nor a .csv file")
        names = FileNames(image_pattern, label_pattern)
        if is_table and names != EQUAL_NAMES:
            raise ValueError(
                f"{data_dir} is a CSV table, which names every file; patterns are for folders"
            )
        faults: list[DataError] = []
        if is_table:
            listed = pairs_of_table(self.data_dir, faults)
        else:
            listed = pairs_of_folder(self.data_dir, names, faults)
        if splits is not None:
            folder = self.data_dir.parent if is_table else self.data_dir
            pairs = split_by_patterns(listed, dict(splits), folder)
        elif None in listed:
            pairs = split_by_name(listed[None], val_fraction)
        else:
            pairs = {split: some for split, some in listed.items() if split is not None}
        class_names, colors = classes_of(self.data_dir, class_names, num_classes)
        palette = palette or colors
        self._stored_classes = len(class_names)
        self._group_of = None
        if groups is not None:
            palette = tuple(palette or voc_palette(len(class_names)))
            grouping = group(class_names, palette, groups)
            self._group_of, class_names, palette = grouping
            flip_pairs = grouping.pairs(flip_pairs)
        super().__init__(
            name or self.data_dir.stem,
            class_names,
            order_splits(pairs),
            palette=palette,
            on_error=on_error,
            flip_pairs=flip_pairs,
        )
        self._pairs, self._plain = {}, {}
        for split in self.splits:
            with ThreadPoolExecutor(8) as pool:
                found = list(pool.map(_look, pairs[split]))
            faults.extend(look.fault for look in found if look.fault)
            sound = [i for i, look in enumerate(found) if not look.fault]
            self._pairs[split] = tuple(pairs[split][i] for i in sound)
            self._plain[split] = np.array([found[i].plain for i in sound], bool)
        self.faults = tuple(faults)
        if faults and on_error == "raise":
            raise DataError.of_all(faults)
        for fault in faults:
            logging.warning("Left out of %s: %s", self.name, fault)

    def examples(self, split: str) -> tuple[str, ...]:
        self._check_split(split)
        return tuple(str(image) for image, _ in self._pairs[split])

    def pairs(self, split: str) -> tuple[tuple[Path, Path], ...]:
        """Tuple of (image, label), paths of the files of each example."""
        self._check_split(split)
        return self._pairs[split]

    def read(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        self._check_split(split)
        image_path, label_path = self._pairs[split][index]
        image = pictures.read_image(image_path)
        label = pictures.read_label(label_path, self._stored_classes)
        if image.shape[:2] != label.shape:
            raise DataError(label_path, pictures.size_reason(label.shape, image.shape, image_path))
        return image, label if self._group_of is None else self._group_of[label]

    def graph_reader(self, split: str) -> GraphReader | None:
        self._check_split(split)
        if not self._plain[split].any():
            return None
        paths = tf.constant([[str(path) for path in pair] for pair in self._pairs[split]])

        def fetch(index):
            return tf.io.read_file(paths[index, 0]), tf.io.read_file(paths[index, 1])

        able = self._plain[split]
        return pictures.graph_reader(fetch, self._stored_classes, self._group_of, able)


# === Looking at a pair ===


class _Look(NamedTuple):
    """What the headers of a pair tell: what is wrong, or whether TensorFlow reads it alike."""

    fault: DataError | None
    plain: bool = False


def _look(pair):
    image_path, label_path = pair
    try:
        image, label = pictures.look_at_image(image_path), pictures.look_at_label(label_path)
    except DataError as error:
        return _Look(error)
    if label.size != image.upright:
        reason = pictures.size_reason(label.size, image.upright, image_path)
        if label.size == image.stored:
            reason += ": its EXIF orientation turns it, so turn the label or drop the tag"
        return _Look(DataError(label_path, reason))
    return _Look(None, image.plain and label.plain and not image.turned)
