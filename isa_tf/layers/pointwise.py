"""What a context module is to be measured against: as many parameters, and next to no context."""

from typing import Any

import keras
import tensorflow as tf

from isa_tf.hints import Shape
from isa_tf.layers.interlaced import InterlacedSparseAttention
from isa_tf.layers.module import ContextModule, ModuleTwin, check_positive


@keras.saving.register_keras_serializable("isa_tf")
class PointwiseConvolutions(ContextModule):
    """Two 1x1 convolutions, each with normalisation and activation: a module without context.

    Part of what a context module gives is capacity. This one has as many parameters as another,
    and every position hears itself alone.

    Args:
        parameters: int, how many weights there are to learn, of which it has the nearest number
            that is possible; `None` for as many as `InterlacedSparseAttention` of the same filters
            has. Defaults to `None`.
        **kwargs: those of `ContextModule`.

    Shapes:
        (B, H, W, C) -> (B, H, W, filters).

    Raises:
        ValueError: for parameters below 1.

    Example:

    >>> layer = PointwiseConvolutions(parameters=1000)
    >>> layer(np.ones((1, 4, 6, 16), "float32")).shape
    TensorShape([1, 4, 6, 16])
    >>> sum(int(np.prod(variable.shape)) for variable in layer.trainable_variables)
    984
    """

    both_forms = True
    _kernel_size = 1  # of the inner convolution

    def __init__(self, parameters: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive(parameters=parameters)
        self.parameters = parameters

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        channels = input_shape[-1]
        filters = self.filters or channels
        parameters = self.parameters
        if parameters is None:
            parameters = learnt_parameters(InterlacedSparseAttention(filters=filters), channels)
        # Of the inner width w: (read + 2 + filters) w + 2 filters, with scales and offsets.
        read = self._kernel_size**2 * channels
        width = max(1, round((parameters - 2 * filters) / (read + 2 + filters)))
        self.inner = self.conv_norm("inner", width, channels, kernel_size=self._kernel_size)
        self.outer = self.read_out_conv("outer", filters, width)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        x = self.outer(self.inner(inputs, training=training), training=training)
        return self.finish(inputs, x, training)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "parameters": self.parameters}


def learnt_parameters(layer: keras.layers.Layer, channels: int) -> int:
    """How many weights a context module has to learn, which is built to read so many channels.

    >>> learnt_parameters(PointwiseConvolutions(parameters=1000), 16)
    984
    """
    layer.build((None, None, None, channels))
    return sum(variable.value.shape.num_elements() for variable in layer.trainable_variables)


@keras.saving.register_keras_serializable("isa_tf")
class PointwiseConvolutionsTwin(ModuleTwin, PointwiseConvolutions):
    """The twin of `PointwiseConvolutions`, whose arguments it has."""


PointwiseConvolutions.twin_class = PointwiseConvolutionsTwin


@keras.saving.register_keras_serializable("isa_tf")
class LocalConvolutions(PointwiseConvolutions):
    """`PointwiseConvolutions` whose first convolution is 3x3, narrower for it.

    Beside it a context module shows what it gives by hearing further than the next positions.

    Args:
        **kwargs: those of `PointwiseConvolutions`.

    Shapes:
        (B, H, W, C) -> (B, H, W, filters).

    Raises:
        ValueError: for parameters below 1.

    Example:

    >>> layer = LocalConvolutions(parameters=1000)
    >>> layer(np.ones((1, 4, 6, 16), "float32")).shape
    TensorShape([1, 4, 6, 16])
    >>> layer.inner.kernel_size, layer.inner.filters
    (3, 6)
    """

    _kernel_size = 3


@keras.saving.register_keras_serializable("isa_tf")
class LocalConvolutionsTwin(ModuleTwin, LocalConvolutions):
    """The twin of `LocalConvolutions`, whose arguments it has."""


LocalConvolutions.twin_class = LocalConvolutionsTwin
