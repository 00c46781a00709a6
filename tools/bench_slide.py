"""Measures what predicting large images takes: memory, time, and how both grow with the image.

    python -m tools.bench_slide
    python -m tools.bench_slide --sizes=1000x1500,2000x3000 --scales=0.5,1.0,1.5 --flip
    python -m tools.bench_slide --mode=whole --sizes=1000x1500,2000x3000

The network is one 8x8 convolution of stride 8, resized to its image, so that what is measured is
what is done with its logits. Each size has a process of its own, since the most memory that one
has had is never taken back: "peak" is that of the process, "beyond" is what the image added to
what a window had taken before. Milliseconds are of processors, which other work on the machine
hardly moves. Below the table, the powers of the number of pixels by which peak and time grow. With
--output the table is written into that folder too, as slide.md, slide.csv and slide.json, of which
`tools.benchmark compare` compares two.
"""

import json
import math
import sys
import time
from itertools import pairwise

import keras
import numpy as np
from absl import app, flags

from isa_tf.inference import Predictor, Protocol
from isa_tf.layers import ResizeLike
from tools import tables, typed
from tools.bench import memory, processes, results

# Flags of its own where it is imported, so that tools do not meet in one set.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()

_SIZES = flags.DEFINE_list(
    "sizes", "1000x1500,2000x3000,4000x6000,4000x12000", "Height x width.", flag_values=FLAGS
)
_CLASSES = flags.DEFINE_integer("classes", 150, "How many.", 1, flag_values=FLAGS)
_MODE = flags.DEFINE_enum(
    "mode", "slide", ["slide", "whole"], "How the model looks at the image.", flag_values=FLAGS
)
_CROP = flags.DEFINE_integer("crop_size", 769, "Side of a window.", 1, flag_values=FLAGS)
_STRIDE = flags.DEFINE_integer("stride", 513, "From one to the next.", 1, flag_values=FLAGS)
_SCALES = flags.DEFINE_list("scales", "1.0", "At which images are seen.", flag_values=FLAGS)
_FLIP = flags.DEFINE_bool("flip", False, "See the mirror image too.", flag_values=FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write into.", flag_values=FLAGS)

COLUMNS = {
    "size": ("size", "{}"),
    "peak_mb": ("peak (MB)", "{}"),
    "beyond_mb": ("beyond (MB)", "{}"),
    "seconds": ("seconds", "{}"),
    "cpu_seconds": ("of processors", "{}"),
}


def make_model(classes):
    """A cheap network from images to logits that are resized to them."""
    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 64)(image)
    x = keras.layers.Conv2D(classes, 8, strides=8, padding="same")(x)
    return keras.Model(image, ResizeLike()([x, image]))


def measure(height, width, classes, protocol):
    """What predicting one image of noise takes this process: a dict of "seconds", ...

    Returns:
        dict: "peak_mb", the most memory that the process has had; "beyond_mb", how much of it came
        with this image; "seconds" and "cpu_seconds".
    """
    predictor = Predictor.from_model(make_model(classes), protocol)
    images = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    side = max(protocol.crop_size or (64, 64))
    predictor(images[:, :side, :side])
    before = memory.most()
    start = time.perf_counter(), time.process_time()
    class_id, _ = predictor(images)
    seconds = time.perf_counter() - start[0], time.process_time() - start[1]
    if class_id.shape != images.shape[:3] or len(np.unique(class_id)) < min(classes, 2):
        raise ValueError(f"class ids {class_id.shape} of {len(np.unique(class_id))} kinds")
    peak = memory.most()
    return {
        "peak_mb": round(peak / 1e6),
        "beyond_mb": round((peak - before) / 1e6),
        "seconds": round(seconds[0], 2),
        "cpu_seconds": round(seconds[1], 2),
    }


def measure_apart(height, width, classes, protocol):
    """`measure` in a process of its own."""
    case = [height, width, classes, protocol.to_dict()]
    return processes.apart("tools.bench_slide", case, {"CUDA_VISIBLE_DEVICES": "-1"})


def growth(rows):
    """By which powers of the number of pixels peak and time grow from a row to the next: lines.

    None of two images of as many pixels, or where one took no time that can be told.
    """
    lines, names = [], ("peak_mb", "cpu_seconds")
    for row, larger in pairwise(rows):
        more = math.log(larger["pixels"] / row["pixels"])
        if more and all(each[name] for each in (row, larger) for name in names):
            powers = [math.log(larger[name] / row[name]) / more for name in names]
            text = "* {:.3g} to {:.3g} pixels: memory^{:.2f}, time^{:.2f}"
            lines.append(text.format(row["pixels"], larger["pixels"], *powers))
    return lines


def main(argv):
    if argv[1:2] == ["measure"]:  # what `measure_apart` starts
        height, width, classes, protocol = json.loads(argv[2])
        processes.tell(measure(height, width, classes, Protocol.from_dict(protocol)))
        return 0
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    windows = {"crop_size": _CROP.value, "stride": _STRIDE.value} if _MODE.value == "slide" else {}
    scales = tuple(map(float, _SCALES.value))
    protocol = Protocol(_MODE.value, scales=scales, flip=_FLIP.value, **windows)
    try:
        sizes = {text: typed.parse_size(text) for text in _SIZES.value}
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    rows = []
    for text, size in sizes.items():
        print(text, file=sys.stderr, flush=True)
        found = measure_apart(*size, _CLASSES.value, protocol)
        rows.append({"size": text, "pixels": math.prod(size), **found})
    lines = [tables.of_dicts(COLUMNS, rows), "", *growth(rows)]
    costs = {key: label for key, (label, _) in COLUMNS.items() if key != "size"}
    settings = {"classes": _CLASSES.value, **protocol.to_dict()}
    result = results.of_now("tools.bench_slide", "slide", rows, ["size"], costs, settings)
    text = "\n".join([*lines, "", result.footer()])
    if _OUTPUT.value is None:
        print(text)
    else:
        written = results.write(result, _OUTPUT.value, text, COLUMNS)
        print(f"written: {_OUTPUT.value}/slide{', '.join(written)}")
    return 0


if __name__ == "__main__":
    app.run(main)
