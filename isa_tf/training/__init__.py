"""Training that owns its strategy and its state: optimizers, strategies, and the run itself."""

from isa_tf.training.averaging import (
    SwapAveragedWeights,
    averaging_optimizer,
    estimate_statistics,
)
from isa_tf.training.callbacks import Pace, read_log, read_scalars
from isa_tf.training.checkpoint import Checkpoints, Damaged
from isa_tf.training.optimizers import AdamW, CoupledSGD, LossScale, WholeGradient, make_optimizer
from isa_tf.training.replicas import distribute, prepare, read_variable, write_variable
from isa_tf.training.run import Interrupted, Run
from isa_tf.training.strategy import STRATEGIES, logical_devices, make_strategy
from isa_tf.training.workdir import (
    BEST,
    BEST_SCORE,
    CHECKPOINTS,
    CONFIG,
    LOG,
    TENSORBOARD,
    best_score,
)
from isa_tf.training.workers import (
    agree,
    any_of,
    gather,
    is_chief,
    num_workers,
    over_workers,
    worker_index,
)

__all__ = [
    "BEST",
    "BEST_SCORE",
    "CHECKPOINTS",
    "CONFIG",
    "LOG",
    "STRATEGIES",
    "TENSORBOARD",
    "AdamW",
    "Checkpoints",
    "CoupledSGD",
    "Damaged",
    "Interrupted",
    "LossScale",
    "Pace",
    "Run",
    "SwapAveragedWeights",
    "WholeGradient",
    "agree",
    "any_of",
    "averaging_optimizer",
    "best_score",
    "distribute",
    "estimate_statistics",
    "gather",
    "is_chief",
    "logical_devices",
    "make_optimizer",
    "make_strategy",
    "num_workers",
    "over_workers",
    "prepare",
    "read_log",
    "read_scalars",
    "read_variable",
    "worker_index",
    "write_variable",
]
