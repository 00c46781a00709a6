"""What damages are made of: workdirs of trainings at several moments."""

import contextlib
import shutil
from pathlib import Path
from typing import NamedTuple

import keras

from experiments.faults.training import CHECKPOINT_EVERY, VALIDATE_EVERY, make_config
from experiments.train import train
from isa_tf import training


class Sources(NamedTuple):
    """What damages are made of: folders of runs, and what the checkpoints halfway hold."""

    folder: Path
    config: object
    states: dict  # (facts, arrays) by step
    newest: Path  # relative, as are the next
    older: Path
    events: Path

    def copy(self, name, to):
        if to.exists():
            shutil.rmtree(to)
        shutil.copytree(self.folder / name, to)
        return to


class _Copy(keras.callbacks.Callback):
    """Copies a workdir at some steps, as a kill at that moment would leave it."""

    def __init__(self, workdir, copies, stop=None):
        super().__init__()
        self.workdir, self.copies, self.last = workdir, copies, stop
        self.step = 0

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        if self.step in self.copies:
            shutil.copytree(self.workdir, self.workdir.with_name(self.copies[self.step]))
        if self.step == self.last:
            raise _Enough


class _Enough(Exception):
    pass


def prepare(workdir, steps, other=True):
    """Trains what damages are made of: `Sources`. Without `other`, not the run of another seed."""
    workdir.mkdir(parents=True, exist_ok=True)
    config = make_config(steps)
    # With the state of an epoch that has begun, and a best score.
    half = steps * 7 // 10 // CHECKPOINT_EVERY * CHECKPOINT_EVERY
    half -= CHECKPOINT_EVERY * (half % VALIDATE_EVERY == 0)
    middle = half // 2 // CHECKPOINT_EVERY * CHECKPOINT_EVERY
    copies = {CHECKPOINT_EVERY + 1: "young", middle: "earlier", half: "halfway"}
    train(config, workdir / "end", verbose=0, callbacks=[_Copy(workdir / "end", copies)])
    if (workdir / "end" / "curves.png").exists():  # where there is matplotlib
        for name in ("earlier", "halfway"):
            shutil.copy(workdir / "end" / "curves.png", workdir / name)
    if other:
        copy = _Copy(workdir / "stopped", {half: "other"}, half)
        with contextlib.suppress(_Enough):
            train(make_config(steps, seed=1), workdir / "stopped", verbose=0, callbacks=[copy])
    checkpoints = training.Checkpoints(workdir / "halfway" / training.CHECKPOINTS)
    newest, older = checkpoints.paths()
    states = {
        facts["step"]: (facts, arrays) for facts, arrays in map(checkpoints.read, (newest, older))
    }
    events = next((workdir / "halfway" / "tensorboard").glob("events*"))
    relative = (path.relative_to(workdir / "halfway") for path in (newest, older, events))
    return Sources(workdir, config, states, *relative)


def contents(folder):
    """The bytes of every file under a folder but the lock's, by relative path."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
