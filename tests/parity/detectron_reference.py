"""Detectron2's and mmdetection's Mask R-CNN, R-50-FPN, as torchvision's with what differs changed.

Neither is installed anywhere here. What their configurations and code say they compute otherwise:
RoIAlign is aligned and takes as many samples as a bin is long; anchors' corners are not rounded and
stand at powers of two; Detectron2's strides are in the 1x1 convolutions, and it reads BGR of which
the mean is taken, undivided. The background is the last class, and has no boxes and no mask.
"""

import functools
import pickle
import re

import torch
import torchvision_reference as reference

from tools import torchvision_operators as operators  # before torchvision

import torchvision.ops.poolers  # isort: skip


def cell_anchors(size, ratios=(0.5, 1.0, 2.0)):
    """As in Detectron2's `generate_cell_anchors`."""
    found = []
    for ratio in ratios:
        width = (size**2 / ratio) ** 0.5
        height = ratio * width
        found.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(found)


def change(model, stride_in_1x1):
    """Makes of torchvision's model one of theirs."""
    for pool in (model.roi_heads.box_roi_pool, model.roi_heads.mask_roi_pool):
        pool.sampling_ratio = 0
    generator = model.rpn.anchor_generator
    generator.cell_anchors = [cell_anchors(size) for size in (32, 64, 128, 256, 512)]
    grid = generator.grid_anchors
    generator.grid_anchors = lambda sizes, _: grid(
        sizes, [[torch.tensor(4 << i)] * 2 for i in range(len(sizes))]
    )
    if stride_in_1x1:
        for stage in (2, 3, 4):
            block = model.backbone.body[f"layer{stage}"][0]
            block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
    return model


class aligned_rois:
    """While it is open, torchvision's pooling of boxes is aligned."""

    def __enter__(self):
        self.before = torchvision.ops.poolers.roi_align
        torchvision.ops.poolers.roi_align = functools.partial(operators.roi_align, aligned=True)

    def __exit__(self, *_):
        torchvision.ops.poolers.roi_align = self.before


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


def tensors(model, source):
    """The model's tensors by the names of a source, in its order of classes and of colours."""
    found = {}
    for name, value in model.state_dict().items():
        if "cls_score" in name:  # the background to the end
            value = torch.cat([value[1:], value[:1]])
        elif "box_predictor.bbox_pred" in name:
            value = value[4:]
        elif "mask_fcn_logits" in name:
            value = value[1:]
        if source == "detectron2":
            if name == "backbone.body.conv1.weight":
                value = value.flip(1)
            if name.endswith("num_batches_tracked"):  # frozen normalisations have none
                continue
        for pattern, spelled in _HEADS[source].items():
            changed = re.sub(f"^{pattern}", spelled, name)
            if changed != name:
                name = changed
                break
        found[name] = value
    return found


def mask_rcnn(source):
    """A narrow network of a source with random weights."""
    colors = {"image_std": [1 / 255] * 3} if source == "detectron2" else {}
    with aligned_rois():
        return change(reference.narrow(**colors), source == "detectron2")


def save(model, path, source):
    """As published: Detectron2's files are pickled arrays, mmdetection's PyTorch's."""
    found = tensors(model, source)
    if source == "detectron2":
        arrays = {name: value.numpy() for name, value in found.items()}
        arrays["pixel_mean"] = arrays["backbone.bottom_up.stem.conv1.norm.bias"][:3, None, None]
        with open(path, "wb") as file:
            pickle.dump({"model": arrays, "__author__": "Detectron2 Model Zoo"}, file, protocol=3)
    else:
        torch.save({"meta": {"CLASSES": ("a",), "epoch": 12}, "state_dict": found}, path)
