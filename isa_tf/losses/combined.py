"""Losses put together, and losses by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import keras
import tensorflow as tf

from isa_tf.losses.base import PixelLoss
from isa_tf.losses.cross_entropy import (
    BoundaryCrossEntropy,
    FocalLoss,
    OHEMCrossEntropy,
    PixelCrossEntropy,
)
from isa_tf.losses.overlap import DiceLoss, LovaszSoftmax, SoftJaccard
from isa_tf.names import Registry

_LOSSES = Registry("loss")
for _name, _class in {
    "cross_entropy": PixelCrossEntropy,
    "ohem": OHEMCrossEntropy,
    "focal": FocalLoss,
    "boundary": BoundaryCrossEntropy,
    "jaccard": SoftJaccard,
    "dice": DiceLoss,
    "lovasz": LovaszSoftmax,
}.items():
    _LOSSES.register(_name, _class)


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

    def __init__(
        self,
        losses: Sequence[Any],
        weights: Sequence[float] | None = None,
        name: str = "sum_of_losses",
    ) -> None:
        super().__init__(name=name)
        weights = [1.0] * len(losses) if weights is None else list(weights)
        if not losses or len(weights) != len(losses):
            raise ValueError(f"{len(weights)} weights for {len(losses)} losses")
        self.losses = list(losses)
        self.weights = weights

    def __call__(
        self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None
    ) -> tf.Tensor:
        with keras.name_scope(self.name):
            return self.call(y_true, y_pred, sample_weight)

    def call(
        self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None
    ) -> tf.Tensor:
        terms = zip(self.losses, self.weights, strict=True)
        return tf.add_n([weight * loss(y_true, y_pred, sample_weight) for loss, weight in terms])

    def get_config(self) -> dict[str, Any]:
        losses = [keras.saving.serialize_keras_object(loss) for loss in self.losses]
        return {"name": self.name, "losses": losses, "weights": self.weights}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        losses = [keras.saving.deserialize_keras_object(loss) for loss in config["losses"]]
        return cls(**{**config, "losses": losses})


def register(
    name: str, factory: Callable[..., keras.losses.Loss] | None = None
) -> Callable[..., Any]:
    """Gives a loss of one's own a name, which `create` and configs then know.

    Args:
        name: str.
        factory: the loss's class, or a function of `ignore_label` and options that makes one.
            Defaults to `None`, for a decorator.

    Returns:
        `factory`.

    Raises:
        ValueError: for a name that is taken.

    Example:

    >>> @isa_tf.losses.register("sharp_focal")
    ... class SharpFocal(isa_tf.losses.FocalLoss):
    ...     def __init__(self, gamma=4.0, **kwargs):
    ...         super().__init__(gamma=gamma, **kwargs)
    >>> isa_tf.losses.create("sharp_focal").gamma
    4.0
    """
    return _LOSSES.register(name, factory)


def list_names() -> list[str]:
    """The names that `create` takes: list of str."""
    return list(_LOSSES)


def create(
    name: str,
    ignore_label: int = 255,
    class_weights: Sequence[float] | None = None,
    average: str = "valid",
    **options: Any,
) -> keras.losses.Loss:
    """Makes a loss by name.

    Args:
        name: str, one of `list_names()`: "cross_entropy", "ohem", "focal", "boundary"; "jaccard",
            "dice", "lovasz"; or a registered one.
        ignore_label: int. Defaults to 255.
        class_weights, average: of losses that are means over pixels, see `PixelLoss`; those of the
            overlap of classes, which weigh them alike already, are left as they are (`combine`
            gives them class weights by their own options). Default to `None` and "valid".
        **options: further arguments of the loss, such as `threshold` of "ohem".

    Raises:
        ValueError: for an unknown name, with the nearest, and for what the loss refuses.

    Example:

    >>> create("ohem", threshold=0.9).threshold
    0.9
    """
    of_pixels = {"class_weights": class_weights, "average": average}
    return _create(name, of_pixels, {"ignore_label": ignore_label, **options})


def _create(name, of_pixels, options):
    factory = _LOSSES[name]
    if isinstance(factory, type) and issubclass(factory, PixelLoss):
        options = {**of_pixels, **options}
    try:
        return factory(**options)
    except TypeError as error:
        raise ValueError(f"loss {name!r}: {error}") from error


def combine(
    weights: Mapping[str, float],
    options: Mapping[str, Any] | None = None,
    ignore_label: int = 255,
    class_weights: Sequence[float] | None = None,
    average: str = "valid",
) -> keras.losses.Loss:
    """The weighted sum of losses by name, as a config has it.

    Args:
        weights: dict from name to float; what has weight 0 is left out.
        options: dict from name to a dict of that loss's options, which come before what is shared.
            Defaults to `None`.
        ignore_label: int. Defaults to 255.
        class_weights, average: see `create`. Default to `None` and "valid".

    Returns:
        A `keras.losses.Loss`: the one loss, where its weight is 1; else a `SumOfLosses`.

    Raises:
        ValueError: for no loss at all, options of a loss that is not there, or as `create`.

    Example:

    >>> loss = combine({"cross_entropy": 1.0, "jaccard": 0.5})
    >>> [each.name for each in loss.losses]
    ['pixel_cross_entropy', 'soft_jaccard']
    """
    options = dict(options or {})
    weights = {name: float(weight) for name, weight in weights.items() if weight}
    if not weights:
        raise ValueError(f"a training needs a loss; known: {', '.join(list_names())}")
    if unused := sorted(set(options) - set(weights)):
        raise ValueError(f"options of losses that are not there: {', '.join(unused)}")
    of_pixels = {"class_weights": class_weights, "average": average}
    losses = [
        _create(name, of_pixels, {"ignore_label": ignore_label, **options.get(name, {})})
        for name in weights
    ]
    if list(weights.values()) == [1.0]:
        return losses[0]
    return SumOfLosses(losses, list(weights.values()))
