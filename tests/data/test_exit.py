"""A process that leaves a loop over a pipeline by an exception ends, and soon."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

START = """
    import sys
    from isa_tf import data

    class Own(data.SyntheticDataset):
        pass

    dataset = {dataset}
    train = data.train_pipeline(dataset, "train", 2, 64, cache={cache})
    def loop():
        for step, batch in enumerate(train):
            if step == 5:
                {leave}
    loop()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Plain pairs, and such as Pillow reads."""
    root = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (root / "train" / kind).mkdir(parents=True)
    for i in range(12):
        image = Image.fromarray(rng.integers(0, 256, (200, 300, 3), np.uint8))
        image.save(root / f"train/images/{i}.{'webp' if i % 3 else 'jpg'}")
        Image.new("L", (300, 200), i % 5).save(root / f"train/labels/{i}.png")
    return root


@pytest.mark.parametrize("leave, code", [("raise ValueError", 1), ("sys.exit(3)", 3)])
@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("kind", ["folder", "synthetic"])
def test_the_process_ends(folder, kind, cache, leave, code):
    dataset = {
        "folder": f"data.FolderDataset({str(folder)!r}, num_classes=5)",
        "synthetic": "data.SyntheticDataset()",
    }[kind]
    script = textwrap.dedent(START).format(dataset=dataset, cache=cache, leave=leave)
    ended = subprocess.run(
        [sys.executable, "-c", script], timeout=120, capture_output=True, text=True
    )
    assert ended.returncode == code, ended.stderr[-2000:]
