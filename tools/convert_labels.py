r"""Makes labels of other kinds what training reads: COCO's instances, and colours.

    python -m tools.convert_labels --instances=instances_train.json,instances_val.json \
        --images=train2017,val2017 --splits=train,val --output=my_data
    python -m tools.convert_labels --labels=colored --images=photos --colors=colors.csv \
        --output=my_data

Makes a new folder, whole or not at all: labels of class ids, 255 for ignored, links to the images
(copies, where the file system has no hard links) and classes.json. Where instances overlap, the
smaller lies on top; regions of a crowd are ignored. --colors is a CSV table with the header
name,r,g,b, a JSON list of such as {"name": "sky", "color": [128, 128, 128]} (rows without a name
are ignored) or a data set that has a colour for each class. Names that differ are paired by
patterns:

    python -m tools.convert_labels --labels=gtFine/train --images=leftImg8bit/train \
        --label_pattern='*_gtFine_color' --image_pattern='*_leftImg8bit' --colors=cityscapes \
        --ignore_unknown --output=my_data

Without --splits, `folder` makes a fifth of the images its split val. Exits with 1 where something
is wrong; nothing is left then.
"""

import shlex

from absl import app, flags

from isa_tf import data
from isa_tf.data.convert_labels import Source, convert_colors, convert_instances, read_colors
from isa_tf.data.listing import FileNames
from tools import command, program, progress

# Flags of its own where it is imported, so that tools do not meet in one set.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()

_IMAGES = flags.DEFINE_list(
    "images", [], "The folders of the images, one a split.", flag_values=FLAGS
)
_INSTANCES = flags.DEFINE_list(
    "instances", [], "COCO's JSON files of instances, one a split.", flag_values=FLAGS
)
_LABELS = flags.DEFINE_list(
    "labels", [], "Or the folders of labels in colours, one a split.", flag_values=FLAGS
)
_SPLITS = flags.DEFINE_list(
    "splits", [], "Names of the splits; none for data without splits.", flag_values=FLAGS
)
_OUTPUT = flags.DEFINE_string("output", None, "The folder to make.", flag_values=FLAGS)
_BACKGROUND = flags.DEFINE_bool(
    "background",
    True,
    "Whether what is no instance is class 0, background; else it is ignored.",
    flag_values=FLAGS,
)
_COLORS = flags.DEFINE_string(
    "colors",
    None,
    "A .csv or .json of names and colours, or a data set with a colour for each class, such as "
    "camvid, cityscapes, lip or voc2012.",
    flag_values=FLAGS,
)
_IGNORED_COLORS = flags.DEFINE_list(
    "ignored_colors", [], "Further colours that are ignored, such as e0e0c0.", flag_values=FLAGS
)
_IGNORE_UNKNOWN = flags.DEFINE_bool(
    "ignore_unknown", False, "Ignore every colour that is not known.", flag_values=FLAGS
)
_IMAGE_PATTERN = flags.DEFINE_string(
    "image_pattern", "*", "Names of the images, the star for what is shared.", flag_values=FLAGS
)
_LABEL_PATTERN = flags.DEFINE_string(
    "label_pattern", "*", "Names of the colour labels, likewise.", flag_values=FLAGS
)
_NUM_THREADS = flags.DEFINE_integer(
    "num_threads", None, "Threads that work at once; by default one a core.", 1, flag_values=FLAGS
)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    if _OUTPUT.value is None:
        raise app.UsageError("Give --output")
    sources = _sources()
    shared = {"num_threads": _NUM_THREADS.value, "progress": progress.Lines()}
    try:
        if _INSTANCES.value:
            made = convert_instances(sources, _OUTPUT.value, _BACKGROUND.value, **shared)
        else:
            names = FileNames(_IMAGE_PATTERN.value, _LABEL_PATTERN.value)
            table = read_colors(_COLORS.value, list(map(_color, _IGNORED_COLORS.value)))
            made = convert_colors(
                sources, _OUTPUT.value, table, names, _IGNORE_UNKNOWN.value, **shared
            )
    except (data.DataError, OSError) as error:
        print(f"FAULT {error}")
        return 1
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    sizes = ", ".join(f"{split or 'images'} {size:,}" for split, size in made.sizes.items())
    print(f"{_OUTPUT.value}: {sizes}; {len(made.class_names)} classes. To look at them all:")
    where = shlex.quote(_OUTPUT.value)
    print(command.spell(f"    python -m tools.check_dataset --data_dir={where}"))
    return 0


def _sources():
    """What the flags name, checked; usage errors for what does not fit."""
    if bool(_INSTANCES.value) == bool(_LABELS.value):
        raise app.UsageError("Give --instances, or --labels and --colors")
    if _LABELS.value and _COLORS.value is None:
        raise app.UsageError("Give --colors, what the colours of --labels stand for")
    kind = _INSTANCES if _INSTANCES.value else _LABELS
    if len(_IMAGES.value) != len(kind.value):
        raise app.UsageError(f"--images and --{kind.name} have one entry a split, in one order")
    splits = _SPLITS.value or [None]
    if len(splits) != len(kind.value):
        raise app.UsageError(f"--splits names each entry of --{kind.name}, such as train,val")
    return list(map(Source, _IMAGES.value, kind.value, splits))


def _color(digits):
    try:
        red, green, blue = bytes.fromhex(digits.removeprefix("#"))
    except ValueError:
        raise app.UsageError(f"--ignored_colors: {digits!r} is no colour as e0e0c0") from None
    return red, green, blue


if __name__ == "__main__":
    program.run(main)
