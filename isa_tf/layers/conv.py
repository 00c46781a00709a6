"""Convolution -> batch normalisation -> activation: the brick of every network here."""

from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf

from isa_tf import ops, runtime
from isa_tf.hints import Activation, Shape
from isa_tf.layers.fused import ConvBiasAct, check_kernel, check_map, is_filtered
from isa_tf.layers.normalization import FusedBatchNormalization
from isa_tf.layers.policy import checked_policy
from isa_tf.layers.twin import TwinOptions

# The epsilon of the published ISA networks, and PyTorch's momentum of 0.1 in Keras's terms.
BN_EPSILON = 1e-5
BN_MOMENTUM = 0.9
# oneDNN's gradient of a strided 1x1 kernel that reads fewer channels than this writes past its
# memory (uxlfoundation/oneDNN issue 6035). Wider ones are right, and faster so.
_LEAST_STRIDED = 16


@keras.saving.register_keras_serializable("isa_tf")
def leaky_relu_001(x: tf.Tensor) -> tf.Tensor:
    """LeakyReLU of slope 0.01, which ends in-place activated BN; Keras's own has 0.2."""
    return keras.ops.leaky_relu(x, negative_slope=0.01)


def as_float64(variable: keras.Variable) -> np.ndarray:
    """A variable's value as a float64 array."""
    return keras.ops.convert_to_numpy(variable).astype(np.float64)


@keras.saving.register_keras_serializable("isa_tf")
class ConvNormAct(keras.layers.Layer):
    """2-D convolution without bias, batch normalisation, activation.

    Args:
        filters: int, output channels; `None` makes the convolution depthwise.
        kernel_size: int, odd. Defaults to 1.
        strides: int. Defaults to 1.
        dilation_rate: int. Defaults to 1. Not together with strides.
        activation: name or callable, `None` for a linear output. Defaults to "relu".
        padding: "same" pads as TensorFlow does (with strides, one more at the bottom and the right
            where the size is even); "symmetric" pads `dilation_rate * (kernel_size // 2)` on every
            side, as PyTorch networks do. The two differ only where strides > 1.
        epsilon: float, of the normalisation. Defaults to 1e-5.
        momentum: float, of the normalisation's moving statistics, in Keras's sense (the share that
            is kept). Defaults to 0.9.
        synchronized: bool, whether replicas share batch statistics (SyncBN). Defaults to `False`.
        gamma_initializer: of the normalisation's scale. Defaults to "ones".
        kernel_initializer: of the kernel. Defaults to "he_normal".
        minimal_filtering: int, from how many channels, read and written, a 3x3 convolution of
            stride 1 and its gradients are computed by minimal filtering in training
            (`isa_tf.ops.trainable_winograd_conv`), in float32: on CPUs faster from 256 on, on GPUs
            slower. `None` for never. Defaults to `None`.

    Shapes:
        (B, H, W, C) -> (B, ceil(H / strides), ceil(W / strides), filters).

    Raises:
        ValueError: for filters below 1, an even kernel, an unknown padding, strides with dilation,
            or an input that is no map.

    Example:

    >>> y = ConvNormAct(16, kernel_size=3, strides=2)(np.zeros((1, 8, 8, 3), "float32"))
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
        epsilon: float = BN_EPSILON,
        momentum: float = BN_MOMENTUM,
        synchronized: bool = False,
        gamma_initializer: str | keras.initializers.Initializer = "ones",
        minimal_filtering: int | None = None,
        kernel_initializer: str | keras.initializers.Initializer = "he_normal",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        checked_policy(self.dtype_policy, self.name)
        if filters is not None and filters < 1:
            raise ValueError(f"filters must be at least 1, got {filters}")
        check_kernel(kernel_size, padding)
        if strides > 1 and dilation_rate > 1:
            raise ValueError(
                f"strides {strides} and dilation_rate {dilation_rate} exclude each other"
            )
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.dilation_rate = dilation_rate
        self.padding = padding
        self.epsilon = epsilon
        self.momentum = momentum
        self.synchronized = synchronized
        self.minimal_filtering = minimal_filtering
        explicit = padding == "symmetric" and strides > 1 and kernel_size > 1
        conv = {
            "kernel_size": kernel_size,
            "strides": strides,
            "dilation_rate": dilation_rate,
            "padding": "valid" if explicit else "same",
            "use_bias": False,
            "dtype": self.dtype_policy,
            "name": "conv",
        }
        self.pad = None
        if explicit:
            self.pad = keras.layers.ZeroPadding2D(
                kernel_size // 2, dtype=self.dtype_policy, name="pad"
            )
        self.kernel_initializer = drawn = keras.initializers.get(kernel_initializer)
        if filters is None:
            self.conv = keras.layers.DepthwiseConv2D(**conv, depthwise_initializer=drawn)
        else:
            self.conv = keras.layers.Conv2D(filters, **conv, kernel_initializer=drawn)
        self.norm = FusedBatchNormalization(
            epsilon=epsilon,
            momentum=momentum,
            synchronized=synchronized,
            gamma_initializer=gamma_initializer,
            dtype=self.dtype_policy,
            name="norm",
        )
        self.activation = keras.activations.get(activation)

    def build(self, input_shape: Shape) -> None:
        check_map(self, input_shape)
        shape = tuple(input_shape)
        self.filtered = is_filtered(
            self.kernel_size, self.strides, shape[-1], self.filters, self.minimal_filtering
        )
        self.thinned = self.kernel_size == 1 and self.strides > 1 and shape[-1] < _LEAST_STRIDED
        if self.pad is not None:
            self.pad.build(shape)
            shape = self.pad.compute_output_shape(shape)
        self.conv.build(shape)
        self.norm.build(self.conv.compute_output_shape(shape))

    def folded(self) -> tuple[np.ndarray, np.ndarray]:
        """Kernel and bias, as float64 arrays, of the convolution that has the norm in it."""
        norm = self.norm
        weights = (norm.moving_mean, norm.moving_variance, norm.gamma, norm.beta, self.conv.kernel)
        mean, variance, gamma, beta, kernel = map(as_float64, weights)
        scale = gamma / np.sqrt(variance + norm.epsilon)
        return kernel * (scale[:, None] if self.filters is None else scale), beta - mean * scale

    def inference_twin(self, options: TwinOptions) -> keras.layers.Layer:
        """A `ConvBiasAct` with the normalisation in its kernel and bias."""
        conv = ConvBiasAct(
            self.filters,
            self.kernel_size,
            self.strides,
            self.dilation_rate,
            self.activation,
            self.padding,
            **options.of_convolutions,
            name=self.name,
            dtype=self.dtype_policy,
        )
        conv.build_from_config(self.get_build_config())
        self.fill_twin(conv)
        return conv

    def fill_twin(self, conv: keras.layers.Layer) -> None:
        conv.take(*self.folded())

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        if training or self.thinned:
            x = self.convolve(inputs, tf.convert_to_tensor(self.conv.kernel))
        else:
            x = self.conv(self._padded(inputs))
        x = self.activation(self.norm(x, training=training))
        return tf.cast(x, self.compute_dtype)  # a `DTypePolicyMap` may tell the norm another

    def convolve(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """The convolution of training, with this kernel."""
        strides = self.strides
        if self.thinned:
            inputs, strides = inputs[:, ::strides, ::strides], 1
        if self.filtered:
            return ops.trainable_winograd_conv(inputs, kernel, self.dilation_rate)
        if inputs.dtype == tf.bfloat16 and self._is_product(strides):
            return tf.tensordot(inputs, tf.cast(kernel, inputs.dtype)[0, 0], 1)
        convolve = keras.ops.depthwise_conv if self.filters is None else keras.ops.conv
        return convolve(
            self._padded(inputs),
            kernel,
            strides=strides,
            padding=self.conv.padding,
            data_format="channels_last",
            dilation_rate=self.dilation_rate,
        )

    def _is_product(self, strides):
        """Whether it is a product of matrices, and to be computed as one in bfloat16.

        oneDNN takes two to three times as long for the gradient of the kernel of a convolution of
        1x1. In float32 the products are no quicker.
        """
        pointwise = self.kernel_size == strides == 1 and self.filters is not None
        return pointwise and not runtime.has_gpu()

    def _padded(self, x):
        return x if self.pad is None else self.pad(x)

    def compute_output_shape(self, input_shape: Shape) -> tuple[int | None, ...]:
        if self.pad is not None:
            input_shape = self.pad.compute_output_shape(input_shape)
        return self.conv.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "dilation_rate": self.dilation_rate,
            "activation": keras.activations.serialize(self.activation),
            "padding": self.padding,
            "epsilon": self.epsilon,
            "momentum": self.momentum,
            "synchronized": self.synchronized,
            "gamma_initializer": keras.initializers.serialize(self.norm.gamma_initializer),
            "minimal_filtering": self.minimal_filtering,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        # Files of version 0.1 say here what `Recomputed` says now.
        return cls(**{key: value for key, value in config.items() if key != "recompute"})
