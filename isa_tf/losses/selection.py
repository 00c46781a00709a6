"""Order statistics of the global batch."""

import tensorflow as tf

from isa_tf.hints import Length
from isa_tf.ops import sum_over_replicas

_DIGIT = 8  # bits
_BINS = 1 << _DIGIT


def kth_smallest(values: tf.Tensor, candidates: tf.Tensor, k: Length) -> tf.Tensor:
    """The k-th smallest of the candidates of all replicas, exactly.

    Sorting would want all values in one place. Numbers from 0 on are in the order of their bits,
    so the bits are found digit by digit: each round counts in which of 256 bins the candidates lie
    that agree in the digits before, and the counts alone are summed over the replicas.

    Args:
        values: float32 or float64 tensor, from 0 on.
        candidates: bool tensor of its shape.
        k: int or int tensor, 1 for the smallest; the largest is given where there are fewer.

    Shapes:
        any -> scalar; -1 for k = 0 or without any candidate.

    Example:

    >>> float(kth_smallest(tf.constant([0.5, 0.1, 0.7]), tf.constant([True, True, False]), 2))
    0.5
    """
    integer = {tf.float32: tf.int32, tf.float64: tf.int64}[values.dtype]
    bits = tf.reshape(tf.bitcast(tf.stop_gradient(values), integer), (-1,))
    candidates = tf.reshape(candidates, (-1,))

    def counted(bins):
        """How many candidates lie in each bin; as float32 they would stop at 2 ** 24."""
        ones = tf.cast(candidates, tf.float64)
        return sum_over_replicas(tf.math.unsorted_segment_sum(ones, bins, _BINS))

    rank: tf.Tensor = None
    for shift in range(8 * integer.size - _DIGIT, -1, -_DIGIT):
        digits = tf.bitwise.right_shift(bits, tf.constant(shift, integer))
        digits = tf.cast(tf.bitwise.bitwise_and(digits, tf.constant(_BINS - 1, integer)), tf.int32)
        counts = counted(digits)
        until = tf.cumsum(counts)
        if rank is None:
            rank = left = tf.minimum(tf.cast(k, tf.float64), until[-1])
            found = tf.zeros((), integer)
        digit = tf.reduce_sum(tf.cast(until < left, tf.int32))
        left -= tf.gather(until - counts, digit)
        candidates &= digits == digit
        found += tf.bitwise.left_shift(tf.cast(digit, integer), tf.constant(shift, integer))
    return tf.where(rank > 0, tf.bitcast(found, values.dtype), -tf.ones((), values.dtype))
