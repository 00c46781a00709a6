"""Segments images with a model of any kind: .keras, SavedModel folder or .tflite.

    python -m tools.predict --model=model.keras --images=photos --output=predicted
    python -m tools.predict --model=model.tflite --images='photos/*.jpg' --output=predicted

Writes for each image NAME_overlay.png, the classes laid over the image, and NAME_label.png, the
class ids as grey values, which `FolderDataset` reads as a label. An image that cannot be read is
named and left out; the command then exits with 1.
"""

import glob
import time
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

from isa_tf.data import DataError
from isa_tf.data.base import voc_palette
from isa_tf.data.folder import IMAGE_SUFFIXES, read_image
from isa_tf.inference import MAX_CLASSES, load_predictor
from isa_tf.visualize import overlay

# Flags of its own where it is imported, so that tools do not meet in one set.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()

_WARM_UP_SIZE = (64, 64)

_MODEL = flags.DEFINE_string(
    "model", None, "A .keras file, a SavedModel folder or a .tflite file.", flag_values=FLAGS
)
_IMAGES = flags.DEFINE_string(
    "images", None, "An image, a folder of images, or a pattern in quotes.", flag_values=FLAGS
)
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write into.", flag_values=FLAGS)
_OPACITY = flags.DEFINE_float(
    "opacity", 0.5, "Of the colours in the overlay.", 0.0, 1.0, flag_values=FLAGS
)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(
            f"Unexpected arguments: {' '.join(argv[1:])} (a pattern of --images needs quotes)"
        )
    for flag in (_MODEL, _IMAGES, _OUTPUT):
        if flag.value is None:
            raise app.UsageError(f"Give --{flag.name}")
    try:
        paths = find_images(_IMAGES.value)
        predictor = load_predictor(_MODEL.value)
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise app.UsageError(str(error)) from error
    # The first call makes the graph ready: not to be counted among the times below.
    predictor(np.zeros((1, *(predictor.image_size or _WARM_UP_SIZE), 3), np.uint8))

    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    palette = predictor.palette or voc_palette(predictor.num_classes or MAX_CLASSES)
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
        class_id = predictor(image[None])[0][0]
        seconds = time.perf_counter() - start
        # A label of 255 would be left out of the picture as ignored; here it is a class.
        picture = overlay(image, class_id, palette, _OPACITY.value, ignore_label=-1)
        Image.fromarray(picture).save(output / f"{path.stem}_overlay.png")
        Image.fromarray(class_id).save(output / f"{path.stem}_label.png")
        print(f"{path}: {1000 * seconds:.0f} ms; {_classes(class_id, predictor.class_names)}")
    print(f"{len(written)} of {len(paths)} images segmented into {output}")
    return 1 if failed else 0


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
    names = [class_names[i] if class_names else f"class {i}" for i in order]
    shares = (f"{100 * counts[i] / class_id.size:.1f} %" for i in order)
    return ", ".join(f"{name} {share}" for name, share in zip(names, shares, strict=True))


if __name__ == "__main__":
    app.run(main)
