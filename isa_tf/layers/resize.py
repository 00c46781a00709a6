"""Bilinear resizing of one map to the size of another."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("isa_tf")
class ResizeLike(keras.layers.Layer):
    """Resizes a map bilinearly to the height and width of a second one.

    The result is computed in the layer's compute dtype. Pixel centres lie at half-integers, as in
    `tf.image.resize` and PyTorch's `align_corners=False`.

    Call arguments:
        inputs: list of the map (B, h, w, C) and the reference (B, H, W, any).

    Shapes:
        [(B, h, w, C), (B, H, W, any)] -> (B, H, W, C).

    Example:

    >>> ResizeLike()([tf.zeros((1, 4, 4, 2)), tf.zeros((1, 9, 7, 3))]).shape
    TensorShape([1, 9, 7, 2])
    """

    def call(self, inputs):
        x, reference = inputs
        size = reference.shape[1:3]
        if size.rank is None or None in size.as_list():
            size = tf.shape(reference)[1:3]
        return tf.cast(tf.image.resize(x, size, method="bilinear"), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        x, reference = input_shape
        return (x[0], *reference[1:3], x[3])
