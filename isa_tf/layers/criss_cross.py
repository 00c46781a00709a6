"""Recurrent criss-cross attention: along row and column, more than once."""

from typing import Any

import keras
import tensorflow as tf

from isa_tf import ops
from isa_tf.hints import Shape
from isa_tf.layers.module import ContextModule, ModuleTwin, check_positive

# Far below any affinity, yet finite.
_MASKED = -1e9


def _criss_cross(query, key, value):
    """Attention of each position to the H + W - 1 of its row and column; (B, H, W, C)."""

    def turn(t):  # rows become columns, and back
        return tf.transpose(t, (0, 2, 1, 3))

    height, width = ops.spatial_size(query)
    row = tf.matmul(query, key, transpose_b=True)
    column = tf.matmul(turn(query), turn(key), transpose_b=True)
    # The position itself is already among those of its row.
    place = tf.range(height)
    column = tf.where(place[:, None] == place, tf.cast(_MASKED, column.dtype), column)
    affinity = tf.nn.softmax(tf.concat([turn(column), row], axis=-1))
    column, row = tf.split(tf.cast(affinity, value.dtype), [height, width], axis=-1)
    return turn(tf.matmul(turn(column), turn(value))) + tf.matmul(row, value)


@keras.saving.register_keras_serializable("isa_tf")
class RecurrentCrissCrossAttention(ContextModule):
    """Recurrent criss-cross attention (RCCA): each position attends to its row and its column.

    One pass gathers, at every position, from the H + W - 1 positions of its row and column, each
    once, with weights softmax(q k^T) over both together: x + gamma * context, where gamma is a
    learned scalar that begins at zero. A second pass with the same weights reaches every position
    by way of one of two corners, for 2 N (H + W) affinities in place of N N. The result is
    concatenated with the input, [input, context], and read out by a convolution, normalisation and
    ReLU, as the head of CCNet does. That head's convolutions before and between (C to C / 4, and
    one on the context) are no part of this module.

    Args:
        recurrence: int, how many passes, all with the same weights. Defaults to 2.
        key_filters: int, channels K of query and key; `None` for an eighth of the input's.
            Defaults to `None`.
        fuse: bool, whether the input is concatenated and read out; `False` returns the bare
            attention, which has as many channels as the input. Defaults to `True`.
        fusion_kernel_size: int, odd, of the convolution that reads out. Defaults to 3.
        filters: int, output channels; `None` for as many as the input has. Defaults to `None`.
        dropout: float, channel-wise (spatial) dropout of the output. Defaults to 0.
        activation: name or callable, after the normalisation; without effect where `fuse` is
            `False`, as are the arguments below. Defaults to "relu".
        epsilon: float, of the normalisation. Defaults to 1e-5.
        momentum: float, of the normalisation, in Keras's sense. Defaults to 0.9.
        synchronized: bool, whether replicas share batch statistics (SyncBN). Defaults to `False`.
        residual: bool, whether what is read out, without activation and by a normalisation whose
            scale begins at zero, is added to the input. The scalar gamma then begins at one: two
            zeros in a row would hold up each other. Defaults to `None`: `True` without `fuse`,
            where the sum of input and attention is all there is, else `False`.

    Shapes:
        (B, H, W, C) -> (B, H, W, filters).

    Raises:
        ValueError: for a recurrence, filters or key_filters below 1, an even fusion_kernel_size,
            a dropout outside [0, 1), filters other than the input's channels where it is residual,
            `residual=False` without fusion, or an input that is no map.

    Example:

    >>> y = RecurrentCrissCrossAttention(filters=4)(keras.random.normal((1, 5, 7, 16)))
    >>> y.shape
    TensorShape([1, 5, 7, 4])

    Reference: Huang et al., "CCNet: Criss-Cross Attention for Semantic Segmentation", ICCV 2019.
    """

    both_forms = True

    def __init__(
        self,
        recurrence: int = 2,
        key_filters: int | None = None,
        fuse: bool = True,
        fusion_kernel_size: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_positive(recurrence=recurrence, key_filters=key_filters)
        if recurrence is None:
            raise ValueError("recurrence must be at least 1, got None")
        if fusion_kernel_size < 1 or fusion_kernel_size % 2 == 0:
            raise ValueError(
                f"fusion_kernel_size must be odd and positive, got {fusion_kernel_size}"
            )
        self.recurrence = recurrence
        self.key_filters = key_filters
        if not fuse and kwargs.get("residual") is False:
            raise ValueError("without fusion the attention is added to the input: residual=False")
        self.residual = self.residual or not fuse
        self.fuse = fuse
        self.fusion_kernel_size = fusion_kernel_size

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        channels = input_shape[-1]
        key_filters = self.key_filters or max(1, channels // 8)
        self.query, self.key, self.value = (
            self.linear(name, width, channels, use_bias=True)
            for name, width in (("query", key_filters), ("key", key_filters), ("value", channels))
        )
        begin = "ones" if self.fuse and self.residual else "zeros"
        self.gamma = self.add_weight(shape=(), initializer=begin, name="gamma")
        self.fusion = None
        if self.fuse:
            self.fusion = self.read_out_conv(
                "fusion",
                self.filters or channels,
                2 * channels,
                kernel_size=self.fusion_kernel_size,
            )

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        # Affinities are not scaled: in float16 their sums could overflow.
        x = inputs
        for _ in range(self.recurrence):
            query, key = (tf.cast(layer(x), self.wide_dtype) for layer in (self.query, self.key))
            x = self.gamma * _criss_cross(query, key, self.own(self.value(x))) + x
        if self.fusion is None:
            return self.own(self.drop(x, training=training))  # the input is in it already
        x = self.fusion(tf.concat([inputs, x], axis=-1), training=training)
        return self.finish(inputs, x, training)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "recurrence": self.recurrence,
            "key_filters": self.key_filters,
            "fuse": self.fuse,
            "fusion_kernel_size": self.fusion_kernel_size,
        }


@keras.saving.register_keras_serializable("isa_tf")
class RecurrentCrissCrossAttentionTwin(ModuleTwin, RecurrentCrissCrossAttention):
    """The twin of `RecurrentCrissCrossAttention`, whose arguments it has."""


RecurrentCrissCrossAttention.twin_class = RecurrentCrissCrossAttentionTwin
