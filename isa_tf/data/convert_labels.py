"""Labels of other kinds to what `FolderDataset` reads: COCO's instances, and colours.

Both conversions make a new folder whole, or nothing: `images` and `labels`, below a folder for each
split where splits are given, and `classes.json`. Images are hard links to the files that they come
from, or copies where the file system has no such links.
"""

import collections
import contextlib
import csv
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from isa_tf.data import catalogue, pictures
from isa_tf.data.base import IGNORE_LABEL, DataError
from isa_tf.data.listing import (
    EQUAL_NAMES,
    IMAGE_SUFFIXES,
    LABEL_SUFFIX,
    FileNames,
    is_color,
    match_files,
)
from isa_tf.data.run_lengths import encoded
from isa_tf.files import replacing_folder
from isa_tf.hints import Colors, StrPath
from isa_tf.runtime import processors

BACKGROUND = "background"
_MOST_CLASSES = IGNORE_LABEL


class Source(NamedTuple):
    """What becomes a split, or the whole of data without splits.

    Attributes:
        images: path of the folder of the images.
        labels: path of the JSON file of instances, or of the folder of colour labels.
        split: str, or `None` where there is one source and no split. Defaults to `None`.
    """

    images: str | Path
    labels: str | Path
    split: str | None = None


class Converted(NamedTuple):
    """What was made: names of the classes, and a dict of split (or `None`) to its images."""

    class_names: tuple[str, ...]
    sizes: dict[str | None, int]


class _Task(NamedTuple):
    """An image to link and a label to make: `name` is the label's, without its suffix."""

    image: Path
    linked: str
    name: str
    label: object


# === COCO's instances ===


def convert_instances(
    sources: Sequence[Source],
    output: StrPath,
    background: bool = True,
    num_threads: int | None = None,
    progress: Callable[[str | None, int, int], object] | None = None,
) -> Converted:
    """Makes a semantic folder of instances in COCO's JSON.

    Class ids are contiguous, in the order of the category ids, behind 0 for background. Where
    instances overlap, that of fewer pixels lies on top (a cup before a table), of two of one size
    the later in the file. Regions of a crowd lie beneath all instances and are ignored, 255.
    Images without instances are kept. Polygons and run lengths are read as COCO's own tools do.
    A label follows its image where the EXIF orientation turns that.

    Args:
        sources: list of `Source`, whose JSON files have the same categories.
        output: path of the folder to make.
        background: bool, whether background is class 0; else it is ignored, and the categories
            begin at 0. Defaults to `True`.
        num_threads: int. Defaults to the number of cores.
        progress: function of (split, number of images made, of all). Defaults to `None`.

    Returns:
        A `Converted`.

    Raises:
        DataError: for a file that is no such JSON or has other categories, an image that is not
            there or has another size, a shape that cannot be drawn; for a folder `output` with
            something in it. Nothing is left then.
        OSError: where `output` cannot be written.
        ValueError: for sources without a split beside others.

    Example:

    >>> from isa_tf.data.convert_labels import Source, convert_instances
    >>> convert_instances([Source("coco/images", "coco/instances.json")], "semantic")
    Converted(class_names=('background', 'cat', 'dog'), sizes={None: 1})
    >>> isa_tf.data.FolderDataset("semantic", val_fraction=0).read("train", 0)[1].max()
    np.uint8(2)

    Library: https://github.com/ppwwyyxx/cocoapi (pycocotools)
    """
    _check_splits(sources)
    found = [_Instances(source) for source in sources]
    for each in found[1:]:
        if each.categories != found[0].categories:
            raise DataError(each.path, f"its categories are not those of {found[0].path}")
    categories = dict(sorted(found[0].categories.items()))
    class_names = [*([BACKGROUND] if background else []), *categories.values()]
    if not 1 <= len(class_names) <= _MOST_CLASSES:
        raise DataError(
            found[0].path, f"{len(class_names)} classes; a label has 1 to {_MOST_CLASSES}"
        )
    ids = {category: i + bool(background) for i, category in enumerate(categories)}
    empty = 0 if background else IGNORE_LABEL
    tasks = {source.split: each.tasks() for source, each in zip(sources, found, strict=True)}
    return _write(
        output,
        class_names,
        class_names,
        tasks,
        lambda task: _draw(task, ids, empty),
        num_threads,
        progress,
    )


class _Instances:
    """What a JSON file of instances holds."""

    def __init__(self, source):
        self.path, self.folder = Path(source.labels), Path(source.images)
        if not self.folder.is_dir():
            raise DataError(self.folder, "no such folder; it is where the images lie")
        try:
            told = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(self.path, f"cannot be read as JSON ({error})") from error
        self.categories, self._annotations = {}, collections.defaultdict(list)
        try:
            for category in told["categories"]:
                self.categories[_int(category, "id")] = str(category["name"])
            self._images = {
                image["id"]: (image["file_name"], (_int(image, "height"), _int(image, "width")))
                for image in told["images"]
            }
            for annotation in told["annotations"]:
                self._annotations[annotation["image_id"]].append(
                    _Shape(
                        self.path,
                        annotation.get("id"),
                        annotation["category_id"],
                        bool(annotation.get("iscrowd", 0)),
                        annotation["segmentation"],
                    )
                )
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(self.path, f"not COCO's JSON of instances ({error!r})") from error
        self._check(len(told["categories"]), len(told["images"]))

    def _check(self, num_categories, num_images):
        if len(self.categories) < num_categories or len(self._images) < num_images:
            raise DataError(self.path, "an id of a category or an image is there twice")
        for image, shapes in self._annotations.items():
            for shape in shapes:
                if image not in self._images:
                    raise shape.fault(f"it is of image {image}, which is not listed")
                if shape.category not in self.categories:
                    raise shape.fault(f"it is of category {shape.category}, which is not listed")

    def tasks(self):
        tasks, names = [], {}
        for image, (file_name, size) in self._images.items():
            relative = Path(file_name)
            if relative.is_absolute() or ".." in relative.parts:
                raise DataError(self.path, f"{file_name!r} lies outside of {self.folder}")
            if relative.suffix.lower() not in IMAGE_SUFFIXES:
                raise DataError(
                    self.folder / relative, f"images end in {', '.join(IMAGE_SUFFIXES)}"
                )
            name = relative.with_suffix("").as_posix()
            if name in names:
                raise DataError(self.folder / relative, f"the same name as {names[name]}")
            names[name] = file_name
            shapes = self._annotations.get(image, [])
            tasks.append(_Task(self.folder / relative, file_name, name, (size, shapes)))
        missing = [task.image for task in tasks if not task.image.is_file()]
        if missing:
            raise DataError(
                missing[0],
                f"no such file, as {len(missing)} of {len(tasks)} that {self.path} lists",
            )
        return tasks


def _int(entry, key):
    if type(entry[key]) is not int:
        raise TypeError(f"{key} {entry[key]!r} is no int")
    return entry[key]


class _Shape(NamedTuple):
    """An annotation."""

    path: Path
    number: object
    category: object
    is_crowd: bool
    segmentation: object

    def fault(self, reason):
        return DataError(self.path, f"annotation {self.number}: {reason}")

    def run_lengths(self, size):
        """Compressed run lengths over (height, width), as pycocotools has them."""
        from pycocotools import mask

        found = self.segmentation
        try:
            if isinstance(found, dict):
                if list(found["size"]) != list(size):
                    raise self.fault(f"its size is {found['size']} and its image's {list(size)}")
                return encoded(found)
            # pycocotools takes four numbers for a box.
            if not found or any(len(polygon) < 6 or len(polygon) % 2 for polygon in found):
                raise self.fault("it has no polygon, or one with less than three points")
            return mask.merge(mask.frPyObjects(found, *size))
        except DataError:
            raise
        except Exception as error:  # of what is no polygon, pycocotools raises any
            raise self.fault(f"its segmentation cannot be read ({error})") from error


def _draw(task, ids, empty):
    """The label of an image."""
    from pycocotools import mask

    path, (size, shapes) = task.image, task.label
    look = pictures.look_at_image(path)
    if tuple(size) not in (look.stored, look.upright):
        raise DataError(
            path,
            f"it is {look.stored[1]}x{look.stored[0]} and listed as {size[1]}x{size[0]} "
            "(width x height)",
        )
    label = np.full(size, empty, np.uint8)
    drawn = [(shape, shape.run_lengths(size)) for shape in shapes]
    for shape, lengths in drawn:
        if shape.is_crowd:
            label[mask.decode(lengths) > 0] = IGNORE_LABEL
    instances = [(int(mask.area(lengths)), s, lengths) for s, lengths in drawn if not s.is_crowd]
    for _, shape, lengths in sorted(instances, key=lambda each: -each[0]):
        label[mask.decode(lengths) > 0] = ids[shape.category]
    # A PNG may tell behind its pixels how it is to be turned; then it is not plain.
    if tuple(size) == look.stored and (look.turned or not look.plain):
        label = _turned(label, path)
    return label


def _turned(label, path):
    """A label turned as the EXIF orientation of its image says."""
    with Image.open(path) as image:
        image.load()
        picture = Image.fromarray(label)
        picture.info.update(image.info)
        return np.asarray(ImageOps.exif_transpose(picture))


# === Colours ===


class ColorTable(NamedTuple):
    """What colours stand for.

    Attributes:
        class_names: tuple of str.
        palette: tuple of RGB triples, the first colour of each class.
        ids: dict of RGB triple to class id, 255 for ignored.
    """

    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ids: dict[tuple[int, int, int], int]


def read_colors(given: StrPath, ignored: Colors = ()) -> ColorTable:
    """The colours of classes, of a file or of a known data set.

    Rows of the same name are one class, and rows without a name are ignored, 255. Ids are those
    of the names in the order in which they first stand there.

    Args:
        given: path of a CSV file with the header `name,r,g,b`, or of a JSON list of such as
            `{"name": "sky", "color": [128, 128, 128]}`; or the name of a data set that has a
            builder and a colour for each class, such as "voc2012".
        ignored: RGB triples that are ignored as well. Defaults to none.

    Returns:
        A `ColorTable`.

    Raises:
        DataError: for a file that is no such table, naming the line or the entry; for a colour
            that stands for two classes.
        ValueError: for a name of no data set.

    Example:

    >>> from isa_tf.data.convert_labels import read_colors
    >>> table = read_colors("voc2012", ignored=[(224, 224, 192)])
    >>> table.class_names[1], table.ids[128, 0, 0], table.ids[224, 224, 192]
    ('aeroplane', 1, 255)
    """
    kind = Path(given).suffix.lower()
    if kind == ".csv":
        rows = _rows_of_csv(Path(given))
    elif kind == ".json":
        rows = _rows_of_json(Path(given))
    else:
        rows = _rows_of_builder(given)
    palette: dict[str, tuple[int, int, int]] = {}
    ids: dict[tuple[int, int, int], int] = {}
    for name, color, where in [*rows, *((None, color, "ignored") for color in ignored)]:
        color = tuple(color)
        if not is_color(color):
            raise DataError(given, f"{where}: {color} is not three numbers from 0 to 255")
        if name:
            palette.setdefault(name, color)
        class_id = list(palette).index(name) if name else IGNORE_LABEL
        if ids.setdefault(color, class_id) != class_id:
            other = ids[color]
            first = "ignored pixels" if other == IGNORE_LABEL else repr(list(palette)[other])
            raise DataError(
                given, f"{where}: {color} stands for {first} and {name or 'ignored pixels'!r}"
            )
    if not 1 <= len(palette) <= _MOST_CLASSES:
        raise DataError(given, f"{len(palette)} classes; a label has 1 to {_MOST_CLASSES}")
    return ColorTable(tuple(palette), tuple(palette.values()), ids)


def _rows_of_csv(path):
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file, skipinitialspace=True))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(path, f"cannot be read ({error})") from error
    if not rows or [column.strip().lower() for column in rows[0]] != ["name", "r", "g", "b"]:
        raise DataError(path, "the first line is name,r,g,b")
    found = []
    for number, row in enumerate(rows[1:], 2):
        if not row:
            continue
        try:
            name, *color = row
            found.append((name.strip(), tuple(map(int, color)), f"line {number}"))
        except ValueError:
            raise DataError(path, f"line {number} is not name,r,g,b") from None
    return found


def _rows_of_json(path):
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(path, f"cannot be read as JSON ({error})") from error
    try:
        return [
            (entry["name"], tuple(entry["color"]), f"entry {number}")
            for number, entry in enumerate(entries)
        ]
    except (KeyError, TypeError):
        raise DataError(
            path, 'not a JSON list of such as {"name": "sky", "color": [128, 128, 128]}'
        ) from None


def _rows_of_builder(name):
    labels = getattr(catalogue.builder(str(name)), "labels", None)
    if labels is None:
        raise ValueError(f"data set {name!r} has no colours of its own; give a table")
    return [(*each, "its palette") for each in zip(*labels, strict=True)]


def convert_colors(
    sources: Sequence[Source],
    output: StrPath,
    colors: ColorTable,
    names: FileNames = EQUAL_NAMES,
    ignore_unknown: bool = False,
    num_threads: int | None = None,
    progress: Callable[[str | None, int, int], object] | None = None,
) -> Converted:
    """Makes a semantic folder of labels in colours.

    Args:
        sources: list of `Source`, of which `labels` is a folder of PNGs: RGB, RGBA (whose alpha
            is passed over) or with a palette.
        output: path of the folder to make.
        colors: `ColorTable`, of `read_colors`.
        names: `isa_tf.data.listing.FileNames`, where those of images and labels differ. Defaults
            to equal names.
        ignore_unknown: bool, whether colours that the table does not have are ignored, 255, and
            no error. Defaults to `False`.
        num_threads: int. Defaults to the number of cores.
        progress: function of (split, number of images made, of all). Defaults to `None`.

    Returns:
        A `Converted`.

    Raises:
        DataError: for a colour that the table does not have, with the number of its pixels; for
            an image or a label without the other, of another size or unreadable; for a folder
            `output` with something in it. Nothing is left then.
        OSError: where `output` cannot be written.
        ValueError: for sources without a split beside others.

    Example:

    >>> from isa_tf.data.convert_labels import Source, convert_colors, read_colors
    >>> _ = Path("colors.csv").write_text("name,r,g,b\\nsky,0,0,255\\nsea,0,0,128\\n,0,0,0\\n")
    >>> sources = [Source("colored/images", "colored/labels")]
    >>> convert_colors(sources, "from_colors", read_colors("colors.csv"))
    Converted(class_names=('sky', 'sea'), sizes={None: 1})
    """
    _check_splits(sources)
    tasks = {}
    for images, labels, split in sources:
        faults: list[DataError] = []
        if not Path(images).is_dir():
            raise DataError(images, "no such folder; it is where the images lie")
        found = match_files(Path(images), Path(labels), faults, names)
        if faults:
            raise DataError.of_all(faults)
        tasks[split] = [_Task(i, f"{name}{i.suffix}", name, label) for name, i, label in found]
    lookup = np.full(2**24, -1, np.int16)
    for color, class_id in colors.ids.items():
        lookup[_packed(np.array(color))] = class_id
    classes = [
        {"name": name, "color": list(color)}
        for name, color in zip(colors.class_names, colors.palette, strict=True)
    ]

    def make(task):
        look, label = pictures.look_at_image(task.image), _ids_of(task.label, lookup)
        if label.shape != look.upright:
            reason = pictures.size_reason(label.shape, look.upright, task.image)
            raise DataError(task.label, reason)
        unknown = label == -1
        if unknown.any() and not ignore_unknown:
            raise DataError(task.label, _unknown_reason(task.label, unknown))
        return np.where(unknown, IGNORE_LABEL, label).astype(np.uint8)

    return _write(output, colors.class_names, classes, tasks, make, num_threads, progress)


def _packed(rgb):
    return rgb.astype(np.int32) @ np.array([65536, 256, 1], np.int32)


def _ids_of(path, lookup):
    return lookup[_packed(pictures.read_image(path, upright=False))]


def _unknown_reason(path, unknown):
    found = pictures.read_image(path, upright=False)[unknown]
    colors, counts = np.unique(found, axis=0, return_counts=True)
    most = counts.argmax()
    more = f", and {len(colors) - 1} more such colours" if len(colors) > 1 else ""
    return (
        f"colour ({', '.join(map(str, colors[most]))}) in {counts[most]} pixels, which the table "
        f"does not have{more}"
    )


# === Writing ===


def _check_splits(sources):
    splits = [source.split for source in sources]
    if not splits or len(set(splits)) < len(splits) or (None in splits and len(splits) > 1):
        raise ValueError(f"each of several sources must have a split of its own, got {splits}")
    for split in splits:
        if split is not None and Path(split).name != split:
            raise ValueError(f"a split is a name, without folders, got {split!r}")


def _write(output, class_names, classes, tasks, make, num_threads, progress):
    """Writes a folder: of each task the image and what `make` gives as its label."""
    with _new_folder(output) as new, ThreadPoolExecutor(num_threads or processors()) as pool:
        (new / "classes.json").write_text(json.dumps(classes, indent=1), encoding="utf-8")
        for split, some in tasks.items():
            top = new if split is None else new / split

            def write(task, top=top):
                label = top / "labels" / f"{task.name}{LABEL_SUFFIX}"
                label.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(make(task)).save(label)
                _link(task.image, top / "images" / task.linked)

            try:
                for done, _ in enumerate(pool.map(write, some), 1):
                    if progress:
                        progress(split, done, len(some))
            except BaseException:
                pool.shutdown(cancel_futures=True)  # of thousands that wait, none is begun
                raise
    return Converted(tuple(class_names), {split: len(some) for split, some in tasks.items()})


@contextlib.contextmanager
def _new_folder(output):
    """A folder that takes the place of `output`, which must not be there or be empty."""
    output = Path(output)
    if os.path.lexists(output) and not (output.is_dir() and not any(output.iterdir())):
        raise DataError(output, "there is something already; remove it or give another folder")
    try:
        with replacing_folder(output) as new:
            new.mkdir()
            yield new
    except OSError as error:
        # What raised it names the folder that was written aside, or none.
        raise OSError(error.errno, f"could not be made ({error})", str(output)) from error


def _link(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
