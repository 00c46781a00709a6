"""Non-maximum suppression with shapes that do not depend on values."""

import tensorflow as tf

# Groups are set this many abreast. The nearer to the origin a box lies, the less float32 rounds
# its corners: in one row, the last of COCO's 80 classes would lie some 100000 pixels away.
_ABREAST = 8


def _apart(boxes, groups):
    """Boxes (B, N, 4) moved so far that none of one group meets one of another."""
    low = tf.minimum(tf.reduce_min(boxes, (1, 2), keepdims=True), 0)
    step = tf.reduce_max(boxes, (1, 2), keepdims=True) - low + 1
    place = tf.stack([groups % _ABREAST, groups // _ABREAST], -1)
    place = tf.cast(tf.concat([place, place], -1), boxes.dtype)
    return boxes + place * step


def non_max_suppression(
    boxes: tf.Tensor,
    scores: tf.Tensor,
    count: int,
    iou_threshold: float,
    groups: tf.Tensor | None = None,
    valid: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Takes boxes from the highest score down, none that overlaps one taken before too much.

    Args:
        boxes: float32 tensor (B, N, 4), (x1, y1, x2, y2) in pixels, x1 <= x2 and y1 <= y2. A box
            without area overlaps nothing.
        scores: float32 tensor (B, N). Among equals the first is taken first; one that is not a
            number is never taken.
        count: int, how many to take at most.
        iou_threshold: float in [0, 1]; an intersection over union above it is too much.
        groups: int tensor (B, N), from 0; boxes of different groups (classes, levels) never
            suppress one another. `None` for one group. Corners are rounded to 1/1024 pixel or so
            where there are many groups, as they are moved apart.
        valid: bools (B, N), False for padding, whose boxes and scores may be anything finite or
            not; `None` for no padding.

    Returns:
        (indices, valid): int32 and bool (B, count), the scores falling; index 0 where not valid.

    Raises:
        ValueError: for a threshold outside of [0, 1], and unless N is known.

    Example:

    >>> boxes = tf.constant([[[0.0, 0, 4, 4], [0, 0, 4, 5], [6, 6, 9, 9]]])
    >>> indices, valid = non_max_suppression(boxes, tf.constant([[0.5, 0.9, 0.7]]), 3, 0.5)
    >>> indices.numpy(), valid.numpy()
    (array([[1, 2, 0]], dtype=int32), array([[ True,  True, False]]))
    """
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be in [0, 1], got {iou_threshold}")
    boxes, scores = tf.convert_to_tensor(boxes), tf.convert_to_tensor(scores)
    if scores.shape[1] is None:
        raise ValueError(f"how many boxes there are must be known, got scores {scores.shape}")
    valid = tf.ones_like(scores, tf.bool) if valid is None else valid
    valid &= ~tf.math.is_nan(scores)
    boxes = tf.where(valid[..., None], boxes, 0)
    scores = tf.where(valid, scores, -float("inf"))
    if groups is not None:
        boxes = _apart(boxes, tf.where(valid, groups, 0))
    # By their ranks, not their scores: XLA takes equals in any order.
    number = scores.shape[1]
    scores, order = tf.math.top_k(scores, number)
    boxes = tf.gather(tf.gather(boxes, order, batch_dims=1), [1, 0, 3, 2], axis=-1)
    ranks = tf.where(scores > -float("inf"), -tf.range(number, dtype=scores.dtype), scores)
    # XLA knows no more places than boxes.
    places = min(count, number)

    def of_image(image):
        # Ranks of minus infinity are not above the threshold, hence not taken.
        taken, found = tf.raw_ops.NonMaxSuppressionV4(
            boxes=image[0],
            scores=image[1],
            max_output_size=places,
            iou_threshold=iou_threshold,
            score_threshold=-float("inf"),
            pad_to_max_output_size=True,
        )
        within = tf.range(places) < found
        return tf.where(within, taken, 0), within

    kinds = tuple(tf.TensorSpec((places,), dtype) for dtype in (tf.int32, tf.bool))
    taken, within = tf.map_fn(of_image, (boxes, ranks), fn_output_signature=kinds)
    indices = tf.where(within, tf.gather(order, taken, batch_dims=1), 0)
    return tuple(tf.pad(part, [(0, 0), (0, count - places)]) for part in (indices, within))
