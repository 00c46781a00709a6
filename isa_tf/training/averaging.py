"""Averaged weights and the moving statistics that go with them."""

import keras
import numpy as np
import tensorflow as tf


def averaging_optimizer(optimizer):
    """The optimizer that keeps averages of the weights, if there is one.

    Args:
        optimizer: `keras.optimizers.Optimizer`, perhaps one that scales the loss for another.

    Returns:
        That one, or the one inside of it, or `None`.

    Example:

    >>> averaging_optimizer(make_optimizer("sgd", 0.01, steps=2))
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return optimizer if optimizer.use_ema else None


def estimate_statistics(model, batches):
    """Sets the moving statistics of every batch normalisation to their mean over batches.

    An average of weights needs it: the moving statistics were gathered under the weights of each
    step, whose activations are spread otherwise, and with them an average taken while the weights
    still move scores far below either.

    Args:
        model: `keras.Model`; normalisations that are not trainable stay as they are.
        batches: iterable of (image, label), at least one.

    Raises:
        ValueError: where there is no batch.

    Example:

    >>> train = isa_tf.data.train_pipeline(data, "train", 2, (96, 96))
    >>> estimate_statistics(model, train.take(2))

    Source: as `torch.optim.swa_utils.update_bn`.
    """
    norms = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    if not norms:
        return
    statistics = [s for norm in norms for s in (norm.moving_mean, norm.moving_variance)]
    # A step keeps `momentum` of what was there, here zeros, and takes up the rest.
    shares = np.repeat([1.0 - norm.momentum for norm in norms], 2)
    others = [v for v in model.non_trainable_variables if all(v is not s for s in statistics)]
    kept = [v.numpy() for v in others]  # the state of dropout
    strategy = model.distribute_strategy  # it is called from outside of its scope, too
    run = tf.function(lambda image: strategy.run(forward, (image,)), jit_compile=False)

    def forward(image):
        model(image, training=True)

    totals, count = [0.0] * len(statistics), 0
    for image, _ in batches:
        for moving in statistics:
            moving.assign(tf.zeros_like(moving))
        run(image)
        totals = [total + s.numpy() for total, s in zip(totals, statistics, strict=True)]
        count += 1
    if not count:
        raise ValueError("no batch to estimate the moving statistics on")
    for moving, total, share in zip(statistics, totals, shares, strict=True):
        moving.assign(total / (count * share))
    for variable, value in zip(others, kept, strict=True):
        variable.assign(value)


class SwapAveragedWeights(keras.callbacks.SwapEMAWeights):
    """Validates the averaged weights, with moving statistics that are theirs.

    For the time of a validation the optimizer's averages stand in the model, and the moving
    statistics are estimated anew (see `estimate_statistics`). After it all is as it was, also at
    the end of `fit`, where Keras would leave the averages in the model.

    Args:
        batches: iterable of (image, label) to estimate on, the same at each validation.

    Example:

    >>> train = isa_tf.data.train_pipeline(data, "train", 2, (96, 96))
    >>> val = isa_tf.data.eval_pipeline(data, "val", 1)
    >>> optimizer = make_optimizer("sgd", 0.01, steps=2, ema=0.9)
    >>> model.compile(optimizer, isa_tf.losses.PixelCrossEntropy())
    >>> averaged = [SwapAveragedWeights(train.take(2))]
    >>> history = model.fit(
    ...     train, steps_per_epoch=2, validation_data=val, callbacks=averaged, verbose=0
    ... )
    """

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_test_begin(self, logs=None):
        super().on_test_begin(logs)
        self._kept = [v.numpy() for v in self.model.non_trainable_variables]
        estimate_statistics(self.model, self.batches)

    def on_test_end(self, logs=None):
        super().on_test_end(logs)
        for variable, value in zip(self.model.non_trainable_variables, self._kept, strict=True):
            variable.assign(value)

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        self._weights = [v.numpy() for v in self.model.trainable_variables]

    def on_train_end(self, logs=None):
        for variable, value in zip(self.model.trainable_variables, self._weights, strict=True):
            variable.assign(value)
