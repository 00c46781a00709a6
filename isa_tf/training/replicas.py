"""What Keras lacks under `tf.distribute` strategies of several replicas, and it alone.

As of Keras 3.15. `prepare` overrides methods of one model, never Keras itself, so each piece can go
when Keras mends it:

* `_maybe_symbolic_build` adds up the replicas' first batches to learn their shapes, which fails on
  tuples of images of several sizes and under `MultiWorkerMirroredStrategy`. Here the dataset says
  what its batches are.
* Logs of a step are results of metrics in each replica, of which Keras takes the mean: wrong for
  what is no mean, and where a replica has fewer images. Here they are results of all replicas.
  Under `MultiWorkerMirroredStrategy` that mean is taken along the first axis, which a scalar lacks
  (keras-team/keras issue 20585).
* The end of a dataset may leave a replica without a batch. TensorFlow then hands it one of no
  images, of height and width 0, on which networks fail. Here it does nothing.
* A distributed dataset says how many batches one worker has, where Keras wants the steps of all.
"""

import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from isa_tf.compat import symbolic_build
from isa_tf.ops.replicas import alone, replicas_summed
from isa_tf.training.workers import is_chief, num_workers, over_workers


def distribute(
    strategy: tf.distribute.Strategy,
    make: Callable[[tf.distribute.InputContext | None], tf.data.Dataset],
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """What `fit` and `evaluate` take as data under a strategy.

    Args:
        strategy: `tf.distribute.Strategy`.
        make: function from a `tf.distribute.InputContext` to the `tf.data.Dataset` of this
            worker's successive batches, one a replica; from `None` to that of the only replica.
            Workers may have unequal numbers of batches; all go on until the last of them ends. A
            dataset without end must be known as such (`tf.data.INFINITE_CARDINALITY`):
            else workers ask one another before each step whether any has a batch left.

    Returns:
        `tf.data.Dataset`, or `tf.distribute.DistributedDataset`. All workers must call it.

    Example:

    >>> def make(context):
    ...     return tf.data.Dataset.range(4).batch(2)
    >>> [batch.numpy().tolist() for batch in distribute(tf.distribute.get_strategy(), make)]
    [[0, 1], [2, 3]]
    """
    if strategy.num_replicas_in_sync == 1:
        return make(None)
    dataset = strategy.distribute_datasets_from_function(make)
    batches = int(dataset.cardinality)
    replicas = strategy.num_replicas_in_sync // num_workers(strategy)
    steps = over_workers(strategy, -(-batches // replicas) if batches > 0 else batches)
    if min(steps) >= 0:
        # Keras takes the number of this worker's batches for that of the steps. Where it is the
        # smaller it would leave the loop before the others, which then wait for it.
        dataset._cardinality = np.int64(max(steps))
    elif set(steps) != {tf.data.INFINITE_CARDINALITY}:
        dataset._cardinality = np.int64(tf.data.UNKNOWN_CARDINALITY)
    # Also where batches are of one known size, of which TensorFlow would leave out the last ones
    # if there are too few for all replicas.
    endless = set(steps) == {tf.data.INFINITE_CARDINALITY}
    dataset._enable_get_next_as_optional = not endless
    return dataset


def prepare(model: keras.Model) -> keras.Model:
    """Makes `fit` and `evaluate` right for a model under a strategy of several replicas.

    To be called once the model is made, and before `fit`; a second call changes nothing, and under
    one replica there is nothing to change. The model's own `train_step` and `test_step` are called;
    what they return must be `get_metrics_result()`, as Keras's do.

    Args:
        model: `keras.Model`, made in the strategy's scope.

    Returns:
        The model.

    Raises:
        ValueError: in `evaluate`, for a `test_step` that returns anything else.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> prepare(model) is model
    True

    Source: keras/src/backend/tensorflow/trainer.py of Keras 3.15.1.
    """
    if model.distribute_strategy.num_replicas_in_sync > 1:
        for method in (_maybe_symbolic_build, get_metrics_result, train_step, test_step):
            setattr(model, method.__name__, types.MethodType(method, model))
    return model


# === Methods of a prepared model ===
def _maybe_symbolic_build(self, iterator=None, data_batch=None):
    if iterator is not None:
        spec = iterator.data_adapter.get_tf_dataset().element_spec
        data_batch = tf.nest.map_structure(_of_one_replica, spec)
    with self.distribute_strategy.scope():
        symbolic_build(self, data_batch)


def get_metrics_result(self: keras.Model) -> dict[str, tf.Tensor]:
    if tf.distribute.in_cross_replica_context() or replicas_summed() == 1:
        return type(self).get_metrics_result(self)
    # Results of what all replicas counted; else each would have its own.
    with tf.__internal__.distribute.variable_sync_on_read_context():
        return type(self).get_metrics_result(self)


def train_step(self: keras.Model, data: Any) -> dict[str, tf.Tensor]:
    return _as_logs(self, type(self).train_step(self, data))


def test_step(self: keras.Model, data: Any) -> dict[str, tf.Tensor]:
    logs = {}

    def run():
        # No sum over replicas in a branch that not all of them take.
        with alone():
            logs.update(type(self).test_step(self, data))
        return tf.constant(True)

    images = tf.nest.flatten(data)[0]
    tf.cond(tf.shape(images)[0] > 0, run, lambda: tf.constant(False))
    results = self.get_metrics_result()
    if set(results) != set(logs):
        raise ValueError(
            f"under several replicas test_step must return get_metrics_result(), with "
            f"{sorted(results)}; got {sorted(logs)}"
        )
    return _as_logs(self, results)


def _of_one_replica(spec):
    """A tensor's spec of a spec that may be that of a tensor a replica."""
    return tf.nest.flatten(spec, expand_composites=True)[0]


def _as_logs(model, results):
    """Results such that Keras's reduction over the replicas leaves them as they are."""
    if num_workers(model.distribute_strategy) == 1:
        return results
    return tf.nest.map_structure(lambda value: tf.reshape(value, (1,)), results)


# === Values of variables ===
def read_variable(variable: keras.Variable | tf.Variable) -> np.ndarray:
    """The whole value of a variable, whatever strategy it lives under.

    What replicas count each for itself (metrics) is added up over all of them, for which under
    several workers all must read the same variables in the same order.

    Args:
        variable: `keras.Variable` or `tf.Variable`.

    Returns:
        `np.ndarray`.

    Example:

    >>> read_variable(keras.Variable([1.0, 2.0]))
    array([1., 2.], dtype=float32)
    """
    value = _of_keras(variable)
    if _kept_by_replica(value) and value.aggregation == tf.VariableAggregation.NONE:
        value = value.distribute_strategy.experimental_local_results(value)[0]
    return value.numpy()


def write_variable(variable: keras.Variable | tf.Variable, array: ArrayLike) -> None:
    """Gives a variable the value that `read_variable` read, under this strategy or another.

    Each worker writes for itself. What replicas count each for itself is given to the first replica
    of all, and the others begin at zero: shared out evenly, as TensorFlow would, integers lose what
    does not divide.

    Args:
        variable: `keras.Variable` or `tf.Variable`.
        array: what becomes an array of the variable's shape; the same in all workers.

    Raises:
        ValueError: for another shape.

    Example:

    >>> variable = keras.Variable([1.0, 2.0])
    >>> write_variable(variable, [3.0, 4.0])
    >>> read_variable(variable)
    array([3., 4.], dtype=float32)
    """
    value = _of_keras(variable)
    array = np.asarray(array, value.dtype.as_numpy_dtype)
    if array.shape != tuple(value.shape):
        raise ValueError(f"{variable.name} has shape {tuple(value.shape)}, not {array.shape}")
    if not _kept_by_replica(value):
        value.assign(array)
        return
    strategy = value.distribute_strategy
    summed = value.aggregation == tf.VariableAggregation.SUM
    for i, part in enumerate(strategy.experimental_local_results(value)):
        counts = not summed or (i == 0 and is_chief(strategy))
        part.assign(array if counts else np.zeros_like(array))


def _of_keras(variable):
    return variable.value if isinstance(variable, keras.Variable) else variable


def _kept_by_replica(value):
    """Whether each replica has a value of its own, to be put together where it is read."""
    return value.synchronization == tf.VariableSynchronization.ON_READ and isinstance(
        value, tf.distribute.DistributedValues
    )
