"""Losses for dense prediction, of the global batch: that of all replicas together."""

import keras
import tensorflow as tf

from isa_tf.ops import pixel_weights, replicas_summed, sum_over_replicas

_MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")


@keras.saving.register_keras_serializable("isa_tf")
class PixelCrossEntropy(keras.losses.Loss):
    """Softmax cross-entropy per pixel, with a label to ignore and class weights.

    Under a `tf.distribute` strategy it is the loss of the global batch: the sum over the pixels of
    all replicas, divided by what counts on all of them. Each replica gives its share, its own sum
    over that divisor. So the shares' sum is the loss, and the sum of their gradients, which
    optimizers take, is its gradient, wherever the pixels lie that count. Under
    `isa_tf.ops.alone` a replica gives the loss of its own batch by the number of replicas, as
    Keras losses do.

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
        ValueError: for an unknown average or reduction, negative class weights, or as many class
            weights as there are no classes.

    Example:

    >>> loss = PixelCrossEntropy()
    >>> float(loss([[[0, 255]]], [[[[9.0, 0.0], [0.0, 9.0]]]])) < 1e-3
    True
    """

    def __init__(
        self,
        ignore_label=255,
        class_weights=None,
        average="valid",
        name="pixel_cross_entropy",
        reduction="sum_over_batch_size",
    ):
        super().__init__(name=name, reduction=reduction)
        if average not in ("valid", "all"):
            raise ValueError(f'average must be "valid" or "all", got {average!r}')
        if class_weights is not None and min(class_weights) < 0:
            raise ValueError(f"class_weights must not be negative, got {class_weights}")
        self.ignore_label = ignore_label
        self.class_weights = None if class_weights is None else tuple(map(float, class_weights))
        self.average = average

    def __call__(self, y_true, y_pred, sample_weight=None):
        with keras.name_scope(self.name):
            labels, logits = _labels(y_true), _logits(y_pred)
            weights = _weights(sample_weight, labels, logits.dtype)
            losses = _weigh(self.call(labels, logits), weights)
            if self.reduction in (None, "none"):
                return losses
            total = tf.reduce_sum(losses)
            if self.reduction not in _MEANS:
                return total
            if self.average == "all":
                counts = tf.ones_like(losses)
            else:
                counts = self._pixel_weights(labels, logits)
            if self.reduction == "mean_with_sample_weight":
                counts = _weigh(counts, weights)
            divisor = sum_over_replicas(tf.stop_gradient(tf.reduce_sum(counts)))
            return tf.math.divide_no_nan(total, divisor) * _part_of_one(total.dtype)

    def call(self, y_true, y_pred):
        """The losses of the pixels, (B, H, W), times the weights of their classes."""
        labels, logits = _labels(y_true), _logits(y_pred)
        losses = _cross_entropies(tf.where(labels != self.ignore_label, labels, 0), logits)
        return _weigh(losses, self._pixel_weights(labels, logits))

    def _pixel_weights(self, labels, logits):
        """(B, H, W): 0 for an ignored pixel, for others the weight of the class."""
        classes = logits.shape[-1]
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise ValueError(f"{len(self.class_weights)} class_weights for {classes} classes")
        valid = labels != self.ignore_label
        weights = tf.cast(valid, logits.dtype)
        if self.class_weights is not None:
            table = tf.constant(self.class_weights, logits.dtype)
            weights *= tf.gather(table, tf.where(valid, labels, 0))
        return weights

    def get_config(self):
        return {
            "name": self.name,
            "ignore_label": self.ignore_label,
            "class_weights": self.class_weights,
            "average": self.average,
            "reduction": self.reduction,
        }


@keras.saving.register_keras_serializable("isa_tf")
class SoftJaccard(keras.losses.Loss):
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

    Shapes:
        labels (B, H, W) ints, logits (B, H, W, classes), sample weights (B,), for images, or
        (B, H, W), for pixels, which they weigh in every sum -> scalar in [0, 1], float64 for
        float64 logits, else float32; 0 for a batch without any pixel that counts.

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

    def __call__(self, y_true, y_pred, sample_weight=None):
        with keras.name_scope(self.name):
            return self.call(y_true, y_pred, sample_weight)

    def call(self, y_true, y_pred, sample_weight=None):
        labels, logits = _labels(y_true), _logits(y_pred)
        classes = logits.shape[-1]
        counts = labels != self.ignore_label
        weights = _weights(sample_weight, labels, logits.dtype)
        if weights is not None:
            counts &= weights != 0
            weights = tf.reshape(weights, (-1, 1))
        labels, counts = tf.reshape(labels, (-1,)), tf.reshape(counts, (-1,))
        logits = tf.reshape(logits, (-1, classes))
        # A pixel that does not count may have infinite or NaN logits.
        scores = tf.nn.softmax(tf.where(counts[:, None], logits, 0.0))
        scores *= tf.cast(counts, logits.dtype)[:, None]
        truth = tf.one_hot(tf.where(counts, labels, -1), classes, dtype=logits.dtype)
        if weights is not None:
            scores, both = _weigh(scores, weights), _weigh(scores * truth, weights)
            truth = _weigh(truth, weights)
        else:
            both = scores * truth
        sums = tf.stack([tf.reduce_sum(x, axis=0) for x in (both, scores, truth)])
        both, scores, truth = tf.unstack(sum_over_replicas(sums))
        iou = tf.math.divide_no_nan(both, scores + truth - both)
        present = tf.cast(truth > 0, logits.dtype)
        missed = tf.math.divide_no_nan(tf.reduce_sum(present * (1.0 - iou)), tf.reduce_sum(present))
        return missed / tf.distribute.get_strategy().num_replicas_in_sync

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
        what the losses read, sample weights too -> scalar.

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

    def __call__(self, y_true, y_pred, sample_weight=None):
        with keras.name_scope(self.name):
            return self.call(y_true, y_pred, sample_weight)

    def call(self, y_true, y_pred, sample_weight=None):
        terms = zip(self.losses, self.weights, strict=True)
        return tf.add_n([weight * loss(y_true, y_pred, sample_weight) for loss, weight in terms])

    def get_config(self):
        losses = [keras.saving.serialize_keras_object(loss) for loss in self.losses]
        return {"name": self.name, "losses": losses, "weights": self.weights}

    @classmethod
    def from_config(cls, config):
        losses = [keras.saving.deserialize_keras_object(loss) for loss in config["losses"]]
        return cls(**{**config, "losses": losses})


def _labels(y_true):
    return tf.cast(tf.convert_to_tensor(y_true), tf.int32)


def _logits(y_pred):
    logits = tf.convert_to_tensor(y_pred)
    return logits if logits.dtype == tf.float64 else tf.cast(logits, tf.float32)


def _weights(sample_weight, labels, dtype):
    return None if sample_weight is None else pixel_weights(sample_weight, labels, dtype)


def _weigh(values, weights):
    """What has no weight counts nothing, even where it is infinite or not a number."""
    return values if weights is None else tf.math.multiply_no_nan(values, weights)


def _part_of_one(dtype):
    """What to multiply a loss by that is divided by what is summed over the replicas.

    Keras adds up the losses of the replicas; one that saw its own batch alone gives a part.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return tf.constant(replicas_summed() / replicas, dtype)


@tf.custom_gradient
def _cross_entropies(labels, logits):
    """As `tf.nn.sparse_softmax_cross_entropy_with_logits`, but for its gradient.

    Where none comes from above, there is none, even if the logits are infinite or NaN: TensorFlow
    multiplies with the softmax, and 0 times NaN is NaN.
    """
    classes = logits.shape[-1]
    losses, slopes = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(
        features=tf.reshape(logits, (-1, classes)), labels=tf.reshape(labels, (-1,))
    )

    def gradient(upstream):
        upstream = tf.reshape(upstream, (-1, 1))
        return None, tf.reshape(tf.math.multiply_no_nan(slopes, upstream), tf.shape(logits))

    return tf.reshape(losses, tf.shape(labels)), gradient
