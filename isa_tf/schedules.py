"""Learning rate schedules as recipes of segmentation and detection write them."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


def check_finite(**values: float) -> None:
    """Refuses rates and the like that no training means.

    Args:
        **values: floats, by what they are called in the error.

    Raises:
        ValueError: for the first that is negative, infinite or NaN, naming it.

    Example:

    >>> check_finite(learning_rate=0.01, weight_decay=0.0)
    """
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and not negative, got {value}")


@keras.saving.register_keras_serializable("isa_tf")
class PolyDecay(keras.optimizers.schedules.LearningRateSchedule):
    """The "poly" schedule, with an optional linear warm-up.

    lr(t) = (base - end) * (1 - t / steps) ** power + end for t < steps, `end` afterwards; over the
    first `warmup_steps` it is multiplied by (t + 1) / warmup_steps.

    Args:
        base_lr: float, the learning rate at the start.
        steps: int, the length of the training.
        power: float. Defaults to 0.9.
        end_lr: float, the learning rate at the end. Defaults to 0.
        warmup_steps: int. Defaults to 0.

    Raises:
        ValueError: for rates or a power that are negative or not finite, steps below 1 or a
            negative warm-up.

    Example:

    >>> round(float(PolyDecay(0.01, steps=100)(50)), 6)
    0.005359

    Reference: Liu et al., "ParseNet", arXiv 1506.04579; Chen et al., "DeepLab", TPAMI 2018.
    """

    def __init__(
        self,
        base_lr: float,
        steps: int,
        power: float = 0.9,
        end_lr: float = 0.0,
        warmup_steps: int = 0,
    ) -> None:
        check_finite(base_lr=base_lr, end_lr=end_lr, power=power)
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, got {warmup_steps}")
        self.base_lr = base_lr
        self.steps = steps
        self.power = power
        self.end_lr = end_lr
        self.warmup_steps = warmup_steps

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        step = tf.cast(step, tf.float32)
        left = 1.0 - tf.minimum(step / self.steps, 1.0)
        lr = (self.base_lr - self.end_lr) * left**self.power + self.end_lr
        if self.warmup_steps:
            lr *= tf.minimum((step + 1.0) / self.warmup_steps, 1.0)
        return lr

    def get_config(self) -> dict[str, Any]:
        return {
            "base_lr": self.base_lr,
            "steps": self.steps,
            "power": self.power,
            "end_lr": self.end_lr,
            "warmup_steps": self.warmup_steps,
        }


@keras.saving.register_keras_serializable("isa_tf")
class StepDecay(keras.optimizers.schedules.LearningRateSchedule):
    """The schedule of detectors: a rate that falls at a few steps, with an optional linear warm-up.

    lr(t) = base * factor ** (how many of `boundaries` are at most t); over the first `warmup_steps`
    it is multiplied by w + (1 - w) * t / warmup_steps, with w = `warmup_factor`.

    Args:
        base_lr: float, the learning rate at the start.
        boundaries: ints, rising, the first steps at which the rate is lower; may be none.
        factor: float, what the rate is multiplied by at each. Defaults to 0.1.
        warmup_steps: int. Defaults to 0.
        warmup_factor: float, where the warm-up begins. Defaults to 0.001.

    Raises:
        ValueError: for a rate that is negative or not finite, boundaries that do not rise or are
            not above 0, a factor that is not above 0, a negative warm-up, or a warm-up's factor
            outside of 0..1.

    Example:

    >>> schedule = StepDecay(0.02, boundaries=(60_000, 80_000), warmup_steps=500)
    >>> [round(float(schedule(step)), 6) for step in (0, 250, 500, 59_999, 60_000, 80_000)]
    [2e-05, 0.01001, 0.02, 0.02, 0.002, 0.0002]

    Reference: Goyal et al., "Accurate, Large Minibatch SGD", arXiv 1706.02677; Detectron's "steps
    with decay" and "linear" warm-up.
    """

    def __init__(
        self,
        base_lr: float,
        boundaries: Sequence[int],
        factor: float = 0.1,
        warmup_steps: int = 0,
        warmup_factor: float = 0.001,
    ) -> None:
        check_finite(base_lr=base_lr)
        boundaries = tuple(int(step) for step in boundaries)
        if any(b <= a for a, b in zip((0, *boundaries), boundaries, strict=False)):
            raise ValueError(f"boundaries must be above 0 and rise, got {boundaries}")
        if not factor > 0:
            raise ValueError(f"factor must be above 0, got {factor}")
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, got {warmup_steps}")
        if not 0 <= warmup_factor <= 1:
            raise ValueError(f"warmup_factor must be in 0..1, got {warmup_factor}")
        self.base_lr = base_lr
        self.boundaries = boundaries
        self.factor = factor
        self.warmup_steps = warmup_steps
        self.warmup_factor = warmup_factor

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        # Steps are counted as ints: a float32 does not hold all of them.
        step = tf.cast(step, tf.int64)
        lr = tf.constant(self.base_lr, tf.float32)
        if self.boundaries:
            passed = tf.reduce_sum(tf.cast(step >= tf.constant(self.boundaries, "int64"), "int32"))
            rates = [self.base_lr * self.factor**n for n in range(len(self.boundaries) + 1)]
            lr = tf.gather(tf.constant(rates, tf.float32), passed)
        if self.warmup_steps:
            done = tf.minimum(tf.cast(step, tf.float32) / self.warmup_steps, 1.0)
            lr *= self.warmup_factor + (1.0 - self.warmup_factor) * done
        return lr

    def get_config(self) -> dict[str, Any]:
        return {
            "base_lr": self.base_lr,
            "boundaries": self.boundaries,
            "factor": self.factor,
            "warmup_steps": self.warmup_steps,
            "warmup_factor": self.warmup_factor,
        }
