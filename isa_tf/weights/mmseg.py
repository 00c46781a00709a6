"""mmsegmentation: from the names of its ISANet to this package's."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from isa_tf.hints import StrPath
from isa_tf.weights import hrnet, resnet
from isa_tf.weights.transfer import Report, Transfer

_ISA = "decode_head."
_CLASSIFIERS = ("decode_head.conv_seg.", "auxiliary_head.conv_seg.")
# What the tensors do not tell, as its authors trained.
SETTINGS = {"coordinates": "half_pixel"}


def is_source(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether these look like the tensors of mmsegmentation's ISANet."""
    return f"{_ISA}global_relation.key_project.0.conv.weight" in tensors


def arguments(tensors: Mapping[str, np.ndarray], path: StrPath) -> dict[str, Any]:
    """What the tensors tell of the network.

    Returns:
        dict with "backbone", the arguments of `ResNet` or `HRNet`; "context_options", those of
        `InterlacedSparseAttention`; and those of `Segmenter`: num_classes, head_filters,
        auxiliary_level, auxiliary_filters.

    Raises:
        ValueError: where they are not those of an ISANet with a ResNet or an HRNet, whose maps are
            concatenated.
    """
    if not is_source(tensors):
        raise ValueError(
            f"{path}: this is not mmsegmentation's ISANet: {_ISA}global_relation is missing"
            + _other_head(tensors)
        )
    auxiliary = tensors.get("auxiliary_head.convs.0.conv.weight")
    if hrnet.find_source(tensors):
        backbone = {**hrnet.arguments(tensors, path, "backbone."), "fuse_by": "factor"}
        levels = hrnet.levels(backbone["width"])
    else:
        found = resnet.arguments(tensors, path, "backbone.")
        backbone = {**found, "output_stride": 8, "contract_dilation": True}
        levels = {}
    return {
        "backbone": backbone,
        "num_classes": int(tensors["decode_head.conv_seg.weight"].shape[0]),
        "head_filters": int(tensors["decode_head.in_conv.conv.weight"].shape[0]),
        "context_options": {
            "key_filters": int(tensors[f"{_ISA}global_relation.key_project.0.conv.weight"].shape[0])
        },
        "auxiliary_level": None,
        **(
            {
                "auxiliary_level": levels.get(auxiliary.shape[1], "c4"),
                "auxiliary_filters": int(auxiliary.shape[0]),
            }
            if auxiliary is not None
            else {}
        ),
    }


def _other_head(tensors):
    parts = sorted({m[1] for m in map(re.compile(r"decode_head\.(\w+)").match, tensors) if m})
    return f"; its head has {', '.join(parts[:8])}" if parts else ""


def fill_attentions(
    transfer: Transfer, context: keras.layers.Layer, head: str, pair: Callable[..., None]
) -> None:
    """Says what the attentions become, which PaddleSeg names as mmsegmentation does.

    The bias of the value convolution passes through the attention, whose rows sum to 1, and goes
    into the normalisation of the convolution behind it.

    Args:
        transfer: `Transfer`.
        context: `InterlacedSparseAttention` of one partition, long then short.
        head: str, what the names of the head begin with.
        pair: function of a `ConvNormAct` and the name of convolution and norm together; passes
            `shift` on to `Transfer.conv_norm`.
    """
    for layer, name in zip(context.attentions, ("global_relation", "local_relation"), strict=True):
        name = f"{head}{name}"
        for i in (0, 1):
            pair(layer.query[i], f"{name}.query_project.{i}")
            pair(layer.key[i], f"{name}.key_project.{i}")
        transfer.conv(layer.value, f"{name}.value_project")
        bias = transfer.take(f"{name}.value_project.bias", layer.output_conv.norm.moving_mean)
        pair(layer.output_conv, f"{name}.output_project", shift=bias)


def load(
    model: keras.Model,
    tensors: Mapping[str, np.ndarray],
    path: StrPath,
    optional: Sequence[str] = (),
) -> Report:
    """Gives an `ISANet` the weights of mmsegmentation's.

    Args:
        model: `isa_tf.models.ISANet` with a `ResNet` or an `HRNet`.
        tensors: dict of arrays by name.
        path: where they come from, for the errors.
        optional: see `Transfer`; ("classifier",) leaves other classes' classifiers as they are.

    Returns:
        `Report`.

    Raises:
        ValueError: where a weight is missing, has another shape, or a tensor has no place. The
            model is then as it was.
    """
    transfer = Transfer(tensors, path, optional=optional)
    backbone = Transfer(tensors, path, prefix="backbone.")
    (hrnet if hrnet.find_source(tensors) else resnet).fill(backbone, model.backbone)
    transfer.include(backbone)

    def conv_module(layer, name, **arguments):
        transfer.conv_norm(layer, f"{name}.conv", f"{name}.bn", **arguments)

    conv_module(model.get_layer("head"), "decode_head.in_conv")
    fill_attentions(transfer, model.context, _ISA, conv_module)
    conv_module(model.context.fusion, "decode_head.out_conv")
    transfer.conv(model.get_layer("logits_classifier"), "decode_head.conv_seg")
    if model.auxiliary_level is not None:
        conv_module(model.get_layer("auxiliary"), "auxiliary_head.convs.0")
        transfer.conv(model.get_layer("auxiliary_logits_classifier"), "auxiliary_head.conv_seg")
        return transfer.finish(model, _CLASSIFIERS if optional else ())
    return transfer.finish(model, ("auxiliary_head.", *(_CLASSIFIERS if optional else ())))
