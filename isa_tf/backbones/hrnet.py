"""HRNetV2: four scales side by side from the stem to the end, and one map made of them."""

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
from isa_tf.layers import ResizeLike
from isa_tf.ops import check_coordinates
from isa_tf.weights import hrnet as weights_lib

FUSE_BY = ("size", "factor")
CONCATENATED = "concatenated"


@keras.saving.register_keras_serializable("isa_tf")
class HRNet(Backbone):
    """HRNetV2, which keeps the stem's resolution and adds a coarser scale with each stage.

    Stage 1 is bottlenecks at stride 4. Stages 2, 3 and 4 have a branch of basic blocks on each of
    2, 3 and 4 scales, and at the end of each of their modules every scale becomes the sum of what
    all of them are at its size. What a head reads is the four maps of the last module, resized to
    the finest and concatenated: 15 times the width, 270, 480 or 720 channels at stride 4.

    Args:
        width: int, channels of the finest scale, 18, 32 or 48 as published; each coarser one has
            twice as many. Defaults to 48.
        output_stride: 4: there is no other. Defaults to 4.
        modules: three ints, the modules of stages 2, 3 and 4. Defaults to (1, 4, 3).
        blocks: int, of stage 1 and of each branch of a module. Defaults to 4.
        filters: int, of the stem and of stage 1's 3x3 convolutions. Defaults to 64.
        coordinates: how maps are resized, see `isa_tf.ops.resize_bilinear`: "half_pixel"
            (mmsegmentation, HRNet's first segmentation code), or "align_corners" (the official
            code of ISA and HRNet's with OCR). Defaults to "half_pixel".
        fuse_by: how a module brings a coarser map to a finer one: "size", at once to its size;
            or "factor" by a power of 2 and then to its size, in coordinates "half_pixel", as
            mmsegmentation does. They differ where the sizes of the image are no multiples of 32.
            Defaults to "size".
        mean: three floats (RGB) that are taken from the image, in 0..255. Defaults to ImageNet's.
        std: three floats that it is divided by afterwards. Defaults to ImageNet's.
        weights: `None` for random ones; "imagenet" for the published ones of this width, or their
            name, such as "open-mmlab://msra/hrnetv2_w48" (see `isa_tf.backbones.list_weights`),
            fetched once; or the path of a file: such a backbone's `.weights.h5` or `.keras`, or a
            checkpoint of HRNet's authors, OpenMMLab or timm (`.pth`, `.safetensors`). Defaults to
            `None`.
        context_at: dict from "c2" .. "c5" to context modules, see `isa_tf.backbones.ResNet`. What
            makes these maps is the last module of stage 4: a module stands on the branch of its
            scale, just before the last block there; what it adds reaches the other scales where
            that module ends. Defaults to `None`.
        recompute: bool, see `isa_tf.backbones.ResNet`. Defaults to `False`.
        minimal_filtering: int or `None`, see `ConvNormAct`. Defaults to `None`.
        synchronized: bool, whether replicas share batch statistics. Defaults to `False`.
        dtype: name or policy of the layers. Defaults to `None`, the global policy.
        **kwargs: name, trainable, last_level.

    Shapes:
        (B, H, W, 3), RGB 0..255 -> {"c1", ..., "c5", "concatenated"}; "c1" is the stem's first map,
        of stride 2, "c2" .. "c5" are the last module's scales, of strides 4 .. 32 and `width`
        channels and twice as many each time; "concatenated" is all of them, of stride 4.

    Raises:
        ValueError: for another output stride, numbers below 1, unknown coordinates or fusion, an
            unknown stage or context module, one that does not add to its input, or weights that do
            not fit.
        OSError: for weights that cannot be read or fetched.

    Example:

    >>> backbone = HRNet(4, modules=(1, 1, 1), blocks=1, filters=8)
    >>> backbone(np.zeros((1, 64, 65, 3), "float32"))["concatenated"].shape
    TensorShape([1, 16, 17, 60])
    >>> model = Segmenter(backbone, num_classes=59, head_filters=16)  # an ISANet over it

    As the official recipes have it for PASCAL-Context (LIP: 20 classes), without an auxiliary head:

    >>> model = Segmenter(  # doctest: +SKIP
    ...     backbones.create("hrnet_w48", weights="imagenet", coordinates="align_corners"),
    ...     num_classes=59,
    ...     coordinates="align_corners",
    ...     context_options={"dropout": 0.05},
    ...     dropout=0.0,
    ... )

    Paper: Sun et al., "High-Resolution Representations for Labeling Pixels and Regions", arXiv
    1904.04514.
    """

    output_strides = (4,)

    def __init__(
        self,
        width: int = 48,
        output_stride: int = 4,
        modules: Sequence[int] = (1, 4, 3),
        blocks: int = 4,
        filters: int = 64,
        coordinates: str = "half_pixel",
        fuse_by: str = "size",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        weights: StrPath | None = None,
        recompute: bool = False,
        minimal_filtering: int | None = None,
        synchronized: bool = False,
        context_at: dict[str, Any] | None = None,
        dtype: DType = None,
        **kwargs: Any,
    ) -> None:
        modules = tuple(modules)
        if len(modules) != 3:
            raise ValueError(f"modules must be three ints, of stages 2, 3 and 4, got {modules}")
        counts = {"width": width, "blocks": blocks, "filters": filters}
        counts |= {f"modules[{i}]": count for i, count in enumerate(modules)}
        for name, value in counts.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
        check_output_stride(output_stride, self.output_strides)
        check_coordinates(coordinates)
        if fuse_by not in FUSE_BY:
            raise ValueError(f"fuse_by must be one of {list(FUSE_BY)}, got {fuse_by!r}")
        kwargs.setdefault("name", f"hrnet_w{width}")
        make = Blocks(recompute, minimal_filtering, synchronized, dtype)
        shared = {"minimal_filtering": minimal_filtering, "synchronized": synchronized}
        context = StageContexts(context_at, ("c2", "c3", "c4", "c5"), dtype, **shared)

        def resizing(steps):
            """Of a map to the size of one that is so many scales finer."""
            return ("half_pixel", 2**steps) if fuse_by == "factor" else (coordinates,)

        def fused(maps, i, name):
            """What scale `i` becomes: the sum of what all scales are at its size."""
            terms = []
            for j, x in enumerate(maps):
                term = f"{name}_fuse{i + 1}_from{j + 1}"
                if j > i:
                    x = make.conv(term, widths[i], activation=None)(x)
                    resize = ResizeLike(*resizing(j - i), dtype=dtype, name=f"{term}_resize")
                    x = resize([x, maps[i]])
                elif j < i:
                    last = {"filters": widths[i], "activation": None}
                    steps = [{"filters": widths[j]}] * (i - j - 1) + [last]
                    convs = [
                        make.conv(f"{term}_conv{k}", kernel_size=3, strides=2, **step)
                        for k, step in enumerate(steps, 1)
                    ]
                    x = make.run(x, term, convs)
                terms.append(x)
            return make.add(terms, f"{name}_fuse{i + 1}")

        # === Layers and functional model ===
        inputs = image_input()
        x = normalize(mean, std)(inputs)
        stem = make.conv("stem_conv1", filters, 3, strides=2)(x)
        x = make.conv("stem_conv2", filters, 3, strides=2)(stem)
        for b in range(1, blocks + 1):
            x = make.block(x, f"stage1_block{b}", filters, bottleneck=True)
        maps, widths = [x], []
        for s, count in enumerate(modules, 2):
            widths = [width * 2**i for i in range(s)]
            name = f"transition{s - 1}"
            # A coarser scale is made of the coarsest so far; the first is brought to its width.
            new = make.conv(f"{name}_branch{s}", widths[-1], 3, strides=2)(maps[-1])
            if maps[0].shape[-1] != width:
                maps[0] = make.conv(f"{name}_branch1", width, 3)(maps[0])
            maps.append(new)
            for m in range(1, count + 1):
                name = f"stage{s}_module{m}"
                for i, branch in enumerate(widths):
                    for b in range(1, blocks + 1):
                        if (s, m, b) == (4, count, blocks):
                            place = f"{name}_branch{i + 1}_context"
                            maps[i] = context(maps[i], f"c{i + 2}", place)
                        block = f"{name}_branch{i + 1}_block{b}"
                        maps[i] = make.block(maps[i], block, branch, bottleneck=False)
                maps = [fused(maps, i, name) for i in range(s)]
        finest, *others = maps
        resized = [
            ResizeLike(coordinates, dtype=dtype, name=f"concatenated_resize{i}")([x, finest])
            for i, x in enumerate(others, 2)
        ]
        x = keras.layers.Concatenate(dtype=dtype, name=CONCATENATED)([finest, *resized])
        named = {"c1": stem, **{f"c{i}": x for i, x in enumerate(maps, 2)}, CONCATENATED: x}
        strides = {"c1": 2, "c2": 4, "c3": 8, "c4": 16, "c5": 32, CONCATENATED: 4}
        super().__init__(inputs, named, strides, dtype=dtype, context_names=context.names, **kwargs)

        # === Config ===
        self.width = width
        self.output_stride = output_stride
        self.modules = modules
        self.blocks = blocks
        self.filters = filters
        self.coordinates = coordinates
        self.fuse_by = fuse_by
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.recompute = recompute
        self.minimal_filtering = minimal_filtering
        self.synchronized = synchronized

        if weights is not None:
            self.load_file(weights_lib.find(self, weights), weights_lib.load)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "width": self.width,
            "output_stride": self.output_stride,
            "modules": self.modules,
            "blocks": self.blocks,
            "filters": self.filters,
            "coordinates": self.coordinates,
            "fuse_by": self.fuse_by,
            "mean": self.mean,
            "std": self.std,
            "weights": None,
            "recompute": self.recompute,
            "minimal_filtering": self.minimal_filtering,
            "synchronized": self.synchronized,
        }
