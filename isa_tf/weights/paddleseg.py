"""PaddleSeg: from the names of its ISANet, on a ResNet_vd, to this package's."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from isa_tf.hints import StrPath
from isa_tf.weights import resnet
from isa_tf.weights.mmseg import fill_attentions
from isa_tf.weights.transfer import PADDLE, Report, Transfer, conv_layers

_BLOCKS = re.compile(r"backbone\.bb_(\d)_(\d+)\.conv(\d)\._conv\.weight")
_LAYER = re.compile(r"stage(\d)_block(\d+)_(?:conv(\d)|(shortcut))")
_CLASSIFIERS = ("head.cls.1.", "head.aux.2.")
# What the tensors do not tell, as its authors trained.
SETTINGS = {
    "coordinates": "asymmetric",
    "backbone": {"mean": (127.5, 127.5, 127.5), "std": (127.5, 127.5, 127.5)},
}


def is_source(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether these look like the tensors of PaddleSeg's ISANet."""
    return "head.global_relation.key_project.0._conv.weight" in tensors


def arguments(tensors: Mapping[str, np.ndarray], path: StrPath) -> dict[str, Any]:
    """What the tensors tell of the network.

    Returns:
        dict with "backbone", the arguments of `ResNet`; "context_options", those of
        `InterlacedSparseAttention`; and those of `Segmenter`: num_classes, head_filters,
        auxiliary_level, auxiliary_filters.

    Raises:
        ValueError: where they are not those of an ISANet with a ResNet_vd.
    """
    if not is_source(tensors):
        raise ValueError(f"{path}: this is not PaddleSeg's ISANet: head.global_relation is missing")
    found = [m for m in map(_BLOCKS.fullmatch, tensors) if m]
    blocks = tuple(len({m[2] for m in found if m[1] == str(stage)}) for stage in range(4))
    depth = resnet.find_depth(blocks, bottleneck=True)
    if depth is None:
        raise ValueError(f"{path}: no ResNet_vd that is known has {blocks} blocks in its stages")
    return {
        "backbone": {
            "depth": depth,
            "stem": "v1c",
            "shortcut": "vd",
            "filters": int(tensors["backbone.conv1_3._conv.weight"].shape[0]),
            "output_stride": 8,
            "contract_dilation": False,
        },
        "num_classes": int(tensors["head.cls.1.weight"].shape[0]),
        "head_filters": int(tensors["head.in_conv._conv.weight"].shape[0]),
        "context_options": {
            "key_filters": int(tensors["head.global_relation.key_project.0._conv.weight"].shape[0])
        },
        "auxiliary_level": "c4",
        "auxiliary_filters": int(tensors["head.aux.0._conv.weight"].shape[0]),
    }


def load(
    model: keras.Model,
    tensors: Mapping[str, np.ndarray],
    path: StrPath,
    optional: Sequence[str] = (),
) -> Report:
    """Gives an `ISANet` the weights of PaddleSeg's.

    Args:
        model: `isa_tf.models.ISANet` with a `ResNet`.
        tensors: dict of arrays by name.
        path: where they come from, for the errors.
        optional: see `Transfer`.

    Returns:
        `Report`.

    Raises:
        ValueError: where a weight is missing, has another shape, or a tensor has no place. The
            model is then as it was.
    """
    transfer = Transfer(tensors, path, statistics=PADDLE, optional=optional)

    def pair(layer, name, **arguments):
        transfer.conv_norm(layer, f"{name}._conv", f"{name}._batch_norm", **arguments)

    transfer.keep_contexts(model.backbone)
    for layer in conv_layers(model.backbone):
        if layer.name.startswith("stem_conv"):
            pair(layer, f"backbone.conv1_{layer.name.removeprefix('stem_conv')}")
            continue
        match = _LAYER.fullmatch(layer.name)
        assert match is not None  # the names are `ResNet`'s own
        stage, block, conv, shortcut = match.groups()
        part = "short" if shortcut else f"conv{int(conv) - 1}"
        pair(layer, f"backbone.bb_{int(stage) - 1}_{int(block) - 1}.{part}")

    pair(model.get_layer("head"), "head.in_conv")
    fill_attentions(transfer, model.context, "head.", pair)
    pair(model.context.fusion, "head.out_conv")
    transfer.conv(model.get_layer("logits_classifier"), "head.cls.1")
    pair(model.get_layer("auxiliary"), "head.aux.0")
    transfer.conv(model.get_layer("auxiliary_logits_classifier"), "head.aux.2")
    return transfer.finish(model, _CLASSIFIERS if optional else ())
