"""Narrow ISANets of mmsegmentation's with their inputs and outputs, kept as files.

`make golden` writes them, in the environment of `make parity`.
"""

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "golden"
CHECKPOINT = FOLDER / "isanet.npz"
EXAMPLES = FOLDER / "examples.npz"
# Over an HRNet; CHECKPOINT is over a ResNet.
HRNET = FOLDER / "isanet_hrnet.npz"
HRNET_EXAMPLES = FOLDER / "examples_hrnet.npz"


def checkpoint_arrays():
    """The tensors of the checkpoint, by name."""
    with np.load(CHECKPOINT) as file:
        return dict(file)


def examples(path=EXAMPLES):
    """For each way of resizing, an image and the logits of both heads; by name."""
    with np.load(path) as file:
        return dict(file)
