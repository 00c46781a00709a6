"""A batch dealt out to replicas, and what an optimizer makes of their shares."""

import contextlib

import numpy as np
import tensorflow as tf

from isa_tf.ops import alone


def part(strategy, values):
    parts = np.split(values, strategy.num_replicas_in_sync)
    return strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(parts[context.replica_id_in_sync_group])
    )


def over_replicas(strategy, loss, *batch, evaluated_alone=False):
    """(loss, gradient) of a batch that is dealt out, as an optimizer adds it up."""

    def share(labels, logits, *weights):
        context = alone() if evaluated_alone else contextlib.nullcontext()
        with context, tf.GradientTape() as tape:
            tape.watch(logits)
            value = loss(labels, logits, *weights)
        return value, tape.gradient(value, logits)

    run = tf.function(lambda *parts: strategy.run(share, parts))
    shares, gradients = run(*(part(strategy, values) for values in batch))
    gradients = strategy.experimental_local_results(gradients)
    return float(strategy.reduce("SUM", shares, axis=None)), np.concatenate(gradients)
