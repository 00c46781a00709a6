"""One Mask R-CNN's arrays by the names of several sources: torchvision's, Detectron2's, mmdet's."""

import re

import numpy as np

_HEADS = {
    "detectron2": {
        r"backbone\.fpn\.inner_blocks\.(\d)\.0": lambda m: f"backbone.fpn_lateral{int(m[1]) + 2}",
        r"backbone\.fpn\.layer_blocks\.(\d)\.0": lambda m: f"backbone.fpn_output{int(m[1]) + 2}",
        r"rpn\.head\.conv\.0\.0": "proposal_generator.rpn_head.conv",
        r"rpn\.head\.cls_logits": "proposal_generator.rpn_head.objectness_logits",
        r"rpn\.head\.bbox_pred": "proposal_generator.rpn_head.anchor_deltas",
        r"roi_heads\.box_head\.fc(\d)": lambda m: f"roi_heads.box_head.fc{int(m[1]) - 5}",
        r"roi_heads\.mask_head\.(\d)\.0": lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}",
        r"roi_heads\.mask_predictor\.conv5_mask": "roi_heads.mask_head.deconv",
        r"roi_heads\.mask_predictor\.mask_fcn_logits": "roi_heads.mask_head.predictor",
        r"backbone\.body\.conv1": "backbone.bottom_up.stem.conv1",
        r"backbone\.body\.bn1": "backbone.bottom_up.stem.conv1.norm",
        r"backbone\.body\.layer(\d)\.(\d+)\.conv(\d)": lambda m: (
            f"backbone.bottom_up.res{int(m[1]) + 1}.{m[2]}.conv{m[3]}"
        ),
        r"backbone\.body\.layer(\d)\.(\d+)\.bn(\d)": lambda m: (
            f"backbone.bottom_up.res{int(m[1]) + 1}.{m[2]}.conv{m[3]}.norm"
        ),
        r"backbone\.body\.layer(\d)\.(\d+)\.downsample\.0": lambda m: (
            f"backbone.bottom_up.res{int(m[1]) + 1}.{m[2]}.shortcut"
        ),
        r"backbone\.body\.layer(\d)\.(\d+)\.downsample\.1": lambda m: (
            f"backbone.bottom_up.res{int(m[1]) + 1}.{m[2]}.shortcut.norm"
        ),
    },
    "mmdet": {
        r"backbone\.fpn\.inner_blocks\.(\d)\.0": r"neck.lateral_convs.\1.conv",
        r"backbone\.fpn\.layer_blocks\.(\d)\.0": r"neck.fpn_convs.\1.conv",
        r"rpn\.head\.conv\.0\.0": "rpn_head.rpn_conv",
        r"rpn\.head\.cls_logits": "rpn_head.rpn_cls",
        r"rpn\.head\.bbox_pred": "rpn_head.rpn_reg",
        r"roi_heads\.box_head\.fc(\d)": lambda m: f"roi_head.bbox_head.shared_fcs.{int(m[1]) - 6}",
        r"roi_heads\.box_predictor\.cls_score": "roi_head.bbox_head.fc_cls",
        r"roi_heads\.box_predictor\.bbox_pred": "roi_head.bbox_head.fc_reg",
        r"roi_heads\.mask_head\.(\d)\.0": r"roi_head.mask_head.convs.\1.conv",
        r"roi_heads\.mask_predictor\.conv5_mask": "roi_head.mask_head.upsample",
        r"roi_heads\.mask_predictor\.mask_fcn_logits": "roi_head.mask_head.conv_logits",
        r"backbone\.body\.": "backbone.",
    },
}


def renamed(arrays, source):
    """Arrays by torchvision's names, by those of a source, in its order of classes and of colours."""
    found = {}
    for name, value in arrays.items():
        if "cls_score" in name:  # the background to the end
            value = np.concatenate([value[1:], value[:1]])
        elif "box_predictor.bbox_pred" in name:
            value = value[4:]
        elif "mask_fcn_logits" in name:
            value = value[1:]
        if source == "detectron2":
            if name == "backbone.body.conv1.weight":
                value = value[:, ::-1].copy()
            if name.endswith("num_batches_tracked"):  # frozen normalisations have none
                continue
        for pattern, spelled in _HEADS[source].items():
            changed = re.sub(f"^{pattern}", spelled, name)
            if changed != name:
                name = changed
                break
        found[name] = value
    return found


def legacy(arrays):
    """By the names that torchvision's first files have: of convolutions, not of sequences."""
    spelled = {
        r"(backbone\.fpn\.\w+\.\d)\.0\.": r"\1.",
        r"rpn\.head\.conv\.0\.0\.": "rpn.head.conv.",
        r"roi_heads\.mask_head\.(\d)\.0\.": lambda m: (
            f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}."
        ),
    }
    found = {}
    for name, value in arrays.items():
        for pattern, by in spelled.items():
            name = re.sub(f"^{pattern}", by, name)
        found[name] = value
    return found
