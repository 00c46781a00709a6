"""Masks of boxes: cut from an image's for training, pasted into an image for display.

A box is (x1, y1, x2, y2) in pixels of the image. Both ways work along rows and columns apart: a
mask is multiplied by a matrix of weights from either side, which is exact, as samples lie on grids.
"""

from collections.abc import Sequence

import tensorflow as tf

from isa_tf.hints import MapSize
from isa_tf.ops.roi_align import leading_size


def _hat(places, size):
    """(..., n, size): what a bilinear sample takes of each position, the edges going on outside."""
    positions = tf.cast(tf.range(size), places.dtype)
    places = tf.clip_by_value(places, 0, tf.cast(size - 1, places.dtype))
    return tf.maximum(1 - tf.abs(places[..., None] - positions), 0)


def _bin_weights(start, end, bins, size):
    """(K, bins, size): what bins average of an axis of masks, as many samples as a bin is long."""
    length = tf.maximum(end - start, 1)
    number = tf.math.ceil(length / bins)[:, None]
    bin_length = (length / bins)[:, None]
    first = start[:, None] + tf.range(bins, dtype=start.dtype) * bin_length

    def add(i, total):
        index = tf.cast(i, start.dtype)
        places = first + (index + 0.5) * (bin_length / number)
        used = (index < number) & (places >= -1) & (places <= tf.cast(size, start.dtype))
        return i + 1, total + _hat(places, size) * tf.cast(used, start.dtype)[..., None]

    most = tf.cast(tf.reduce_max(number), tf.int32)
    total = tf.zeros((tf.shape(start)[0], bins, size), start.dtype)
    total = tf.while_loop(lambda i, _: i < most, add, (0, total))[1]
    return total / number[..., None]


def crop_masks(
    masks: tf.Tensor, boxes: tf.Tensor, matches: tf.Tensor, size: Sequence[int]
) -> tf.Tensor:
    """Cuts masks of images to boxes: what a mask head shall predict there.

    It is RoIAlign (`roi_align`, not aligned) over the masks, with as many samples a bin as the bin
    is pixels high and wide, rounded up, as torchvision's detectors take them.

    Args:
        masks: tensor (B, N, H, W) of any dtype that can be cast, 1 inside and 0 outside.
        boxes: float tensor (B, K, 4), (x1, y1, x2, y2) in pixels of the masks.
        matches: int tensor (B, K): the mask of each box, in [0, N).
        size: (height, width) of the output, ints.

    Returns:
        float32 tensor (B, K, height, width) in [0, 1]. No gradients flow.

    Raises:
        ValueError: for boxes of another shape or a size that is not positive.

    Paper: He et al., "Mask R-CNN", 3; arXiv 1703.06870.

    Example:

    >>> mask = tf.constant([[[[1, 1, 0, 0]] * 4]])
    >>> crop_masks(mask, tf.constant([[[0.0, 0.0, 2.0, 4.0]]]), [[0]], (1, 2))[0, 0].numpy()
    array([[1. , 0.5]], dtype=float32)
    """
    masks, boxes = tf.convert_to_tensor(masks), tf.convert_to_tensor(boxes)
    if boxes.shape.rank != 3 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes must be (B, K, 4), got {boxes.shape}")
    if min(size) < 1:
        raise ValueError(f"size must be positive, got {tuple(size)}")
    batch, number, height, width = tf.unstack(tf.shape(masks))
    of_image = tf.range(batch)[:, None] * number + tf.cast(matches, tf.int32)
    x1, y1, x2, y2 = tf.unstack(tf.reshape(tf.cast(boxes, tf.float32), (-1, 4)), axis=-1)
    rows, columns = _bin_weights(y1, y2, size[0], height), _bin_weights(x1, x2, size[1], width)
    flat = tf.reshape(masks, (-1, height, width))

    def crop(box):
        index, row, column = box
        mask = tf.cast(tf.gather(flat, index), tf.float32)
        return tf.matmul(tf.matmul(row, mask), column, transpose_b=True)

    # One after the other: a mask is as large as the image, and a batch of float32 ones is not kept.
    cut = tf.map_fn(
        crop, (tf.reshape(of_image, (-1,)), rows, columns), fn_output_signature=tf.float32
    )
    return tf.stop_gradient(tf.reshape(cut, (*leading_size(boxes), *size)))


def _paste_weights(first, last, size, mask_size):
    """(size, mask_size): what an image's rows or columns from first to last take of a mask."""
    scale = mask_size / tf.cast(tf.maximum(last - first + 1, 1), tf.float32)
    index = tf.range(size, dtype=tf.int32)
    inside = (index >= first) & (index <= last)
    places = (tf.cast(index - first, tf.float32) + 0.5) * scale - 0.5
    return _hat(places, mask_size) * tf.cast(inside, tf.float32)[..., None]


def paste_masks(
    masks: tf.Tensor, boxes: tf.Tensor, size: MapSize, threshold: float | None = 0.5
) -> tf.Tensor:
    """Pastes the masks of boxes into images, by torchvision's convention.

    A mask gets a border of zeros, the box grows by as much and is cut off to whole pixels, and the
    mask is resized into these bilinearly.

    Args:
        masks: float tensor (B, K, m, m), probabilities.
        boxes: float tensor (B, K, 4), (x1, y1, x2, y2) in pixels of the image.
        size: (height, width) of the image in pixels, ints or scalar int tensors.
        threshold: float; what is above it is inside. `None` for the probabilities themselves, which
            take four times the memory. Defaults to 0.5.

    Returns:
        Tensor (B, K, height, width), bool or, without a threshold, float32. A box outside of the
        image leaves nothing.

    Raises:
        ValueError: for boxes or masks of another shape.

    Source: `torchvision.models.detection.roi_heads.paste_masks_in_image`.

    Example:

    >>> mask = tf.constant([[[[1.0, 1.0], [1.0, 0.0]]]])
    >>> boxes = tf.constant([[[1.0, 1.0, 4.0, 4.0]]])
    >>> paste_masks(mask, boxes, (5, 6))[0, 0].numpy().astype(int)
    array([[0, 0, 0, 0, 0, 0],
           [0, 0, 0, 0, 0, 0],
           [0, 0, 1, 1, 0, 0],
           [0, 0, 1, 0, 0, 0],
           [0, 0, 0, 0, 0, 0]])
    """
    masks, boxes = tf.convert_to_tensor(masks), tf.convert_to_tensor(boxes)
    if boxes.shape.rank != 3 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes must be (B, K, 4), got {boxes.shape}")
    if masks.shape.rank != 4 or masks.shape[2] is None or masks.shape[2] != masks.shape[3]:
        raise ValueError(f"masks must be (B, K, m, m), got {masks.shape}")
    small = masks.shape[2]
    bordered = tf.pad(tf.cast(masks, tf.float32), [(0, 0), (0, 0), (1, 1), (1, 1)])
    bordered = tf.reshape(bordered, (-1, small + 2, small + 2))
    boxes = tf.cast(boxes, tf.float32)
    center, half = (boxes[..., 2:] + boxes[..., :2]) * 0.5, (boxes[..., 2:] - boxes[..., :2]) * 0.5
    half = half * ((small + 2) / small)
    whole = tf.cast(tf.concat([center - half, center + half], -1), tf.int32)
    x1, y1, x2, y2 = tf.unstack(tf.reshape(whole, (-1, 4)), axis=-1)

    def paste(box):
        mask, x1, y1, x2, y2 = box
        row = _paste_weights(y1, y2, size[0], small + 2)
        column = _paste_weights(x1, x2, size[1], small + 2)
        pasted = tf.matmul(tf.matmul(row, mask), column, transpose_b=True)
        return pasted if threshold is None else pasted > threshold

    # One after the other, so that at most one image's worth of float32 is held.
    dtype = tf.float32 if threshold is None else tf.bool
    pasted = tf.map_fn(paste, (bordered, x1, y1, x2, y2), fn_output_signature=dtype)
    return tf.reshape(pasted, (*leading_size(boxes), *size))
