"""ISANet: the published network around interlaced sparse self-attention."""

from typing import Any

from isa_tf.backbones import Backbone
from isa_tf.models.segmenter import Segmenter


def ISANet(
    backbone: str | Backbone = "resnet50",
    num_classes: int = 19,
    auxiliary_level: str | None = "c4",
    name: str = "isanet",
    **kwargs: Any,
) -> Segmenter:
    """The published network: a `Segmenter` with a dilated backbone, ISA and an auxiliary head.

    Output stride 8, a 3x3 convolution to 512 channels, the module with K = 256 and partition 8x8,
    and an auxiliary head on stage 3 with loss weight 0.4: all but the backbone and that head are
    the defaults of `Segmenter` and `InterlacedSparseAttention`. The module's arguments are its own:
    `context_options={"partition": 4, "order": "short_long"}`.

    Args:
        backbone: see `Segmenter`. Defaults to "resnet50".
        num_classes: int. Defaults to 19.
        auxiliary_level: see `Segmenter`. Defaults to "c4".
        name: str. Defaults to "isanet".
        **kwargs: those of `Segmenter`: context_options, output_stride, backbone_weights, ...

    Returns:
        `Segmenter`.

    Shapes:
        (B, H, W, 3), RGB 0..255, any H and W -> (B, H, W, num_classes), float32.

    Raises:
        ValueError: as `Segmenter` and `InterlacedSparseAttention` do.

    Example:

    >>> model = ISANet("resnet18", num_classes=5, head_filters=32, context_options={"partition": 4})
    >>> model.predict(np.zeros((1, 64, 96, 3), "uint8"), verbose=0).shape
    (1, 64, 96, 5)

    Reference: Huang et al., "Interlaced Sparse Self-Attention for Semantic Segmentation",
    arXiv 1907.12273.
    """
    return Segmenter(
        backbone, "isa", num_classes, auxiliary_level=auxiliary_level, name=name, **kwargs
    )
