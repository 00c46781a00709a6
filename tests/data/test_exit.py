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


def run(script):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], timeout=120, capture_output=True, text=True
    )


@pytest.mark.some(1)
@pytest.mark.parametrize(
    "kind, cache, leave, code",
    [("folder", True, "raise ValueError", 1), ("synthetic", False, "sys.exit(3)", 3)],
)
def test_the_process_ends(folder, kind, cache, leave, code):
    dataset = {
        "folder": f"data.FolderDataset({str(folder)!r}, num_classes=5)",
        "synthetic": "data.SyntheticDataset()",
    }[kind]
    ended = run(textwrap.dedent(START).format(dataset=dataset, cache=cache, leave=leave))
    assert ended.returncode == code, ended.stderr[-2000:]


FIT = """
    import sys, time
    import keras, numpy as np
    from isa_tf import data

    class Slow(data.SegmentationDataset):
        def examples(self, split):
            return tuple(map(str, range(200)))

        def read(self, split, index):
            np.random.rand(200, 200) @ np.random.rand(200, 200)
            time.sleep(0.02)
            return np.zeros((300, 400, 3), np.uint8), np.zeros((300, 400), np.uint8)

    class Leave(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 3:
                raise ValueError

    train = data.train_pipeline(Slow("slow", ["a", "b"], ["train"]), "train", 2, 64)
    model = keras.Sequential([keras.layers.Rescaling(1 / 255.0), keras.layers.Conv2D(2, 1)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(train, steps_per_epoch=50, callbacks=[Leave()], verbose=0)
"""


@pytest.mark.slow
def test_the_process_ends_whose_iterator_outlives_python():
    """The traceback holds Keras's iterator, which is deleted when threads of Python are no more."""
    ended = run(FIT)
    assert ended.returncode == 1 and "ValueError" in ended.stderr, ended.stderr[-2000:]
