"""Which true box a predicted one is held against, and which predictions are learned from."""

import tensorflow as tf

POSITIVE = 1
NEGATIVE = 0
IGNORED = -1


def match_boxes(
    quality: tf.Tensor,
    low: float,
    high: float,
    valid: tf.Tensor | None = None,
    ignored: tf.Tensor | None = None,
    allow_low_quality_matches: bool = False,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Gives every prediction the true box that it overlaps most, and a label.

    Args:
        quality: float tensor (..., N, K), intersections over union of N true boxes and K
            predictions (anchors or proposals).
        low: float; a best quality below it makes a negative.
        high: float, at least `low`; a best quality of it or above makes a positive, one between
            the two makes neither.
        valid: bools (..., N), False for padding among the true boxes; `None` for no padding.
        ignored: bools (..., K), True for predictions that must not become negatives, such as
            those in a crowd (see `box_coverage`); `None` for none.
        allow_low_quality_matches: bool, whether the predictions that overlap some true box as much
            as any prediction does, if at all, are positives, too. Such a prediction is still
            matched with the box that it overlaps most. Defaults to `False`.

    Returns:
        (matches, labels): int32 tensors (..., K): the index of the best true box, the first among
        equals and always one that can be gathered; and 1 for positives, 0 for negatives, -1 for
        what is neither. Without a true box there are no positives.

    Raises:
        ValueError: for `low` above `high`.

    Unlike torchvision's, a true box that overlaps nothing makes nothing positive; there, it makes
    every prediction so that has an overlap of 0 with it.

    Paper: Ren et al., "Faster R-CNN", 3.1.2.

    Example:

    >>> matches, labels = match_boxes(tf.constant([[0.8, 0.4, 0.1], [0.0, 0.45, 0.2]]), 0.3, 0.7)
    >>> matches.numpy(), labels.numpy()
    (array([0, 1, 1], dtype=int32), array([ 1, -1,  0], dtype=int32))
    """
    if low > high:
        raise ValueError(f"low must not be above high, got {low} and {high}")
    if valid is not None:
        quality = tf.where(tf.expand_dims(valid, -1), quality, tf.constant(-1, quality.dtype))
    best = tf.reduce_max(quality, -2)
    matches = tf.argmax(quality, -2, output_type=tf.int32)
    positive = best >= high
    if allow_low_quality_matches:
        highest = tf.reduce_max(quality, -1, keepdims=True)
        positive |= tf.reduce_any((quality == highest) & (highest > 0), -2)
    negative = ~positive & (best < low)
    if ignored is not None:
        negative &= ~ignored
    labels = tf.where(negative, NEGATIVE, IGNORED)
    return matches, tf.where(positive, POSITIVE, labels)


def _best(scores, among, count):
    """(indices (B, count), how many (B, 1)) of the highest scores among some."""
    scores = tf.where(among, scores, tf.constant(-1, scores.dtype))
    # Filled up, so that there are as many as are asked for, however many there are.
    lacking = tf.maximum(count - tf.shape(scores)[-1], 0)
    scores = tf.pad(scores, [(0, 0), (0, lacking)], constant_values=-2)
    indices = tf.math.top_k(scores, count).indices
    indices = tf.where(indices < tf.shape(among)[-1], indices, 0)
    found = tf.reduce_sum(tf.cast(among, tf.int32), -1, keepdims=True)
    return indices, tf.minimum(found, count)


def sample_balanced(
    labels: tf.Tensor, scores: tf.Tensor, count: int, positive_fraction: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws predictions to learn from: some positives, the rest negatives.

    Args:
        labels: int tensor (B, K): 1, 0 and -1, as from `match_boxes`; -1 for padding.
        scores: float tensor (B, K) in [0, 1), such as `tf.random.stateless_uniform` gives: among
            its kind, what has the highest score is drawn. The same scores draw the same.
        count: int, how many to draw.
        positive_fraction: float, how much of `count` may be positives at most. Negatives fill
            what is left by fewer positives; positives do not fill what is left by negatives.

    Returns:
        (indices, valid): int32 and bool (B, count); positives come first, then negatives, then
        what is not valid, whose index is some index that can be gathered.

    Raises:
        ValueError: unless the fraction is in [0, 1].

    Paper: Girshick, "Fast R-CNN", 2.3.

    Example:

    >>> labels = tf.constant([[1, 0, -1, 1, 0]])
    >>> indices, valid = sample_balanced(labels, tf.constant([[0.1, 0.2, 0.3, 0.4, 0.5]]), 4, 0.25)
    >>> indices.numpy()[valid.numpy()]
    array([3, 4, 1], dtype=int32)
    """
    if not 0 <= positive_fraction <= 1:
        raise ValueError(f"positive_fraction must be in [0, 1], got {positive_fraction}")
    most = int(count * positive_fraction)
    positives, num_positives = _best(scores, labels == POSITIVE, most)
    negatives, num_negatives = _best(scores, labels == NEGATIVE, count)
    place = tf.range(count)[None]
    after = place - num_positives
    source = tf.where(after < 0, place, most + after)
    indices = tf.gather(tf.concat([positives, negatives], 1), source, batch_dims=1)
    return indices, after < num_negatives
