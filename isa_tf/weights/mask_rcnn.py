"""Mask R-CNN: what the name maps of its sources share, pyramid and heads by each one's names."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from isa_tf.hints import StrPath
from isa_tf.layers import ConvNormAct
from isa_tf.weights.transfer import Report, Transfer

# The kind of model that a source with this attribute is of; see `isa_tf.weights.sources`.
TASK = "instance_segmentation"
# What the tensors of Detectron2 and mmdetection do not tell, as their models are trained: losses of
# boxes are absolute errors.
DETECTRON = {
    "anchors": "detectron",
    "aligned": True,
    "sampling_ratio": 0,
    "proposals_after": (1000, 1000),
    "beta": 0.0,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Names:
    """How a source calls the layers of pyramid and heads.

    A convolution's names are several, of which a checkpoint has one: spellings of several versions.
    Where it may have a normalisation, the two are a pair, (names, name).

    Attributes:
        inner: function of a pyramid's level, 2 .. 5, to such a pair: the 1x1 convolution.
        outer: likewise, the 3x3 convolution.
        rpn_conv: function of a convolution's number, from 1, to its names, in the proposal head.
        rpn_logits: str.
        rpn_codes: str.
        box_conv: function of a number, from 1, to a pair.
        box_dense: function of a number, from 1, and of how many convolutions come before it, to a
            name.
        box_logits: str.
        box_codes: str.
        mask_conv: function of a number, from 1, to a pair.
        mask_upsample: str.
        mask_logits: str.
        background_first: bool, whether the background's logit is the first, and codes and masks
            have a place for it; else it is the last, and they have none. Defaults to `False`.
    """

    inner: Callable[[int], tuple[Sequence[str], str]]
    outer: Callable[[int], tuple[Sequence[str], str]]
    rpn_conv: Callable[[int], Sequence[str]]
    rpn_logits: str
    rpn_codes: str
    box_conv: Callable[[int], tuple[Sequence[str], str]]
    box_dense: Callable[[int, int], str]
    box_logits: str
    box_codes: str
    mask_conv: Callable[[int], tuple[Sequence[str], str]]
    mask_upsample: str
    mask_logits: str
    background_first: bool = False

    @property
    def classifiers(self) -> tuple[str, ...]:
        """How the names of the tensors begin that know of classes."""
        return tuple(f"{name}." for name in (self.box_logits, self.box_codes, self.mask_logits))


def _known(tensors, names):
    """The first of several names of a layer by which there is a weight, else the first of all."""
    return next((name for name in names if f"{name}.weight" in tensors), names[0])


def _weights(tensors, names_of):
    """The weights of `names_of(1)`, `names_of(2)`, ..., as far as there are such."""
    found = []
    while (name := f"{_known(tensors, names_of(len(found) + 1))}.weight") in tensors:
        found.append(tensors[name])
    return found


def arguments(tensors: Mapping[str, np.ndarray], path: StrPath, names: Names) -> dict[str, Any]:
    """What the tensors tell of pyramid and heads.

    Args:
        tensors: dict of arrays by name.
        path: where they come from, for the errors.
        names: `Names`.

    Returns:
        dict of arguments of `isa_tf.models.MaskRCNN`: num_classes, filters, normalized_heads,
        rpn_convs, box_convs, box_units, mask_convs.

    Raises:
        ValueError: where a part is missing.
    """
    outer, norm = names.outer(2)
    outer = _known(tensors, outer)
    for name in (names.rpn_logits, names.box_logits, names.mask_logits, outer):
        if f"{name}.weight" not in tensors:
            raise ValueError(f"{path}: this is no Mask R-CNN with a pyramid: {name} is missing")
    box_convs = len(_weights(tensors, lambda i: names.box_conv(i)[0]))
    dense = _weights(tensors, lambda i: [names.box_dense(i, box_convs)])
    return {
        "num_classes": int(tensors[f"{names.box_logits}.weight"].shape[0]) - 1,
        "filters": int(tensors[f"{outer}.weight"].shape[0]),
        "normalized_heads": f"{norm}.weight" in tensors,
        "rpn_convs": len(_weights(tensors, names.rpn_conv)),
        "box_convs": box_convs,
        "box_units": tuple(int(weight.shape[0]) for weight in dense),
        "mask_convs": len(_weights(tensors, lambda i: names.mask_conv(i)[0])),
    }


def load(
    model: keras.Model,
    tensors: Mapping[str, np.ndarray],
    path: StrPath,
    names: Names,
    backbone: Transfer,
    optional: Sequence[str] = (),
    left_over: Sequence[str] = (),
) -> Report:
    """Gives a `MaskRCNN` the weights of another's.

    Args:
        model: `isa_tf.models.MaskRCNN`.
        tensors: dict of arrays by name.
        path: where they come from, for the errors.
        names: `Names`.
        backbone: `Transfer` of the backbone, filled.
        optional: whether what knows of classes may stay as it is, where it doesn't fit: anything
            true, see `Transfer`.
        left_over: how names of tensors begin that need no place, beside those.

    Returns:
        `Report`.

    Raises:
        ValueError: where a weight is missing, has another shape, or a tensor has no place. The
            model is then as it was.
    """
    transfer = Transfer(tensors, path)
    transfer.include(backbone)
    # All that this one is told of may keep its value.
    classifiers = Transfer(tensors, path, optional=("",) if optional else ())

    def brick(layer, convs, norm):
        conv = _known(tensors, convs)
        if isinstance(layer, ConvNormAct):
            transfer.conv_norm(layer, conv, norm)
        else:
            transfer.conv(layer, conv)

    pyramid, rpn, box, mask = (
        model.get_layer(name) for name in ("pyramid", "rpn_head", "box_head", "mask_head")
    )
    for level in (2, 3, 4, 5):
        brick(pyramid.get_layer(f"inner{level}"), *names.inner(level))
        brick(pyramid.get_layer(f"outer{level}"), *names.outer(level))
    for i in range(1, model.rpn_convs + 1):
        transfer.conv(rpn.get_layer(f"conv{i}"), _known(tensors, names.rpn_conv(i)))
    transfer.conv(rpn.get_layer("logits"), names.rpn_logits)
    transfer.conv(rpn.get_layer("codes"), names.rpn_codes)
    for i in range(1, model.box_convs + 1):
        brick(box.get_layer(f"conv{i}"), *names.box_conv(i))
    for i in range(1, len(model.box_units) + 1):
        # The first reads a map, which is laid out by channels there and by positions here.
        shape = box.input_shape[1:] if i == 1 else None
        name = names.box_dense(i, model.box_convs)
        transfer.dense(box.get_layer(f"dense{i}"), name, read_map=shape)
    for i in range(1, model.mask_convs + 1):
        brick(mask.get_layer(f"conv{i}"), *names.mask_conv(i))
    transfer.conv(mask.get_layer("upsample"), names.mask_upsample)

    first = int(names.background_first)

    def background_first(count):
        return np.arange(count) if first else np.r_[count - 1, 0 : count - 1]

    # A model without dense layers would read the map here; `arguments` finds some.
    classifiers.dense(box.get_layer("logits"), names.box_logits, outputs=background_first)
    classifiers.dense(
        box.get_layer("codes"), names.box_codes, outputs=lambda n: np.arange(4 * first, n)
    )
    classifiers.conv(
        mask.get_layer("logits"), names.mask_logits, outputs=lambda n: np.arange(first, n)
    )
    transfer.include(classifiers)
    return transfer.finish(model, (*left_over, *(names.classifiers if optional else ())))
