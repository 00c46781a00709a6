"""Learning rate schedules as segmentation recipes write them."""

import keras
import tensorflow as tf


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
        ValueError: for steps below 1 or a negative warm-up.

    Example:

    >>> round(float(PolyDecay(0.01, steps=100)(50)), 6)
    0.005359

    Reference: Liu et al., "ParseNet", arXiv 1506.04579; Chen et al., "DeepLab", TPAMI 2018.
    """

    def __init__(self, base_lr, steps, power=0.9, end_lr=0.0, warmup_steps=0):
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, got {warmup_steps}")
        self.base_lr = base_lr
        self.steps = steps
        self.power = power
        self.end_lr = end_lr
        self.warmup_steps = warmup_steps

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        left = 1.0 - tf.minimum(step / self.steps, 1.0)
        lr = (self.base_lr - self.end_lr) * left**self.power + self.end_lr
        if self.warmup_steps:
            lr *= tf.minimum((step + 1.0) / self.warmup_steps, 1.0)
        return lr

    def get_config(self):
        return {
            "base_lr": self.base_lr,
            "steps": self.steps,
            "power": self.power,
            "end_lr": self.end_lr,
            "warmup_steps": self.warmup_steps,
        }
