"""What attention modules attend to: their affinities, and where information comes from."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from isa_tf import ops
from isa_tf.hints import Level, MapSize, Radices
from isa_tf.layers import InterlacedSparseAttention, SelfAttention2D


class Attention(NamedTuple):
    """What attentions that ran one after the other on one padded map attended to.

    Attributes:
        affinities: list of float arrays (groups, positions, positions), in the order they ran;
            rows are queries and sum to 1.
        kinds: list of "long" or "short", one an affinity; of a partition of more levels than two,
            ints from 0, the longest range.
        partition: (P_h, P_w), or pairs coarse to fine.
        offset: (row, column) of the padded map where the map begins.
        size: (H, W) of the map without padding.
    """

    affinities: list[np.ndarray]
    kinds: list[Level]
    partition: Radices
    offset: MapSize
    size: MapSize


def read_attention(
    model: keras.Model, image: np.ndarray, layer: str | None = None
) -> list[Attention]:
    """What the attention module of a model attends to in a photo.

    The model sees the whole photo at its own size, whatever its test protocol.

    Args:
        model: functional `keras.Model`, such as a `Segmenter`, in which an
            `InterlacedSparseAttention` or a `SelfAttention2D` of any kind is a layer.
        image: uint8 (H, W, 3), RGB.
        layer: str, name of that layer, where the model has several. Defaults to `None`, the only
            one.

    Returns:
        List of `Attention`, one a partition of the module.

    Raises:
        ValueError: for a model without such a layer, or with several and no name; for an image
            of another size than the only one that the model takes.

    Example:

    >>> attention = read_attention(model, image)[0]
    >>> weights = influence(*attention, position=(4, 7))

    Reference: Huang et al., "Interlaced Sparse Self-Attention for Semantic Segmentation",
    arXiv 1907.12273.
    """
    block: Any = _attention_layer(model, layer)
    size = model.input_shape[1:3]
    for wanted, found in zip(size, image.shape[:2], strict=True):
        if wanted not in (None, found):
            raise ValueError(
                f"the model takes images of {size} (height, width) alone, this one is "
                f"{image.shape[:2]}"
            )
    before = keras.Model(model.input, block.input)
    features = before(np.asarray(image, np.float32)[None], training=False)
    _, affinities = block(features, training=False, return_affinity=True)
    size = ops.spatial_size(features)
    attentions, branches = [block], 1
    if isinstance(block, InterlacedSparseAttention):
        attentions, branches = block.attentions, len(block.partitions)
    affinities = iter(affinities if isinstance(affinities, list) else [affinities])
    steps = len(attentions) // branches
    found = []
    for start in range(0, len(attentions), steps):
        partition = attentions[start].resolve_partition(size)
        _, offset = ops.pad_to_partition(np.zeros((1, *size, 1), np.float32), partition)
        ran = attentions[start : start + steps]
        kinds = [kind for attention in ran for kind in attention.kinds_of(partition)]
        weights = [np.asarray(next(affinities))[0] for _ in kinds]
        found.append(Attention(weights, kinds, partition, offset, size))
    return found


def influence(
    affinities: Sequence[np.ndarray],
    kinds: Sequence[Level],
    partition: Radices,
    offset: MapSize,
    size: MapSize,
    position: Sequence[int],
) -> np.ndarray:
    """How much of every position reaches one of them through attentions in a row.

    Written as N x N matrices, zero between groups, the attentions A_1, A_2, ... take a map x to
    ... A_2 A_1 x: this is the position's row of that product, the sum over all paths of the
    products of their affinities, without any of these matrices. It tells of the attentions alone,
    not of what projections and skip connections make of what they gather.

    Args:
        affinities: sequence of float arrays (groups, positions, positions), in the order they ran.
        kinds: sequence of "long", "short" or numbers of levels, one an affinity.
        partition: (P_h, P_w), or pairs coarse to fine.
        offset: (row, column) of the padded map where the map begins.
        size: (H, W) of the map without padding.
        position: (row, column) in the map without padding.

    Shapes:
        -> (Q_h P_h, Q_w P_w), float64: the padded map, Q = ceil(size / P), of more pairs their
        product. It sums to 1.

    Raises:
        ValueError: for a position outside the map, kinds that are not as many as the affinities or
            none of the partition's, or an affinity that is not one of such groups.

    Example:

    >>> influence([np.full((1, 4, 4), 0.25)], ["long"], (1, 1), (0, 0), (2, 2), (0, 1))
    array([[0.25, 0.25],
           [0.25, 0.25]])

    Reference: Huang et al., "Interlaced Sparse Self-Attention for Semantic Segmentation",
    arXiv 1907.12273.
    """
    if len(kinds) != len(affinities):
        raise ValueError(f"{len(kinds)} kinds for {len(affinities)} affinities")
    if not all(0 <= p < n for p, n in zip(position, size, strict=True)):
        raise ValueError(f"position {tuple(position)} is not in a map of {tuple(size)}")
    whole, _ = ops.pad_to_partition(np.zeros((1, *size, 1), np.float32), partition)
    padded = tuple(whole.shape[1:3])
    index = np.arange(padded[0] * padded[1])
    weights = np.zeros(len(index))
    row, column = (p + o for p, o in zip(position, offset, strict=True))
    weights[row * padded[1] + column] = 1
    for affinity, kind in list(zip(affinities, kinds, strict=True))[::-1]:
        _, *radices = ops.group_shape(padded, partition, kind)
        groups = ops.to_groups(index.reshape(1, *padded, 1), partition, kind)
        groups = np.reshape(groups, (-1, radices[0] * radices[1]))
        if affinity.shape != (*groups.shape, groups.shape[1]):
            raise ValueError(
                f"a {kind} affinity of a map of {padded} by {tuple(partition)} has the shape "
                f"{(*groups.shape, groups.shape[1])}, got {affinity.shape}"
            )
        reached = np.zeros_like(weights)
        for group, rows in zip(groups, affinity, strict=True):
            queries = weights[group].nonzero()[0]
            reached[group] = weights[group[queries]] @ rows[queries]
        weights = reached
    return weights.reshape(padded)


def _attention_layer(model, name):
    """The attention module among a functional model's layers, by name or because it is alone."""
    kinds = (InterlacedSparseAttention, SelfAttention2D)
    layers = model.layers if getattr(model, "inputs", None) else ()
    found = {layer.name: layer for layer in layers if isinstance(layer, kinds)}
    if not found:
        raise ValueError(
            f"{model.name} has no attention to show: none of its layers is an "
            f"{' or a '.join(kind.__name__ for kind in kinds)}"
        )
    if name is None and len(found) > 1:
        raise ValueError(f"{model.name} has several attentions, name one: {', '.join(found)}")
    if name is not None and name not in found:
        raise ValueError(f"{model.name} has no attention {name!r}; it has {', '.join(found)}")
    return found[name or next(iter(found))]
