"""Context from several scales: pyramid pooling and atrous spatial pyramid pooling."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from isa_tf import ops
from isa_tf.hints import Shape
from isa_tf.layers.module import ContextModule, ModuleTwin, check_positive


def _averages(bins, length):
    """(bins, length) float32: row i averages the i-th adaptive bin of `length` positions."""
    i, positions = tf.range(bins)[:, None], tf.range(length)
    start, stop = i * length // bins, ((i + 1) * length + bins - 1) // bins
    inside = (positions >= start) & (positions < stop)
    return tf.cast(inside, tf.float32) / tf.cast(stop - start, tf.float32)


def adaptive_average_pool(x: tf.Tensor, sizes: Sequence[int]) -> list[tf.Tensor]:
    """Averages a map over n x n bins of nearly equal size, for several n at once.

    Bin i of n takes the positions floor(i H / n) .. ceil((i + 1) H / n) - 1, as PyTorch's
    `adaptive_avg_pool2d`: neighbours overlap where n does not divide H, and repeat where n > H.

    Args:
        x: tensor (B, H, W, C).
        sizes: ints, each an n.

    Returns:
        A list of float32 tensors (B, n, n, C).

    Example:

    >>> x = tf.reshape([0.0, 1.0, 2.0, 3.0, 4.0], (1, 1, 5, 1))
    >>> adaptive_average_pool(x, [2])[0][0, 0, :, 0].numpy()
    array([1., 3.], dtype=float32)
    """
    (height, width), channels = ops.spatial_size(x), x.shape[-1]
    x = tf.reshape(tf.cast(x, tf.float32), (-1, height, width * channels))
    # Rows for all sizes in one product, so that the map is read once.
    x = tf.matmul(tf.concat([_averages(n, height) for n in sizes], axis=0), x)
    x = tf.reshape(x, (-1, sum(sizes), width, channels))
    parts = tf.split(x, list(sizes), axis=1)
    return [tf.matmul(_averages(n, width), part) for n, part in zip(sizes, parts, strict=True)]


def _check_sizes(name, sizes):
    """A tuple of at least one positive int; raises ValueError for anything else."""
    if not (
        isinstance(sizes, (tuple, list))
        and sizes
        and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes)
    ):
        raise ValueError(f"{name} must be a tuple of positive ints, got {sizes!r}")
    return tuple(sizes)


@keras.saving.register_keras_serializable("isa_tf")
class PyramidPooling(ContextModule):
    """Pyramid pooling (PPM): averages over 1, 4, 9 and 36 regions beside the map itself.

    The map is averaged over n x n regions for each n of `pool_sizes`, read by a 1x1 convolution,
    normalisation and activation, and resized back. [input, pooled maps in the order of
    `pool_sizes`] are concatenated and fused by a 3x3 convolution, normalisation and activation.

    Args:
        pool_sizes: tuple of ints, regions along each axis. Those of a map that n does not divide
            overlap, as PyTorch's; see `adaptive_average_pool`. Defaults to (1, 2, 3, 6).
        pool_filters: int, channels of each pooled map; `None` for the input's divided by the number
            of pool sizes, at least 1. Defaults to `None`.
        coordinates: how pooled maps are resized, see `isa_tf.ops.resize_bilinear`. Defaults to
            "half_pixel".
        filters: int, output channels; `None` for as many as the input has. Defaults to `None`.
        dropout: float, channel-wise (spatial) dropout of the output. Defaults to 0.
        activation: name or callable, after the normalisations. Defaults to "relu".
        epsilon: float, of the normalisations. Defaults to 1e-5.
        momentum: float, of the normalisations, in Keras's sense. Defaults to 0.9.
        synchronized: bool, whether replicas share batch statistics (SyncBN). Defaults to `False`.
        residual: bool, see `ContextModule`. Defaults to `None`, `False`.

    Call arguments:
        inputs: feature map (B, H, W, C), any H and W, also smaller than the pool sizes.
        training: bool.

    Shapes:
        (B, H, W, C) -> (B, H, W, filters).

    Raises:
        ValueError: for pool_sizes that are no positive ints, pool_filters or filters below 1,
            unknown coordinates, or an input that is no map.

    Example:

    >>> y = PyramidPooling(filters=4)(keras.random.normal((1, 10, 13, 8)))
    >>> y.shape
    TensorShape([1, 10, 13, 4])

    Reference: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017.
    """

    both_forms = True

    def __init__(
        self,
        pool_sizes: Sequence[int] = (1, 2, 3, 6),
        pool_filters: int | None = None,
        coordinates: str = "half_pixel",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.pool_sizes = _check_sizes("pool_sizes", pool_sizes)
        check_positive(pool_filters=pool_filters)
        ops.check_coordinates(coordinates)
        self.pool_filters = pool_filters
        self.coordinates = coordinates

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        channels, count = input_shape[-1], len(self.pool_sizes)
        width = self.pool_filters or max(1, channels // count)
        self.pools = [self.conv_norm(f"pool{i + 1}", width, channels) for i in range(count)]
        self.fusion = self.read_out_conv(
            "fusion", self.filters or channels, channels + count * width, kernel_size=3
        )

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        size = ops.spatial_size(inputs)
        maps = [inputs]
        pooled = adaptive_average_pool(inputs, self.pool_sizes)
        for layer, x in zip(self.pools, pooled, strict=True):
            x = layer(self.own(x), training=training)
            maps.append(self.own(ops.resize_bilinear(x, size, self.coordinates)))
        x = self.fusion(tf.concat(maps, axis=-1), training=training)
        return self.finish(inputs, x, training)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "pool_sizes": self.pool_sizes,
            "pool_filters": self.pool_filters,
            "coordinates": self.coordinates,
        }


@keras.saving.register_keras_serializable("isa_tf")
class AtrousSpatialPyramidPooling(ContextModule):
    """Atrous spatial pyramid pooling (ASPP): dilated convolutions of several rates side by side.

    The branches are the mean of the whole map, read by a 1x1 convolution and spread over the map
    again; a 1x1 convolution; and a 3x3 convolution for each of `dilation_rates`. They are
    concatenated in this order, mmsegmentation's, and fused by another convolution. Normalisation
    and activation follow every convolution.

    Args:
        dilation_rates: tuple of ints, of the 3x3 convolutions; the paper's for output stride 16,
            which it doubles for stride 8. Defaults to (6, 12, 18).
        branch_filters: int, channels of each branch. Defaults to 256.
        fusion_kernel_size: int, odd; 1 in the paper, 3 in mmsegmentation. Defaults to 1.
        filters: int, output channels; `None` for as many as the input has. Defaults to `None`.
        dropout: float, channel-wise (spatial) dropout of the output. Defaults to 0.
        activation: name or callable, after the normalisations. Defaults to "relu".
        epsilon: float, of the normalisations. Defaults to 1e-5.
        momentum: float, of the normalisations, in Keras's sense. Defaults to 0.9.
        synchronized: bool, whether replicas share batch statistics (SyncBN). Defaults to `False`.
        residual: bool, see `ContextModule`. Defaults to `None`, `False`.

    Call arguments:
        inputs: feature map (B, H, W, C), any H and W.
        training: bool.

    Shapes:
        (B, H, W, C) -> (B, H, W, filters).

    Raises:
        ValueError: for dilation_rates that are no positive ints, branch_filters or filters below 1,
            an even fusion_kernel_size, or an input that is no map.

    Example:

    >>> layer = AtrousSpatialPyramidPooling(branch_filters=4)
    >>> layer(keras.random.normal((1, 10, 13, 8))).shape
    TensorShape([1, 10, 13, 8])

    Reference: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation",
    arXiv 1706.05587.
    """

    both_forms = True

    def __init__(
        self,
        dilation_rates: Sequence[int] = (6, 12, 18),
        branch_filters: int = 256,
        fusion_kernel_size: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dilation_rates = _check_sizes("dilation_rates", dilation_rates)
        check_positive(branch_filters=branch_filters)
        if fusion_kernel_size < 1 or fusion_kernel_size % 2 == 0:
            raise ValueError(
                f"fusion_kernel_size must be odd and positive, got {fusion_kernel_size}"
            )
        self.branch_filters = branch_filters
        self.fusion_kernel_size = fusion_kernel_size

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        channels, width = input_shape[-1], self.branch_filters
        self.image_pool = self.conv_norm("image_pool", width, channels)
        self.pointwise = self.conv_norm("pointwise", width, channels)
        self.dilated = [
            self.conv_norm(f"dilated{i + 1}", width, channels, kernel_size=3, dilation_rate=rate)
            for i, rate in enumerate(self.dilation_rates)
        ]
        self.fusion = self.read_out_conv(
            "fusion",
            self.filters or channels,
            (2 + len(self.dilated)) * width,
            kernel_size=self.fusion_kernel_size,
        )

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        mean = tf.reduce_mean(tf.cast(inputs, self.wide_dtype), axis=(1, 2), keepdims=True)
        mean = self.own(self.image_pool(self.own(mean), training=training))
        branches = (self.pointwise, *self.dilated)
        maps = [self.own(layer(inputs, training=training)) for layer in branches]
        maps.insert(0, tf.broadcast_to(mean, tf.shape(maps[0])))
        x = self.fusion(tf.concat(maps, axis=-1), training=training)
        return self.finish(inputs, x, training)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "dilation_rates": self.dilation_rates,
            "branch_filters": self.branch_filters,
            "fusion_kernel_size": self.fusion_kernel_size,
        }


@keras.saving.register_keras_serializable("isa_tf")
class PyramidPoolingTwin(ModuleTwin, PyramidPooling):
    """The twin of `PyramidPooling`, whose arguments it has."""


PyramidPooling.twin_class = PyramidPoolingTwin


@keras.saving.register_keras_serializable("isa_tf")
class AtrousSpatialPyramidPoolingTwin(ModuleTwin, AtrousSpatialPyramidPooling):
    """The twin of `AtrousSpatialPyramidPooling`, whose arguments it has."""


AtrousSpatialPyramidPooling.twin_class = AtrousSpatialPyramidPoolingTwin
