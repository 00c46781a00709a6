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
    "combine",
    "create",
    "cross_entropies",
    "kth_smallest",
    "list_names",
    "near_boundary",
    "register",
]
