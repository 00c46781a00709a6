"""Cutting a map into groups of far-apart or of neighbouring positions, and back.

A row, and a column, is a number of several digits. With the partition (P_h, P_w) it has two: row
`q * P_h + r` has the digits q and r. A partition of k levels is k - 1 pairs, coarse to fine,
`((P1_h, P1_w), (P2_h, P2_w), ...)`, and the radix of the coarsest digit is what remains of the
size. An attention of one level is among positions that differ in that digit alone: level 0 has the
longest range (`LONG`), level k - 1 the shortest (`SHORT`). A plain pair has two levels.

Sizes are Python ints where they are known and scalar tensors where they are not; every function
takes both.
"""

import functools
import operator

import numpy as np
import tensorflow as tf
import tensorflow.experimental.numpy as tnp

LONG = "long"
SHORT = "short"
# What one more level costs beside its products, in affinities a position: regrouping queries, keys
# and values takes the time of so many. Measured, see docs/levels.md.
LEVEL_COST = 32
# The levels that `best_partition(levels="auto")` chooses among.
_AUTO_LEVELS = (2, 3, 4)
# Of more than two levels: what thin groups count for more than their entries, 2x1 half of this.
_THINNESS = 0.02


def spatial_size(x):
    """Height and width of `x` (B, H, W, C): ints where known, scalar tensors otherwise."""
    if x.shape[1] is not None and x.shape[2] is not None:
        return x.shape[1], x.shape[2]
    dynamic = tf.shape(x)
    return tuple(dynamic[i] if x.shape[i] is None else x.shape[i] for i in (1, 2))


def _array_module(*sizes):
    return tnp if any(tf.is_tensor(size) for size in sizes) else np


def _arange(start, stop, dtype):
    make = tf.range if tf.is_tensor(stop) else np.arange
    return make(start, stop, dtype=dtype)


def _blocks(size, partition):
    # Of numbers above 0: ONNX's division rounds towards 0, where -(-size // partition) rounds down.
    return (size + partition - 1) // partition


def partition_digits(partition):
    """A partition as a tuple of pairs, coarse to fine: a plain pair is one of them."""
    return tuple(partition) if isinstance(partition[0], (tuple, list)) else (tuple(partition),)


def level_of(partition, level):
    """The number of a level, 0 for the longest range, of its number, "long" or "short"."""
    last = len(partition_digits(partition))
    number = {LONG: 0, SHORT: last}.get(level, level)
    if number not in range(last + 1):
        raise ValueError(f"level must be long, short, or 0 to {last}, got {level!r}")
    return number


def _product(numbers):
    return functools.reduce(operator.mul, numbers, 1)


def _wholes(partition):
    """What rows and columns are multiples of in a padded map."""
    return [_product(axis) for axis in zip(*partition_digits(partition), strict=True)]


def _splits(size, partition, level):
    """(outer, radix, inner) of rows and of columns: a digit's radix, and what stands around it."""
    level = level_of(partition, level)
    found = []
    for n, digits in zip(size, zip(*partition_digits(partition), strict=True), strict=True):
        inner = _product(digits[level:])
        if level == 0:
            found.append((1, n // inner, inner))
        else:
            radix = digits[level - 1]
            found.append((n // (radix * inner), radix, inner))
    return found


def group_shape(size, partition, level):
    """(groups, rows, columns): how many groups a level of a map has, and the size of each.

    Args:
        size: (height, width), divided by the partition.
        partition: a pair, or pairs coarse to fine.
        level: "long", "short", or an int from 0, the longest range.

    Returns:
        Three ints or scalar tensors.

    Example:

    >>> group_shape((12, 16), (4, 2), "long")
    (8, 3, 8)
    """
    (o_h, r_h, i_h), (o_w, r_w, i_w) = _splits(size, partition, level)
    return o_h * i_h * o_w * i_w, r_h, r_w


def best_partition(height, width, levels=2):
    """The partition with the fewest affinity entries for a map of this size.

    A padded map of N = Q_h P_h Q_w P_w positions has N Q_h Q_w long-range and N P_h P_w
    short-range entries. Among equals the squarest is taken, then the one with fewer rows.

    Of more levels the finest pair is chosen first, as if the others could split what remains of
    the map into equal parts; then those likewise, of the map of its blocks.

    Args:
        height: int or scalar int tensor.
        width: int or scalar int tensor.
        levels: int, from 2; or "auto" for the number of levels, 2 to 4, that costs least: a level
            costs its entries and as much as `LEVEL_COST` more of them a position. Defaults to 2.

    Returns:
        (P_h, P_w) of two levels, else a tuple of such pairs, coarse to fine: ints for known sizes,
        int32 scalar tensors otherwise. For a size that is not known, "auto" has always as many
        pairs as the most levels need, with 1s for those that are not to be.

    Raises:
        ValueError: for fewer than two levels.

    Example:

    >>> best_partition(128, 128), best_partition(512, 512, levels=3)
    ((8, 16), ((8, 8), (8, 8)))
    """
    if levels == "auto":
        return _best_levels(height, width)
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")
    return _finest(height, width) if levels == 2 else _digits(height, width, levels)


def _finest(height, width, levels=None):
    """The finest pair of a partition; of `None` levels of the two that the paper has."""
    xp = _array_module(height, width)
    if xp is tnp:
        height, width = tf.cast(height, tf.int64), tf.cast(width, tf.int64)
    rows = _arange(1, height + 1, np.int64)[:, None]
    columns = _arange(1, width + 1, np.int64)[None, :]
    row_blocks, column_blocks = _blocks(height, rows), _blocks(width, columns)
    long_keys, short_keys = row_blocks * column_blocks, rows * columns
    if levels is None:
        entries = long_keys * short_keys * (long_keys + short_keys)
    else:
        positions, coarse, fine = (
            xp.asarray(n, np.float64) for n in (long_keys * short_keys, long_keys, short_keys)
        )
        keys = fine + (levels - 1) * coarse ** (1 / (levels - 1))
        # No lines of one row, where near squares have a hair more entries.
        thin = xp.asarray((rows - columns) ** 2, np.float64) / fine
        thin += xp.asarray((row_blocks - column_blocks) ** 2, np.float64) / coarse
        # Whole numbers: equals stay equal, whatever library has drawn the root.
        entries = xp.asarray(positions * keys * (1 + _THINNESS * thin) + 0.5, np.int64)
    # One integer ranks by entries first, by squareness second.
    rank = entries * (height + width) + xp.abs(rows - columns)
    index = xp.argmin(xp.reshape(rank, (-1,)))
    if xp is np:
        return int(index) // width + 1, int(index) % width + 1
    return tf.cast(index // width + 1, tf.int32), tf.cast(index % width + 1, tf.int32)


def _digits(height, width, levels):
    """The pairs of a partition of more levels than two, and of what is left in finding it."""
    finest = _finest(height, width, levels)
    if levels == 2:
        return (finest,)
    blocks = [_blocks(n, p) for n, p in zip((height, width), finest, strict=True)]
    return (*_digits(*blocks, levels - 1), finest)


def _best_levels(height, width):
    """`best_partition` of the number of levels that costs least."""
    most = _AUTO_LEVELS[-1] - 1
    choices, costs = [], []
    for levels in _AUTO_LEVELS:
        digits = partition_digits(best_partition(height, width, levels))
        wholes = _wholes(digits)
        coarsest = [_blocks(n, whole) for n, whole in zip((height, width), wholes, strict=True)]
        keys = sum((h * w for h, w in digits), coarsest[0] * coarsest[1])
        positions = _product(coarsest) * _product(wholes)
        if tf.is_tensor(positions):
            positions, keys = tf.cast(positions, tf.int64), tf.cast(keys, tf.int64)
        costs.append(positions * (keys + levels * LEVEL_COST))
        choices.append(digits)
    if not tf.is_tensor(costs[0]):
        chosen = choices[costs.index(min(costs))]
        return chosen[0] if len(chosen) == 1 else chosen
    padded = [((1, 1),) * (most - len(digits)) + digits for digits in choices]
    chosen = tf.gather(tf.stack(padded), tf.argmin(tf.stack(costs)))
    return tuple((chosen[i, 0], chosen[i, 1]) for i in range(most))


def pad_to_partition(x, partition):
    """Zero-pads `x` symmetrically until the partition divides its height and width.

    Args:
        x: tensor (B, H, W, C).
        partition: (P_h, P_w), or pairs coarse to fine: their products divide then.

    Returns:
        (padded, offset): the padded map, for a pair (B, Q_h P_h, Q_w P_w, C), and the (row, column)
        in it where the image begins: pad // 2, the remainder being added at the bottom and the
        right.
    """
    size = spatial_size(x)
    extra = [_blocks(n, p) * p - n for n, p in zip(size, _wholes(partition), strict=True)]
    offset = tuple(e // 2 for e in extra)
    if _array_module(*extra) is np and not any(extra):
        return x, offset
    before_after = [(o, e - o) for o, e in zip(offset, extra, strict=True)]
    return tf.pad(x, [(0, 0), *before_after, (0, 0)]), offset


def crop(x, offset, size):
    """The window of `size` (H, W) that begins at `offset` of `x` (B, H', W', C)."""
    if _array_module(*size) is np and tuple(x.shape[1:3]) == tuple(size):
        return x
    (top, left), (height, width) = offset, size
    return x[:, top : top + height, left : left + width, :]


def to_groups(x, partition, level):
    """Regroups a map that its partition divides.

    Args:
        x: tensor (B, H, W, C).
        partition: (P_h, P_w), or pairs coarse to fine.
        level: "long", or 0, for groups of equal residues (of a pair: positions P_h rows and P_w
            columns apart); "short", or the last level's number, for blocks of P_h x P_w neighbours;
            or a number between.

    Returns:
        Tensor (B G, R_h, R_w, C): G groups a map, ordered by the row and then the column that
        their positions have without that level's digit, each a small map of that digit's radices:
        (B P_h P_w, Q_h, Q_w, C) for "long" of a pair, (B Q_h Q_w, P_h, P_w, C) for "short".
    """
    (o_h, r_h, i_h), (o_w, r_w, i_w) = _splits(spatial_size(x), partition, level)
    # Neighbouring axes that stay neighbours are one: LiteRT transposes no more than six.
    if _is_last(partition, level):
        x = tf.reshape(x, (-1, r_h, o_w, r_w, x.shape[-1]))
        x = tf.transpose(x, (0, 2, 1, 3, 4))
    else:
        x = tf.reshape(x, (-1, r_h, i_h * o_w, r_w, i_w, x.shape[-1]))
        x = tf.transpose(x, (0, 2, 4, 1, 3, 5))
    return tf.reshape(x, (-1, r_h, r_w, x.shape[-1]))


def from_groups(groups, partition, level, size):
    """Inverse of `to_groups`.

    Args:
        groups: what `to_groups` returned, or anything with its positions in that order, of any
            channels: (..., C).
        partition: (P_h, P_w), or pairs coarse to fine.
        level: "long", "short", or a number.
        size: (height, width) of the map, divided by the partition.

    Returns:
        Tensor (B, height, width, C).
    """
    (_, r_h, i_h), (o_w, r_w, i_w) = _splits(size, partition, level)
    channels = groups.shape[-1]
    if _is_last(partition, level):
        x = tf.reshape(groups, (-1, o_w, r_h, r_w, channels))
        x = tf.transpose(x, (0, 2, 1, 3, 4))
    else:
        x = tf.reshape(groups, (-1, i_h * o_w, i_w, r_h, r_w, channels))
        x = tf.transpose(x, (0, 3, 1, 4, 2, 5))
    return tf.reshape(x, (-1, *size, channels))


def _is_last(partition, level):
    return level_of(partition, level) == len(partition_digits(partition))


class Heard:
    """Which positions of a padded map have heard anything of the image.

    At first the image's own positions; after an attention every position whose group had one that
    had. Rows and columns are independent, so two vectors of bools say it all.

    Args:
        rows: bool vector (height,).
        columns: bool vector (width,).
    """

    def __init__(self, rows, columns):
        self.rows, self.columns = rows, columns

    @classmethod
    def image(cls, offset, size, padded_size):
        """The positions of the image: `size` at `offset` in a map of `padded_size`."""
        xp = _array_module(*offset, *size, *padded_size)

        def inside(start, length, padded):
            index = _arange(0, padded, np.int32)
            return xp.logical_and(index >= start, index < start + length)

        return cls(*(inside(*axis) for axis in zip(offset, size, padded_size, strict=True)))

    def _split(self, partition, level):
        """Rows and columns, each as (outer, radix, inner)."""
        vectors = self.rows, self.columns
        xp = _array_module(*vectors, *sum(partition_digits(partition), ()))
        size = [v.shape[0] if v.shape[0] is not None else tf.shape(v)[0] for v in vectors]
        splits = _splits(size, partition, level)
        return xp, [xp.reshape(v, split) for v, split in zip(vectors, splits, strict=True)]

    def after(self, partition, level):
        """Which positions have heard of the image after one attention over such groups."""
        xp, axes = self._split(partition, level)
        spread = [xp.logical_or(xp.any(a, axis=1, keepdims=True), xp.zeros_like(a)) for a in axes]
        return Heard(*(xp.reshape(a, (-1,)) for a in spread))

    def key_mask(self, partition, level):
        """Bools (groups, positions of a group), or `None` where all are known to be true."""
        xp, axes = self._split(partition, level)
        if xp is np and all(axis.all() for axis in axes):
            return None
        # An axis's groups, then the positions of each.
        rows, columns = (xp.reshape(xp.transpose(a, (0, 2, 1)), (-1, _length(a, 1))) for a in axes)
        # Not by indexing with `None`, which LiteRT has not for bools of unknown size.
        rows = xp.expand_dims(xp.expand_dims(rows, 1), 3)
        columns = xp.expand_dims(xp.expand_dims(columns, 0), 2)
        mask = xp.logical_and(rows, columns)
        return xp.reshape(mask, (-1, _length(rows, 2) * _length(columns, 3)))


def _length(x, axis):
    return x.shape[axis] if x.shape[axis] is not None else tf.shape(x)[axis]
