"""Models and slow NumPy references that tests of views and predictors share."""

import keras
import numpy as np
import tensorflow as tf

from isa_tf.models import Segmenter


def make_model(**kwargs):
    keras.utils.set_random_seed(1)
    return Segmenter("tiny", None, 7, head_filters=8, head_kernel_size=1, **kwargs)


def make_conv(kernel_size=3, size=(None, None), symmetric=False):
    """A convolution padded with zeros: what a window's border shows depends on the window."""
    image = keras.Input((*size, 3))
    x = keras.layers.Rescaling(1 / 64)(image)
    conv = keras.layers.Conv2D(4, kernel_size, padding="same", kernel_initializer="random_normal")
    model = keras.Model(image, conv(x))
    rng = np.random.default_rng(5)
    kernel = rng.normal(size=conv.kernel.shape)
    if symmetric:
        kernel += kernel[:, ::-1]
    conv.set_weights([kernel, rng.normal(size=4)])
    return model


def photos(*shape):
    return np.random.default_rng(3).integers(0, 256, (*shape, 3), np.uint8)


def run_of(model):
    return lambda images: model(tf.cast(images, tf.float32))


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def bilinear(x, size, coordinates="half_pixel"):
    """Bilinear resizing of (B, H, W, C) in NumPy, one side after the other, in float64."""
    x = np.asarray(x, np.float64)
    for axis, new in zip((1, 2), size, strict=True):
        old = x.shape[axis]
        at = {
            "half_pixel": (np.arange(new) + 0.5) * old / new - 0.5,
            "align_corners": np.arange(new) * (old - 1) / max(new - 1, 1),
            "asymmetric": np.arange(new) * old / new,
        }[coordinates]
        at = np.clip(at, 0, old - 1)
        low = np.floor(at).astype(int)
        share = (at - low).reshape([-1 if i == axis else 1 for i in range(4)])
        high = np.minimum(low + 1, old - 1)
        x = np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share
    return x


def windows(length, crop, stride):
    """(begin, end) of the windows along one side, found by walking."""
    found, position = [], 0
    while True:
        end = min(position + crop, length)
        found.append((max(end - crop, 0), end))
        if end == length:
            return found
        position += stride


def slide_reference(run, images, crop, stride):
    """Window after window, each pixel's logits summed and counted."""
    total, count = 0, np.zeros(images.shape[1:3])
    for top, bottom in windows(images.shape[1], crop[0], stride[0]):
        for left, right in windows(images.shape[2], crop[1], stride[1]):
            logits = np.asarray(run(images[:, top:bottom, left:right]), np.float64)
            if np.isscalar(total):
                total = np.zeros((*images.shape[:3], logits.shape[-1]))
            total[:, top:bottom, left:right] += logits
            count[top:bottom, left:right] += 1
    assert count.all()
    return total / count[:, :, None]
