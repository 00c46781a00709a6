"""Losses for dense prediction, of the global batch: that of all replicas together."""

from isa_tf.losses.base import PixelLoss, cross_entropies
from isa_tf.losses.combined import SumOfLosses, combine, create, list_names, register
from isa_tf.losses.cross_entropy import (
    BoundaryCrossEntropy,
    FocalLoss,
    OHEMCrossEntropy,
    PixelCrossEntropy,
    near_boundary,
)
from isa_tf.losses.detection import box_losses, mask_loss, proposal_losses, smooth_l1
from isa_tf.losses.overlap import DiceLoss, LovaszSoftmax, SoftJaccard
from isa_tf.losses.selection import kth_smallest

__all__ = [
    "BoundaryCrossEntropy",
    "DiceLoss",
    "FocalLoss",
    "LovaszSoftmax",
    "OHEMCrossEntropy",
    "PixelCrossEntropy",
    "PixelLoss",
    "SoftJaccard",
    "SumOfLosses",
    "box_losses",
    "combine",
    "create",
    "cross_entropies",
    "kth_smallest",
    "list_names",
    "mask_loss",
    "near_boundary",
    "proposal_losses",
    "register",
    "smooth_l1",
]
