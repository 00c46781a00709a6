"""Which files are images and labels of which split, and what the classes are called."""

import csv
import fnmatch
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from isa_tf.data.base import DataError
from isa_tf.hints import Colors, StrPath

Pair: TypeAlias = tuple[Path, Path]  # an image and its label

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
LABEL_SUFFIX = ".png"
# Pictures that are not read: named as faults, where files that are no pictures are passed over.
_UNREAD_SUFFIXES = tuple(
    ".gif .tif .tiff .ppm .pgm .pbm .pnm .tga .psd .jfif .jp2 .j2k .jxl .heic .heif .avif".split()
)


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
                    f"{what}_pattern must be a file name with one star, without folders, such as "
                    f'"*_{what}", got {pattern!r}'
                )
            if Path(pattern).suffix.lower() in IMAGE_SUFFIXES + _UNREAD_SUFFIXES:
                raise ValueError(
                    f"{what}_pattern must be of names without their last suffix, got {pattern!r}"
                )


def pairs_of_folder(
    data_dir: Path, names: FileNames, faults: list[DataError]
) -> dict[str | None, list[Pair]]:
    if (data_dir / "images").is_dir():
        images, labels = data_dir / "images", data_dir / "labels"
        inside = [path for path in images.iterdir() if not is_hidden(path, images)]
        folders = {p.name: (p, labels / p.name) for p in inside if p.is_dir()}
        if not folders or any(path.suffix.lower() in IMAGE_SUFFIXES for path in inside):
            return {None: _paths(match_files(images, labels, faults, names))}
    else:
        tops = [p for p in data_dir.glob("*/images") if not is_hidden(p, data_dir)]
        folders = {p.parent.name: (p, p.parent / "labels") for p in tops}
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


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether a file below a folder is hidden, or lies in a hidden folder below it.

    >>> is_hidden(Path("images/.ipynb_checkpoints/0-checkpoint.png"), Path("images"))
    True
    """
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def list_images(folder: StrPath) -> list[Path]:
    """The paths of a folder's own images, in order, without hidden ones.

    Raises:
        ValueError: for what is no folder, or one without an image.

    Example:

    >>> [path.name for path in list_images(Path("camvid/val/images"))]
    ['0.png', '1.png']
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder of images")
    paths = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path, folder)
    )
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
        if not known or is_hidden(path, folder):
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


def pairs_of_table(table: Path, faults: list[DataError]) -> dict[str | None, list[Pair]]:
    with io.StringIO(_text(table), newline="") as file:
        rows = csv.DictReader(file)
        columns = [column.strip() for column in rows.fieldnames or ()]
        if columns not in (["image", "label"], ["image", "label", "split"]):
            raise DataError(
                table, f"the first line is image,label or image,label,split, not {columns}"
            )
        rows.fieldnames = columns
        pairs: dict[str | None, list[Pair]] = {}
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


def split_by_name(pairs: Sequence[Pair], val_fraction: float) -> dict[str, list[Pair]]:
    """Splits by a hash of the names: the same on every machine, and mixed."""
    ranked = sorted(pairs, key=lambda pair: hashlib.sha1(pair[0].stem.encode()).digest())
    val = set(ranked[: round(len(pairs) * val_fraction)])
    splits = {
        "train": [p for p in pairs if p not in val],
        "val": [p for p in pairs if p in val],
    }
    return {split: members for split, members in splits.items() if members or split == "train"}


def split_by_patterns(
    pairs: Mapping[str | None, Sequence[Pair]],
    patterns: Mapping[str, str | Sequence[str]],
    folder: Path,
) -> dict[str, list[Pair]]:
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
                    f"splits: no image of {folder} is of {pattern!r}, of split {split!r}; "
                    f"paths are such as {next(iter(paths))!r}"
                )
        if not given:
            raise ValueError(f"splits: split {split!r} has no pattern")
        names = set.union(*found)
        splits[split] = [pair for path, pair in paths.items() if path in names]
    if not splits:
        raise ValueError("splits names no split")
    return splits


def order_splits(pairs: Iterable[str]) -> list[str]:
    """The names of splits: train, val and test before others, which are in order.

    >>> order_splits(["all", "val", "train"])
    ['train', 'val', 'all']
    """
    usual = ("train", "val", "test")
    return sorted(pairs, key=lambda s: (usual.index(s) if s in usual else len(usual), s))


# === Class names ===


def classes_of(
    data_dir: Path, class_names: Sequence[str] | None, num_classes: int | None
) -> tuple[Sequence[str], Colors | None]:
    """The names of the classes and, where they are stored, their colours."""
    colors = None
    if class_names is None:
        folder = data_dir if data_dir.is_dir() else data_dir.parent
        class_names, colors = _stored_classes(folder)
    if class_names is None:
        if num_classes is None:
            raise ValueError(
                f"{data_dir}: no classes are known; give class_names or num_classes, or put "
                f"classes.json or classes.txt there"
            )
        return [f"class_{i}" for i in range(num_classes)], None
    if num_classes not in (None, len(class_names)):
        raise ValueError(
            f"num_classes is {num_classes}, and there are {len(class_names)} class names"
        )
    return class_names, colors


def _stored_classes(folder):
    path = folder / "classes.json"
    if path.is_file():
        return read_classes(path)
    path = folder / "classes.txt"
    if path.is_file():
        return [line.strip() for line in _text(path).splitlines() if line.strip()], None
    return None, None


def _text(path):
    """What a text file says, without the mark that editors on Windows put before UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(path, f"not UTF-8 ({error})") from error


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
    text = _text(path)
    try:
        found = json.loads(text)
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
