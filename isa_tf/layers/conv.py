"""Convolution -> batch normalisation -> activation: the brick of every network here."""

import keras
import numpy as np
import tensorflow as tf

from isa_tf import ops
from isa_tf.layers.normalization import FusedBatchNormalization

# The epsilon of the published ISA networks, and PyTorch's momentum of 0.1 in Keras's terms.
BN_EPSILON = 1e-5
BN_MOMENTUM = 0.9


@keras.saving.register_keras_serializable("isa_tf")
def leaky_relu_001(x):
    """LeakyReLU of slope 0.01, which ends in-place activated BN; Keras's own has 0.2."""
    return keras.ops.leaky_relu(x, negative_slope=0.01)


# Narrower convolutions gain less by fewer products than their transforms cost.
_WINOGRAD_CHANNELS = 64
# Its float32 products compete with twice as fast ones where the processor multiplies in bfloat16.
_HALF_WINOGRAD_CHANNELS = 128
# In training the compiled transforms of every width, both ways, take memory that must be earned.
_TRAINED_WINOGRAD_CHANNELS = 256
# And on fewer positions than this the kernel's transform in every step costs more.
_WINOGRAD_POSITIONS = 1024


def _gains_by_winograd(kernel_shape, strides, channels=_WINOGRAD_CHANNELS):
    """Whether a convolution, from so many channels on, is one that Winograd's filters speed up."""
    return tuple(kernel_shape[:2]) == (3, 3) and min(kernel_shape[2:]) >= channels and strides == 1


def float64(variable):
    """A variable's value as a float64 array."""
    return keras.ops.convert_to_numpy(variable).astype(np.float64)


class FusedConv:
    """What `ConvNormAct` comes to in inference: one convolution with bias and activation.

    Its weights are constants, and no concern of the layer that holds it.

    Args:
        kernel: array (k, k, C, filters), or (k, k, C, 1) of a depthwise convolution.
        bias: array (filters,).
        activation: function of a tensor.
        strides: int. Defaults to 1.
        dilation_rate: int. Defaults to 1.
        padding: "same" or "valid". Defaults to "same".
        depthwise: bool. Defaults to `False`.
        winograd: bool, whether wide 3x3 convolutions go by `ops.winograd_conv`, which is float32.
            Defaults to `True`.
        dtype: str, of the products, whatever comes in: see `ops.product_dtype`. Defaults to
            "float32".

    Example:

    >>> conv = FusedConv(np.ones((1, 1, 3, 8)), np.zeros(8), tf.nn.relu)
    >>> conv(tf.ones((1, 5, 5, 3))).shape
    TensorShape([1, 5, 5, 8])
    """

    def __init__(
        self,
        kernel,
        bias,
        activation,
        strides=1,
        dilation_rate=1,
        padding="same",
        depthwise=False,
        winograd=True,
        dtype="float32",
    ):
        channels = _WINOGRAD_CHANNELS if dtype == "float32" else _HALF_WINOGRAD_CHANNELS
        self.winograd = (
            winograd
            and not depthwise
            and padding == "same"
            and _gains_by_winograd(kernel.shape, strides, channels)
        )
        self.depthwise = depthwise
        self.activation = activation
        self.strides = strides
        self.dilation_rate = dilation_rate
        self.padding = padding.upper()
        with tf.init_scope():
            kernel = ops.winograd_kernel(kernel) if self.winograd else kernel
            dtype = "float32" if self.winograd else dtype
            self.kernel = tf.cast(tf.constant(kernel, tf.float32), dtype)
            self.bias = tf.cast(tf.constant(bias, tf.float32), dtype)

    def __call__(self, x):
        if self.winograd:
            return ops.winograd_conv(x, self.kernel, self.bias, self.activation, self.dilation_rate)
        strides, rates = self.strides, [self.dilation_rate] * 2
        read = tf.cast(x, self.kernel.dtype)
        if self.depthwise:
            y = tf.nn.depthwise_conv2d(
                read,
                self.kernel,
                [1, strides, strides, 1],
                self.padding,
                None,
                rates,
            )
        else:
            y = tf.nn.conv2d(read, self.kernel, strides, self.padding, "NHWC", rates)
        return tf.cast(self.activation(tf.nn.bias_add(y, self.bias)), x.dtype)


# What `ConvNormAct` may compute again for its gradients.
RECOMPUTED = (None, "activation", "convolution")
# The attribute of a tensor that is to be computed again: (function, its arguments).
_MADE_BY = "_isa_tf_made_by"


def _again(tensors, gradient):
    """The tensors, for computations that begin no sooner than the gradient is there."""
    with tf.control_dependencies([gradient]):
        return [tf.identity(t) for t in tensors]  # else they were those that are done already


def _convolve_remade(convolve, x, made_by, kernel):
    """`convolve(x, kernel)` that keeps nothing of `x` for the gradients, but what it was made of.

    The gradients go straight to the arguments that `x` was made of, and those compute it again.
    """
    function, arguments = made_by

    @tf.custom_gradient
    def remade(kernel, *arguments):
        def gradients(gradient):
            again = _again((kernel, *arguments), gradient)
            with tf.GradientTape() as tape:
                tape.watch(again)
                y = convolve(function(*again[1:]), again[0])
            return tape.gradient(y, again, gradient)

        return convolve(tf.stop_gradient(x), kernel), gradients

    return remade(tf.convert_to_tensor(kernel), *arguments)


def _normalize_remade(convolve, norm, x, made_by, kernel):
    """(`norm(convolve(x, kernel))`, mean, variance) that does not keep the convolution's result.

    Nor `x`, where that was made of something, see `_convolve_remade`.
    """
    function, arguments = made_by or (tf.identity, (x,))

    @tf.custom_gradient
    def remade(kernel, scale, offset, *arguments):
        y, mean, variance, *kept = norm.normalize(
            convolve(tf.stop_gradient(x), kernel), scale, offset
        )

        def gradients(gradient, *_):
            again = _again((kernel, *arguments), gradient)
            with tf.GradientTape() as tape:
                tape.watch(again)
                z = convolve(function(*again[1:]), again[0])
            inner, *outer = norm.gradients(gradient, z, scale, kept)
            of_kernel, *of_arguments = tape.gradient(z, again, inner)
            return of_kernel, *outer, *of_arguments

        return (y, mean, variance), gradients

    return remade(tf.convert_to_tensor(kernel), *norm.scale_and_offset(x), *arguments)


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
        recompute: what a step of training does not keep for its gradients but computes again.
            "activation": the outputs, for another `ConvNormAct` that reads them, from what the
            convolution gave, which the normalisation keeps anyway. "convolution": what the
            convolution gave, from what it read; this costs the convolution once more. `None`:
            nothing. Not with `synchronized`. Defaults to `None`.

    Shapes:
        (B, H, W, C) -> (B, ceil(H / strides), ceil(W / strides), filters).

    Raises:
        ValueError: for an even kernel, an unknown padding or recomputation, or strides with
            dilation.

    Example:

    >>> y = ConvNormAct(16, kernel_size=3, strides=2)(np.zeros((1, 8, 8, 3), "float32"))
    >>> y.shape
    TensorShape([1, 4, 4, 16])
    """

    def __init__(
        self,
        filters,
        kernel_size=1,
        strides=1,
        dilation_rate=1,
        activation="relu",
        padding="same",
        epsilon=BN_EPSILON,
        momentum=BN_MOMENTUM,
        synchronized=False,
        recompute=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if filters is not None and filters < 1:
            raise ValueError(f"filters must be at least 1, got {filters}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
        if padding not in ("same", "symmetric"):
            raise ValueError(f'padding must be "same" or "symmetric", got {padding!r}')
        if recompute not in RECOMPUTED:
            raise ValueError(f"recompute must be one of {list(RECOMPUTED)}, got {recompute!r}")
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
        self.recompute = recompute
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
        if filters is None:
            self.conv = keras.layers.DepthwiseConv2D(**conv, depthwise_initializer="he_normal")
        else:
            self.conv = keras.layers.Conv2D(filters, **conv, kernel_initializer="he_normal")
        self.norm = FusedBatchNormalization(
            epsilon=epsilon,
            momentum=momentum,
            synchronized=synchronized,
            dtype=self.dtype_policy,
            name="norm",
        )
        self.activation = keras.activations.get(activation)
        self.fused = None

    def build(self, input_shape):
        if len(input_shape) != 4:
            raise ValueError(f"{self.name} reads (B, H, W, C), got shape {tuple(input_shape)}")
        shape = tuple(input_shape)
        if self.pad is not None:
            shape = self.pad.compute_output_shape(shape)
        self.conv.build(shape)
        self.norm.build(self.conv.compute_output_shape(shape))

    def folded(self):
        """Kernel and bias, as arrays, of the convolution that has the normalisation in it."""
        norm = self.norm
        weights = (norm.moving_mean, norm.moving_variance, norm.gamma, norm.beta, self.conv.kernel)
        mean, variance, gamma, beta, kernel = map(float64, weights)
        scale = gamma / np.sqrt(variance + norm.epsilon)
        return kernel * (scale[:, None] if self.filters is None else scale), beta - mean * scale

    def fuse_for_inference(self, winograd=True):
        """Makes calls other than training's one `FusedConv` of the weights as they now are.

        Args:
            winograd: see `FusedConv`.
        """
        self.fused = FusedConv(
            *self.folded(),
            self.activation,
            self.strides,
            self.dilation_rate,
            self.conv.padding,
            depthwise=self.filters is None,
            winograd=winograd,
            dtype=ops.product_dtype(self.compute_dtype),
        )

    def call(self, inputs, training=None):
        if self.fused is not None and not training:
            return self.fused(self._padded(inputs))
        if not training:
            return self.activation(self.norm(self.conv(self._padded(inputs)), training=False))
        norm, kernel, made_by = self.norm, self.conv.kernel, getattr(inputs, _MADE_BY, None)
        recompute = self.recompute
        if not (tf.is_symbolic_tensor(inputs) and norm.learns(inputs)):
            recompute = None
        if recompute == "convolution":
            y, *statistics = _normalize_remade(self._convolve, norm, inputs, made_by, kernel)
            norm.take_up(*statistics)
            return self.activation(y)
        if made_by is None:
            x = self._convolve(inputs, kernel)
        else:
            x = _convolve_remade(self._convolve, inputs, made_by, kernel)
        y = self.activation(norm(x, training=True))
        if recompute == "activation":
            arguments = (x, *norm.scale_and_offset(x))
            setattr(y, _MADE_BY, (lambda *a: self.activation(norm.normalize(*a)[0]), arguments))
        return y

    def _padded(self, x):
        return x if self.pad is None else self.pad(x)

    def _convolve(self, x, kernel):
        """The convolution with this kernel, in training."""
        x = self._padded(x)
        conv, shape = self.conv, x.shape
        if (
            self.filters is not None
            and _gains_by_winograd(kernel.shape, self.strides, _TRAINED_WINOGRAD_CHANNELS)
            and shape.is_fully_defined()
            and shape[0] * shape[1] * shape[2] >= _WINOGRAD_POSITIONS
            and x.dtype == tf.float32
            and not tf.config.list_logical_devices("GPU")
        ):
            return ops.trainable_winograd_conv(x, kernel, self.dilation_rate)
        convolve = keras.ops.conv if self.filters is not None else keras.ops.depthwise_conv
        return convolve(
            x,
            kernel,
            strides=self.strides,
            padding=conv.padding,
            data_format="channels_last",
            dilation_rate=self.dilation_rate,
        )

    def compute_output_shape(self, input_shape):
        if self.pad is not None:
            input_shape = self.pad.compute_output_shape(input_shape)
        return self.conv.compute_output_shape(input_shape)

    def get_config(self):
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
            "recompute": self.recompute,
        }
