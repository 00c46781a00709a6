"""What losses for dense prediction share: labels, weights, and the global batch."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from isa_tf.ops import pixel_weights, replicas_summed, sum_over_replicas

_MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")


class PixelLoss(keras.losses.Loss):
    """Base of losses that are a weighted mean over pixels, of the pixels of all replicas.

    Under a `tf.distribute` strategy it is the loss of the global batch: the sum over the pixels of
    all replicas, divided by what counts on all of them. Each replica gives its share, its own sum
    over that divisor. So the shares' sum is the loss, and the sum of their gradients, which
    optimizers take, is its gradient, wherever the pixels lie that count. Under
    `isa_tf.ops.alone` a replica gives the loss of its own batch by the number of replicas, as
    Keras losses do.

    A loss of one's own says what a pixel costs, in `pixel_losses`, and where pixels do not count
    alike, how much they do, in `pixel_counts`.

    Args:
        ignore_label: int, the label of pixels that do not count. Defaults to 255.
        class_weights: one float a class, or `None` for equal ones. Defaults to `None`.
        average: what the sum over pixels is divided by: "valid" for the sum of the class weights
            of the pixels that count (PyTorch's weighted mean, as in the official code), "all" for
            the number of all pixels, the ignored included (mmsegmentation). Defaults to "valid".
        name: str.
        reduction: as of `keras.losses.Loss`: "sum_over_batch_size" for that average, to which
            sample weights do not count; "mean_with_sample_weight" for one to which they do; "sum";
            or `None` for the losses of the pixels. Defaults to "sum_over_batch_size".

    Shapes:
        labels (B, H, W) ints, logits (B, H, W, classes), sample weights (B,), for images, or
        (B, H, W), for pixels -> scalar, or (B, H, W) without a reduction; float64 for float64
        logits, else float32. A batch without any pixel that counts gives 0. What a pixel that is
        ignored, or of weight 0, has for logits does not matter, be it infinite or not a number.

    Raises:
        ValueError: for an unknown average or reduction, an ignore_label that is no int, negative
            class weights, or as many class weights as there are no classes.

    Example:

    >>> class Squared(isa_tf.losses.PixelLoss):
    ...     def pixel_losses(self, labels, logits):
    ...         return isa_tf.losses.cross_entropies(labels, logits) ** 2
    >>> float(Squared()([[[0, 255]]], [[[[9.0, 0.0], [0.0, 9.0]]]])) < 1e-3
    True
    """

    def __init__(
        self,
        ignore_label: int = 255,
        class_weights: Sequence[float] | None = None,
        average: str = "valid",
        name: str | None = None,
        reduction: str = "sum_over_batch_size",
    ) -> None:
        super().__init__(name=name, reduction=reduction)
        if average not in ("valid", "all"):
            raise ValueError(f'average must be "valid" or "all", got {average!r}')
        self.ignore_label = checked_ignore_label(ignore_label)
        self.class_weights = checked_class_weights(class_weights)
        self.average = average

    def pixel_losses(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """What each pixel costs.

        Args:
            labels: (B, H, W) int32; 0 for what is ignored.
            logits: (B, H, W, classes).

        Returns:
            (B, H, W), of the dtype of the logits.
        """
        raise NotImplementedError

    def pixel_counts(
        self, labels: tf.Tensor, logits: tf.Tensor, weights: tf.Tensor | None
    ) -> tf.Tensor:
        """How much each pixel counts: the weight of its class, 0 for what is ignored.

        Args:
            labels: (B, H, W) int32, `ignore_label` among them.
            logits: (B, H, W, classes).
            weights: (B, H, W), the sample weights, or `None`.

        Returns:
            (B, H, W), of the dtype of the logits.
        """
        classes = logits.shape[-1]
        check_classes(self.class_weights, classes)
        valid = labels != self.ignore_label
        counts = tf.cast(valid, logits.dtype)
        if self.class_weights is not None:
            table = tf.convert_to_tensor(self.class_weights, logits.dtype)
            counts *= tf.gather(table, tf.where(valid, labels, 0))
        return counts

    def __call__(
        self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None
    ) -> tf.Tensor:
        with keras.name_scope(self.name):
            labels, logits = as_labels(y_true), as_logits(y_pred)
            weights = as_weights(sample_weight, labels, logits.dtype)
            losses, counts = self._losses(labels, logits, weights)
            losses = weigh(losses, weights)
            if self.reduction in (None, "none"):
                return losses
            total = tf.reduce_sum(losses)
            if self.reduction not in _MEANS:
                return total
            if self.average == "all":
                counts = tf.ones_like(losses)
            if self.reduction == "mean_with_sample_weight":
                counts = weigh(counts, weights)
            divisor = sum_over_replicas(tf.stop_gradient(tf.reduce_sum(counts)))
            return tf.math.divide_no_nan(total, divisor) * part_of_one(total.dtype)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """The losses of the pixels, (B, H, W), times what they count."""
        return self._losses(as_labels(y_true), as_logits(y_pred), None)[0]

    def _losses(self, labels, logits, weights):
        counts = self.pixel_counts(labels, logits, weights)
        losses = self.pixel_losses(tf.where(labels != self.ignore_label, labels, 0), logits)
        return weigh(losses, counts), counts

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "ignore_label": self.ignore_label,
            "class_weights": self.class_weights,
            "average": self.average,
            "reduction": self.reduction,
        }


def checked_ignore_label(ignore_label: int) -> int:
    """A label as an int; a ValueError for `None`, by which all labels would count as one pixel."""
    try:
        return operator.index(ignore_label)
    except TypeError:
        raise ValueError(
            f"ignore_label must be an int, -1 where every pixel counts, got {ignore_label!r}"
        ) from None


def checked_class_weights(class_weights: Sequence[float] | None) -> tuple[float, ...] | None:
    """Class weights as a tuple of floats, or `None`; a ValueError for negative ones."""
    if class_weights is None:
        return None
    if min(class_weights, default=0) < 0:
        raise ValueError(f"class_weights must not be negative, got {class_weights}")
    return tuple(map(float, class_weights))


def check_classes(class_weights: Sequence[float] | None, classes: int) -> None:
    """A ValueError for as many class weights as there are no classes."""
    if class_weights is not None and len(class_weights) != classes:
        raise ValueError(f"{len(class_weights)} class_weights for {classes} classes")


def as_labels(y_true: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.convert_to_tensor(y_true), tf.int32)


def as_logits(y_pred: tf.Tensor) -> tf.Tensor:
    logits = tf.convert_to_tensor(y_pred)
    return logits if logits.dtype == tf.float64 else tf.cast(logits, tf.float32)


def as_weights(
    sample_weight: tf.Tensor | None, labels: tf.Tensor, dtype: tf.DType
) -> tf.Tensor | None:
    return None if sample_weight is None else pixel_weights(sample_weight, labels, dtype)


def weigh(values: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
    """What has no weight counts nothing, even where it is infinite or not a number."""
    return values if weights is None else tf.math.multiply_no_nan(values, weights)


def part_of_one(dtype: tf.DType) -> tf.Tensor:
    """What to multiply a loss by that is divided by what is summed over the replicas.

    Keras adds up the losses of the replicas; one that saw its own batch alone gives a part.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return tf.constant(replicas_summed() / replicas, dtype)


@tf.custom_gradient
def cross_entropies(
    labels: tf.Tensor, logits: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[None, tf.Tensor]]]:
    """The cross-entropy of every pixel.

    As `tf.nn.sparse_softmax_cross_entropy_with_logits`, but for its gradient: where none comes
    from above, there is none, even if the logits are infinite or NaN. TensorFlow multiplies with
    the softmax, and 0 times NaN is NaN.

    Shapes:
        (B, H, W) ints, (B, H, W, classes) -> (B, H, W).
    """
    classes = logits.shape[-1]
    losses, slopes = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(
        features=tf.reshape(logits, (-1, classes)), labels=tf.reshape(labels, (-1,))
    )

    def gradient(upstream):
        upstream = tf.reshape(upstream, (-1, 1))
        return None, tf.reshape(tf.math.multiply_no_nan(slopes, upstream), tf.shape(logits))

    return tf.reshape(losses, tf.shape(labels)), gradient


def flat_pixels(
    y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None, ignore_label: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The pixels of a batch in a row, for losses of sums over them.

    Returns:
        labels (N,) int32, -1 for a pixel that does not count; logits (N, classes), 0 for such a
        one, which may have had infinite or NaN ones; and weights (N,), 0 for such a one.
    """
    labels, logits = as_labels(y_true), as_logits(y_pred)
    weights = as_weights(sample_weight, labels, logits.dtype)
    counts = labels != ignore_label
    if weights is not None:
        counts &= weights != 0
    labels = tf.reshape(tf.where(counts, labels, -1), (-1,))
    counts = tf.reshape(counts, (-1,))
    logits = tf.where(counts[:, None], tf.reshape(logits, (-1, logits.shape[-1])), 0.0)
    valid = tf.cast(counts, logits.dtype)
    return labels, logits, valid if weights is None else weigh(tf.reshape(weights, (-1,)), valid)
