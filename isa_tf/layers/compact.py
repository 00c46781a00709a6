"""Residual context modules that no N x N affinity is formed for."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from isa_tf import ops
from isa_tf.hints import Shape
from isa_tf.layers.module import ContextModule, check_positive
from isa_tf.layers.normalization import FusedBatchNormalization

KERNELS = ("dot", "rbf")
_RBF_GAMMA = 1e-4


def kernel_coefficients(kernel: str, order: int) -> list[float]:
    """What multiplies each power of (theta phi) in a kernel of `CompactGeneralizedNonLocal`.

    Args:
        kernel: "dot" or "rbf".
        order: int, highest power of "rbf".

    Returns:
        A list of floats, power 0 first.
    """
    if kernel == "dot":
        return [0.0, 1.0]
    rate = 2 * _RBF_GAMMA
    return [math.exp(-rate) * rate**p / math.factorial(p) for p in range(order + 1)]


def separable_attention(
    theta: tf.Tensor, phi: tf.Tensor, g: tf.Tensor, coefficients: Sequence[float]
) -> tf.Tensor:
    """sum_j k(theta_i, phi_j) g_j, over all positions and channels j of a group.

    With the kernel k(t, f) = sum_p coefficients[p] (t f)^p the sum over j falls apart into one
    scalar for each power: the cost is linear in the number of elements.

    Args:
        theta: tensor (B, N, G, K), N positions and G groups of K channels.
        phi: tensor (B, N, G, K).
        g: tensor (B, N, G, K).
        coefficients: floats, power 0 first.

    Returns:
        Tensor (B, N, G, K).
    """
    outputs, theta_power, phi_power = tf.zeros_like(theta), tf.ones_like(theta), tf.ones_like(phi)
    for power, coefficient in enumerate(coefficients):
        if power:
            theta_power, phi_power = theta_power * theta, phi_power * phi
        if coefficient:
            scalar = tf.reduce_sum(phi_power * g, axis=(1, 3), keepdims=True)
            outputs += coefficient * scalar * theta_power
    return outputs


@keras.saving.register_keras_serializable("isa_tf")
class CompactGeneralizedNonLocal(ContextModule):
    """Compact generalized non-local block (CGNL): all positions and channels attend to each other.

    theta, phi and g are 1x1 convolutions, split into groups of channels. In each group every
    element i (a position and a channel) gathers sum_j k(theta_i, phi_j) g_j over all elements j;
    since the kernel k is a short sum of products, that takes one scalar a group and power, and no
    affinity. A grouped 1x1 convolution and group normalisation follow, then the residual sum. The
    normalisation's scale begins at zero, so that a fresh block is the identity.

    The kernel "dot" is theta_i phi_j. "rbf" is the Gaussian exp(-gamma (theta_i - phi_j)^2) with
    gamma = 1e-4 as the published code has it: the squares in the exponent are taken as 1, and
    exp(2 gamma theta_i phi_j) is a Taylor series, cut off after the power `order`.

    Normalisation and convolution have the same groups. With "dot" the scalar of a group is thus
    divided out again: phi and g act by its sign, and otherwise only where epsilon is felt.

    Args:
        key_filters: int, channels of theta, phi and g; `None` for half of the input's. Defaults to
            `None`.
        groups: int, of channels; divides the input's and `key_filters`. Defaults to 8.
        kernel: "dot" or "rbf". Defaults to "dot".
        order: int, highest power of the Taylor series; without effect for "dot". Defaults to 3.
        use_scale: bool, whether the sums are divided by the square root of the number of elements
            in a group. Defaults to `False`.
        filters: `None` or the input's channels. Defaults to `None`.
        dropout: float, channel-wise (spatial) dropout of the output. Defaults to 0.
        activation: accepted, like `momentum` and `synchronized`, so that the context modules can
            stand in for each other; nothing here is activated or depends on other images. Defaults
            to "relu".
        epsilon: float, of the group normalisation. Defaults to 1e-5.
        momentum: see `activation`. Defaults to 0.9.
        synchronized: see `activation`. Defaults to `False`.

    Shapes:
        (B, H, W, C) -> (B, H, W, C).

    Raises:
        ValueError: for an unknown kernel, key_filters, groups or order below 1, a dropout outside
            [0, 1), groups that do not divide the channels, filters other than the input's channels,
            or an input that is no map.

    Example:

    >>> y = CompactGeneralizedNonLocal(groups=4)(keras.random.normal((1, 5, 7, 16)))
    >>> y.shape
    TensorShape([1, 5, 7, 16])

    Reference: Yue et al., "Compact Generalized Non-local Network", NeurIPS 2018.
    """

    residual = True

    def __init__(
        self,
        key_filters: int | None = None,
        groups: int = 8,
        kernel: str = "dot",
        order: int = 3,
        use_scale: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_positive(key_filters=key_filters, groups=groups, order=order)
        if kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
        self.key_filters = key_filters
        self.groups = groups
        self.kernel = kernel
        self.order = order
        self.use_scale = use_scale

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        channels = input_shape[-1]
        key_filters = self.key_filters or max(1, channels // 2)
        for name, width in (("input channels", channels), ("key_filters", key_filters)):
            if width % self.groups:
                raise ValueError(f"{self.name}: groups {self.groups} do not divide {width} {name}")
        self.theta, self.phi, self.g = (
            self.linear(name, key_filters, channels) for name in ("theta", "phi", "g")
        )
        # A kernel and no layer: TensorFlow has no grouped convolution on CPUs but through XLA.
        self.output_kernel = self.add_weight(
            shape=(1, 1, key_filters // self.groups, channels),
            initializer="he_normal",
            name="output_kernel",
        )
        self.norm = keras.layers.GroupNormalization(
            self.groups,
            epsilon=self.epsilon,
            gamma_initializer="zeros",
            dtype=self.wide_dtype,
            name="norm",
        )
        self.norm.build((None, None, None, channels))

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        height, width = ops.spatial_size(inputs)
        each = self.output_kernel.shape[2]

        def grouped(layer):
            x = tf.reshape(layer(inputs), (-1, height * width, self.groups, each))
            return tf.cast(x, self.wide_dtype)

        x = separable_attention(
            grouped(self.theta),
            grouped(self.phi),
            grouped(self.g),
            kernel_coefficients(self.kernel, self.order),
        )
        if self.use_scale:
            x *= tf.math.rsqrt(tf.cast(height * width * each, x.dtype))
        kernel = tf.reshape(self.output_kernel, (each, self.groups, -1))
        x = tf.einsum("bngk,kgc->bngc", x, tf.cast(kernel, x.dtype))
        x = self.norm(tf.reshape(x, (-1, height, width, inputs.shape[-1])))
        return self.finish(inputs, tf.cast(x, inputs.dtype), training)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "key_filters": self.key_filters,
            "groups": self.groups,
            "kernel": self.kernel,
            "order": self.order,
            "use_scale": self.use_scale,
        }


@keras.saving.register_keras_serializable("isa_tf")
class DoubleAttention(ContextModule):
    """Double attention block (A2-Net): gather a few descriptors, then distribute them.

    Three 1x1 convolutions give feature maps A, attention maps B and distribution maps V. The
    softmax of B over the positions gathers K descriptors A softmax(B)^T from the whole map; the
    softmax of V over its channels mixes them at every position. A 1x1 convolution leads back to
    the input's channels, and the result is added to the input.

    Beyond these equations of the paper, chosen here: V has a bias and A, B and the output have none
    (that of B cancels in the softmax, those of A and of the output in the normalisation); the
    output is batch-normalised, and the scale of this normalisation begins at zero, so that a fresh
    block is the identity; nothing is activated, neither inside nor after the sum.

    Args:
        gather_filters: int, channels of the feature maps A; `None` for a quarter of the input's.
            Defaults to `None`.
        key_filters: int, number K of descriptors, the channels of B and V; `None` for a quarter of
            the input's. Defaults to `None`.
        filters: `None` or the input's channels. Defaults to `None`.
        dropout: float, channel-wise (spatial) dropout of the output. Defaults to 0.
        activation: accepted so that the context modules can stand in for each other; nothing here
            is activated. Defaults to "relu".
        epsilon: float, of the normalisation. Defaults to 1e-5.
        momentum: float, of the normalisation, in Keras's sense. Defaults to 0.9.
        synchronized: bool, whether replicas share batch statistics (SyncBN). Defaults to `False`.

    Shapes:
        (B, H, W, C) -> (B, H, W, C).

    Raises:
        ValueError: for gather_filters or key_filters below 1, a dropout outside [0, 1), filters
            other than the input's channels, or an input that is no map.

    Example:

    >>> y = DoubleAttention()(keras.random.normal((1, 5, 7, 16)))
    >>> y.shape
    TensorShape([1, 5, 7, 16])

    Reference: Chen et al., "A2-Nets: Double Attention Networks", NeurIPS 2018.
    """

    residual = True

    def __init__(
        self, gather_filters: int | None = None, key_filters: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_positive(gather_filters=gather_filters, key_filters=key_filters)
        self.gather_filters = gather_filters
        self.key_filters = key_filters

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        channels = input_shape[-1]
        gather_filters = self.gather_filters or max(1, channels // 4)
        key_filters = self.key_filters or max(1, channels // 4)
        self.feature = self.linear("feature", gather_filters, channels)
        self.attention = self.linear("attention", key_filters, channels)
        self.distribution = self.linear("distribution", key_filters, channels, use_bias=True)
        self.output_conv = self.linear("output", channels, gather_filters)
        self.norm = FusedBatchNormalization(
            epsilon=self.epsilon,
            momentum=self.momentum,
            synchronized=self.synchronized,
            gamma_initializer="zeros",
            dtype=self.dtype_policy,
            name="norm",
        )
        self.norm.build((None, None, None, channels))

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        height, width = ops.spatial_size(inputs)

        def flat(layer):
            x = layer(inputs)
            return tf.cast(tf.reshape(x, (-1, height * width, x.shape[-1])), self.wide_dtype)

        gathering = tf.nn.softmax(flat(self.attention), axis=1)
        descriptors = tf.matmul(gathering, flat(self.feature), transpose_a=True)
        distributing = tf.nn.softmax(flat(self.distribution), axis=-1)
        x = tf.matmul(tf.cast(distributing, inputs.dtype), tf.cast(descriptors, inputs.dtype))
        x = self.output_conv(tf.reshape(x, (-1, height, width, x.shape[-1])))
        return self.finish(inputs, self.norm(x, training=training), training)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "gather_filters": self.gather_filters,
            "key_filters": self.key_filters,
        }
