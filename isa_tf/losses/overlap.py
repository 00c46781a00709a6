"""Losses of the overlap between soft predictions and labels, class by class."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from isa_tf.losses.base import (
    check_classes,
    checked_class_weights,
    checked_ignore_label,
    flat_pixels,
    part_of_one,
    weigh,
)
from isa_tf.ops import replicas_summed, sum_over_replicas


class _OfClasses(keras.losses.Loss):
    """A mean over the classes that the labels hold; what each gives, subclasses say in `call`."""

    def __init__(
        self,
        ignore_label: int = 255,
        class_weights: Sequence[float] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.ignore_label = checked_ignore_label(ignore_label)
        self.class_weights = checked_class_weights(class_weights)

    def __call__(
        self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None
    ) -> tf.Tensor:
        with keras.name_scope(self.name):
            return self.call(y_true, y_pred, sample_weight)

    def mean(self, losses: tf.Tensor, truth: tf.Tensor) -> tf.Tensor:
        """The mean of the losses (classes,) of those classes that have a `truth` above 0."""
        check_classes(self.class_weights, losses.shape[0])
        present = tf.cast(truth > 0, losses.dtype)
        if self.class_weights is not None:
            present *= tf.constant(self.class_weights, losses.dtype)
        return tf.math.divide_no_nan(tf.reduce_sum(present * losses), tf.reduce_sum(present))

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "ignore_label": self.ignore_label,
            "class_weights": self.class_weights,
        }


class _Overlap(_OfClasses):
    """One minus the mean over classes of how far soft predictions and labels overlap.

    What an overlap is, subclasses say in `overlap`.
    """

    def overlap(self, both: tf.Tensor, scores: tf.Tensor, truth: tf.Tensor) -> tf.Tensor:
        """Of a class's sums, (classes,) each: sum(p y), sum(p) and sum(y)."""
        raise NotImplementedError

    def call(
        self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None
    ) -> tf.Tensor:
        labels, logits, weights = flat_pixels(y_true, y_pred, sample_weight, self.ignore_label)
        scores = weigh(tf.nn.softmax(logits), weights[:, None])
        truth = tf.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        both, truth = scores * truth, weigh(truth, weights[:, None])
        sums = tf.stack([tf.reduce_sum(x, axis=0) for x in (both, scores, truth)])
        both, scores, truth = tf.unstack(sum_over_replicas(sums))
        missed = self.mean(1.0 - self.overlap(both, scores, truth), truth)
        return missed / tf.distribute.get_strategy().num_replicas_in_sync


@keras.saving.register_keras_serializable("isa_tf")
class SoftJaccard(_Overlap):
    """One minus the mean over classes of the intersection over union of soft predictions.

    With p the softmax and y the one-hot label of every pixel of the batch that counts, a class has
    sum(p y) / (sum(p) + sum(y) - sum(p y)); the mean is over the classes that the labels hold. It
    is what mean IoU measures, made differentiable, and gives thin and rare classes the weight that
    cross-entropy does not; use it beside that one (see `SumOfLosses`).

    Under a `tf.distribute` strategy these are sums over the pixels of all replicas, for a mean of
    the replicas' Jaccard indices is not that of their pixels. Each replica gives the same share,
    the whole loss by the number of replicas, and has in its gradient what its pixels do to it.
    Under `isa_tf.ops.alone` the sums are of its own pixels.

    Args:
        ignore_label: int, the label of pixels that do not count. Defaults to 255.
        name: str.
        class_weights: one float a class, what each counts in the mean; `None` for equal ones.
            Defaults to `None`.

    Shapes:
        labels (B, H, W) ints, logits (B, H, W, classes), sample weights (B,), for images, or
        (B, H, W), for pixels, which they weigh in every sum -> scalar in [0, 1], float64 for
        float64 logits, else float32; 0 for a batch without any pixel that counts.

    Raises:
        ValueError: for negative class weights, as many as there are no classes, or an ignore_label
            that is no int.

    Example:

    >>> loss = SoftJaccard()
    >>> float(loss([[[0, 255]]], [[[[9.0, 0.0], [0.0, 9.0]]]])) < 1e-3
    True

    Paper: Rahman and Wang, "Optimizing Intersection-Over-Union in Deep Neural Networks for Image
    Segmentation", ISVC 2016.
    """

    def __init__(
        self,
        ignore_label: int = 255,
        name: str = "soft_jaccard",
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(ignore_label, class_weights, name)

    def overlap(self, both: tf.Tensor, scores: tf.Tensor, truth: tf.Tensor) -> tf.Tensor:
        return tf.math.divide_no_nan(both, scores + truth - both)


@keras.saving.register_keras_serializable("isa_tf")
class DiceLoss(_Overlap):
    """One minus the mean over classes of the Dice coefficient of soft predictions.

    A class has 2 sum(p y) / (sum(p) + sum(y)), with p the softmax and y the one-hot label; the mean
    is over the classes that the labels hold. Sums are those of all replicas, as `SoftJaccard` has
    them.

    Args:
        ignore_label: int, the label of pixels that do not count. Defaults to 255.
        name: str.
        class_weights: one float a class, what each counts in the mean; `None` for equal ones.
            Defaults to `None`.

    Shapes:
        labels (B, H, W) ints, logits (B, H, W, classes), sample weights (B,) or (B, H, W), which
        weigh pixels in every sum -> scalar in [0, 1]; 0 for a batch without any pixel that counts.

    Raises:
        ValueError: for negative class weights, as many as there are no classes, or an ignore_label
            that is no int.

    Example:

    >>> float(DiceLoss()([[[0, 255]]], [[[[0.0, 0.0], [0.0, 9.0]]]]))  # p = 1/2
    0.3333333134651184

    Paper: Milletari et al., "V-Net", arXiv 1606.04797, whose denominator has squares; this is that
    of Sudre et al., arXiv 1707.03237, without their weights.
    """

    def __init__(
        self,
        ignore_label: int = 255,
        name: str = "dice_loss",
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(ignore_label, class_weights, name)

    def overlap(self, both: tf.Tensor, scores: tf.Tensor, truth: tf.Tensor) -> tf.Tensor:
        return tf.math.divide_no_nan(2.0 * both, scores + truth)


@keras.saving.register_keras_serializable("isa_tf")
class LovaszSoftmax(_OfClasses):
    """The Lovász extension of the Jaccard index, of the softmax's errors.

    Of each class the pixels are sorted by how wrong they are, and each counts by what its being
    wrong takes from the class's intersection over union; the mean is over the classes that the
    labels hold. The sum over pixels is that over all replicas: their errors are brought together
    to be sorted, which takes memory for the errors of the global batch on every device, and each
    replica gives the share of its own pixels. Under `isa_tf.ops.alone` a replica gives the loss of
    its own batch by the number of replicas.

    Args:
        ignore_label: int, the label of pixels that do not count. Defaults to 255.
        name: str.
        class_weights: one float a class, what each counts in the mean; `None` for equal ones.
            Defaults to `None`.

    Shapes:
        labels (B, H, W) ints, logits (B, H, W, classes), sample weights (B,) or (B, H, W): a pixel
        of weight 2 is as two pixels -> scalar in [0, 1]; 0 for a batch without any pixel that
        counts.

    Raises:
        ValueError: for negative class weights, as many as there are no classes, or an ignore_label
            that is no int.

    Example:

    >>> loss = LovaszSoftmax()
    >>> float(loss([[[0, 255]]], [[[[9.0, 0.0], [0.0, 9.0]]]])) < 1e-3
    True

    Paper: Berman et al., "The Lovász-Softmax loss", arXiv 1705.08790.
    """

    def __init__(
        self,
        ignore_label: int = 255,
        name: str = "lovasz_softmax",
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(ignore_label, class_weights, name)

    def call(
        self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None
    ) -> tf.Tensor:
        labels, logits, weights = flat_pixels(y_true, y_pred, sample_weight, self.ignore_label)
        classes = logits.shape[-1]
        truth = tf.transpose(tf.one_hot(labels, classes, dtype=logits.dtype))
        errors = tf.abs(truth - tf.transpose(tf.nn.softmax(logits)))  # (classes, N)
        mine = tf.stop_gradient(tf.stack([errors, truth * weights, (1.0 - truth) * weights]))
        replica, everyones = _of_all_replicas(mine)  # (replicas, 3, classes, N)
        size = tf.shape(everyones)
        everyones = tf.reshape(tf.transpose(everyones, (1, 2, 0, 3)), (3, classes, -1))
        counts, total = _lost_jaccard(*tf.unstack(everyones))
        counts = tf.reshape(counts, (classes, size[0], size[3]))[:, replica]
        loss = self.mean(tf.reduce_sum(errors * counts, axis=1), total)
        return loss * part_of_one(loss.dtype)


def _of_all_replicas(values):
    """This replica's number, and the values of all: (replicas, ...)."""
    replicas = replicas_summed()
    if replicas == 1:
        return 0, values[None]
    number = tf.distribute.get_replica_context().replica_id_in_sync_group
    place = tf.one_hot(number, replicas, dtype=values.dtype)
    place = tf.reshape(place, (replicas, *[1] * len(values.shape)))
    return number, sum_over_replicas(place * values)


def _lost_jaccard(errors, inside, outside):
    """What being wrong at each pixel takes from a class's Jaccard index, the worst ones first.

    Args:
        errors: (classes, N), how wrong a pixel is.
        inside, outside: (classes, N), its weight where it is of the class, and where it is not.

    Returns:
        (classes, N), and the weight of each class, (classes,).
    """
    order = tf.argsort(errors, axis=1, direction="DESCENDING", stable=True)
    hit = tf.gather(inside, order, batch_dims=1)
    false = tf.gather(outside, order, batch_dims=1)
    total = tf.reduce_sum(inside, axis=1, keepdims=True)
    index = tf.math.divide_no_nan(total - tf.cumsum(hit, axis=1), total + tf.cumsum(false, axis=1))
    before = tf.concat([tf.ones_like(index[:, :1]), index[:, :-1]], axis=1)
    # Back to the order of the pixels, for less than a second sorting costs.
    classes, pixels = tf.unstack(tf.shape(order, tf.int64))
    places = tf.cast(order, tf.int64) + pixels * tf.range(classes)[:, None]
    lost = tf.math.unsorted_segment_sum(before - index, places, classes * pixels)
    return tf.reshape(lost, tf.shape(order)), total[:, 0]
