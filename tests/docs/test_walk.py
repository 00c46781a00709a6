"""The pages that a newcomer goes through, run from top to bottom in an empty folder.

Commands, Python and files are those of the pages; only sizes and steps are made small.
"""

import os
import re
import subprocess
import sys

import handbook
import numpy as np
import pytest
from handbook import DOCS, ROOT
from PIL import Image

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


class Walk:
    """A folder in which pages are followed."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "photos").mkdir()
        image = np.random.default_rng(0).integers(0, 256, (80, 96, 3), "uint8")
        for name in ("a", "b"):
            Image.fromarray(image).save(folder / "photos" / f"{name}.jpg")

    def process(self, *argv):
        done = subprocess.run(
            [sys.executable, *argv],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True,
            text=True,
            timeout=900,
        )
        # After two steps a model is sure of nothing, and formats differ in what they decide.
        alike = done.returncode == 0 or (done.returncode == 1 and "  TOO FEW" in done.stdout)
        assert alike, f"{argv}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def follow(self, page):
        """Runs the blocks of a page; gives how many commands and pieces of Python there were."""
        blocks, _ = handbook.split((DOCS / page).read_text())
        counts = {"bash": 0, "python": 0}
        for block in blocks:
            text = block.text
            for pattern, small in SMALL:
                text = re.sub(pattern, small, text)
            if block.title:
                (self.folder / block.title).write_text(text)
            elif block.language == "python":
                counts["python"] += 1
                self.process("-c", text)
            elif block.language == "bash":
                for line in re.sub(r"\\\n\s*", " ", text).splitlines():
                    counts["bash"] += self.run(line)
        return counts

    def run(self, line):
        made = handbook._command("", line.strip())
        assert made, line
        if made.program == "pip":  # it is what brought the test here
            return 0
        name = made.program.removeprefix("isa-tf ")
        more = [flag for word in made.arguments for flag in SHORT.get(word, ())]
        # -P: as a script, which does not begin with the folder that it is started in.
        self.process("-P", "-c", START, name, *made.arguments, *more)
        return 1


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    return Walk(tmp_path_factory.mktemp("walk"))


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
