"""torchvision's Mask R-CNN in others' terms: names of its arrays, its truth, what it draws."""

import re

import numpy as np
import tensorflow as tf

from isa_tf import ops

# Ours by name, and what torchvision calls them.
LOSSES = {
    "rpn_objectness": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "box_class": "loss_classifier",
    "box": "loss_box_reg",
    "mask": "loss_mask",
}

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
    """Arrays by torchvision's names, by a source's, in its order of classes and of colours."""
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


def batch_of(size, targets):
    """Our truth of torchvision's targets, dicts of arrays of images in a batch of a size.

    torchvision reads a true mask as if pixel i lay at i, not i + 0.5: that is said here by where
    the masks lie, half a pixel up and to the left.
    """
    number = max(len(t["boxes"]) for t in targets)
    batch, (height, width) = len(targets), size
    y = {
        "boxes": np.zeros((batch, number, 4), "float32"),
        "classes": np.zeros((batch, number), "int32"),
        "valid": np.zeros((batch, number), bool),
        "crowd": np.zeros((batch, number), bool),
        "masks": np.zeros((batch, number, height, width), "uint8"),
        "mask_boxes": np.float32([[[-0.5, -0.5, width - 0.5, height - 0.5]] * number] * batch),
        "seed": np.zeros((batch, 2), "int32"),
    }
    for i, target in enumerate(targets):
        count, (h, w) = len(target["boxes"]), target["masks"].shape[1:]
        y["boxes"][i, :count] = target["boxes"]
        y["classes"][i, :count] = target["labels"] - 1
        y["valid"][i, :count] = True
        y["masks"][i, :count, :h, :w] = 255 * np.asarray(target["masks"])
    return {name: tf.constant(value) for name, value in y.items()}


def drawn_anchors(marks, anchors, y):
    """What `ops.anchor_targets` would have told of the anchors that torchvision drew."""
    count = int((marks >= 0).sum(1).max())
    indices = np.argsort(-marks, 1, kind="stable")[:, :count]
    told = np.take_along_axis(marks, indices, 1)
    quality = np.stack([ops.box_iou(boxes, anchors).numpy() for boxes in y["boxes"]])
    best = np.take_along_axis(quality.argmax(1), indices, 1)
    return {
        "indices": tf.constant(indices.astype("int32")),
        "valid": told >= 0,
        "positive": told > 0,
        "references": tf.gather(anchors, indices),
        "boxes": tf.gather(y["boxes"], best, batch_dims=1),
    }


def drawn_rois(expected, y):
    """What `ops.proposal_targets` would have told of the RoIs that torchvision drew."""
    parts = []
    for rois, labels, matches in zip(
        *(expected[name] for name in ("rois", "roi_labels", "roi_matches")), strict=True
    ):
        order = np.argsort(labels == 0, kind="stable")  # positives come first here
        parts.append((rois[order], labels[order].astype("int32"), matches[order].astype("int32")))
    references, labels, matches = (np.stack(each) for each in zip(*parts, strict=True))
    return {
        "references": tf.constant(references),
        "labels": tf.constant(labels),
        "matches": tf.constant(matches),
        "boxes": tf.gather(y["boxes"], matches, batch_dims=1),
        "valid": tf.ones(labels.shape, tf.bool),
    }
