"""What `fit` needs around a model: optimizer, checkpoints, logs, exact resumption."""

import csv
import json
import logging
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from isa_tf.files import replacing, save_model
from isa_tf.schedules import CoupledSGD, PolyDecay

LAST = "last.keras"
BEST = "best.keras"
BEST_SCORE = "best.json"
LOG = "log.csv"

logger = logging.getLogger(__name__)


def make_optimizer(
    name,
    learning_rate,
    steps,
    *,
    momentum=0.9,
    weight_decay=0.0,
    power=0.9,
    end_learning_rate=0.0,
    warmup_steps=0,
    clip_norm=None,
    ema=0.0,
):
    """SGD or AdamW under the poly schedule.

    Args:
        name: "sgd", with `weight_decay` in the gradient of every weight as published; or "adamw",
            with decoupled decay of the kernels alone (no normalisation, no bias).
        learning_rate: float, at the start.
        steps: int, length of the training.
        momentum: float, of SGD. Defaults to 0.9.
        weight_decay: float. Defaults to 0.
        power: float, of the schedule. Defaults to 0.9.
        end_learning_rate: float. Defaults to 0.
        warmup_steps: int. Defaults to 0.
        clip_norm: float, the largest norm of the whole gradient; `None` for any. Defaults to
            `None`.
        ema: float, the share of the averaged weights that is kept a step; 0 for no average.
            Defaults to 0.

    Returns:
        A `keras.optimizers.Optimizer`.

    Raises:
        ValueError: for an unknown name, or what `PolyDecay` and Keras refuse.

    Example:

    >>> optimizer = make_optimizer("sgd", 0.01, steps=40_000, weight_decay=5e-4)
    """
    schedule = PolyDecay(learning_rate, steps, power, end_learning_rate, warmup_steps)
    common = {"global_clipnorm": clip_norm}
    if ema:
        common.update(use_ema=True, ema_momentum=ema)
    if name == "sgd":
        return CoupledSGD(schedule, l2=weight_decay, momentum=momentum, **common)
    if name == "adamw":
        optimizer = keras.optimizers.AdamW(schedule, weight_decay=weight_decay, **common)
        optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
        return optimizer
    raise ValueError(f'optimizer must be "sgd" or "adamw", got {name!r}')


class StepLog(keras.callbacks.Callback):
    """Adds "step", "learning_rate" and "seconds" to the logs of an epoch, for those after it.

    Args:
        seconds: float, how long the training had run before. Defaults to 0.
    """

    def __init__(self, seconds=0.0):
        super().__init__()
        self.begin = time.monotonic() - seconds

    def on_epoch_end(self, epoch, logs=None):
        logs["step"] = int(self.model.optimizer.iterations.numpy())
        logs["learning_rate"] = float(self.model.optimizer.learning_rate)
        logs["seconds"] = round(time.monotonic() - self.begin, 1)


class CSVLog(keras.callbacks.Callback):
    """Appends the logs of every epoch to a CSV file.

    Unlike `keras.callbacks.CSVLogger` it keeps one header over restarts and drops the rows of steps
    that a resumed training runs again.

    Args:
        path: of the file.
    """

    def __init__(self, path):
        super().__init__()
        self.path = Path(path)

    def on_epoch_end(self, epoch, logs=None):
        rows = read_log(self.path)
        rows = [row for row in rows if row["step"] < logs["step"]] + [logs]
        names = ["step", *sorted({name for row in rows for name in row} - {"step"})]
        with replacing(self.path) as path, open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)


def read_log(path):
    """The rows of a `CSVLog`: a list of dicts of floats, empty where there is no file."""
    if not Path(path).exists():
        return []
    with open(path, newline="") as file:
        return [{k: float(v) for k, v in row.items() if v != ""} for row in csv.DictReader(file)]


class Checkpoints(keras.callbacks.Callback):
    """Keeps the last state, to go on from, and the best model, to use.

    `last.keras` holds weights, optimizer and step after every epoch. `best.keras` is the model
    alone, with the weights that were validated; put this callback before
    `SwapAveragedWeights`, so that those are the averaged ones. Files are replaced only
    once they are complete.

    Args:
        workdir: folder.
        monitor: name of the validation metric, larger is better. Defaults to "miou".
    """

    def __init__(self, workdir, monitor="miou"):
        super().__init__()
        self.workdir = Path(workdir)
        self.monitor = monitor
        self.copy = None

    def on_test_end(self, logs=None):
        score = float(logs[self.monitor])
        best = best_score(self.workdir)
        if best is not None and not score > best[self.monitor]:
            return
        if self.copy is None:
            # Without an optimizer the file is a third of the size, and loads anywhere.
            self.copy = self.model.from_config(self.model.get_config())
        self.copy.set_weights(self.model.get_weights())
        save_model(self.copy, self.workdir / BEST)
        step = int(self.model.optimizer.iterations.numpy())
        with replacing(self.workdir / BEST_SCORE) as path:
            path.write_text(json.dumps({"step": step, self.monitor: score}) + "\n")

    def on_epoch_end(self, epoch, logs=None):
        save_model(self.model, self.workdir / LAST)


def estimate_statistics(model, batches):
    """Sets the moving statistics of every batch normalisation to their mean over batches.

    An average of weights needs it: the moving statistics were gathered under the weights of each
    step, whose activations are spread otherwise, and with them an average taken while the weights
    still move scores far below either.

    Args:
        model: `keras.Model`; normalisations that are not trainable stay as they are.
        batches: iterable of (image, label), at least one.

    Raises:
        ValueError: where there is no batch.

    Example:

    >>> train = isa_tf.data.train_pipeline(data, "train", 2, (96, 96))
    >>> estimate_statistics(model, train.take(2))

    Source: as `torch.optim.swa_utils.update_bn`.
    """
    norms = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    if not norms:
        return
    statistics = [s for norm in norms for s in (norm.moving_mean, norm.moving_variance)]
    # A step keeps `momentum` of what was there, here zeros, and takes up the rest.
    shares = np.repeat([1.0 - norm.momentum for norm in norms], 2)
    others = [v for v in model.non_trainable_variables if all(v is not s for s in statistics)]
    kept = [v.numpy() for v in others]  # the state of dropout
    strategy = tf.distribute.get_strategy()
    run = tf.function(lambda image: strategy.run(forward, (image,)), jit_compile=False)

    def forward(image):
        model(image, training=True)

    totals, count = [0.0] * len(statistics), 0
    for image, _ in batches:
        for moving in statistics:
            moving.assign(tf.zeros_like(moving))
        run(image)
        totals = [total + s.numpy() for total, s in zip(totals, statistics, strict=True)]
        count += 1
    if not count:
        raise ValueError("no batch to estimate the moving statistics on")
    for moving, total, share in zip(statistics, totals, shares, strict=True):
        moving.assign(total / (count * share))
    for variable, value in zip(others, kept, strict=True):
        variable.assign(value)


class SwapAveragedWeights(keras.callbacks.SwapEMAWeights):
    """Validates the averaged weights, with moving statistics that are theirs.

    For the time of a validation the optimizer's averages stand in the model, and the moving
    statistics are estimated anew (see `estimate_statistics`). After it all is as it was, also at
    the end of `fit`, where Keras would leave the averages in the model.

    Args:
        batches: iterable of (image, label) to estimate on, the same at each validation.

    Example:

    >>> train = isa_tf.data.train_pipeline(data, "train", 2, (96, 96))
    >>> val = isa_tf.data.eval_pipeline(data, "val", 1)
    >>> optimizer = make_optimizer("sgd", 0.01, steps=2, ema=0.9)
    >>> model.compile(optimizer, isa_tf.losses.PixelCrossEntropy())
    >>> averaged = [SwapAveragedWeights(train.take(2))]
    >>> history = model.fit(
    ...     train, steps_per_epoch=2, validation_data=val, callbacks=averaged, verbose=0
    ... )
    """

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_test_begin(self, logs=None):
        super().on_test_begin(logs)
        self._kept = [v.numpy() for v in self.model.non_trainable_variables]
        estimate_statistics(self.model, self.batches)

    def on_test_end(self, logs=None):
        super().on_test_end(logs)
        for variable, value in zip(self.model.non_trainable_variables, self._kept, strict=True):
            variable.assign(value)

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        self._weights = [v.numpy() for v in self.model.trainable_variables]

    def on_train_end(self, logs=None):
        for variable, value in zip(self.model.trainable_variables, self._weights, strict=True):
            variable.assign(value)


class TensorBoardLog(keras.callbacks.Callback):
    """Writes scalars and prediction pictures at the true step, for TensorBoard.

    Args:
        log_dir: folder.
        draw: function from the model to a uint8 picture (H, W, 3), called after every validation;
            or `None` for scalars alone.
    """

    def __init__(self, log_dir, draw=None):
        super().__init__()
        self.writer = tf.summary.create_file_writer(str(log_dir))
        self.draw = draw

    def on_test_end(self, logs=None):
        if self.draw is not None:
            with self.writer.as_default(int(self.model.optimizer.iterations.numpy())):
                tf.summary.image("photo, truth, prediction", self.draw(self.model)[None])

    def on_epoch_end(self, epoch, logs=None):
        with self.writer.as_default(int(logs["step"])):
            for name, value in logs.items():
                if name != "step":
                    tf.summary.scalar(name, value)
        self.writer.flush()


def best_score(workdir):
    """What is known of the best model so far: {"step": ..., monitor: ...}, or `None`."""
    path = Path(workdir) / BEST_SCORE
    return json.loads(path.read_text()) if path.exists() else None


def resume(model, workdir):
    """Loads the last state of a work directory into a compiled model, optimizer and all.

    Returns:
        int, the step to go on from; 0 where there is nothing to load.

    Raises:
        ValueError: where the file does not fit the model.
    """
    path = Path(workdir) / LAST
    if not path.exists():
        return 0
    model.optimizer.build(model.trainable_variables)
    try:
        model.load_weights(path)
    except Exception as error:
        raise ValueError(f"{path}: not the last state of this model: {error}") from error
    return int(model.optimizer.iterations.numpy())


def segments(step, steps, validate_every):
    """The calls of `fit` from `step` to `steps`, a validation every `validate_every` steps.

    Returns:
        A list of (first step, epochs, steps an epoch): whole intervals, and what is left of one
        at either end.

    Example:

    >>> segments(500, 2250, 500)
    [(500, 3, 500), (2000, 1, 250)]
    """
    calls = []
    if step % validate_every and step < steps:
        length = min(validate_every - step % validate_every, steps - step)
        calls.append((step, 1, length))
        step += length
    if whole := max(0, steps - step) // validate_every:
        calls.append((step, whole, validate_every))
        step += whole * validate_every
    if step < steps:
        calls.append((step, 1, steps - step))
    return calls


def fit(
    model,
    make_train_data,
    val_data,
    workdir,
    steps,
    validate_every,
    draw=None,
    ema_batches=32,
    **kwargs,
):
    """Trains a compiled model up to `steps`, from where its work directory left off.

    Args:
        model: compiled, with a "miou" metric.
        make_train_data: function from the first step to a `tf.data.Dataset` of batches without
            end that begins at that step.
        val_data: `tf.data.Dataset` of batches.
        workdir: folder for `last.keras`, `best.keras`, `best.json`, `log.csv` and TensorBoard's
            files.
        steps: int, the length of the whole training.
        validate_every: int, steps.
        draw: see `TensorBoardLog`.
        ema_batches: int, where the optimizer averages the weights: batches on which the moving
            statistics of the average are estimated. Defaults to 32.
        **kwargs: for `model.fit`, such as `verbose`.

    Returns:
        What `best_score` knows at the end.

    Raises:
        ValueError: where `last.keras` is not of this model.
        FloatingPointError: where the loss is no longer a number.
    """
    workdir = Path(workdir)
    step = resume(model, workdir)
    if step:
        logger.info("going on from step %d of %d", step, steps)
    before = [row["seconds"] for row in read_log(workdir / LOG) if row["step"] <= step]
    callbacks = [
        StepLog(max(before, default=0.0)),
        Checkpoints(workdir),
        CSVLog(workdir / LOG),
        TensorBoardLog(workdir / "tensorboard", draw),
        keras.callbacks.TerminateOnNaN(),
    ]
    if model.optimizer.use_ema:
        # Read again at each validation: batches are a function of seed and step, so they are the
        # same each time, and need not be held in memory.
        callbacks.append(SwapAveragedWeights(make_train_data(0).take(ema_batches)))
    for first, epochs, length in segments(step, steps, validate_every):
        done = first // validate_every
        model.fit(
            make_train_data(first),
            initial_epoch=done,
            epochs=done + epochs,
            steps_per_epoch=length,
            validation_data=val_data,
            callbacks=callbacks,
            shuffle=False,
            **kwargs,
        )
        if model.stop_training:
            raise FloatingPointError(
                f"the loss is not a number any more; {workdir / LAST} is the state before"
            )
    return best_score(workdir)
