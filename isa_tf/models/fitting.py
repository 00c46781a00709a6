"""What is said to those who would have `fit` weigh classes."""

from typing import Any

import keras


def refuse_class_weight(model: keras.Model, class_weight: Any) -> None:
    """Raises ValueError for a `class_weight`, which Keras knows for one label an image alone.

    Of label maps (B, H, W) it takes the argmax along their rows for the class.

    Args:
        model: `keras.Model`.
        class_weight: what `fit` was given; `None` for nothing.

    Example:

    >>> refuse_class_weight(model, {0: 1.0, 1: 5.0})
    Traceback (most recent call last):
    ValueError: segmenter...: Keras's class_weight is for one label an image; for labels of pixels
    give the loss class_weights, such as isa_tf.losses.PixelCrossEntropy(class_weights=[1.0, 5.0]),
    or a config train.class_weights
    """
    if class_weight is None:
        return
    if hasattr(model, "task"):
        raise ValueError(f"{model.name}: the classes of instances cannot be weighed, class_weight")
    weights = []
    if isinstance(class_weight, dict) and all(isinstance(key, int) for key in class_weight):
        weights = [class_weight.get(i, 1.0) for i in range(max(class_weight, default=-1) + 1)]
    told = weights if 0 < len(weights) <= 8 else "[...]"
    raise ValueError(
        f"{model.name}: Keras's class_weight is for one label an image; for labels of pixels give "
        f"the loss class_weights, such as isa_tf.losses.PixelCrossEntropy(class_weights={told}), "
        "or a config train.class_weights"
    )
