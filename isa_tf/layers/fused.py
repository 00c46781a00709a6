"""Convolution -> bias -> activation: what the brick of every network comes to in inference."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from isa_tf import ops
from isa_tf.hints import Activation, Shape
from isa_tf.layers import twin


def is_filtered(
    kernel_size: int, strides: int, reads: int, filters: int | None, minimal_filtering: int | None
) -> bool:
    """Whether a convolution is one that minimal filtering from so many channels on computes.

    Args:
        kernel_size: int.
        strides: int.
        reads: int, input channels.
        filters: int, output channels; `None` for a depthwise convolution.
        minimal_filtering: int or `None`.
    """
    if minimal_filtering is None or filters is None:
        return False
    return (kernel_size, strides) == (3, 1) and min(reads, filters) >= minimal_filtering


@keras.saving.register_keras_serializable("isa_tf")
class ConvBiasAct(keras.layers.Layer):
    """2-D convolution with bias and activation: a brick of detectors, the twin of `ConvNormAct`.

    Args:
        filters: int, output channels; `None` makes the convolution depthwise.
        kernel_size: int, odd. Defaults to 1.
        strides: int. Defaults to 1.
        dilation_rate: int. Defaults to 1.
        activation: name or callable, `None` for a linear output. Defaults to "relu".
        padding: "same" or "symmetric", see `ConvNormAct`. Defaults to "same".
        minimal_filtering: int, from how many channels, read and written, a 3x3 convolution of
            stride 1 is computed by minimal filtering (`isa_tf.ops.winograd_conv`), in float32; its
            kernel is then kept transformed, at four times the size. `None` for never. Defaults to
            `None`.
        product_dtype: str, the precision of the products; the maps keep the layer's. `None` for
            the layer's own. Defaults to `None`.
        compile_transforms: bool, whether XLA compiles the transforms of minimal filtering, anew for
            each size of map. Defaults to `True`.
        kernel_initializer: name or initializer. Defaults to "he_normal".

    Shapes:
        (B, H, W, C) -> (B, ceil(H / strides), ceil(W / strides), filters).

    Raises:
        ValueError: for an even kernel or an unknown padding, or an input that is no map.

    Example:

    >>> y = ConvBiasAct(16, kernel_size=3, strides=2)(np.zeros((1, 8, 8, 3), "float32"))
    >>> y.shape
    TensorShape([1, 4, 4, 16])
    """

    def __init__(
        self,
        filters: int | None,
        kernel_size: int = 1,
        strides: int = 1,
        dilation_rate: int = 1,
        activation: Activation = "relu",
        padding: str = "same",
        minimal_filtering: int | None = None,
        product_dtype: str | None = None,
        compile_transforms: bool = True,
        kernel_initializer: str | keras.initializers.Initializer = "he_normal",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_kernel(kernel_size, padding)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.dilation_rate = dilation_rate
        self.activation = keras.activations.get(activation)
        self.padding = padding
        self.minimal_filtering = minimal_filtering
        self.product_dtype = product_dtype
        self.compile_transforms = compile_transforms
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: Shape) -> None:
        check_map(self, input_shape)
        reads, size = input_shape[-1], self.kernel_size
        outputs = self.filters or reads
        self.filtered = is_filtered(size, self.strides, reads, self.filters, self.minimal_filtering)
        shape: tuple[int, ...] = (size, size, reads, outputs if self.filters else 1)
        # The weights themselves, whatever the layer computes in: `call` rounds them once.
        initializer = self.kernel_initializer
        if self.filtered:
            shape = (36, reads, outputs)
            initializer = _transformed(initializer)
        self.kernel = self.add_weight(
            shape=shape, initializer=initializer, name="kernel", autocast=False
        )
        self.bias = self.add_weight(
            shape=(outputs,), initializer="zeros", name="bias", autocast=False
        )

    def take(self, kernel: np.ndarray, bias: np.ndarray) -> None:
        """Sets the weights.

        Args:
            kernel: array (k, k, C, filters), or (k, k, C, 1) of a depthwise convolution.
            bias: array (filters,).
        """
        self.kernel.assign(ops.winograd_kernel(kernel) if self.filtered else kernel)
        self.bias.assign(bias)

    def plain_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """(kernel, bias) as `take` takes them."""
        kernel, bias = (keras.ops.convert_to_numpy(v) for v in (self.kernel, self.bias))
        return (ops.plain_kernel(kernel) if self.filtered else kernel), bias

    def inference_twin(self, options: twin.TwinOptions) -> keras.layers.Layer:
        """The same by other means: see `twin.TwinOptions`."""
        return twin.copy(self, ConvBiasAct, **options.of_convolutions)

    def fill_twin(self, other: keras.layers.Layer) -> None:
        other.take(*self.plain_weights())

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        kernel, bias = self.kernel.value, self.bias.value
        if self.filtered:
            rate, compiled = self.dilation_rate, self.compile_transforms
            return ops.winograd_conv(inputs, kernel, bias, self.activation, rate, compiled)
        dtype = self.product_dtype or self.compute_dtype
        x = tf.cast(inputs, dtype)
        explicit = self.padding == "symmetric" and self.strides > 1 and self.kernel_size > 1
        if explicit:
            each = [self.kernel_size // 2] * 2
            x = tf.pad(x, [[0, 0], each, each, [0, 0]])
        padding, kernel = "VALID" if explicit else "SAME", tf.cast(kernel, dtype)
        strides, rates = [1, self.strides, self.strides, 1], [self.dilation_rate] * 2
        if self.filters is None:
            x = tf.nn.depthwise_conv2d(x, kernel, strides, padding, None, rates)
        else:
            x = tf.nn.conv2d(x, kernel, strides, padding, "NHWC", rates)
        x = self.activation(tf.nn.bias_add(x, tf.cast(bias, dtype)))
        return tf.cast(x, self.compute_dtype)

    def compute_output_shape(self, input_shape: Shape) -> tuple[int | None, ...]:
        batch, height, width, reads = input_shape
        size = (None if n is None else -(-n // self.strides) for n in (height, width))
        return (batch, *size, self.filters or reads)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "dilation_rate": self.dilation_rate,
            "activation": keras.activations.serialize(self.activation),
            "padding": self.padding,
            "minimal_filtering": self.minimal_filtering,
            "product_dtype": self.product_dtype,
            "compile_transforms": self.compile_transforms,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def check_kernel(kernel_size: int, padding: str) -> None:
    """Raises ValueError unless these are an odd size and a known padding."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
    if padding not in ("same", "symmetric"):
        raise ValueError(f'padding must be "same" or "symmetric", got {padding!r}')


def check_map(layer: keras.layers.Layer, shape: Shape) -> None:
    """Raises ValueError unless `shape` is that of a feature map (B, H, W, C)."""
    if len(shape) != 4 or shape[-1] is None:
        raise ValueError(
            f"{layer.name} reads a feature map (B, H, W, C) with known C, got shape {tuple(shape)}"
        )


def _transformed(initializer):
    def initialize(shape, dtype=None):
        plain = initializer((3, 3, *shape[1:]), "float32")
        return tf.cast(ops.winograd_kernel(np.asarray(plain)), dtype)

    return initialize
