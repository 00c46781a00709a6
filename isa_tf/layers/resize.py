"""Bilinear resizing of a map, to the size of another or by a factor."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from isa_tf import ops
from isa_tf.hints import Shape


@keras.saving.register_keras_serializable("isa_tf")
class ResizeLike(keras.layers.Layer):
    """Resizes a map bilinearly to the height and width of a second one.

    The result is computed in the layer's compute dtype.

    Args:
        coordinates: see `isa_tf.ops.resize_bilinear`. Defaults to "half_pixel".
        factor: int, by which the map is resized before that, in coordinates "half_pixel", as
            mmsegmentation's HRNet does; or `None`. Defaults to `None`.

    Call arguments:
        inputs: list of the map (B, h, w, C) and the reference (B, H, W, any).

    Shapes:
        [(B, h, w, C), (B, H, W, any)] -> (B, H, W, C).

    Raises:
        ValueError: for unknown coordinates, or a factor below 1.

    Example:

    >>> ResizeLike()([tf.zeros((1, 4, 4, 2)), tf.zeros((1, 9, 7, 3))]).shape
    TensorShape([1, 9, 7, 2])
    """

    def __init__(
        self, coordinates: str = "half_pixel", factor: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        ops.check_coordinates(coordinates)
        if factor is not None and factor < 1:
            raise ValueError(f"factor must be at least 1 or None, got {factor}")
        self.coordinates = coordinates
        self.factor = factor

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        x, reference = inputs
        if self.factor is not None:
            x = ops.resize_bilinear(x, [n * self.factor for n in ops.spatial_size(x)])
        size = reference.shape[1:3]
        if size.rank is None or None in size.as_list():
            size = tf.shape(reference)[1:3]
        return tf.cast(ops.resize_bilinear(x, size, self.coordinates), self.compute_dtype)

    def compute_output_shape(self, input_shape: Shape) -> tuple[int | None, ...]:
        x, reference = input_shape
        return (x[0], *reference[1:3], x[3])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "coordinates": self.coordinates, "factor": self.factor}


@keras.saving.register_keras_serializable("isa_tf")
class ResizeBy(keras.layers.Layer):
    """Resizes a map bilinearly by a factor; pixel centres lie as in `ResizeLike`.

    Args:
        factor: float, above 0.

    Shapes:
        (B, H, W, C) -> (B, round(H * factor), round(W * factor), C), at least 1 each.

    Raises:
        ValueError: for a factor that is not above 0.

    Example:

    >>> ResizeBy(1.5)(tf.zeros((1, 4, 6, 3))).shape
    TensorShape([1, 6, 9, 3])
    """

    def __init__(self, factor: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not factor > 0:
            raise ValueError(f"factor must be above 0, got {factor}")
        self.factor = factor

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        size = inputs.shape[1:3]
        if size.rank is None or None in size.as_list():
            size = tf.cast(tf.shape(inputs)[1:3], tf.float32) * self.factor
            size = tf.maximum(tf.cast(tf.round(size), tf.int32), 1)
        else:
            size = [self._length(n) for n in size]
        return tf.cast(ops.resize_bilinear(inputs, size), self.compute_dtype)

    def _length(self, n):
        # In float32, as of sizes that are not known: halves are rounded as the graph rounds them.
        return None if n is None else max(round(np.float32(n) * np.float32(self.factor)), 1)

    def compute_output_shape(self, input_shape: Shape) -> tuple[int | None, ...]:
        batch, height, width, channels = input_shape
        return (batch, self._length(height), self._length(width), channels)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "factor": self.factor}
