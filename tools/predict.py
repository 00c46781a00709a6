"""Segments images with a model of any format: .keras, SavedModel folder, .tflite, ...

    python -m tools.predict --model=model.keras --images=photos --output=predicted
    python -m tools.predict --model=model.tflite --images='photos/*.jpg' --output=predicted

Writes for each image NAME_overlay.png, the classes laid over the image with a legend of those
found, and NAME_label.png, the class ids as grey values, which `FolderDataset` reads as a label (16
bits deep where the model has more than 256 classes). Class 0, in many data sets what is none of
the others, stays as it is in the photo; --clear names others, and --clear= none. An image that
cannot be read is named and left out; the command then exits with 1.
"""

import glob
import time
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

from isa_tf import load_predictor
from isa_tf.data import DataError
from isa_tf.data.base import voc_palette
from isa_tf.data.folder import IMAGE_SUFFIXES
from isa_tf.data.pictures import read_image
from isa_tf.names import unknown
from isa_tf.visualize import overlay, with_legend
from tools import plugins

# Flags of its own where it is imported, so that tools do not meet in one set.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()

_WARM_UP_SIZE = (64, 64)
_MOST_CLASSES = 2**16  # that a PNG holds
_NO_LABEL = -1  # every id is a class here, 255 too

_MODEL = flags.DEFINE_string(
    "model", None, "A .keras file, a SavedModel folder, a .tflite file, ...", flag_values=FLAGS
)
_IMAGES = flags.DEFINE_string(
    "images", None, "An image, a folder of images, or a pattern in quotes.", flag_values=FLAGS
)
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write into.", flag_values=FLAGS)
_OPACITY = flags.DEFINE_float(
    "opacity", 0.5, "Of the colours in the overlay.", 0.0, 1.0, flag_values=FLAGS
)
_CLEAR = flags.DEFINE_list(
    "clear", ["0"], "Classes, ids or names, to leave out of the overlay.", flag_values=FLAGS
)
_LEGEND = flags.DEFINE_bool(
    "legend", True, "Whether the overlay names the classes found.", flag_values=FLAGS
)
_PLUGINS = plugins.define(FLAGS)


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
        clear = _class_ids(_CLEAR.value, predictor)
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise app.UsageError(str(error)) from error
    # The first call makes the graph ready: not to be counted among the times below.
    predictor(np.zeros((*(predictor.image_size or _WARM_UP_SIZE), 3), np.uint8))

    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
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
        class_id = predictor(image)[0]
        seconds = time.perf_counter() - start
        picture = draw(image, class_id, predictor, _OPACITY.value, clear, _LEGEND.value)
        Image.fromarray(picture).save(output / f"{path.stem}_overlay.png")
        depth = np.uint8 if class_id.dtype == np.uint8 else np.uint16
        Image.fromarray(class_id.astype(depth)).save(output / f"{path.stem}_label.png")
        print(f"{path}: {1000 * seconds:.0f} ms; {_classes(class_id, predictor.class_names)}")
    print(f"{len(written)} of {len(paths)} images segmented into {output}")
    return 1 if failed else 0


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


def _name(class_id, class_names):
    return class_names[class_id] if class_names else f"class {class_id}"


if __name__ == "__main__":
    app.run(main)
