"""Optimizers as published recipes write them, of the gradient of the global batch."""

import concurrent.futures
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from isa_tf.compat import trained_variables
from isa_tf.names import unknown
from isa_tf.ops import sum_over_replicas
from isa_tf.schedules import PolyDecay, StepDecay, check_finite

# The names of the variables that weight decay may spare.
_SPARED = {"norm": ("gamma", "beta"), "bias": ("bias",)}


def make_optimizer(
    name: str,
    learning_rate: float,
    steps: int,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    power: float = 0.9,
    end_learning_rate: float = 0.0,
    warmup_steps: int = 0,
    clip_norm: float | None = None,
    ema: float = 0.0,
    accumulate: int = 1,
    loss_scale: bool = False,
    decay_spares: Sequence[str] | None = None,
    rates: Mapping[str, float] | None = None,
    schedule: str = "poly",
    boundaries: Sequence[int] = (),
    factor: float = 0.1,
    warmup_factor: float = 0.001,
) -> keras.optimizers.Optimizer:
    """SGD or AdamW under the poly schedule, or under one that falls at a few steps.

    Args:
        name: "sgd", with `weight_decay` in the gradient as published; or "adamw", with decoupled
            decay.
        learning_rate: float, at the start.
        steps: int, length of the training: how often the weights are changed. "step" does not need
            it.
        momentum: float, of SGD. Defaults to 0.9.
        weight_decay: float. Defaults to 0.
        power: float, of the poly schedule. Defaults to 0.9.
        end_learning_rate: float, of the poly schedule. Defaults to 0.
        warmup_steps: int. Defaults to 0.
        clip_norm: float, the largest norm of the whole gradient; `None` for any. Defaults to
            `None`.
        ema: float, the share of the averaged weights that is kept a step; 0 for no average.
            Defaults to 0.
        accumulate: int, batches to a step: the weights are changed once by the mean of their
            gradients. Defaults to 1.
        loss_scale: bool, whether the loss is scaled for "mixed_float16", see `LossScale`. Defaults
            to False.
        decay_spares: what no weight is taken from: "norm" (scales and shifts of normalisations),
            "bias", both or neither, in a sequence. Defaults to `None`: neither with "sgd", both
            with "adamw".
        rates: dict from the beginning of a variable's path to what its learning rate is multiplied
            by, see `WholeGradient`. Defaults to `None`.
        schedule: "poly", see `PolyDecay`, or "step", see `StepDecay`. Defaults to "poly".
        boundaries: ints, of "step": where the rate falls. Defaults to none.
        factor: float, of "step": what it is multiplied by there. Defaults to 0.1.
        warmup_factor: float, of "step": where the warm-up begins. Defaults to 0.001.

    Returns:
        A `keras.optimizers.Optimizer`: `CoupledSGD` or `AdamW`, or a `LossScale` of it.

    Raises:
        ValueError: for an unknown name or schedule, `accumulate` below 1, a rate or decay that is
            negative or not finite, a norm to clip at that is not above 0, what else decay is to
            spare, or what the schedule and Keras refuse.

    Example:

    >>> optimizer = make_optimizer("sgd", 0.01, steps=40_000, weight_decay=5e-4)
    >>> head = make_optimizer("sgd", 0.001, steps=30_000, rates={"head": 10.0, "context": 10.0})
    >>> detector = make_optimizer(
    ...     "sgd", 0.02, 90_000, schedule="step", boundaries=(60_000, 80_000), warmup_steps=500
    ... )
    """
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1, got {accumulate}")
    check_finite(  # by their names here: the schedules have others for the rates
        learning_rate=learning_rate, end_learning_rate=end_learning_rate, weight_decay=weight_decay
    )
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm must be above 0, got {clip_norm}")
    if schedule == "poly":
        rate = PolyDecay(learning_rate, steps, power, end_learning_rate, warmup_steps)
    elif schedule == "step":
        rate = StepDecay(learning_rate, boundaries, factor, warmup_steps, warmup_factor)
    else:
        raise ValueError(unknown("schedule", schedule, ("poly", "step")))
    common: dict[str, Any] = {"global_clipnorm": clip_norm, "rates": rates}
    if decay_spares is not None:
        if others := sorted(set(decay_spares) - set(_SPARED)):
            raise ValueError(f"decay spares {' and '.join(_SPARED)} or neither, got {others}")
        common["spared"] = [name for kind in decay_spares for name in _SPARED[kind]]
    if ema:
        common.update(use_ema=True, ema_momentum=ema)
    if accumulate > 1:
        common["gradient_accumulation_steps"] = accumulate
    if name == "sgd":
        optimizer = CoupledSGD(rate, l2=weight_decay, momentum=momentum, **common)
    elif name == "adamw":
        optimizer = AdamW(rate, weight_decay=weight_decay, **common)
    else:
        raise ValueError(f'optimizer must be "sgd" or "adamw", got {name!r}')
    return LossScale(optimizer) if loss_scale else optimizer


if TYPE_CHECKING:  # it is a mixin of one
    from keras.optimizers import Optimizer as _Optimizer
else:
    _Optimizer = object


class WholeGradient(_Optimizer):
    """Mixin: a Keras optimizer that begins with the whole gradient of the global batch.

    To stand before the optimizer among the bases. It

    * sums the gradients over the replicas first. Keras clips each replica's share before it adds
      them up, by which two replicas take another step than one device with both batches.
    * does nothing before all gradients are there. A graph's operations run as soon as they can,
      and much of an optimizer's can at once: the weights decay into copies, since the backward
      pass still reads them, and the momentum is multiplied into a second buffer. Both would be
      held through the whole step.
    * makes its variables outside of the function that is traced, which otherwise is traced twice,
      and both graphs kept.
    * accumulates gradients under any strategy (Keras's way has no branches under
      `MirroredStrategy`), and counts steps by it, for the schedule and the average too: a step is
      one change of the weights.
    * leaves the weights that were trained in the model at the end of `fit`, where Keras puts their
      averages: training goes on from them, and what is validated is averaged for the time of it
      (`SwapAveragedWeights`).
    * gives variables rates of their own, and weight decay those that it spares; both are kept in
      the config, where Keras forgets what it was told to exclude.

    Args:
        *args: of the optimizer.
        spared: names of variables, such as "bias", that weight decay leaves alone. Defaults to
            `None`, for what the class says.
        rates: dict from the beginning of a variable's path, up to a "/", to what its learning rate
            is multiplied by, in decoupled decay too; the longest that fits counts, and 1 where none
            does. Defaults to `None`.
        **kwargs: of the optimizer.

    Raises:
        ValueError: for rates that are negative, and, once the variables are known, for those of
            none.

    Attributes:
        gradient_norm: `keras.Variable`, the norm of the whole gradient at the last step, before it
            was clipped; infinite where `LossScale` left a step out. It is not saved.

    Example:

    >>> class SGD(WholeGradient, keras.optimizers.SGD):
    ...     pass
    >>> optimizer, variable = SGD(0.1), keras.Variable([0.0, 0.0])
    >>> optimizer.apply([tf.constant([3.0, 4.0])], [variable])
    >>> float(optimizer.gradient_norm)
    5.0
    """

    spares: tuple[str, ...] = ()  # what weight decay leaves alone, unless it is told

    def __init__(
        self,
        *args: Any,
        spared: Sequence[str] | None = None,
        rates: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.spared = tuple(self.spares if spared is None else spared)
        self.exclude_from_weight_decay(var_names=list(self.spared))
        rates = {str(path): float(rate) for path, rate in (rates or {}).items()}
        if any(rate < 0 for rate in rates.values()):
            raise ValueError(f"rates must not be negative, got {rates}")
        # Past Keras's tracking, as what follows: these are numbers, not variables.
        object.__setattr__(self, "rates", rates)
        object.__setattr__(self, "_rate_of", {})
        with keras.name_scope(self.name, caller=self):
            norm = keras.Variable(0.0, trainable=False, dtype="float32", name="gradient_norm")
        # Past Keras's tracking: one variable more, and it would not load the files of before.
        object.__setattr__(self, "gradient_norm", norm)
        object.__setattr__(self, "sums_gradients", True)

    def apply(
        self,
        grads: Sequence[tf.Tensor],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ) -> None:
        grads, variables = _prepare(self, grads, trainable_variables)
        if self.sums_gradients:
            grads = sum_over_replicas(grads)
        with _after(grads):
            super().apply(grads, variables)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        super().build(variables)
        self._rate_of.update(
            {self._var_key(v): rate for v in variables if (rate := self._find_rate(v)) != 1.0}
        )
        for path in self.rates:
            if not any(_begins(v.path, path) for v in variables):
                raise ValueError(f"rates has {path!r}, with which no variable's path begins")

    def _find_rate(self, variable):
        fitting = [path for path in self.rates if _begins(variable.path, path)]
        return self.rates[max(fitting, key=len)] if fitting else 1.0

    def rate(self, variable: keras.Variable, learning_rate: tf.Tensor) -> tf.Tensor:
        """The learning rate of a variable, where that of all is `learning_rate`."""
        factor = self._rate_of.get(self._var_key(variable), 1.0)
        return learning_rate if factor == 1.0 else learning_rate * factor

    def update_step(
        self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
    ) -> None:
        super().update_step(gradient, variable, self.rate(variable, learning_rate))

    def _apply_weight_decay(self, variables):
        if self.weight_decay is None:
            return

        def decay(variable):
            if self._use_weight_decay(variable):
                rate = self.rate(variable, tf.cast(self.learning_rate, variable.dtype))
                weight_decay = tf.cast(self.weight_decay, variable.dtype)
                variable.assign_sub(variable * weight_decay * rate)

        def across(strategy):
            for variable in variables:
                variable = getattr(variable, "value", variable)
                strategy.extended.update(variable, decay, group=False)

        context = tf.distribute.get_replica_context()
        if context is None:
            across(tf.distribute.get_strategy())
        else:
            context.merge_call(across)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "spared": self.spared, "rates": dict(self.rates)}

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return grads_and_vars  # `apply` has done it

    def _get_current_learning_rate(self):
        if isinstance(self._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            return self._learning_rate(self.iterations)
        return super()._get_current_learning_rate()

    def _clip_gradients(self, grads):
        norm = tf.linalg.global_norm(grads)
        self.gradient_norm.assign(tf.cast(norm, tf.float32))
        if self.global_clipnorm:
            return tf.clip_by_global_norm(grads, self.global_clipnorm, use_norm=norm)[0]
        return super()._clip_gradients(grads)

    def _backend_apply_gradients(self, grads, trainable_variables):
        steps = self.gradient_accumulation_steps
        if not steps:
            super()._backend_apply_gradients(grads, trainable_variables)
            return
        indices = [self._get_variable_index(v) for v in trainable_variables]
        accumulators = [self._accumulated_gradients[i] for i in indices]

        def update(*grads):
            pairs = zip(grads, accumulators, strict=True)
            grads = self._clip_gradients([(g + a) / steps for g, a in pairs])
            self._apply_weight_decay(trainable_variables)
            self._backend_update_step(grads, trainable_variables, self.learning_rate)
            if self.use_ema:
                self._update_model_variables_moving_average(trained_variables(self))
            for accumulator in accumulators:
                accumulator.assign(tf.zeros_like(accumulator))

        def accumulate(*grads):
            for gradient, accumulator in zip(grads, accumulators, strict=True):
                accumulator.assign_add(gradient)

        _branch((self._iterations + 1) % steps == 0, update, accumulate, grads)

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        pass


@keras.saving.register_keras_serializable("isa_tf")
class CoupledSGD(WholeGradient, keras.optimizers.SGD):
    """SGD as PyTorch computes it and the published recipes mean it.

    With gradient g, weight w and momentum m: d = g + `l2` w, buffer = m buffer + d,
    w = w - lr buffer. Keras's own SGD differs twice: its `weight_decay` shrinks the weights beside
    the update, which under momentum is 1 / (1 - m) times weaker, and it takes the rate of the day
    into the buffer, so that a falling rate acts late. What it does with the gradients of replicas
    is said in `WholeGradient`.

    Args:
        learning_rate: float or schedule.
        l2: float, the recipes' "weight decay". Defaults to 0.
        **kwargs: those of `keras.optimizers.SGD`, and of `WholeGradient`: spared (by default
            nothing), rates.

    Example:

    >>> optimizer = CoupledSGD(0.01, momentum=0.9, l2=5e-4)

    Source: the formula in the documentation of `torch.optim.SGD`.
    """

    def __init__(self, learning_rate: Any = 0.01, l2: float = 0.0, **kwargs: Any) -> None:
        super().__init__(learning_rate, **kwargs)
        self.l2 = l2

    def update_step(
        self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
    ) -> None:
        gradient = tf.cast(gradient, variable.dtype)
        rate = self.rate(variable, tf.cast(learning_rate, variable.dtype))
        decay = None
        if self.l2 and self._use_weight_decay(variable):
            decay = self.l2 * variable
        # Never more than two summands: TensorFlow regroups three where all are on one device, so
        # that they round otherwise in one replica than in another, and the weights drift apart.
        if not self.momentum:
            step = gradient if decay is None else gradient + decay
            self.assign_sub(variable, rate * step)
            return
        buffer = self.momentums[self._get_variable_index(variable)]
        self.assign(buffer, self.momentum * buffer + gradient)
        if decay is not None:
            self.assign_add(buffer, decay)
        if not self.nesterov:
            self.assign_sub(variable, rate * buffer)
            return
        self.assign_sub(variable, rate * (gradient + self.momentum * buffer))
        if decay is not None:
            self.assign_sub(variable, rate * decay)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "l2": self.l2}


@keras.saving.register_keras_serializable("isa_tf")
class AdamW(WholeGradient, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` that lets kernels decay alone, no normalisation and no bias.

    What it does with the gradients of replicas is said in `WholeGradient`.

    Args:
        *args, **kwargs: those of `keras.optimizers.AdamW`, and of `WholeGradient`: spared (by
            default "gamma", "beta", "bias"), rates.

    Example:

    >>> optimizer = AdamW(1e-4, weight_decay=0.01)
    """

    spares = ("gamma", "beta", "bias")


@keras.saving.register_keras_serializable("isa_tf")
class LossScale(keras.optimizers.LossScaleOptimizer):
    """`keras.optimizers.LossScaleOptimizer` for replicas.

    Keras asks the first replica alone whether its share of the gradient is finite, and goes on
    with the sum. Here the shares are summed before they are looked at, so that what overflowed in
    any replica halves the scale and leaves the step out in all of them.

    Args:
        inner_optimizer: a `WholeGradient`, as `make_optimizer` makes them.
        **kwargs: those of `keras.optimizers.LossScaleOptimizer`.

    Raises:
        TypeError: for an inner optimizer that would sum the gradients once more.

    Example:

    >>> optimizer = LossScale(CoupledSGD(0.01), initial_scale=1024.0)
    >>> float(optimizer.scale_loss(tf.constant(2.0)))
    2048.0
    """

    def __init__(self, inner_optimizer: keras.optimizers.Optimizer, **kwargs: Any) -> None:
        if not isinstance(inner_optimizer, WholeGradient):
            raise TypeError(f"LossScale is of a WholeGradient optimizer, got {inner_optimizer!r}")
        super().__init__(inner_optimizer, **kwargs)
        object.__setattr__(inner_optimizer, "sums_gradients", False)
        # Not as late as `build`: the scale of a loss is asked for first, and a number in its place
        # would stay in the function that is traced.
        self.step_counter = self.add_variable((), dtype="int", name="step_counter")
        self.dynamic_scale = self.add_variable(
            (),
            dtype="float32",
            initializer=keras.initializers.Constant(self.initial_scale),
            name="dynamic_scale",
        )

    @property
    def gradient_norm(self) -> keras.Variable:
        """See `WholeGradient`."""
        return self.inner_optimizer.gradient_norm

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if self.built:
            return
        self.inner_optimizer.build(variables)
        # That of all optimizers: Keras's own makes the two variables, which there are.
        super(keras.optimizers.LossScaleOptimizer, self).build(variables)

    def scale_loss(self, loss: tf.Tensor) -> tf.Tensor:
        return loss * tf.cast(self.dynamic_scale, loss.dtype)

    def apply(
        self,
        grads: Sequence[tf.Tensor],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ) -> None:
        grads, variables = _prepare(self, grads, trainable_variables)
        grads = sum_over_replicas(grads)

        def finite(*grads):
            self._stateful_handle_finite_grads(grads, variables)

        def not_finite(*grads):
            self._stateful_handle_non_finite_grads()
            self.gradient_norm.assign(float("inf"))

        with _after(grads):
            _branch(self.check_finite(grads), finite, not_finite, grads)


def _begins(path, beginning):
    return path == beginning or path.startswith(f"{beginning}/")


def _prepare(optimizer, grads, variables):
    """The gradients that there are, and the variables that they are of; builds the optimizer."""
    if variables is None:
        variables = trained_variables(optimizer)
    variables = list(variables)
    if not optimizer.built:
        _build_outside(optimizer, variables)
    pairs = list(zip(grads, variables, strict=True))
    return optimizer._filter_empty_gradients(*zip(*pairs, strict=True))


def _build_outside(optimizer, variables):
    """Builds an optimizer outside of the function that is being traced, and of its replicas."""

    def build(strategy):
        with strategy.scope(), keras.name_scope(optimizer.name, caller=optimizer):
            optimizer.build(variables)

    @tf.autograph.experimental.do_not_convert
    def outside(strategy):
        if tf.inside_function():
            # `tf.init_scope` leaves the graph, but `tf.function` takes note of the variables even
            # so, and traces once more. A thread of its own is in no function.
            with concurrent.futures.ThreadPoolExecutor(1) as thread:
                thread.submit(build, strategy).result()
        elif not optimizer.built:
            with keras.name_scope(optimizer.name, caller=optimizer):
                optimizer.build(variables)

    context = tf.distribute.get_replica_context()
    if context is None:
        outside(tf.distribute.get_strategy())
    else:
        context.merge_call(outside)  # once for all replicas


def _after(tensors):
    """A context in which every operation waits for all of them."""
    # One node for them all: every operation would wait for each, else.
    return tf.control_dependencies([tf.group(*tensors)])


def _branch(predicate, true, false, arguments):
    """`tf.cond` in a replica's function, of branches that may update variables of all replicas.

    Such a branch steps out of the replica's function, and a `tf.cond` inside of it does not let it;
    so it is done in the reverse order. The predicate is to be the same in all replicas.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        tf.cond(predicate, lambda: true(*arguments), lambda: false(*arguments))
        return

    def across(strategy, predicate, *arguments):
        def run(function):
            strategy.extended.call_for_each_replica(function, args=arguments)

        first = strategy.experimental_local_results(predicate)[0]
        tf.cond(first, lambda: run(true), lambda: run(false))

    context.merge_call(across, args=(predicate, *arguments))
