"""What affinities know of positions, against loops over pairs; and how modules may begin."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from isa_tf import layers, ops
from isa_tf.layers.position import PositionBias
from isa_tf.testing import randomize


def slow_bias(layer, size, step):
    hidden, offset, outer = (np.asarray(w, np.float64) for w in layer.weights)
    positions = [(r, c) for r in range(size[0]) for c in range(size[1])]
    bias = np.zeros((outer.shape[1], len(positions), len(positions)))
    for i, query in enumerate(positions):
        for j, key in enumerate(positions):
            far = [(k - q) * s for k, q, s in zip(key, query, step, strict=True)]
            x = np.array([math.copysign(math.log(1 + abs(d)), d) for d in far])
            bias[:, i, j] = np.maximum(x @ hidden + offset, 0) @ outer
    return bias


def made_bias(**arguments):
    layer = PositionBias(**arguments)
    layer.build()
    randomize(layer)
    return layer


@pytest.mark.parametrize("size", [(3, 4), (1, 5), (1, 1)])
@pytest.mark.parametrize("step", [(1, 1), (8, 3)])
@pytest.mark.parametrize("num_heads", [1, 3])
def test_bias_is_of_every_pair(size, step, num_heads):
    layer = made_bias(units=5, num_heads=num_heads)
    again = PositionBias.from_config(layer.get_config())
    assert (again.units, again.num_heads) == (5, num_heads)
    expected = slow_bias(layer, size, step)
    np.testing.assert_allclose(layer.between(size, step), expected, atol=1e-5)
    unknown = tf.function(lambda h, w: layer.between((h, w), step))
    spec = tf.TensorSpec((), tf.int32)
    found = unknown.get_concrete_function(spec, spec)(*map(tf.constant, size))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_steps_of_levels():
    partition = ((4, 3), (2, 5))
    assert [ops.group_step(partition, level) for level in range(3)] == [(8, 15), (2, 5), (1, 1)]
    assert ops.group_step((1, 1), "long") == (1, 1)
    # As the groups have it: neighbours in a group are so far apart on the map.
    rows, columns = np.meshgrid(np.arange(24), np.arange(30), indexing="ij")
    where = np.stack([rows, columns], axis=-1)[None]
    for level in range(3):
        group = np.asarray(ops.to_groups(where, partition, level))[0]
        step = ops.group_step(partition, level)
        assert tuple(group[1, 1] - group[0, 0]) == step


@pytest.mark.parametrize("arguments", [{"units": 0}, {"num_heads": 0}])
def test_what_is_no_bias_is_told(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        PositionBias(**arguments)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("heads", [1, 3])
def test_affinity_gains_by_it(jit_compile, heads):
    query, key = (tf.random.normal((2, 2 * heads, 6, 4), seed=s) for s in (0, 1))
    bias = tf.random.normal((heads, 6, 6), seed=2)
    logits = np.einsum("bgnk,bgmk->bgnm", query, key) / 2
    for group in range(2 * heads):  # the heads of the first group, then of the next
        logits[:, group] += bias[group % heads]
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = ops.group_affinity(query, key, None, jit_compile, bias=bias)
    np.testing.assert_allclose(found, expected, atol=1e-5)


MODULES = {
    "dense": (layers.SelfAttention2D, {}),
    "long": (layers.LongRangeAttention, {"partition": 4}),
    "isa": (layers.InterlacedSparseAttention, {"partition": 4}),
    "three": (layers.InterlacedSparseAttention, {"partition": 2, "levels": 3}),
    "shared": (layers.InterlacedSparseAttention, {"partition": 4, "share_projections": True}),
    "heads": (layers.InterlacedSparseAttention, {"partition": 4, "num_heads": 3, "key_filters": 3}),
}


def biases(layer):
    return [part for part in layer._flatten_layers() if isinstance(part, PositionBias)]


@pytest.mark.parametrize("name", MODULES)
def test_a_fresh_module_knows_nothing_of_positions(name):
    """Then it learns: the gradient of what begins at zero is not."""
    cls, arguments = MODULES[name]
    x = tf.random.normal((2, 9, 13, 6), seed=3)
    plain, biased = cls(**arguments), cls(**arguments, position_bias=True)
    plain.build(x.shape)
    biased.build(x.shape)
    randomize(plain)
    mine = iter(plain.weights)
    inside = {id(w) for part in biases(biased) for w in part.weights}
    for weight in biased.weights:
        if id(weight) not in inside:
            weight.assign(next(mine))
    np.testing.assert_array_equal(biased(x), plain(x))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(biased(x) ** 2)
    found = tape.gradient(loss, [part.outer for part in biases(biased)])
    assert found and all(np.abs(g).max() > 0 for g in found)
    for part in biases(biased):
        part.outer.assign(tf.random.normal(part.outer.shape, seed=4))
    assert np.abs(biased(x) - plain(x)).max() > 1e-3


@pytest.mark.parametrize("num_heads", [1, 2])
def test_the_layer_is_the_loop(num_heads):
    layer = layers.LongRangeAttention(
        partition=(3, 2), position_bias=True, filters=8, key_filters=4, num_heads=num_heads
    )
    x = tf.random.normal((1, 9, 8, 6), seed=5)
    layer.build(x.shape)
    randomize(layer)
    _, affinity = layer(x, return_affinity=True)
    groups = tf.reshape(ops.to_groups(x, (3, 2), "long"), (1, 6, 12, 6))
    query, key = (np.asarray(x, np.float64) for x in layer.queries_and_keys(groups))
    bias, expected = slow_bias(layer.bias, (3, 4), (3, 2)), []
    for head in range(num_heads):
        own = slice(head * 4 // num_heads, (head + 1) * 4 // num_heads)
        logits = np.einsum("bgnk,bgmk->bgnm", query[..., own], key[..., own])
        logits = logits / np.sqrt(4 // num_heads) + bias[head]
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        expected.append(weights / weights.sum(-1, keepdims=True))
    np.testing.assert_allclose(affinity, np.mean(expected, axis=0), atol=1e-5)


def test_a_query_scale_is_where_it_begins():
    x = tf.random.normal((1, 8, 8, 6), seed=6)
    layer = layers.LongRangeAttention(partition=2, query_scale=4.0)
    layer.build(x.shape)
    assert set(np.unique(layer.query[1].norm.gamma)) == {4.0}
    for other in (layer.query[0], layer.key[0], layer.key[1], layer.output_conv):
        assert set(np.unique(other.norm.gamma)) == {1.0}
    with pytest.raises(ValueError, match="query_scale must be above 0, got 0"):
        layers.SelfAttention2D(query_scale=0)


def test_orthogonal_queries_and_keys():
    layer = layers.InterlacedSparseAttention(4, key_filters=3, key_initializer="orthogonal")
    layer.build((None, None, None, 6))
    for attention in layer.attentions:
        for conv in (*attention.query, *attention.key):
            kernel = np.asarray(conv.conv.kernel)[0, 0]
            np.testing.assert_allclose(kernel.T @ kernel, np.eye(3), atol=1e-5)
        value = np.asarray(attention.value.kernel)[0, 0]
        assert np.abs(value.T @ value - np.eye(6)).max() > 0.1


def test_an_initializer_draws_each_kernel_anew_and_is_kept():
    """Where query and key were the same, a position would attend to what looks as it does."""
    layer = layers.InterlacedSparseAttention(
        4, key_filters=3, key_initializer=keras.initializers.Orthogonal(0.5)
    )
    config = json.loads(json.dumps(layer.get_config()))
    again = layers.InterlacedSparseAttention.from_config(config)
    assert json.loads(json.dumps(again.get_config())) == config
    for each in (layer, again):
        each.build((None, None, None, 6))
        convs = [conv for part in each.attentions for conv in (*part.query, *part.key)]
        kernels = [np.asarray(conv.conv.kernel)[0, 0] for conv in convs]
        for i, kernel in enumerate(kernels):
            np.testing.assert_allclose(kernel.T @ kernel, np.eye(3) / 4, atol=1e-5)
            for other in kernels[:i]:
                assert kernel.shape != other.shape or np.abs(kernel - other).max() > 1e-3


def test_context_that_begins_at_zero():
    """The fresh module is its fusion of the input alone, and the context learns from then on."""
    layer = layers.InterlacedSparseAttention([2, 4], zero_context=True)
    x = tf.random.normal((2, 8, 8, 6), seed=7)
    layer.build(x.shape)
    kernel = np.asarray(layer.fusion.conv.kernel)[0, 0]
    assert not kernel[:12].any() and (kernel[12:] != 0).all()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x, training=True) ** 2 * tf.random.normal(x.shape, seed=8))
    assert np.abs(tape.gradient(loss, layer.fusion.conv.kernel)[0, 0, :12]).min() > 0
    again = layers.InterlacedSparseAttention.from_config(layer.get_config())
    assert again.zero_context
    with pytest.raises(ValueError, match="zero_context=True needs fuse=True"):
        layers.InterlacedSparseAttention(4, zero_context=True, fuse=False)
