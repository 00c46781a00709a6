"""Training that owns its strategy and its state: optimizers, strategies, and the run itself."""

from isa_tf.training.averaging import SwapAveragedWeights, estimate_statistics
from isa_tf.training.callbacks import Pace, read_log
from isa_tf.training.checkpoint import Checkpoints, Damaged
from isa_tf.training.optimizers import CoupledSGD, make_optimizer
from isa_tf.training.replicas import read_variable, write_variable
from isa_tf.training.run import (
    BEST,
    BEST_SCORE,
    CHECKPOINTS,
    CONFIG,
    LOG,
    Interrupted,
    Run,
    best_score,
)
from isa_tf.training.strategy import STRATEGIES, is_chief, logical_devices, make_strategy

__all__ = [
    "BEST",
    "BEST_SCORE",
    "CHECKPOINTS",
    "CONFIG",
    "LOG",
    "STRATEGIES",
    "Checkpoints",
    "CoupledSGD",
    "Damaged",
    "Interrupted",
    "Pace",
    "Run",
    "SwapAveragedWeights",
    "best_score",
    "estimate_statistics",
    "is_chief",
    "logical_devices",
    "make_optimizer",
    "make_strategy",
    "read_log",
    "read_variable",
    "write_variable",
]
