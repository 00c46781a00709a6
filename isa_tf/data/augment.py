"""Augmentations: pure functions of (image, label, seed), for use inside `tf.data`.

An image is (H, W, 3) and a label (H, W), both uint8, and both stay so. A seed is the (2,)
integer tensor of TensorFlow's stateless random functions: the same seed, the same result.
"""

import tensorflow as tf

from isa_tf.data.base import IGNORE_LABEL, on_image
from isa_tf.names import two_ints

# The mean colour of ImageNet, which networks trained on it see as zero.
MEAN_COLOR = (124, 116, 104)

_CROP_TRIES = 10
# YIQ: one axis of grey and a plane of colour, in which saturation scales and hue turns.
_RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def random_scale_crop(
    image, label, crop_size, seed, scale_range=None, aspect_range=None, cat_max_ratio=1.0
):
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
        aspect_range: (low, high) of a factor by which the width is scaled more than the height;
            `None` for equal scales. Defaults to `None`.
        cat_max_ratio: float, the largest share of a window's labelled pixels that one class may
            have; up to ten windows are tried. Defaults to 1.0, which takes the first.

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
    place = crop_place(label, crop_size, seed, scale_range, aspect_range, cat_max_ratio)
    first, last = on_image(place, tf.shape(label))
    image = image[first[0] : last[0], first[1] : last[1]]
    label = label[first[0] : last[0], first[1] : last[1]]
    resize = scale_range is not None or aspect_range is not None
    return fit_crop(image, label, place, crop_size, resize)


def crop_place(label, crop_size, seed, scale_range=None, aspect_range=None, cat_max_ratio=1.0):
    """The first half of `random_scale_crop`: the window that it cuts.

    Args:
        label: uint8 tensor.
        crop_size: (height, width).
        seed: see `random_scale_crop`.
        scale_range: see there.
        aspect_range: see there.
        cat_max_ratio: see there.

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
    scale = tf.ones(2)
    if scale_range is not None:
        low, high = scale_range
        scale *= low + (high - low) * draws[0]
    if aspect_range is not None:
        low, high = aspect_range
        scale *= tf.stack([1.0, low + (high - low) * draws[1]])
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


def fit_crop(image, label, place, crop_size, resize=True):
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


def random_flip(image, label, seed):
    """Mirrors image and label left to right, half of the time.

    Args:
        image: uint8 tensor.
        label: uint8 tensor.
        seed: (2,) integer tensor.

    Shapes:
        (H, W, 3), (H, W) -> the same.

    Example:

    >>> image, label = random_flip(image, label, (0, 1))
    """
    flip = tf.random.stateless_uniform((), seed) < 0.5
    return tf.cond(
        flip,
        lambda: (tf.reverse(image, [1]), tf.reverse(label, [1])),
        lambda: (tf.identity(image), tf.identity(label)),
    )


def photometric_distortion(
    image, seed, brightness=32.0, contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=18.0
):
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
    draws = tf.random.stateless_uniform((8,), seed)
    used = draws[:4] < 0.5

    def pick(i, low, high, neutral):
        return tf.where(used[i], low + (high - low) * draws[4 + i], neutral)

    shift = pick(0, -brightness, brightness, 0.0)
    gain = pick(1, *contrast, 1.0)
    color = pick(2, *saturation, 1.0)
    angle = pick(3, -hue, hue, 0.0) * (3.14159265 / 180.0)
    to_yiq = tf.constant(_RGB_TO_YIQ)
    cos, sin = color * tf.cos(angle), color * tf.sin(angle)
    turn = tf.reshape(tf.stack([1.0, 0.0, 0.0, 0.0, cos, -sin, 0.0, sin, cos]), (3, 3))
    matrix = gain * tf.linalg.inv(to_yiq) @ turn @ to_yiq
    pixels = tf.reshape(tf.cast(image, tf.float32), (-1, 3))
    pixels = tf.matmul(pixels, matrix, transpose_b=True) + (gain * shift + 0.5)
    return tf.reshape(tf.cast(tf.clip_by_value(pixels, 0.0, 255.0), tf.uint8), tf.shape(image))
