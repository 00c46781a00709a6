"""Boxes: areas, overlaps, their coding as offsets from other boxes, clipping.

A box is (x1, y1, x2, y2) in pixels, its corners on a plane where the image covers
[0, width] x [0, height]. Nothing is added to a side: a box from 3 to 5 is 2 wide.
"""

import math
from collections.abc import Sequence

import tensorflow as tf

from isa_tf.hints import MapSize

# What a network may enlarge a side by, in logarithms: from 16 pixels to 1000.
MAX_LOG_SCALE = math.log(1000 / 16)


def box_sides(boxes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Widths and heights of boxes.

    Args:
        boxes: float tensor (..., 4), (x1, y1, x2, y2) in pixels.

    Returns:
        (widths, heights) in pixels, tensors (...).

    Example:

    >>> [side.numpy().tolist() for side in box_sides(tf.constant([[1.0, 1.0, 4.0, 3.0]]))]
    [[3.0], [2.0]]
    """
    x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
    return x2 - x1, y2 - y1


def box_area(boxes: tf.Tensor) -> tf.Tensor:
    """Areas in square pixels.

    Args:
        boxes: float tensor (..., 4), (x1, y1, x2, y2) in pixels.

    Returns:
        Tensor (...).

    Example:

    >>> box_area(tf.constant([[1.0, 1.0, 4.0, 3.0]])).numpy()
    array([6.], dtype=float32)
    """
    width, height = box_sides(boxes)
    return width * height


def _intersection(boxes, others):
    boxes, others = tf.expand_dims(boxes, -2), tf.expand_dims(others, -3)
    x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
    left, top, right, bottom = tf.unstack(others, axis=-1)
    width = tf.minimum(x2, right) - tf.maximum(x1, left)
    height = tf.minimum(y2, bottom) - tf.maximum(y1, top)
    return tf.maximum(width, 0) * tf.maximum(height, 0)


def box_iou(boxes: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """Intersection over union of every pair.

    Args:
        boxes: float tensor (..., N, 4), (x1, y1, x2, y2) in pixels, x1 <= x2 and y1 <= y2.
        others: float tensor (..., M, 4); its leading axes broadcast with those of `boxes`.

    Returns:
        Tensor (..., N, M) in [0, 1]; 0 where both boxes have no area.

    Example:

    >>> box_iou(tf.constant([[0.0, 0.0, 2.0, 2.0]]), tf.constant([[1.0, 0.0, 3.0, 2.0]])).numpy()
    array([[0.33333334]], dtype=float32)
    """
    shared = _intersection(boxes, others)
    areas = tf.expand_dims(box_area(boxes), -1) + tf.expand_dims(box_area(others), -2)
    return tf.math.divide_no_nan(shared, areas - shared)


def box_coverage(boxes: tf.Tensor, regions: tf.Tensor) -> tf.Tensor:
    """What part of each box lies in each region: how COCO holds a box against a crowd.

    Args:
        boxes: float tensor (..., N, 4), (x1, y1, x2, y2) in pixels, x1 <= x2 and y1 <= y2.
        regions: float tensor (..., M, 4); its leading axes broadcast with those of `boxes`.

    Returns:
        Tensor (..., N, M) in [0, 1]; 0 for a box without area.

    Example:

    >>> box_coverage(tf.constant([[0.0, 0, 2, 2]]), tf.constant([[1.0, 0, 9, 9]])).numpy()
    array([[0.5]], dtype=float32)
    """
    own = tf.expand_dims(box_area(boxes), -1)
    return tf.math.divide_no_nan(_intersection(boxes, regions), own)


def _centered(boxes):
    """Centers and sides, (..., 2) each, in the order x, y."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * sides, sides


def encode_boxes(
    boxes: tf.Tensor, references: tf.Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)
) -> tf.Tensor:
    """Boxes as offsets from others: (dx, dy) in their sides, (dw, dh) as logarithms.

    Args:
        boxes: float tensor (..., 4), (x1, y1, x2, y2) in pixels: what a network shall predict.
        references: float tensor (..., 4), broadcast with `boxes`: anchors or proposals.
        weights: what dx, dy, dw, dh are multiplied by. Defaults to ones; Mask R-CNN's box head
            uses (10, 10, 5, 5).

    Returns:
        Tensor (..., 4). A side of no length, as padding has, counts as one pixel long, so that all
        of it is finite.

    Paper: Girshick et al., "Rich feature hierarchies for accurate object detection and semantic
    segmentation", appendix C.

    Example:

    >>> encode_boxes(tf.constant([2.0, 0.0, 6.0, 4.0]), tf.constant([0.0, 0.0, 4.0, 4.0])).numpy()
    array([0.5, 0. , 0. , 0. ], dtype=float32)
    """
    (center, side), (base, unit) = _centered(boxes), _centered(references)
    side, unit = (tf.where(s > 0, s, tf.ones_like(s)) for s in (side, unit))
    codes = tf.concat([(center - base) / unit, tf.math.log(side / unit)], -1)
    return codes * tf.constant(weights, codes.dtype)


def decode_boxes(
    codes: tf.Tensor, references: tf.Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)
) -> tf.Tensor:
    """Inverse of `encode_boxes`, but that no side grows by more than 1000 / 16.

    Args:
        codes: float tensor (..., 4): dx, dy, dw, dh times the weights.
        references: float tensor (..., 4), broadcast with `codes`: (x1, y1, x2, y2) in pixels.
        weights: as for `encode_boxes`. Defaults to ones.

    Returns:
        Tensor (..., 4), (x1, y1, x2, y2) in pixels; nothing is clipped to an image.

    Example:

    >>> decode_boxes(tf.constant([0.5, 0.0, 0.0, 0.0]), tf.constant([0.0, 0.0, 4.0, 4.0])).numpy()
    array([2., 0., 6., 4.], dtype=float32)
    """
    codes = codes / tf.constant(weights, codes.dtype)
    base, unit = _centered(tf.cast(references, codes.dtype))
    center = codes[..., :2] * unit + base
    half = 0.5 * tf.exp(tf.minimum(codes[..., 2:], MAX_LOG_SCALE)) * unit
    return tf.concat([center - half, center + half], -1)


def clip_boxes(boxes: tf.Tensor, size: MapSize | tf.Tensor) -> tf.Tensor:
    """Boxes moved into an image; one that lies outside of it loses its area.

    Args:
        boxes: float tensor (B, ..., 4), (x1, y1, x2, y2) in pixels.
        size: (height, width) of all images in pixels, or a tensor (B, 2) of each image's own.

    Returns:
        Tensor like `boxes`.

    Example:

    >>> clip_boxes(tf.constant([[[-3.0, 2.0, 7.0, 90.0]]]), (20, 5)).numpy()
    array([[[ 0.,  2.,  5., 20.]]], dtype=float32)
    """
    boxes = tf.convert_to_tensor(boxes)
    limit = tf.reverse(tf.cast(tf.convert_to_tensor(size), boxes.dtype), [-1])
    limit = tf.concat([limit, limit], -1)
    if limit.shape.rank > 1:
        for _ in range(boxes.shape.rank - limit.shape.rank):
            limit = tf.expand_dims(limit, -2)
    return tf.minimum(tf.maximum(boxes, 0), limit)
