"""ResNet as the published ISA networks have it: dilated, with their stems and shortcuts."""

import keras

from isa_tf.backbones.backbone import Backbone, check_output_stride, image_input, normalize
from isa_tf.layers import ConvNormAct, Recomputed
from isa_tf.weights import resnet as weights_lib
from isa_tf.weights.architectures import BASIC, DEPTHS

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
# Kernel size of each stem's convolutions, of which the first has stride 2, and their filters in
# parts of the first stage's.
STEMS = {
    "v1": ((7, 1),),
    "v1c": ((3, 0.5), (3, 0.5), (3, 1)),
    "deep": ((3, 1), (3, 1), (3, 2)),
}
SHORTCUTS = ("conv", "vd")


@keras.saving.register_keras_serializable("isa_tf")
class ResNet(Backbone):
    """ResNet with stride in the 3x3 convolution and PyTorch's symmetric padding.

    Below an output stride of 32 strides become dilation: 2 in the last stage at 16; 2 in stage
    3 and 4 in stage 4 at 8. With `contract_dilation` and shortcut "conv" the network at output
    stride 8, subsampled, is the network at 16, and that one the network at 32.

    Args:
        depth: int, 18 or 34 (basic blocks), 50, 101 or 152 (bottlenecks). Defaults to 50.
        output_stride: int, 8, 16 or 32. Defaults to 32.
        stem: "v1", one 7x7 convolution of 64; "v1c", three 3x3 of 32, 32, 64; "deep", three 3x3
            of 64, 64, 128. Defaults to "v1".
        shortcut: how a block whose filters change shortens: "conv", a 1x1 convolution with the
            block's strides; "vd", where there are strides, 2x2 average pooling and a 1x1
            convolution. Defaults to "conv".
        contract_dilation: bool, whether the convolution that loses its stride keeps the rate of
            the stage before (mmsegmentation, the official code); `False` gives it its stage's
            (PaddleSeg). Defaults to `True`.
        ceil_mode: bool, whether the max pooling of the stem rounds the size of its output up, as
            the official code's does: an even map then has one more row and column. Defaults to
            `False`.
        mean: three floats (RGB) that are taken from the image, in 0..255. Defaults to ImageNet's.
        std: three floats that it is divided by afterwards. Defaults to ImageNet's.
        filters: int, of the first stage's 3x3 convolutions; all others are in proportion. Defaults
            to 64.
        weights: `None` for random ones; "imagenet" for the published ones of this depth, stem and
            shortcut, or their name, such as "open-mmlab://resnet50_v1c" (see
            `isa_tf.backbones.list_weights`), fetched once; or the path of a file: such a
            backbone's `.weights.h5` or `.keras`, or a checkpoint of torchvision, OpenMMLab, timm
            or the official code (`.pth`, `.safetensors`). Defaults to `None`.
        recompute: bool, whether training computes again what it can make cheaply, in place of
            keeping it for the gradients: the convolutions of the stem and of each block are then
            in a `isa_tf.layers.Recomputed`. A step takes less memory and some more time; files
            of weights are of one kind or the other. Defaults to `False`.
        minimal_filtering: int or `None`, see `ConvNormAct`. Defaults to `None`.
        synchronized: bool, whether replicas share batch statistics. Defaults to `False`.
        dtype: name or policy of the layers. Defaults to `None`, the global policy.
        **kwargs: name, trainable.

    Shapes:
        (B, H, W, 3), RGB 0..255 -> {"c1", ..., "c5"}; "c1" is the stem's output, "c2" .. "c5"
        are the stages', of 256, 512, 1024, 2048 channels, or 64 .. 512 with basic blocks.

    Raises:
        ValueError: for an unknown depth, output stride, stem or shortcut, or weights that do not
            fit.
        OSError: for weights that cannot be read or fetched.

    Example:

    >>> backbone = ResNet(18, output_stride=8, stem="v1c")
    >>> backbone(np.zeros((1, 64, 64, 3), "float32"))["c5"].shape
    TensorShape([1, 8, 8, 512])

    Papers: He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385; stems
    and "vd": He et al., "Bag of Tricks for Image Classification", arXiv 1812.01187.
    """

    def __init__(
        self,
        depth=50,
        output_stride=32,
        stem="v1",
        shortcut="conv",
        contract_dilation=True,
        ceil_mode=False,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        filters=64,
        weights=None,
        recompute=False,
        minimal_filtering=None,
        synchronized=False,
        dtype=None,
        **kwargs,
    ):
        for name, value, valid in (
            ("depth", None if isinstance(depth, bool) else depth, DEPTHS),
            ("stem", stem, STEMS),
            ("shortcut", shortcut, SHORTCUTS),
        ):
            if value not in valid:
                raise ValueError(f"{name} must be one of {list(valid)}, got {value!r}")
        check_output_stride(output_stride)
        if isinstance(filters, bool) or filters not in range(2, 1 << 16, 2):
            raise ValueError(f"filters must be an even int above 0, got {filters!r}")
        kwargs.setdefault("name", f"resnet{depth}")

        def conv(name, filters, kernel_size=1, **arguments):
            return ConvNormAct(
                filters,
                kernel_size,
                padding="symmetric",
                synchronized=synchronized,
                minimal_filtering=minimal_filtering,
                dtype=dtype,
                name=name,
                **arguments,
            )

        def run(x, name, convs, convolve_again=False):
            """The map that convolutions in a row make of `x`."""
            if recompute:
                return Recomputed(convs, convolve_again, dtype=dtype, name=f"{name}_recomputed")(x)
            for layer in convs:
                x = layer(x)
            return x

        def block(x, name, width, strides, rates):
            """`rates`: of the convolution that has the strides and of what comes after it."""
            outputs = width if depth in BASIC else 4 * width
            strided = {"kernel_size": 3, "strides": strides, "dilation_rate": rates[0]}
            if depth in BASIC:
                last = {"kernel_size": 3, "dilation_rate": rates[1]}
                convs = [
                    conv(f"{name}_conv1", width, **strided),
                    conv(f"{name}_conv2", outputs, activation=None, **last),
                ]
            else:
                convs = [
                    conv(f"{name}_conv1", width),
                    conv(f"{name}_conv2", width, **strided),
                    conv(f"{name}_conv3", outputs, activation=None),
                ]
            # The widest maps come of the cheapest convolutions, but for the last shortcut.
            y = run(x, name, convs, convolve_again=depth not in BASIC)
            if x.shape[-1] != outputs or strides > 1:
                if shortcut == "vd" and strides > 1:
                    x = keras.layers.AveragePooling2D(
                        2, padding="same", dtype=dtype, name=f"{name}_pool"
                    )(x)
                    strides = 1
                shortcut_name = f"{name}_shortcut"
                layer = conv(shortcut_name, outputs, activation=None, strides=strides)
                cheap = depth not in BASIC and width != 8 * filters
                x = run(x, shortcut_name, [layer], convolve_again=True) if cheap else layer(x)
            y = keras.layers.Add(dtype=dtype, name=f"{name}_add")([y, x])
            return keras.layers.ReLU(dtype=dtype, name=f"{name}_relu")(y)

        # === Layers and functional model ===
        inputs = image_input()
        x = normalize(mean, std)(inputs)
        convs = [
            conv(f"stem_conv{i}", int(part * filters), kernel_size, strides=2 if i == 1 else 1)
            for i, (kernel_size, part) in enumerate(STEMS[stem], 1)
        ]
        x = run(x, "stem", convs)
        maps, map_strides = {"c1": x}, {"c1": 2}
        # Behind a ReLU a zero is as good as minus infinity.
        pad = ((1, 2), (1, 2)) if ceil_mode else 1
        x = keras.layers.ZeroPadding2D(pad, dtype=dtype, name="stem_pad")(x)
        x = keras.layers.MaxPooling2D(3, 2, dtype=dtype, name="stem_pool")(x)
        stride, rate = 4, 1
        for s, blocks in enumerate(DEPTHS[depth], 1):
            strides = 1 if s == 1 else 2
            kept = strides if stride * strides <= output_stride else 1
            before, rate, stride = rate, rate * strides // kept, stride * kept
            first = before if contract_dilation else rate
            for b in range(1, blocks + 1):
                x = block(
                    x,
                    f"stage{s}_block{b}",
                    filters * 2 ** (s - 1),
                    kept if b == 1 else 1,
                    (first if b == 1 else rate, rate),
                )
            maps[f"c{s + 1}"], map_strides[f"c{s + 1}"] = x, stride
        super().__init__(inputs, maps, map_strides, dtype=dtype, **kwargs)

        # === Config ===
        self.depth = depth
        self.output_stride = output_stride
        self.stem = stem
        self.shortcut = shortcut
        self.contract_dilation = contract_dilation
        self.ceil_mode = ceil_mode
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.filters = filters
        self.recompute = recompute
        self.minimal_filtering = minimal_filtering
        self.synchronized = synchronized

        if weights is not None:
            self.load_file(weights_lib.find(self, weights), weights_lib.load)

    def get_config(self):
        return {
            **super().get_config(),
            "depth": self.depth,
            "output_stride": self.output_stride,
            "stem": self.stem,
            "shortcut": self.shortcut,
            "contract_dilation": self.contract_dilation,
            "ceil_mode": self.ceil_mode,
            "mean": self.mean,
            "std": self.std,
            "filters": self.filters,
            "weights": None,
            "recompute": self.recompute,
            "minimal_filtering": self.minimal_filtering,
            "synchronized": self.synchronized,
        }
