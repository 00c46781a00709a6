"""Softmax attention inside groups of positions. No variables: safe to compile anywhere."""

import tensorflow as tf

# Far below any affinity, yet finite: a group without a key then averages instead of giving NaN.
_MASKED = -1e9


def _attend(query, key, value, key_mask):
    # The query is scaled before the product, so that float16 does not overflow in it.
    query = query * tf.cast(query.shape[-1] ** -0.5, query.dtype)
    logits = tf.cast(tf.einsum("bgnk,bgmk->bgnm", query, key), tf.float32)
    if key_mask is not None:
        logits = tf.where(key_mask[None, :, None, :], logits, _MASKED)
    affinity = tf.nn.softmax(logits)
    context = tf.einsum("bgnm,bgmc->bgnc", tf.cast(affinity, value.dtype), value)
    return context, affinity


_attend_compiled = tf.function(_attend, jit_compile=True)


def grouped_attention(query, key, value, key_mask=None, jit_compile=False):
    """softmax(q k^T / sqrt(K)) v inside each group, the softmax in float32.

    Args:
        query: tensor (B, G, N, K), G groups of N positions.
        key: tensor (B, G, M, K).
        value: tensor (B, G, M, C).
        key_mask: bools (G, M), False for keys to leave out; or `None`. A group without any key
            gives the plain mean of its values.
        jit_compile: bool, whether XLA compiles the whole of it. Defaults to `False`.

    Returns:
        (context, affinity): (B, G, N, C) in the value's dtype, (B, G, N, M) in float32.

    Example:

    >>> q = k = v = tf.random.normal((1, 4, 9, 8))
    >>> context, affinity = grouped_attention(q, k, v)
    >>> context.shape, affinity.shape
    (TensorShape([1, 4, 9, 8]), TensorShape([1, 4, 9, 9]))
    """
    return (_attend_compiled if jit_compile else _attend)(query, key, value, key_mask)
