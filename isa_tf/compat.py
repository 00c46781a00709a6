"""What is private in Keras and TensorFlow and called here, in one place.

What classes of this package override of their Keras base's is theirs to say: it stands in
tests/test_compat.py, which holds all of it against the Keras that is installed, so that it says
what another release broke.
"""

from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf


def flatten_layers(
    layer: keras.layers.Layer, include_self: bool = True, recursive: bool = True
) -> Iterator[keras.layers.Layer]:
    """The layers inside of a layer or model, and itself.

    Args:
        layer: `keras.layers.Layer` or `keras.Model`.
        include_self: bool, whether the layer itself comes first. Defaults to `True`.
        recursive: bool, whether those inside of its layers are among them. Defaults to `True`.

    Returns:
        An iterator of layers, each of which comes before those inside of it.

    Example:

    >>> inside = keras.Sequential([keras.layers.Dense(1), keras.layers.Dropout(0.1)])
    >>> len(list(flatten_layers(keras.Sequential([inside]), include_self=False)))
    3
    """
    return layer._flatten_layers(include_self=include_self, recursive=recursive)


def own_trainable_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """A layer's trainable variables, without those of layers inside of it.

    >>> dense = keras.layers.Dense(1)
    >>> dense.build((None, 2))
    >>> [variable.name for variable in own_trainable_variables(dense)]
    ['kernel', 'bias']
    """
    return layer._trainable_variables


def symbolic_build(model: keras.Model, data_batch: Any) -> None:
    """Makes the variables of a compiled model's optimizer, metrics and losses, and runs nothing.

    Args:
        model: compiled `keras.Model`.
        data_batch: what `fit` gets as a batch, or the specs of it.
    """
    model._symbolic_build(data_batch=data_batch)


def averaged_variables(
    optimizer: keras.optimizers.Optimizer,
) -> list[tuple[keras.Variable, keras.Variable | None]]:
    """Pairs of a variable and its average, of an optimizer that averages (`use_ema`).

    >>> optimizer = keras.optimizers.SGD(use_ema=True)
    >>> optimizer.build([keras.Variable([1.0])])
    >>> len(averaged_variables(optimizer))
    1
    """
    averages = optimizer._model_variables_moving_average
    return list(zip(trained_variables(optimizer), averages, strict=True))


def trained_variables(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The variables that a built optimizer trains.

    >>> list(trained_variables(keras.optimizers.SGD()))
    []
    """
    return optimizer._trainable_variables


def function_graph(graph: tf.Graph, name: str) -> tf.Graph:
    """The graph of a function that a `tf.Graph` calls by name."""
    return graph._get_function(name).graph


def collective_extended() -> type:
    """TensorFlow's class of what a `MultiWorkerMirroredStrategy` does, to derive from."""
    from tensorflow.python.distribute import collective_all_reduce_strategy

    return collective_all_reduce_strategy.CollectiveAllReduceExtended
