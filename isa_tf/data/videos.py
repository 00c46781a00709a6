"""Videos and cameras frame by frame, one in memory at a time: by PyAV, cameras by OpenCV."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from isa_tf import files
from isa_tf.data.base import DataError
from isa_tf.hints import StrPath

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts")

_CLOCK = Fraction(1, 90000)  # seconds, in which a camera's frames are timed
_QUALITY = "18"  # libx264's crf: no difference is seen


class Frame(NamedTuple):
    """A frame of a video.

    Attributes:
        index: int, from 0, of all frames of the source.
        image: uint8 (H, W, 3), RGB.
        time: int, when it is shown, in units of the source's `time_base`.
    """

    index: int  # type: ignore[assignment]  # in place of a tuple's method
    image: np.ndarray
    time: int


class Video:
    """The frames of a video file, as it is to be seen: turned as a phone was held.

    Iterating decodes them one after the other, each time from the beginning.

    Args:
        path: of the file.

    Attributes:
        rate: `Fraction`, frames a second; the mean, where it varies.
        time_base: `Fraction`, seconds, the unit of `Frame.time`.

    Raises:
        DataError: for a file that cannot be read as a video; while iterating, behind the last
            sound frame, for one that is damaged or cut, naming the frame that it ended at.
        ImportError: where PyAV is not installed, naming the extra.

    Example:

    >>> with VideoWriter("short.mp4", image.shape[:2], rate=25) as film:
    ...     film.write(image, 0)
    ...     film.write(image, 1)
    >>> [frame.image.shape for frame in Video("short.mp4")]
    [(96, 128, 3), (96, 128, 3)]
    """

    live = False

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)
        with self._opened() as (_, stream):
            self.rate = stream.average_rate or stream.guessed_rate or Fraction(25)
            self.time_base = stream.time_base or 1 / self.rate

    def __iter__(self) -> Iterator[Frame]:
        av = _av()
        index, end, reason = 0, None, None
        with self._opened() as (container, stream):
            length = _length(container, stream)
            decoded = container.decode(stream)
            while True:
                try:
                    frame = next(decoded, None)
                except av.error.FFmpegError as error:
                    reason = error.strerror
                    break
                if frame is None:
                    break
                if frame.is_corrupt:
                    reason = "the next one is damaged"
                    break
                shown = frame.pts
                if shown is None:
                    shown = round(index / self.rate / self.time_base)
                end = (shown - (stream.start_time or 0)) * self.time_base + 1 / self.rate
                turns = round(frame.rotation / 90)
                yield Frame(index, np.rot90(frame.to_ndarray(format="rgb24"), turns), shown)
                index += 1
        # The last frames of a whole file may be shown for longer or shorter than the others.
        if reason is None and length is not None and (end or 0) < length - 2 / self.rate:
            reason = "the file is cut"
        if reason is not None:
            of = f" of about {round(length * self.rate)}" if length is not None else ""
            raise DataError(self.path, f"ended after {index} frames{of}: {reason}")
        if not index:
            raise DataError(self.path, "a video without frames")

    @contextlib.contextmanager
    def _opened(self):
        av = _av()
        if not self.path.is_file():
            raise DataError(self.path, "no such file")
        try:
            container = av.open(str(self.path))
        except (av.error.FFmpegError, OSError) as error:
            raise DataError(self.path, f"cannot be read as a video ({error.strerror})") from error
        with container:
            if not container.streams.video:
                raise DataError(self.path, "there is no video in it")
            yield container, container.streams.video[0]


class Camera:
    """The frames of a camera, as they come: those that come while nobody asks are lost.

    It ends when the camera does, or whoever asks stops.

    Args:
        number: int, of the camera, as OpenCV counts them. Defaults to 0.
        capture: `cv2.VideoCapture` to read instead; `None` for one of the number. Defaults to
            `None`.

    Attributes:
        rate: `Fraction`, frames a second that the camera says it makes.
        time_base: `Fraction`, seconds, the unit of `Frame.time`.

    Raises:
        DataError: for a camera that cannot be opened, or gives no frame.
        ImportError: where OpenCV is not installed, naming the extra.
    """

    live = True
    time_base = _CLOCK

    def __init__(self, number: int = 0, capture: Any = None) -> None:
        try:
            import cv2
        except ImportError as error:
            raise _missing("a camera needs OpenCV") from error
        self.path = Path(f"camera{number}")
        self._capture = cv2.VideoCapture(number) if capture is None else capture
        if not self._capture.isOpened():
            raise DataError(self.path, "there is no such camera, or it may not be used")
        told = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = Fraction(told).limit_denominator(1001) if 1 <= told <= 1000 else Fraction(30)

    def __iter__(self) -> Iterator[Frame]:
        begin, last, index = time.monotonic(), -1, 0
        try:
            while True:
                read, image = self._capture.read()
                if not read:
                    break
                last = max(last + 1, round((time.monotonic() - begin) / self.time_base))
                yield Frame(index, np.ascontiguousarray(image[..., ::-1]), last)
                index += 1
        finally:
            self._capture.release()
        if not index:
            raise DataError(self.path, "the camera gives no frame")


def some_frames(
    source: Iterable[Frame], every: int = 1, limit: int | None = None
) -> Iterator[Frame]:
    """Every n-th frame of a source, from the first on.

    Args:
        source: `Video`, `Camera`, or any iterable of `Frame`.
        every: int, the n. Defaults to 1.
        limit: int, the most frames; `None` for all. Defaults to `None`.

    Raises:
        ValueError: for numbers below 1.

    Example:

    >>> frames = [Frame(i, image, i) for i in range(9)]
    >>> [frame.index for frame in some_frames(frames, every=3, limit=2)]
    [0, 3]
    """
    if every < 1 or (limit is not None and limit < 1):
        raise ValueError(f"every and limit must be at least 1, got {every} and {limit}")
    return _some_frames(source, every, limit)


def _some_frames(source, every, limit):
    taken = 0
    for frame in source:
        if frame.index % every:
            continue
        yield frame
        taken += 1
        if taken == limit:  # before the next one is decoded, which nobody asked for
            return


class VideoWriter:
    """Writes a video, H.264 in MP4; it takes its path's place when it is finished, see `files`.

    Its colours are those that players expect, at half the resolution, or at the full one where
    height or width is odd.

    Args:
        path: of the file, which ends in ".mp4".
        size: (height, width) of the frames.
        rate: frames a second, a number or `Fraction`.
        time_base: `Fraction`, seconds, the unit of the times of frames; `None` for one frame.
            Defaults to `None`.

    Raises:
        ValueError: from `write`, for an image of another size, or no uint8 (H, W, 3).
        ImportError: where PyAV is not installed, naming the extra.

    Example:

    >>> with VideoWriter("film.mp4", image.shape[:2], rate=25) as film:
    ...     for i in range(3):
    ...         film.write(image, i)
    >>> Video("film.mp4").rate
    Fraction(25, 1)
    """

    def __init__(
        self,
        path: StrPath,
        size: Sequence[int],
        rate: float | Fraction,
        time_base: Fraction | None = None,
    ) -> None:
        self._av = _av()
        self.size, rate = tuple(size), Fraction(rate).limit_denominator(10**6)
        self._rate, self._time_base = rate, 1 / rate if time_base is None else time_base
        self._path = Path(path)
        self._last: int | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            new = stack.enter_context(files.replacing(self._path))
            # What is shown first lies first: a browser begins before it has all of the file.
            options = {"movflags": "faststart"}
            self._container = self._av.open(str(new), "w", format="mp4", options=options)
            stack.callback(self._container.close)
            stream = self._container.add_stream("libx264", rate=self._rate)
            stream.height, stream.width = self.size
            stream.pix_fmt = "yuv444p" if self.size[0] % 2 or self.size[1] % 2 else "yuv420p"
            stream.options = {"crf": _QUALITY}
            stream.codec_context.time_base = self._time_base
            self._stream, self._last = stream, None
            self._stack = stack.pop_all()
        return self

    def write(self, image: np.ndarray, time: int) -> None:
        """Appends a frame.

        Args:
            image: uint8 (H, W, 3), RGB.
            time: int, when it is shown, in units of `time_base`; one that is not behind the last
                frame's is shown just after that.
        """
        image = np.ascontiguousarray(image)
        if image.dtype != np.uint8 or image.shape != (*self.size, 3):
            raise ValueError(
                f"a frame of this video is uint8 {(*self.size, 3)}, got {image.dtype} {image.shape}"
            )
        frame = self._av.VideoFrame.from_ndarray(image, format="rgb24")
        self._last = time if self._last is None else max(time, self._last + 1)
        frame.pts, frame.time_base = self._last, self._time_base
        self._container.mux(self._stream.encode(frame))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack:
            if error is not None:
                raise error.with_traceback(trace)  # so that nothing takes the path's place
            self._container.mux(self._stream.encode())


def _length(container, stream):
    """The seconds that a file says its video takes, `None` where it does not."""
    if container.format.name == "avi":  # whose duration is what was found
        return stream.frames / (stream.average_rate or 25) if stream.frames else None
    if stream.duration is not None:
        return stream.duration * stream.time_base
    with contextlib.suppress(KeyError, ValueError):  # Matroska's tag: 00:00:12.480000000
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return 3600 * int(hours) + 60 * int(minutes) + Fraction(seconds)
    return None


def _av():
    try:
        import av
    except ImportError as error:
        raise _missing("a video needs PyAV") from error
    return av


def _missing(what):
    return ImportError(f"{what}, which is not installed: pip install isa_tf[video]")
