"""The views of an image that a protocol shows to a model, and what is made of their logits."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from isa_tf import ops
from isa_tf.data.augment import MEAN_COLOR
from isa_tf.hints import Array
from isa_tf.inference.protocol import Protocol

WINDOWS_AT_ONCE = 4  # of a slide, in one batch
WINDOWS_BYTES = 2**28  # that the logits of these windows may take
PAD_COLOR = (128, 128, 128)  # PaddleSeg's 127.5, as whole images have it


def view_size(
    size: Sequence[int],
    scale: float = 1.0,
    fit_size: Sequence[int] | None = None,
    exact_size: Sequence[int] | None = None,
) -> tuple[int, int]:
    """The size at which a protocol sees an image.

    Without `fit_size`, both sides times the scale, rounded, bound the view; with it, `fit_size`
    times the scale, rounded down. The view is the largest within the bound (long side in long,
    short in short) that keeps the image's proportions, rounded; so a long and narrow image can
    come out some pixels smaller than its sides times the scale. With `exact_size`, that times the
    scale, rounded down, is the size.

    Args:
        size: (height, width) of the image.
        scale: float. Defaults to 1.
        fit_size: (long, short), or `None`. Defaults to `None`.
        exact_size: (height, width), or `None`. Defaults to `None`.

    Returns:
        (height, width), at least 1 each.

    Example:

    >>> view_size((1024, 2048), 0.75), view_size((1024, 2048), fit_size=(2049, 1025))
    ((768, 1536), (1025, 2049))

    Source: `Resize` with `keep_ratio` of mmcv 2.1; scales of `fit_size`: `MultiScaleFlipAug` of
    mmsegmentation 0.30, whose successor knows none.
    """
    if exact_size is not None:
        height, width = (max(int(n * scale), 1) for n in exact_size)
        return height, width
    if fit_size is None:
        bound = [int(n * scale + 0.5) for n in size]
    else:
        bound = [int(n * scale) for n in fit_size]
    factor = min(max(bound) / max(size), min(bound) / min(size))
    height, width = (max(int(n * factor + 0.5), 1) for n in size)
    return height, width


def resize_image(images: Array, size: Sequence[int]) -> tf.Tensor:
    """Resizes images bilinearly, as OpenCV does to within one grey level.

    Pixel centres lie at half-integers, nothing is smoothed before shrinking, and the result is
    rounded.

    Args:
        images: uint8 (B, H, W, C).
        size: (height, width).

    Shapes:
        (B, H, W, C) -> (B, height, width, C), uint8.

    Example:

    >>> resize_image(np.array([0, 100], "uint8").reshape(1, 1, 2, 1), (1, 4))[0, 0, :, 0]
    <tf.Tensor: shape=(4,), dtype=uint8, numpy=array([  0,  25,  75, 100], dtype=uint8)>
    """
    if tuple(images.shape[1:3]) == tuple(size):
        return tf.convert_to_tensor(images)
    return tf.cast(tf.round(ops.resize_bilinear(images, size)), tf.uint8)


def resize_logits(logits: Array, size: Sequence[int], coordinates: str = "half_pixel") -> tf.Tensor:
    """Resizes logits bilinearly, without smoothing them before they shrink.

    Args:
        logits: (B, H, W, classes).
        size: (height, width).
        coordinates: where a pixel of the result lies in the logits, see `ops.resize_bilinear`:
            "half_pixel", "align_corners" or "asymmetric". Defaults to "half_pixel".

    Shapes:
        (B, H, W, classes) -> (B, height, width, classes), float32.

    Raises:
        ValueError: for unknown coordinates.

    Example:

    >>> logits = np.array([0.0, 1.0]).reshape(1, 1, 2, 1)
    >>> resize_logits(logits, (1, 3), "align_corners")[0, 0, :, 0]
    <tf.Tensor: shape=(3,), dtype=float32, numpy=array([0. , 0.5, 1. ], dtype=float32)>
    """
    ops.check_coordinates(coordinates)
    if tuple(logits.shape[1:3]) == tuple(size):
        return tf.cast(logits, tf.float32)
    return ops.resize_bilinear(logits, size, coordinates)


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Where the windows of a slide begin along one side: a list of ints.

    >>> window_starts(1024, 769, 513), window_starts(500, 769, 513)
    ([0, 255], [0])
    """
    last = max(length - crop, 0)
    steps = -(-last // stride)  # rounded up
    return [min(step * stride, last) for step in range(steps + 1)]


def slide_tiles(
    run: Callable[[tf.Tensor], tf.Tensor],
    images: Array,
    crop_size: Sequence[int],
    stride: Sequence[int],
    outer: int | None = None,
    within: Sequence[int] | None = None,
    in_rows: bool = False,
) -> Iterator[tuple[int, int, np.ndarray]]:
    """The logits of images seen in windows, averaged where windows overlap, piece after piece.

    The windows advance across the shorter side of the images first. What no later window reaches
    is given away and forgotten: the logits held at any time are those of some windows and of where
    two rows of windows overlap, never those of the whole images.

    Args:
        run: function from uint8 images (N, h, w, 3) to logits (N, h, w, classes). It is given
            windows of one size, as many at once as `WINDOWS_AT_ONCE` and `WINDOWS_BYTES` allow.
        images: uint8 (B, H, W, 3).
        crop_size: (height, width) of a window; an image that is smaller has windows as small.
        stride: (vertical, horizontal) step from window to window. The last window of a row or
            column is moved back inside the image.
        outer: 0 for rows of windows that follow on each other downwards, 1 for columns that do so
            to the right. Defaults to `None`, for what holds less.
        within: (first, last) along that side of what is wanted; windows that do not reach into it
            are not seen. Defaults to `None`, for all.
        in_rows: bool, whether the tiles must come row after row, each row beginning where the one
            before ended; else those of the last two rows may come in turns, which holds less.
            Defaults to `False`.

    Returns:
        A generator of (top, left, logits): float32 arrays (B, h, w, classes) of the tile whose
        first pixel is (top, left). Together the tiles cover what is wanted, each pixel once.

    Example:

    >>> tiles = slide_tiles(model, images, crop_size=(96, 64), stride=(96, 32))
    >>> [(top, left, logits.shape) for top, left, logits in tiles]
    [(0, 0, (1, 96, 32, 11)), (0, 32, (1, 96, 32, 11)), (0, 64, (1, 96, 64, 11))]
    """
    size = tuple(images.shape[1:3])
    crop = [min(n, c) for n, c in zip(size, crop_size, strict=True)]
    starts = [window_starts(*each) for each in zip(size, crop, stride, strict=True)]
    if outer is None:
        # The rows of windows lie across the shorter side: little is held where two overlap.
        outer = 0 if size[0] >= size[1] else 1
    inner = 1 - outer
    first, last = within or (0, size[outer])
    rows = [[a] for a in starts[outer]]
    if not in_rows and len(rows) > 1 and rows[-1][0] - rows[-2][0] < stride[outer]:
        # Moved back, the last row overlaps the one before by more than others do, which would be
        # held of all the row; seen together, it is held of one window.
        rows[-2:] = [rows[-2] + rows[-1]]
    rows = [row for row in rows if row[0] < last and row[-1] + crop[outer] > first]
    corners = []
    for row in rows:
        pairs = ((a, b) for b in starts[inner] for a in row)
        corners += [pair[:: 1 if outer == 0 else -1] for pair in pairs]
    logits = _window_logits(run, images, corners, crop)
    ends = [*(row[0] for row in rows[1:]), last], [*starts[inner][1:], size[inner]]
    seen = [_times_seen(n, s, c) for n, s, c in zip(size, starts, crop, strict=True)]
    held = [None] * len(starts[inner])  # of the row of windows before, column by column
    for row, row_end in zip(rows, ends[0], strict=True):
        beside = [None] * len(row)  # of the windows before
        for i, (b, b_end) in enumerate(zip(starts[inner], ends[1], strict=True)):
            for k, (a, a_end) in enumerate(zip(row, [*row[1:], row_end], strict=True)):
                piece = np.array(next(logits), np.float32)
                _add(piece, beside[k], inner + 1)
                piece, beside[k] = _cut(piece, b_end - b, inner + 1)
                _add(piece, held[i], outer + 1)
                piece, held[i] = _cut(piece, a_end - a, outer + 1)
                begin = max(a, first)
                if begin < a_end:
                    piece = np.split(piece, [begin - a], outer + 1)[1]
                    place = ((begin, a_end), (b, b_end))[:: -1 if outer else 1]
                    (top, bottom), (left, right) = place
                    piece /= np.outer(seen[0][top:bottom], seen[1][left:right])[:, :, None]
                    yield top, left, piece
                del piece


def slide(
    run: Callable[[tf.Tensor], tf.Tensor],
    images: Array,
    crop_size: Sequence[int],
    stride: Sequence[int],
) -> tf.Tensor:
    """The logits of images seen in windows, averaged where windows overlap.

    Args:
        run: as of `slide_tiles`.
        images: uint8 (B, H, W, 3).
        crop_size: as of `slide_tiles`.
        stride: as of `slide_tiles`.

    Shapes:
        (B, H, W, 3) -> (B, H, W, classes), float32.

    Example:

    >>> slide(model, images, crop_size=(64, 64), stride=(43, 43)).shape
    TensorShape([1, 96, 128, 11])

    Source: `EncoderDecoder.slide_inference` of mmsegmentation 1.2.2.
    """
    whole = None
    for top, left, logits in slide_tiles(run, images, crop_size, stride):
        if whole is None:
            whole = np.empty((*images.shape[:3], logits.shape[-1]), np.float32)
        whole[:, top : top + logits.shape[1], left : left + logits.shape[2]] = logits
        del logits  # before there are others
    return tf.convert_to_tensor(whole)


def _window_logits(run, images, corners, crop):
    """The logits of the windows at `corners`, one after the other: arrays (B, h, w, classes)."""
    batch, at_once = images.shape[0], 1  # how large logits are is known from the first
    while corners:
        some, corners = corners[:at_once], corners[at_once:]
        windows = [images[:, y : y + crop[0], x : x + crop[1]] for y, x in some]
        logits = np.asarray(run(tf.concat(windows, axis=0)))
        of_one = logits.nbytes // len(some)
        at_once = max(min(WINDOWS_AT_ONCE // batch, WINDOWS_BYTES // of_one), 1)
        yield from logits.reshape(len(some), batch, *logits.shape[1:])
        del logits  # before there are others


def _add(piece, other, axis):
    """Adds to the beginning of a piece, in place, an array (or `None`) that lies over it."""
    if other is not None:
        over = np.split(piece, [other.shape[axis]], axis)[0]
        over += other


def _cut(piece, length, axis):
    """The first of a piece, a part of it, and a copy of the rest, which does not hold the piece."""
    first, rest = np.split(piece, [length], axis)
    return first, rest.copy()


def _times_seen(length, starts, crop):
    """How many windows see each position along one side, float32 (length,)."""
    change = np.zeros(length + 1, np.float32)
    np.add.at(change, starts, 1)
    np.subtract.at(change, np.add(starts, crop), 1)
    return np.cumsum(change[:-1])


def view_logits(
    run: Callable[[tf.Tensor], tf.Tensor],
    images: Array,
    protocol: Protocol,
    coordinates: str = "half_pixel",
) -> Iterator[tf.Tensor]:
    """The logits of every view of a protocol, one after the other, at the size of the images.

    Args:
        run: function from uint8 images (N, h, w, 3) to logits (N, h, w, classes), float32.
        images: uint8 (B, H, W, 3).
        protocol: `Protocol`.
        coordinates: of the logits' pixels, see `resize_logits`. Defaults to "half_pixel".

    Returns:
        A generator of float32 tensors (B, H, W, classes): for each scale the view and, with
        `flip`, its mirror image, mirrored back.

    Raises:
        ValueError: for `flip_pairs` of classes that are not there.

    Example:

    >>> protocol = isa_tf.inference.Protocol(scales=(0.75, 1), flip=True)
    >>> class_id, score = vote(view_logits(model, images, protocol))
    """
    height, width = images.shape[1:3]
    images = padded(images, protocol.pad_size)
    size = tuple(images.shape[1:3])
    for view, mirrored in each_view(images, protocol):
        if protocol.mode == "slide":
            assert protocol.crop_size is not None and protocol.stride is not None
            logits = slide(run, view, protocol.crop_size, protocol.stride)
        else:
            logits = run(in_multiples(view, protocol.size_divisor))
            logits = logits[:, : view.shape[1], : view.shape[2]]
        if mirrored:
            order = protocol.mirrored_classes(logits.shape[-1])
            logits = tf.gather(tf.reverse(logits, [2]), order, axis=-1)
        yield resize_logits(logits, size, coordinates)[:, :height, :width]


def in_multiples(view: Array, size_divisor: int | None) -> Array:
    """A view whose sides are multiples of a protocol's `size_divisor`.

    Args:
        view: uint8 (B, H, W, 3).
        size_divisor: int, or `None` for the view as it is.

    Example:

    >>> in_multiples(images, 80).shape
    TensorShape([1, 160, 160, 3])
    """
    if size_divisor is None:
        return view
    size = [-(-n // size_divisor) * size_divisor for n in view.shape[1:3]]
    return padded(view, size, MEAN_COLOR)


def padded(
    images: Array, pad_size: Sequence[int] | None, color: Sequence[int] = PAD_COLOR
) -> Array:
    """Images at least as large as a protocol's `pad_size`, padded at their bottom and right.

    Args:
        images: uint8 (B, H, W, 3).
        pad_size: (height, width), or `None` for the images as they are.
        color: RGB triple. Defaults to `PAD_COLOR`.

    Example:

    >>> padded(images, (100, 100)).shape
    TensorShape([1, 100, 128, 3])
    """
    if pad_size is None:
        return images
    down, across = (max(p - n, 0) for p, n in zip(pad_size, images.shape[1:3], strict=True))
    pads = [[0, 0], [0, down], [0, across], [0, 0]]
    color = tf.constant(color, images.dtype)
    # uint8 arithmetic wraps around, so this puts the colour in the padding and nowhere else.
    return tf.pad(images - color, pads) + color


def each_view(images: Array, protocol: Protocol) -> Iterator[tuple[Array, bool]]:
    """The views that a protocol has of images (B, H, W, 3), padded already.

    Args:
        images: uint8 (B, H, W, 3).
        protocol: `Protocol`.

    Returns:
        A generator of (view, whether it is mirrored): uint8 tensors (B, h, w, 3), for each scale
        the view and, with `flip`, its mirror image.

    Example:

    >>> protocol = isa_tf.inference.Protocol(scales=0.5, flip=True)
    >>> [(tuple(view.shape), mirrored) for view, mirrored in each_view(images, protocol)]
    [((1, 48, 64, 3), False), ((1, 48, 64, 3), True)]
    """
    for scale in protocol.scales:
        size = view_size(tuple(images.shape[1:3]), scale, protocol.fit_size, protocol.exact_size)
        resized = images if size == tuple(images.shape[1:3]) else resize_image(images, size)
        for mirrored in (False, True)[: 1 + protocol.flip]:
            yield tf.reverse(resized, [2]) if mirrored else resized, mirrored


def vote(views: Iterable[Array]) -> tuple[tf.Tensor, tf.Tensor]:
    """Class ids and probabilities by the mean softmax of several views.

    Args:
        views: iterable of logits (B, H, W, classes), read one at a time.

    Shapes:
        (B, H, W, classes) each -> class ids (B, H, W), of `class_dtype`, and the mean probability
        of each, float32.

    Example:

    >>> mirrored = model(images[:, :, ::-1])[:, :, ::-1]
    >>> class_id, score = vote([model(images), mirrored])

    Source: `SegTTAModel` of mmsegmentation 1.2.2.
    """
    total, count = 0.0, 0
    for logits in views:
        total += tf.nn.softmax(tf.cast(logits, tf.float32))
        count += 1
    return _largest(total), tf.reduce_max(total, axis=-1) / count


def classify(logits: Array) -> tuple[tf.Tensor, tf.Tensor]:
    """Class ids and their probabilities.

    Args:
        logits: (B, H, W, classes).

    Shapes:
        (B, H, W, classes) -> class ids (B, H, W), of `class_dtype`, and the probability of each,
        float32.

    Example:

    >>> class_id, score = classify(model(images))
    """
    score = tf.reduce_max(tf.nn.softmax(tf.cast(logits, tf.float32)), axis=-1)
    return _largest(logits), score


def class_dtype(num_classes: int) -> np.dtype:
    """The type of class ids: one byte where that is enough, which is up to 256 classes.

    >>> class_dtype(256), class_dtype(257)
    (dtype('uint8'), dtype('int32'))
    """
    return np.dtype("uint8" if num_classes <= 256 else "int32")


def _largest(values):
    """The class of the largest value, (B, H, W)."""
    class_id = tf.argmax(values, axis=-1, output_type=tf.int32)
    return tf.cast(class_id, class_dtype(values.shape[-1]))
