"""A package from outside joins by name, from a config's training to the prediction."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]

PACKAGE = '''
"""Everything that can be registered: a context module, a backbone, a data set, a format."""

import json

import keras
import numpy as np
import tensorflow as tf

import isa_tf
from isa_tf.backbones.backbone import Backbone, image_input, normalize


@isa_tf.layers.register_context("mean_of_map")
@keras.saving.register_keras_serializable("outside")
class MeanOfMap(isa_tf.layers.ContextModule):
    """The map, and its mean at every position; read out by a convolution."""

    def __init__(self, weight=1.0, **kwargs):
        super().__init__(**kwargs)
        self.weight = weight

    def build(self, input_shape):
        super().build(input_shape)
        channels = input_shape[-1]
        self.fusion = self.conv_norm("fusion", self.filters or channels, channels)

    def call(self, inputs, training=None):
        mean = tf.reduce_mean(inputs, (1, 2), keepdims=True)
        return self.drop(self.fusion(inputs + self.weight * mean, training=training))

    def get_config(self):
        return {**super().get_config(), "weight": self.weight}


@isa_tf.backbones.register("one_convolution")
@keras.saving.register_keras_serializable("outside")
class OneConvolution(Backbone):
    def __init__(
        self, output_stride=8, weights=None, synchronized=False, dtype=None, **kwargs
    ):
        image = image_input()
        x = normalize(127.5, 127.5)(image)
        conv = isa_tf.layers.ConvNormAct(8, 3, strides=4, synchronized=synchronized, dtype=dtype)
        super().__init__(image, {"c2": conv(x)}, {"c2": 4}, dtype=dtype, **kwargs)

    def get_config(self):
        return {**super().get_config(), "weights": None}


@isa_tf.data.register("stripes")
class Stripes(isa_tf.data.SegmentationDataset):
    """Bright stripes are class 1."""

    def __init__(self, count=4):
        super().__init__("stripes", ("dark", "bright"), ("train", "val"))
        self.count = count

    def examples(self, split):
        self._check_split(split)
        return tuple(f"{split}{i}" for i in range(self.count))

    def read(self, split, index):
        label = np.zeros((32, 48), np.uint8)
        label[:, 8 * index : 8 * index + 16] = 1
        return np.repeat(label[..., None] * np.uint8(255), 3, axis=-1), label


@isa_tf.formats.register
class Arrays(isa_tf.formats.Format):
    """The weights as arrays beside the config, in one file."""

    name, suffix = "arrays", ".npz"

    def export(self, model, path):
        path = self.check_path(path)
        text = json.dumps(keras.saving.serialize_keras_object(model))
        with isa_tf.files.replacing(path) as new:
            weights = {f"w{i}": w for i, w in enumerate(model.get_weights())}
            np.savez(new, text=np.array(text), **weights)
        return path

    def load(self, path, num_threads=None, protocol=None):
        with np.load(path) as file:
            model = keras.saving.deserialize_keras_object(json.loads(str(file["text"])))
            model.set_weights([file[f"w{i}"] for i in range(len(model.get_weights()))])
        return isa_tf.inference.predictor_of_model(model, protocol)
'''

CONFIG = """
import outside_package  # which registers what the names below are of

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


@pytest.fixture
def outside(tmp_path):
    """The folder of a package, its config and an image, and a function that runs a command."""
    (tmp_path / "outside_package.py").write_text(PACKAGE)
    (tmp_path / "config.py").write_text(CONFIG)
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), "uint8")
    Image.fromarray(image).save(tmp_path / "photo.png")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}

    def run(module, *arguments, status=0):
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    return tmp_path, run


@pytest.mark.slow
def test_from_the_config_to_the_prediction(outside):
    folder, run = outside
    experiment = [f"--config={folder / 'config.py'}", f"--workdir={folder / 'run'}"]
    run("experiments.train", *experiment)
    run("experiments.evaluate", *experiment)
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    assert metrics["dataset"] == "stripes" and metrics["images"] == 3
    model = folder / "run" / "best.keras"
    plugins = "--plugins=outside_package"
    said = run("tools.export", f"--model={model}", "--format=arrays", plugins)
    exported = model.with_name("best_export") / "model.npz"
    assert exported.exists() and "100.000 %" in said
    images, output = f"--images={folder / 'photo.png'}", f"--output={folder / 'predicted'}"
    run("tools.predict", f"--model={exported}", images, output, plugins)
    label = np.asarray(Image.open(folder / "predicted" / "photo_label.png"))
    assert label.shape == (40, 56) and label.max() < 2
    # Without the package, nothing is of that format; the nearest that there is would be named.
    said = run("tools.export", f"--model={model}", "--format=array", plugins, status=1)
    assert "unknown format 'array'; did you mean \"arrays\"?" in said
    said = run("tools.predict", f"--model={exported}", images, output, status=1)
    assert "not a model; known are keras" in said
