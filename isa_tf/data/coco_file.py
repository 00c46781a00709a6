"""One JSON file of COCO's format: its images and annotations, checked."""

import contextlib
import gc
import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isa_tf.data import pictures
from isa_tf.data.base import AnyFile, DataError
from isa_tf.data.listing import IMAGE_SUFFIXES, is_hidden
from isa_tf.data.run_lengths import encoded

# How far a box may reach outside of its image, in pixels: numbers are rounded.
_TOLERANCE = 1.0


class Shape(NamedTuple):
    """An annotation that was found sound.

    Attributes:
        path: of the JSON file.
        image: int, the image's id.
        entry: dict of "id", "category_id", "bbox", "area" and "iscrowd", as COCO has them.
        segmentation: list of float64 arrays, polygons, or dict of packed run lengths.
    """

    path: AnyFile
    image: int
    entry: dict[str, Any]
    segmentation: list[np.ndarray] | dict[str, Any]

    def run_lengths(self, size: Sequence[int]) -> dict[str, Any]:
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

    def __init__(self, id: int, file_name: str, size: tuple[int, int]) -> None:
        self.id, self.file_name, self.size = id, file_name, size
        self.shapes: list[Shape] = []
        self.path: AnyFile | None = None
        self.upright, self.plain = False, False

    @property
    def has_instances(self) -> bool:
        """bool, whether anything on it is no crowd and has an area."""
        return any(
            not shape.entry["iscrowd"] and min(shape.entry["bbox"][2:]) > 0 for shape in self.shapes
        )

    def look(self, contents: bytes | None = None) -> None:
        """Reads the header, of which `upright` and `plain` come. Raises DataError."""
        assert self.path is not None  # it is found by now
        found = pictures.look_at_image(self.path, contents)
        if self.size not in (found.stored, found.upright):
            raise DataError(self.path, other_size(found.stored, self.size))
        self.upright = self.size != found.stored
        self.plain = found.plain and not (self.upright and found.turned)


def other_size(found: Sequence[int], listed: Sequence[int]) -> str:
    """What is wrong with an image of a size that its list does not tell."""
    return f"it is {found[1]}x{found[0]} and listed as {listed[1]}x{listed[0]} (width x height)"


def fault(path: AnyFile, image: object, annotation: object, reason: str) -> DataError:
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

    def __init__(self, path: AnyFile, folder: Path | None, contents: bytes | None = None) -> None:
        self.path, self.folder = path, folder
        self.faults: list[DataError] = []
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
        same = relative.as_posix()  # of "./a.jpg" as well
        if same in taken:
            raise fault(self.path, number, None, f"{name!r} is image {taken[same]} as well")
        self._left_out.remove(number)
        images[number], taken[same] = ListedImage(number, name, size), number

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
            known = path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path, self.folder)
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
