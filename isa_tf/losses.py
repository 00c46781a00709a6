"""Losses for dense prediction."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("isa_tf")
class PixelCrossEntropy(keras.losses.Loss):
    """Softmax cross-entropy per pixel, with a label to ignore and class weights.

    Args:
        ignore_label: int, the label of pixels that do not count. Defaults to 255.
        class_weights: one float a class, or `None` for equal ones. Defaults to `None`.
        average: what the sum over pixels is divided by: "valid" for the sum of the class weights
            of the pixels that count (PyTorch's weighted mean, as in the official code), "all" for
            the number of all pixels, the ignored included (mmsegmentation). Defaults to "valid".
        name: str.

    Shapes:
        labels (B, H, W) ints, logits (B, H, W, classes) -> scalar float32. A batch without any
        pixel that counts gives 0. Under a `tf.distribute` strategy each replica averages over its
        own part of the batch and gives its share of the replicas' mean, as Keras losses do.

    Raises:
        ValueError: for an unknown average, negative class weights, or as many class weights as
            there are no classes.

    Example:

    >>> loss = PixelCrossEntropy()
    >>> float(loss([[[0, 255]]], [[[[9.0, 0.0], [0.0, 9.0]]]])) < 1e-3
    True
    """

    def __init__(
        self, ignore_label=255, class_weights=None, average="valid", name="pixel_cross_entropy"
    ):
        super().__init__(name=name)
        if average not in ("valid", "all"):
            raise ValueError(f'average must be "valid" or "all", got {average!r}')
        if class_weights is not None and min(class_weights) < 0:
            raise ValueError(f"class_weights must not be negative, got {class_weights}")
        self.ignore_label = ignore_label
        self.class_weights = None if class_weights is None else tuple(map(float, class_weights))
        self.average = average

    def call(self, y_true, y_pred):
        logits = tf.cast(y_pred, tf.float32)
        labels = tf.cast(y_true, tf.int32)
        classes = logits.shape[-1]
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise ValueError(f"{len(self.class_weights)} class_weights for {classes} classes")
        valid = labels != self.ignore_label
        labels = tf.where(valid, labels, 0)
        weight = tf.cast(valid, tf.float32)
        if self.class_weights is not None:
            weight *= tf.gather(tf.constant(self.class_weights), labels)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        # An ignored pixel's loss may be infinite or NaN and must still not count.
        total = tf.reduce_sum(tf.math.multiply_no_nan(losses, weight))
        # Keras shares no scalar among replicas, whose gradients it adds up: done here.
        total /= tf.distribute.get_strategy().num_replicas_in_sync
        if self.average == "all":
            return total / tf.cast(tf.size(losses), tf.float32)
        return tf.math.divide_no_nan(total, tf.reduce_sum(weight))

    def get_config(self):
        return {
            "name": self.name,
            "ignore_label": self.ignore_label,
            "class_weights": self.class_weights,
            "average": self.average,
        }


@keras.saving.register_keras_serializable("isa_tf")
class SoftJaccard(keras.losses.Loss):
    """One minus the mean over classes of the intersection over union of soft predictions.

    With p the softmax and y the one-hot label of every pixel of the batch that counts, a class has
    sum(p y) / (sum(p) + sum(y) - sum(p y)); the mean is over the classes that the labels hold. It
    is what mean IoU measures, made differentiable, and gives thin and rare classes the weight that
    cross-entropy does not; use it beside that one (see `SumOfLosses`).

    Args:
        ignore_label: int, the label of pixels that do not count. Defaults to 255.
        name: str.

    Shapes:
        labels (B, H, W) ints, logits (B, H, W, classes) -> scalar float32 in [0, 1]; 0 for a batch
        without any pixel that counts. Replicas share it as they do `PixelCrossEntropy`.

    Example:

    >>> loss = SoftJaccard()
    >>> float(loss([[[0, 255]]], [[[[9.0, 0.0], [0.0, 9.0]]]])) < 1e-3
    True

    Paper: Rahman and Wang, "Optimizing Intersection-Over-Union in Deep Neural Networks for Image
    Segmentation", ISVC 2016.
    """

    def __init__(self, ignore_label=255, name="soft_jaccard"):
        super().__init__(name=name)
        self.ignore_label = ignore_label

    def call(self, y_true, y_pred):
        logits = tf.cast(y_pred, tf.float32)
        classes = logits.shape[-1]
        labels = tf.reshape(tf.cast(y_true, tf.int32), (-1,))
        logits = tf.reshape(logits, (-1, classes))
        valid = labels != self.ignore_label
        # An ignored pixel's logits may be infinite or NaN and must still not count.
        scores = tf.nn.softmax(tf.where(valid[:, None], logits, 0.0))
        scores *= tf.cast(valid, tf.float32)[:, None]
        truth = tf.one_hot(tf.where(valid, labels, -1), classes)
        both = tf.reduce_sum(scores * truth, axis=0)
        count = tf.reduce_sum(truth, axis=0)
        iou = tf.math.divide_no_nan(both, tf.reduce_sum(scores, axis=0) + count - both)
        present = tf.cast(count > 0, tf.float32)
        missed = tf.reduce_sum(present * (1.0 - iou))
        missed /= tf.distribute.get_strategy().num_replicas_in_sync
        return tf.math.divide_no_nan(missed, tf.reduce_sum(present))

    def get_config(self):
        return {"name": self.name, "ignore_label": self.ignore_label}


@keras.saving.register_keras_serializable("isa_tf")
class SumOfLosses(keras.losses.Loss):
    """A weighted sum of losses.

    Args:
        losses: list of `keras.losses.Loss`.
        weights: one float a loss, or `None` for ones. Defaults to `None`.
        name: str.

    Shapes:
        what the losses read -> scalar float32.

    Raises:
        ValueError: for as many weights as there are no losses.

    Example:

    >>> loss = SumOfLosses([PixelCrossEntropy(), SoftJaccard()], weights=[1.0, 0.5])
    """

    def __init__(self, losses, weights=None, name="sum_of_losses"):
        super().__init__(name=name)
        weights = [1.0] * len(losses) if weights is None else list(weights)
        if not losses or len(weights) != len(losses):
            raise ValueError(f"{len(weights)} weights for {len(losses)} losses")
        self.losses = list(losses)
        self.weights = weights

    def call(self, y_true, y_pred):
        terms = zip(self.losses, self.weights, strict=True)
        return tf.add_n([weight * loss(y_true, y_pred) for loss, weight in terms])

    def get_config(self):
        losses = [keras.saving.serialize_keras_object(loss) for loss in self.losses]
        return {"name": self.name, "losses": losses, "weights": self.weights}

    @classmethod
    def from_config(cls, config):
        losses = [keras.saving.deserialize_keras_object(loss) for loss in config["losses"]]
        return cls(**{**config, "losses": losses})
