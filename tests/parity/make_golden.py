"""Writes tests/golden: a narrow ISANet of mmsegmentation's, its inputs and outputs.

make golden
"""

import sys
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import golden  # noqa: E402
import mmseg_reference as reference  # noqa: E402
from parity import images  # noqa: E402

SIZE = (41, 57)


def main():
    golden.FOLDER.mkdir(exist_ok=True)
    found = {}
    for align_corners in (False, True):
        model = reference.isanet(50, 5, align_corners, filters=4)
        image = images(*SIZE)
        name = "align_corners" if align_corners else "half_pixel"
        main_logits, auxiliary_logits = reference.logits(model, image)
        found |= {"image": image, name: main_logits, f"auxiliary_{name}": auxiliary_logits}
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    np.savez_compressed(golden.CHECKPOINT, **state)
    np.savez_compressed(golden.EXAMPLES, **found)
    size = sum(path.stat().st_size for path in golden.FOLDER.iterdir())
    print(f"{golden.FOLDER}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
