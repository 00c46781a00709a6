"""Other people's checkpoints: one reader, one name map a source, one table of what is published."""

from isa_tf.weights.published import Published, list_published
from isa_tf.weights.reader import CheckpointError, read_checkpoint, state_dict
from isa_tf.weights.sources import list_sources, register
from isa_tf.weights.transfer import Report, Transfer

__all__ = [
    "CheckpointError",
    "Published",
    "Report",
    "Transfer",
    "list_published",
    "list_sources",
    "read_checkpoint",
    "register",
    "state_dict",
]
