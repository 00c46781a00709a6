"""Sample weights, as Keras users give them."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


def pixel_weights(
    sample_weight: tf.Tensor | np.ndarray | Sequence[float],
    labels: tf.Tensor | np.ndarray,
    dtype: str | tf.DType = "float32",
) -> tf.Tensor:
    """The weight of every pixel.

    Args:
        sample_weight: weights of the images, or of the pixels.
        labels: tensor, of the shape that is wanted.
        dtype: of the result. Defaults to "float32".

    Shapes:
        (B,), (B, H, W), or what can be broadcast to it, labels (B, H, W) -> (B, H, W).

    Example:

    >>> pixel_weights([0.5, 2.0], np.zeros((2, 1, 3)))[:, 0, 0].numpy().tolist()
    [0.5, 2.0]
    """
    weights = tf.cast(tf.convert_to_tensor(sample_weight), dtype)
    # By shapes alone: Keras forgets the rank where it has seen weights of either kind.
    rank = len(labels.shape)
    shape = tf.concat([tf.shape(weights), tf.ones((rank,), tf.int32)], 0)[:rank]
    return tf.broadcast_to(tf.reshape(weights, shape), tf.shape(labels))
