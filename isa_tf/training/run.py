"""A training from its first step to its last, whatever comes between."""

import contextlib
import logging
import math
import os
import signal
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf

from isa_tf.compat import symbolic_build
from isa_tf.hints import StrPath
from isa_tf.training import workers
from isa_tf.training.averaging import SwapAveragedWeights, averaging_optimizer
from isa_tf.training.callbacks import (
    Pace,
    Progress,
    RecentMean,
    TensorBoard,
    duration,
    memory_gib,
)
from isa_tf.training.checkpoint import Damaged
from isa_tf.training.replicas import distribute, prepare, read_variable, write_variable
from isa_tf.training.workdir import TENSORBOARD, Workdir

_ASK_EVERY = 10
# A loss scale that has been halved so often has not met a finite gradient for long.
_LEAST_SCALE = 2.0**-24

_NORM = "optimizer/gradient_norm"

logger = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """A run that was told to stop, and has kept its state.

    Attributes:
        step: int, that it goes on from.
        exit_code: int, 128 plus the number of the signal, as shells have it.
    """

    def __init__(self, number: int, step: int, steps: int, workdir: Path) -> None:
        name = signal.Signals(number).name
        super().__init__(
            f"stopped by {name} at step {step:,} of {steps:,}, which is kept in {workdir}; "
            "the same command goes on from there"
        )
        self.step = step
        self.exit_code = 128 + number


class Run:
    """One training in one work directory, which goes on from wherever it stands.

    The run owns the directory for as long as its `with` block lasts: a second process is refused.
    It knows nothing of what is trained: data, metrics and pictures are handed to `fit`.

    In the directory are `config.json`; `checkpoints/`, the last two states: weights, optimizer,
    averages, metrics, the state of every random generator, the log and the best score so far;
    `log.csv`, a row for each validation; `best.keras`, the model that scored best, with
    `best.json`; `tensorboard/`. What a checkpoint tells is made anew from it where a file beside it
    is damaged.

    Args:
        workdir: path of the folder; made when the block is entered.
        config: dict that JSON can hold: what the run is, kept in `config.json`. A folder with
            another one is refused. Defaults to `None`, for `{}`.
        may_change: dotted names of the entries of `config` in which it may differ from the
            folder's; of a dict, its name stands for all it holds. Defaults to none.
        strategy: `tf.distribute.Strategy` that the model was made in. Defaults to `None`, the one
            in scope.

    Raises:
        ValueError: on entering, where the folder is another run's or nobody's, naming what differs.
        OSError: where another process has the folder, or it cannot be written to.

    Example:

    >>> train = lambda step, context: isa_tf.data.train_pipeline(
    ...     data, "train", 2, (96, 96), start_step=step, input_context=context
    ... )
    >>> val = lambda context: isa_tf.data.eval_pipeline(data, "val", input_context=context)
    >>> optimizer = isa_tf.training.make_optimizer("sgd", 0.01, steps=2)
    >>> metrics = [isa_tf.metrics.MeanIoU(data.num_classes)]
    >>> model.compile(optimizer, isa_tf.losses.PixelCrossEntropy(), metrics=metrics)
    >>> with isa_tf.training.Run("runs/example") as run:
    ...     best = run.fit(model, train, val, steps=2, validate_every=2, monitor="miou", verbose=0)
    >>> best["step"]
    2
    """

    train_logs: dict[str, float] | None  # of a validation that is still to come

    def __init__(
        self,
        workdir: StrPath,
        config: Mapping[str, Any] | None = None,
        may_change: Sequence[str] = (),
        strategy: tf.distribute.Strategy | None = None,
    ) -> None:
        self.folder = Workdir(workdir, config or {}, may_change)
        self.workdir, self.checkpoints = self.folder.path, self.folder.checkpoints
        self.strategy = strategy or tf.distribute.get_strategy()
        self._stop = None  # the signal that told the run to, or another worker's
        self._signalled = False  # whether it was this process's
        self._stack: contextlib.ExitStack | None = None

    # === The directory ===

    def __enter__(self) -> Self:
        self.chief = workers.is_chief(self.strategy)
        self._stack = contextlib.ExitStack()
        with self._stack as stack:
            self._by_chief(lambda: stack.enter_context(self.folder.owned()))
            stack.enter_context(self._signals())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        assert self._stack is not None  # of `__enter__`
        return self._stack.__exit__(*error)

    def _by_chief(self, act):
        workers.by_chief(self.strategy, act)

    # === Signals ===

    @contextlib.contextmanager
    def _signals(self):
        def note(number, frame):
            # Asked twice: at once. What another worker was told is no first time: a scheduler tells
            # all of them, some a moment later, as they are keeping the state.
            if self._signalled:
                raise KeyboardInterrupt
            self._signalled, self._stop = True, self._stop or number
            # Who reads it may have ended by the same Ctrl-C, as `tee` does.
            with contextlib.suppress(OSError):
                # Not `print`, in which the signal may have come.
                os.write(2, f"\n{signal.Signals(number).name}: keeping the state ...\n".encode())

        before = {}
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                # Who ignores a signal goes on ignoring it; only the main thread may listen.
                if signal.getsignal(number) != signal.SIG_IGN:
                    with contextlib.suppress(ValueError):
                        before[number] = signal.signal(number, note)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stops(self, count=0):
        """Whether any worker was told to stop: all stop at the same step.

        Asking one another takes some milliseconds, so workers do it once in some counts.
        """
        if count % _ASK_EVERY and workers.num_workers(self.strategy) > 1:
            return False
        if workers.any_of(self.strategy, self._stop is not None):
            self._stop = self._stop or signal.SIGTERM
            return True
        return False

    # === Training ===

    def fit(
        self,
        model: keras.Model,
        make_train_data: Callable[[int, tf.distribute.InputContext | None], tf.data.Dataset],
        make_val_data: Callable[[tf.distribute.InputContext | None], tf.data.Dataset] | None = None,
        *,
        steps: int,
        validate_every: int,
        monitor: str,
        checkpoint_every: int | None = None,
        evaluate: Callable[[keras.Model, Callable[[int, int | None], None]], dict[str, float]]
        | None = None,
        details: Callable[[keras.Model], Mapping[str, float]] | None = None,
        draw: Callable[[keras.Model], np.ndarray] | None = None,
        whole: keras.Model | None = None,
        batch_files: Callable[[int], Sequence[str]] | None = None,
        ema_batches: int = 32,
        log_every: int = 50,
        profile: Sequence[int] | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        verbose: int | str = "auto",
    ) -> dict[str, Any] | None:
        """Trains a compiled model up to `steps`, from where the work directory left off.

        Args:
            model: compiled `keras.Model`, made in the run's strategy.
            make_train_data: function of (first step, `tf.distribute.InputContext` or `None`) that
                gives a `tf.data.Dataset` without end: of whole batches or, where there is a
                context, of what each replica of that worker reads, one after the other.
            make_val_data: function of (context) that gives such a dataset, with an end, on which
                `model.evaluate` validates. Defaults to `None`: `evaluate` does.
            steps: int, the length of the whole training.
            validate_every: int, steps.
            monitor: name of the metric, or of the score of `evaluate`, by which models are
                compared, larger is better.
            checkpoint_every: int, steps after which the state is kept, apart from validations,
                where it always is. Defaults to `None`, for those alone.
            evaluate: in place of `make_val_data`, how a model is validated by what is no Keras
                metric: function of (model, watch) that gives a dict of floats, the same in all
                workers, which all call it. It is to call `watch(done, total)` after every image or
                batch, `total` being `None` where it is not known, and as often in every worker;
                there progress is told, and the run stops where it is told to. Defaults to `None`.
            details: function of the model, called after every validation, that gives a dict of
                further numbers for the log, such as a score of each class. Defaults to `None`.
            draw: function of the model that gives a picture (H, W, 3), uint8, for TensorBoard,
                called by the chief after every validation. Defaults to `None`.
            whole: `keras.Model` of which `model` is a part, with the same variables, and which is
                what `best.keras` keeps. Defaults to `None`, for `model`.
            batch_files: function of a step that gives the names of the examples in its batch, to
                name them where the loss is not finite. Defaults to `None`.
            ema_batches: int, where the optimizer averages the weights: batches on which the moving
                statistics of the average are estimated. Defaults to 32.
            log_every: int, steps between what TensorBoard is told of training, of means since the
                last time or the last validation. Defaults to 50.
            profile: (first, last) step to trace for TensorBoard's profiler. Defaults to `None`.
            callbacks: `keras.callbacks.Callback`s for every call of `model.fit`. Defaults to none.
            verbose: 0 for silence, 1 for a line that is written over, 2 for lines now and then, or
                "auto". Defaults to "auto".

        Returns:
            {"step": ..., monitor: ...} of the best model; `None` where nothing was validated.

        Raises:
            ValueError: where no checkpoint fits the model, there is no metric or score `monitor`,
                the training data end, the model is compiled with `steps_per_execution` above 1, or
                where it is not one of `make_val_data` and `evaluate` that is given.
            FloatingPointError: where the loss or the gradient is not finite, naming the step; what
                was kept before is as it was.
            Interrupted: after SIGTERM or Ctrl-C; the state is kept.
        """
        for name, value in (("steps", steps), ("validate_every", validate_every)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if checkpoint_every is not None and checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be at least 1, got {checkpoint_every}")
        if (make_val_data is None) == (evaluate is None):
            raise ValueError("a run validates by make_val_data or by evaluate, by one of them")
        if model.steps_per_execution != 1:
            raise ValueError(
                "a run looks at every step: compile the model with steps_per_execution=1, got "
                f"{model.steps_per_execution}"
            )
        self.model, self.steps, self.monitor = model, steps, monitor
        self.checkpoint_every, self.log_every = checkpoint_every, log_every
        self.details, self.draw, self.batch_files = details, draw, batch_files
        self.profile, self.whole = profile, whole or model
        self._make_train_data = make_train_data
        self._make_val_data, self._evaluate = make_val_data, evaluate
        self._copy = None
        self._profiling = False
        prepare(model)
        # All variables are made now, so that there are places for those that are read back.
        with self.strategy.scope():
            symbolic_build(model, make_train_data(0, None).element_spec)
        self._averages = None
        if averaging_optimizer(model.optimizer) is not None:
            if ema_batches < 1:
                raise ValueError(f"ema_batches must be at least 1, got {ema_batches}")
            # Read again at each validation: batches are a function of seed and step, so they are
            # the same each time, and need not be held in memory.
            self._averages = SwapAveragedWeights(self._statistics_data(ema_batches))
            self._averages.set_model(model)
        self._restore()
        self._end = self.step
        if self.step > steps:  # of an earlier phase, or done before `steps` was lowered
            return self._best()
        if profile and self.chief and not self.step < profile[0] <= steps:
            told = f"step {profile[0]} is not among those to come, {self.step + 1} to {steps}"
            logger.warning("nothing is profiled: %s", told)
        self._tensorboard = TensorBoard(self.workdir / TENSORBOARD) if self.chief else None
        self._progress = Progress(steps, verbose if self.chief else 0)
        self._begin = time.monotonic() - self.seconds
        self._pace, self._since_log = Pace(), Pace()
        if 0 < self.step < steps:
            self._progress.say(f"going on from step {self.step:,} of {steps:,}", keep=True)

        if self.train_logs is not None:  # it was stopped before or in a validation
            self._validate()
        data = None
        with self._timed_steps():
            while self.step < steps:
                to_next = validate_every - self.step % validate_every
                length = min(to_next, steps - self.step)
                data = distribute(
                    self.strategy, lambda context: make_train_data(self.step, context)
                )
                self.left_validations = math.ceil((steps - self.step) / validate_every)
                begin, self._end = self.step, self.step + length
                # An epoch, and Keras's mean, begin behind a validation, which has a row.
                self._recent_loss = RecentMean(self.rows[-1]["step"] if self.rows else 0)
                history = model.fit(
                    data,
                    steps_per_epoch=length,
                    epochs=1,
                    callbacks=[*callbacks, _Watch(self)],
                    shuffle=False,
                    verbose=0,
                )
                if self.step == begin:
                    raise ValueError(
                        f"the training data have no batch at step {begin:,}: make_train_data is to "
                        "give a dataset without end"
                    )
                self.train_logs = {k: float(v[-1]) for k, v in history.history.items()}
                self.train_logs.update(self._optimizer_numbers())
                self._keep()
                self._validate()
        del data
        if self.best is None and self.step > 0:
            # The file of the best model was lost, and no validation is to come.
            self.train_logs = {}
            self._validate()
        return self._best()

    def _best(self):
        return self.best and {name: self.best[name] for name in ("step", self.monitor)}

    def _statistics_data(self, batches):
        class Again:
            """Makes the data anew each time it is read."""

            def __iter__(_):
                data = distribute(self.strategy, lambda context: self._make_train_data(0, context))
                iterator = iter(data)
                return (next(iterator) for _ in range(batches))

        return Again()

    @contextlib.contextmanager
    def _timed_steps(self):
        """Has `fit` fetch each batch outside of the step's graph, where its time can be told."""
        model = self.model
        model.make_train_function()
        step = model.train_function
        replicas = self.strategy.num_replicas_in_sync

        def timed(iterator):
            begin = time.monotonic()
            batch = next(iterator)
            waited = time.monotonic() - begin
            first = keras.tree.flatten(batch)[0]
            parts = self.strategy.experimental_local_results(first)
            images = int(parts[0].shape[0]) * replicas
            logs = step([batch])
            for pace in (self._pace, self._since_log):
                pace.step(images, waited)
            return logs

        model.train_function = timed
        try:
            yield
        finally:
            model.train_function = step
            if self._profiling:
                tf.profiler.experimental.stop()

    def _after_step(self, logs):
        """Counts a step; looks whether it went well, and what is due."""
        self.step += 1
        loss = float(np.ravel(logs["loss"])[0])
        self._check_finite(loss)
        self._progress.train(self.step, loss, self.left_validations)
        if self._tensorboard and self.step % self.log_every == 0:
            recent = self._recent_loss.take(self.step, loss)
            numbers = {**self._since_log.take(), **self._optimizer_numbers(), "loss": recent}
            self._tensorboard.write(
                self.step, {f"training/{name}": value for name, value in numbers.items()}
            )
        self._trace()
        stops = self._stops(self.step)
        if self.step < self._end:  # else the state is kept with the numbers of the whole epoch
            if stops or (self.checkpoint_every and self.step % self.checkpoint_every == 0):
                self._keep()
            if stops:
                self._interrupt()

    def _interrupt(self):
        raise Interrupted(self._stop, self.step, self.steps, self.workdir)

    def _check_finite(self, loss):
        optimizer = self.model.optimizer
        norm = self._norm()
        scale = getattr(optimizer, "dynamic_scale", None)
        scale = None if scale is None else float(read_variable(scale))
        wrong = None
        if not math.isfinite(loss):
            wrong = f"the loss is {loss}"
        elif scale is None and not math.isfinite(norm):
            wrong = f"the norm of the gradient is {norm}"
        elif scale is not None and scale < _LEAST_SCALE:
            wrong = f"no gradient is finite, at a loss scale of {scale:.1g} yet"
        if wrong is None:
            return
        step = self.step
        names = self.batch_files(step - 1) if self.batch_files else []
        batch = f" The examples of its batch: {', '.join(map(str, names))}." if names else ""
        kept = self.checkpoints.paths()[0]
        raise FloatingPointError(
            f"step {step} of {self.steps}: {wrong}.{batch} Nothing of it is kept; the same command "
            f"goes on from {kept}"
        )

    def _norm(self):
        """That of the last gradient; 0 where the optimizer does not tell."""
        norm = getattr(self.model.optimizer, "gradient_norm", None)
        return 0.0 if norm is None else float(read_variable(norm))

    def _optimizer_numbers(self):
        optimizer = self.model.optimizer
        found = {"learning_rate": float(optimizer.learning_rate)}
        norm = self._norm()
        if 0 < norm < math.inf:  # else the loss scale left the step out
            found["gradient_norm"] = norm
        return found

    def _trace(self):
        if not (self.profile and self.chief):
            return
        first, last = self.profile
        if self.step == first and not self._profiling:
            tf.profiler.experimental.start(str(self.workdir / TENSORBOARD))
            self._profiling = True
        elif self._profiling and self.step >= last:
            tf.profiler.experimental.stop()
            self._profiling = False

    # === Validation ===

    def _validate(self):
        """Validates the model as it is, or its averages; keeps what there is to keep."""
        begin = time.monotonic()
        model = self.model
        if self._stops():
            self._interrupt()
        if self._averages:
            self._averages.on_test_begin()
        try:
            logs, more, picture = self._score(model)
        finally:
            if self._averages:
                self._averages.on_test_end()
        seconds = time.monotonic() - begin
        self._progress.validated(seconds)
        row = {
            "step": self.step,
            **self.train_logs,
            **{f"val_{name}": value for name, value in logs.items()},
            **more,
            **self._pace.take(),
            "memory_gib": round(memory_gib(), 3),
            "seconds": round(time.monotonic() - self._begin, 1),
        }
        # Where a step is validated again, for the sake of a best model that was lost, the row
        # goes on telling of the training before it.
        known = next((r for r in self.rows if r["step"] == self.step), {})
        self.rows = [r for r in self.rows if r["step"] < self.step] + [{**known, **row}]
        self.train_logs = None
        self._by_chief(lambda: self._tell(row, picture))
        self._keep()
        self._progress.say(
            f"step {self.step:,} of {self.steps:,}  val_{self.monitor} {logs[self.monitor]:.4f}, "
            f"best {self.best[self.monitor]:.4f} at step {self.best['step']:,}  after "
            f"{duration(row['seconds'])}",
            keep=True,
        )
        self._pace, self._since_log = Pace(), Pace()

    def _score(self, model):
        """(scores, further numbers, picture or `None`) of a model; keeps the model if best."""
        if self._evaluate is not None:
            begin = time.monotonic()
            logs = self._evaluate(
                model, lambda done, total=None: self._after_validated(done, total, begin)
            )
        else:
            data = distribute(self.strategy, self._make_val_data)
            with warnings.catch_warnings():
                # What Keras says at the end of data whose number of batches it did not know.
                warnings.filterwarnings("ignore", "Your input ran out of data")
                logs = model.evaluate(data, callbacks=[_Watch(self)], verbose=0, return_dict=True)
        logs = {name: float(value) for name, value in logs.items()}
        if self.monitor not in logs:
            raise ValueError(f"no metric {self.monitor!r} to compare models by: {', '.join(logs)}")
        if not all(map(math.isfinite, logs.values())):
            raise FloatingPointError(
                f"step {self.step}: the validation gives {logs}, which is not finite; nothing of "
                "it is kept"
            )
        more = {} if self.details is None else self.details(model)
        more = {name: float(value) for name, value in more.items()}
        if self.best is None or logs[self.monitor] > self.best[self.monitor]:
            self.best = {"step": self.step, self.monitor: logs[self.monitor], "sha256": None}
            self._by_chief(self._keep_best)
        picture = self.draw(model) if self.draw is not None and self.chief else None
        return logs, more, picture

    def _after_validated(self, done, total, begin):
        """Tells how far a validation is, and ends it where the run is told to stop."""
        self._progress.validate(done, total, time.monotonic() - begin)
        if self._stops(done):
            self._interrupt()

    def _keep_best(self):
        """Keeps the model as it is, without an optimizer, and what it scored."""
        if self._copy is None:
            # Without an optimizer the file is a third of the size, and loads anywhere.
            self._copy = self.whole.from_config(self.whole.get_config())
        self._copy.set_weights(self.whole.get_weights())
        self.folder.keep_best(self._copy, self.best)

    def _tell(self, row, picture):
        self.folder.write_log(self.rows)
        self._tensorboard.write(self.step, row, picture)

    # === State ===

    def _variables(self):
        """Every variable that what is to come depends on, by name."""
        groups = {
            "model": self.model.variables,
            "optimizer": self.model.optimizer.variables,
            "metrics": self.model.metrics_variables,
        }
        named = {f"{g}/{i:05d}": v for g, found in groups.items() for i, v in enumerate(found)}
        if hasattr(self.model.optimizer, "gradient_norm"):  # which Keras does not count in
            named[_NORM] = self.model.optimizer.gradient_norm
        return named

    def _keep(self):
        """Keeps the state as a checkpoint of this step."""
        arrays = {name: read_variable(v) for name, v in self._variables().items()}
        if _NORM in arrays and not np.isfinite(arrays[_NORM]):
            arrays[_NORM] = np.zeros_like(arrays[_NORM])  # the loss scale has left the step out
        facts = {
            "config": self.folder.config,
            "run": self.folder.identity(),
            "best": self.best,
            "rows": self.rows,
            "seconds": round(time.monotonic() - self._begin, 1),
            "train_logs": self.train_logs,
            "within_epoch": self.step < self._end,
        }
        self._by_chief(lambda: self.checkpoints.write(self.step, arrays, facts))

    def _restore(self):
        """Takes up the newest state that can be used, or keeps that of the beginning."""
        variables = self._variables()

        def check(facts, arrays):
            self._check_state(facts, arrays, variables)

        error = found = None
        try:
            found = self.checkpoints.newest(check)
        except Damaged as caught:
            error = caught
        if workers.any_of(self.strategy, error is not None):
            raise error or ValueError("another worker found no checkpoint to go on from")
        step = -1 if found is None else found[0]["step"]
        # The folder must be one that all workers share.
        workers.agree(self.strategy, step, f"step of the state found in {self.workdir}")
        self._metrics = {}
        if found is None:
            self._begin_anew()
            return
        facts, arrays = found
        for name, variable in variables.items():
            if name.startswith("metrics/"):
                if facts["within_epoch"]:  # set once `fit`, as it begins, has set them to zero
                    self._metrics[name] = arrays[name]
            else:
                write_variable(variable, arrays[name])
        self.step, self.rows, self.seconds = facts["step"], facts["rows"], facts["seconds"]
        self.train_logs, self.best = facts["train_logs"], facts["best"]
        if self.best and self.monitor not in self.best:
            logger.warning("the best model so far was not chosen by %s: forgotten", self.monitor)
            self.best = None
        self._by_chief(self._mend)
        # What the chief found out of the best model's file, the others must know.
        if workers.any_of(self.strategy, self.best is None):
            self.best = None

    def _begin_anew(self):
        self.folder.check_new()
        self.step, self.rows, self.seconds, self.train_logs, self.best = 0, [], 0.0, None, None
        self._begin, self._end = time.monotonic(), 0
        # So that a folder whose checkpoints are gone is not taken for one that has just begun.
        self._keep()

    def _check_state(self, facts, arrays, variables):
        """Raises ValueError where a checkpoint is not of this run, model and optimizer."""
        if facts.get("run") != self.folder.identity():
            raise ValueError("it is of another run, whose config differs")
        expected = {name: (tuple(v.shape), str(v.dtype)) for name, v in variables.items()}
        found = {name: (a.shape, a.dtype.name) for name, a in arrays.items()}
        for group in ("model", "optimizer", "metrics"):
            ours, theirs = (
                {k: v for k, v in d.items() if k.startswith(group)} for d in (expected, found)
            )
            if ours != theirs:
                raise ValueError(
                    f"it is of another {group}: {_difference(ours, theirs)} (in the file)"
                )
        iterations = [
            int(arrays[name])
            for name, variable in variables.items()
            if name.startswith("optimizer/") and variable.path.endswith("/iteration")
        ]
        step = facts["step"]
        if any(not 0 <= i <= step for i in iterations):
            raise ValueError(f"of an impossible step: {step}, its optimizer counts {iterations}")

    def _mend(self):
        pending = self.train_logs is not None
        if not self.folder.mend(self.step, self.rows, self.best, pending):
            self.best = None

    def restore_metrics(self) -> None:
        """Gives the metrics what they had counted of an epoch that is gone on with."""
        if self._metrics:
            variables = self._variables()
            for name, array in self._metrics.items():
                write_variable(variables[name], array)
            self._metrics = {}


class _Watch(keras.callbacks.Callback):
    """What a run hears of from `fit` and `evaluate`."""

    def __init__(self, run):
        super().__init__()
        self.run = run

    def on_epoch_begin(self, epoch, logs=None):
        self.run.restore_metrics()

    def on_train_batch_end(self, batch, logs=None):
        self.run._after_step(logs)

    def on_test_begin(self, logs=None):
        self.begin = time.monotonic()

    def on_test_batch_end(self, batch, logs=None):
        total = (self.params or {}).get("steps")
        self.run._after_validated(batch + 1, total, self.begin)


def _difference(ours, theirs):
    """In words, the first thing in which two dicts of (shape, dtype) differ."""
    if len(ours) != len(theirs):
        return f"{len(ours)} variables, {len(theirs)}"
    for name, value in ours.items():
        if theirs.get(name) != value:
            return f"{name} is {value}, {theirs.get(name)}"
    return "nothing"
