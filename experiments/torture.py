r"""Kills a training and damages its files, and checks that it comes to the same or says why not.

    python -m experiments.torture --workdir=runs/torture --kills=12

A small training of `experiments.train` runs once undisturbed. Then:

* kills: it runs again, and is killed by SIGKILL at moments drawn by `--seed` and started again by
  the same command, until there were so many kills and it has ended. Half of them fall while a file
  is being written, others in validations, in training, and before it begins. After each kill every
  file must be whole; at the end arrays of the checkpoint, rows of the log, score and best model
  must be bit for bit those of the undisturbed training. With `--workers=2` two processes train
  together and one or both are killed; the other must end by itself within `--patience` seconds, and
  the result be the same to 1e-6.
* damages: in copies of its workdir as it was halfway, each file is cut, flipped in one bit,
  emptied, removed, overwritten, replaced by that of another run or another step, and so on; and
  the run goes on. What comes of it is
    recovered: the newest whole state is used, and a warning names the file;
    refused: the error names the file and a way out, and nothing in the folder has changed;
    harmless: the state is right, of files that hold none (.lock, curves.png, TensorBoard's), of
      the checkpoint in reserve while the newest is whole, of contents that mean the same, and of a
      checkpoint that is gone, of which nothing can tell: the one before it is the newest.
  Some go on to the end, which must be the undisturbed one.

Prints a line for each kill, a table of damages and the counts. Exits with 1 where anything is not
as it must be, naming it. Takes minutes: a start is some ten seconds of imports and compilation.
"""

from pathlib import Path

from absl import app, flags

from experiments.faults.kills import torture_by_kills
from experiments.faults.restoring import torture_by_damages

# Flags of its own where it is imported, so that tools do not meet in one set.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()

_WORKDIR = flags.DEFINE_string("workdir", None, "A folder to be made.", flag_values=FLAGS)
_PARTS = flags.DEFINE_list("parts", ["kills", "damages"], "Which to do.", flag_values=FLAGS)
_KILLS = flags.DEFINE_integer("kills", 12, "How often to kill.", 1, flag_values=FLAGS)
_SEED = flags.DEFINE_integer("seed", 0, "Moments and damages are drawn by it.", flag_values=FLAGS)
_WORKERS = flags.DEFINE_integer(
    "workers", 1, "Processes that train together, in the kills.", 1, 2, flag_values=FLAGS
)
_STEPS = flags.DEFINE_integer("steps", 40, "Length of the training.", 16, flag_values=FLAGS)
_EACH = flags.DEFINE_integer(
    "each", 4, "How many cuts and flips each file gets.", 1, flag_values=FLAGS
)
_PATIENCE = flags.DEFINE_float(
    "patience", 90.0, "Seconds in which a worker must end that has lost another.", flag_values=FLAGS
)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    if _WORKDIR.value is None:
        raise app.UsageError("Give --workdir")
    workdir = Path(_WORKDIR.value)
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise app.UsageError(f"--workdir={workdir} is not empty, or no folder")
    if (unknown := set(_PARTS.value) - {"kills", "damages"}) or not _PARTS.value:
        raise app.UsageError(f"--parts takes kills,damages, got {','.join(sorted(unknown))}")
    faults = []
    if "kills" in _PARTS.value:
        faults += torture_by_kills(
            workdir, _KILLS.value, _SEED.value, _STEPS.value, _WORKERS.value, _PATIENCE.value
        )
    if "damages" in _PARTS.value:
        faults += torture_by_damages(workdir, _SEED.value, _STEPS.value, _EACH.value)
    for fault in faults:
        print(f"FAULT {fault}")
    print(f"{len(faults)} faults" if faults else "No faults")
    return 1 if faults else 0


if __name__ == "__main__":
    app.run(main)
