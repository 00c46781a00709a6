"""Sums over the replicas of a `tf.distribute` strategy."""

import contextlib
import threading

import tensorflow as tf

_thread = threading.local()


def sum_over_replicas(values):
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
    # A tensor from outside of the replica's function has no device to bring the sum to.
    values = tf.nest.map_structure(tf.identity, values)
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


def replicas_summed():
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
def alone():
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
