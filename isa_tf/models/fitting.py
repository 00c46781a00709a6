"""What the models here refuse of `keras.Model`, and what they say then."""

from typing import Any, NoReturn

import keras

from isa_tf.models.quantize import refuse_to_quantize
from isa_tf.presets import PresetModel


class FittedModel(PresetModel):
    """A model whose labels are of pixels or of instances: Keras cannot weigh their classes.

    Raises:
        ValueError: by `fit` and `train_on_batch` for a `class_weight`, and by `quantize`, each with
            what there is instead.
    """

    def fit(self, *args: Any, class_weight: Any = None, **kwargs: Any) -> keras.callbacks.History:
        """`keras.Model.fit`; `class_weight` is refused: see `refuse_class_weight`.

        Args:
            class_weight: refused: of pixels, `class_weights` of a loss of `isa_tf.losses` are it.
            *args, **kwargs: of `keras.Model.fit`; sample weights of label maps are (B,) or
                (B, H, W).
        """
        refuse_class_weight(self, class_weight)
        return super().fit(*args, **kwargs)

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """`keras.Model.train_on_batch`; `class_weight` is refused, as in `fit`."""
        refuse_class_weight(self, class_weight)
        return super().train_on_batch(x, y, sample_weight, return_dict=return_dict)

    def quantize(self, mode: Any = None, config: Any = None, **kwargs: Any) -> NoReturn:
        """There is no such model; the error says what there is instead."""
        refuse_to_quantize(self)


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
