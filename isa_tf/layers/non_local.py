"""The non-local block."""

from typing import Any

import keras
import tensorflow as tf

from isa_tf import ops, runtime
from isa_tf.hints import Shape
from isa_tf.layers.module import AttentionModule, ModuleTwin, check_positive


def _one_group(x):
    """(B, H, W, C) -> (B, 1, H W, C)."""
    height, width = ops.spatial_size(x)
    return tf.reshape(x, (-1, 1, height * width, x.shape[-1]))


def _pool(x):
    return tf.nn.max_pool2d(x, 2, 2, "SAME")


@keras.saving.register_keras_serializable("isa_tf")
class NonLocal2D(AttentionModule):
    """Non-local block (embedded Gaussian): dense attention, added to its input.

    theta, phi and g are linear 1x1 convolutions with bias. Every position gathers
    softmax(theta phi^T) g over the whole map, and a 1x1 convolution and a normalisation whose scale
    begins at zero read that out, so that a fresh block is the identity.

    Args:
        key_filters: int, channels of theta, phi and g; `None` for half the input's, at least 1.
            Defaults to `None`.
        use_scale: bool, whether affinities are softmax(theta phi^T / sqrt(key_filters)), as
            mmsegmentation's and those of the authors' code are; the paper's text has no scale.
            Defaults to `False`.
        sub_sample: bool or "before". `True`: 2x2 max pooling follows phi and g (the paper's text,
            mmsegmentation), which leaves a quarter of the affinities; "before": they read the
            pooled map (the authors' code), which leaves a quarter of their own cost, too. An odd
            last row or column is kept, where PyTorch's pooling drops it. Defaults to `False`.
        filters: int, output channels: `None`, or as many as the input has. Defaults to `None`.
        dropout: float, channel-wise (spatial) dropout of the output. Defaults to 0.
        activation: accepted so that the context modules can stand in for each other; the block has
            none. Defaults to "relu".
        epsilon: float, of the normalisation. Defaults to 1e-5.
        momentum: float, of the normalisation, in Keras's sense. Defaults to 0.9.
        synchronized: bool, whether replicas share batch statistics (SyncBN). Defaults to `False`.

    Call arguments:
        inputs: feature map (B, H, W, C), any H and W.
        training: bool.
        return_affinity: bool, whether to return (output, affinity) with the affinity as float32
            (B, 1, positions, positions); rows are queries, columns keys.

    Shapes:
        (B, H, W, C) -> (B, H, W, C).

    Raises:
        ValueError: for key_filters or filters below 1, an unknown sub_sample, filters other than
            the input's, `residual=False`, or an input that is no map.

    Example:

    >>> x = keras.random.normal((1, 6, 6, 8))
    >>> y, affinity = NonLocal2D(sub_sample=True)(x, return_affinity=True)
    >>> y.shape, affinity.shape
    (TensorShape([1, 6, 6, 8]), TensorShape([1, 1, 36, 9]))

    Reference: Wang et al., "Non-local Neural Networks", CVPR 2018.
    """

    residual = True

    def __init__(
        self,
        key_filters: int | None = None,
        use_scale: bool = False,
        sub_sample: bool | str = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_positive(key_filters=key_filters)
        if not isinstance(sub_sample, bool) and sub_sample != "before":
            raise ValueError(f'sub_sample must be a bool or "before", got {sub_sample!r}')
        self.key_filters = key_filters
        self.use_scale = use_scale
        self.sub_sample = sub_sample

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        channels = input_shape[-1]
        key_filters = self.key_filters or max(1, channels // 2)

        def conv(name):
            # The authors' initializer: without a scale, a larger one would saturate the softmax.
            initializer = keras.initializers.RandomNormal(stddev=0.01)
            return self.linear(name, key_filters, channels, True, initializer)

        self.theta, self.phi, self.g = conv("theta"), conv("phi"), conv("g")
        self.output_conv = self.read_out_conv("output", channels, key_filters)

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, return_affinity: bool = False
    ) -> tf.Tensor | tuple[tf.Tensor, tf.Tensor]:
        read = _pool(inputs) if self.sub_sample == "before" else inputs
        query, key, value = map(self.own, (self.theta(inputs), self.phi(read), self.g(read)))
        if self.sub_sample is True:
            key, value = _pool(key), _pool(value)
        if not self.use_scale:
            # Undoes the scale of the attention; in float32, since such affinities may be large.
            query, key = tf.cast(query, self.wide_dtype), tf.cast(key, self.wide_dtype)
            query *= query.shape[-1] ** 0.5
        query, key, value = map(_one_group, (query, key, value))
        known, dynamic = query.shape[:3] + key.shape[2:3], tf.shape(query)
        sizes = (dynamic[0], 1, dynamic[2], tf.shape(key)[2])
        shape = [s if k is None else k for k, s in zip(known, sizes, strict=True)]
        query = runtime.refuse_too_large(shape, query)
        context, affinity = ops.grouped_attention(query, key, value)
        context = tf.reshape(context, (-1, *ops.spatial_size(inputs), value.shape[-1]))
        x = self.finish(inputs, self.output_conv(context, training=training), training)
        return (x, affinity) if return_affinity else x

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "key_filters": self.key_filters,
            "use_scale": self.use_scale,
            "sub_sample": self.sub_sample,
        }


@keras.saving.register_keras_serializable("isa_tf")
class NonLocal2DTwin(ModuleTwin, NonLocal2D):
    """The twin of `NonLocal2D`, whose arguments it has."""


NonLocal2D.twin_class = NonLocal2DTwin
