"""Pure functions on tensors: partition, attention, resizing, filtering, replicas, detection."""

from isa_tf.ops.anchors import base_anchors, map_anchors, pyramid_anchors
from isa_tf.ops.attention import (
    gather_values,
    group_affinity,
    grouped_attention,
    mean_of_heads,
    merge_heads,
    scale_queries,
    split_heads,
)
from isa_tf.ops.boxes import (
    box_area,
    box_coverage,
    box_iou,
    box_sides,
    clip_boxes,
    decode_boxes,
    encode_boxes,
)
from isa_tf.ops.masks import crop_masks, paste_masks
from isa_tf.ops.matching import IGNORED, NEGATIVE, POSITIVE, match_boxes, sample_balanced
from isa_tf.ops.nms import non_max_suppression
from isa_tf.ops.partition import (
    LEVEL_COST,
    LONG,
    SHORT,
    PaddingMask,
    best_partition,
    crop,
    from_groups,
    group_shape,
    group_step,
    is_divided,
    level_of,
    pad_to_partition,
    partition_digits,
    regroup,
    spatial_size,
    to_groups,
)
from isa_tf.ops.replicas import alone, replicas_summed, sum_over_replicas
from isa_tf.ops.resize import COORDINATES, check_coordinates, resize_bilinear
from isa_tf.ops.roi_align import pyramid_roi_align, roi_align, roi_levels
from isa_tf.ops.targets import anchor_targets, mask_targets, proposal_targets
from isa_tf.ops.weights import pixel_weights
from isa_tf.ops.winograd import (
    plain_kernel,
    trainable_winograd_conv,
    winograd_conv,
    winograd_kernel,
)

__all__ = [
    "COORDINATES",
    "IGNORED",
    "LEVEL_COST",
    "LONG",
    "NEGATIVE",
    "POSITIVE",
    "SHORT",
    "PaddingMask",
    "alone",
    "anchor_targets",
    "base_anchors",
    "best_partition",
    "box_area",
    "box_coverage",
    "box_iou",
    "box_sides",
    "check_coordinates",
    "clip_boxes",
    "crop",
    "crop_masks",
    "decode_boxes",
    "encode_boxes",
    "from_groups",
    "gather_values",
    "group_affinity",
    "group_shape",
    "group_step",
    "grouped_attention",
    "is_divided",
    "level_of",
    "map_anchors",
    "mask_targets",
    "match_boxes",
    "mean_of_heads",
    "merge_heads",
    "non_max_suppression",
    "pad_to_partition",
    "partition_digits",
    "paste_masks",
    "pixel_weights",
    "plain_kernel",
    "proposal_targets",
    "pyramid_anchors",
    "pyramid_roi_align",
    "regroup",
    "replicas_summed",
    "resize_bilinear",
    "roi_align",
    "roi_levels",
    "sample_balanced",
    "scale_queries",
    "spatial_size",
    "split_heads",
    "sum_over_replicas",
    "to_groups",
    "trainable_winograd_conv",
    "winograd_conv",
    "winograd_kernel",
]
