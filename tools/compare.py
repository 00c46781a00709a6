"""Draws photos with their truth and the predictions of two models, and where these differ.

    python -m tools.compare --models=none.keras,isa.keras --names=none,isa \\
        --images='photos/*.jpg' --labels=labels --output=sheet.png --examples=6 --rule=gain

Every image is scored, and printed; the scores are written as CSV beside the picture. Which of
them the picture shows is decided by the rule, which it states:

* gain: images are ranked by the second model's score minus the first's, and shown at evenly
  spaced ranks from the largest gain to the smallest (which may be a loss), both included; one
  example is the one with the largest gain.
* disagreement: those where the two predict different classes in the largest share of the
  labelled pixels.
* random: drawn by `--seed`, in the order of the names.

The label of photos/NAME.jpg is LABELS/NAME.png, class ids with 255 for ignored pixels. A pair that
cannot be read is named and left out; the command then exits with 1.
"""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import app, flags

from isa_tf import files, load_predictor, metrics
from isa_tf.data import DataError
from isa_tf.data.base import IGNORE_LABEL, voc_palette
from isa_tf.data.pictures import read_image, read_label
from isa_tf.inference import confusion_matrix
from isa_tf.visualize import DIFFERENCE_PALETTE, difference, save_picture, sheet
from tools import plugins, program
from tools.predict import find_images

# Flags of its own where it is imported, so that tools do not meet in one set.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()

_SCORES = {"pixel_accuracy": "pixel accuracy", "miou": "mIoU"}

_MODELS = flags.DEFINE_list(
    "models",
    None,
    "Two models, the second being the one with more to show: .keras files, SavedModel folders, "
    ".tflite files, ...",
    flag_values=FLAGS,
)
_NAMES = flags.DEFINE_list("names", ["A", "B"], "What to call the two models.", flag_values=FLAGS)
_IMAGES = flags.DEFINE_string(
    "images", None, "A folder of images, or a pattern in quotes.", flag_values=FLAGS
)
_LABELS = flags.DEFINE_string("labels", None, "The folder of the label PNGs.", flag_values=FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "The .png file to write.", flag_values=FLAGS)
_EXAMPLES = flags.DEFINE_integer("examples", 6, "How many to show.", 1, flag_values=FLAGS)
_RULE = flags.DEFINE_enum(
    "rule",
    "gain",
    ["gain", "disagreement", "random"],
    "Which to show: evenly spaced ranks of the gain of the second model over the first, from the "
    "largest to the smallest; the largest shares of pixels predicted differently; drawn by --seed.",
    flag_values=FLAGS,
)
_SCORE = flags.DEFINE_enum(
    "score",
    "pixel_accuracy",
    list(_SCORES),
    "The score of an image, for the gain.",
    flag_values=FLAGS,
)
_SEED = flags.DEFINE_integer("seed", 0, "What the rule random draws by.", flag_values=FLAGS)
_PLUGINS = plugins.define(FLAGS)


class Result(NamedTuple):
    """One image: its files, the scores of both models, the share predicted differently."""

    image: Path
    label: Path
    scores: tuple
    disagreement: float


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(
            f"Unexpected arguments: {' '.join(argv[1:])} (a pattern of --images needs quotes)"
        )
    for flag in (_MODELS, _IMAGES, _LABELS, _OUTPUT):
        if flag.value is None:
            raise app.UsageError(f"Give --{flag.name}")
    for flag in (_MODELS, _NAMES):
        if len(flag.value) != 2:
            given = ",".join(flag.value)
            raise app.UsageError(f"--{flag.name} takes two, A,B, got {len(flag.value)}: {given!r}")
    plugins.load(_PLUGINS)
    output = Path(_OUTPUT.value)
    if output.suffix.lower() != ".png":
        raise app.UsageError(f"--output={output}: a .png file is written")
    if not Path(_LABELS.value).is_dir():
        raise app.UsageError(f"--labels={_LABELS.value}: no such folder")
    try:
        paths = find_images(_IMAGES.value)
        if output.resolve() in {path.resolve() for path in [*paths, *map(_label_path, paths)]}:
            raise ValueError(f"--output={output} is one of the images or labels; choose another")
        predictors = [load_predictor(path) for path in _MODELS.value]
        for path, predictor in zip(_MODELS.value, predictors, strict=True):
            if predictor.task != "segmentation":
                raise ValueError(f"{path}: a model of {predictor.task}, which has no class ids")
        num_classes = _num_classes(predictors)
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise app.UsageError(str(error)) from error

    results, totals = [], np.zeros((2, num_classes, num_classes), np.int64)
    for path in paths:
        try:
            result, matrices = _compare(path, predictors, num_classes)
        except DataError as error:
            print(f"FAULT {error}")
            continue
        results.append(result)
        totals += matrices
        print(f"{path}: {_describe(result)}")
    if not results:
        print(f"none of {len(paths)} images could be compared")
        return 1
    for name, matrix in zip(_NAMES.value, totals, strict=True):
        scores = metrics.scores(matrix)
        print(
            f"{name}, all {len(results)} images as one: "
            + ", ".join(f"{text} {_percent(scores[key])}" for key, text in _SCORES.items())
        )

    shown = choose(results, _RULE.value, _EXAMPLES.value, _SCORE.value, _SEED.value)
    save_picture(output, _draw(results, shown, predictors, num_classes))
    table = output.with_suffix(".csv")
    _write(table, results, shown)
    print(f"{len(shown)} of {len(results)} images drawn in {output}, scores in {table}")
    return 0 if len(results) == len(paths) else 1


def choose(results, rule, count, score="pixel_accuracy", seed=0):
    """The positions of the results to show, in the order to show them; see the module."""
    count = min(count, len(results))
    if rule == "random":
        drawn = np.random.default_rng(seed).choice(len(results), count, replace=False)
        return sorted(map(int, drawn))
    if rule == "gain":
        values = [gain(result, score) for result in results]
    else:
        values = [result.disagreement for result in results]
    # Stable: among equals the order of the names.
    ranked = sorted(range(len(results)), key=lambda i: -values[i])
    if rule == "gain":
        ranked = [ranked[i] for i in np.linspace(0, len(ranked) - 1, count).round().astype(int)]
    return ranked[:count]


def gain(result, score):
    """By how much the second model's score of an image exceeds the first's."""
    first, second = result.scores
    return second[score] - first[score]


def _num_classes(predictors):
    """The number of classes of both; ValueError where they differ or none tells it."""
    known = {predictor.num_classes for predictor in predictors} - {None}
    if len(known) != 1:
        counts = " and ".join(str(predictor.num_classes) for predictor in predictors)
        raise ValueError(f"--models need one number of classes, got {counts}")
    return known.pop()


def _label_path(path):
    return Path(_LABELS.value) / f"{path.stem}.png"


def _read(path, num_classes):
    """Image and label of a photo, the label's path. Raises `DataError`."""
    label_path = _label_path(path)
    image, label = read_image(path), read_label(label_path, num_classes)
    if image.shape[:2] != label.shape:
        sizes = (f"{shape[1]}x{shape[0]}" for shape in (label.shape, image.shape))
        raise DataError(
            label_path, "the label is {} and its image {} (width x height)".format(*sizes)
        )
    if (label == IGNORE_LABEL).all():
        raise DataError(label_path, "no pixel is labelled")
    return image, label, label_path


def _compare(path, predictors, num_classes):
    """The result of one photo and both confusion matrices."""
    image, label, label_path = _read(path, num_classes)
    guesses = [predictor(image)[0] for predictor in predictors]
    matrices = [
        confusion_matrix(lambda _, guess=guess: (guess,), [(image, label)], num_classes)
        for guess in guesses
    ]
    labelled = label != IGNORE_LABEL
    differs = float((guesses[0] != guesses[1])[labelled].mean())
    return Result(path, label_path, tuple(map(metrics.scores, matrices)), differs), matrices


def _draw(results, shown, predictors, num_classes):
    """The sheet of the results at the positions `shown`."""
    names, first, count = _NAMES.value, num_classes, len(results)
    rows, captions = [], []
    for i in shown:
        image, label, _ = _read(results[i].image, num_classes)
        guesses = [predictor(image)[0].astype(int) for predictor in predictors]
        label = np.where(label == IGNORE_LABEL, -1, label.astype(int))
        where = difference(label, *guesses, ignore_label=-1)
        # Painted as classes of their own, behind the models'.
        rows.append((image, label, *guesses, np.where(where < 0, -1, where + first)))
        captions.append(f"{results[i].image.name}: {_describe(results[i])}")
    score = _SCORES[_SCORE.value]
    rule = {
        "gain": f"evenly spaced ranks of {names[1]}'s gain over {names[0]} in {score}, "
        "from the largest to the smallest",
        "disagreement": "those where the largest shares of pixels are predicted differently",
        "random": f"drawn at random (seed {_SEED.value})",
    }[_RULE.value]
    class_names = [p.class_names for p in predictors if p.class_names is not None]
    palettes = [p.palette for p in predictors if p.palette is not None]
    return sheet(
        rows,
        ("photo", "truth", *names, "where they differ"),
        [*(palettes or [voc_palette(num_classes)])[-1], *DIFFERENCE_PALETTE],
        [
            *(class_names or [[f"class {i}" for i in range(num_classes)]])[-1],
            "both right",
            f"only {names[0]} right",
            f"only {names[1]} right",
            "both wrong",
        ],
        captions,
        heading=f"{len(shown)} of {count} images: {rule}",
        ignore_label=-1,
    )


def _describe(result):
    """Both models' scores of an image and how much they disagree, in words."""
    parts = []
    for key, text in _SCORES.items():
        values = (
            f"{name} {_percent(scores[key])}"
            for name, scores in zip(_NAMES.value, result.scores, strict=True)
        )
        parts.append(f"{text} {', '.join(values)} ({100 * gain(result, key):+.1f})")
    return "; ".join(parts) + f"; {_percent(result.disagreement)} predicted differently"


def _percent(share):
    return f"{100 * share:.1f} %"


def _write(path, results, shown):
    """The scores of all images, and in which row of the picture an image is, from 1."""
    columns = [f"{name}_{key}" for key in _SCORES for name in _NAMES.value]
    with files.replacing(path) as new, open(new, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *columns, "disagreement", "row"])
        for i, result in enumerate(results):
            scores = [each[key] for key in _SCORES for each in result.scores]
            row = shown.index(i) + 1 if i in shown else ""
            writer.writerow([result.image, *scores, result.disagreement, row])


if __name__ == "__main__":
    program.run(main)
