"""What `fit` needs around a model: optimizer, checkpoints, logs, exact resumption."""

from isa_tf.training.averaging import SwapAveragedWeights, averaging_optimizer, estimate_statistics
from isa_tf.training.callbacks import CSVLog, StepLog, TensorBoardLog, read_log
from isa_tf.training.checkpoint import (
    BEST,
    BEST_SCORE,
    LAST,
    Checkpoints,
    best_score,
    resume,
)
from isa_tf.training.optimizers import AdamW, CoupledSGD, LossScale, WholeGradient, make_optimizer
from isa_tf.training.run import LOG, fit, segments
from isa_tf.training.strategy import make_strategy

__all__ = [
    "BEST",
    "BEST_SCORE",
    "LAST",
    "LOG",
    "AdamW",
    "CSVLog",
    "Checkpoints",
    "CoupledSGD",
    "LossScale",
    "StepLog",
    "SwapAveragedWeights",
    "TensorBoardLog",
    "WholeGradient",
    "averaging_optimizer",
    "best_score",
    "estimate_statistics",
    "fit",
    "make_optimizer",
    "make_strategy",
    "read_log",
    "resume",
    "segments",
]
