"""Writes tests/golden: narrow ISANets of mmsegmentation's, their inputs and outputs.

make golden
"""

import sys
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import golden  # noqa: E402
import hrnet_reference  # noqa: E402
import mmseg_reference as reference  # noqa: E402
from parity import images  # noqa: E402

SIZE = (41, 57)


NARROW = {"filters": 4, "modules": (1, 2, 1), "blocks": 1, "channels": 12, "keys": 6}


def write(model, checkpoint, examples):
    """The tensors of a network, and what it answers to an image in both ways of resizing."""
    image, found = images(*SIZE), {}
    for align_corners in (False, True):
        for head in (model.decode_head, model.auxiliary_head):
            head.align_corners = align_corners
        name = "align_corners" if align_corners else "half_pixel"
        main_logits, auxiliary_logits = reference.logits(model, image)
        found |= {"image": image, name: main_logits, f"auxiliary_{name}": auxiliary_logits}
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    np.savez_compressed(checkpoint, **state)
    np.savez_compressed(examples, **found)


def main():
    golden.FOLDER.mkdir(exist_ok=True)
    write(reference.isanet(50, 5, filters=4), golden.CHECKPOINT, golden.EXAMPLES)
    write(hrnet_reference.isanet(2, 5, **NARROW), golden.HRNET, golden.HRNET_EXAMPLES)
    size = sum(path.stat().st_size for path in golden.FOLDER.iterdir())
    print(f"{golden.FOLDER}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
