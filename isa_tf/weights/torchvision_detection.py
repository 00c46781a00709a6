"""torchvision: from the names of its Mask R-CNN, both versions, to this package's."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from isa_tf.hints import StrPath
from isa_tf.weights import mask_rcnn, resnet
from isa_tf.weights.mask_rcnn import TASK  # noqa: F401 (a part of what a source is)
from isa_tf.weights.transfer import Report, Transfer

_BODY = "backbone.body."
# What the tensors do not tell.
SETTINGS = {"anchors": "torchvision", "aligned": False, "sampling_ratio": 2}


def _pyramid(part):
    """Each layer was once a convolution and became a sequence of it, a norm and an activation."""

    def names(level):
        name = f"backbone.fpn.{part}.{level - 2}"
        return (f"{name}.0", name), f"{name}.1"

    return names


def _box_dense(i, convs):
    if convs:  # behind them is a layer that flattens, and behind each dense one a ReLU
        return f"roi_heads.box_head.{convs + 2 * i - 1}"
    return f"roi_heads.box_head.fc{5 + i}"


_NAMES = mask_rcnn.Names(
    inner=_pyramid("inner_blocks"),
    outer=_pyramid("layer_blocks"),
    rpn_conv=lambda i: (f"rpn.head.conv.{i - 1}.0",) + ("rpn.head.conv",) * (i == 1),
    rpn_logits="rpn.head.cls_logits",
    rpn_codes="rpn.head.bbox_pred",
    box_conv=lambda i: ((f"roi_heads.box_head.{i - 1}.0",), f"roi_heads.box_head.{i - 1}.1"),
    box_dense=_box_dense,
    box_logits="roi_heads.box_predictor.cls_score",
    box_codes="roi_heads.box_predictor.bbox_pred",
    mask_conv=lambda i: (
        (f"roi_heads.mask_head.{i - 1}.0", f"roi_heads.mask_head.mask_fcn{i}"),
        f"roi_heads.mask_head.{i - 1}.1",
    ),
    mask_upsample="roi_heads.mask_predictor.conv5_mask",
    mask_logits="roi_heads.mask_predictor.mask_fcn_logits",
    background_first=True,
)


def is_source(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether these look like the tensors of torchvision's Mask R-CNN with a ResNet."""
    needed = {f"{_BODY}conv1.weight", "roi_heads.mask_predictor.mask_fcn_logits.weight"}
    return needed <= tensors.keys()


def arguments(tensors: Mapping[str, np.ndarray], path: StrPath) -> dict[str, Any]:
    """What the tensors tell of the network.

    Returns:
        dict with "backbone", the arguments of `ResNet`, and those of `MaskRCNN` that
        `mask_rcnn.arguments` tells, and freeze_norm: frozen normalisations count no batches.

    Raises:
        ValueError: where they are not those of a Mask R-CNN with a ResNet.
    """
    if not is_source(tensors):
        raise ValueError(
            f"{path}: this is not torchvision's Mask R-CNN with a ResNet: {_BODY}conv1 or "
            "roi_heads.mask_predictor is missing"
        )
    return {
        "backbone": resnet.arguments(tensors, path, _BODY),
        **mask_rcnn.arguments(tensors, path, _NAMES),
        "freeze_norm": f"{_BODY}bn1.num_batches_tracked" not in tensors,
    }


def load(
    model: keras.Model,
    tensors: Mapping[str, np.ndarray],
    path: StrPath,
    optional: Sequence[str] = (),
) -> Report:
    """Gives a `MaskRCNN` the weights of torchvision's; see `mask_rcnn.load`.

    Its labels begin with the background; codes and masks of that are never read, and left out.
    """
    backbone = Transfer(tensors, path, prefix=_BODY)
    resnet.fill(backbone, model.backbone)
    return mask_rcnn.load(model, tensors, path, _NAMES, backbone, optional)
