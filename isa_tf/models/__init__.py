"""Whole models: the segmenter, the published network over it, and published weights."""

from isa_tf.models.convert import from_checkpoint
from isa_tf.models.isanet import ISANet
from isa_tf.models.load import load
from isa_tf.models.mask_rcnn import MaskRCNN
from isa_tf.models.presets import Preset, from_preset, list_presets
from isa_tf.models.segmenter import Segmenter

__all__ = [
    "ISANet",
    "MaskRCNN",
    "Preset",
    "Segmenter",
    "from_checkpoint",
    "from_preset",
    "list_presets",
    "load",
]
