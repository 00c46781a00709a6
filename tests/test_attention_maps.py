import keras
import numpy as np
import pytest
import reference

from isa_tf import ops
from isa_tf.attention_maps import influence, read_attention
from isa_tf.layers import (
    FactorizedAttention,
    InterlacedSparseAttention,
    SelfAttention2D,
    ShortRangeAttention,
)
from isa_tf.models import Segmenter
from isa_tf.testing import random_inputs, randomize


def matrix(affinity, kind, partition, padded):
    """The N x N matrix of an attention over a padded map, entry by entry."""
    full = np.zeros((padded[0] * padded[1],) * 2)
    groups = reference.groups(*padded, partition, kind)
    assert affinity.shape == (len(groups), len(groups[0]), len(groups[0]))
    for group, weights in zip(groups, affinity, strict=True):
        for a, (row, column) in enumerate(group):
            for b, (other_row, other_column) in enumerate(group):
                i, j = row * padded[1] + column, other_row * padded[1] + other_column
                full[i, j] = weights[a, b]
    return full


def padded_map(size, partition):
    wholes = reference.wholes(partition)
    amounts = [reference.padding(n, p) for n, p in zip(size, wholes, strict=True)]
    return tuple(before for before, _ in amounts), tuple(
        n + sum(amount) for n, amount in zip(size, amounts, strict=True)
    )


@pytest.mark.some(8)
@pytest.mark.parametrize("mask", [True, False], ids=["masked", "unmasked"])
@pytest.mark.parametrize(
    ("size", "partition", "order", "depth", "shared"),
    [
        ((5, 7), (2, 3), "long_short", 1, False),
        ((5, 7), (2, 3), "short_long", 1, False),
        ((9, 6), (4, 4), "long_short", 2, False),
        ((3, 5), (4, 2), "short_long", 2, False),
        ((4, 6), (2, 3), "long_short", 1, False),
        ((5, 7), (3, 2), "short", 1, False),
        ((5, 4), (1, 1), "long", 1, False),
        ((7, 5), ((2, 1), (2, 3)), "long_short", 1, False),
        ((7, 5), ((2, 2), (2, 2)), "short_long", 1, True),
        ((5, 7), (2, 3), "long_short", 1, True),
    ],
    ids=str,
)
def test_influence_is_a_row_of_the_product(size, partition, order, depth, shared, mask):
    levels = len(reference.pairs_of(partition)) + 1
    layer = InterlacedSparseAttention(
        partition,
        key_filters=4,
        order=order,
        depth=depth,
        mask_padding=mask,
        levels=levels,
        share_projections=shared,
    )
    layer.build((1, *size, 3))
    randomize(layer)
    _, affinities = layer(random_inputs((1, *size, 3)), return_affinity=True)
    affinities = [np.asarray(affinity[0]) for affinity in affinities]
    kinds = reference.kinds_of(order, levels) * depth
    offset, padded = padded_map(size, partition)
    product = np.eye(padded[0] * padded[1])
    for affinity, kind in zip(affinities, kinds, strict=True):
        product = matrix(affinity, kind, partition, padded) @ product
    image = np.zeros(padded, bool)
    image[tuple(slice(o, o + n) for o, n in zip(offset, size, strict=True))] = True
    for position in np.ndindex(size):
        found = influence(affinities, kinds, partition, offset, size, position)
        row, column = np.add(position, offset)
        expected = product[row * padded[1] + column].reshape(padded)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
        assert found.shape == padded and abs(found.sum() - 1) < 1e-5
        if len(kinds) > 1 or partition == (1, 1):
            assert (found[image] > 0).all()  # every position is heard
        if mask:
            assert found[~image].sum() == 0
        elif not image.all() and len(kinds) > 1:
            assert found[~image].sum() > 0


def averaging(layer, channels):
    """Makes an attention module hand on what it attends to, and nothing else."""
    randomize(layer)
    for attention in layer.attentions:
        attention.value.kernel.assign(np.eye(channels)[None, None])
        attention.output_conv.conv.kernel.assign(np.eye(channels)[None, None])
        norm = attention.output_conv.norm
        zeros, ones = np.zeros(channels), np.ones(channels)
        norm.set_weights([ones * np.sqrt(1 + reference.EPSILON), zeros, zeros, ones])


@pytest.mark.parametrize("order", ["long_short", "short_long"])
def test_attentions_read_from_a_model_give_its_outputs(order):
    inputs = keras.Input((None, None, 3))
    x = keras.layers.AveragePooling2D(4, padding="same")(inputs)
    features = keras.layers.Conv2D(2, 1, activation="softplus")(x)
    layer = InterlacedSparseAttention([2, (4, 3)], depth=2, order=order, fuse=False)
    model = keras.Model(inputs, layer(features))
    averaging(layer, 2)
    image = np.random.default_rng(0).integers(0, 256, (26, 18, 3), np.uint8)
    batch = image[None].astype(np.float32)
    outputs = np.split(model(batch)[0].numpy(), 2, axis=-1)  # one a partition
    read_by_all = keras.Model(inputs, features)(batch)[0].numpy()
    attentions = read_attention(model, image)
    assert [a.partition for a in attentions] == [(2, 2), (4, 3)]
    for attention, output in zip(attentions, outputs, strict=True):
        assert attention.size == (7, 5) and attention.kinds == order.split("_") * 2
        (top, left), (height, width) = attention.offset, attention.size
        for position in [(0, 0), (6, 4), (3, 2)]:
            weights = influence(*attention, position)[top : top + height, left : left + width]
            np.testing.assert_allclose(
                (weights[..., None] * read_by_all).sum((0, 1)), output[position], rtol=1e-4
            )


def test_attentions_of_more_levels_give_their_outputs():
    """Projections of its own for each of three levels, or shared; two partitions."""
    inputs = keras.Input((None, None, 3))
    features = keras.layers.AveragePooling2D(4, padding="same")(inputs)
    image = np.random.default_rng(0).integers(0, 256, (26, 18, 3), np.uint8)
    batch = image[None].astype(np.float32)
    read_by_all = keras.Model(inputs, features)(batch)[0].numpy()
    for shared in (False, True):
        layer = InterlacedSparseAttention(
            [((2, 1), (2, 2)), "auto"], fuse=False, levels=3, share_projections=shared
        )
        model = keras.Model(inputs, layer(features))
        averaging(layer, 3)
        outputs = np.split(model(batch)[0].numpy(), 2, axis=-1)
        attentions = read_attention(model, image)
        best = ops.best_partition(7, 5, levels=3)
        assert [a.partition for a in attentions] == [((2, 1), (2, 2)), best]
        for attention, output in zip(attentions, outputs, strict=True):
            assert attention.kinds == [0, 1, 2] and attention.size == (7, 5)
            (top, left), (height, width) = attention.offset, attention.size
            for position in [(0, 0), (6, 4), (3, 2)]:
                weights = influence(*attention, position)[top : top + height, left : left + width]
                gathered = (weights[..., None] * read_by_all).sum((0, 1))
                np.testing.assert_allclose(gathered, output[position], rtol=1e-4)


def test_read_attention_of_levels_that_nobody_named():
    """`levels="auto"` of a small map are long and short; a layer on its own tells as a module."""
    inputs = keras.Input((None, None, 3))
    x = keras.layers.AveragePooling2D(4)(inputs)
    layer = FactorizedAttention("auto", levels="auto", key_filters=2)
    model = keras.Model(inputs, layer(x))
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    (found,) = read_attention(model, image)
    assert found.kinds == ["long", "short"] and found.partition == ops.best_partition(6, 8)
    assert influence(*found, (2, 3)).sum() == pytest.approx(1, abs=1e-5)


def test_read_attention_of_layers_that_stand_alone():
    inputs = keras.Input((None, None, 3))
    x = keras.layers.AveragePooling2D(2)(inputs)
    x = SelfAttention2D(key_filters=2, name="dense")(x)
    model = keras.Model(inputs, ShortRangeAttention((2, 3), key_filters=2, name="near")(x))
    image = np.random.default_rng(0).integers(0, 256, (10, 14, 3), np.uint8)
    (dense,), (near,) = (read_attention(model, image, name) for name in ("dense", "near"))
    assert dense.kinds == ["long"] and dense.partition == (1, 1) and dense.offset == (0, 0)
    assert dense.affinities[0].shape == (1, 35, 35)
    assert near.kinds == ["short"] and near.offset == (0, 1) and near.size == (5, 7)
    # In the block of rows 2 and 3 and columns 0 to 2, the first column is padding, masked.
    block = np.argwhere(influence(*near, (2, 1)) > 0)
    np.testing.assert_array_equal(block, [[2, 1], [2, 2], [3, 1], [3, 2]])


def test_errors_of_attention():
    affinity = np.full((4, 4, 4), 0.25)
    sound = {
        "affinities": [affinity],
        "kinds": ["long"],
        "partition": (2, 2),
        "offset": (0, 0),
        "size": (4, 4),
        "position": (0, 0),
    }
    np.testing.assert_array_equal(influence(**sound)[::2, ::2], 0.25)
    with pytest.raises(ValueError, match=r"position \(4, 0\) is not in a map of \(4, 4\)"):
        influence(**{**sound, "position": (4, 0)})
    with pytest.raises(ValueError, match=r"position \(0, -1\)"):
        influence(**{**sound, "position": (0, -1)})
    with pytest.raises(ValueError, match="2 kinds for 1 affinities"):
        influence(**{**sound, "kinds": ["long", "short"]})
    with pytest.raises(ValueError, match=r"has the shape \(4, 4, 4\), got \(1, 16, 16\)"):
        influence(**{**sound, "affinities": [np.ones((1, 16, 16))]})
    with pytest.raises(ValueError, match="level must be long, short, or 0 to 1, got 2"):
        influence(**{**sound, "kinds": [2]})
    image = np.zeros((8, 8, 3), np.uint8)
    without = Segmenter("tiny", None, 3, head_filters=4, name="plain")
    with pytest.raises(ValueError, match="plain has no attention to show"):
        read_attention(without, image)
    inputs = keras.Input((8, 8, 3))
    x = SelfAttention2D(key_filters=2, name="one")(inputs)
    model = keras.Model(inputs, SelfAttention2D(key_filters=2, name="two")(x), name="pair")
    with pytest.raises(ValueError, match="pair has several attentions, name one: one, two"):
        read_attention(model, image)
    with pytest.raises(ValueError, match="has no attention 'three'; it has one, two"):
        read_attention(model, image, "three")
    with pytest.raises(ValueError, match=r"takes images of \(8, 8\) .* this one is \(8, 9\)"):
        read_attention(model, np.zeros((8, 9, 3), np.uint8), "one")
