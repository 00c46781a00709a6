"""Kills a training at drawn moments, and compares it with one left alone."""

import collections
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import keras

from experiments.faults.compared import differences
from experiments.faults.training import settings, validated
from isa_tf import training

_ROOT = Path(__file__).resolve().parents[2]
_START_SECONDS = 300  # in which a start must come to something, whatever else the machine does


class Start:
    """One start of the training: the processes of all its workers."""

    def __init__(self, workdir, steps, workers, log):
        arguments = [f"--config.{name}={value}" for name, value in settings(steps).items()]
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


def torture_by_kills(workdir, kills, seed, steps, workers=1, patience=90.0):
    """Kills a training and compares it with one left alone.

    Args:
        workdir: path of a folder for both.
        kills: int, how many.
        seed: int, of the moments.
        steps: int, of the training.
        workers: 1, or 2 processes that train together.
        patience: float, seconds in which a worker must end that has lost another.

    Returns:
        A list of sentences: what is not as it must be.
    """
    straight, killed = workdir / "straight", workdir / "killed"
    workdir.mkdir(parents=True, exist_ok=True)
    start = Start(straight, steps, workers, workdir / "straight-output")
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
            start = Start(killed, steps, workers, output)
            await_moment(start, killed, moment, steps, min(latest, default=steps + 1), faults)
            if not start.ended():
                break
            start.wait(patience)
            if any(start.codes()):
                return [*faults, f"kill {number}: it ended with {start.codes()}: {start.said()}"]
            # It was done before the moment came: that of what begins again and has nothing to do.
            moment = Moment("time", draw.uniform(2.0, 8.0))
        one = workers > 1 and draw.random() < 0.7
        which = [draw.randrange(workers)] if one else list(range(workers))
        seconds = start.seconds()
        start.kill(which)
        late = start.wait(patience)
        others = f"; the other ended {start.seconds() - seconds:.0f} s later" if one else ""
        for i in late:
            faults.append(
                f"kill {number}: worker {i} did not end {patience:.0f} s after another died"
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
    start = Start(killed, steps, workers, workdir / "killed-output-last")
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


def await_moment(start, workdir, moment, steps, latest, faults):
    """Returns at the moment, when the checkpoint of step `latest` is there, or when it has ended.

    Watches by looking again and again: what is written is there for a few milliseconds.
    """
    checkpoints = workdir / training.CHECKPOINTS
    seen, count = start.left, 0
    first = newest_step(workdir)
    validations = [step for step in validated(steps) if step > first]
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
    warned = [
        line for line in lines if re.match(r"W\d{4} .* (run|workdir|checkpoint)\.py:\d+\]", line)
    ]
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
