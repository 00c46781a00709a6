"""Sums over replicas: their values, their gradients, and where there are none."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.ops import op_selector

from isa_tf.ops import alone, replicas_summed, sum_over_replicas


def per_replica(strategy, values):
    return strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(values[context.replica_id_in_sync_group])
    )


def results(strategy, function, *arguments, graph=True):
    def run(*arguments):
        return strategy.run(function, arguments)

    outputs = (tf.function(run) if graph else run)(*arguments)
    return tf.nest.map_structure(strategy.experimental_local_results, outputs)


def test_every_replica_gets_the_sum(mirrored):
    x = per_replica(mirrored, [[1.0, 2.0], [30.0, 40.0]])
    for graph in (True, False):
        found = results(mirrored, lambda x: sum_over_replicas([x, 2 * x]), x, graph=graph)
        for replica in (0, 1):
            np.testing.assert_array_equal(found[0][replica], [31.0, 42.0])
            np.testing.assert_array_equal(found[1][replica], [62.0, 84.0])


def test_gradient_is_that_of_the_sum_of_the_shares(mirrored):
    """L = (1 + 2) (a + b)^2 where the shares are (a + b)^2 and 2 (a + b)^2."""
    a, b = 3.0, 4.0

    def share(x, factor):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = factor * sum_over_replicas(x) ** 2
        return tape.gradient(loss, x)

    x, factor = per_replica(mirrored, [a, b]), per_replica(mirrored, [1.0, 2.0])
    for found in results(mirrored, share, x, factor):
        np.testing.assert_allclose(found, 3 * 2 * (a + b))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_what_looks_for_variables_does_not_cross_to_other_replicas(mirrored, dtype):
    """As `tf.custom_gradient` does at every sum: tracing would take the square of their number."""
    reached = []

    def function(x):
        x = tf.cast(tf.sin(x), dtype)
        total = sum_over_replicas(x)
        reached.append(op_selector.get_backward_walk_ops([total], only_differentiable=True))
        reached.append(op_selector.get_backward_walk_ops([total]))
        return tf.cast(total, "float32")

    found = results(mirrored, function, per_replica(mirrored, [1.0, 2.0]))
    np.testing.assert_allclose(found[0], np.sin([1.0, 2.0]).sum(), rtol=1e-2)
    sines = [sum(op.type == "Sin" for op in ops) for ops in reached]
    assert sines == [1, 2, 1, 2]  # its own alone, where there are two


def test_identity_without_other_replicas(mirrored):
    x = tf.constant(2.0)
    assert sum_over_replicas(x) is x
    with mirrored.scope():  # across the replicas
        assert sum_over_replicas(x) is x and replicas_summed() == 1
    single = tf.distribute.MirroredStrategy(["CPU:0"])
    assert float(single.run(sum_over_replicas, (x,))) == 2.0


def test_alone_may_stand_in_a_branch(mirrored):
    def function(x):
        before = replicas_summed()
        with alone():
            with alone():
                pass
            inside = replicas_summed()
            kept = tf.cond(x > 2.0, lambda: sum_over_replicas(x), lambda: -x)
        assert (before, inside, replicas_summed()) == (2, 1, 2)
        return kept, sum_over_replicas(x)

    found = results(mirrored, function, per_replica(mirrored, [1.0, 30.0]))
    np.testing.assert_array_equal(found, [[-1.0, 30.0], [31.0, 31.0]])


def test_alone_ends_with_an_error(mirrored):
    def function(x):
        with pytest.raises(ZeroDivisionError), alone():
            _ = 1 / 0
        return sum_over_replicas(x)

    assert float(results(mirrored, function, tf.constant(1.0))[0]) == 2.0
