"""Cross-entropies of pixels, and what is put in their place to learn from the hard ones."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from isa_tf.losses.base import PixelLoss, cross_entropies
from isa_tf.losses.selection import kth_smallest


@keras.saving.register_keras_serializable("isa_tf")
class PixelCrossEntropy(PixelLoss):
    """Softmax cross-entropy per pixel, with a label to ignore and class weights.

    Args:
        ignore_label, class_weights, average, name, reduction: see `PixelLoss`, which tells what
            the loss is over several replicas, too.

    Shapes:
        labels (B, H, W) ints, logits (B, H, W, classes), sample weights (B,) or (B, H, W) ->
        scalar, or (B, H, W) without a reduction.

    Raises:
        ValueError: as `PixelLoss`.

    Example:

    >>> loss = PixelCrossEntropy()
    >>> float(loss([[[0, 255]]], [[[[9.0, 0.0], [0.0, 9.0]]]])) < 1e-3
    True
    """

    def __init__(
        self,
        ignore_label: int = 255,
        class_weights: Sequence[float] | None = None,
        average: str = "valid",
        name: str = "pixel_cross_entropy",
        reduction: str = "sum_over_batch_size",
    ) -> None:
        super().__init__(ignore_label, class_weights, average, name, reduction)

    def pixel_losses(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        return cross_entropies(labels, logits)


@keras.saving.register_keras_serializable("isa_tf")
class OHEMCrossEntropy(PixelCrossEntropy):
    """Cross-entropy of the hard pixels alone: online hard example mining.

    Of the pixels that count, those are kept whose own class has a probability below `threshold`,
    and in any case the `min_kept` hardest of the *global batch*, that of all replicas (all, where
    there are fewer; more, where several are equally hard). The others count nothing, in the
    divisor of "valid" neither. A pixel whose sample weight is 0 is not kept.

    The published code keeps so many of each device's batch: `min_kept` of 100,000 on four of them
    is 400,000 here. It divides by the number of kept pixels, and "valid" by the sum of their class
    weights, which is the same without class weights.

    Args:
        ignore_label, class_weights, average, name, reduction: see `PixelLoss`.
        threshold: float in (0, 1], the probability. Defaults to 0.7.
        min_kept: int, pixels of the global batch. Defaults to 100,000.

    Shapes:
        labels (B, H, W) ints, logits (B, H, W, classes), sample weights (B,) or (B, H, W) ->
        scalar, or (B, H, W) without a reduction.

    Raises:
        ValueError: as `PixelLoss`, and for another threshold or a `min_kept` below 0.

    Example:

    >>> labels = [[[0, 0]]]
    >>> logits = [[[[0.0, 0.0], [9.0, 0.0]]]]
    >>> round(float(OHEMCrossEntropy(threshold=0.7, min_kept=1)(labels, logits)), 4)
    0.6931

    Paper: Shrivastava et al., "Training Region-based Object Detectors with Online Hard Example
    Mining", arXiv 1604.03540; for pixels as in openseg.pytorch (`FSOhemCELoss`).
    """

    def __init__(
        self,
        ignore_label: int = 255,
        class_weights: Sequence[float] | None = None,
        average: str = "valid",
        name: str = "ohem_cross_entropy",
        reduction: str = "sum_over_batch_size",
        threshold: float = 0.7,
        min_kept: int = 100_000,
    ) -> None:
        super().__init__(ignore_label, class_weights, average, name, reduction)
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must be in (0, 1], got {threshold}")
        if min_kept < 0:
            raise ValueError(f"min_kept must not be negative, got {min_kept}")
        self.threshold = threshold
        self.min_kept = min_kept

    def pixel_counts(
        self, labels: tf.Tensor, logits: tf.Tensor, weights: tf.Tensor | None
    ) -> tf.Tensor:
        counts = super().pixel_counts(labels, logits, weights)
        candidates = labels != self.ignore_label
        if weights is not None:
            candidates &= weights != 0
        masked = tf.where(candidates[..., None], tf.stop_gradient(logits), 0.0)
        probability = tf.exp(-cross_entropies(tf.where(candidates, labels, 0), masked))
        hardest = kth_smallest(probability, candidates, self.min_kept)
        kept = (probability < self.threshold) | (probability <= hardest)
        return counts * tf.cast(candidates & kept, counts.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "threshold": self.threshold, "min_kept": self.min_kept}


@keras.saving.register_keras_serializable("isa_tf")
class FocalLoss(PixelLoss):
    """Cross-entropy times (1 - p) ** gamma, p the probability of the pixel's own class.

    Args:
        ignore_label, class_weights, average, name, reduction: see `PixelLoss`; the class weights
            are the paper's alpha.
        gamma: float, from 0 on, where it is cross-entropy. Defaults to 2.

    Shapes:
        labels (B, H, W) ints, logits (B, H, W, classes), sample weights (B,) or (B, H, W) ->
        scalar, or (B, H, W) without a reduction.

    Raises:
        ValueError: as `PixelLoss`, and for a negative gamma.

    Example:

    >>> round(float(FocalLoss()([[[0]]], [[[[0.0, 0.0]]]])), 4)
    0.1733

    Paper: Lin et al., "Focal Loss for Dense Object Detection", arXiv 1708.02002.
    """

    def __init__(
        self,
        ignore_label: int = 255,
        class_weights: Sequence[float] | None = None,
        average: str = "valid",
        name: str = "focal_loss",
        reduction: str = "sum_over_batch_size",
        gamma: float = 2.0,
    ) -> None:
        super().__init__(ignore_label, class_weights, average, name, reduction)
        if gamma < 0:
            raise ValueError(f"gamma must not be negative, got {gamma}")
        self.gamma = gamma

    def pixel_losses(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        return _focal(cross_entropies(labels, logits), self.gamma)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "gamma": self.gamma}


def _focal(losses, gamma):
    """(1 - p) ** gamma times -log p, of -log p.

    Its own gradient, for two reasons: a power below 1 has an infinite one at 0, though that of the
    product is 0; and where none comes from above there is none, be the logits not a number.
    """

    @tf.custom_gradient
    def focal(losses):
        missed = -tf.math.expm1(-losses)  # 1 - p, also where p is almost 1
        factor = missed**gamma

        def gradient(upstream):
            # What is missed changes with the loss by p; a loss over what is missed stays finite.
            share = tf.math.divide_no_nan(losses, missed)
            slope = factor * (1.0 + gamma * tf.math.multiply_no_nan(share, 1.0 - missed))
            return tf.math.multiply_no_nan(slope, upstream)

        return factor * losses, gradient

    return focal(losses)


@keras.saving.register_keras_serializable("isa_tf")
class BoundaryCrossEntropy(PixelCrossEntropy):
    """Cross-entropy in which pixels near a boundary between labels count more.

    A pixel is near one where the square of `width` pixels around it on every side holds two labels;
    ignored pixels make no boundary. It counts `1 + boundary_weight` times, in the divisor of
    "valid" too.

    Args:
        ignore_label, class_weights, average, name, reduction: see `PixelLoss`.
        boundary_weight: float, what is added to the weight. Defaults to 1.
        width: int, pixels. Defaults to 3.

    Shapes:
        labels (B, H, W) ints, logits (B, H, W, classes), sample weights (B,) or (B, H, W) ->
        scalar, or (B, H, W) without a reduction.

    Raises:
        ValueError: as `PixelLoss`, and for a negative weight or a width below 1.

    Example:

    >>> loss = BoundaryCrossEntropy(boundary_weight=4.0, width=1, reduction=None)
    >>> logits = np.zeros((1, 1, 5, 2), "float32")
    >>> np.round(loss([[[0, 0, 1, 1, 255]]], logits), 2).tolist()
    [[[0.6899999976158142, 3.4700000286102295, 3.4700000286102295, 0.6899999976158142, 0.0]]]

    Paper: Ronneberger et al., "U-Net", arXiv 1505.04597, whose weights fall off with the distance;
    here they are those of a band, as in evaluation near boundaries.
    """

    def __init__(
        self,
        ignore_label: int = 255,
        class_weights: Sequence[float] | None = None,
        average: str = "valid",
        name: str = "boundary_cross_entropy",
        reduction: str = "sum_over_batch_size",
        boundary_weight: float = 1.0,
        width: int = 3,
    ) -> None:
        super().__init__(ignore_label, class_weights, average, name, reduction)
        if boundary_weight < 0:
            raise ValueError(f"boundary_weight must not be negative, got {boundary_weight}")
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        self.boundary_weight = boundary_weight
        self.width = width

    def pixel_counts(
        self, labels: tf.Tensor, logits: tf.Tensor, weights: tf.Tensor | None
    ) -> tf.Tensor:
        counts = super().pixel_counts(labels, logits, weights)
        near = tf.cast(near_boundary(labels, self.width, self.ignore_label), counts.dtype)
        return counts * (1.0 + self.boundary_weight * near)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "boundary_weight": self.boundary_weight,
            "width": self.width,
        }


def near_boundary(labels: tf.Tensor, width: int, ignore_label: int = 255) -> tf.Tensor:
    """Which pixels have two labels within `width` pixels on every side; ignored ones are none.

    Args:
        labels: int tensor.
        width: int, pixels.
        ignore_label: int. Defaults to 255.

    Shapes:
        (B, H, W) -> (B, H, W), bool.

    Example:

    >>> near_boundary(tf.constant([[[0, 0, 1, 255, 1]]]), 1).numpy().tolist()
    [[[False, True, True, False, False]]]
    """
    ignored = labels == ignore_label
    found = tf.cast(labels, tf.float32)[..., None]
    lowest, highest = found.dtype.min, found.dtype.max

    def largest(values):
        return tf.nn.max_pool2d(values, 2 * width + 1, 1, "SAME")[..., 0]

    most = largest(tf.where(ignored[..., None], lowest, found))
    least = -largest(-tf.where(ignored[..., None], highest, found))
    return (most > least) & ~ignored
