"""Whole models."""

from isa_tf.models.isanet import ISANet
from isa_tf.models.segmenter import Segmenter

__all__ = ["ISANet", "Segmenter"]
