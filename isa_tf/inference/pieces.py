"""Predicting images whose logits are too many to be held: piece after piece."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from isa_tf import ops
from isa_tf.hints import Array
from isa_tf.inference.protocol import Protocol
from isa_tf.inference.views import (
    class_dtype,
    classify,
    each_view,
    in_multiples,
    padded,
    slide_tiles,
    view_size,
)

AT_ONCE_BYTES = 2**28  # of the logits of a view, up to which there is no need of pieces
PIECE_BYTES = 2**24  # of a piece: softmax and its like take as much memory as they are given
VOTE_BYTES = 2**30  # of the probabilities that several views add up to


class Network(NamedTuple):
    """What gives the logits of a view.

    Attributes:
        run: function from uint8 images (N, h, w, 3) to logits (N, h, w, classes), float32.
        num_classes: int.
        run_small: the same to the logits (N, h / s, w / s, classes) that `run` resizes to its
            images as its last step; `None` where it takes no such step. Defaults to `None`.
        resizing: the coordinates of that step, see `resize_logits`. Defaults to "half_pixel".

    Example:

    >>> network = Network(model, num_classes=11)
    """

    run: Callable[[tf.Tensor], tf.Tensor]
    num_classes: int
    run_small: Callable[[tf.Tensor], tf.Tensor] | None = None
    resizing: str = "half_pixel"


def fits_at_once(images: Array, protocol: Protocol, num_classes: int) -> bool:
    """Whether the logits of each view of images take no more than `AT_ONCE_BYTES`.

    Args:
        images: (B, H, W, 3).
        protocol: `Protocol`.
        num_classes: int.

    Example:

    >>> fits_at_once(images, isa_tf.inference.Protocol(), 11)
    True
    """
    size = tuple(images.shape[1:3])
    if protocol.pad_size is not None:
        size = tuple(map(max, size, protocol.pad_size))
    told = protocol.fit_size, protocol.exact_size
    sizes = [size, *(view_size(size, scale, *told) for scale in protocol.scales)]
    return 4 * num_classes * images.shape[0] * max(map(math.prod, sizes)) <= AT_ONCE_BYTES


def classify_in_pieces(
    network: Network, images: Array, protocol: Protocol, coordinates: str = "half_pixel"
) -> tuple[np.ndarray, np.ndarray]:
    """Class ids and probabilities by a protocol, without holding the logits of a whole image.

    It gives what `classify` and `vote` make of `view_logits`. Of one view, each piece is classified
    as it comes. What several views add up to is held for a band of the images at a time, of no more
    than `VOTE_BYTES`; windows of "slide" that reach into two bands are seen for both. Whole views
    are seen once: what is kept of them are the small logits that the network's last step resizes.
    (A network that takes no such step makes large logits itself, so its images have one band.)

    Args:
        network: `Network`.
        images: uint8 (B, H, W, 3).
        protocol: `Protocol`.
        coordinates: of the logits' pixels, see `resize_logits`. Defaults to "half_pixel".

    Returns:
        Class ids (B, H, W), of `class_dtype`, and their probabilities, float32: arrays.

    Raises:
        ValueError: for `flip_pairs` of classes that are not there.

    Example:

    >>> protocol = isa_tf.inference.Protocol("slide", 48, 32, scales=(0.5, 1), flip=True)
    >>> class_id, score = classify_in_pieces(Network(model, 11), images, protocol)
    """
    shape, count = tuple(images.shape[:3]), protocol.num_views()
    whole = padded(images, protocol.pad_size)
    size = tuple(whole.shape[1:3])
    outer = 0 if size[0] >= size[1] else 1  # bands lie across the shorter side
    sources = _Sources(network, protocol, outer)
    class_id, score = np.empty(shape, class_dtype(network.num_classes)), np.empty(shape, np.float32)

    def pieces(band):
        """(rows, columns, logits) of each view in turn, of what lies on the images."""
        for number, (view, mirrored) in enumerate(each_view(whole, protocol)):
            old = tuple(view.shape[1:3])
            taps = [_taps(*each, coordinates) for each in zip(old, size, strict=True)]
            if mirrored:
                taps[1] = taps[1].mirrored(old[1])
            # Bands end where the images do; what is mirrored begins with the padding.
            within = band
            if mirrored and outer == 1:
                within = size[1] - band[1], size[1] - band[0]
            # What is resized reads the tiles beside a tile.
            tiles = sources.tiles(number, view, taps[outer].needed(within), old != size)
            for top, left, logits in _resized(tiles, old, taps, outer, within):
                if mirrored:
                    order = protocol.mirrored_classes(network.num_classes)
                    logits = tf.gather(tf.reverse(logits, [2]), order, axis=-1)
                    left = size[1] - left - logits.shape[2]
                logits = logits[:, : max(shape[1] - top, 0), : max(shape[2] - left, 0)]
                if 0 not in logits.shape:
                    bottom, right = top + logits.shape[1], left + logits.shape[2]
                    yield slice(top, bottom), slice(left, right), logits
                del logits

    if count == 1:
        for rows, columns, logits in pieces((0, shape[1 + outer])):
            class_id[:, rows, columns], score[:, rows, columns] = classify(logits)
            del logits  # which may be a part of much
        return class_id, score
    for band in _bands(shape, outer, network, protocol):
        extent = _with(shape, 1 + outer, band[1] - band[0])
        total = np.zeros((*extent, network.num_classes), np.float32)
        for rows, columns, logits in pieces(band):
            place = [rows, columns]
            place[outer] = slice(place[outer].start - band[0], place[outer].stop - band[0])
            total[:, *place] += tf.nn.softmax(logits).numpy()
            del logits
        voted = [_part(maps, outer, *band) for maps in (class_id, score)]
        step = _lines(total.nbytes // extent[1])
        for y in range(0, extent[1], step):
            some = total[:, y : y + step]
            voted[0][:, y : y + step] = some.argmax(-1)
            voted[1][:, y : y + step] = some.max(-1) / count
        del total, some
    return class_id, score


class _Sources:
    """The logits of views, in tiles."""

    def __init__(self, network, protocol, outer):
        self._network, self._protocol, self._outer = network, protocol, outer
        self._small = {}  # by the number of the view: bands come back for them

    def tiles(self, number, view, within, in_rows):
        """Tiles (see `slide_tiles`) of a view, of its lines `within` along the outer side."""
        network, protocol = self._network, self._protocol
        if protocol.mode == "slide":
            windows = protocol.crop_size, protocol.stride
            return slide_tiles(network.run, view, *windows, self._outer, within, in_rows)
        size = tuple(view.shape[1:3])
        view = in_multiples(view, protocol.size_divisor)
        if network.run_small is None:
            logits = network.run(view)[:, : size[0], : size[1]]
            return iter([(0, 0, logits)])
        if number not in self._small:
            self._small[number] = network.run_small(view)
        small = self._small[number]
        old, new = small.shape[1:3], view.shape[1:3]
        taps = [_taps(*each, network.resizing) for each in zip(old, new, strict=True)]
        # Without what was padded.
        taps = [_Taps(*(v[:n] for v in each)) for each, n in zip(taps, size, strict=True)]
        return _resized([(0, 0, small)], tuple(old), taps, self._outer, within)


class _Taps(NamedTuple):
    """What the positions along one resized side read of the side as it was.

    Attributes:
        low: the first position that each reads, int64 (length,).
        high: the second, `low` or the next.
        share: of the second, float32.
    """

    low: np.ndarray
    high: np.ndarray
    share: np.ndarray

    def mirrored(self, old):
        """Of the side run through from its other end."""
        low, high = old - 1 - self.high, old - 1 - self.low
        return _Taps(low[::-1], high[::-1], 1 - self.share[::-1])

    def needed(self, within):
        """The (first, last) that the positions (first, last) read; the last ones are excluded."""
        return int(self.low[within[0]]), int(self.high[within[1] - 1]) + 1

    def mix(self, maps, side, within, begin):
        """The positions `within` of maps that begin at position `begin` of the side as it was."""
        low, high, share = (values[slice(*within)] for values in self)
        if not share.any():
            first, last = int(low[0]) - begin, int(low[-1]) + 1 - begin
            if last - first == len(low):
                return _part(maps, side, first, last)
        below, above = (tf.gather(maps, ends - begin, axis=1 + side) for ends in (low, high))
        return below + (above - below) * share.reshape([-1 if i == side else 1 for i in (0, 1, 2)])


def _taps(old, new, coordinates):
    """Those of `ops.resize_bilinear`, in the float32 that it has."""
    ops.check_coordinates(coordinates)
    at, half = np.arange(new, dtype=np.float32), np.float32(0.5)
    if coordinates == "align_corners" and new > 1:
        at = at * (np.float32(old - 1) / np.float32(new - 1))
    elif coordinates == "half_pixel":
        at = (at + half) * (np.float32(old) / np.float32(new)) - half
    else:
        at = at * (np.float32(old) / np.float32(new))
    low = np.floor(at)
    ends = (np.clip(end, 0, old - 1).astype(np.int64) for end in (low, np.ceil(at)))
    return _Taps(*ends, at - low)


def _resized(tiles, old, taps, outer, within):
    """Tiles of maps resized bilinearly, of tiles of the maps.

    Args:
        tiles: iterable of (top, left, logits), as `slide_tiles` gives them: row after row of them
            across the outer side, each row beginning where the one before ended.
        old: (height, width) of the maps.
        taps: of both sides.
        outer: 0 or 1, the side along which the rows follow on each other.
        within: (first, last) along the outer side of what is wanted.

    Returns:
        A generator of (top, left, logits): float32 tensors (B, h, w, classes), row after row.
    """
    inner = 1 - outer
    same = all(len(each.low) == n for each, n in zip(taps, old, strict=True))
    edge = beside = None  # the last line of the row before, and of the tile before
    for *place, block in tiles:
        ends = [p + n for p, n in zip(place, block.shape[1:3], strict=True)]
        above = before = None
        if not same:  # what lies between two tiles reads both
            line = np.asarray(_part(block, outer, -1, None))
            if edge is None:
                top, edge = place[outer], np.empty(_with(line.shape, 1 + inner, old[inner]), "f4")
            if place[outer] > top:
                above = _part(edge, inner, place[inner], ends[inner]).copy()
            _part(edge, inner, place[inner], ends[inner])[:] = line
            if place[inner] > 0:
                before = beside
            beside = np.asarray(_part(block, inner, -1, None)).copy()
            if above is not None:
                beside = np.concatenate([_part(above, inner, -1, None), beside], 1 + outer)
        begin = list(place)
        begin[outer] -= above is not None
        begin[inner] -= before is not None
        # The positions that read up to here, and not of what came before alone.
        (y, y_end), across = (
            np.searchsorted(taps[i].high, [place[i], ends[i]]).tolist() for i in (outer, inner)
        )
        y, y_end = max(y, within[0]), min(y_end, within[1])
        wide = max(across[1] - across[0], block.shape[1 + inner])
        step = _lines(4 * block.shape[0] * wide * block.shape[-1])
        for first in range(y, y_end, step) if across[0] < across[1] else ():
            lines = first, min(first + step, y_end)
            start, stop = taps[outer].needed(lines)
            piece = _part(block, outer, max(start - place[outer], 0), stop - place[outer])
            if start < place[outer]:
                piece = tf.concat([above, piece], 1 + outer)
            if before is not None:
                side = _part(before, outer, start - begin[outer], stop - begin[outer])
                piece = tf.concat([side, piece], 1 + inner)
            ranges, begins = [lines, across], [start, begin[inner]]
            for i in (1, 0):  # across first, as `ops.resize_bilinear` does
                piece = taps[i].mix(piece, i, ranges[i ^ outer], begins[i ^ outer])
            corner = first, across[0]
            yield corner[outer], corner[inner], piece
            del piece  # before there are others
        del block


def _bands(shape, outer, network, protocol):
    """The (first, last) of the bands of images along their outer side."""
    length = shape[1 + outer]
    count = math.ceil(4 * math.prod(shape) * network.num_classes / VOTE_BYTES)
    if protocol.mode == "whole" and network.run_small is None:
        count = 1
    count = min(count, length)
    edges = [length * i // count for i in range(count + 1)]
    return list(pairwise(edges))


def _lines(of_one):
    """How many lines, of so many bytes each, are worked on at once."""
    return max(PIECE_BYTES // of_one, 1)


def _part(maps, side, first, last):
    """Of maps (B, H, W, classes) what lies from `first` to `last` along a side."""
    return maps[:, first:last] if side == 0 else maps[:, :, first:last]


def _with(values, at, value):
    return [value if i == at else each for i, each in enumerate(values)]
