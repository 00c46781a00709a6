"""Prepares a published data set once, from its publisher's archives: shards that training reads.

    python -m tools.prepare_dataset --list
    python -m tools.prepare_dataset --name=voc2012 --manual_dir=archives --data_dir=prepared
    python -m tools.prepare_dataset --name=folder --manual_dir=my_data --data_dir=prepared

--manual_dir is where the archives lie, or what is unpacked of them; nothing is downloaded. What is
prepared is complete or not there. Exits with 1 where something is wrong. Guides: docs/datasets/.
"""

import shlex
import time
from pathlib import Path

from absl import app, flags, logging

from isa_tf import data
from isa_tf.data.prepared import prepared_folders
from isa_tf.training.callbacks import duration
from tools import command, plugins, program, progress

# Flags of its own where it is imported, so that tools do not meet in one set.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()

_NAME = flags.DEFINE_string(
    "name", None, f"Which data set: {', '.join(data.list_builders())}.", flag_values=FLAGS
)
_MANUAL_DIR = flags.DEFINE_string(
    "manual_dir", None, "The folder of the archives or what is unpacked.", flag_values=FLAGS
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "The folder of all prepared data sets.", flag_values=FLAGS
)
_CHECK_SIZES = flags.DEFINE_bool(
    "check_sizes",
    True,
    "Whether splits must have their official sizes; --nocheck_sizes for a part of a data set.",
    flag_values=FLAGS,
)
_NUM_THREADS = flags.DEFINE_integer(
    "num_threads", None, "Threads that work at once; by default one a core.", 1, flag_values=FLAGS
)
_BEAM_OPTIONS = flags.DEFINE_list(
    "beam_options",
    None,
    "Prepare on Apache Beam (pip install '.[beam]') with these options, such as "
    "--beam_options=--runner=DirectRunner,--direct_num_workers=4.",
    flag_values=FLAGS,
)
_LIST = flags.DEFINE_bool(
    "list", False, "Tell what can be prepared, from which archives.", flag_values=FLAGS
)
_PLUGINS = plugins.define(FLAGS)

# Whose names are those of recipes; what trains the others is the default with their name.
_RECIPES = {"camvid": "camvid.py"} | {
    name: f"recipes.py:{name}-resnet101-isa"
    for name in ("ade20k", "cityscapes", "coco_stuff10k", "lip", "pascal_context", "voc2012")
}
_RECIPES["coco"] = "mask_rcnn.py:resnet50-isa-1x"
_RECIPES["coco_stuff164k"] = "recipes.py:coco_stuff164k-resnet101-isa-mmseg-512x512-80k"


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    plugins.load(_PLUGINS)
    if _LIST.value:
        print("\n\n".join(map(_about, data.list_builders())))
        return 0
    for flag in (_NAME, _MANUAL_DIR, _DATA_DIR):
        if flag.value is None:
            raise app.UsageError(f"Give --{flag.name}, or --list to see what there is")
    name, data_dir = _NAME.value, Path(_DATA_DIR.value)
    logging.set_verbosity(logging.ERROR)  # tensorflow-datasets tells what it does step by step
    before, begin = {path.resolve() for path in prepared_folders(data_dir, name)}, time.monotonic()
    try:
        folder = data.prepare(
            name,
            _MANUAL_DIR.value,
            data_dir,
            check_sizes=_CHECK_SIZES.value,
            num_threads=_NUM_THREADS.value,
            progress=progress.Lines(),
            beam_options=_BEAM_OPTIONS.value,
        )
        prepared = data.builder(name).dataset(folder)
    except (data.DataError, OSError) as error:
        print(f"FAULT {error}")
        return 1
    except ImportError as error:
        print(f"FAULT --beam_options needs Apache Beam: pip install '.[beam]' ({error})")
        return 1
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    if folder.resolve() in before:
        print(f"{name} is there already, nothing was done; to prepare it anew, remove {folder}")
    else:
        print(f"{name} is prepared, in {duration(time.monotonic() - begin)}")
    print("\n".join(_table(prepared, data.builder(name).sizes)))
    where = data_dir if len(prepared_folders(data_dir, name)) == 1 else folder
    print("To look at all of it, and to train on it:")
    spell, where = command.spell, shlex.quote(str(where))
    print(spell(f"    python -m tools.check_dataset --dataset={name} --data_dir={where}"))
    print(spell(f"    python -m experiments.train --workdir=runs/{name} {_config(name)} \\"))
    print(f"        --config.data.data_dir={where}")
    return 0


def _table(prepared, official):
    """What each split has, one a line."""
    for split in prepared.splits:
        size = prepared.size(split)
        shards = prepared.folder.glob(f"*-{split}.*")
        mib = sum(path.stat().st_size for path in shards) / 2**20
        other = official.get(split, size) != size
        note = f", a part of {official[split]:,}" if other else ""
        yield f"  {split}: {size:,} images{note}, {mib:,.1f} MiB"
    for split in official.keys() - set(prepared.splits):
        yield f"  {split}: none of {official[split]:,} images"
    yield f"  in {prepared.folder}"


def _config(name):
    if name in _RECIPES:
        return f"--config=experiments/configs/{_RECIPES[name]}"
    return f"--config=experiments/configs/default.py --config.data.name={name}"


def _about(name):
    """A data set: what it is, and its archives."""
    builder = data.builder(name)
    lines = [f"{name}: {builder.description}"]
    if builder.sizes:
        sizes = ", ".join(f"{split} {size:,}" for split, size in builder.sizes.items())
        lines.append(f"  {len(builder.labels.class_names)} classes; images: {sizes}")
    if builder.licence:
        lines.append(f"  licence: {builder.licence}")
    lines += [f"  {archive.file}, from {archive.source}" for archive in builder.archives]
    return "\n".join(lines)


if __name__ == "__main__":
    program.run(main)
