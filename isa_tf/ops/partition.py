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
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import tensorflow as tf
import tensorflow.experimental.numpy as tnp

from isa_tf.hints import Length, Level, Levels, MapSize, Radices

LONG = "long"
SHORT = "short"
# What one more level costs beside its products, in affinities a position: regrouping queries, keys
# and values takes the time of so many. Measured, see docs/levels.md.
LEVEL_COST = 200
# The levels that `best_partition(levels="auto")` chooses among.
_AUTO_LEVELS = (2, 3, 4)
# Of more than two levels: what thin groups count for more than their entries, 2x1 half of this.
_THINNESS = 0.02


def spatial_size(x: tf.Tensor) -> tuple[Length, Length]:
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


def partition_digits(partition: Radices) -> tuple[tuple[Length, ...], ...]:
    """A partition as a tuple of pairs, coarse to fine: a plain pair is one of them."""
    pairs: Sequence[Any] = partition if isinstance(partition[0], (tuple, list)) else (partition,)
    return tuple(map(tuple, pairs))


def level_of(partition: Radices, level: Level) -> int:
    """The number of a level, 0 for the longest range, of its number, "long" or "short"."""
    last = len(partition_digits(partition))
    number = 0 if level == LONG else last if level == SHORT else level
    if isinstance(number, str) or number not in range(last + 1):
        raise ValueError(f"level must be long, short, or 0 to {last}, got {level!r}")
    return number


def _product(numbers):
    return functools.reduce(operator.mul, numbers, 1)


def _wholes(partition):
    """What rows and columns are multiples of in a padded map."""
    return [_product(axis) for axis in zip(*partition_digits(partition), strict=True)]


def _radices(size, partition):
    """[(rows, columns), ...] of all digits, coarse to fine, of a map that the partition divides."""
    coarsest = [n // whole for n, whole in zip(size, _wholes(partition), strict=True)]
    return [tuple(coarsest), *partition_digits(partition)]


def _positions(radices):
    return _product(h * w for h, w in radices)


def group_shape(size: MapSize, partition: Radices, level: Level) -> tuple[Length, Length, Length]:
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
    radices, level = _radices(size, partition), level_of(partition, level)
    rows, columns = radices.pop(level)
    return _positions(radices), rows, columns


def group_step(partition: Radices, level: Level) -> tuple[Length, Length]:
    """(rows, columns) of the map from a position of a group to the next.

    Args:
        partition: a pair, or pairs coarse to fine.
        level: "long", "short", or an int from 0, the longest range.

    Example:

    >>> group_step((4, 2), "long"), group_step((4, 2), "short")
    ((4, 2), (1, 1))
    """
    finer = partition_digits(partition)[level_of(partition, level) :]
    return tuple(_product(pair[axis] for pair in finer) for axis in (0, 1))


def best_partition(height: Length, width: Length, levels: Levels = 2) -> Radices:
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


def pad_to_partition(x: tf.Tensor, partition: Radices) -> tuple[tf.Tensor, tuple[Length, Length]]:
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


def is_divided(size: MapSize, partition: Radices) -> bool:
    """Whether a map of `size` (H, W) is known to need no padding."""
    multiples = zip(size, _wholes(partition), strict=True)
    return not any(tf.is_tensor(n) or tf.is_tensor(p) or n % p for n, p in multiples)


def crop(x: tf.Tensor, offset: MapSize, size: MapSize) -> tf.Tensor:
    """The window of `size` (H, W) that begins at `offset` of `x` (B, H', W', C)."""
    if _array_module(*size) is np and tuple(x.shape[1:3]) == tuple(size):
        return x
    (top, left), (height, width) = offset, size
    # The gradient of x[...] fills the rest with zeros ten times as slowly as that of a slice does.
    return tf.slice(x, (0, top, left, 0), (-1, height, width, x.shape[-1]))


def to_groups(
    x: tf.Tensor | np.ndarray, partition: Radices, level: Level
) -> tf.Tensor | np.ndarray:
    """Regroups a map that its partition divides.

    Args:
        x: tensor (B, H, W, C).
        partition: (P_h, P_w), or pairs coarse to fine.
        level: "long", or 0, for groups of equal residues (of a pair: positions P_h rows and P_w
            columns apart); "short", or the last level's number, for blocks of P_h x P_w neighbours;
            or a number between.

    Returns:
        Tensor (B G, R_h, R_w, C): G groups a map, ordered by the other digits of their positions,
        coarse to fine, each digit of the row before that of the column. Every group is a small map
        of that digit's radices: (B P_h P_w, Q_h, Q_w, C) for "long" of a pair,
        (B Q_h Q_w, P_h, P_w, C) for "short".
    """
    size, channels = spatial_size(x), x.shape[-1]
    radices, level = _radices(size, partition), level_of(partition, level)
    if len(radices) == 2 and level == 0:  # at once
        (q_h, q_w), (p_h, p_w) = radices
        x = _permuted(x, (-1, q_h, p_h, q_w, p_w, channels), (0, 2, 4, 1, 3, 5))
        return _reshaped(x, (-1, q_h, q_w, channels))
    for shape, order in _to_digits(radices, channels):
        x = _permuted(x, shape, order)
    x = _reshaped(x, (-1, channels))
    return regroup(x, partition, SHORT, level, size)


def from_groups(groups: tf.Tensor, partition: Radices, level: Level, size: MapSize) -> tf.Tensor:
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
    radices, level = _radices(size, partition), level_of(partition, level)
    channels = groups.shape[-1]
    if len(radices) == 2 and level == 0:
        (q_h, q_w), (p_h, p_w) = radices
        x = _permuted(groups, (-1, p_h, p_w, q_h, q_w, channels), (0, 3, 1, 4, 2, 5))
        return _reshaped(x, (-1, *size, channels))
    x = regroup(groups, partition, level, SHORT, size)
    for shape, order in reversed(_to_digits(radices, channels)):
        x = _permuted(x, [shape[i] for i in order], np.argsort(order))
    return _reshaped(x, (-1, *size, channels))


def regroup(
    groups: tf.Tensor, partition: Radices, level: Level, new_level: Level, size: MapSize
) -> tf.Tensor:
    """`to_groups` of a new level of what are the groups of another, by one transposition.

    Args:
        groups: what `to_groups` returned, or anything with its positions in that order: (..., C).
        partition: (P_h, P_w), or pairs coarse to fine.
        level: the level that these are groups of.
        new_level: the level that groups are wanted of.
        size: (height, width) of the map, divided by the partition.

    Returns:
        Tensor (B G, R_h, R_w, C), as `to_groups` of the new level.
    """
    radices, channels = _radices(size, partition), groups.shape[-1]
    old, new = (level_of(partition, of) for of in (level, new_level))
    if old != new:
        first, last = sorted((old, new))
        between, finer = _positions(radices[first + 1 : last]), _positions(radices[last + 1 :])
        (a, b), (c, d) = radices[first], radices[last]
        # The groups' own digit stands behind all others.
        if old < new:
            shape, order = (-1, between, c * d, finer, a * b, channels), (0, 4, 1, 3, 2, 5)
        else:
            shape, order = (-1, a * b, between, finer, c * d, channels), (0, 2, 4, 3, 1, 5)
        groups = _permuted(groups, shape, order)
    return _reshaped(groups, (-1, *radices[new], channels))


def _to_digits(radices, channels):
    """[(shape, order), ...]: reshaped and transposed so, a map becomes (B, D_0, D_1, ..., C).

    D_0, D_1, ... are the digits, coarse to fine, row and column of each together: what the finest
    level's groups are. No more than six axes at a time, as LiteRT transposes no more.
    """
    found, left, inner = [], list(radices), channels
    while len(left) > 1:
        fine = left[-2:] if len(left) > 2 else left[-1:]
        left = left[: -len(fine)]
        rows, columns = zip(*fine, strict=True)
        n, width = len(fine), _product(w for _, w in left)
        shape = (-1, *rows, width, *columns[:-1], columns[-1] * inner)
        found.append((shape, (0, n + 1, *(i for d in range(n) for i in (1 + d, n + 2 + d)))))
        inner *= _positions(fine)
    return found


def _reshaped(x, shape):
    return np.reshape(x, shape) if isinstance(x, np.ndarray) else tf.reshape(x, shape)


def _permuted(x, shape, order):
    """A tensor or an array reshaped, and transposed where there is anything to transpose."""
    # Axes of one element are none: fewer axes are transposed faster.
    kept = [i for i, n in enumerate(shape) if not (isinstance(n, int) and n == 1)]
    order = [kept.index(i) for i in order if i in kept]
    x = _reshaped(x, [shape[i] for i in kept])
    if order == sorted(order):
        return x
    return np.transpose(x, order) if isinstance(x, np.ndarray) else tf.transpose(x, order)


class PaddingMask:
    """The mask of a padded map: which positions have heard anything of the image.

    At first the image's own positions; after an attention every position whose group had one that
    had. Rows and columns are independent, so two vectors of bools say it all.

    Args:
        rows: bool vector (height,).
        columns: bool vector (width,).
    """

    def __init__(self, rows: np.ndarray | tf.Tensor, columns: np.ndarray | tf.Tensor) -> None:
        self.rows, self.columns = rows, columns

    @classmethod
    def of_image(cls, offset: MapSize, size: MapSize, padded_size: MapSize) -> Self:
        """The positions of the image: `size` at `offset` in a map of `padded_size`."""
        xp = _array_module(*offset, *size, *padded_size)

        def inside(start, length, padded):
            index = _arange(0, padded, np.int32)
            return xp.logical_and(index >= start, index < start + length)

        return cls(*(inside(*axis) for axis in zip(offset, size, padded_size, strict=True)))

    def after(self, partition: Radices, level: Level) -> "PaddingMask":
        """Which positions have heard of the image after one attention over such groups."""
        level, vectors = level_of(partition, level), (self.rows, self.columns)
        xp = _array_module(*vectors, *sum(partition_digits(partition), ()))
        radices = zip(*_radices([_length(v) for v in vectors], partition), strict=True)
        digits = [xp.reshape(v, of) for v, of in zip(vectors, radices, strict=True)]
        spread = [
            xp.logical_or(xp.any(d, axis=level, keepdims=True), xp.zeros_like(d)) for d in digits
        ]
        return PaddingMask(*(xp.reshape(d, (-1,)) for d in spread))

    def key_mask(self, partition: Radices, level: Level) -> np.ndarray | tf.Tensor | None:
        """Bools (groups, positions of a group), or `None` where all are known to be true."""
        xp = _array_module(self.rows, self.columns, *sum(partition_digits(partition), ()))
        if xp is np and self.rows.all() and self.columns.all():
            return None
        # Not by indexing with `None`, which LiteRT has not for bools of unknown size.
        mask = xp.logical_and(xp.expand_dims(self.rows, 1), xp.expand_dims(self.columns, 0))
        groups = to_groups(xp.expand_dims(xp.expand_dims(mask, 0), 3), partition, level)
        size = [_length(v) for v in (self.rows, self.columns)]
        _, rows, columns = group_shape(size, partition, level)
        return xp.reshape(groups, (-1, rows * columns))


def _length(vector):
    return vector.shape[0] if vector.shape[0] is not None else tf.shape(vector)[0]
