"""Augmentations: pure functions of (image, label, seed), for use inside `tf.data`.

An image is (H, W, 3) and a label (H, W), both uint8, and both stay so. A seed is the (2,)
integer tensor of TensorFlow's stateless random functions: the same seed, the same result.
"""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from isa_tf.data.base import IGNORE_LABEL, on_image
from isa_tf.hints import Size
from isa_tf.names import two_ints

# The mean colour of ImageNet, which networks trained on it see as zero.
MEAN_COLOR = (124, 116, 104)

_CROP_TRIES = 10
# YIQ: one axis of grey and a plane of colour, in which saturation scales and hue turns.
_RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def random_scale_crop(
    image: tf.Tensor,
    label: tf.Tensor,
    crop_size: Size,
    seed: tf.Tensor | Sequence[int],
    scale_range: Sequence[float] | None = None,
    aspect_range: Sequence[float] | None = None,
    cat_max_ratio: float = 1.0,
    resize: "Resize | None" = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Resizes by a random factor and cuts a random window, in one step.

    The window, whole pixels of the source, is cut out first and only it is resized, which gives
    what resizing everything and then cutting would (but for the outermost half pixel), in a
    fraction of the time. Image (bilinear) and label (nearest) are sampled on one grid. In a
    window larger than the image, the image lies at a random place; around it are the mean
    colour and label 255.

    Args:
        image: uint8 tensor.
        label: uint8 tensor.
        crop_size: int for both sides, or (height, width).
        seed: (2,) integer tensor.
        scale_range: (low, high) of the uniform factor; `None` for no resizing. Defaults to
            `None`.
        aspect_range: (low, high) of the uniform factor by which the width is scaled more than the
            height, at the same area: the width by its square root more, the height by that less.
            `None` for equal scales. Defaults to `None`.
        cat_max_ratio: float, the largest share of a window's labelled pixels that one class may
            have; up to ten windows are tried. Defaults to 1.0, which takes the first.
        resize: `Resize`, what the image is brought to before all that; `None` for its own size.
            It is one resampling all the same. Defaults to `None`.

    Shapes:
        (H, W, 3), (H, W) -> (h, w, 3), (h, w) for crop_size (h, w).

    Raises:
        ValueError: for a `crop_size` that is neither.

    Example:

    >>> image, label = tf.zeros((90, 120, 3), tf.uint8), tf.zeros((90, 120), tf.uint8)
    >>> image, label = random_scale_crop(image, label, (64, 64), (0, 1), (0.5, 2.0))
    >>> image.shape, label.shape
    (TensorShape([64, 64, 3]), TensorShape([64, 64]))
    """
    crop_size = two_ints("crop_size", crop_size)
    place = crop_place(label, crop_size, seed, scale_range, aspect_range, cat_max_ratio, resize)
    first, last = on_image(place, tf.shape(label))
    image = image[first[0] : last[0], first[1] : last[1]]
    label = label[first[0] : last[0], first[1] : last[1]]
    return fit_crop(image, label, place, crop_size, resizes(scale_range, aspect_range, resize))


class Resize(NamedTuple):
    """What images are brought to before they are scaled at random: one of the three.

    Attributes:
        short_side: int, pixels of the shorter side; proportions are kept. Defaults to `None`.
        fit: (long, short) sides that the image is made to fit into, as large as may be, keeping
            its proportions. Defaults to `None`.
        size: (height, width), whatever the proportions. Defaults to `None`.

    Example:

    >>> Resize(short_side=520).scale((260, 400)).numpy().tolist()
    [2.0, 2.0]
    >>> Resize(fit=(2048, 512)).scale((256, 2048)).numpy().tolist()
    [1.0, 1.0]
    >>> Resize(size=(473, 473)).scale((946, 473)).numpy().tolist()
    [0.5, 1.0]
    """

    short_side: int | None = None
    fit: tuple[int, int] | None = None
    size: tuple[int, int] | None = None

    def scale(self, source: tf.Tensor) -> tf.Tensor:
        """Factors of height and width, (2,) float32, of an image of the size `source`."""
        source = tf.cast(source, tf.float32)
        if self.size is not None:
            return tf.constant(self.size, tf.float32) / source
        if self.fit is not None:
            long, short = self.fit
            factor = tf.minimum(long / tf.reduce_max(source), short / tf.reduce_min(source))
        else:
            factor = self.short_side / tf.reduce_min(source)
        return tf.stack([factor, factor])


def make_resize(
    short_side: int | None = None, fit: Size | None = None, size: Size | None = None
) -> Resize | None:
    """A checked `Resize`, or `None` where nothing is given.

    Args:
        short_side, fit, size: see `Resize`; of two sides, an int is both.

    Raises:
        ValueError: for more than one of them, or what is no int above 0 or two of them.

    Example:

    >>> make_resize(short_side=520)
    Resize(short_side=520, fit=None, size=None)
    """
    given = {
        name: value
        for name, value in (("short_side", short_side), ("fit", fit), ("size", size))
        if value is not None
    }
    if len(given) > 1:
        raise ValueError(f"resize by one of short_side, fit and size, got {given}")
    if not given:
        return None
    (name, value), *_ = given.items()
    value = two_ints(name, value)
    if name == "short_side":
        if value[0] != value[1]:
            raise ValueError(f"short_side must be an int above 0, got {short_side!r}")
        return Resize(short_side=value[0])
    if name == "fit":
        return Resize(fit=(max(value), min(value)))
    return Resize(size=value)


def resizes(
    scale_range: Sequence[float] | None = None,
    aspect_range: Sequence[float] | None = None,
    resize: Resize | None = None,
) -> bool:
    """Whether crops are of another size than their windows, by `random_scale_crop`'s arguments."""
    return any(each is not None for each in (scale_range, aspect_range, resize))


def crop_place(
    label: tf.Tensor,
    crop_size: Sequence[int],
    seed: tf.Tensor | Sequence[int],
    scale_range: Sequence[float] | None = None,
    aspect_range: Sequence[float] | None = None,
    cat_max_ratio: float = 1.0,
    resize: Resize | None = None,
) -> tf.Tensor:
    """The first half of `random_scale_crop`: the window that it cuts.

    Args:
        label: uint8 tensor.
        crop_size: (height, width).
        seed: see `random_scale_crop`.
        scale_range: see there.
        aspect_range: see there.
        cat_max_ratio: see there.
        resize: see there.

    Returns:
        An int32 (2, 2) tensor: the window's first row and column, which may be negative, and
        its height and width, in pixels of the source.

    Example:

    >>> crop_place(tf.zeros((90, 120), tf.uint8), (64, 64), (0, 1))[1]
    <tf.Tensor: shape=(2,), dtype=int32, numpy=array([64, 64], dtype=int32)>
    """
    crop = tf.constant(crop_size, tf.int32)
    source = tf.shape(label)
    draws = tf.random.stateless_uniform((2 + 2 * _CROP_TRIES,), seed)
    # The window in source pixels, a whole number of them.
    scale = tf.ones(2) if resize is None else resize.scale(source)
    if scale_range is not None:
        low, high = scale_range
        scale *= low + (high - low) * draws[0]
    if aspect_range is not None:
        low, high = aspect_range
        root = tf.sqrt(low + (high - low) * draws[1])
        scale *= tf.stack([1.0 / root, root])
    window = tf.maximum(tf.cast(tf.round(tf.cast(crop, tf.float32) / scale), tf.int32), 1)
    slack = source - window
    room = tf.cast(tf.abs(slack) + 1, tf.float32)
    places = tf.reshape(draws[2:], (_CROP_TRIES, 2))
    starts = tf.sign(slack) * tf.minimum(tf.cast(places * room, tf.int32), tf.abs(slack))
    if cat_max_ratio < 1.0:
        start = _mixed_window(label, starts, window, cat_max_ratio)
    else:
        start = starts[0]
    return tf.stack([start, window])


def fit_crop(
    image: tf.Tensor,
    label: tf.Tensor,
    place: tf.Tensor,
    crop_size: Sequence[int],
    resize: bool = True,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The second half of `random_scale_crop`: resizes what was cut, and pads it.

    Args:
        image: uint8 tensor, what of the window lies on the image.
        label: uint8 tensor, the same of the label.
        place: int32 (2, 2) tensor, of `crop_place`.
        crop_size: (height, width).
        resize: bool; `False` where windows are as large as crops. Defaults to `True`.

    Shapes:
        (H, W, 3), (H, W) -> (h, w, 3), (h, w) for crop_size (h, w).

    Example:

    >>> image, label = tf.zeros((40, 64, 3), tf.uint8), tf.zeros((40, 64), tf.uint8)
    >>> image, label = fit_crop(image, label, [[-3, 5], [64, 64]], (32, 32))
    >>> image.shape, label.shape
    (TensorShape([32, 32, 3]), TensorShape([32, 32]))
    """
    crop = tf.constant(crop_size, tf.int32)
    start, window = tf.unstack(place)
    found = tf.shape(label)
    first = tf.maximum(start, 0)
    last = first + found
    # The part of it that lies on the image, in pixels of the crop.
    ratio = tf.cast(crop, tf.float32) / tf.cast(window, tf.float32)
    before = tf.cast(tf.round(tf.cast(first - start, tf.float32) * ratio), tf.int32)
    until = tf.cast(tf.round(tf.cast(last - start, tf.float32) * ratio), tf.int32)
    size = tf.maximum(until - before, 1)
    before = tf.minimum(before, crop - size)
    after = crop - before - size

    if resize:
        # As float32 it is resized almost twice as fast, to the same numbers.
        image = tf.image.resize(tf.cast(image, tf.float32), size)
        image = tf.cast(image + 0.5, tf.uint8)
        label = _nearest(label, found, size)
    image, label = tf.cond(
        tf.reduce_all(tf.equal(size, crop)),
        lambda: (image, label),
        lambda: _pad(image, label, tf.stack([before, after], axis=1)),
    )
    return tf.ensure_shape(image, (*crop_size, 3)), tf.ensure_shape(label, crop_size)


def _nearest(label, source, size):
    """Nearest neighbours at the pixel centres that the bilinear resize of the image uses."""
    for axis in range(2):  # gathering rows, of the transpose as well, is what is fast
        centers = (2 * tf.range(size[axis]) + 1) * source[axis] // (2 * size[axis])
        label = tf.transpose(tf.gather(label, centers))
    return label


def _pad(image, label, pads):
    mean = tf.constant(MEAN_COLOR, tf.uint8)
    # uint8 arithmetic wraps around, so this puts the mean in the padding and nowhere else.
    image = tf.pad(image - mean, tf.pad(pads, [[0, 1], [0, 0]])) + mean
    return image, tf.pad(label, pads, constant_values=IGNORE_LABEL)


def _mixed_window(label, starts, window, cat_max_ratio):
    """The first of `starts` whose window no class has more than its share of, or the last."""

    def one_class_rules(attempt):
        first = tf.maximum(starts[attempt], 0)
        last = starts[attempt] + window
        sample = label[first[0] : last[0] : 4, first[1] : last[1] : 4]
        counts = tf.math.bincount(tf.reshape(tf.cast(sample, tf.int32), (-1,)), minlength=256)
        counts = counts[:IGNORE_LABEL]
        share = tf.cast(tf.reduce_max(counts), tf.float32)
        return share >= cat_max_ratio * tf.cast(tf.reduce_sum(counts), tf.float32)

    (attempt,) = tf.while_loop(
        lambda a: tf.logical_and(a < _CROP_TRIES - 1, one_class_rules(a)),
        lambda a: (a + 1,),
        (0,),
    )
    return starts[attempt]


def random_flip(
    image: tf.Tensor,
    label: tf.Tensor,
    seed: tf.Tensor | Sequence[int],
    flip_pairs: Sequence[Sequence[int]] = (),
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mirrors image and label left to right, half of the time.

    Args:
        image: uint8 tensor.
        label: uint8 tensor.
        seed: (2,) integer tensor.
        flip_pairs: pairs of class ids that change places in a mirror, such as left and right arm.
            Defaults to `()`.

    Shapes:
        (H, W, 3), (H, W) -> the same.

    Example:

    >>> image, label = random_flip(image, label, (0, 1))
    """
    return tf.cond(
        flips(seed),
        lambda: mirror(image, label, flip_pairs),
        lambda: (tf.identity(image), tf.identity(label)),
    )


def flips(seed: tf.Tensor | Sequence[int]) -> tf.Tensor:
    """Whether `random_flip` mirrors, a bool scalar.

    Args:
        seed: (2,) integer tensor.

    Example:

    >>> flips((0, 1)).dtype
    tf.bool
    """
    return tf.random.stateless_uniform((), seed) < 0.5


def mirror(
    image: tf.Tensor, label: tf.Tensor, flip_pairs: Sequence[Sequence[int]] = ()
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mirrors image and label left to right.

    Args:
        image: uint8 tensor.
        label: uint8 tensor.
        flip_pairs: see `random_flip`. Defaults to `()`.

    Shapes:
        (H, W, 3), (H, W) -> the same.

    Example:

    >>> mirrored, its_label = mirror(image, label, flip_pairs=((0, 1),))
    """
    return tf.reverse(image, [1]), _swap(tf.reverse(label, [1]), flip_pairs)


def _swap(label, pairs):
    if not len(pairs):
        return label
    swapped = list(range(256))
    for a, b in pairs:
        swapped[a], swapped[b] = b, a
    return tf.gather(tf.constant(swapped, tf.uint8), tf.cast(label, tf.int32))


def random_brightness(image: tf.Tensor, seed: tf.Tensor | Sequence[int], limit: int) -> tf.Tensor:
    """Adds one whole number to all of an image, as likely any from -limit to limit.

    Args:
        image: uint8 tensor.
        seed: (2,) integer tensor.
        limit: int, of 255.

    Shapes:
        (H, W, 3) -> (H, W, 3), uint8; what would leave 0..255 stays at its end.

    Example:

    >>> image = random_brightness(image, (0, 1), 10)

    Source: `RandomBrightness` of openseg.pytorch.
    """
    shift = tf.random.stateless_uniform((), seed, -limit, limit + 1, tf.int32)
    # In whole numbers of 16 bits, which is half the time of float32.
    shifted = tf.cast(image, tf.int16) + tf.cast(shift, tf.int16)
    return tf.cast(tf.clip_by_value(shifted, 0, 255), tf.uint8)


def photometric_distortion(
    image: tf.Tensor,
    seed: tf.Tensor | Sequence[int],
    brightness: float = 32.0,
    contrast: Sequence[float] = (0.5, 1.5),
    saturation: Sequence[float] = (0.5, 1.5),
    hue: float = 18.0,
) -> tf.Tensor:
    """Changes brightness, contrast, saturation and hue, each half of the time.

    The four are made into one 3x3 matrix and an offset (saturation and hue in the YIQ colour
    space), so that the image is read once and rounded once.

    Args:
        image: uint8 tensor.
        seed: (2,) integer tensor.
        brightness: float, the most that is added or taken away. Defaults to 32.
        contrast: (low, high) factors. Defaults to (0.5, 1.5).
        saturation: (low, high) factors. Defaults to (0.5, 1.5).
        hue: float, the largest turn in degrees. Defaults to 18.

    Shapes:
        (H, W, 3) -> (H, W, 3), uint8.

    Example:

    >>> image = photometric_distortion(image, (0, 1))

    Paper: SSD: Single Shot MultiBox Detector (https://arxiv.org/abs/1512.02325), section 3.6;
    the ranges are those of its code.
    """
    return recolor(image, *color_change(seed, brightness, contrast, saturation, hue))


def color_change(
    seed: tf.Tensor | Sequence[int],
    brightness: float = 32.0,
    contrast: Sequence[float] = (0.5, 1.5),
    saturation: Sequence[float] = (0.5, 1.5),
    hue: float = 18.0,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The first half of `photometric_distortion`: the change that it draws.

    Args:
        seed, brightness, contrast, saturation, hue: see there.

    Returns:
        A (3, 3) float32 tensor, by which colours are multiplied, and a scalar that is added.

    Example:

    >>> matrix, offset = color_change((0, 1))
    """
    draws = tf.random.stateless_uniform((8,), seed)
    used = draws[:4] < 0.5

    def pick(i, limits, neutral):
        low, high = limits
        return tf.where(used[i], low + (high - low) * draws[4 + i], neutral)

    shift = pick(0, (-brightness, brightness), 0.0)
    gain = pick(1, contrast, 1.0)
    color = pick(2, saturation, 1.0)
    angle = pick(3, (-hue, hue), 0.0) * (3.14159265 / 180.0)
    to_yiq = tf.constant(_RGB_TO_YIQ)
    cos, sin = color * tf.cos(angle), color * tf.sin(angle)
    turn = tf.reshape(tf.stack([1.0, 0.0, 0.0, 0.0, cos, -sin, 0.0, sin, cos]), (3, 3))
    return gain * tf.linalg.inv(to_yiq) @ turn @ to_yiq, gain * shift + 0.5


def recolor(image: tf.Tensor, matrix: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """The second half of `photometric_distortion`: changes the colours of an image.

    Args:
        image: uint8 tensor.
        matrix: (3, 3) float32 tensor, of `color_change`.
        offset: float32 scalar; half a step of rounding is in it.

    Shapes:
        (H, W, 3) -> (H, W, 3), uint8.

    Example:

    >>> image = recolor(image, *color_change((0, 1)))
    """
    pixels = tf.reshape(tf.cast(image, tf.float32), (-1, 3))
    pixels = tf.matmul(pixels, matrix, transpose_b=True) + offset
    return tf.reshape(tf.cast(tf.clip_by_value(pixels, 0.0, 255.0), tf.uint8), tf.shape(image))
