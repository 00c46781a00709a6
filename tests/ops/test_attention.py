"""Grouped attention against loops, and against itself compiled."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from isa_tf.ops import group_affinity, grouped_attention, scale_queries
from isa_tf.testing import relative_error

B, G, N, M, K, C = 2, 3, 5, 7, 4, 6


def tensors(dtype="float32", scale=1.0):
    rng = np.random.default_rng(0)
    shapes = ((B, G, N, K), (B, G, M, K), (B, G, M, C))
    return [tf.constant(rng.normal(0, scale, s), dtype) for s in shapes]


def some_mask():
    mask = np.random.default_rng(1).uniform(size=(G, M)) < 0.6
    mask[:, 0] = True
    return mask


def by_loops(query, key, value, mask):
    query, key, value = (np.asarray(t, np.float64) for t in (query, key, value))
    context, affinity = np.zeros((B, G, N, C)), np.zeros((B, G, N, M))
    for b, g, n in np.ndindex(B, G, N):
        keys = [m for m in range(M) if mask is None or mask[g, m]]
        weights = [np.exp(query[b, g, n] @ key[b, g, m] / np.sqrt(K)) for m in keys]
        for m, weight in zip(keys, weights, strict=True):
            affinity[b, g, n, m] = weight / sum(weights)
            context[b, g, n] += affinity[b, g, n, m] * value[b, g, m]
    return context, affinity


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("mask", [None, some_mask()], ids=["plain", "masked"])
def test_equals_loops(mask, jit_compile):
    arguments = tensors()
    found = grouped_attention(*arguments, mask, jit_compile)
    for result, expected in zip(found, by_loops(*arguments, mask), strict=True):
        assert relative_error(result, expected) < 1e-5
    if mask is not None:
        assert not np.any(found[1].numpy()[..., ~mask[0]][:, 0])


def with_gradients(arguments, mask, jit_compile):
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        context, affinity = grouped_attention(*arguments, mask, jit_compile)
        loss = tf.reduce_sum(context**2) + tf.reduce_sum(affinity**3)
    return [context, affinity, *tape.gradient(loss, arguments)]


@pytest.mark.parametrize("mask", [None, some_mask()], ids=["plain", "masked"])
def test_eager_graph_and_xla_agree(mask):
    arguments = tensors()
    eager = with_gradients(arguments, mask, False)
    others = {
        "graph": tf.function(functools.partial(with_gradients, mask=mask, jit_compile=False)),
        "xla inside": functools.partial(with_gradients, mask=mask, jit_compile=True),
        "xla inside a graph": tf.function(
            functools.partial(with_gradients, mask=mask, jit_compile=True)
        ),
        "xla outside": tf.function(
            functools.partial(with_gradients, mask=mask, jit_compile=False), jit_compile=True
        ),
    }
    for name, function in others.items():
        for expected, found in zip(eager, function(arguments), strict=True):
            assert relative_error(found, expected) < 1e-5, name


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_group_without_keys_is_finite(jit_compile):
    mask = some_mask()
    mask[1] = False
    arguments = tensors()
    results = with_gradients(arguments, mask, jit_compile)
    assert all(np.isfinite(result).all() for result in results)
    mean = np.mean(arguments[2].numpy()[:, 1], axis=1, keepdims=True)
    np.testing.assert_allclose(results[0][:, 1], np.repeat(mean, N, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mask", [None, some_mask()], ids=["plain", "masked"])
def test_float16_does_not_overflow_before_the_scale(mask):
    # q k^T alone would be 256 * 40 * 40 = 409600, beyond float16; scaled it is 25600.
    query = key = tf.fill((1, G, M, 256), tf.constant(40.0, tf.float16))
    value = tf.cast(tf.random.normal((1, G, M, C)), tf.float16)
    with tf.GradientTape() as tape:
        tape.watch((query, key, value))
        context, affinity = grouped_attention(query, key, value, mask)
        loss = tf.reduce_sum(context)
    assert np.isfinite(context).all() and np.isfinite(affinity).all()
    assert all(np.isfinite(g).all() for g in tape.gradient(loss, (query, key, value)))
    counts = np.full((G, 1, 1), M) if mask is None else mask.sum(1)[:, None, None]
    np.testing.assert_allclose(
        affinity[0].numpy().max(-1, keepdims=True),
        np.broadcast_to(1.0 / counts, (G, M, 1)),
        rtol=1e-6,
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_rows_sum_to_one(dtype):
    context, affinity = grouped_attention(*tensors(dtype), some_mask())
    assert context.dtype == dtype and affinity.dtype == tf.float32
    np.testing.assert_allclose(tf.reduce_sum(affinity, -1), np.ones((B, G, N)), atol=1e-6)
    expected = by_loops(*(tf.cast(t, tf.float32) for t in tensors(dtype)), some_mask())
    assert relative_error(context, expected[0]) < (2e-2 if dtype == "bfloat16" else 2e-3)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_queries_scaled_beforehand(jit_compile):
    rng = np.random.default_rng(0)
    query, key = (tf.constant(rng.normal(size=(2, 3, 5, 4)), "float32") for _ in range(2))
    expected = group_affinity(query, key, None, jit_compile)
    found = group_affinity(scale_queries(query), key, None, jit_compile, scaled=True)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (
        np.abs(group_affinity(query, key, None, jit_compile, scaled=True) - expected).max() > 0.01
    )
