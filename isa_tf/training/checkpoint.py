"""The last state of a run, to go on from, and its best model, to use."""

import json
from pathlib import Path

import keras

from isa_tf.files import replacing, save_model

LAST = "last.keras"
BEST = "best.keras"
BEST_SCORE = "best.json"


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
