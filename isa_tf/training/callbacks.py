"""What a run tells of itself as it goes: its log, its progress, TensorBoard."""

import csv
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from isa_tf import runtime
from isa_tf.files import replacing
from isa_tf.hints import StrPath


def write_log(path: StrPath, rows: Sequence[Mapping[str, float]]) -> None:
    """Writes the rows of a log as CSV, "step" first; the file is replaced when complete.

    Args:
        path: of the file.
        rows: dicts of numbers.
    """
    names = ["step", *sorted({name for row in rows for name in row} - {"step"})]
    with replacing(path) as new, open(new, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def read_log(path: StrPath) -> list[dict[str, float]]:
    """The rows of a run's log: a list of dicts of floats, empty where there is no file.

    Raises:
        ValueError: for a file that is cut or changed, naming the line.
    """
    if not Path(path).exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        try:
            found = [{k: float(v) for k, v in row.items() if v != ""} for row in rows]
        except (TypeError, ValueError, csv.Error) as error:
            # Of a line with a field too many, the value is a list; of one too short, None.
            raise ValueError(f"{path}: line {rows.line_num} is no row of a log ({error})") from None
    if any("step" not in row for row in found):
        raise ValueError(f'{path}: not the log of a run: it has no column "step"')
    return found


class Pace:
    """How fast steps go by, and how much of their time was spent waiting for input.

    Example:

    >>> pace = isa_tf.training.Pace()
    >>> pace.step(images=8, waited=0.01)
    >>> sorted(pace.take())
    ['images_per_second', 'step_seconds', 'waiting']
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self):
        self.start, self.steps, self.images, self.waited = time.monotonic(), 0, 0, 0.0

    def step(self, images: int, waited: float) -> None:
        """Counts a step of so many images that waited so many seconds for them."""
        self.steps += 1
        self.images += images
        self.waited += waited

    def take(self) -> dict[str, float]:
        """The means since the last call: a dict, empty where there was no step."""
        seconds = time.monotonic() - self.start
        found = {}
        if self.steps and seconds > 0:
            found = {
                "images_per_second": self.images / seconds,
                "step_seconds": seconds / self.steps,
                "waiting": self.waited / seconds,
            }
        self._begin()
        return found


class RecentMean:
    """Of a mean that runs on from a step, as Keras tells it, the mean since it was last taken.

    Args:
        begin: int, the step behind which the running mean begins.

    Example:

    >>> recent = isa_tf.training.callbacks.RecentMean(begin=0)
    >>> recent.take(2, 4.0), recent.take(4, 3.0)
    (4.0, 2.0)
    """

    def __init__(self, begin: int) -> None:
        self.begin, self.taken, self.total = begin, 0, 0.0

    def take(self, step: int, mean: float) -> float:
        """The mean of the steps after the last that was taken, up to `step`."""
        count = step - self.begin
        total = count * mean
        recent = (total - self.total) / (count - self.taken)
        self.taken, self.total = count, total
        return recent


def memory_gib() -> float:
    """The most memory that was used so far, GiB: of the first GPU, else of this process."""
    if runtime.has_gpu():
        return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**30
    import resource  # which Windows has not

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Progress:
    """Says how far a run is and when it will be done.

    Args:
        steps: int, of the whole run.
        verbose: 0 for silence, 1 for a line that is written over, 2 for a line now and then, or
            "auto": 1 on a terminal, else 2.
        every: float, seconds between two lines where `verbose` is 2. Defaults to 60.
    """

    def __init__(self, steps: int, verbose: int | str = "auto", every: float = 60.0) -> None:
        if verbose == "auto":
            verbose = 1 if sys.stdout.isatty() else 2
        self.steps, self.verbose = steps, int(verbose)
        self.every = 0.2 if self.verbose == 1 else every
        self.last = self.begin = time.monotonic()
        self.first: tuple[float, int] | None = None
        self.width = 0
        self.validations: list[float] = []
        self.validating = 0.0

    def train(self, step: int, loss: float, left_validations: int) -> None:
        """A step is done.

        Args:
            step: int, how many are done.
            loss: float.
            left_validations: int, how many are still to come.
        """
        now = time.monotonic()
        if self.first is None:  # the first step is traced and compiled
            self.first = (now, step)
        if now - self.last < self.every:
            return
        self.last = now
        begin, first = self.first
        text = f"step {step:,} of {self.steps:,}  loss {loss:.4f}"
        if step > first:
            pace = (now - begin - self.validating) / (step - first)
            left = pace * (self.steps - step)
            if self.validations:
                left += left_validations * self.validations[-1]
            text += f"  {pace:.3g} s a step  done in {duration(left)}"
        self.say(text)

    def validate(self, batch: int, batches: int | None, seconds: float) -> None:
        """A batch of a validation is done, of `batches` or, where that is not known, `None`."""
        now = time.monotonic()
        if now - self.last < self.every:
            return
        self.last = now
        text = f"validating, batch {batch:,}"
        if batches:
            text += f" of {batches:,}  done in {duration(seconds / batch * (batches - batch))}"
        self.say(text)

    def validated(self, seconds: float) -> None:
        """A validation took so long."""
        self.validations.append(seconds)
        if self.first is not None:
            self.validating += seconds

    def say(self, text: str, keep: bool = False) -> None:
        """Prints a line, over the last one where lines are written over and it need not stay."""
        if not self.verbose:
            return
        try:
            if self.verbose == 1:
                print(f"\r{text:<{self.width}}", end="\n" if keep else "", flush=True)
                self.width = 0 if keep else len(text)
            else:
                print(text, flush=True)
        except OSError:  # nobody reads it any more, or its disk is full: no reason to end a run
            self.verbose = 0


def duration(seconds: float) -> str:
    """ "2 h 05 min" and the like.

    >>> duration(7500), duration(75), duration(7.5)
    ('2 h 05 min', '1 min 15 s', '8 s')
    """
    seconds = math.ceil(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


class TensorBoard:
    """Writes numbers and a picture at the step they are of, for TensorBoard.

    Args:
        folder: of TensorBoard's files.
    """

    def __init__(self, folder: StrPath) -> None:
        self.writer = tf.summary.create_file_writer(str(folder))

    def write(
        self, step: int, numbers: Mapping[str, float], picture: np.ndarray | None = None
    ) -> None:
        """Writes a dict of numbers and, where there is one, a picture (H, W, 3), uint8."""
        with self.writer.as_default(step):
            for name, value in numbers.items():
                if name != "step":
                    tf.summary.scalar(name, value)
            if picture is not None:
                tf.summary.image("predictions", picture[None])
        self.writer.flush()


def read_scalars(folder: StrPath, name: str) -> dict[int, float]:
    """A number that TensorBoard was told, by step; where a run has told a step again, the last.

    Args:
        folder: of TensorBoard's files.
        name: of the number, such as "training/loss".

    Returns:
        {step: value}, in the order of the steps; empty where it was never told.

    Example:

    >>> isa_tf.training.callbacks.TensorBoard("told").write(50, {"training/loss": 0.5})
    >>> isa_tf.training.read_scalars("told", "training/loss")
    {50: 0.5}
    """
    found = {}
    for path in sorted(Path(folder).glob("events*")):
        # A record that was cut as its process died is the last one.
        records = tf.data.TFRecordDataset(str(path)).ignore_errors()
        for record in records.as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            for value in event.summary.value:
                if value.tag == name:
                    found[event.step] = float(tf.make_ndarray(value.tensor))
    return dict(sorted(found.items()))
