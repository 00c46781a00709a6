"""mmdetection: from the names of its Mask R-CNN with ResNet and FPN to this package's."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from isa_tf.hints import StrPath
from isa_tf.weights import mask_rcnn, resnet
from isa_tf.weights.mask_rcnn import TASK  # noqa: F401 (a part of what a source is)
from isa_tf.weights.transfer import Report, Transfer

_BODY = "backbone."
# Normalisations of its models of PyTorch's style keep their statistics.
SETTINGS = {**mask_rcnn.DETECTRON, "freeze_norm": True}


def _convs(name):
    return lambda i: ((f"{name}.{i}.conv",), f"{name}.{i}.bn")


# Where the proposal head has several convolutions, each is one of a sequence.
_NAMES = mask_rcnn.Names(
    inner=lambda level: _convs("neck.lateral_convs")(level - 2),
    outer=lambda level: _convs("neck.fpn_convs")(level - 2),
    rpn_conv=lambda i: ("rpn_head.rpn_conv",) * (i == 1) + (f"rpn_head.rpn_conv.{i - 1}.conv",),
    rpn_logits="rpn_head.rpn_cls",
    rpn_codes="rpn_head.rpn_reg",
    box_conv=lambda i: _convs("roi_head.bbox_head.shared_convs")(i - 1),
    box_dense=lambda i, _: f"roi_head.bbox_head.shared_fcs.{i - 1}",
    box_logits="roi_head.bbox_head.fc_cls",
    box_codes="roi_head.bbox_head.fc_reg",
    mask_conv=lambda i: _convs("roi_head.mask_head.convs")(i - 1),
    mask_upsample="roi_head.mask_head.upsample",
    mask_logits="roi_head.mask_head.conv_logits",
)


def is_source(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether these look like the tensors of mmdetection's Mask R-CNN with ResNet and FPN."""
    needed = {"neck.fpn_convs.0.conv.weight", "roi_head.mask_head.conv_logits.weight"}
    return needed <= tensors.keys()


def arguments(tensors: Mapping[str, np.ndarray], path: StrPath) -> dict[str, Any]:
    """What the tensors tell of the network.

    Returns:
        dict with "backbone", the arguments of `ResNet`, and those of `MaskRCNN` that
        `mask_rcnn.arguments` tells.

    Raises:
        ValueError: where they are not those of a Mask R-CNN with a ResNet.
    """
    if not is_source(tensors):
        raise ValueError(
            f"{path}: this is not mmdetection's Mask R-CNN with FPN: neck.fpn_convs or "
            "roi_head.mask_head.conv_logits is missing"
        )
    return {
        "backbone": resnet.arguments(tensors, path, _BODY),
        **mask_rcnn.arguments(tensors, path, _NAMES),
    }


def load(
    model: keras.Model,
    tensors: Mapping[str, np.ndarray],
    path: StrPath,
    optional: Sequence[str] = (),
) -> Report:
    """Gives a `MaskRCNN` the weights of mmdetection's; see `mask_rcnn.load`.

    Its background is the last class.
    """
    backbone = Transfer(tensors, path, prefix=_BODY)
    resnet.fill(backbone, model.backbone)
    return mask_rcnn.load(model, tensors, path, _NAMES, backbone, optional)
