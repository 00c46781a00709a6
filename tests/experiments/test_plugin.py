"""A package from outside joins by name, from a config's training to the prediction.

Once as modules that a config and `--plugins` import, once installed, by its entry points.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]

# A module that registers everything as it is imported.
PACKAGE = (ROOT / "tests" / "outside.py").read_text() + "\n\nregister()\n"

CONFIG = """
from experiments.configs import default


def get_config():
    config = default.get_config()
    config.data.name = "stripes"
    config.data.options.count = 3
    config.data.crop_size = 32
    config.data.batch_size = 2
    config.model.backbone = "one_convolution"
    config.model.context = "mean_of_map"
    config.model.context_options.weight = 0.5
    config.model.head_filters = 8
    config.train.steps = 2
    config.train.validate_every = 2
    config.train.pictures = 1
    return config
"""

# What the package's own tests would say: a line for each thing that it adds.
BATTERIES = """
import isa_tf
from isa_tf.testing import BackboneBattery, ContextBattery, DatasetBattery, FormatBattery

ContextBattery("mean_of_map", {"weight": 0.5}).run()
BackboneBattery("one_convolution").run()
DatasetBattery(isa_tf.data.create("stripes")).run()
FormatBattery("arrays").run()
"""


class Outside:
    """A folder with a package, its config and an image; what runs there knows the package.

    Args:
        folder: path.
        installed: bool, whether the package is installed, so that its entry points are known; or a
            module that one has to import.
    """

    def __init__(self, folder, installed):
        self.folder = folder
        self.plugins = () if installed else ("--plugins=outside_package",)
        site = folder / "site"
        site.mkdir()
        (site / "outside_package.py").write_text(PACKAGE)
        imports = "" if installed else "import outside_package  # registers what is named below\n"
        (folder / "config.py").write_text(imports + CONFIG)
        if installed:
            install(site)
        image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), "uint8")
        Image.fromarray(image).save(folder / "photo.png")
        self.environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{site}"}

    def run(self, *arguments, status=0):
        """What a Python program says, on both of its outputs."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr


def install(site):
    """What pip leaves of a package of one module: the module is there, its metadata is written."""
    told = site / "outside-1.2.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.2\n")
    (told / "entry_points.txt").write_text("[isa_tf.plugins]\neverything = outside_package\n")


@pytest.mark.slow
@pytest.mark.parametrize("installed", [False, True], ids=["imported", "installed"])
def test_from_the_config_to_the_prediction(installed, tmp_path):
    outside = Outside(tmp_path, installed)
    run, folder, plugins = outside.run, outside.folder, outside.plugins
    experiment = [f"--config={folder / 'config.py'}", f"--workdir={folder / 'run'}"]
    run("-m", "experiments.train", *experiment)
    run("-m", "experiments.evaluate", *experiment)
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    assert metrics["dataset"] == "stripes" and metrics["images"] == 3
    model = folder / "run" / "best.keras"
    export = ["-m", "tools.export", f"--model={model}", *plugins]
    said = run(*export, "--format=arrays")
    exported = model.with_name("best_export") / "model.npz"
    assert exported.exists() and "100.000 %" in said
    images, output = f"--images={folder / 'photo.png'}", f"--output={folder / 'predicted'}"
    predict = ["-m", "tools.predict", f"--model={exported}", images, output]
    run(*predict, *plugins)
    label = np.asarray(Image.open(folder / "predicted" / "photo_label.png"))
    assert label.shape == (40, 56) and label.max() < 2
    # Without the package, nothing is of that format; the nearest that there is would be named.
    said = run(*export, "--format=array", status=1)
    assert "unknown format 'array'; did you mean \"arrays\"?" in said
    if not installed:
        said = run(*predict, status=1)
        assert "not a model; known are keras" in said


@pytest.mark.slow
def test_it_is_tested_by_a_line_each(tmp_path):
    Outside(tmp_path, installed=True).run("-c", BATTERIES)
