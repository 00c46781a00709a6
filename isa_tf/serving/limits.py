"""What a server takes: how much of it, and which pictures."""

import dataclasses
import io

import numpy as np
from PIL import Image

from isa_tf.data.base import DataError
from isa_tf.data.pictures import read_image

# Pillow opens far more, some of it by other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_WHAT = "the picture"


class Refused(Exception):
    """A request that is not answered: the HTTP `status`, and the `reason` in words."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status, self.reason = status, reason

    def __reduce__(self):
        return Refused, (self.status, self.reason)


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much a request may take.

    Args:
        max_bytes: int, of a request's body. Defaults to 20 MB.
        max_pixels: int, of a picture; told by its header, before it is decoded. Defaults to 25
            million.
        body_seconds: float, in which the body must have come. Defaults to 10.
        answer_seconds: float, in which there is an answer, from then on. Defaults to 60.

    Raises:
        ValueError: for what is not above 0.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 25_000_000
    body_seconds: float = 10.0
    answer_seconds: float = 60.0

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")


def read_picture(contents: bytes, limits: Limits | None = None) -> np.ndarray:
    """Reads a picture that came from outside as `uint8` RGB (H, W, 3).

    Its kind and size are looked at before it is decoded. What is decoded is what
    `isa_tf.data.pictures.read_image` makes of a file: turned as its EXIF orientation says, grey,
    palettes and CMYK as RGB, of RGB with 16 bits the upper 8, without what is transparent; of a
    camera's JPEG with previews behind it (MPO) the photo.

    Args:
        contents: bytes.
        limits: `Limits`; `None` for its defaults. Defaults to `None`.

    Raises:
        Refused: 400 for what is no picture, or a damaged one; 413 for one of too many pixels; 415
            for a kind that is none of JPEG, PNG, WebP and BMP, several pictures in one, or grey
            of more than 8 bits.

    Example:

    >>> read_picture(open("photo.jpg", "rb").read()).shape
    (96, 128, 3)
    >>> read_picture(b"no picture")
    Traceback (most recent call last):
    isa_tf.serving.limits.Refused: 400: no picture of a kind that is read: JPEG, PNG, WEBP, BMP
    """
    limits = limits or Limits()
    if not contents:
        raise Refused(400, "an empty body: send the bytes of a picture")
    try:
        with Image.open(io.BytesIO(contents)) as picture:
            kind, (width, height) = picture.format, picture.size
            count = getattr(picture, "n_frames", 1) if kind in FORMATS else 1
            if kind == "MPO":  # a camera's JPEG with previews behind it: the first is the photo
                kind = "JPEG"
    except Image.DecompressionBombError:
        raise Refused(413, f"more than the {limits.max_pixels} pixels that are taken") from None
    except Exception:
        raise Refused(400, _NO_PICTURE) from None
    if kind not in FORMATS:
        raise Refused(415, f"{kind} is not read, but {', '.join(FORMATS)}")
    if width * height > limits.max_pixels:
        raise Refused(
            413, f"{width}x{height} are more than the {limits.max_pixels} pixels that are taken"
        )
    if count > 1:
        raise Refused(415, f"{count} pictures in one file, and no telling which is meant")
    try:
        return read_image(_WHAT, contents)
    except DataError as error:
        status = 415 if error.reason.startswith("more than 8 bits") else 400
        raise Refused(status, error.reason) from error


_NO_PICTURE = f"no picture of a kind that is read: {', '.join(FORMATS)}"
