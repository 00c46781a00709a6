"""Every example of a docstring runs and gives what it says."""

import doctest
import importlib
import inspect
import json
import pkgutil
import shutil
import zipfile

import coco_folders
import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import isa_tf
from isa_tf import layers

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = [module.name for module in pkgutil.walk_packages(isa_tf.__path__, "isa_tf.")]
NEEDS = {"isa_tf.data.videos": "av"}  # packages without which a module's examples do not run
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
    shutil.copytree(folder / "camvid/train", folder / "suffixed/train")
    for path in (folder / "suffixed/train/labels").iterdir():
        path.rename(path.with_stem(f"{path.stem}_ids"))
    _write_other_labels(folder)
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
    detector = isa_tf.models.MaskRCNN(
        isa_tf.backbones.create("resnet18", filters=8),
        num_classes=3,
        filters=16,
        box_units=(16,),
        max_detections=4,
        protocol={"short_side": 64, "long_side": 96},
    )
    image, label = data.read("val", 0)
    names = {
        **{"np": np, "keras": keras, "tf": tf, "Image": Image, "isa_tf": isa_tf},
        **{"Segmenter": isa_tf.models.Segmenter, "layers": layers},
        **{"data_dir": folder / "camvid", "data": data, "model": model, "predictor": predictor},
        "detector": detector,
        **{"image": image, "images": image[None], "label": label, "truth": _truth()},
    }
    return folder, names


def _truth():
    """Two objects in one image, as detectors learn from them; one place is empty."""
    boxes = [[[4.0, 4, 40, 60], [50, 8, 90, 40], [0, 0, 0, 0]]]
    truth = {
        "boxes": np.array(boxes, "float32"),
        "classes": np.array([[2, 0, 0]], "int32"),
        "valid": np.array([[True, True, False]]),
        "crowd": np.zeros((1, 3), bool),
        "masks": np.full((1, 3, 8, 8), 255, "uint8"),
        "mask_boxes": np.array(boxes, "float32"),
        "seed": np.array([[0, 1]], "int32"),
    }
    return {name: tf.constant(value) for name, value in truth.items()}


def _write_other_labels(folder):
    """One image with COCO's instances, and one with a label in colours."""
    for path in ("coco/images", "colored/images", "colored/labels"):
        (folder / path).mkdir(parents=True)
        Image.new("RGB", (8, 6), (0, 0, 128)).save(folder / path / "a.png")
    told = {
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "images": [{"id": 1, "file_name": "a.png", "height": 6, "width": 8}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": i, "segmentation": [[i, 1, i, 3, 5, 1]]}
            for i in (3, 7)
        ],
    }
    (folder / "coco" / "instances.json").write_text(json.dumps(told))
    _write_instances(folder, told)


def _write_instances(folder, told):
    """The same as a folder that `CocoDataset` reads; and a few images as COCO packs them."""
    (folder / "coco_folder").mkdir()
    shutil.copytree(folder / "coco/images", folder / "coco_folder/train")
    for annotation in told["annotations"]:
        annotation["bbox"] = [min(annotation["id"], 5), 1, 2, 2]
    (folder / "coco_folder/instances_train.json").write_text(json.dumps(told))
    coco_folders.write_archives(folder / "coco_archives")


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name, workplace, monkeypatch):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason="an extra is not installed")
    folder, names = workplace
    monkeypatch.chdir(folder)
    told, module = [], importlib.import_module(name)
    for test in doctest.DocTestFinder().find(module):
        test.globs = {**names, **vars(module)}
        doctest.DocTestRunner(optionflags=FLAGS).run(test, out=told.append)
    assert not told, "".join(told)
