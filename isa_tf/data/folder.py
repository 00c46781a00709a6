"""Pairs of image and label files in folders or in a CSV table."""

import csv
import fnmatch
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

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
from isa_tf.hints import Colors, StrPath

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
LABEL_SUFFIX = ".png"
# Pictures that are not read: named as faults, where files that are no pictures are passed over.
_UNREAD_SUFFIXES = tuple(
    ".gif .tif .tiff .ppm .pgm .pbm .pnm .tga .psd .jfif .jp2 .j2k .jxl .heic .heif .avif".split()
)


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
    picture of another format (GIF, TIFF, HEIC, ...) is a fault; hidden files and those that are
    no pictures are passed over.

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
            raise ValueError(f"`val_fraction` lies in [0, 1). Received: {val_fraction}")
        is_table = self.data_dir.suffix.lower() == ".csv"
        if not is_table and not self.data_dir.is_dir():
            raise DataError(data_dir, "neither a folder nor a .csv file")
        names = FileNames(image_pattern, label_pattern)
        if is_table and names != EQUAL_NAMES:
            raise ValueError("A CSV table names every file; patterns are for folders.")
        faults: list[DataError] = []
        if is_table:
            pairs = _pairs_of_table(self.data_dir, faults)
        else:
            pairs = _pairs_of_folder(self.data_dir, names, faults)
        if splits is not None:
            folder = self.data_dir.parent if is_table else self.data_dir
            pairs = _split_by_patterns(pairs, dict(splits), folder)
        elif None in pairs:
            pairs = _split_by_name(pairs[None], val_fraction)
        class_names, colors = _classes(self.data_dir, class_names, num_classes)
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


# === Finding the pairs: {split, or None where the data have none: [(image, label), ...]} ===


class FileNames(NamedTuple):
    """How images and labels are named, without their last suffix.

    Attributes:
        image: str with one star, which stands for what an image and its label share. Defaults
            to "*".
        label: the same of labels.
    """

    image: str = "*"
    label: str = "*"

    def check(self) -> None:
        """Raises ValueError for what is no such pattern."""
        for what, pattern in self._asdict().items():
            if not isinstance(pattern, str) or pattern.count("*") != 1 or "/" in pattern:
                raise ValueError(
                    f"`{what}_pattern` is a file name with one star, without folders, such as "
                    f'"*_{what}". Received: {pattern!r}'
                )
            if Path(pattern).suffix.lower() in IMAGE_SUFFIXES + _UNREAD_SUFFIXES:
                raise ValueError(
                    f"`{what}_pattern` is of names without their last suffix. Received: {pattern!r}"
                )


def _pairs_of_folder(data_dir, names, faults):
    if (data_dir / "images").is_dir():
        images, labels = data_dir / "images", data_dir / "labels"
        inside = list(images.iterdir())
        folders = {p.name: (p, labels / p.name) for p in inside if p.is_dir()}
        if not folders or any(path.suffix.lower() in IMAGE_SUFFIXES for path in inside):
            return {None: _paths(match_files(images, labels, faults, names))}
    else:
        folders = {p.parent.name: (p, p.parent / "labels") for p in data_dir.glob("*/images")}
    if not folders:
        raise DataError(
            data_dir,
            "no images found: expected {split}/images and {split}/labels, or images/{split} "
            "and labels/{split}, or images and labels, with files ending in "
            + ", ".join(IMAGE_SUFFIXES),
        )
    return {split: _paths(match_files(*folders[split], faults, names)) for split in folders}


def _paths(matched):
    return [(image, label) for _, image, label in matched]


EQUAL_NAMES = FileNames()


def list_images(folder: StrPath) -> list[Path]:
    """The paths of a folder's own images, in order.

    Raises:
        ValueError: for what is no folder, or one without an image.

    Example:

    >>> [path.name for path in list_images(Path("camvid/val/images"))]
    ['0.png', '1.png']
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder of images")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ValueError(f"no file in {folder} ends in {', '.join(IMAGE_SUFFIXES)}")
    return paths


def match_files(
    images_dir: Path, labels_dir: Path, faults: list[DataError], names: FileNames = EQUAL_NAMES
) -> list[tuple[str, Path, Path]]:
    """Pairs the pictures below two folders by what their names share.

    Args:
        images_dir: path.
        labels_dir: path.
        faults: list, which gets a `DataError` for each file that cannot be used.
        names: `FileNames`. Defaults to `EQUAL_NAMES`.

    Returns:
        List of (name, image, label) in the order of the names: what a pair shares, with the
        folders above it, and two paths.

    Raises:
        DataError: for a folder of labels that is not there, or no image.

    Example:

    >>> found = match_files(Path("camvid/val/images"), Path("camvid/val/labels"), [])
    >>> [name for name, image, label in found]
    ['0', '1']
    """
    names.check()
    if not labels_dir.is_dir():
        raise DataError(labels_dir, f"no such folder, for the labels of {images_dir}")
    images = _by_name(images_dir, names.image, _image_refusal, faults)
    labels = _by_name(labels_dir, names.label, _label_refusal, faults)
    if not images:
        named = "" if names.image == "*" else f"is named {names.image} and "
        raise DataError(images_dir, f"no image here {named}ends in " + ", ".join(IMAGE_SUFFIXES))
    pairs = []
    for name in sorted(images.keys() | labels.keys()):
        image, label = images.get(name), labels.get(name)
        if image and label:
            pairs.append((name, image, label))
        elif image and name not in labels:
            wanted = f"{_filled(names.label, name)}{LABEL_SUFFIX}"
            faults.append(DataError(image, f"it has no label {labels_dir / wanted}"))
        elif label and name not in images:
            wanted = _filled(names.image, name)
            faults.append(DataError(label, f"it has no image {wanted}.* in {images_dir}"))
    return pairs


def _filled(pattern, name):
    """A file's name, with the folders above it."""
    folder, slash, end = name.rpartition("/")
    return f"{folder}{slash}{pattern.replace('*', end)}"


def _by_name(folder, pattern, refusal, faults):
    """{what a pair shares: path} of the pictures of a folder; `None` for one among the faults."""
    before, after = pattern.split("*")
    found = {}
    for path in sorted(folder.rglob("*")):
        known = path.suffix.lower() in IMAGE_SUFFIXES + _UNREAD_SUFFIXES
        if not known or path.name.startswith("."):
            continue
        shared = path.stem.removeprefix(before).removesuffix(after)
        if not shared or f"{before}{shared}{after}" != path.stem:
            continue
        name = path.relative_to(folder).with_name(shared).as_posix()
        if reason := refusal(path):
            faults.append(DataError(path, reason))
            found.setdefault(name)  # so that its partner is not called lonely
        elif found.get(name):
            faults.append(DataError(path, f"the same name as {found[name].name}"))
        else:
            found[name] = path
    return found


def _image_refusal(path):
    """What about an image's suffix keeps it from being read, or `None`."""
    if path.suffix.lower() in _UNREAD_SUFFIXES:
        return f"{path.suffix[1:].upper()} is not read; convert it to PNG or JPEG"
    return None


def _label_refusal(path):
    """What about a label's suffix keeps it from being read, or `None`."""
    if path.suffix.lower() != LABEL_SUFFIX:
        return "labels are read from PNG files only"
    return None


def _pairs_of_table(table, faults):
    with open(table, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        columns = [column.strip() for column in rows.fieldnames or ()]
        if columns not in (["image", "label"], ["image", "label", "split"]):
            raise DataError(
                table, f"the first line is image,label or image,label,split, not {columns}"
            )
        rows.fieldnames = columns
        pairs = {}
        for row in rows:
            values = [(row[column] or "").strip() for column in columns]
            if not all(values) or None in row:
                raise DataError(table, f"line {rows.line_num} has not {len(columns)} fields")
            image, label = (table.parent / value for value in values[:2])
            split_pairs = pairs.setdefault(values[2] if len(values) > 2 else None, [])
            reasons = {image: _image_refusal(image), label: _label_refusal(label)}
            faults.extend(DataError(path, reason) for path, reason in reasons.items() if reason)
            if not any(reasons.values()):
                split_pairs.append((image, label))
    if not pairs:
        raise DataError(table, "it lists no pairs")
    return pairs


def _split_by_name(pairs, val_fraction):
    """Splits by a hash of the names: the same on every machine, and mixed."""
    ranked = sorted(pairs, key=lambda pair: hashlib.sha1(pair[0].stem.encode()).digest())
    val = set(ranked[: round(len(pairs) * val_fraction)])
    splits = {
        "train": [p for p in pairs if p not in val],
        "val": [p for p in pairs if p in val],
    }
    return {split: members for split, members in splits.items() if members or split == "train"}


def _split_by_patterns(pairs, patterns, folder):
    """Splits by the paths of images below the folder, whatever their splits were."""
    paths = {os.path.relpath(pair[0], folder): pair for split in pairs for pair in pairs[split]}
    paths = {path.replace(os.sep, "/"): paths[path] for path in sorted(paths)}
    splits = {}
    for split, given in patterns.items():
        given = [given] if isinstance(given, str) else list(given)
        found = [set(fnmatch.filter(paths, pattern)) for pattern in given]
        for pattern, names in zip(given, found, strict=True):
            if not names:
                raise ValueError(
                    f"`splits`: no image of {folder} is of {pattern!r}, of split {split!r}. "
                    f"Paths are such as {next(iter(paths))!r}"
                )
        if not given:
            raise ValueError(f"`splits`: split {split!r} has no pattern.")
        names = set.union(*found)
        splits[split] = [pair for path, pair in paths.items() if path in names]
    if not splits:
        raise ValueError("`splits` names no split.")
    return splits


def order_splits(pairs: Iterable[str]) -> list[str]:
    """The names of splits: train, val and test before others, which are in order.

    >>> order_splits(["all", "val", "train"])
    ['train', 'val', 'all']
    """
    usual = ("train", "val", "test")
    return sorted(pairs, key=lambda s: (usual.index(s) if s in usual else len(usual), s))


# === Class names ===


def _classes(data_dir, class_names, num_classes):
    """The names of the classes and, where they are stored, their colours."""
    colors = None
    if class_names is None:
        folder = data_dir if data_dir.is_dir() else data_dir.parent
        class_names, colors = _stored_classes(folder)
    if class_names is None and num_classes is None:
        raise ValueError(
            f"Give `class_names` or `num_classes`, or put classes.json or classes.txt in "
            f"{data_dir}."
        )
    if class_names is None:
        return [f"class_{i}" for i in range(num_classes)], None
    if num_classes not in (None, len(class_names)):
        raise ValueError(
            f"`num_classes` is {num_classes}, but there are {len(class_names)} class names."
        )
    return class_names, colors


def _stored_classes(folder):
    path = folder / "classes.json"
    if path.is_file():
        return read_classes(path)
    path = folder / "classes.txt"
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        return [line.strip() for line in lines if line.strip()], None
    return None, None


def read_classes(path: Path) -> tuple[list[str], list[tuple[int, ...]] | None]:
    """Reads a `classes.json`.

    Args:
        path: of the file.

    Returns:
        List of names, in the order of their ids, and a list of RGB triples or `None`.

    Raises:
        DataError: for another file.

    Example:

    >>> _ = Path("classes.json").write_text('[{"name": "sky", "color": [0, 9, 255]}]')
    >>> read_classes(Path("classes.json"))
    (['sky'], [(0, 9, 255)])
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(path, f"not JSON ({error})") from error
    if isinstance(found, list) and all(isinstance(name, str) for name in found):
        return found, None
    try:
        names = [entry["name"] for entry in found]
        colors = [tuple(entry["color"]) for entry in found]
        if all(isinstance(name, str) for name in names) and all(map(is_color, colors)):
            return names, colors
    except (TypeError, KeyError):
        pass
    raise DataError(
        path,
        "not a JSON list of names, in the order of their ids, nor one of such as "
        '{"name": "sky", "color": [128, 128, 128]}',
    )


def is_color(value: Sequence[Any]) -> bool:
    """Whether it is a tuple of three ints in 0..255."""
    return len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value)
