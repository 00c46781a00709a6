"""Detectron2's and mmdetection's Mask R-CNN, R-50-FPN, as torchvision's with what differs changed.

Neither is installed anywhere here. What their configurations and code say they compute otherwise:
RoIAlign is aligned and takes as many samples as a bin is long; anchors' corners are not rounded and
stand at powers of two; Detectron2's strides are in the 1x1 convolutions, and it reads BGR of which
the mean is taken, undivided. The background is the last class, and has no boxes and no mask.
"""

import functools
import pickle

import numpy as np
import torch
import torchvision_reference as reference
from detectors import renamed

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


def mask_rcnn(source):
    """A narrow network of a source with random weights."""
    colors = {"image_std": [1 / 255] * 3} if source == "detectron2" else {}
    with aligned_rois():
        return change(reference.narrow(**colors), source == "detectron2")


def save(model, path, source):
    """As published: Detectron2's files are pickled arrays, mmdetection's PyTorch's."""
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    arrays = renamed(arrays, source)
    if source == "detectron2":
        arrays["pixel_mean"] = arrays["backbone.bottom_up.stem.conv1.norm.bias"][:3, None, None]
        with open(path, "wb") as file:
            pickle.dump({"model": arrays, "__author__": "Detectron2 Model Zoo"}, file, protocol=3)
    else:
        found = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
        torch.save({"meta": {"CLASSES": ("a",), "epoch": 12}, "state_dict": found}, path)
