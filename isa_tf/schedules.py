"""Learning rate schedules and optimizers as segmentation recipes write them."""

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


@keras.saving.register_keras_serializable("isa_tf")
class CoupledSGD(keras.optimizers.SGD):
    """SGD as PyTorch computes it and the published recipes mean it.

    With gradient g, weight w and momentum m: d = g + `l2` w, buffer = m buffer + d,
    w = w - lr buffer. Keras's own SGD differs twice: its `weight_decay` shrinks the weights beside
    the update, which under momentum is 1 / (1 - m) times weaker, and it takes the rate of the day
    into the buffer, so that a falling rate acts late.

    Args:
        learning_rate: float or schedule.
        l2: float, the recipes' "weight decay". Defaults to 0.
        **kwargs: those of `keras.optimizers.SGD`.

    Example:

    >>> optimizer = CoupledSGD(0.01, momentum=0.9, l2=5e-4)

    Source: the formula in the documentation of `torch.optim.SGD`.
    """

    def __init__(self, learning_rate=0.01, l2=0.0, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.l2 = l2

    def update_step(self, gradient, variable, learning_rate):
        step = keras.ops.cast(gradient, variable.dtype)
        if self.l2 and self._use_weight_decay(variable):
            step = step + self.l2 * variable
        if self.momentum:
            buffer = self.momentums[self._get_variable_index(variable)]
            self.assign(buffer, self.momentum * buffer + step)
            step = step + self.momentum * buffer if self.nesterov else buffer
        self.assign_sub(variable, keras.ops.cast(learning_rate, variable.dtype) * step)

    def get_config(self):
        return {**super().get_config(), "l2": self.l2}
