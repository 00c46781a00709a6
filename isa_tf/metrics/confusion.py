"""Segmentation scores from one confusion matrix over all pixels of all images."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from isa_tf.hints import DType
from isa_tf.ops import pixel_weights


@keras.saving.register_keras_serializable("isa_tf")
class MeanIoU(keras.metrics.Metric):
    """Mean intersection over union, by the field's rule.

    One confusion matrix is filled with every pixel of every image; the ignored label is left out,
    and so are, from the mean, classes that occur neither in truth nor in prediction.
    (`keras.metrics.MeanIoU` follows the same rule but counts in float32, which stops at 2^24.)
    The matrix, `confusion`, is of float64, which counts exactly up to 2^53 and can hold weights.

    Args:
        num_classes: int.
        ignore_label: int. Defaults to 255.
        class_ids: the classes to average over; `None` for all. Defaults to `None`.
        name: str. Defaults to "miou".

    Shapes:
        labels (B, H, W) ints; logits (B, H, W, num_classes), or class ids (B, H, W) ints; sample
        weights (B,), for images, or (B, H, W), for pixels, which then count that often.

    Raises:
        InvalidArgumentError: for a label outside 0..num_classes-1 that is not the ignored one, or
            a predicted class outside it (not under XLA, which drops assertions).

    Example:

    >>> metric = MeanIoU(num_classes=3)
    >>> metric.update_state([[[0, 1, 255]]], [[[0, 0, 2]]])
    >>> float(metric.result())
    0.25
    """

    def __init__(
        self,
        num_classes: int,
        ignore_label: int = 255,
        class_ids: Sequence[int] | None = None,
        name: str = "miou",
        dtype: DType = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.class_ids = None if class_ids is None else tuple(class_ids)
        self.confusion = self.add_variable(
            (num_classes, num_classes), initializer="zeros", dtype="float64", name="confusion"
        )

    def update_state(
        self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None
    ) -> None:
        y_true = tf.cast(y_true, tf.int32)
        truth = tf.reshape(y_true, (-1,))
        if y_pred.shape.rank == 4 if tf.is_tensor(y_pred) else np.ndim(y_pred) == 4:
            y_pred = tf.argmax(y_pred, axis=-1, output_type=tf.int32)
        prediction = tf.reshape(tf.cast(y_pred, tf.int32), (-1,))
        valid = truth != self.ignore_label
        n = self.num_classes
        for name, ids in (("label", truth), ("prediction", prediction)):
            ids, message = tf.where(valid, ids, 0), f"{name} outside 0..{n - 1}"
            tf.debugging.assert_non_negative(ids, message)
            tf.debugging.assert_less(ids, n, message)
        weights = tf.zeros((0,), tf.int32)  # by which a pixel counts 1
        if sample_weight is not None:
            weights = tf.reshape(pixel_weights(sample_weight, y_true, "float64"), (-1,))
        # Known shapes all along, for XLA: ignored pixels go into one cell more.
        cells = tf.where(valid, truth * n + prediction, n * n)
        counts = tf.raw_ops.DenseBincount(input=cells, size=n * n + 1, weights=weights)[:-1]
        self.confusion.assign_add(tf.cast(tf.reshape(counts, (n, n)), tf.float64))

    def result(self) -> tf.Tensor:
        matrix = tf.cast(tf.convert_to_tensor(self.confusion), tf.float64)
        hits = tf.linalg.diag_part(matrix)
        union = tf.reduce_sum(matrix, 0) + tf.reduce_sum(matrix, 1) - hits
        if self.class_ids is not None:
            hits, union = tf.gather(hits, self.class_ids), tf.gather(union, self.class_ids)
        present = tf.cast(union > 0, tf.float64)
        iou = tf.math.divide_no_nan(hits, union)
        return tf.cast(
            tf.math.divide_no_nan(tf.reduce_sum(iou), tf.reduce_sum(present)), self.dtype
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "ignore_label": self.ignore_label,
            "class_ids": self.class_ids,
        }


def scores(
    confusion: np.ndarray,
    class_names: Sequence[str] | Sequence[int] | None = None,
    class_ids: Sequence[int] | None = None,
) -> dict[str, Any]:
    """All scores that a confusion matrix gives.

    Args:
        confusion: counts (classes, classes), rows are truth; floats where pixels have weights.
        class_names: names of the classes; `None` for their numbers.
        class_ids: the classes to average over; `None` for all.

    Returns:
        dict: "miou" and "mean_accuracy" over the classes that occur (in truth or prediction, and
        in truth), "pixel_accuracy" over all pixels, "classes_counted" (those in the mIoU), "iou"
        (by name; `None` for a class that does not occur), "classes" (what `class_scores` gives)
        and "confusion_matrix". A score of nothing is `None`.

    Raises:
        ValueError: for a matrix that is not square, or names that are not as many.

    Example:

    >>> scores([[1, 0], [1, 0]], ["sky", "tree"])["iou"]
    {'sky': 0.5, 'tree': 0.0}
    """
    confusion, names = _checked(confusion, class_names)
    hits, truth, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    union = truth + predicted - hits
    chosen = np.ones(len(confusion), bool)
    if class_ids is not None:
        chosen[:] = False
        chosen[list(class_ids)] = True

    def mean(part, whole):
        counted = chosen & (whole > 0)
        return float(np.mean(part[counted] / whole[counted])) if counted.any() else None

    total = confusion.sum()
    classes = class_scores(confusion, names)
    return {
        "miou": mean(hits, union),
        "mean_accuracy": mean(hits, truth),
        "pixel_accuracy": float(hits.sum() / total) if total else None,
        "classes_counted": int((chosen & (union > 0)).sum()),
        "iou": {name: row["iou"] for name, row in classes.items()},
        "classes": classes,
        "confusion_matrix": confusion.tolist(),
    }


def class_scores(confusion: np.ndarray, class_names: Sequence[str] | None = None) -> dict[str, Any]:
    """A table of scores, one row a class.

    Args:
        confusion: counts (classes, classes), rows are truth; floats where pixels have weights.
        class_names: names of the classes; `None` for their numbers.

    Returns:
        dict of name to dict: "pixels", how many are truly of the class, "iou", "accuracy" (that
        of the class, which is its recall), "precision", "recall" and "f1" (Dice's coefficient).
        A score of nothing is `None`.

    Raises:
        ValueError: for a matrix that is not square, or names that are not as many.

    Example:

    >>> table = class_scores([[1, 0], [1, 2]], ["sky", "tree"])
    >>> table["sky"]["precision"], table["tree"]["f1"]
    (0.5, 0.8)
    """
    confusion, names = _checked(confusion, class_names)
    hits, truth, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    columns = {
        "iou": (hits, truth + predicted - hits),
        "accuracy": (hits, truth),
        "precision": (hits, predicted),
        "recall": (hits, truth),
        "f1": (2 * hits, truth + predicted),
    }
    return {
        name: {
            "pixels": truth[i].item(),
            **{key: float(a[i] / b[i]) if b[i] else None for key, (a, b) in columns.items()},
        }
        for i, name in enumerate(names)
    }


def boundary_band(labels: np.ndarray, width: int = 3) -> np.ndarray:
    """Which pixels lie near a boundary between labels.

    A pixel does if one of another label is at most `width` rows and at most `width` columns from
    it: `width` pixels on each side of a boundary. The ignored label is a label like any other
    here, since it marks the outlines of objects where it is thin, as in PASCAL VOC. The border of
    an image is no boundary.

    Args:
        labels: ints (..., H, W).
        width: int, in pixels; of 0 there are none. Defaults to 3.

    Shapes:
        (..., H, W) -> (..., H, W), bool.

    Raises:
        ValueError: for a width below 0.

    Example:

    >>> boundary_band([[0, 0, 0, 1, 1, 1]], width=1)
    array([[False, False,  True,  True, False, False]])

    Paper: the trimaps of Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with
    Gaussian Edge Potentials", NeurIPS 2011.
    """
    if width < 0:
        raise ValueError(f"a band has a width of at least 0 pixels, got {width}")
    labels, ends = np.asarray(labels), []
    for extreme in (np.minimum, np.maximum):
        across = labels.copy()
        for step in range(1, min(width, labels.shape[-1] - 1) + 1):
            extreme(across[..., step:], labels[..., :-step], out=across[..., step:])
            extreme(across[..., :-step], labels[..., step:], out=across[..., :-step])
        found = across.copy()
        for step in range(1, min(width, labels.shape[-2] - 1) + 1):
            extreme(found[..., step:, :], across[..., :-step, :], out=found[..., step:, :])
            extreme(found[..., :-step, :], across[..., step:, :], out=found[..., :-step, :])
        ends.append(found)
    return ends[0] != ends[1]


def _checked(confusion, class_names):
    """A confusion matrix, of ints where it holds whole numbers, and names of its classes."""
    confusion = np.asarray(confusion)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"a confusion matrix is square, got shape {confusion.shape}")
    counts = confusion.astype(np.int64)
    if (counts == confusion).all():
        confusion = counts
    names = [str(i) for i in range(len(confusion))] if class_names is None else class_names
    if len(names) != len(confusion):
        raise ValueError(f"{len(names)} class_names for {len(confusion)} classes")
    return confusion, names
