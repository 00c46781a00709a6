"""A folder of instances in COCO's format."""

import collections
import contextlib
import gc
import json
import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from isa_tf.data import pictures
from isa_tf.data.base import DataError, GraphReader
from isa_tf.data.folder import IMAGE_SUFFIXES, order_splits
from isa_tf.data.instances import Annotations, InstanceDataset, image_entry
from isa_tf.data.run_lengths import encoded
from isa_tf.hints import Colors, StrPath

# How far a box may reach outside of its image, in pixels: numbers are rounded.
_TOLERANCE = 1.0
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
            reason = _other_size(pixels.shape[:2], image.size)
            raise DataError(image.path, f"image {image.id}: {reason}")
        return pixels, self.annotations(split, index)

    def ground_truth(self, split: str) -> dict[str, list]:
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


def _other_size(found, listed):
    return f"it is {found[1]}x{found[0]} and listed as {listed[1]}x{listed[0]} (width x height)"


# === One JSON file ===


class Shape(NamedTuple):
    """An annotation that was found sound.

    Attributes:
        path: of the JSON file.
        image: int, the image's id.
        entry: dict of "id", "category_id", "bbox", "area" and "iscrowd", as COCO has them.
        segmentation: list of float64 arrays, polygons, or dict of packed run lengths.
    """

    path: object
    image: int
    entry: dict
    segmentation: object

    def run_lengths(self, size):
        """Packed run lengths over (height, width), as pycocotools has them."""
        from pycocotools import mask

        if isinstance(self.segmentation, dict):
            return self.segmentation
        try:
            polygons = [polygon.tolist() for polygon in self.segmentation]
            return mask.merge(mask.frPyObjects(polygons, *size))
        except Exception as error:  # of what is amiss, pycocotools raises any
            raise fault(
                self.path, self.image, self.entry["id"], f"its mask cannot be read ({error})"
            ) from error


class ListedImage:
    """An image and its annotations.

    Attributes:
        id: int.
        path: of the file; None where there is none yet.
        file_name: str, as it is listed.
        size: (height, width), as it is listed.
        shapes: list of `Shape`.
        upright: bool, whether it is turned as its EXIF orientation says.
        plain: bool, whether TensorFlow reads it to the same pixels as Pillow does.
    """

    def __init__(self, id, file_name, size):
        self.id, self.file_name, self.size, self.shapes = id, file_name, size, []
        self.path, self.upright, self.plain = None, False, False

    @property
    def has_instances(self):
        """bool, whether anything on it is no crowd and has an area."""
        return any(
            not shape.entry["iscrowd"] and min(shape.entry["bbox"][2:]) > 0 for shape in self.shapes
        )

    def look(self, contents=None):
        """Reads the header, of which `upright` and `plain` come. Raises DataError."""
        found = pictures.look_at_image(self.path, contents)
        if self.size not in (found.stored, found.upright):
            raise DataError(self.path, _other_size(found.stored, self.size))
        self.upright = self.size != found.stored
        self.plain = found.plain and not (self.upright and found.turned)


def fault(path, image, annotation, reason):
    """A `DataError` that names an image and an annotation by their ids, where they are known."""
    where = [
        f"{what} {i}" for what, i in (("image", image), ("annotation", annotation)) if i is not None
    ]
    return DataError(path, ": ".join([", ".join(where), reason] if where else [reason]))


class Instances:
    """What a JSON file of instances holds, all of it checked.

    Args:
        path: of the file, or what errors call it.
        folder: `Path` of the images, or `None`, for images that are not looked at.
        contents: bytes of the file, where they are at hand. Defaults to `None`, for `path`'s.

    Attributes:
        categories: dict of id to name, in the order of the ids.
        images: list of `ListedImage`, sound ones.
        faults: list of `DataError`, of what was left out.

    Raises:
        DataError: for what is no such JSON.
    """

    def __init__(self, path, folder, contents=None):
        self.path, self.folder, self.faults = path, folder, []
        with _no_garbage():
            self._read(contents)

    def _read(self, contents):
        told = self._json(contents)
        self.categories = self._categories(told["categories"])
        images, taken = {}, {}
        self._left_out = set()
        for entry in told["images"]:
            self._take(self._image, entry, images, taken)
        seen = set()
        for entry in told["annotations"]:
            self._take(self._annotation, entry, images, seen)
        self.images = list(images.values())
        if self.folder is not None:
            self._look_at_images(taken)

    def _take(self, check, *arguments):
        try:
            check(*arguments)
        except DataError as error:
            self.faults.append(error)

    def _json(self, contents):
        try:
            contents = Path(self.path).read_bytes() if contents is None else contents
            told = json.loads(contents)
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(self.path, f"cannot be read as JSON ({error})") from error
        for key in ("images", "annotations", "categories"):
            entries = told.get(key) if isinstance(told, dict) else None
            if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
                raise DataError(self.path, f"not COCO's JSON of instances: no list of {key!r}")
        return told

    def _categories(self, entries):
        found = {}
        for entry in entries:
            number, name = entry.get("id"), entry.get("name")
            if not _is_id(number) or not isinstance(name, str):
                raise DataError(self.path, f"a category without an id or a name: {entry}")
            if number in found or name in found.values():
                raise DataError(self.path, f"category {number}, {name!r}, is there twice")
            found[number] = name
        if not found:
            raise DataError(self.path, "it lists no categories")
        return dict(sorted(found.items()))

    def _image(self, entry, images, taken):
        number, name = entry.get("id"), entry.get("file_name")
        size = entry.get("height"), entry.get("width")
        if not _is_id(number):
            raise DataError(self.path, f"image {number!r}: its id is no whole number")
        if number in images or number in self._left_out:
            raise fault(self.path, number, None, "its id is there twice")
        self._left_out.add(number)
        if not isinstance(name, str) or not name:
            raise fault(self.path, number, None, "it has no file_name")
        if not all(type(side) is int and side > 0 for side in size):
            raise fault(self.path, number, None, f"its height and width are {size[0]}, {size[1]}")
        relative = Path(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise fault(self.path, number, None, f"{name!r} lies outside of {self.folder}")
        if relative.suffix.lower() not in IMAGE_SUFFIXES:
            raise fault(self.path, number, None, f"{name!r} ends in none of {IMAGE_SUFFIXES}")
        if name in taken:
            raise fault(self.path, number, None, f"{name!r} is image {taken[name]} as well")
        self._left_out.remove(number)
        images[number], taken[name] = ListedImage(number, name, size), number

    def _annotation(self, entry, images, seen):
        number, image = entry.get("id"), entry.get("image_id")
        if isinstance(image, int) and image in self._left_out:
            return  # with its image, which was named
        if not _is_id(number):
            raise fault(self.path, image, number, "its id is no whole number")
        if number in seen:
            raise fault(self.path, image, number, "its id is there twice")
        seen.add(number)

        def refuse(reason):
            raise fault(self.path, image, number, reason)

        if not _is_id(image) or image not in images:
            refuse("it is of an image that is not listed")
        category, crowd = entry.get("category_id"), entry.get("iscrowd", 0)
        if not _is_id(category) or category not in self.categories:
            refuse(f"its category_id is {category!r}, which is not listed")
        if crowd not in (0, 1):
            refuse(f"its iscrowd is {crowd!r}")
        size = images[image].size
        box = _checked_box(entry.get("bbox"), size, refuse)
        segmentation = _checked_segmentation(entry.get("segmentation"), size, bool(crowd), refuse)
        area = entry.get("area")
        kept = {"id": number, "category_id": category, "bbox": box, "iscrowd": int(crowd)}
        shape = Shape(self.path, image, kept, segmentation)
        if area is None:
            from pycocotools import mask

            area = float(mask.area(shape.run_lengths(size)))
        if not _is_number(area) or area < 0:
            refuse(f"its area is {area!r}")
        kept["area"] = area
        images[image].shapes.append(shape)

    def _look_at_images(self, taken):
        for image in self.images:
            image.path = self.folder / image.file_name

        def look(image):
            try:
                image.look()
            except DataError as error:
                return DataError(error.path, f"image {image.id}: {error.reason}")
            return None

        with ThreadPoolExecutor() as pool:
            found = list(pool.map(look, self.images))
        self.faults.extend(error for error in found if error is not None)
        self.images = [
            image for image, error in zip(self.images, found, strict=True) if error is None
        ]
        for path in sorted(self.folder.rglob("*")):
            known = path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
            if known and path.relative_to(self.folder).as_posix() not in taken:
                self.faults.append(DataError(path, f"an image that {self.path} does not list"))


@contextlib.contextmanager
def _no_garbage():
    """Millions of objects are made and kept; to look for cycles in them takes half the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _is_id(value):
    return type(value) is int


def _is_number(value):
    return type(value) in (int, float) and math.isfinite(value)


def _checked_box(box, size, refuse):
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        refuse(f"its bbox is not four finite numbers, but {box!r}")
    x, y, width, height = box
    if width < 0 or height < 0:
        refuse(f"its bbox {box} has a negative width or height")
    if (
        min(x, y) < -_TOLERANCE
        or x + width > size[1] + _TOLERANCE
        or y + height > size[0] + _TOLERANCE
    ):
        refuse(
            f"its bbox {box} (x, y, width, height) reaches outside of the image, which is "
            f"{size[1]}x{size[0]} (width x height)"
        )
    return box


def _checked_segmentation(found, size, crowd, refuse):
    if isinstance(found, dict):
        if not isinstance(found.get("size"), list) or not isinstance(
            found.get("counts"), (list, str)
        ):
            refuse("its segmentation has no size and counts")
        if found["size"] != list(size):
            refuse(f"its run lengths are of size {found['size']} and its image {list(size)}")
        try:
            return encoded(found)
        except Exception as error:  # of what are no run lengths
            refuse(f"its run lengths cannot be read ({error})")
    if not isinstance(found, list) or not found:
        refuse("it has no segmentation")
    if crowd:
        refuse("it is a crowd and has polygons; the region of a crowd is told by run lengths")
    polygons = []
    for polygon in found:
        if not isinstance(polygon, list) or len(polygon) < 6:
            refuse("it has a polygon of fewer than three points")
        if len(polygon) % 2:
            refuse("it has a polygon of an odd count of numbers")
        polygons.append(_checked_polygon(polygon, size, refuse))
    return polygons


def _checked_polygon(polygon, size, refuse):
    # By arrays, since COCO has half a million of them.
    try:
        points = np.array(polygon)
    except ValueError:  # of lists that differ
        points = np.array(None)
    if points.ndim != 1 or points.dtype.kind not in "if":
        refuse("it has a polygon that is no list of finite numbers")
    points = points.reshape(-1, 2)
    least, most = points.min(0).tolist(), points.max(0).tolist()
    if not all(map(math.isfinite, (*least, *most))):
        refuse("it has a polygon that is no list of finite numbers")
    for low, high, side in zip(least, most, size[::-1], strict=True):
        if low < -side or high > 2 * side:
            # What draws it goes along its edges step by step, however far these lead.
            refuse("it has a polygon that lies far outside of the image")
    return points.astype(np.float64).ravel()
