"""Cutting a map into groups of far-apart or of neighbouring positions, and back.

Sizes are Python ints where they are known and scalar tensors where they are not; every function
takes both. Row `q * P_h + r` of a map has block index `q` and residue `r`; columns likewise.
"""

import numpy as np
import tensorflow as tf
import tensorflow.experimental.numpy as tnp

LONG = "long"
SHORT = "short"
# From (B, Q_h, P_h, Q_w, P_w, C) to groups: residues lead the long ones, blocks the short ones.
_TO_GROUPS = {LONG: (0, 2, 4, 1, 3, 5), SHORT: (0, 1, 3, 2, 4, 5)}
_FROM_GROUPS = {LONG: (0, 3, 1, 4, 2, 5), SHORT: (0, 1, 3, 2, 4, 5)}


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


def best_partition(height, width):
    """The partition with the fewest affinity entries for a map of this size.

    A padded map of N = Q_h P_h Q_w P_w positions has N Q_h Q_w long-range and N P_h P_w
    short-range entries. Among equals the squarest is taken, then the one with fewer rows.

    Args:
        height: int or scalar int tensor.
        width: int or scalar int tensor.

    Returns:
        (P_h, P_w): ints for known sizes, int32 scalar tensors otherwise.

    Example:

    >>> best_partition(128, 128)
    (8, 16)
    """
    xp = _array_module(height, width)
    if xp is tnp:
        height, width = tf.cast(height, tf.int64), tf.cast(width, tf.int64)
    rows = _arange(1, height + 1, np.int64)[:, None]
    columns = _arange(1, width + 1, np.int64)[None, :]
    long_keys = _blocks(height, rows) * _blocks(width, columns)
    short_keys = rows * columns
    entries = long_keys * short_keys * (long_keys + short_keys)
    # One integer ranks by entries first, by squareness second.
    rank = entries * (height + width) + xp.abs(rows - columns)
    index = xp.argmin(xp.reshape(rank, (-1,)))
    if xp is np:
        return int(index) // width + 1, int(index) % width + 1
    return tf.cast(index // width + 1, tf.int32), tf.cast(index % width + 1, tf.int32)


def pad_to_partition(x, partition):
    """Zero-pads `x` symmetrically until the partition divides its height and width.

    Args:
        x: tensor (B, H, W, C).
        partition: (P_h, P_w).

    Returns:
        (padded, offset): the map (B, Q_h P_h, Q_w P_w, C) and the (row, column) in it where the
        image begins: pad // 2, the remainder being added at the bottom and the right.
    """
    size = spatial_size(x)
    extra = [_blocks(n, p) * p - n for n, p in zip(size, partition, strict=True)]
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


def to_groups(x, partition, kind):
    """Regroups a map that its partition divides.

    Args:
        x: tensor (B, Q_h P_h, Q_w P_w, C).
        partition: (P_h, P_w).
        kind: "long" for groups of equal residues (positions P_h rows and P_w columns apart),
            "short" for blocks of P_h x P_w neighbours.

    Returns:
        Tensor (B P_h P_w, Q_h, Q_w, C) for "long", (B Q_h Q_w, P_h, P_w, C) for "short": every
        group is a small map.
    """
    (p_h, p_w), channels = partition, x.shape[-1]
    height, width = spatial_size(x)
    q_h, q_w = height // p_h, width // p_w
    x = tf.reshape(x, (-1, q_h, p_h, q_w, p_w, channels))
    x = tf.transpose(x, _TO_GROUPS[kind])
    return tf.reshape(x, (-1, *((q_h, q_w) if kind == LONG else (p_h, p_w)), channels))


def from_groups(groups, partition, kind, size):
    """Inverse of `to_groups`.

    Args:
        groups: what `to_groups` returned, or anything of its shape but for the channels.
        partition: (P_h, P_w).
        kind: "long" or "short".
        size: (height, width) of the map, divided by the partition.

    Returns:
        Tensor (B, height, width, C).
    """
    (p_h, p_w), (height, width), channels = partition, size, groups.shape[-1]
    q_h, q_w = height // p_h, width // p_w
    lead = (p_h, p_w, q_h, q_w) if kind == LONG else (q_h, q_w, p_h, p_w)
    x = tf.reshape(groups, (-1, *lead, channels))
    return tf.reshape(tf.transpose(x, _FROM_GROUPS[kind]), (-1, height, width, channels))


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

    def _split(self, partition):
        """Rows as (Q_h, P_h) and columns as (Q_w, P_w)."""
        xp = _array_module(self.rows, self.columns, *partition)
        vectors = zip((self.rows, self.columns), partition, strict=True)
        return xp, [xp.reshape(vector, (-1, p)) for vector, p in vectors]

    def after(self, partition, kind):
        """Which positions have heard of the image after one attention over such groups."""
        xp, halves = self._split(partition)
        axis = 0 if kind == LONG else 1
        spread = [
            xp.logical_or(xp.any(h, axis=axis, keepdims=True), xp.zeros_like(h)) for h in halves
        ]
        return Heard(*(xp.reshape(h, (-1,)) for h in spread))

    def key_mask(self, partition, kind):
        """Bools (groups, positions of a group), or `None` where all are known to be true."""
        xp, (rows, columns) = self._split(partition)
        if xp is np and rows.all() and columns.all():
            return None
        # Not by indexing with `None`, which LiteRT has not for bools of unknown size.
        rows, columns = (
            xp.expand_dims(xp.expand_dims(half, axis), axis)
            for half, axis in ((rows, -1), (columns, 0))
        )
        mask = xp.logical_and(rows, columns)
        permutation = [axis - 1 for axis in _TO_GROUPS[kind][1:-1]]
        mask = xp.transpose(mask, permutation)
        shape = mask.shape if xp is np else tf.shape(mask)
        return xp.reshape(mask, (shape[0] * shape[1], -1))
