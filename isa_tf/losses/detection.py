"""The five losses of Mask R-CNN, each of the global batch: that of all replicas together.

A box is (x1, y1, x2, y2) in pixels. Each loss is this replica's own sum over what counts on all of
them, so the shares of the replicas add up to what one device would have.
"""

from collections.abc import Sequence

import tensorflow as tf

from isa_tf import ops
from isa_tf.losses.base import cross_entropies, part_of_one


def smooth_l1(errors: tf.Tensor, beta: float) -> tf.Tensor:
    """The loss of errors that is square up to `beta`, linear beyond.

    Args:
        errors: float tensor.
        beta: float; 0 for the absolute error.

    Returns:
        Tensor of the errors' shape.

    Paper: Girshick, "Fast R-CNN", 3.

    Example:

    >>> smooth_l1(tf.constant([-0.5, 2.0]), 1.0).numpy()
    array([0.125, 1.5  ], dtype=float32)
    """
    size = tf.abs(errors)
    if beta == 0:
        return size
    return tf.where(size < beta, 0.5 * size * size / beta, size - 0.5 * beta)


def _mean(total, count):
    """Of the global batch, which is empty or not."""
    count = tf.cast(count, total.dtype)
    return tf.math.divide_no_nan(total, ops.sum_over_replicas(count)) * part_of_one(total.dtype)


def _sum_where(counts, values):
    """The sum of the values that count; the others may be anything."""
    return tf.reduce_sum(tf.where(counts, values, 0.0))


def proposal_losses(
    logits: tf.Tensor,
    codes: tf.Tensor,
    boxes: tf.Tensor,
    references: tf.Tensor,
    positive: tf.Tensor,
    valid: tf.Tensor,
    beta: float = 1 / 9,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Those of a proposal network, over the anchors that were drawn.

    Args:
        logits: float tensor (B, K), of the anchors drawn.
        codes: float tensor (B, K, 4), the boxes that it predicts of them.
        boxes: float tensor (B, K, 4), the true box of each.
        references: float tensor (B, K, 4), the anchors.
        positive: bools (B, K), which anchors see a true box.
        valid: bools (B, K), False for padding.
        beta: float, of `smooth_l1`. Defaults to 1 / 9.

    Returns:
        (objectness, box), scalars: the mean cross-entropy of what was drawn, and the boxes' loss of
        the positives over the number of what was drawn.

    Paper: Ren et al., "Faster R-CNN", equation 1; the mean over what was drawn is torchvision's.

    Example:

    >>> box = tf.constant([[[0.0, 0.0, 4.0, 4.0]]])
    >>> yes = tf.constant([[True]])
    >>> [float(part) for part in proposal_losses(tf.constant([[9e9]]), box * 0, box, box, yes, yes)]
    [0.0, 0.0]
    """
    count = tf.math.count_nonzero(valid)
    truth = tf.cast(positive, logits.dtype)
    objectness = tf.nn.sigmoid_cross_entropy_with_logits(truth, logits)
    errors = tf.reduce_sum(smooth_l1(codes - ops.encode_boxes(boxes, references), beta), -1)
    return (
        _mean(_sum_where(valid, objectness), count),
        _mean(_sum_where(valid & positive, errors), count),
    )


def box_losses(
    logits: tf.Tensor,
    codes: tf.Tensor,
    boxes: tf.Tensor,
    references: tf.Tensor,
    labels: tf.Tensor,
    valid: tf.Tensor,
    weights: Sequence[float],
    beta: float = 1 / 9,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Those of a box head, over the proposals that were drawn.

    Args:
        logits: float tensor (B, K, 1 + classes), the background's first.
        codes: float tensor (B, K, classes, 4), the boxes that it predicts for each class.
        boxes: float tensor (B, K, 4), the true box of each.
        references: float tensor (B, K, 4), the proposals.
        labels: int tensor (B, K): 0 for background, 1 + the class of the true box otherwise.
        valid: bools (B, K), False for padding.
        weights: of the codes, see `isa_tf.ops.encode_boxes`.
        beta: float, of `smooth_l1`. Defaults to 1 / 9.

    Returns:
        (class, box), scalars: the mean cross-entropy, and the loss of the boxes of the class there
        is, over the number of all that was drawn.

    Paper: Girshick, "Fast R-CNN", 2.3.

    Example:

    >>> box = tf.constant([[[0.0, 0.0, 4.0, 4.0]]])
    >>> logits, codes = tf.constant([[[0.0, 99.0]]]), tf.zeros((1, 1, 1, 4))
    >>> label, valid = tf.constant([[1]]), tf.constant([[True]])
    >>> losses = box_losses(logits, codes, box, box, label, valid, (10, 10, 5, 5))
    >>> [float(part) for part in losses]
    [0.0, 0.0]
    """
    count = tf.math.count_nonzero(valid)
    positive = valid & (labels > 0)
    kinds = cross_entropies(tf.where(valid, labels, 0), logits)
    own = tf.gather(codes, tf.where(positive, labels - 1, 0), batch_dims=2)
    truth = ops.encode_boxes(boxes, references, weights)
    errors = tf.reduce_sum(smooth_l1(own - truth, beta), -1)
    return _mean(_sum_where(valid, kinds), count), _mean(_sum_where(positive, errors), count)


def mask_loss(
    logits: tf.Tensor, masks: tf.Tensor, classes: tf.Tensor, valid: tf.Tensor
) -> tf.Tensor:
    """That of a mask head: the mean cross-entropy of the positions of its class's masks.

    Args:
        logits: float tensor (B, K, m, m, classes).
        masks: float tensor (B, K, m, m) in [0, 1], what there is.
        classes: int tensor (B, K).
        valid: bools (B, K), False for what is no true box, or padding.

    Returns:
        Scalar; 0 where nothing is valid.

    Paper: He et al., "Mask R-CNN", 3.

    Example:

    >>> logits, masks = tf.zeros((1, 1, 2, 2, 3)), tf.ones((1, 1, 2, 2))
    >>> loss = mask_loss(logits, masks, tf.constant([[1]]), tf.constant([[True]]))
    >>> round(float(loss), 4)
    0.6931
    """
    size = masks.shape[-1]
    logits = tf.transpose(logits, (0, 1, 4, 2, 3))
    own = tf.gather(logits, tf.where(valid, classes, 0), axis=2, batch_dims=2)
    losses = tf.nn.sigmoid_cross_entropy_with_logits(masks, own)
    count = tf.math.count_nonzero(valid) * size**2
    return _mean(_sum_where(valid[..., None, None], losses), count)
