"""Narrow ISANets of mmsegmentation's, and a Mask R-CNN of torchvision's, with their inputs and
outputs, kept as files.

`make golden` writes them, in the environment of `make parity`.
"""

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "golden"
CHECKPOINT = FOLDER / "isanet.npz"
EXAMPLES = FOLDER / "examples.npz"
# Over an HRNet; CHECKPOINT is over a ResNet.
HRNET = FOLDER / "isanet_hrnet.npz"
HRNET_EXAMPLES = FOLDER / "examples_hrnet.npz"
MASK_RCNN = FOLDER / "mask_rcnn.npz"
MASK_RCNN_EXAMPLES = FOLDER / "examples_mask_rcnn.npz"
# How many proposals and detections it was told to make, and what it drew.
MASK_RCNN_FEW = {
    "proposals_before": (60, 60),
    "proposals_after": (40, 40),
    "box_samples": 32,
    "rpn_samples": 64,
    "max_detections": 12,
}


def checkpoint_arrays(path=CHECKPOINT):
    """The tensors of a checkpoint, by name."""
    with np.load(path) as file:
        return dict(file)


def examples(path=EXAMPLES):
    """For each way of resizing, an image and the logits of both heads; by name."""
    with np.load(path) as file:
        return dict(file)
