"""Detectron2: from the names of its Mask R-CNN with ResNet and FPN to this package's."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from isa_tf.hints import StrPath
from isa_tf.weights import mask_rcnn, resnet
from isa_tf.weights.mask_rcnn import TASK  # noqa: F401 (a part of what a source is)
from isa_tf.weights.transfer import Report, Transfer, conv_layers

_BODY = "backbone.bottom_up."
_BLOCKS = re.compile(re.escape(_BODY) + r"res(\d)\.(\d+)\.conv(\d)\.weight")
# What older files hold that is no weight: the anchors, the colours of an image.
_LEFT_OVER = ("proposal_generator.anchor_generator.", "pixel_mean", "pixel_std")
SETTINGS = {
    **mask_rcnn.DETECTRON,
    # The mean in RGB order, of a network that reads BGR.
    "backbone": {"stride_in_1x1": True, "mean": (123.675, 116.28, 103.53), "std": (1.0, 1.0, 1.0)},
}


def _pair(name):
    return (name,), f"{name}.norm"


_RPN = "proposal_generator.rpn_head.conv"
# Where there are several convolutions, each is one of a sequence.
_NAMES = mask_rcnn.Names(
    inner=lambda level: _pair(f"backbone.fpn_lateral{level}"),
    outer=lambda level: _pair(f"backbone.fpn_output{level}"),
    rpn_conv=lambda i: (_RPN,) * (i == 1) + (f"{_RPN}.conv{i - 1}",),
    rpn_logits="proposal_generator.rpn_head.objectness_logits",
    rpn_codes="proposal_generator.rpn_head.anchor_deltas",
    box_conv=lambda i: _pair(f"roi_heads.box_head.conv{i}"),
    box_dense=lambda i, _: f"roi_heads.box_head.fc{i}",
    box_logits="roi_heads.box_predictor.cls_score",
    box_codes="roi_heads.box_predictor.bbox_pred",
    mask_conv=lambda i: _pair(f"roi_heads.mask_head.mask_fcn{i}"),
    mask_upsample="roi_heads.mask_head.deconv",
    mask_logits="roi_heads.mask_head.predictor",
)


def is_source(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether these look like the tensors of Detectron2's Mask R-CNN with ResNet and FPN."""
    needed = {f"{_BODY}stem.conv1.weight", "roi_heads.mask_head.predictor.weight"}
    return needed <= tensors.keys()


def arguments(tensors: Mapping[str, np.ndarray], path: StrPath) -> dict[str, Any]:
    """What the tensors tell of the network.

    Returns:
        dict with "backbone", the arguments of `ResNet`, and those of `MaskRCNN` that
        `mask_rcnn.arguments` tells, and freeze_norm: frozen normalisations count no batches.

    Raises:
        ValueError: where they are not those of a Mask R-CNN with a ResNet that is known.
    """
    if not is_source(tensors):
        raise ValueError(
            f"{path}: this is not Detectron2's Mask R-CNN with ResNet and FPN: {_BODY}stem.conv1 "
            "or roi_heads.mask_head.predictor is missing"
        )
    found = [m for m in map(_BLOCKS.fullmatch, tensors) if m]
    blocks = tuple(len({m[2] for m in found if m[1] == str(s)}) for s in (2, 3, 4, 5))
    depth = resnet.find_depth(blocks, any(m[3] == "3" for m in found))
    if depth is None:
        raise ValueError(f"{path}: no ResNet that is known has {blocks} blocks in its stages")
    filters = int(tensors[f"{_BODY}res2.0.conv1.weight"].shape[0])
    return {
        "backbone": {"depth": depth, "filters": filters},
        **mask_rcnn.arguments(tensors, path, _NAMES),
        "freeze_norm": f"{_BODY}stem.conv1.norm.num_batches_tracked" not in tensors,
    }


def load(
    model: keras.Model,
    tensors: Mapping[str, np.ndarray],
    path: StrPath,
    optional: Sequence[str] = (),
) -> Report:
    """Gives a `MaskRCNN` the weights of Detectron2's; see `mask_rcnn.load`.

    Its network reads BGR, and its background is the last class: both become an order of weights.
    """
    backbone = Transfer(tensors, path, prefix=_BODY)
    backbone.keep_contexts(model.backbone)
    for layer in conv_layers(model.backbone):
        if layer.name == "stem_conv1":
            name, inputs = "stem.conv1", resnet.REVERSED
        else:
            stage, block, part = resnet.place(layer)
            name, inputs = f"res{stage + 1}.{block - 1}.{part}", None
        backbone.conv_norm(layer, name, f"{name}.norm", inputs=inputs)
    return mask_rcnn.load(model, tensors, path, _NAMES, backbone, optional, _LEFT_OVER)
