"""Pure functions on tensors: partition, grouped attention, resizing, filtering, replicas."""

from isa_tf.ops.attention import gather_values, group_affinity, grouped_attention
from isa_tf.ops.partition import (
    LONG,
    SHORT,
    Heard,
    best_partition,
    crop,
    from_groups,
    pad_to_partition,
    spatial_size,
    to_groups,
)
from isa_tf.ops.replicas import alone, replicas_summed, sum_over_replicas
from isa_tf.ops.resize import COORDINATES, check_coordinates, resize_bilinear
from isa_tf.ops.weights import pixel_weights
from isa_tf.ops.winograd import (
    plain_kernel,
    trainable_winograd_conv,
    winograd_conv,
    winograd_kernel,
)

__all__ = [
    "COORDINATES",
    "LONG",
    "SHORT",
    "Heard",
    "alone",
    "best_partition",
    "check_coordinates",
    "crop",
    "from_groups",
    "gather_values",
    "group_affinity",
    "grouped_attention",
    "pad_to_partition",
    "pixel_weights",
    "plain_kernel",
    "replicas_summed",
    "resize_bilinear",
    "spatial_size",
    "sum_over_replicas",
    "to_groups",
    "trainable_winograd_conv",
    "winograd_conv",
    "winograd_kernel",
]
