"""Optimizers as segmentation recipes write them."""

import keras

from isa_tf.schedules import PolyDecay


def make_optimizer(
    name,
    learning_rate,
    steps,
    *,
    momentum=0.9,
    weight_decay=0.0,
    power=0.9,
    end_learning_rate=0.0,
    warmup_steps=0,
    clip_norm=None,
    ema=0.0,
):
    """SGD or AdamW under the poly schedule.

    Args:
        name: "sgd", with `weight_decay` in the gradient of every weight as published; or "adamw",
            with decoupled decay of the kernels alone (no normalisation, no bias).
        learning_rate: float, at the start.
        steps: int, length of the training.
        momentum: float, of SGD. Defaults to 0.9.
        weight_decay: float. Defaults to 0.
        power: float, of the schedule. Defaults to 0.9.
        end_learning_rate: float. Defaults to 0.
        warmup_steps: int. Defaults to 0.
        clip_norm: float, the largest norm of the whole gradient; `None` for any. Defaults to
            `None`.
        ema: float, the share of the averaged weights that is kept a step; 0 for no average.
            Defaults to 0.

    Returns:
        A `keras.optimizers.Optimizer`.

    Raises:
        ValueError: for an unknown name, or what `PolyDecay` and Keras refuse.

    Example:

    >>> optimizer = make_optimizer("sgd", 0.01, steps=40_000, weight_decay=5e-4)
    """
    schedule = PolyDecay(learning_rate, steps, power, end_learning_rate, warmup_steps)
    common = {"global_clipnorm": clip_norm}
    if ema:
        common.update(use_ema=True, ema_momentum=ema)
    if name == "sgd":
        return CoupledSGD(schedule, l2=weight_decay, momentum=momentum, **common)
    if name == "adamw":
        optimizer = keras.optimizers.AdamW(schedule, weight_decay=weight_decay, **common)
        optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
        return optimizer
    raise ValueError(f'optimizer must be "sgd" or "adamw", got {name!r}')


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
