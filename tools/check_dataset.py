"""Checks a dataset: decodes every file, counts the classes, names every fault.

    python -m tools.check_dataset --data_dir=my_images --num_classes=11
    python -m tools.check_dataset --dataset=camvid --data_dir=camvid
    python -m tools.check_dataset --dataset=coco --data_dir=my_coco

Exits with 1 where something is wrong.
"""

from absl import app, flags, logging

from isa_tf import data
from isa_tf.data.check import InstancesReport, check_dataset
from tools import plugins, program, tables

# Flags of its own where it is imported, so that tools do not meet in one set.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()

_DATASET = flags.DEFINE_string(
    "dataset", "folder", f"Which dataset: {', '.join(data.list_names())}.", flag_values=FLAGS
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "The data set's folder, or a CSV file of pairs.", flag_values=FLAGS
)
_NUM_CLASSES = flags.DEFINE_integer(
    "num_classes",
    None,
    "Number of classes, where the data have no classes.json or classes.txt.",
    flag_values=FLAGS,
)
_PLUGINS = plugins.define(FLAGS)


def _table(class_names, report):
    """The classes of a split, one a line."""
    if isinstance(report, InstancesReport):
        return _table_of_instances(class_names, report)
    total = max(int(report.pixels.sum()) + report.ignored, 1)
    rows = [("id", "class", "pixels %", "images")]
    for i, name in enumerate(class_names):
        share = f"{100 * report.pixels[i] / total:.3f}"
        rows.append((str(i), name, share, str(report.images[i])))
    rows.append(("255", "(ignored)", f"{100 * report.ignored / total:.3f}", ""))
    return _aligned(rows)


def _table_of_instances(class_names, report):
    rows = [("id", "class", "instances", "crowds", "images")]
    for i, name in enumerate(class_names):
        counts = report.instances[i], report.crowds[i], report.images[i]
        rows.append((str(i), name, *map(str, counts)))
    totals = map(str, (report.instances.sum(), report.crowds.sum(), report.examples - report.empty))
    rows.append(("", "(all)", *totals))
    small, medium, large = report.areas
    lines = [
        _aligned(rows),
        f"  {small} are smaller than 32x32 pixels, {medium} smaller than 96x96, {large} larger; "
        f"{report.no_area} have no area",
        f"  {report.empty} images have none, and one has {report.most}",
    ]
    return "\n".join(lines)


def _aligned(rows):
    widths = (3, 0, 9, *(6 for _ in rows[0][3:]))
    return tables.aligned(rows, left=[1], widths=widths, indent="  ")


def _sizes(report):
    shown = [f"{w}x{h} ({n})" for (h, w), n in report.sizes.most_common(4)]
    more = len(report.sizes) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    plugins.load(_PLUGINS)
    kwargs = {} if _NUM_CLASSES.value is None else {"num_classes": _NUM_CLASSES.value}
    if _DATA_DIR.value is not None:
        kwargs["on_error"] = "skip"
    logging.set_verbosity(logging.ERROR)  # what is skipped is printed below
    try:
        dataset = data.create(_DATASET.value, _DATA_DIR.value, **kwargs)
    except data.DataError as error:
        print(f"FAULT {error}")
        return 1
    except (TypeError, ValueError) as error:  # the former for --num_classes where it is known
        raise app.UsageError(f"{error}\nSee --data_dir, --num_classes, --dataset.") from error
    reports, faults = check_dataset(dataset)
    for split, report in reports.items():
        print(
            f"{dataset.name}/{split}: {report.examples} examples, width x height "
            f"{_sizes(report)}\n{_table(dataset.class_names, report)}\n"
        )
    for fault in faults:
        print(f"FAULT {fault}")
    print(f"{len(faults)} faults" if faults else "No faults.")
    return 1 if faults else 0


if __name__ == "__main__":
    program.run(main)
