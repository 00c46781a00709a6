"""What tests of whole trainings share: stopping one, and comparing what two have kept."""

import os
import signal

import keras
import numpy as np

from isa_tf import training


def state(workdir):
    """(facts, arrays) of the last state of a workdir."""
    checkpoints = training.Checkpoints(workdir / training.CHECKPOINTS)
    return checkpoints.read(checkpoints.paths()[0])


class Stop(keras.callbacks.Callback):
    """Has a training told to stop at the end of a step."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if int(training.read_variable(self.model.optimizer.iterations)) == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def assert_same_state(one, other):
    (facts, arrays), (others, other_arrays) = state(one), state(other)
    assert facts["step"] == others["step"] and arrays.keys() == other_arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, other_arrays[name], err_msg=name)
