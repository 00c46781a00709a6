"""Softmax attention inside groups of positions. No variables: safe to compile anywhere."""

import numpy as np
import tensorflow as tf

from isa_tf.ops.partition import spatial_size

# Far below any affinity, yet finite: a group without a key then averages instead of giving NaN.
_MASKED = -1e9


def scale_queries(query: tf.Tensor, num_heads: int = 1) -> tf.Tensor:
    """Queries (..., K) times 1 / sqrt(K / num_heads): before the product, so that float16 does not
    overflow."""
    return query * tf.cast((query.shape[-1] // num_heads) ** -0.5, query.dtype)


def split_heads(x: tf.Tensor, num_heads: int) -> tf.Tensor:
    """Groups of each head, which has its share of the channels.

    Args:
        x: tensor (B, G, N, C), C a multiple of `num_heads`.
        num_heads: int.

    Returns:
        Tensor (B, G num_heads, N, C / num_heads): the heads of the first group, then of the next.

    Example:

    >>> split_heads(tf.ones((1, 4, 9, 8)), num_heads=2).shape
    TensorShape([1, 8, 9, 4])
    """
    (groups, positions), channels = spatial_size(x), x.shape[-1]
    x = tf.reshape(x, (-1, groups, positions, num_heads, channels // num_heads))
    x = tf.transpose(x, (0, 1, 3, 2, 4))
    return tf.reshape(x, (-1, groups * num_heads, positions, channels // num_heads))


def merge_heads(x: tf.Tensor, num_heads: int) -> tf.Tensor:
    """The inverse of `split_heads`: (B, G num_heads, N, C / num_heads) -> (B, G, N, C).

    Example:

    >>> merge_heads(tf.ones((1, 8, 9, 4)), num_heads=2).shape
    TensorShape([1, 4, 9, 8])
    """
    (groups, positions), channels = spatial_size(x), x.shape[-1]
    x = tf.reshape(x, (-1, groups // num_heads, num_heads, positions, channels))
    x = tf.transpose(x, (0, 1, 3, 2, 4))
    return tf.reshape(x, (-1, groups // num_heads, positions, num_heads * channels))


def mean_of_heads(affinity: tf.Tensor, num_heads: int) -> tf.Tensor:
    """The mean of the heads' affinities: (B, G num_heads, N, M) -> (B, G, N, M).

    Example:

    >>> mean_of_heads(tf.ones((1, 8, 9, 9)), num_heads=2).shape
    TensorShape([1, 4, 9, 9])
    """
    heads = [affinity[:, head::num_heads] for head in range(num_heads)]
    return tf.add_n(heads) / num_heads


def _affinity(query, key, key_mask, scaled, bias):
    query = query if scaled else scale_queries(query)
    logits = tf.cast(tf.einsum("bgnk,bgmk->bgnm", query, key), tf.float32)
    if bias is not None:
        logits = _add_bias(logits, bias)
    if key_mask is not None:
        # Not by indexing with `None`, which LiteRT has not for bools of unknown size.
        logits = tf.where(tf.expand_dims(tf.expand_dims(key_mask, 1), 0), logits, _MASKED)
    return tf.nn.softmax(logits)


def _add_bias(logits, bias):
    """Logits (B, G, N, M) plus the bias (H, N, M) of heads, which the groups are of in turn."""
    if bias.shape[0] == 1:
        return logits + bias
    (groups, _), (queries, keys) = spatial_size(logits), spatial_size(bias)
    logits = tf.reshape(logits, (-1, bias.shape[0], queries, keys)) + bias
    return tf.reshape(logits, (-1, groups, queries, keys))


def _gather(affinity, value):
    return tf.einsum("bgnm,bgmc->bgnc", tf.cast(affinity, value.dtype), value)


_affinity_compiled = tf.function(_affinity, jit_compile=True)
_gather_compiled = tf.function(_gather, jit_compile=True)


def group_affinity(
    query: tf.Tensor,
    key: tf.Tensor,
    key_mask: tf.Tensor | np.ndarray | None = None,
    jit_compile: bool = False,
    scaled: bool = False,
    bias: tf.Tensor | None = None,
) -> tf.Tensor:
    """softmax(q k^T / sqrt(K) + bias) inside each group, in float32.

    Args:
        query: tensor (B, G, N, K), G groups of N positions.
        key: tensor (B, G, M, K).
        key_mask: bools (G, M), False for keys to leave out; or `None`. A group without any key
            weighs all of them alike.
        jit_compile: bool, whether XLA compiles it. Defaults to `False`.
        scaled: bool, whether the queries are those of `scale_queries`: once for several affinities.
            Defaults to `False`.
        bias: float32 tensor (H, N, M), of H heads, which the groups of `split_heads` are of in
            turn; or `None`. Defaults to `None`.

    Returns:
        float32 tensor (B, G, N, M), whose rows add up to one.

    Example:

    >>> q = k = tf.random.normal((1, 4, 9, 8))
    >>> group_affinity(q, k).shape
    TensorShape([1, 4, 9, 9])
    """
    return (_affinity_compiled if jit_compile else _affinity)(query, key, key_mask, scaled, bias)


def gather_values(affinity: tf.Tensor, value: tf.Tensor, jit_compile: bool = False) -> tf.Tensor:
    """The affinity-weighted sums of the values inside each group.

    Args:
        affinity: tensor (B, G, N, M).
        value: tensor (B, G, M, C).
        jit_compile: bool, whether XLA compiles it. Defaults to `False`.

    Returns:
        Tensor (B, G, N, C) in the value's dtype.

    Example:

    >>> gather_values(tf.eye(9, batch_shape=(1, 4)), tf.ones((1, 4, 9, 8))).shape
    TensorShape([1, 4, 9, 8])
    """
    return (_gather_compiled if jit_compile else _gather)(affinity, value)


def grouped_attention(
    query: tf.Tensor,
    key: tf.Tensor,
    value: tf.Tensor,
    key_mask: tf.Tensor | np.ndarray | None = None,
    jit_compile: bool = False,
) -> tuple[tf.Tensor, tf.Tensor]:
    """softmax(q k^T / sqrt(K)) v inside each group, the softmax in float32.

    Args:
        query: tensor (B, G, N, K), G groups of N positions.
        key: tensor (B, G, M, K).
        value: tensor (B, G, M, C).
        key_mask: bools (G, M), False for keys to leave out; or `None`. A group without any key
            gives the plain mean of its values.
        jit_compile: bool, whether XLA compiles both halves. Defaults to `False`.

    Returns:
        (context, affinity): (B, G, N, C) in the value's dtype, (B, G, N, M) in float32.

    Example:

    >>> q = k = v = tf.random.normal((1, 4, 9, 8))
    >>> context, affinity = grouped_attention(q, k, v)
    >>> context.shape, affinity.shape
    (TensorShape([1, 4, 9, 8]), TensorShape([1, 4, 9, 9]))
    """
    affinity = group_affinity(query, key, key_mask, jit_compile)
    return gather_values(affinity, value, jit_compile), affinity
