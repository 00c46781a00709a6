"""ResNet as the published ISA networks have it: dilated, with their stems and shortcuts."""

from collections.abc import Sequence
from typing import Any

import keras

from isa_tf.backbones.backbone import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Backbone,
    check_output_stride,
    image_input,
    normalize,
)
from isa_tf.backbones.blocks import Blocks
from isa_tf.backbones.contexts import StageContexts
from isa_tf.hints import DType, StrPath
from isa_tf.layers.conv import BN_EPSILON
from isa_tf.weights import resnet as weights_lib
from isa_tf.weights.architectures import BASIC, DEPTHS

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
    """ResNet with PyTorch's symmetric padding, and strides in the 3x3 convolutions or before them.

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
        context_at: dict from stages, "c2" .. "c5", to context modules, each put just before the
            stage's last block: a name, such as `{"c4": "isa"}`; a dict of the name and arguments,
            `{"c4": {"name": "nonlocal", "sub_sample": "before"}}`; a layer, or what makes one. They
            add to their input and begin as the identity, so weights of a network without them stay
            good: those of a file are taken by name, and the modules' own stay as initialised. See
            `isa_tf.backbones.contexts.StageContexts`. Defaults to `None`.
        weights: `None` for random ones; "imagenet" for the published ones of this depth, stem and
            shortcut, or their name, such as "open-mmlab://resnet50_v1c" (see
            `isa_tf.backbones.list_weights`), fetched once; or the path of a file: such a
            backbone's `.weights.h5` or `.keras`, or a checkpoint of torchvision, OpenMMLab, timm
            or the official code (`.pth`, `.safetensors`). Defaults to `None`.
        recompute: bool, whether training computes again what it can make cheaply, in place of
            keeping it for the gradients: the convolutions of the stem and of each block are then
            in a `isa_tf.layers.Recomputed`; those of `context_at` are not. A step takes less memory
            and some more time; files of weights are of one kind or the other. Defaults to `False`.
        minimal_filtering: int or `None`, see `ConvNormAct`. Defaults to `None`.
        synchronized: bool, whether replicas share batch statistics. Defaults to `False`.
        stride_in_1x1: bool, whether the first 1x1 convolution of a bottleneck has the strides, as
            in the network of its paper and Detectron2's; else the 3x3 one has them. Defaults to
            `False`.
        epsilon: float, of the normalisations. Defaults to 1e-5.
        dtype: name or policy of the layers. Defaults to `None`, the global policy.
        **kwargs: name, trainable, last_level.

    Shapes:
        (B, H, W, 3), RGB 0..255 -> {"c1", ..., "c5"}; "c1" is the stem's output, "c2" .. "c5"
        are the stages', of 256, 512, 1024, 2048 channels, or 64 .. 512 with basic blocks.

    Raises:
        ValueError: for an unknown depth, output stride, stem, shortcut, stage or context module, a
            module that does not add to its input, `stride_in_1x1` of basic blocks, an epsilon
            below 0, or weights that do not fit.
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
        depth: int = 50,
        output_stride: int = 32,
        stem: str = "v1",
        shortcut: str = "conv",
        contract_dilation: bool = True,
        ceil_mode: bool = False,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        filters: int = 64,
        weights: StrPath | None = None,
        recompute: bool = False,
        minimal_filtering: int | None = None,
        synchronized: bool = False,
        context_at: dict[str, Any] | None = None,
        stride_in_1x1: bool = False,
        epsilon: float = BN_EPSILON,
        dtype: DType = None,
        **kwargs: Any,
    ) -> None:
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
        if stride_in_1x1 and depth in BASIC:
            raise ValueError(f"stride_in_1x1 is of bottlenecks, which depth {depth} has not")
        if epsilon < 0:
            raise ValueError(f"epsilon must be at least 0, got {epsilon}")
        kwargs.setdefault("name", f"resnet{depth}")

        make = Blocks(recompute, minimal_filtering, synchronized, dtype, epsilon)
        shared = {"minimal_filtering": minimal_filtering, "synchronized": synchronized}
        context = StageContexts(context_at, ("c2", "c3", "c4", "c5"), dtype, **shared)

        # === Layers and functional model ===
        inputs = image_input()
        x = normalize(mean, std)(inputs)
        convs = [
            make.conv(f"stem_conv{i}", int(part * filters), kernel_size, strides=2 if i == 1 else 1)
            for i, (kernel_size, part) in enumerate(STEMS[stem], 1)
        ]
        x = make.run(x, "stem", convs)
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
                if b == blocks:
                    x = context(x, f"c{s + 1}", f"stage{s}_context")
                x = make.block(
                    x,
                    f"stage{s}_block{b}",
                    filters * 2 ** (s - 1),
                    depth not in BASIC,
                    kept if b == 1 else 1,
                    (first if b == 1 else rate, rate),
                    pool_shortcut=shortcut == "vd",
                    keep_shortcut=s == 4,
                    stride_in_1x1=stride_in_1x1,
                )
            maps[f"c{s + 1}"], map_strides[f"c{s + 1}"] = x, stride
        super().__init__(
            inputs, maps, map_strides, dtype=dtype, context_names=context.names, **kwargs
        )

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
        self.stride_in_1x1 = stride_in_1x1
        self.epsilon = epsilon

        if weights is not None:
            self.load_file(weights_lib.find(self, weights), weights_lib.load)

    def get_config(self) -> dict[str, Any]:
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
            "stride_in_1x1": self.stride_in_1x1,
            "epsilon": self.epsilon,
        }
