"""Every example of a docstring runs and gives what it says."""

import doctest
import importlib
import inspect
import pkgutil
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import isa_tf
from isa_tf import layers

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = [module.name for module in pkgutil.walk_packages(isa_tf.__path__, "isa_tf.")]
WITH_EXAMPLES = [m for m in MODULES if ">>>" in inspect.getsource(importlib.import_module(m))]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the data and models that examples read, and the names they use."""
    folder = tmp_path_factory.mktemp("examples")
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for kind in ("images", "labels"):
            (folder / "camvid" / split / kind).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 256, (96, 128, 3), "uint8")
            label = rng.integers(0, 3, (96, 128), "uint8")
            for kind, array in (("images", image), ("labels", label)):
                Image.fromarray(array).save(folder / "camvid" / split / kind / f"{i}.png")
    for name in ("ccp", "my_images"):
        (folder / name).symlink_to("camvid")
    Image.fromarray(label).save(folder / "label.png")
    Image.fromarray(image).save(folder / "photo.jpg")
    with zipfile.ZipFile(folder / "data.zip", "w") as archive:
        for path in sorted((folder / "camvid").rglob("*.png")):
            archive.write(path, path.relative_to(folder / "camvid"))
    (folder / "my_archives").mkdir()
    (folder / "data.zip").rename(folder / "my_archives" / "data.zip")
    isa_tf.data.prepare("camvid", folder / "camvid", folder / "prepared", check_sizes=False)

    data = isa_tf.data.create("camvid", folder / "camvid")
    model = isa_tf.models.Segmenter(
        "tiny",
        num_classes=data.num_classes,
        class_names=data.class_names,
        palette=data.palette,
        head_filters=16,
    )
    model.compile("sgd", isa_tf.losses.PixelCrossEntropy())
    isa_tf.files.save_model(model, folder / "model.keras")
    isa_tf.export(model, folder / "model.tflite", image_size=(96, 128))
    predictor = isa_tf.inference.Predictor.from_model(model)
    image, label = data.read("val", 0)
    names = {
        **{"np": np, "keras": keras, "tf": tf, "Image": Image, "isa_tf": isa_tf},
        **{"Segmenter": isa_tf.models.Segmenter, "layers": layers},
        **{"data_dir": folder / "camvid", "data": data, "model": model, "predictor": predictor},
        **{"image": image, "images": image[None], "label": label},
    }
    return folder, names


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name, workplace, monkeypatch):
    folder, names = workplace
    monkeypatch.chdir(folder)
    told, module = [], importlib.import_module(name)
    for test in doctest.DocTestFinder().find(module):
        test.globs = {**names, **vars(module)}
        doctest.DocTestRunner(optionflags=FLAGS).run(test, out=told.append)
    assert not told, "".join(told)
