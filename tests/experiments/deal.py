"""One worker of a training that `test_same_run` deals out: python deal.py OUT STRATEGY DEVICES.

Trains by `experiments.train.train` in float32 and in float64, and writes what it saw to
OUT/DTYPE.npz: the gradient of the first step and the loss of every step.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import keras  # noqa: E402
import numpy as np  # noqa: E402

from experiments.configs import synthetic  # noqa: E402
from experiments.train import train  # noqa: E402
from isa_tf import data, training  # noqa: E402

BATCH = 8
STEPS = {"float32": 3, "float64": 20}


class PartlyIgnored(data.SyntheticDataset):
    """Of its first batch, what the last replica reads is ignored altogether."""

    def __init__(self, ignored=(), **kwargs):
        super().__init__(**kwargs)
        self.ignored = set(ignored)

    def read(self, split, index):
        image, label = super().read(split, index)
        if split == "train":
            if self.examples(split)[index] in self.ignored:
                label = np.full_like(label, 255)
            elif index % 3 == 0:
                label = np.where(np.arange(label.shape[0])[:, None] < 20, 255, label)
        return image, label.astype(np.uint8)


class Record(keras.callbacks.Callback):
    """Notes the loss of every step, and the first gradient: what momentum begins with."""

    def __init__(self):
        super().__init__()
        self.losses, self.gradient, self.before = [], None, (0, 0.0)

    def on_train_batch_end(self, batch, logs=None):
        # Keras tells the mean since the epoch began.
        total = float(np.ravel(logs["loss"])[0]) * (batch + 1)
        before = self.before[1] if batch else 0.0
        self.losses.append(total - before)
        self.before = (batch, total)
        if self.gradient is None:
            momentums = self.model.optimizer.momentums
            self.gradient = [training.read_variable(m).ravel() for m in momentums]


def make_config(dtype):
    config = synthetic.get_config()
    config.data.name = "partly_ignored"
    config.data.options.num_examples = {"train": 24, "val": 5}
    plain = data.SyntheticDataset(num_examples={"train": 24})
    batch = data.batch_examples(plain, "train", BATCH, 0, seed=0)
    config.data.options.ignored = batch[3 * BATCH // 4 :]
    config.data.crop_size = (48, 48)
    config.data.batch_size = BATCH
    config.model.head_filters = 16
    config.model.auxiliary_level = "c1"
    config.model.dropout = 0.0
    config.model.dtype = dtype
    config.train.steps = STEPS[dtype]
    config.train.validate_every = 10
    config.train.optimizer = "sgd"
    config.train.learning_rate = 0.05
    config.train.weight_decay = 0.0
    config.train.warmup_steps = 0
    config.train.clip_norm = 0.5
    config.train.losses.jaccard = 0.5
    config.train.class_weights = (0.5, 0.7, 1.0, 1.0, 2.0, 1.0, 3.0)
    config.train.pictures = 0
    return config


def main(out, strategy, devices):
    if devices > 1:
        training.logical_devices(devices)
    strategy = training.make_strategy(strategy)
    data.register("partly_ignored", PartlyIgnored)
    for dtype in STEPS:
        keras.backend.set_floatx(dtype)  # of losses and metrics
        record = Record()
        train(make_config(dtype), out / dtype, strategy, verbose=0, callbacks=[record])
        if training.is_chief(strategy):
            np.savez(
                out / f"{dtype}.npz", losses=record.losses, gradient=np.concatenate(record.gradient)
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
