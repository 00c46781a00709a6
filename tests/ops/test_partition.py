"""Partition against explicit loops over groups."""

import itertools

import numpy as np
import pytest
import reference
import tensorflow as tf

from isa_tf import ops

SIZES = [(12, 16), (10, 13), (33, 17), (5, 3), (1, 1), (7, 8)]
PARTITIONS = [(4, 4), (8, 8), (3, 5), (1, 1), (2, 9)]
DIGITS = [((2, 3), (2, 2)), ((4, 1), (1, 5)), ((2, 2), (3, 1), (1, 2))]
grid = pytest.mark.parametrize(
    ("size", "partition"), list(itertools.product(SIZES, PARTITIONS + DIGITS)), ids=str
)


def levels_of(partition):
    """The levels of a partition: of a pair by name, of several by number."""
    if isinstance(partition[0], int):
        return [ops.LONG, ops.SHORT]
    return list(range(len(partition) + 1))


def numbered(height, width, batch=2, channels=3):
    return np.arange(batch * height * width * channels, dtype=np.float32).reshape(
        batch, height, width, channels
    )


def dynamic(function, *arguments):
    """Calls with every size but the channels unknown while tracing."""
    specs = [tf.TensorSpec((None,) * 3 + (a.shape[-1],), a.dtype) for a in arguments]
    return tf.function(function, input_signature=specs)(*arguments)


def offset_of(size, partition):
    wholes = reference.wholes(partition)
    return tuple(reference.padding(n, p)[0] for n, p in zip(size, wholes, strict=True))


@grid
def test_pad_is_symmetric_and_crop_its_inverse(size, partition):
    x = numbered(*size)
    padded, offset = ops.pad_to_partition(tf.constant(x), partition)
    expected = np.stack([reference.pad(image, partition)[0] for image in x])
    np.testing.assert_array_equal(padded, expected)
    assert offset == offset_of(size, partition)
    np.testing.assert_array_equal(ops.crop(padded, offset, size), x)


def test_gradient_of_crop_is_a_pad():
    # That of x[...] takes ten times as long, a tenth of a block's training step.
    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            window = ops.crop(x, (1, 0), (3, 2))
        return tape.gradient(window, x, window)

    x = tf.constant(numbered(5, 4))
    kinds = {op.type for op in gradient.get_concrete_function(x).graph.get_operations()}
    assert "Pad" in kinds and "StridedSliceGrad" not in kinds
    expected = np.zeros_like(x)
    expected[:, 1:4, :2] = x[:, 1:4, :2]
    np.testing.assert_array_equal(gradient(x), expected)


def test_crop_of_unknown_size_keeps_the_channels():
    # Without them a convolution that follows is none of LiteRT's own.
    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3))])
    def cropped(x):
        height, width = ops.spatial_size(x)
        return ops.crop(x, (1, 0), (height - 2, width - 1))

    assert cropped.get_concrete_function().structured_outputs.shape.as_list() == [None] * 3 + [3]
    x = numbered(5, 4)[..., :1].repeat(3, -1)
    np.testing.assert_array_equal(cropped(x), x[:, 1:4, :3])


@grid
def test_groups_differ_in_one_digit(size, partition):
    x = np.stack([reference.pad(image, partition)[0] for image in numbered(*size)])
    height, width = x.shape[1:3]
    for level in levels_of(partition):
        groups = ops.to_groups(tf.constant(x), partition, level)
        expected = [
            [[x[b, row, column] for row, column in group]]
            for b in range(len(x))
            for group in reference.groups(height, width, partition, level)
        ]
        flat = tf.reshape(groups, (groups.shape[0], 1, -1, x.shape[-1]))
        np.testing.assert_array_equal(flat, expected)
        shape = ops.group_shape((height, width), partition, level)
        assert (len(x) * shape[0], *shape[1:]) == tuple(groups.shape[:3])
        back = ops.from_groups(groups, partition, level, (height, width))
        np.testing.assert_array_equal(back, x)


@grid
def test_groups_of_one_level_from_those_of_another(size, partition):
    x = tf.constant(np.stack([reference.pad(image, partition)[0] for image in numbered(*size)]))
    whole = ops.spatial_size(x)
    for old, new in itertools.product(levels_of(partition), repeat=2):
        found = ops.regroup(ops.to_groups(x, partition, old), partition, old, new, whole)
        np.testing.assert_array_equal(found, ops.to_groups(x, partition, new))


def test_no_more_axes_than_litert_transposes():
    x, partition = tf.zeros((1, 16, 16, 3)), ((2, 2), (2, 2), (2, 2))

    @tf.function
    def run(x):
        groups = [ops.to_groups(x, partition, level) for level in range(4)]
        more = [ops.regroup(groups[0], partition, 0, level, (16, 16)) for level in (1, 2, 3)]
        maps = [ops.from_groups(g, partition, n, (16, 16)) for n, g in enumerate(groups)]
        return groups + more + maps

    graph = run.get_concrete_function(x).graph
    ranks = [len(op.inputs[0].shape) for op in graph.get_operations() if op.type == "Transpose"]
    assert len(ranks) > 10 and max(ranks) <= 6


def test_what_needs_no_padding():
    for size in SIZES:
        for partition in PARTITIONS + DIGITS:
            padded = reference.pad(np.zeros((*size, 1)), partition)[1].shape
            assert ops.is_divided(size, partition) == (padded == size)
    assert not ops.is_divided((8, tf.constant(8)), (4, 4))
    assert not ops.is_divided((8, 8), (4, tf.constant(4)))


def test_two_levels_are_the_paper_s():
    """Residues and blocks, the groups in the order of their first positions."""
    x = numbered(8, 6, batch=1, channels=1)
    long = np.stack([x[0, r::4, c::3] for r in range(4) for c in range(3)])
    short = np.stack([x[0, r : r + 4, c : c + 3] for r in (0, 4) for c in (0, 3)])
    for partition in ((4, 3), ((4, 3),)):
        for levels, expected in ((("long", 0), long), (("short", 1), short)):
            for level in levels:
                np.testing.assert_array_equal(ops.to_groups(x, partition, level), expected)


def test_levels_that_are_none_are_refused():
    for level in ("middle", 2, -1, None):
        with pytest.raises(ValueError, match="level must be long, short, or 0 to 1"):
            ops.to_groups(numbered(4, 4), (2, 2), level)
    assert ops.level_of(((2, 2), (2, 2)), "short") == 2


@pytest.mark.parametrize("partition", [(4, 3), ((2, 1), (2, 3))], ids=str)
@pytest.mark.parametrize("size", [(10, 13), (8, 8), (5, 3)])
def test_unknown_sizes_give_the_same(size, partition):
    for level in levels_of(partition):

        def through(x, level=level):
            padded, offset = ops.pad_to_partition(x, partition)
            groups = ops.to_groups(padded, partition, level)
            back = ops.from_groups(groups, partition, level, ops.spatial_size(padded))
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


def cost(size, partition):
    """Affinity entries of all levels, counted from the radices."""
    pairs = reference.pairs_of(partition)
    wholes = reference.wholes(partition)
    coarsest = [-(-n // whole) for n, whole in zip(size, wholes, strict=True)]
    return np.prod(coarsest) * np.prod(wholes) * sum(h * w for h, w in [coarsest, *pairs])


@pytest.mark.parametrize("size", [(12, 10), (16, 16), (24, 9), (30, 30)], ids=str)
def test_more_levels_come_near_the_fewest_entries(size):
    """Within a fifth of the best of all partitions, and not by lines where squares do."""
    pairs = list(itertools.product(range(1, size[0] + 1), range(1, size[1] + 1)))
    inside = [p for p in pairs if p[0] * p[1] <= 60]
    best = min(cost(size, choice) for choice in itertools.product(inside, inside))
    found = ops.best_partition(*size, levels=3)
    assert len(found) == 2 and best <= cost(size, found) <= 1.2 * best


def test_levels_of_large_maps():
    assert ops.best_partition(512, 512, levels=3) == ((8, 8), (8, 8))
    assert ops.best_partition(64, 64, levels=3) == ((4, 4), (4, 4))
    assert ops.best_partition(256, 256, levels=4) == ((4, 4),) * 3
    with pytest.raises(ValueError, match="levels must be at least 2, got 1"):
        ops.best_partition(8, 8, levels=1)


def test_auto_takes_the_number_of_levels_that_costs_least():
    for size in [(1, 1), (9, 13), (64, 64), (65, 129), (256, 256), (1024, 1024)]:
        found = ops.best_partition(*size, levels="auto")
        costs = []
        for levels in (2, 3, 4):
            partition = ops.best_partition(*size, levels=levels)
            positions = np.prod(
                [-(-n // p) * p for n, p in zip(size, reference.wholes(partition), strict=True)]
            )
            costs.append((cost(size, partition) + positions * levels * ops.LEVEL_COST, partition))
        assert found == min(costs)[1]
    few, many = (ops.best_partition(n, n, levels="auto") for n in (16, 1024))
    assert len(reference.pairs_of(few)) < len(reference.pairs_of(many))


@pytest.mark.parametrize("levels", [3, 4, "auto"])
def test_more_levels_of_unknown_sizes(levels):
    spec = [tf.TensorSpec((), tf.int32)] * 2
    find = tf.function(lambda h, w: ops.best_partition(h, w, levels), input_signature=spec)
    for size in [(1, 1), (7, 5), (33, 17), (97, 97), (128, 128), (64, 129), (300, 400)]:
        found = find(*map(tf.constant, size))
        assert found[0][0].dtype == tf.int32
        found = tuple(tuple(map(int, pair)) for pair in found)
        expected = ops.partition_digits(ops.best_partition(*size, levels))
        # As many pairs for every size: those that this one has no use for are 1 and 1.
        assert found[: len(found) - len(expected)] == ((1, 1),) * (len(found) - len(expected))
        assert found[len(found) - len(expected) :] == expected


def orders(partition):
    levels = levels_of(partition)
    return [levels, levels[::-1], levels * 2]


def heard_by_ops(size, partition, order, padded, offset):
    heard = ops.PaddingMask.of_image(offset, size, padded)
    masks = []
    for kind in order:
        masks.append(heard.key_mask(partition, kind))
        heard = heard.after(partition, kind)
    return masks


def test_pairs_may_be_lists():
    """As JSON has them."""
    assert ops.partition_digits([[2, 3], [3, 2]]) == ((2, 3), (3, 2))
    found = [
        heard_by_ops((5, 7), partition, [0, 1, 2], (12, 12), (3, 2))
        for partition in ([[2, 3], [3, 2]], ((2, 3), (3, 2)))
    ]
    for lists, tuples in zip(*found, strict=True):
        np.testing.assert_array_equal(lists, tuples)


@pytest.mark.some(60)
@pytest.mark.parametrize("which", [0, 1, 2], ids=["long_short", "short_long", "twice"])
@grid
def test_heard_is_what_propagation_finds(size, partition, which):
    order = orders(partition)[which]
    heard = reference.pad(np.ones((*size, 1)), partition)[1]
    padded, offset = heard.shape, offset_of(size, partition)
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
