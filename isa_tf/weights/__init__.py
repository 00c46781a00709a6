"""Other people's checkpoints: one reader, one name map a source."""

from isa_tf.weights.reader import CheckpointError, read_checkpoint, state_dict

__all__ = ["CheckpointError", "read_checkpoint", "state_dict"]
