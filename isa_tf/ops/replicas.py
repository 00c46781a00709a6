"""Sums over the replicas of a `tf.distribute` strategy."""

import contextlib
import threading
from collections.abc import Iterator
from typing import TypeVar

import tensorflow as tf

_thread = threading.local()
_Tensors = TypeVar("_Tensors")  # a tensor, or nested lists of tensors


def sum_over_replicas(values: _Tensors) -> _Tensors:
    """The sum of what every replica has here; without other replicas, what is given.

    The gradient is right where each replica's loss is its share of the whole one: that of the sum
    of all shares, which every replica gets, by what this replica put in.

    All replicas must come by here, in the same order, and with the same shapes; so it may not
    stand in a branch of `tf.cond` inside a replica's function. See `alone`.

    Args:
        values: tensor, or nested lists of tensors, which cross the replicas together.

    Shapes:
        any -> the same.

    Example:

    >>> float(sum_over_replicas(tf.constant(2.0)))
    2.0
    """
    if replicas_summed() == 1:
        return values
    flat = tf.nest.flatten(values)

    @tf.custom_gradient
    def total(*flat):
        context = tf.distribute.get_replica_context()
        sums = context.all_reduce(tf.distribute.ReduceOp.SUM, [_cut_off(x) for x in flat])
        return sums, lambda *gradients: sum_over_replicas(list(gradients))

    return tf.nest.pack_sequence_as(values, tf.nest.flatten(total(*flat)))


def _cut_off(tensor):
    """The same values, at which TensorFlow's search for variables ends.

    `tf.custom_gradient`, by which `all_reduce` has its gradient, looks for variables in all that
    its result comes of. Behind a sum over replicas that is the whole graph of each other replica:
    every sum took longer than the one before it, and tracing a network of many synchronised
    normalisations minutes. The search does not go through integers.
    """
    integer = {2: tf.int16, 4: tf.int32, 8: tf.int64}.get(tensor.dtype.size)
    if not tensor.dtype.is_floating or integer is None:
        # A tensor from outside of the replica's function has no device to bring the sum to.
        return tf.identity(tensor)
    return tf.bitcast(tf.bitcast(tensor, integer), tensor.dtype)


def replicas_summed() -> int:
    """Over how many replicas `sum_over_replicas` sums here: int, 1 where it gives what it is given.

    Which is outside of a strategy, outside of a replica's function, and under `alone`.

    Example:

    >>> replicas_summed()
    1
    """
    context = tf.distribute.get_replica_context()
    if context is None or getattr(_thread, "alone", False):
        return 1
    return context.num_replicas_in_sync


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within it a replica sums over no other: `sum_over_replicas` gives what it is given.

    For the evaluation of a replica's own batch, of which another may have none. To be entered
    inside the replica's function, where that is traced: each replica has its own thread.

    Example:

    >>> with alone():
    ...     replicas_summed()
    1
    """
    before = getattr(_thread, "alone", False)
    _thread.alone = True
    try:
        yield
    finally:
        _thread.alone = before
