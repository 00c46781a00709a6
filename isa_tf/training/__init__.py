"""What `fit` needs around a model: optimizer, checkpoints, logs, exact resumption."""

from isa_tf.training.averaging import SwapAveragedWeights, estimate_statistics
from isa_tf.training.callbacks import CSVLog, StepLog, TensorBoardLog, read_log
from isa_tf.training.checkpoint import (
    BEST,
    BEST_SCORE,
    LAST,
    Checkpoints,
    best_score,
    resume,
)
from isa_tf.training.optimizers import CoupledSGD, make_optimizer
from isa_tf.training.replicas import distribute, prepare, read_variable, write_variable
from isa_tf.training.run import LOG, fit, segments
from isa_tf.training.strategy import (
    STRATEGIES,
    agree,
    any_of,
    barrier,
    is_chief,
    logical_devices,
    make_strategy,
    num_workers,
    over_workers,
    worker_index,
)

__all__ = [
    "BEST",
    "BEST_SCORE",
    "LAST",
    "LOG",
    "STRATEGIES",
    "CSVLog",
    "Checkpoints",
    "CoupledSGD",
    "StepLog",
    "SwapAveragedWeights",
    "TensorBoardLog",
    "agree",
    "any_of",
    "barrier",
    "best_score",
    "distribute",
    "estimate_statistics",
    "fit",
    "is_chief",
    "logical_devices",
    "make_optimizer",
    "make_strategy",
    "num_workers",
    "over_workers",
    "prepare",
    "read_log",
    "read_variable",
    "resume",
    "segments",
    "worker_index",
    "write_variable",
]
