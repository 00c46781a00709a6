"""Averaged weights and the moving statistics that go with them."""

import contextlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from isa_tf.compat import averaged_variables, flatten_layers
from isa_tf.ops import alone


def averaging_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer | None:
    """The optimizer that keeps averages of the weights, if there is one.

    Args:
        optimizer: `keras.optimizers.Optimizer`, perhaps one that scales the loss for another.

    Returns:
        That one, or the one inside of it, or `None`.

    Example:

    >>> averaging_optimizer(isa_tf.training.make_optimizer("sgd", 0.01, steps=2))
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return optimizer if optimizer.use_ema else None


def estimate_statistics(model: keras.Model, batches: tf.data.Dataset) -> None:
    """Sets the moving statistics of every batch normalisation to their mean over batches.

    An average of weights needs it: the moving statistics were gathered under the weights of each
    step, whose activations are spread otherwise, and with them an average taken while the weights
    still move scores far below either.

    Args:
        model: `keras.Model`; normalisations that are not trainable stay as they are.
        batches: iterable of batches as `fit` takes them, (x, y) or (x, y, weight) or x alone; at
            least one. Under a strategy a batch that is not dealt out to the replicas is read by
            each of them, as one device would.

    Raises:
        ValueError: where there is no batch.

    Example:

    >>> train = isa_tf.data.train_pipeline(data, "train", 2, (96, 96))
    >>> estimate_statistics(model, train.take(2))

    Source: as `torch.optim.swa_utils.update_bn`.
    """
    norms = [
        layer
        for layer in flatten_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    if not norms:
        return
    statistics = [s for norm in norms for s in (norm.moving_mean, norm.moving_variance)]
    # A step keeps `momentum` of what was there, here zeros, and takes up the rest.
    shares = np.repeat([1.0 - norm.momentum for norm in norms], 2)
    others = [v for v in model.non_trainable_variables if all(v is not s for s in statistics)]
    kept = [v.numpy() for v in others]  # the state of dropout
    strategy = model.distribute_strategy

    @tf.function(jit_compile=False)
    def run(x):
        dealt = any(isinstance(v, tf.distribute.DistributedValues) for v in tf.nest.flatten(x))

        def forward(x):
            # Every replica counts the same pixels, else, and takes them for several.
            with contextlib.nullcontext() if dealt else alone():
                model(x, training=True)

        strategy.run(forward, (x,))

    totals, count = [0.0] * len(statistics), 0
    for batch in batches:
        for moving in statistics:
            moving.assign(tf.zeros_like(moving))
        x, *_ = keras.utils.unpack_x_y_sample_weight(batch)
        run(x)
        totals = [total + s.numpy() for total, s in zip(totals, statistics, strict=True)]
        count += 1
    if not count:
        raise ValueError("no batch to estimate the moving statistics on")
    for moving, total, share in zip(statistics, totals, shares, strict=True):
        moving.assign(total / (count * share))
    for variable, value in zip(others, kept, strict=True):
        variable.assign(value)


class SwapAveragedWeights(keras.callbacks.Callback):
    """Validates the averaged weights, with moving statistics that are theirs.

    For the time of a validation the optimizer's averages stand in the model, and the moving
    statistics are estimated anew (see `estimate_statistics`). After it all is as it was, to the
    bit, under any strategy. (`keras.callbacks.SwapEMAWeights` swaps by adding and subtracting
    under TensorFlow, which rounds.) What stood in the model waits in the memory of the host.

    Where the optimizer is none of ours, `fit` still ends with the averages in the model, as Keras
    has it (`keras.optimizers.Optimizer.finalize_variable_values`); a `WholeGradient` leaves there
    what was trained.

    Args:
        batches: iterable of batches to estimate on (see there), the same at each validation.

    Raises:
        ValueError: at a validation, where the optimizer keeps no averages.

    Example:

    >>> train = isa_tf.data.train_pipeline(data, "train", 2, (96, 96))
    >>> val = isa_tf.data.eval_pipeline(data, "val", 1)
    >>> optimizer = isa_tf.training.make_optimizer("sgd", 0.01, steps=2, ema=0.9)
    >>> model.compile(optimizer, isa_tf.losses.PixelCrossEntropy())
    >>> averaged = [SwapAveragedWeights(train.take(2))]
    >>> shown = {"validation_data": val, "callbacks": averaged, "verbose": 0}
    >>> history = model.fit(train, steps_per_epoch=2, shuffle=False, **shown)
    """

    def __init__(self, batches: tf.data.Dataset) -> None:
        super().__init__()
        self.batches = batches
        self._kept: list[np.ndarray] = []

    def on_test_begin(self, logs: Any = None) -> None:
        optimizer = averaging_optimizer(self.model.optimizer)
        if optimizer is None:
            raise ValueError("the optimizer keeps no averages of the weights: it has no use_ema")
        self._kept = [v.numpy() for v in self.model.variables]
        for variable, average in averaged_variables(optimizer):
            if average is not None:
                variable.assign(average.numpy())
        estimate_statistics(self.model, self.batches)

    def on_test_end(self, logs: Any = None) -> None:
        for variable, value in zip(self.model.variables, self._kept, strict=True):
            variable.assign(value)
        self._kept = []
