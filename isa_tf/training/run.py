"""A training from its first step to its last, whatever comes between."""

import logging
from pathlib import Path

import keras

from isa_tf.training.averaging import SwapAveragedWeights
from isa_tf.training.callbacks import CSVLog, StepLog, TensorBoardLog, read_log
from isa_tf.training.checkpoint import LAST, Checkpoints, best_score, resume

LOG = "log.csv"

logger = logging.getLogger(__name__)


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
