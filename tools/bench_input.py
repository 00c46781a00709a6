"""Times the training pipeline beside a bare loop that only decodes.

    python -m tools.bench_input
    python -m tools.bench_input --formats=jpeg --rounds=9 --python

It makes pairs of 2048x1024 files in a folder that it takes away again: photographs of smooth
colours and noise, labels of large regions as PNG. Ours is `data.train_pipeline` with its
defaults, on the folder and on what `data.prepare` makes of it; the bare loop is a `tf.data` map
of decode_image and decode_png with as many parallel calls. They take turns, so that what else
the machine does meets all alike; the figures are medians of the turns, the ratios those of each
turn's two. Where others use the machine, the milliseconds of processors that an image costs say
more than the images a second. With --output the figures are written into that folder too, as
input.md, input.csv and input.json, of which `tools.benchmark compare` compares two.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import app, flags
from PIL import Image

from isa_tf import data
from tools import tables
from tools.bench import results, timing

# Flags of its own where it is imported, so that tools do not meet in one set.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()

_FORMATS = flags.DEFINE_list("formats", "png,jpeg", "Formats of the files.", flag_values=FLAGS)
_FILES = flags.DEFINE_integer("files", 8, "How many pairs there are.", 1, flag_values=FLAGS)
_HEIGHT = flags.DEFINE_integer(
    "height", 1024, "Height of the files, which are twice as wide.", 64, flag_values=FLAGS
)
_CROP = flags.DEFINE_integer("crop", 512, "Side of the crops.", 1, flag_values=FLAGS)
_BATCH = flags.DEFINE_integer("batch_size", 4, "Rows of a batch.", 1, flag_values=FLAGS)
_BATCHES = flags.DEFINE_integer("batches", 12, "Batches of a turn.", 2, flag_values=FLAGS)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Turns of each.", 1, flag_values=FLAGS)
_PYTHON = flags.DEFINE_bool(
    "python", False, "Time reading by Pillow, in Python, as well.", flag_values=FLAGS
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write into.", flag_values=FLAGS)

COLUMNS = {
    "format": ("files", "{}"),
    "name": ("pipeline", "{}"),
    "images_s": ("images/s", "{:.1f}"),
    "ratio": ("of bare", "{:.2f}"),
    "image_ms": ("an image (ms)", "{:.1f}"),
    "busy_ms": ("processors (ms)", "{:.1f}"),
    "busy_ratio": ("of bare", "{:.2f}"),
}
# Of a stored result.
_COSTS = {"image_ms": "an image (ms)", "busy_ms": "processors (ms)"}


class _InPython(data.FolderDataset):
    """The same files, read by `read` alone."""

    def graph_reader(self, split):
        return None


def _smooth(rng, size, cell):
    coarse = rng.integers(0, 256, (size[0] // cell + 2, size[1] // cell + 2, 3), np.uint8)
    picture = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(picture, np.float32)


def write_pairs(folder, image_format, count, size):
    """Writes `count` pairs of `size` (height, width) below `folder`, as "train"."""
    rng = np.random.default_rng(0)
    images, labels = folder / "train/images", folder / "train/labels"
    for made in (images, labels):
        made.mkdir(parents=True)
    for i in range(count):
        image = 0.6 * _smooth(rng, size, 64) + 0.4 * _smooth(rng, size, 16)
        image += rng.normal(0, 4, (*size, 1))
        picture = Image.fromarray(image.clip(0, 255).astype(np.uint8))
        if image_format == "jpeg":
            picture.save(images / f"{i}.jpg", quality=90)
        else:
            picture.save(images / f"{i}.png")
        label = (_smooth(rng, size, 64)[..., 0] / 14).astype(np.uint8)
        Image.fromarray(label).save(labels / f"{i}.png")


def _bare(dataset):
    """What nothing that decodes can be quicker than."""
    images = dataset.examples("train")
    labels = [str(Path(p).parents[1] / "labels" / f"{Path(p).stem}.png") for p in images]

    def decode(image, label):
        return (
            tf.io.decode_image(tf.io.read_file(image), expand_animations=False),
            tf.io.decode_png(tf.io.read_file(label)),
        )

    files = tf.data.Dataset.from_tensor_slices((list(images), labels)).repeat()
    decoded = files.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return decoded.prefetch(tf.data.AUTOTUNE)


def _turn(pipeline, elements, images_each):
    """Images a second, and of processor seconds, behind as many as are then counted."""
    batches = iter(pipeline)
    for _ in range(elements):
        next(batches)
    start, busy = time.perf_counter(), time.process_time()
    for _ in range(elements):
        next(batches)
    images = elements * images_each
    return images / (time.perf_counter() - start), images / (time.process_time() - busy)


def compare(folder, python=False):
    """{name: a `_turn` of every round} of "bare", "ours", "prepared" and "python" if wanted."""
    batch, batches = _BATCH.value, _BATCHES.value
    dataset = data.FolderDataset(folder, num_classes=19)
    (Path(folder) / "classes.txt").write_text("".join(f"class {i}\n" for i in range(19)))
    with tempfile.TemporaryDirectory() as prepared:
        data.prepare("folder", folder, prepared)
        return _compare(folder, dataset, data.create("folder", prepared), batch, batches, python)


def _compare(folder, dataset, prepared, batch, batches, python):
    crop = (batch, _CROP.value)
    turns = {
        "bare": (_bare(dataset), batch * batches, 1),
        "ours": (data.train_pipeline(dataset, "train", *crop), batches, batch),
        "prepared": (data.train_pipeline(prepared, "train", *crop), batches, batch),
    }
    if python:
        slow = _InPython(folder, num_classes=19)
        turns["python"] = (data.train_pipeline(slow, "train", *crop), batches, batch)
    turns_of = {name: [] for name in turns}
    for name in timing.in_turn(turns, _ROUNDS.value):
        turns_of[name].append(_turn(*turns[name]))
    return turns_of


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    unknown = set(_FORMATS.value) - {"png", "jpeg"}
    if unknown:
        raise app.UsageError(f"--formats are png and jpeg, not {', '.join(sorted(unknown))}")
    size, rows = (_HEIGHT.value, 2 * _HEIGHT.value), []
    for image_format in _FORMATS.value:
        with tempfile.TemporaryDirectory() as folder:
            write_pairs(Path(folder), image_format, _FILES.value, size)
            turns_of = compare(folder, _PYTHON.value)
        rows += [_row(image_format, name, turns_of) for name in turns_of]
    settings = {"files": f"{size[1]}x{size[0]}", "crop": _CROP.value, "batch": _BATCH.value}
    result = results.of_now(
        "tools.bench_input", "input", rows, ["format", "name"], _COSTS, settings
    )
    heading = f"{size[1]}x{size[0]} files, crops of {_CROP.value}:"
    text = "\n".join([heading, "", tables.of_dicts(COLUMNS, rows), "", result.footer()])
    if _OUTPUT.value is None:
        print(text)
    else:
        written = results.write(result, _OUTPUT.value, text, COLUMNS)
        print(f"written: {_OUTPUT.value}/input{', '.join(written)}")
    return 0


def _row(image_format, name, turns_of):
    """What the turns of a pipeline, and of the bare loop in the same rounds, come to."""
    own, bare = (list(zip(*turns_of[each], strict=True)) for each in (name, "bare"))
    rate, per_second = map(statistics.median, own)
    wall, busy = (statistics.median(timing.ratios(*pair)) for pair in zip(own, bare, strict=True))
    return {
        "format": image_format,
        "name": name,
        "images_s": rate,
        "ratio": wall,
        "image_ms": 1000 / rate,
        "busy_ms": 1000 / per_second,
        "busy_ratio": busy,
    }


if __name__ == "__main__":
    app.run(main)
