"""Reading one picture and one label, of a file or of its bytes: by Pillow, and by TensorFlow."""

import io
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

from isa_tf.data.base import IGNORE_LABEL, AnyFile, DataError, GraphReader, on_image

_ORIENTATION = 0x0112  # the EXIF tag
_LABEL_MODES = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L")
_WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L")
# Pillow stretches 2- and 4-bit grey over 0..255; these factors give the stored ids back.
_STRETCHED = {"L;2": 85, "L;4": 17}


def read_image(path: AnyFile, contents: bytes | None = None, upright: bool = True) -> np.ndarray:
    """Reads an image as `uint8` RGB (H, W, 3).

    Args:
        path: of the file; where there are `contents`, what errors call it.
        contents: bytes of the file, where they are at hand. Defaults to `None`, for `path`'s.
        upright: bool, whether it is turned as its EXIF orientation says. Defaults to `True`.

    Raises:
        DataError: for a picture that cannot be read or has more than 8 bits a channel.

    Example:

    >>> read_image("photo.jpg").shape
    (96, 128, 3)
    """
    with _opened(path, contents) as image:
        _check_image_mode(path, image)
        image = ImageOps.exif_transpose(image) if upright else image
        if isinstance(image.info.get("transparency"), bytes):  # or Pillow warns; as it asks for
            image = image.convert("RGBA")
        return np.asarray(image.convert("RGB"))


def read_ids(path: AnyFile, contents: bytes | None = None) -> np.ndarray:
    """Reads what a label PNG holds: of a palette the indices, of grey the values, (H, W).

    Args:
        path: of the file; where there are `contents`, what errors call it.
        contents: bytes of the file, where they are at hand. Defaults to `None`, for `path`'s.

    Raises:
        DataError: for a picture that cannot be read or is in colours.

    Example:

    >>> ids = read_ids("label.png")
    """
    with _opened(path, contents) as picture:
        _check_label_mode(path, picture)
        stretch = _STRETCHED.get(_raw_mode(picture), 1)
        picture.load()
        ids = np.asarray(picture)
    return ids // stretch if stretch > 1 else ids


def read_label(path: AnyFile, num_classes: int, contents: bytes | None = None) -> np.ndarray:
    """Reads a label PNG as `uint8` class ids (H, W), 255 for ignored.

    Args:
        path: see `read_ids`.
        num_classes: int; the ids are 0 to `num_classes` - 1.
        contents: see `read_ids`.

    Raises:
        DataError: for a picture that cannot be read, is in colours or holds other ids.

    Example:

    >>> label = read_label("label.png", num_classes=3)
    """
    ids = read_ids(path, contents)
    bad = (ids >= num_classes) & (ids != IGNORE_LABEL)
    if bad.any():
        raise DataError(
            path,
            f"label value {shown_values(ids[bad])} in {int(bad.sum())} pixels; the ids are 0 to "
            f"{num_classes - 1}, and {IGNORE_LABEL} for ignored pixels",
        )
    return ids.astype(np.uint8)


def shown_values(ids: np.ndarray) -> str:
    """The first of the values that there are in an array, as errors list them: "3, 7, ..."."""
    values = np.unique(ids)
    return ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")


class _opened:
    """`Image.open` whose every failure, then or while decoding, is a `DataError`."""

    def __init__(self, path, contents=None):
        self._path, self._contents = path, contents

    def __enter__(self):
        try:
            self._image = Image.open(_file(self._path, self._contents))
        except Exception as error:
            raise _unreadable(self._path, error) from error
        return self._image

    def __exit__(self, kind, error, trace):
        self._image.close()
        if isinstance(error, Exception) and not isinstance(error, DataError):
            raise _unreadable(self._path, error) from error


def _file(path, contents):
    return path if contents is None else io.BytesIO(contents)


def _unreadable(path, error):
    if isinstance(error, FileNotFoundError):
        return DataError(path, "no such file")
    return DataError(path, f"cannot be read as an image ({type(error).__name__}: {error})")


def _raw_mode(image):
    args = image.tile[0][3] if image.tile else None
    return args if isinstance(args, str) else (args or [None])[0]


def _check_image_mode(path, image):
    if image.mode in _WIDE_MODES:
        raise DataError(path, f"more than 8 bits a channel (mode {image.mode}); convert it")


def _check_label_mode(path, picture):
    if picture.mode not in _LABEL_MODES:
        raise DataError(
            path,
            f"a label in colours (mode {picture.mode}); a label PNG has one channel, which "
            "holds class ids: convert the colours to ids first",
        )


class ImageLook(NamedTuple):
    """What the header of an image tells.

    Attributes:
        stored: (height, width) as it is stored.
        upright: (height, width) once it is turned as its EXIF orientation says.
        turned: bool, whether that turns or mirrors it.
        plain: bool, whether TensorFlow reads what is stored to the same pixels as Pillow does.
    """

    stored: tuple[int, int]
    upright: tuple[int, int]
    turned: bool
    plain: bool


def look_at_image(path: AnyFile, contents: bytes | None = None) -> ImageLook:
    """Reads the header of an image: an `ImageLook`.

    Args:
        path: see `read_image`.
        contents: see `read_image`.

    Raises:
        DataError: as `read_image`.

    Example:

    >>> look_at_image("photo.jpg")
    ImageLook(stored=(96, 128), upright=(96, 128), turned=False, plain=True)
    """
    with _opened(path, contents) as image:
        _check_image_mode(path, image)
        stored = image.size[::-1]
        orientation = _orientation(image)
        plain = _is_plain_image(path, contents, image)
    upright = stored[::-1] if orientation >= 5 else stored  # 5 to 8 turn by a quarter
    return ImageLook(stored, upright, orientation != 1, plain)


class LabelLook(NamedTuple):
    """What the header of a label tells: its (height, width), and `plain` as of `ImageLook`."""

    size: tuple[int, int]
    plain: bool


def look_at_label(path: AnyFile) -> LabelLook:
    """Reads the header of a label PNG: a `LabelLook`.

    Raises:
        DataError: for a picture that cannot be read or is in colours.

    Example:

    >>> look_at_label("label.png")
    LabelLook(size=(96, 128), plain=True)
    """
    with _opened(path) as picture:
        _check_label_mode(path, picture)
        return LabelLook(picture.size[::-1], picture.format == "PNG" and _raw_mode(picture) == "L")


def _orientation(image):
    """How an opened image is to be turned, by its EXIF tag or, without that, its XMP."""
    # Asked only where the header has one: else `getexif` decodes the whole of a PNG.
    info = image.info
    xmp = (info.get("XML:com.adobe.xmp", ""), info.get("xmp", b""))
    told = "tiff:Orientation" in xmp[0] or b"tiff:Orientation" in xmp[1]
    if told or "exif" in info or "Raw profile type exif" in info:
        return image.getexif().get(_ORIENTATION, 1)
    return 1


def _is_plain_image(path, contents, image):
    if image.format == "JPEG":
        return image.mode in ("L", "RGB")
    return (
        image.format == "PNG"
        and _raw_mode(image) in _PLAIN_PNG
        and not getattr(image, "is_animated", False)
        and not _may_turn_late(path, contents)
    )


def _may_turn_late(path, contents):
    """Whether behind the pixels of a PNG there may stand how it is to be turned."""
    with open(path, "rb") if contents is None else io.BytesIO(contents) as file:
        # Mostly the end of the last chunk of pixels is all that need be read of a large file.
        file.seek(0, 2)
        file.seek(max(file.tell() - 2**16, 0))
        end = file.read()
        at = end.rfind(b"IDAT") - 4
        if at >= 0:
            (length,) = struct.unpack_from(">I", end, at)
            if at + 12 + length == len(end) - 12 and end[-8:-4] == b"IEND":
                return False
        file.seek(8)
        behind = False
        while len(header := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", header)
            if kind == b"IEND":
                return False
            behind |= kind == b"IDAT"
            keyword = file.read(min(length, 24)) if behind and kind != b"IDAT" else b""
            if kind in (b"eXIf", b"fdAT") and behind:
                return True
            if keyword.startswith((b"Raw profile type", b"XML:com.adobe.xmp")):
                return True
            file.seek(length + 4 - len(keyword), 1)
    return True


# === Reading one file by TensorFlow: plain ones only. What is amiss is an error, and Pillow's. ===

# Whose pixels Pillow and TensorFlow give alike: their raw modes, and (bit depth, colour type).
_PLAIN_PNG = ("L", "LA", "RGB", "RGBA")
_PLAIN_PNG_BYTES = [b"\x08\x00", b"\x08\x04", b"\x08\x02", b"\x08\x06"]
# Beyond the window, in pixels: libjpeg smooths colour across the blocks' edges, but not across
# those of what it decodes.
_MARGIN = 16


def decode_label(contents: tf.Tensor, num_classes: int) -> tf.Tensor:
    """The label in the bytes of a plain PNG, as `read_label` gives it; a failure for any other.

    Args:
        contents: string scalar tensor.
        num_classes: int.

    Shapes:
        () -> (H, W), uint8.

    Example:

    >>> label = decode_label(tf.io.read_file("label.png"), num_classes=3)
    """
    # Colours would become grey, 16 bits the upper 8: a file may have changed since its header
    # was read.
    plain = tf.strings.substr(contents, 24, 2) == _PLAIN_PNG_BYTES[0]
    label = tf.squeeze(tf.io.decode_png(contents, channels=1), 2)
    # uint8 arithmetic wraps around, so this is 0 for the ignored.
    largest = tf.reduce_max(label + tf.constant(1, tf.uint8))
    sound = plain & (largest <= tf.constant(num_classes, tf.uint8))
    with tf.control_dependencies([tf.debugging.Assert(sound, ["not a plain label"])]):
        return tf.identity(label)


def decode_image(contents: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """The image in the bytes of a plain JPEG or PNG, as `read_image` gives it; else a failure.

    Args:
        contents: string scalar tensor.
        size: int32 (2,) tensor, the height and width that it must have.

    Shapes:
        () -> (H, W, 3), uint8.

    Example:

    >>> image = decode_image(tf.io.read_file("photo.jpg"), [96, 128])
    """
    return _of_size(_decode(_plain(contents)), size)


def decode_part(
    contents: tf.Tensor, size: tf.Tensor, first: tf.Tensor, last: tf.Tensor
) -> tf.Tensor:
    """The rows and columns from `first` to before `last` of `decode_image`.

    Of a JPEG no more than these is decoded.

    Args:
        contents: string scalar tensor.
        size: see `decode_image`.
        first: int32 (2,) tensor, a row and a column.
        last: int32 (2,) tensor, the row and the column behind the last.

    Shapes:
        () -> (h, w, 3), uint8.

    Example:

    >>> first, last = tf.constant([8, 16]), tf.constant([40, 80])
    >>> decode_part(tf.io.read_file("photo.jpg"), [96, 128], first, last).shape
    TensorShape([32, 64, 3])
    """
    contents = _plain(contents)

    def part_of_jpeg():
        stored = tf.io.extract_jpeg_shape(contents)[:2]
        low, high = tf.maximum(first - _MARGIN, 0), tf.minimum(last + _MARGIN, size)
        with tf.control_dependencies([tf.debugging.assert_equal(stored, size)]):
            window = tf.concat([low, high - low], 0)
        image = tf.image.decode_and_crop_jpeg(
            contents, window, channels=3, dct_method="INTEGER_ACCURATE"
        )
        return low, image

    def whole():
        return tf.zeros_like(first), _of_size(_decode(contents), size)

    # What is missing at its end would not be missed in a part.
    is_whole_jpeg = tf.io.is_jpeg(contents) & (tf.strings.substr(contents, -2, 2) == b"\xff\xd9")
    low, image = tf.cond(is_whole_jpeg, part_of_jpeg, whole)
    first, last = first - low, last - low
    return image[first[0] : last[0], first[1] : last[1]]


def _plain(contents):
    is_plain_png = tf.reduce_any(tf.strings.substr(contents, 24, 2) == _PLAIN_PNG_BYTES)
    plain = tf.cond(
        tf.io.is_jpeg(contents),
        lambda: tf.io.extract_jpeg_shape(contents)[2] < 4,
        lambda: is_plain_png,
    )
    with tf.control_dependencies([tf.debugging.Assert(plain, ["not a plain image"])]):
        return tf.identity(contents)


def _decode(contents):
    # It reads PNG as well. The method is Pillow's.
    return tf.io.decode_jpeg(contents, channels=3, dct_method="INTEGER_ACCURATE")


def _of_size(image, size):
    with tf.control_dependencies([tf.debugging.assert_equal(tf.shape(image)[:2], size)]):
        return tf.identity(image)


def graph_reader(
    fetch: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    num_classes: int,
    new_ids: np.ndarray | None = None,
    able: np.ndarray | None = None,
) -> GraphReader:
    """A `GraphReader` of plain pictures.

    Args:
        fetch: function of a position in the split that gives the bytes of an image and of a label,
            string scalar tensors.
        num_classes: int, of the stored classes.
        new_ids: uint8 array (256,), what stored ids become; `None` for what they are. Defaults to
            `None`.
        able: see `GraphReader`. Defaults to `None`.

    Example:

    >>> files = tf.constant([["photo.jpg", "label.png"]])
    >>> reader = graph_reader(lambda i: tf.unstack(tf.map_fn(tf.io.read_file, files[i])), 3)
    >>> reader.read(0)[0].shape
    TensorShape([96, 128, 3])
    """

    def fetch_label(index):
        image, label = fetch(index)
        label = decode_label(label, num_classes)
        if new_ids is not None:
            label = tf.gather(tf.constant(new_ids), tf.cast(label, tf.int32))
        return image, label

    def read(index):
        image, label = fetch_label(index)
        return decode_image(image, tf.shape(label)), label

    def read_part(index, place_of):
        image, label = fetch_label(index)
        place = place_of(label)
        first, last = on_image(place, tf.shape(label))
        image = decode_part(image, tf.shape(label), first, last)
        return image, label[first[0] : last[0], first[1] : last[1]], place

    return GraphReader(read, able, read_part)


# === What errors say ===


def size_reason(label_shape: Sequence[int], image_shape: Sequence[int], image_path: AnyFile) -> str:
    """What is wrong with a label whose image is of another size, as a `DataError` has it.

    >>> size_reason((2, 3), (4, 5), "a.jpg")
    'the label is 3x2 and its image a.jpg is 5x4 (width x height)'
    """
    return (
        f"the label is {label_shape[1]}x{label_shape[0]} and its image {image_path} is "
        f"{image_shape[1]}x{image_shape[0]} (width x height)"
    )
