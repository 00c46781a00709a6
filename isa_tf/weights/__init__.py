"""Other people's checkpoints: one reader, one name map a source."""

from isa_tf.weights.reader import CheckpointError, read_checkpoint, state_dict
from isa_tf.weights.transfer import Report, Transfer

__all__ = ["CheckpointError", "Report", "Transfer", "read_checkpoint", "state_dict"]
