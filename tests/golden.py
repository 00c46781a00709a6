"""A narrow ISANet of mmsegmentation's with its inputs and outputs, kept as files.

`make golden` writes them, in the environment of `make parity`.
"""

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "golden"
CHECKPOINT = FOLDER / "isanet.npz"
EXAMPLES = FOLDER / "examples.npz"


def checkpoint_arrays():
    """The tensors of the checkpoint, by name."""
    with np.load(CHECKPOINT) as file:
        return dict(file)


def examples():
    """For each way of resizing, an image and the logits of both heads; by name."""
    with np.load(EXAMPLES) as file:
        return dict(file)
