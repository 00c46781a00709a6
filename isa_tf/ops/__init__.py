"""Pure functions on tensors: partition and grouped attention."""

from isa_tf.ops.attention import grouped_attention
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

__all__ = [
    "LONG",
    "SHORT",
    "Heard",
    "best_partition",
    "crop",
    "from_groups",
    "grouped_attention",
    "pad_to_partition",
    "spatial_size",
    "to_groups",
]
