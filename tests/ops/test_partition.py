"""Partition against explicit loops over groups."""

import itertools

import numpy as np
import pytest
import reference
import tensorflow as tf

from isa_tf import ops

SIZES = [(12, 16), (10, 13), (33, 17), (5, 3), (1, 1), (7, 8)]
PARTITIONS = [(4, 4), (8, 8), (3, 5), (1, 1), (2, 9)]
grid = pytest.mark.parametrize(
    ("size", "partition"), list(itertools.product(SIZES, PARTITIONS)), ids=str
)
kinds = pytest.mark.parametrize("kind", [ops.LONG, ops.SHORT])


def numbered(height, width, batch=2, channels=3):
    return np.arange(batch * height * width * channels, dtype=np.float32).reshape(
        batch, height, width, channels
    )


def dynamic(function, *arguments):
    """Calls with every size but the channels unknown while tracing."""
    specs = [tf.TensorSpec((None,) * 3 + (a.shape[-1],), a.dtype) for a in arguments]
    return tf.function(function, input_signature=specs)(*arguments)


@grid
def test_pad_is_symmetric_and_crop_its_inverse(size, partition):
    x = numbered(*size)
    padded, offset = ops.pad_to_partition(tf.constant(x), partition)
    expected = np.stack([reference.pad(image, partition)[0] for image in x])
    np.testing.assert_array_equal(padded, expected)
    assert offset == tuple(reference.padding(n, p)[0] for n, p in zip(size, partition, strict=True))
    np.testing.assert_array_equal(ops.crop(padded, offset, size), x)


@kinds
@grid
def test_groups_are_residues_or_blocks(size, partition, kind):
    x = np.stack([reference.pad(image, partition)[0] for image in numbered(*size)])
    height, width = x.shape[1:3]
    groups = ops.to_groups(tf.constant(x), partition, kind)
    expected = [
        [[x[b, row, column] for row, column in group]]
        for b in range(len(x))
        for group in reference.groups(height, width, partition, kind)
    ]
    flat = tf.reshape(groups, (groups.shape[0], 1, -1, x.shape[-1]))
    np.testing.assert_array_equal(flat, expected)
    back = ops.from_groups(groups, partition, kind, (height, width))
    np.testing.assert_array_equal(back, x)


@kinds
@pytest.mark.parametrize("size", [(10, 13), (8, 8), (5, 3)])
def test_unknown_sizes_give_the_same(size, kind):
    partition = (4, 3)

    def through(x):
        padded, offset = ops.pad_to_partition(x, partition)
        groups = ops.to_groups(padded, partition, kind)
        back = ops.from_groups(groups, partition, kind, ops.spatial_size(padded))
        return padded, groups, ops.crop(back, offset, ops.spatial_size(x))

    x = tf.constant(numbered(*size))
    for known, unknown in zip(through(x), dynamic(through, x), strict=True):
        np.testing.assert_array_equal(known, unknown)
    np.testing.assert_array_equal(through(x)[2], x)


def entries(size, partition):
    """Affinities of a long and a short attention, counted group by group."""
    padded = [n + sum(reference.padding(n, p)) for n, p in zip(size, partition, strict=True)]
    return sum(
        len(group) ** 2
        for kind in (ops.LONG, ops.SHORT)
        for group in reference.groups(*padded, partition, kind)
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 5), (9, 9), (12, 10), (13, 3)])
def test_best_partition_has_the_fewest_entries(size):
    choices = itertools.product(range(1, size[0] + 1), range(1, size[1] + 1))
    ranked = {p: (entries(size, p), abs(p[0] - p[1]), p[0]) for p in choices}
    assert ops.best_partition(*size) == min(ranked, key=ranked.get)


def test_best_partition_of_unknown_sizes():
    find = tf.function(ops.best_partition, input_signature=[tf.TensorSpec((), tf.int32)] * 2)
    for size in [(1, 1), (7, 5), (33, 17), (97, 97), (128, 128), (64, 129), (500, 400)]:
        found = find(*map(tf.constant, size))
        assert tuple(map(int, found)) == ops.best_partition(*size)
        assert found[0].dtype == tf.int32


def test_best_partition_grows_as_the_root():
    # Q_h Q_w = P_h P_w = sqrt(N): 4 N^1.5 / 2 entries in place of N^2.
    for n in (16, 64, 256):
        p_h, p_w = ops.best_partition(n, n)
        assert p_h * p_w == n


ORDERS = [(ops.LONG, ops.SHORT), (ops.SHORT, ops.LONG), (ops.LONG, ops.SHORT) * 2]


def heard_by_ops(size, partition, order, padded, offset):
    heard = ops.Heard.image(offset, size, padded)
    masks = []
    for kind in order:
        masks.append(heard.key_mask(partition, kind))
        heard = heard.after(partition, kind)
    return masks


@pytest.mark.parametrize("order", ORDERS, ids="_".join)
@grid
def test_heard_is_what_propagation_finds(size, partition, order):
    heard = reference.pad(np.ones((*size, 1)), partition)[1]
    padded = heard.shape
    offset = tuple(reference.padding(n, p)[0] for n, p in zip(size, partition, strict=True))
    masks = heard_by_ops(size, partition, order, padded, offset)

    def unknown(padded_map, image):
        return heard_by_ops(
            ops.spatial_size(image), partition, order, ops.spatial_size(padded_map), offset
        )

    traced = None
    if size in ((10, 13), (5, 3)):
        traced = dynamic(unknown, tf.zeros((1, *padded, 1)), tf.zeros((1, *size, 1)))
    for step, kind in enumerate(order):
        expected = np.array(
            [[heard[p] for p in g] for g in reference.groups(*padded, partition, kind)]
        )
        if masks[step] is None:
            assert expected.all()
        else:
            np.testing.assert_array_equal(masks[step], expected)
        if traced is not None:
            np.testing.assert_array_equal(traced[step], expected)
        heard = reference.spread(heard, partition, kind)
