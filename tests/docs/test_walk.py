"""The pages that a newcomer goes through, run from top to bottom in an empty folder.

Commands, Python and files are those of the pages; only sizes and steps are made small.
"""

import os
import sys

import numpy as np
import pytest
from handbook import ROOT
from PIL import Image
from walking import Walk

# -P: as a script, which does not begin with the folder that it is started in.
START = "import sys; from tools.command import main; sys.exit(main())"
SMALL = [
    (r"(config\.train\.steps|\bsteps) ?= ?[\d_]+", r"\g<1>=2"),
    (r"(config\.train\.validate_every) = [\d_]+", r"\1 = 2"),
    (r"(crop_size)( = |=)(\(384, 384\)|128)", r"\1=64"),
    (r"--image_size=384x384", "--image_size=64x64"),
    (r"image_size=\(384, 512\)", "image_size=(64, 96)"),
]
# The example of a command, and what makes it short where its config does not.
SHORT = {
    "--config=synthetic": ["--config.train.steps=2", "--config.data.options.num_examples.train=32"]
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walk")
    (folder / "photos").mkdir()
    image = np.random.default_rng(0).integers(0, 256, (80, 96, 3), "uint8")
    for name in ("a", "b"):
        Image.fromarray(image).save(folder / "photos" / f"{name}.jpg")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    start = [sys.executable, "-P", "-c", START]
    return Walk(folder, start, sys.executable, environment, SMALL, SHORT)


def test_quickstart(walk):
    assert walk.follow("quickstart.md") == {"bash": 4, "python": 1}
    assert (walk.folder / "runs/synthetic/report.html").exists()
    assert len([*(walk.folder / "predicted").glob("*_overlay.png")]) == 2


def test_images_of_your_own_and_new_classes(walk):
    # One after the other: the second page goes on from the first.
    assert walk.follow("own_data.md") == {"bash": 5, "python": 2}
    assert (walk.folder / "runs/mine/best_export/model.tflite").exists()
    assert walk.follow("fine_tuning.md") == {"bash": 3, "python": 3}
    assert (walk.folder / "other.keras").exists()
    assert walk.follow("deploy.md") == {"bash": 2, "python": 1}
    assert (walk.folder / "runs/mine/best_export/model_int8.tflite").exists()
