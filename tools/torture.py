r"""Kills a training and damages its files, and checks that it comes to the same or says why not.

    python -m tools.torture --workdir=runs/torture --kills=12

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

import collections
import contextlib
import csv
import json
import logging
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from absl import app, flags
from safetensors import safe_open
from safetensors.numpy import save_file

from experiments import setup
from experiments.configs import synthetic
from experiments.tasks import segmentation
from experiments.train import train
from isa_tf import training

# Flags of its own where it is imported, so that tools do not meet in one set.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()

_WORKDIR = flags.DEFINE_string("workdir", None, "A folder to be made.", flag_values=FLAGS)
_PARTS = flags.DEFINE_list("parts", ["kills", "damages"], "Which to do.", flag_values=FLAGS)
_KILLS = flags.DEFINE_integer("kills", 12, "How often to kill.", 1, flag_values=FLAGS)
_SEED = flags.DEFINE_integer("seed", 0, "Of moments and damages.", flag_values=FLAGS)
_WORKERS = flags.DEFINE_integer(
    "workers", 1, "Processes that train together, in the kills.", 1, 2, flag_values=FLAGS
)
_STEPS = flags.DEFINE_integer("steps", 40, "Of the training.", 16, flag_values=FLAGS)
_EACH = flags.DEFINE_integer(
    "each", 4, "How many cuts and flips each file gets.", 1, flag_values=FLAGS
)
_PATIENCE = flags.DEFINE_float(
    "patience", 90.0, "Seconds in which a worker must end that has lost another.", flag_values=FLAGS
)

_ROOT = Path(__file__).resolve().parents[1]
_TIMES = ("seconds", "images_per_second", "step_seconds", "waiting", "memory_gib")
_VALIDATE_EVERY, _CHECKPOINT_EVERY = 8, 3
_START_SECONDS = 300  # in which a start must come to something, whatever else the machine does


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    if _WORKDIR.value is None:
        raise app.UsageError("Give --workdir")
    workdir = Path(_WORKDIR.value)
    if workdir.exists() and any(workdir.iterdir()):
        raise app.UsageError(f"--workdir={workdir} is not empty")
    if unknown := set(_PARTS.value) - {"kills", "damages"}:
        raise app.UsageError(f"--parts takes kills,damages, got {','.join(sorted(unknown))}")
    faults = []
    if "kills" in _PARTS.value:
        faults += torture_by_kills(workdir, _KILLS.value, _SEED.value, _WORKERS.value)
    if "damages" in _PARTS.value:
        faults += torture_by_damages(workdir, _SEED.value, _EACH.value)
    for fault in faults:
        print(f"FAULT {fault}")
    print(f"{len(faults)} faults" if faults else "No faults")
    return 1 if faults else 0


def settings(seed=0):
    """What the training changes of experiments/configs/synthetic.py, by dotted name."""
    steps = _STEPS.value
    return {
        "seed": seed,
        "data.options.num_examples": {"train": 24, "val": 6},
        "data.crop_size": 64,
        "data.batch_size": 4,
        "data.val_batch_size": 2,
        "model.head_filters": 16,
        "model.dropout": 0.1,
        "train.steps": steps,
        "train.validate_every": _VALIDATE_EVERY,
        "train.checkpoint_every": _CHECKPOINT_EVERY,
        "train.warmup_steps": 4,
        "train.ema": 0.9,
        "train.ema_batches": 4,
        "train.class_weight_steps": steps // 2,
        "train.pictures": 0,
    }


def validated(steps):
    """The steps after which there is a validation: of every phase, also the last."""
    every = range(_VALIDATE_EVERY, steps, _VALIDATE_EVERY)
    return sorted({*every, steps // 2, steps})


# === Kills ===


class Start:
    """One start of the training: the processes of all its workers."""

    def __init__(self, workdir, workers, log):
        arguments = [f"--config.{name}={value}" for name, value in settings().items()]
        command = [sys.executable, "-m", "experiments.train", f"--workdir={workdir}", *arguments]
        command.insert(3, f"--config={_ROOT / 'experiments/configs/synthetic.py'}")
        command.append(f"--strategy={'multi_worker' if workers > 1 else 'one_device'}")
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path}
        environment.pop("TF_CONFIG", None)
        addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
        self.left = _halves(workdir)  # by kills before this start
        self.begin = time.monotonic()
        self.output = [log.with_name(f"{log.name}-{i}.txt") for i in range(workers)]
        self.processes = []
        for i, output in enumerate(self.output):
            if workers > 1:
                cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}}
                environment["TF_CONFIG"] = json.dumps(cluster)
            with open(output, "ab") as file:
                self.processes.append(
                    subprocess.Popen(
                        command, cwd=_ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
                    )
                )

    def seconds(self):
        return time.monotonic() - self.begin

    def ended(self):
        """Whether any worker has ended."""
        return any(process.poll() is not None for process in self.processes)

    def kill(self, which):
        for i in which:
            self.processes[i].send_signal(signal.SIGKILL)
        for i in which:
            self.processes[i].wait()

    def wait(self, seconds):
        """Waits for all; gives those that had not ended by then, which are killed."""
        until = time.monotonic() + seconds
        late = []
        for i, process in enumerate(self.processes):
            try:
                process.wait(max(until - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                late.append(i)
        self.kill(late)
        return late

    def codes(self):
        return [process.returncode for process in self.processes]

    def said(self):
        """The ends of what the workers printed."""
        texts = (path.read_text(errors="replace")[-1500:] for path in self.output)
        return "\n".join(texts)


def free_ports(count):
    """Ports of this machine that nobody has now: a list."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Moment(NamedTuple):
    """When to kill: `kind`, and what more it needs."""

    kind: str  # "time": `number` seconds after the start; "writing": as the `number`-th file whose
    number: float  # name ends in `suffix` is begun; "validating": so many seconds into one
    suffix: str = ""


def draw_moments(count, seed):
    """The moments of the kills: half in writing, a quarter in validations, the rest anywhere."""
    draw = random.Random(seed)
    # Config and log are written as a run begins to go on, the others as it goes.
    suffixes = ["safetensors", "best.keras", "log.csv", "best.json", "config.json"]
    draw.shuffle(suffixes)
    moments = []
    for i in range(count):
        kind = ("writing", "validating", "writing", "time")[i % 4]
        if kind == "writing":
            suffix = suffixes[i // 2 % len(suffixes)]
            nth = draw.randint(1, 3) if suffix == "safetensors" else 1
            # Of a log, the first is that of going on; the second is of a validation.
            moments.append(Moment(kind, draw.randint(1, 2) if suffix == "log.csv" else nth, suffix))
        elif kind == "validating":
            moments.append(Moment(kind, draw.uniform(0.0, 2.5)))
        else:
            moments.append(Moment(kind, draw.uniform(4.0, 25.0)))
    draw.shuffle(moments)
    return moments


def torture_by_kills(workdir, kills, seed, workers=1):
    """Kills a training and compares it with one left alone; gives what is not as it must be."""
    steps = _STEPS.value
    straight, killed = workdir / "straight", workdir / "killed"
    workdir.mkdir(parents=True, exist_ok=True)
    start = Start(straight, workers, workdir / "straight-output")
    start.wait(4 * _START_SECONDS)
    if any(start.codes()):
        return [f"the undisturbed training ends with {start.codes()}: {start.said()}"]
    print(f"undisturbed: {steps} steps in {start.seconds():.0f} s", flush=True)

    draw = random.Random(seed + 1)
    faults, doing = [], collections.Counter()
    for number, moment in enumerate(draw_moments(kills, seed), 1):
        output = workdir / f"killed-output-{number:02d}"
        # The training must not end before the last kill.
        share, first = steps * number / kills, newest_step(killed)
        latest = [n for n in validated(steps) if n >= share and n > first]
        while True:
            start = Start(killed, workers, output)
            _await(start, killed, moment, min(latest, default=steps + 1), faults)
            if not start.ended():
                break
            start.wait(_PATIENCE.value)
            if any(start.codes()):
                return [*faults, f"kill {number}: it ended with {start.codes()}: {start.said()}"]
            # It was done before the moment came: that of what begins again and has nothing to do.
            moment = Moment("time", draw.uniform(2.0, 8.0))
        one = workers > 1 and draw.random() < 0.7
        which = [draw.randrange(workers)] if one else list(range(workers))
        seconds = start.seconds()
        start.kill(which)
        late = start.wait(_PATIENCE.value)
        others = f"; the other ended {start.seconds() - seconds:.0f} s later" if one else ""
        for i in late:
            faults.append(
                f"kill {number}: worker {i} did not end {_PATIENCE.value:.0f} s after another died"
            )
        step, what, wrong = examine(killed, start.left)
        faults += [f"kill {number}: {each}" for each in wrong + false_alarms(start)]
        doing[what.partition(" (")[0]] += 1
        text = f"of workers {which} " if workers > 1 else ""
        print(
            f"kill {number:2d} {text}after {seconds:.0f} s at step {step} of {steps}, "
            f"{what}{others}",
            flush=True,
        )
    start = Start(killed, workers, workdir / "killed-output-last")
    late = start.wait(4 * _START_SECONDS)
    faults += [f"after the last kill: {each}" for each in false_alarms(start)]
    if late or any(start.codes()):
        faults.append(f"after all kills it ends with {start.codes()}: {start.said()}")
    else:
        tolerance = 0.0 if workers == 1 else 1e-6
        faults += [f"after {kills} kills: {d}" for d in differences(straight, killed, tolerance)]
    written = sum(n for what, n in doing.items() if what.startswith("writing"))
    print(f"{kills} kills, {written} of them while a file was written:")
    for what, count in sorted(doing.items()):
        print(f"  {count:3d} {what}")
    return faults


def _await(start, workdir, moment, latest, faults):
    """Returns at the moment, when the checkpoint of step `latest` is there, or when it has ended.

    Watches by looking again and again: what is written is there for a few milliseconds.
    """
    checkpoints = workdir / training.CHECKPOINTS
    seen, count = start.left, 0
    first = newest_step(workdir)
    validations = [step for step in validated(_STEPS.value) if step > first]
    while not start.ended():
        if start.seconds() > _START_SECONDS:
            faults.append(f"a start came to nothing in {_START_SECONDS} s: {start.said()}")
            return
        if moment.kind == "time" and start.seconds() > moment.number:
            return
        names = _names(workdir) | _names(checkpoints)
        if moment.kind == "writing":
            there = {n for n in names if _half(n).endswith(moment.suffix) and _half(n)}
            count += len(there - seen)
            if there - seen and count >= moment.number:
                return
            seen = seen | there
        step = max(map(_step_of, names), default=-1)
        if moment.kind == "validating" and validations and step >= validations[0]:
            time.sleep(moment.number)
            return
        # The files of a validation are written after its checkpoint.
        if step > latest or (step == latest and moment.kind != "writing"):
            return
        time.sleep(0.0005)


def _names(folder):
    try:
        return {entry.name for entry in os.scandir(folder)}
    except OSError:
        return set()


def _half(name):
    """The name of the file of which this is what is written aside; "" if it is nothing such."""
    if name.startswith(".new-"):
        return name.split("-", 2)[2]
    # safetensors writes yet another file aside, for which ours is then renamed.
    return "step.safetensors" if name.startswith(".tmp") else ""


def _halves(workdir):
    """The names of what was being written in a workdir when its run was killed."""
    names = _names(workdir) | _names(workdir / training.CHECKPOINTS)
    return {name for name in names if _half(name)}


def _step_of(name):
    stem = name.removeprefix("step-").removesuffix(".safetensors")
    return int(stem) if stem.isdecimal() else -1


def newest_step(workdir):
    """The step of the newest checkpoint, by its name; -1 if there is none."""
    return max(map(_step_of, _names(workdir / training.CHECKPOINTS)), default=-1)


def false_alarms(start):
    """What was said to be damaged, where there have only been kills.

    The best model may be, by a kill between it and its score: the validation is done again.
    """
    lines = "\n".join(path.read_text(errors="replace") for path in start.output).splitlines()
    warned = [line for line in lines if re.match(r"W\d{4} .* (run|checkpoint)\.py:\d+\]", line)]
    best = f"{training.BEST} is damaged"
    return [f"it takes for damaged what was killed: {w}" for w in warned if best not in w]


def examine(workdir, left=()):
    """What a killed run has left: (step, what it was doing, what is wrong with its files).

    What is written aside and was `left` by kills before is none of its doing.
    """
    wrong = []
    checkpoints = training.Checkpoints(workdir / training.CHECKPOINTS)
    facts = None
    for path in checkpoints.paths():
        try:
            found = checkpoints.read(path)[0]
        except training.Damaged as error:
            wrong.append(f"a kill has damaged {error}")
        else:
            facts = facts or found
    try:
        training.read_log(workdir / training.LOG)
        training.best_score(workdir)
    except ValueError as error:
        wrong.append(f"a kill has damaged {error}")
    path = workdir / training.CONFIG
    if path.exists() and json.loads(path.read_text() or "null") is None:
        wrong.append(f"a kill has damaged {path}")
    if (path := workdir / training.BEST).exists():
        try:
            keras.models.load_model(path)
        except Exception as error:
            wrong.append(f"a kill has damaged {path}: {error}")
    if half := sorted(_halves(workdir) - set(left)):
        name = _half(half[0])
        kind = "a checkpoint" if name.endswith(".safetensors") else name
        path = checkpoints.folder if kind == "a checkpoint" else workdir
        what = f"writing {kind} ({(path / half[0]).stat().st_size:,} bytes of it)"
    elif facts is None:
        what = "before its first checkpoint"
    elif facts["train_logs"] is not None:
        what = "validating"
    else:
        what = "training, or about to"
    return (-1 if facts is None else facts["step"]), what, wrong


# === Comparing ===


def differences(one, other, tolerance=0.0):
    """In what the results of two runs differ beyond a tolerance: a list of sentences."""
    found = []

    def same(a, b):
        if not tolerance:
            return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        return a.shape == b.shape and np.allclose(a, b, rtol=tolerance, atol=tolerance)

    (facts, arrays), (their_facts, their_arrays) = (state(folder) for folder in (one, other))
    if arrays.keys() != their_arrays.keys():
        found.append("the checkpoints hold other arrays")
    unequal = [n for n in arrays if n in their_arrays and not same(arrays[n], their_arrays[n])]
    if unequal:
        found.append(
            f"{len(unequal)} of {len(arrays)} arrays of the checkpoint differ: {unequal[:3]}"
        )
    for name in ("step", "config", "train_logs"):
        if facts[name] != their_facts[name]:
            found.append(f"{name} of the checkpoint is {facts[name]} and {their_facts[name]}")
    logs = [training.read_log(folder / training.LOG) for folder in (one, other)]
    scores = [[training.best_score(folder)] for folder in (one, other)]
    bests = [[_without_digest(each["best"])] for each in (facts, their_facts)]
    for what, (a, b) in {
        training.LOG: logs,
        "log of the checkpoint": (facts["rows"], their_facts["rows"]),
        training.BEST_SCORE: scores,
        "best score of the checkpoint": bests,
    }.items():
        if (how := _rows_differ(a, b, tolerance)) is not None:
            found.append(f"{what}: {how}")
    weights = [keras.models.load_model(f / training.BEST).get_weights() for f in (one, other)]
    unequal = sum(not same(a, b) for a, b in zip(*weights, strict=True))
    if unequal:
        found.append(f"{unequal} of {len(weights[0])} weights of {training.BEST} differ")
    left = [p.name for p in other.rglob("*") if p.name.startswith((".new-", ".tmp", "damaged-"))]
    if left and not tolerance:
        found.append(f"left over: {', '.join(left)}")
    return found


def state(workdir):
    """(facts, arrays) of the newest checkpoint."""
    return training.Checkpoints(workdir / training.CHECKPOINTS).newest()


def _without_digest(best):
    return best and {name: value for name, value in best.items() if name != "sha256"}


def _rows_differ(ours, theirs, tolerance=0.0):
    """In words how lists of dicts of numbers differ, apart from times; `None` if they do not."""
    if len(ours) != len(theirs):
        return f"{len(ours)} rows and {len(theirs)}"
    for a, b in zip(ours, theirs, strict=True):
        a, b = ({k: v for k, v in row.items() if k not in _TIMES} for row in (a, b))
        if a.keys() != b.keys():
            return f"one of {a['step']} lacks {sorted(a.keys() ^ b.keys())}"
        for name in a:
            if not np.isclose(a[name], b[name], rtol=tolerance, atol=tolerance, equal_nan=True):
                return f"at step {a['step']} {name} is {a[name]!r} and {b[name]!r}"
    return None


# === Damages ===


class Damage(NamedTuple):
    """Something done to a copy of a workdir, and what it may come to."""

    file: str  # that a warning or an error must name
    kind: str
    act: object  # function of the folder
    may_be: tuple = ("recovered", "refused")
    folder: str = "halfway"  # that is damaged; "young" before a validation, "end" when all is done
    goes_on: bool = False  # trained to the end as well


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


def make_config(seed=0):
    """The config of the training, as `Start` has it by flags."""
    config = synthetic.get_config()
    config.update_from_flattened_dict(settings(seed))
    return config


def prepare(workdir, other=True):
    """Trains what damages are made of: `Sources`. Without `other`, not the run of another seed."""
    workdir.mkdir(parents=True, exist_ok=True)
    config = make_config()
    # With the state of an epoch that has begun, and a best score.
    half = _STEPS.value * 7 // 10 // _CHECKPOINT_EVERY * _CHECKPOINT_EVERY
    half -= _CHECKPOINT_EVERY * (half % _VALIDATE_EVERY == 0)
    middle = half // 2 // _CHECKPOINT_EVERY * _CHECKPOINT_EVERY
    copies = {_CHECKPOINT_EVERY + 1: "young", middle: "earlier", half: "halfway"}
    train(config, workdir / "end", verbose=0, callbacks=[_Copy(workdir / "end", copies)])
    if (workdir / "end" / "curves.png").exists():  # where there is matplotlib
        for name in ("earlier", "halfway"):
            shutil.copy(workdir / "end" / "curves.png", workdir / name)
    if other:
        copy = _Copy(workdir / "stopped", {half: "other"}, half)
        with contextlib.suppress(_Enough):
            train(make_config(seed=1), workdir / "stopped", verbose=0, callbacks=[copy])
    checkpoints = training.Checkpoints(workdir / "halfway" / training.CHECKPOINTS)
    newest, older = checkpoints.paths()
    states = {
        facts["step"]: (facts, arrays) for facts, arrays in map(checkpoints.read, (newest, older))
    }
    events = next((workdir / "halfway" / "tensorboard").glob("events*"))
    relative = (path.relative_to(workdir / "halfway") for path in (newest, older, events))
    return Sources(workdir, config, states, *relative)


def torture_by_damages(workdir, seed, each):
    """Damages copies of a workdir and goes on from them; gives what is not as it must be."""
    begin = time.monotonic()
    workdir = workdir / "damages"
    sources = prepare(workdir)
    restorer = Restorer(sources)
    table, faults = {}, []
    damages = draw_damages(sources, seed, each)
    judged = [damage for damage in damages if damage.folder != "end"]
    for damage in judged:
        folder = sources.copy(damage.folder, workdir / "damaged")
        before = contents(folder)
        damage.act(folder)
        unchanged = contents(folder) == before
        outcome, why = restorer.judge(damage, folder, unchanged)
        if outcome == "fault":
            faults.append(f"{damage.file} {damage.kind}: {why}")
        counts = table.setdefault((damage.file, damage.kind), collections.Counter())
        counts[outcome] += 1
    print(f"{len(judged)} damages in {time.monotonic() - begin:.0f} s:")
    width = max(len(file) for file, _ in table)
    for (file, kind), counts in table.items():
        outcomes = ", ".join(f"{outcome} {n}" for outcome, n in sorted(counts.items()))
        print(f"  {file:{width}}  {kind:28}  {outcomes}")
    total = sum(table.values(), collections.Counter())
    print(", ".join(f"{outcome} {n}" for outcome, n in sorted(total.items())), flush=True)

    further = [damage for damage in damages if damage.goes_on]
    for damage in further:
        folder = sources.copy(damage.folder, workdir / "damaged")
        damage.act(folder)
        try:
            train(sources.config, folder, verbose=0)
        except Exception as error:
            faults.append(f"{damage.file} {damage.kind}: it does not go on ({error!r})")
            continue
        for path in folder.rglob("damaged-*"):  # as it should be
            path.unlink()
        found = differences(workdir / "end", folder)
        faults += [f"{damage.file} {damage.kind}, then to the end: {d}" for d in found]
        told = "differs" if found else "the same"
        print(f"{damage.file} {damage.kind}, then to the end: {told}", flush=True)
    return faults


def contents(folder):
    """The bytes of every file under a folder but the lock's, by relative path."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


class _Said(logging.Handler):
    """What the library logged."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


class Restorer:
    """Goes on from damaged folders, with one model for all, and judges what comes of it."""

    def __init__(self, sources):
        self.sources = sources
        self.strategy = training.make_strategy("one_device")
        self.dataset = segmentation.make_dataset(sources.config)
        self.model = segmentation.make_model(sources.config, self.dataset)
        last = segmentation.phases(sources.config)[-1]
        self.validation = segmentation.compile_model(self.model, sources.config, self.dataset, last)

    def restore(self, folder):
        """(run, or the error; what was warned): a run that has taken up the folder's state."""
        config, dataset = self.sources.config, self.dataset
        if self.model.optimizer.built:  # nothing of the last restoration may pass for this one's
            for variable in [*self.model.variables, *self.model.optimizer.variables]:
                variable.assign(np.full(variable.shape, 77, variable.dtype))
        said, logger = _Said(), logging.getLogger("isa_tf")
        logger.addHandler(said)
        try:
            with setup.make_run(folder, config, self.strategy) as run:
                # Up to a step that is past, so it restores and mends and does nothing more.
                run.fit(
                    self.model,
                    lambda step, context: segmentation.make_train_data(
                        config, dataset, step, context
                    ),
                    **self.validation,
                    steps=1,
                    validate_every=1,
                    verbose=0,
                )
            return run, said.texts
        except Exception as error:
            return error, said.texts
        finally:
            logger.removeHandler(said)

    def judge(self, damage, folder, unchanged):
        """(outcome, why): "recovered", "refused" or "harmless", or "fault" and the reason."""
        damaged = contents(folder)
        run, said = self.restore(folder)
        if isinstance(run, Exception):
            return self._judge_refusal(damage, run, folder, damaged)
        if wrong := self._wrong(run, folder, damage, damaged):
            return "fault", wrong
        named = any(damage.file in text and str(folder) in text for text in said)
        outcome = "recovered" if named else "harmless"
        if outcome not in damage.may_be:
            if outcome == "harmless" and (unchanged or self._means_the_same(damage, damaged)):
                return outcome, ""
            return (
                "fault",
                f"{outcome}, where it must be {' or '.join(damage.may_be)}; said: {said}",
            )
        return outcome, ""

    def _judge_refusal(self, damage, error, folder, damaged):
        text = setup.message(error) if isinstance(error, KeyError) else str(error)
        if not isinstance(error, ValueError | OSError | FloatingPointError):
            return "fault", f"{type(error).__name__}: {text[:300]}"
        if isinstance(error, UnicodeError):
            return "fault", f"{type(error).__name__} names no file: {text[:300]}"
        if "refused" not in damage.may_be:
            return "fault", f"refused: {text}"
        if damage.file.split("/")[0] not in text or str(folder) not in text:
            return "fault", f"the error names no {damage.file}: {text}"
        if not any(way in text for way in ("another workdir", "copy")):
            return "fault", f"the error tells no way out: {text}"
        if contents(folder) != damaged:
            return "fault", f"refused, though the folder has changed: {text}"
        return "refused", ""

    def _wrong(self, run, folder, damage, damaged):
        """What is wrong with the state that a run has taken up, in words, or `None`."""
        if run.step == 0:
            return "begun anew, silently"
        sources, newest = self.sources, max(self.sources.states)
        undamaged = (sources.folder / "halfway" / sources.newest).read_bytes()
        if run.step not in sources.states:
            return f"goes on from step {run.step}"
        if run.step != newest and damaged.get(sources.newest) == undamaged:
            return f"goes on from step {run.step}, though the checkpoint of {newest} is whole"
        facts, arrays = sources.states[run.step]
        # Of an epoch that has ended, metrics are not gone on with.
        metrics = {n: a for n, a in arrays.items() if n.startswith("metrics/")}
        if run._metrics.keys() != (metrics.keys() if facts["within_epoch"] else set()):
            return f"the metrics of step {run.step} are taken up though its epoch has ended, or not"
        run.restore_metrics()
        for name, variable in run._variables().items():
            if name in metrics and not facts["within_epoch"]:
                continue
            if training.read_variable(variable).tobytes() != arrays[name].tobytes():
                return f"{name} is not that of step {run.step}"
        if run.rows != facts["rows"] or run.train_logs != facts["train_logs"]:
            return f"the log is not that of step {run.step}"
        best_damaged = damage.file in (training.BEST, f"{training.BEST_SCORE}, {training.BEST}")
        if run.best != facts["best"] and not (run.best is None and best_damaged):
            return f"the best score is {run.best}, not {facts['best']}"
        if _rows_differ(training.read_log(folder / training.LOG), _as_log(facts["rows"])):
            return f"{training.LOG} was not mended"
        if run.best and training.best_score(folder) != _without_digest(facts["best"]):
            # The best of a validation that will be done again, to the same end, may stay.
            later = json.loads(damaged[Path(training.BEST_SCORE)] or "null")
            if later != sources.states[newest][0]["best"] or later["step"] <= run.step:
                return f"{training.BEST_SCORE} was not mended"
        config = json.loads((folder / training.CONFIG).read_text())
        if config != json.loads(sources.config.to_json()):
            return f"{training.CONFIG} was not mended"
        return None

    def _means_the_same(self, damage, damaged):
        """Whether a file's contents mean what they meant, though their bytes are others."""
        content = damaged.get(Path(damage.file))
        if content is None:
            return False
        original = (self.sources.folder / "halfway" / damage.file).read_bytes()
        if damage.file == training.BEST_SCORE:
            return json.loads(content) == json.loads(original)
        if damage.file == training.CONFIG:  # what may be another is what the command says
            return (
                not set(training.run.differences(json.loads(content), json.loads(original)))
                - {
                    "train.steps",
                    "train.checkpoint_every",
                    "data.data_dir",
                }
                - {n for n in _flat_names(json.loads(original)) if n.startswith("test.")}
            )
        if damage.file == training.LOG:
            copy = self.sources.folder / "same.csv"
            copy.write_bytes(content)
            facts, _ = self.sources.states[max(self.sources.states)]
            try:
                return training.read_log(copy) == _as_log(facts["rows"])
            except ValueError:
                return False
        return False


def _as_log(rows):
    return [{name: float(value) for name, value in row.items()} for row in rows]


def _flat_names(config, prefix=""):
    for name, value in config.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from _flat_names(value, f"{prefix}{name}.")


def draw_damages(sources, seed, each):
    """The damages: of every file what can befall any, then what can befall its kind."""
    draw = random.Random(seed)
    stateless = {".lock": ("harmless",), str(sources.events): ("harmless",)}
    if (sources.folder / "halfway" / "curves.png").exists():
        stateless["curves.png"] = ("harmless",)
    names = [training.CONFIG, training.LOG, training.BEST_SCORE, training.BEST]
    names += [str(sources.newest), str(sources.older), *stateless]
    found = []
    for name in names:
        may_be = stateless.get(name, ("recovered", "refused"))
        if name == str(sources.older):
            may_be = ("harmless",)
        found += _general(sources, name, may_be, each, draw)
    found += _of_json(sources)
    found += _of_log(sources)
    found += _of_checkpoints(sources)
    return found


def _general(sources, name, may_be, each, draw):
    path = sources.folder / "halfway" / name
    size = path.stat().st_size

    def damage(kind, change, may_be=may_be, goes_on=False):
        def act(folder):
            content = change((folder / name).read_bytes())
            (folder / name).unlink()
            if content is not None:
                (folder / name).write_bytes(content)

        return Damage(name, kind, act, may_be, goes_on=goes_on)

    def flipped(content, bit):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)

    found = []
    places = [size - 1, 1, *(draw.randrange(1, size) for _ in range(each - 2))][:each]
    for i, place in enumerate(places):
        goes_on = i == 0 and name in (str(sources.newest), training.BEST, training.LOG)
        cut = damage("cut", lambda content, place=place: content[:place], goes_on=goes_on)
        found.append(cut)
    for _ in range(each):
        bit = draw.randrange(8 * size)
        found.append(damage("a bit flipped", lambda content, bit=bit: flipped(content, bit)))
    noise = draw.randbytes(size)
    found.append(damage("emptied", lambda _: b"", goes_on=name == training.CONFIG))
    # Of a checkpoint that is gone, nothing can tell: the one before it is the newest.
    gone = ("harmless",) if name == str(sources.newest) else may_be
    found.append(damage("removed", lambda _: None, gone))
    found.append(damage("random bytes", lambda _: noise))
    for other in ("other", "earlier"):
        theirs = sources.folder / other / name
        if not theirs.exists():  # of another step, or with a time in its name
            pattern = "events*" if "tensorboard" in name else "step-*"
            theirs = next(iter(sorted(theirs.parent.glob(pattern), reverse=True)), None)
        if theirs is not None:
            content = theirs.read_bytes()
            kind = {"other": "that of another seed", "earlier": "that of an earlier step"}[other]
            found.append(damage(kind, lambda _, content=content: content))
    return found


def _of_json(sources):
    found = []
    for name in (training.CONFIG, training.BEST_SCORE):
        original = json.loads((sources.folder / "halfway" / name).read_text())
        number = "seed" if name == training.CONFIG else "miou"
        texts = {
            "null": "null",
            "a list": json.dumps([original]),
            "NaN": json.dumps({**original, number: float("nan")}),
            "another number": json.dumps({**original, number: 0.75}),
            "a key is gone": json.dumps({k: v for k, v in original.items() if k != number}),
            "a text for a number": json.dumps({**original, number: "x"}),
            "nested without end": "[" * 200_000,
            "no UTF-8": '{"seed": "\udcff"}',
        }
        for kind, text in texts.items():

            def act(folder, name=name, text=text):
                (folder / name).write_bytes(text.encode(errors="surrogateescape"))

            goes_on = kind == "null" and name == training.BEST_SCORE
            found.append(Damage(name, kind, act, goes_on=goes_on))

    def other_pair(folder):
        for name in (training.BEST, training.BEST_SCORE):
            shutil.copy(sources.folder / "other" / name, folder / name)

    def no_pair(folder):
        for name in (training.BEST, training.BEST_SCORE):
            (folder / name).unlink()

    found.append(Damage(training.BEST, "and score of another seed", other_pair))
    found.append(Damage(training.BEST, "and score removed", no_pair))
    return found


def _of_log(sources):
    with open(sources.folder / "halfway" / training.LOG, newline="") as file:
        rows = list(csv.reader(file))
    text = (sources.folder / "halfway" / training.LOG).read_text()
    changed = [[*row] for row in rows]
    changed[1][rows[0].index("val_miou")] = "0.9"
    texted = [[*row] for row in rows]
    texted[-1][1] = "x"
    tables = {
        "a row is cut": text[: text.rindex(",") - 20],
        "a field too many": [*rows[:-1], [*rows[-1], "1.0"]],
        "a text for a number": texted,
        "without its header": rows[1:],
        "its header alone": rows[:1],
        "another number": changed,
        "a row is gone": [rows[0], *rows[2:]],
        "a row twice": [*rows, rows[-1]],
        "a column is gone": [row[:-1] for row in rows],
    }
    found = []
    for kind, table in tables.items():

        def act(folder, table=table):
            with open(folder / training.LOG, "w", newline="") as file:
                if isinstance(table, str):
                    file.write(table)
                else:
                    csv.writer(file).writerows(table)

        found.append(Damage(training.LOG, kind, act))
    return found


def _of_checkpoints(sources):
    newest, older = str(sources.newest), str(sources.older)
    step = max(sources.states)
    facts, arrays = sources.states[step]

    def checkpoints(folder):
        return training.Checkpoints(folder / training.CHECKPOINTS, keep=9)

    def cut(*names):
        def act(folder):
            for name in names:
                content = (folder / name).read_bytes()
                (folder / name).write_bytes(content[: len(content) // 2])

        return act

    def remove(folder):
        shutil.rmtree(folder / training.CHECKPOINTS)

    def renamed(to):
        def act(folder):
            path = folder / newest
            path.rename(path.with_name(f"step-{to:08d}.safetensors"))

        return act

    def written(to=step, changed=None, **other):
        def act(folder):
            checkpoints(folder).write(to, {**arrays, **(changed or {})}, {**facts, **other})

        return act

    def without(group):
        def act(folder):
            kept = {n: a for n, a in arrays.items() if not n.startswith(group)}
            checkpoints(folder).write(step, kept, facts)

        return act

    def not_finite(folder):
        # By hand, since Checkpoints refuse to write it.
        name = next(n for n, a in arrays.items() if n.startswith("model/") and a.ndim == 4)
        bad = {**arrays, name: np.full_like(arrays[name], np.nan)}
        with safe_open(folder / newest, "numpy") as file:
            metadata = file.metadata()
        metadata["sha256"] = training.checkpoint._digest(bad, metadata["facts"])
        save_file(bad, folder / newest, metadata)

    def other_run(to):
        def act(folder):
            theirs = training.Checkpoints(sources.folder / "other" / training.CHECKPOINTS)
            their_facts, their_arrays = theirs.newest()
            checkpoints(folder).write(to, their_arrays, their_facts)

        return act

    def old(folder):
        (folder / "last.keras").write_bytes((folder / training.BEST).read_bytes())

    def lose(folder):
        (folder / training.BEST).unlink()

    counts = {n: a + np.asarray(9, a.dtype) for n, a in arrays.items() if _counts(a, step)}
    kernel = next(n for n, a in arrays.items() if n.startswith("model/") and a.ndim == 4)
    wider = {kernel: np.repeat(arrays[kernel], 2, axis=-1)}
    refused, recovered, harmless = ("refused",), ("recovered",), ("harmless",)
    later = newest.replace(f"{step:08d}", f"{step + 4:08d}")
    return [
        Damage(newest, "both cut", cut(newest, older), refused),
        Damage(training.CHECKPOINTS, "folder removed", remove, refused),
        Damage(training.CHECKPOINTS, "removed before a validation", remove, refused, "young"),
        Damage("last.keras", "is there, of version 0.1", old, refused),
        Damage(later, "renamed to a later step", renamed(step + 4), recovered, goes_on=True),
        Damage(newest, "renamed to an earlier step", renamed(1), harmless),
        Damage(newest, "of another optimizer", without("optimizer"), recovered),
        Damage(newest, "of another model", written(changed=wider), recovered),
        Damage(newest, "of other metrics", without("metrics"), recovered),
        Damage(newest, "not finite", not_finite, recovered),
        Damage(newest, "counts more steps than it has", written(changed=counts), recovered),
        Damage(newest, "of another run", written(run="0" * 64), recovered),
        Damage(later, "of another seed, later", other_run(step + 4), recovered),
        Damage(training.BEST, "removed when all was done", lose, folder="end", goes_on=True),
    ]


def _counts(array, step):
    return array.ndim == 0 and array.dtype.kind in "iu" and array == step


if __name__ == "__main__":
    app.run(main)
