"""Where a key lies from its query, as an affinity may know it."""

from typing import Any

import keras
import tensorflow as tf

from isa_tf.hints import MapSize, Shape
from isa_tf.layers.module import check_positive


@keras.saving.register_keras_serializable("isa_tf")
class PositionBias(keras.layers.Layer):
    """What the logits of an affinity gain by the distance from query to key, learnt.

    A function of the signed logarithms of the distances in rows and columns, of one hidden layer:
    so it is defined for groups of any size and any reach, whatever those were that it was learnt
    on. Each head has one of its own, of the same hidden layer. It begins at zero.

    Args:
        units: int, of the hidden layer. Defaults to 32.
        num_heads: int, of the attention. Defaults to 1.

    Raises:
        ValueError: for units or num_heads below 1.

    Example:

    >>> bias = PositionBias()
    >>> bias.build()
    >>> bias.between((2, 3), step=(8, 8)).shape
    TensorShape([1, 6, 6])

    Reference: Liu et al., "Swin Transformer V2", CVPR 2022, section 3.3.
    """

    def __init__(self, units: int = 32, num_heads: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive(units=units, num_heads=num_heads)
        self.units = units
        self.num_heads = num_heads

    def build(self, input_shape: Shape | None = None) -> None:
        self.hidden = self.add_weight(shape=(2, self.units), initializer="he_normal", name="hidden")
        self.offset = self.add_weight(shape=(self.units,), initializer="zeros", name="offset")
        self.outer = self.add_weight(
            shape=(self.units, self.num_heads), initializer="zeros", name="outer"
        )

    def between(self, size: MapSize, step: MapSize) -> tf.Tensor:
        """The bias of every pair of positions of a group.

        Args:
            size: (rows, columns) of the group.
            step: (rows, columns) of the map from one of its positions to the next.

        Shapes:
            -> (num_heads, rows * columns, rows * columns), float32; queries are rows, keys columns.
        """
        height, width = size
        # A row and a column for each distance that there is.
        along = [
            _signed_log(tf.range(1 - n, n), by) for n, by in zip((height, width), step, strict=True)
        ]
        rows, columns = tf.meshgrid(*along, indexing="ij")
        table = tf.reshape(tf.stack([rows, columns], axis=-1), (-1, 2))
        # Within a layer of half precision its variables are read as halves.
        hidden, offset, outer = (
            tf.cast(w, tf.float32) for w in (self.hidden, self.offset, self.outer)
        )
        table = tf.transpose(tf.matmul(tf.nn.relu(tf.matmul(table, hidden) + offset), outer))
        # Of keys minus of queries, from 0 on.
        down, right = (tf.range(n)[None] - tf.range(n)[:, None] + n - 1 for n in (height, width))
        place = down[:, None, :, None] * (2 * width - 1) + right[None, :, None, :]
        return tf.gather(table, tf.reshape(place, (height * width, height * width)), axis=1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units, "num_heads": self.num_heads}


def _signed_log(distance, step):
    far = tf.cast(distance * step, tf.float32)
    return tf.sign(far) * tf.math.log(1 + tf.abs(far))  # ONNX has no log1p
