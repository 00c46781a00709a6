"""Several heads and other normalisations of the context, against explicit loops."""

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf

from isa_tf import layers, ops
from isa_tf.layers.twin import TwinOptions, inference_twin
from isa_tf.testing import randomize

ISA = layers.InterlacedSparseAttention
FORMS = {
    "two heads": (ISA, {"num_heads": 2}),
    "as many heads as keys": (ISA, {"num_heads": 4, "key_filters": 4, "order": "short_long"}),
    "heads of three levels": (ISA, {"num_heads": 2, "levels": 3, "partition": 2}),
    "shared heads": (ISA, {"num_heads": 2, "share_projections": True}),
    "shared heads of three levels": (
        ISA,
        {"num_heads": 2, "levels": 3, "partition": 2, "share_projections": True},
    ),
    "heads of padding attended to": (
        ISA,
        {"num_heads": 2, "mask_padding": False, "share_projections": True},
    ),
    "a bias": (ISA, {"position_bias": True}),
    "heads with a bias each": (ISA, {"num_heads": 2, "position_bias": True}),
    "shared heads of three levels with a bias each": (
        ISA,
        {
            **{"num_heads": 2, "position_bias": True},
            **{"levels": 3, "partition": 2, "share_projections": True},
        },
    ),
    "context as it is": (ISA, {"context_norm": None}),
    "shared context as it is": (ISA, {"context_norm": None, "share_projections": True}),
    "context of the map": (ISA, {"context_norm": "map"}),
    "shared context of the map": (ISA, {"context_norm": "map", "share_projections": True}),
    "heads and map": (ISA, {"context_norm": "map", "num_heads": 2}),
}


def made(cls, shape=(2, 8, 12, 8), **arguments):
    layer = cls(**{"partition": 4, **arguments})
    layer.build(shape)
    randomize(layer)
    return layer


def maps(shape=(2, 8, 12, 8), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.mark.parametrize("name", FORMS)
def test_it_is_the_loop(name):
    cls, arguments = FORMS[name]
    # What is normalised over the map has the padding's positions in it, as the loops have not.
    size = (8, 12) if arguments.get("context_norm") == "map" else (7, 10)
    layer, x = made(cls, **arguments), maps((2, *size, 8))
    found = layer(x, training=False)
    for image, one in zip(x, found, strict=True):
        expected = reference.interlaced(image, layer, arguments.get("mask_padding", True))
        np.testing.assert_allclose(one, expected, atol=2e-5)


@pytest.mark.parametrize("name", FORMS)
def test_its_twin(name):
    cls, arguments = FORMS[name]
    layer, x = made(cls, **arguments), maps((1, 7, 10, 8))
    twin = inference_twin(layer, TwinOptions())
    np.testing.assert_allclose(twin(x), layer(x), atol=2e-5)
    norms = [part for part in twin._flatten_layers() if "Norm" in type(part).__name__]
    # Nothing is left to normalise but what depends on the map at hand.
    assert len(norms) == sum(attention.output_norm is not None for attention in layer.attentions)
    assert all(isinstance(norm, keras.layers.GroupNormalization) for norm in norms)


def test_heads_are_split_and_merged():
    x = maps((2, 3, 5, 8))
    split = ops.split_heads(x, 4)
    for group in range(3):
        for head in range(4):
            share = x[:, group, :, 2 * head : 2 * head + 2]
            np.testing.assert_array_equal(split[:, 4 * group + head], share)
    np.testing.assert_array_equal(ops.merge_heads(split, 4), x)
    unknown = tf.function(lambda x: ops.merge_heads(ops.split_heads(x, 2), 2))
    found = unknown.get_concrete_function(tf.TensorSpec((None, None, None, 8)))(tf.constant(x))
    np.testing.assert_array_equal(found, x)


@pytest.mark.parametrize("shared", [False, True])
def test_the_affinity_is_the_mean_of_the_heads(shared):
    layer, x = made(ISA, num_heads=2, share_projections=shared), maps()
    _, affinities = layer(x, return_affinity=True)
    one = made(ISA, share_projections=shared)
    _, expected = one(x, return_affinity=True)
    assert [a.shape for a in affinities] == [a.shape for a in expected]
    for affinity in affinities:
        np.testing.assert_allclose(np.sum(affinity, -1), 1, atol=1e-5)
    if shared:
        return
    first = layer.attentions[0]
    groups = tf.reshape(ops.to_groups(x, (4, 4), "long"), (2, 16, 6, 8))
    query, key = first.queries_and_keys(groups)
    heads = [
        tf.nn.softmax(tf.einsum("bgnk,bgmk->bgnm", q, k) / np.sqrt(2))
        for q, k in zip(tf.split(query, 2, -1), tf.split(key, 2, -1), strict=True)
    ]
    np.testing.assert_allclose(affinities[0], (heads[0] + heads[1]) / 2, atol=1e-5)


def test_one_head_and_batch_are_as_published():
    plain, told = made(ISA), made(ISA, num_heads=1, context_norm="batch")
    assert [v.path.split("/", 1)[1] for v in plain.weights] == [
        v.path.split("/", 1)[1] for v in told.weights
    ]
    told.set_weights(plain.get_weights())
    np.testing.assert_array_equal(told(maps()), plain(maps()))


def test_a_context_that_is_normalised_over_its_map_knows_no_other_image():
    layer = made(ISA, context_norm="map")
    context = maps((3, 16, 6, 8), seed=1)
    # Queries and keys are normalised over the batch in training; what reads out is not.
    for attention in layer.attentions:
        np.testing.assert_allclose(
            attention.read_out(context, training=True)[:1],
            attention.read_out(context[:1], training=True),
            atol=1e-5,
        )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"num_heads": 3}, "3 heads, which do not divide filters 8"),
        ({"num_heads": 4, "key_filters": 6}, "4 heads, which do not divide key_filters 6"),
        ({"context_norm": "layer"}, "context_norm must be batch, map or None, got 'layer'"),
    ],
)
def test_wrong_arguments(arguments, message):
    for cls in (ISA, layers.SelfAttention2D):
        with pytest.raises(ValueError, match=message):
            cls(**arguments).build((None, None, None, 8))
