"""Batch normalisation by TensorFlow's fused kernel."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from isa_tf.ops import sum_over_replicas


@keras.saving.register_keras_serializable("isa_tf")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` of channels-last maps, in one fused operation.

    Keras 3 computes moments and normalisation as a chain of elementwise operations, which leaves
    their fusion to XLA; without XLA the fused kernel reads and writes the map a fraction as often.
    Weights, arguments and results are those of the Keras layer, with one difference: the moving
    variance takes up the unbiased variance of the batch, as PyTorch's does.

    With `synchronized=True` the statistics are those of the global batch, that of all replicas,
    and the moving ones too are what one device would have. It is composed of elementwise
    operations; so it is for inputs that are no channels-last maps, and for float64. With masks and
    `renorm` the Keras implementation runs, whose moving variance is the biased one. Replicas
    without shared batch statistics keep the mean of their moving statistics.

    Args:
        **kwargs: those of `keras.layers.BatchNormalization`.

    Shapes:
        (B, H, W, C) -> (B, H, W, C).

    Example:

    >>> FusedBatchNormalization()(np.ones((1, 2, 2, 3), "float32")).shape
    TensorShape([1, 2, 2, 3])
    """

    def add_weight(self, *args: Any, name: str | None = None, **kwargs: Any) -> keras.Variable:
        # Without this, Keras lets the moving statistics of the replicas drift apart.
        if name in ("moving_mean", "moving_variance"):
            kwargs["aggregation"] = "mean"
        return super().add_weight(*args, name=name, **kwargs)

    def uses_batch_statistics(self, inputs: tf.Tensor) -> bool:
        """Whether training normalises by the batch's statistics in the fused operation."""
        return self.trainable and self._can_fuse(inputs)

    def _can_fuse(self, inputs, mask=None):
        return (
            not (self.synchronized or self.renorm)
            and mask is None
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and inputs.dtype != tf.float64
        )

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        if not self._can_fuse(inputs, mask):
            if training and self.trainable and mask is None and not self.renorm:
                return self._compose(inputs)
            return super().call(inputs, training=training, mask=mask)
        if not (training and self.trainable):
            statistics = (self.moving_mean, self.moving_variance)
            outputs, *_ = self.normalize(inputs, *self.scale_and_offset(), statistics)
            return outputs
        outputs, mean, variance, *_ = self.normalize(inputs, *self.scale_and_offset())
        self.update_moving_statistics(mean, variance)
        return outputs

    def _compose(self, inputs):
        """What Keras computes in training, with the moments of all replicas and two passes.

        Keras subtracts squares of the mean from means of the squares, in which little is left of
        the variance of a map whose mean is large.
        """
        x = tf.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        size = tf.size(x) // tf.shape(x)[self.axis]
        count, total = tf.cast(size, x.dtype), tf.reduce_sum(x, self._reduction_axes)
        shape = [1] * x.shape.rank
        shape[self.axis] = -1
        # Of its own first: the squares are then those of small numbers.
        mean = tf.math.divide_no_nan(total, count)
        own = tf.reshape(tf.stop_gradient(mean), shape)
        squares = tf.reduce_sum(tf.math.squared_difference(x, own), self._reduction_axes)
        if self.synchronized:
            total, whole = sum_over_replicas([total, count])
            shared = total / whole
            squares = sum_over_replicas(squares + count * tf.square(mean - shared))
            mean, count = shared, whole
        variance = squares / count
        self.update_moving_statistics(
            tf.cast(mean, self.moving_mean.dtype),
            tf.cast(squares / tf.maximum(count - 1, 1), self.moving_variance.dtype),
        )
        outputs = keras.ops.batch_normalization(
            x=x,
            mean=mean,
            variance=variance,
            axis=self.axis,
            offset=tf.cast(self.beta, x.dtype) if self.center else None,
            scale=tf.cast(self.gamma, x.dtype) if self.scale else None,
            epsilon=self.epsilon,
        )
        return tf.cast(outputs, self.compute_dtype)

    def update_moving_statistics(self, mean: tf.Tensor, variance: tf.Tensor) -> None:
        """Moves the moving statistics towards those of a batch."""
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))

    def scale_and_offset(self) -> tuple[tf.Tensor, tf.Tensor]:
        """What the normalised channels are multiplied with and what is added, float32."""
        channels = self.moving_mean.shape
        scale = tf.cast(self.gamma, tf.float32) if self.scale else tf.ones(channels)
        return scale, tf.cast(self.beta, tf.float32) if self.center else tf.zeros(channels)

    def normalize(
        self,
        inputs: tf.Tensor,
        scale: tf.Tensor,
        offset: tf.Tensor,
        statistics: Sequence[tf.Tensor] | None = None,
    ) -> tuple[tf.Tensor, ...]:
        """(outputs, mean, variance, three tensors that `gradients` reads).

        By the batch's own statistics where none are given.
        """
        empty = tf.zeros((0,), tf.float32)
        mean, variance = (empty, empty) if statistics is None else statistics
        return tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=scale,
            offset=offset,
            mean=tf.cast(mean, tf.float32),
            variance=tf.cast(variance, tf.float32),
            epsilon=self.epsilon,
            is_training=statistics is None,
        )

    def gradients(
        self, gradient: tf.Tensor, inputs: tf.Tensor, scale: tf.Tensor, kept: Sequence[tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Those of inputs, scale and offset; by the batch's own statistics.

        Args:
            gradient: of the outputs.
            inputs: those of `normalize`.
            scale: that of `normalize`.
            kept: the last three of what `normalize` gave.
        """
        one, two, three = kept
        return tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=gradient,
            x=inputs,
            scale=scale,
            reserve_space_1=one,
            reserve_space_2=two,
            reserve_space_3=three,
            epsilon=self.epsilon,
            is_training=True,
        )[:3]
