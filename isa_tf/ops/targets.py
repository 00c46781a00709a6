"""What a detector learns from: which anchors and proposals are drawn, and what is true of them.

The truth of a batch is a dict. N is fixed, what an image has fewer of is zeros:

* "boxes", float32 (B, N, 4), (x1, y1, x2, y2) in pixels; "classes", int32 (B, N), from 0;
* "valid", bool (B, N), `False` for what fills up; "crowd", bool (B, N), for what stands for several
  objects: nothing learns its box, and what lies in it is no negative;
* "masks", uint8 (B, N, S, S), 255 inside; "mask_boxes", float32 (B, N, 4), the rectangle that each
  of them covers;
* "seed", int32 (B, 2), an image's own, of which all that is drawn is a function.
"""

from collections.abc import Mapping

import tensorflow as tf

from isa_tf.hints import Length
from isa_tf.ops.boxes import box_coverage, box_iou
from isa_tf.ops.masks import crop_masks
from isa_tf.ops.matching import POSITIVE, match_boxes, sample_balanced

# How much of a box lies in a crowd that makes it no negative.
_IN_CROWD = 0.5


def _objects(truth):
    """bools (B, N): what is one object, not padding and no crowd."""
    return truth["valid"] & ~truth["crowd"]


def _mixed(x):
    """uint32 values whose every bit depends on all of theirs (Wellons's "lowbias32")."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(shift, x.dtype)))
        x = x * tf.constant(factor, x.dtype)
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(16, x.dtype)))


def uniform(seeds: tf.Tensor, purpose: int, number: Length) -> tf.Tensor:
    """Random numbers in [0, 1) that are the same wherever they are drawn.

    Those of `tf.random` are others where XLA compiles them, with the same seed and algorithm.

    Args:
        seeds: int32 tensor (B, 2).
        purpose: int, by which what is drawn of one seed differs.
        number: int or scalar int tensor.

    Returns:
        float32 tensor (B, number).

    Example:

    >>> uniform(tf.constant([[0, 7]]), 1, 3).numpy().round(3)
    array([[0.471, 0.496, 0.998]], dtype=float32)
    """
    first, second = tf.unstack(tf.bitcast(seeds, tf.uint32), axis=-1)
    key = _mixed(first + _mixed(second + _mixed(tf.constant(purpose, tf.uint32))))
    index = tf.bitcast(tf.range(number), tf.uint32)
    bits = _mixed(tf.bitwise.bitwise_xor(_mixed(index)[None], key[:, None]))
    bits = tf.bitwise.right_shift(bits, tf.constant(8, bits.dtype))
    return tf.cast(tf.bitcast(bits, tf.int32), tf.float32) * 2.0**-24


def _in_crowd(boxes, crowds, crowd):
    """bools (K,): what of boxes (K, 4) lies in those of others (N, 4) that are a `crowd`."""
    covered = box_coverage(boxes, crowds)
    return tf.reduce_any((covered > _IN_CROWD) & crowd, -1)


# Otherwise each of the products of anchors and true boxes is written to memory.
@tf.function(jit_compile=True)
def _match_anchors(anchors, boxes, objects, crowd, low, high):
    quality = box_iou(boxes, anchors)
    ignored = _in_crowd(anchors, boxes, crowd)
    return match_boxes(quality, low, high, objects, ignored, allow_low_quality_matches=True)


def anchor_targets(
    anchors: tf.Tensor,
    truth: Mapping[str, tf.Tensor],
    count: int = 256,
    positive_fraction: float = 0.5,
    low: float = 0.3,
    high: float = 0.7,
) -> dict[str, tf.Tensor]:
    """Draws the anchors that a proposal network learns from.

    Args:
        anchors: float32 tensor (K, 4), (x1, y1, x2, y2) in pixels.
        truth: dict, see the module.
        count: int, how many are drawn of an image. Defaults to 256.
        positive_fraction: float, how much of them is positive at most. Defaults to 0.5.
        low: float, the IoU below which an anchor is negative. Defaults to 0.3.
        high: float, the IoU from which on it is positive; also is what overlaps a true box as much
            as any. Defaults to 0.7.

    Returns:
        dict of "indices" int32 (B, count) into the anchors, "valid" and "positive" bools
        (B, count), "references" and "boxes" float32 (B, count, 4): the anchors, and the true box
        of each. No gradients flow.

    Raises:
        ValueError: for `low` above `high`.

    Paper: Ren et al., "Faster R-CNN", 3.1.2.

    Example:

    >>> drawn = anchor_targets(truth["boxes"][0], truth, count=8)
    >>> int(tf.math.count_nonzero(drawn["positive"]))
    2
    """
    if low > high:
        raise ValueError(f"low must not be above high, got {low} and {high}")

    def of_image(image):
        return _match_anchors(anchors, *image, low, high)

    images = (truth["boxes"], _objects(truth), truth["valid"] & truth["crowd"])
    matches, labels = tf.map_fn(of_image, images, fn_output_signature=(tf.int32, tf.int32))
    scores = uniform(truth["seed"], 1, tf.shape(anchors)[0])
    indices, valid = sample_balanced(labels, scores, count, positive_fraction)
    matches = tf.gather(matches, indices, batch_dims=1)
    positive = tf.gather(labels, indices, batch_dims=1) == POSITIVE
    return {
        "indices": indices,
        "valid": valid,
        "positive": valid & positive,
        "references": tf.gather(anchors, indices),
        "boxes": tf.gather(truth["boxes"], matches, batch_dims=1),
    }


def proposal_targets(
    proposals: tf.Tensor,
    valid: tf.Tensor,
    truth: Mapping[str, tf.Tensor],
    count: int = 512,
    positive_fraction: float = 0.25,
    threshold: float = 0.5,
) -> dict[str, tf.Tensor]:
    """Draws the proposals that the heads learn from; the true boxes are among them.

    Args:
        proposals: float32 tensor (B, K, 4), (x1, y1, x2, y2) in pixels.
        valid: bools (B, K), False for padding.
        truth: dict, see the module.
        count: int, how many are drawn of an image. Defaults to 512.
        positive_fraction: float, how much of them is positive at most. Defaults to 0.25.
        threshold: float, the IoU from which on a proposal is positive. Defaults to 0.5.

    Returns:
        dict of "references" and "boxes" float32 (B, count, 4): the proposals, positives first, and
        the true box of each; "labels" int32 (B, count), 0 for background, else 1 + its class;
        "matches" int32 (B, count), its place among the true boxes; "valid" bools (B, count). No
        gradients flow.

    Paper: Girshick, "Fast R-CNN", 2.3; Ren et al., "Faster R-CNN".

    Example:

    >>> none = tf.zeros((1, 3, 4)), tf.zeros((1, 3), tf.bool)
    >>> drawn = proposal_targets(*none, truth, count=4, positive_fraction=1.0)
    >>> int(drawn["labels"][0, 0] - 1) in truth["classes"][0].numpy()
    True
    """
    objects = _objects(truth)
    proposals = tf.stop_gradient(tf.concat([proposals, truth["boxes"]], 1))
    valid = tf.concat([valid, objects], 1)
    crowd = (truth["valid"] & truth["crowd"])[:, None]
    quality = box_iou(truth["boxes"], proposals)
    ignored = _in_crowd(proposals, truth["boxes"], crowd)
    matches, labels = match_boxes(quality, threshold, threshold, objects, ignored)
    labels = tf.where(valid, labels, -1)
    scores = uniform(truth["seed"], 2, tf.shape(proposals)[1])
    indices, drawn = sample_balanced(labels, scores, count, positive_fraction)

    def of_drawn(values):
        return tf.gather(values, indices, batch_dims=1)

    matches = of_drawn(matches)
    kinds = 1 + tf.gather(truth["classes"], matches, batch_dims=1)
    return {
        "references": tf.where(drawn[..., None], of_drawn(proposals), 0.0),
        "boxes": tf.gather(truth["boxes"], matches, batch_dims=1),
        "labels": tf.where(drawn & (of_drawn(labels) == POSITIVE), kinds, 0),
        "matches": matches,
        "valid": drawn,
    }


def mask_targets(
    boxes: tf.Tensor,
    matches: tf.Tensor,
    truth: Mapping[str, tf.Tensor],
    size: int,
    positive: tf.Tensor | None = None,
) -> tf.Tensor:
    """What a mask head shall say in boxes: the shares of its positions that the true masks cover.

    Args:
        boxes: float32 tensor (B, K, 4), (x1, y1, x2, y2) in pixels.
        matches: int tensor (B, K), the true mask of each.
        truth: dict, see the module.
        size: int, height and width.
        positive: bools (B, K), whose targets count; the others are of the true box itself. `None`
            for all. Defaults to `None`.

    Returns:
        float32 tensor (B, K, size, size) in [0, 1]; outside of what a mask covers it is 0.

    Paper: He et al., "Mask R-CNN", 3.

    Example:

    >>> whole = tf.zeros((1, 1), tf.int32)
    >>> mask_targets(truth["mask_boxes"][:, :1], whole, truth, 2).shape
    TensorShape([1, 1, 2, 2])
    """
    masks = truth["masks"]
    covered = tf.gather(truth["mask_boxes"], matches, batch_dims=1)
    if positive is not None:
        # There are as many samples as a box is long beside its mask: of a box that has nothing to
        # do with the mask, or whose mask is padding, they were some 100,000, and minutes a step.
        boxes = tf.where(positive[..., None], boxes, covered)
    sides = tf.maximum(covered[..., 2:] - covered[..., :2], 1e-3)
    places = tf.cast([masks.shape[3], masks.shape[2]], tf.float32)
    # From pixels to positions of the small mask, of which the first has its center at 0.
    corners = [(boxes[..., i : i + 2] - covered[..., :2]) * (places / sides) - 0.5 for i in (0, 2)]
    return crop_masks(masks, tf.concat(corners, -1), matches, (size, size)) / 255.0
