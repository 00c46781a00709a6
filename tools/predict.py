"""Predicts images with a model of any format: .keras, SavedModel folder, .tflite, .onnx, ...

    python -m tools.predict --model=model.keras --images=photos --output=predicted
    python -m tools.predict --model=model.tflite --images='photos/*.jpg' --output=predicted

What is written depends on what the model is for.

A segmentation model: for each image NAME_overlay.png, the classes laid over the image with a legend
of those found, and NAME_label.png, the class ids as grey values, which `FolderDataset` reads as a
label (16 bits deep where the model has more than 256 classes). Class 0, in many data sets what is
none of the others, stays as it is in the photo; --clear names others, and --clear= none.

A model that finds instances: for each image NAME_overlay.png, masks, boxes, names and scores over
the image (enlarged where it is too small for letters), and for all of them one detections.json, a
list in COCO's results format: image_id, category_id, bbox, score, segmentation (run lengths), and
file_name. The image_id is the number that a file is named by ("000000000139.jpg" is image 139), of
other names the file's name; the category_id is the data set's own where the model knows it, else
the class id + 1. --score_threshold leaves out what the model is less sure of.

An image that cannot be read is named and left out; the command then exits with 1.
"""

import glob
import json
import time
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

from isa_tf import files, load_predictor
from isa_tf.data import DataError
from isa_tf.data.base import voc_palette
from isa_tf.data.folder import IMAGE_SUFFIXES
from isa_tf.data.pictures import read_image
from isa_tf.names import Registry, unknown
from isa_tf.visualize import draw_instances, overlay, with_legend
from tools import plugins

# Flags of its own where it is imported, so that tools do not meet in one set.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()

DETECTIONS = "detections.json"
_WARM_UP_SIZE = (64, 64)
_MOST_CLASSES = 2**16  # that a PNG holds
_NO_LABEL = -1  # every id is a class here, 255 too

_MODEL = flags.DEFINE_string(
    "model",
    None,
    "A .keras, .tflite or .onnx file, a folder of SavedModel or OpenVINO, ...",
    flag_values=FLAGS,
)
_IMAGES = flags.DEFINE_string(
    "images", None, "An image, a folder of images, or a pattern in quotes.", flag_values=FLAGS
)
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write into.", flag_values=FLAGS)
_OPACITY = flags.DEFINE_float(
    "opacity",
    None,
    "Of the colours in the overlay; by default 0.5 of classes, 0.4 of instances.",
    0.0,
    1.0,
    flag_values=FLAGS,
)
_CLEAR = flags.DEFINE_list(
    "clear",
    ["0"],
    "Classes, ids or names, to leave out of the overlay of a segmentation model.",
    flag_values=FLAGS,
)
_LEGEND = flags.DEFINE_bool(
    "legend",
    True,
    "Whether the overlay names the classes found, or the instances.",
    flag_values=FLAGS,
)
_SCORE_THRESHOLD = flags.DEFINE_float(
    "score_threshold",
    None,
    "The least score of instances to draw and to write; by default, 0.5 of those drawn, and all "
    "are written.",
    0.0,
    1.0,
    flag_values=FLAGS,
)
_PLUGINS = plugins.define(FLAGS)

# What writes the results of a task's predictor.
outputs = Registry("task")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(
            f"Unexpected arguments: {' '.join(argv[1:])} (a pattern of --images needs quotes)"
        )
    for flag in (_MODEL, _IMAGES, _OUTPUT):
        if flag.value is None:
            raise app.UsageError(f"Give --{flag.name}")
    plugins.load(_PLUGINS)
    try:
        paths = find_images(_IMAGES.value)
        predictor = load_predictor(_MODEL.value)
        writer = outputs[predictor.task](predictor, Path(_OUTPUT.value))
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise app.UsageError(str(error)) from error
    # The first call makes the graph ready: not to be counted among the times below.
    predictor(np.zeros((*(predictor.image_size or _WARM_UP_SIZE), 3), np.uint8))

    writer.folder.mkdir(parents=True, exist_ok=True)
    written, failed = {}, 0
    for path in paths:
        try:
            if path.stem in written:
                raise DataError(path, f"the same name as {written[path.stem]}")
            image = read_image(path)
        except DataError as error:
            print(f"FAULT {error}")
            failed += 1
            continue
        written[path.stem] = path
        start = time.perf_counter()
        result = predictor(image)
        seconds = time.perf_counter() - start
        print(f"{path}: {1000 * seconds:.0f} ms; {writer.write(path, image, result)}")
    writer.finish()
    print(f"{len(written)} of {len(paths)} images {writer.did} into {writer.folder}")
    return 1 if failed else 0


@outputs.register("segmentation")
class Labels:
    """Writes class ids: an overlay and a label an image."""

    did = "segmented"

    def __init__(self, predictor, folder):
        self.predictor, self.folder = predictor, folder
        if _SCORE_THRESHOLD.value is not None:
            raise ValueError("--score_threshold is for models that find instances")
        self.clear = _class_ids(_CLEAR.value, predictor)
        self.opacity = 0.5 if _OPACITY.value is None else _OPACITY.value

    def write(self, path, image, result):
        """Writes what was found in an image, and tells it in words."""
        class_id = result[0]
        picture = draw(image, class_id, self.predictor, self.opacity, self.clear, _LEGEND.value)
        Image.fromarray(picture).save(self.folder / f"{path.stem}_overlay.png")
        depth = np.uint8 if class_id.dtype == np.uint8 else np.uint16
        Image.fromarray(class_id.astype(depth)).save(self.folder / f"{path.stem}_label.png")
        return _classes(class_id, self.predictor.class_names)

    def finish(self):
        """Writes what is of all images."""


@outputs.register("instance_segmentation")
class Detections:
    """Writes instances: an overlay an image, and one file of all of them."""

    did = "searched"

    def __init__(self, predictor, folder):
        self.predictor, self.folder, self.results = predictor, folder, []
        self.opacity = 0.4 if _OPACITY.value is None else _OPACITY.value
        least = _SCORE_THRESHOLD.value
        self.drawn, self.kept = (0.5, 0.0) if least is None else (least, least)

    def write(self, path, image, result):
        """Writes the picture of an image, keeps what was found, and tells it in words."""
        kept, drawn = result.above(self.kept), result.above(self.drawn)
        names, palette = self.predictor.class_names, self.predictor.palette
        picture = draw_instances(image, drawn, names, palette, self.opacity, labels=_LEGEND.value)
        Image.fromarray(picture).save(self.folder / f"{path.stem}_overlay.png")
        image_id = int(path.stem) if path.stem.isdecimal() else path.name
        for row in kept.to_coco(image_id, self.predictor.category_ids):
            self.results.append({**row, "file_name": path.name})
        return _counts(drawn, names)

    def finish(self):
        """Writes what is of all images."""
        with files.replacing(self.folder / DETECTIONS) as new:
            new.write_text(json.dumps(self.results), encoding="utf-8")


def draw(image, class_id, predictor, opacity=0.5, clear=(0,), legend=True):
    """The classes (H, W) found in an image (H, W, 3), laid over it, and their names beneath."""
    found = np.unique(class_id).tolist()
    palette = predictor.palette or voc_palette(max(predictor.num_classes or 0, found[-1] + 1))
    picture = overlay(image, class_id, palette, opacity, _NO_LABEL, clear)
    if not legend:
        return picture
    names = [_name(i, predictor.class_names) for i in found]
    return with_legend(picture, names, [None if i in clear else palette[i] for i in found])


def _class_ids(given, predictor):
    """The ids of classes given as ids or names; ValueError for what is no class, or too many."""
    if (predictor.num_classes or 0) > _MOST_CLASSES:
        raise ValueError(
            f"{predictor.num_classes} classes are more than the {_MOST_CLASSES} of a label PNG"
        )
    names = list(predictor.class_names or ())
    count = predictor.num_classes or _MOST_CLASSES
    for name in given:
        if name not in names and not (name.isdecimal() and int(name) < count):
            raise ValueError(unknown("class in --clear:", name, names or [*map(str, range(count))]))
    return tuple(names.index(name) if name in names else int(name) for name in given)


def find_images(images):
    """The images that a path or pattern names, sorted; ValueError for none."""
    path = Path(images)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES]
        wanted = f"ends in {', '.join(IMAGE_SUFFIXES)}"
    else:
        found = [Path(p) for p in glob.glob(images, recursive=True) if Path(p).is_file()]
        wanted = "is there, or matches"
    if not found:
        raise ValueError(f"--images={images}: no file {wanted}")
    return sorted(found)


def _classes(class_id, class_names):
    """The classes of a label and their shares of it, largest first."""
    counts = np.bincount(class_id.ravel(), minlength=1)
    order = [i for i in np.argsort(-counts, kind="stable") if counts[i]]
    names = [_name(i, class_names) for i in order]
    shares = (f"{100 * counts[i] / class_id.size:.1f} %" for i in order)
    return ", ".join(f"{name} {share}" for name, share in zip(names, shares, strict=True))


def _counts(instances, class_names):
    """The classes of instances and how many there are of each, most first."""
    counts = np.bincount(instances.classes, minlength=1)
    order = [i for i in np.argsort(-counts, kind="stable") if counts[i]]
    return ", ".join(f"{counts[i]} {_name(i, class_names)}" for i in order) or "nothing"


def _name(class_id, class_names):
    return class_names[class_id] if class_names else f"class {class_id}"


if __name__ == "__main__":
    app.run(main)
