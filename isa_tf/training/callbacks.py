"""What a run tells of itself as it goes: its step, its log, TensorBoard."""

import csv
import time
from pathlib import Path

import keras
import tensorflow as tf

from isa_tf.files import replacing


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
