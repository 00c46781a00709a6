"""Scores: of segmentation from one confusion matrix, of instances as COCO counts them."""

from isa_tf.metrics.coco import CocoScores, coco_results, run_lengths
from isa_tf.metrics.confusion import MeanIoU, boundary_band, class_scores, scores

__all__ = [
    "CocoScores",
    "MeanIoU",
    "boundary_band",
    "class_scores",
    "coco_results",
    "run_lengths",
    "scores",
]
