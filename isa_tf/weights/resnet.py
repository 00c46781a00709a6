"""ResNet: from the names of torchvision, OpenMMLab, timm and the official code to this package's.

All of them name the stages alike; they differ in the stem, and timm's "vd" shortcut has an average
pooling before its convolution.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from isa_tf.hints import StrPath
from isa_tf.weights import published
from isa_tf.weights.architectures import BASIC, DEPTHS
from isa_tf.weights.transfer import Report, Transfer, conv_layers

# The classifier, which a backbone has not.
LEFT_OVER = ("fc.", "head.fc.")
# Convolution and norm of each step of the stem.
_STEMS = {
    "OpenMMLab": (("stem.0", "stem.1"), ("stem.3", "stem.4"), ("stem.6", "stem.7")),
    "the official code": tuple((f"resinit.conv{i}", f"resinit.bn{i}") for i in (1, 2, 3)),
    "its ImageNet weights": tuple((f"conv{i}", f"bn{i}") for i in (1, 2, 3)),
    "timm": (("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1")),
    "torchvision": (("conv1", "bn1"),),
}
_BLOCKS = re.compile(r"layer(\d)\.(\d+)\.conv(\d)\.weight")
_LAYER = re.compile(r"stage(\d)_block(\d+)_(conv\d|shortcut)")
REVERSED = (2, 1, 0)  # BGR for RGB
# Who publishes ImageNet weights of ResNets, and a tensor that only their stem has.
SOURCES = {
    "torchvision": "conv1.weight",
    "openmmlab": "stem.0.weight",
    "timm": "conv1.0.weight",
}


def _stem(names):
    for stem in _STEMS.values():
        if all(f"{conv}.weight" in names for conv, _ in stem):
            return stem
    return None


def find(model: keras.Model, weights: StrPath) -> Path:
    """The file of a `ResNet`'s weights, as `isa_tf.weights.published.find` has it."""
    network = {name: getattr(model, name) for name in ("depth", "stem", "shortcut")}
    if model.filters != 64:
        network["filters"] = model.filters
    return published.find(weights, model, network, SOURCES)


def find_source(tensors: Mapping[str, np.ndarray]) -> str | None:
    """Which of `SOURCES` has a network whose tensors are called so, `None` where none has."""
    for source, mark in SOURCES.items():
        for prefix in ("", "backbone."):
            if {prefix + mark, f"{prefix}layer1.0.conv1.weight"} <= tensors.keys():
                return source
    return None


def find_depth(blocks: tuple[int, ...], bottleneck: bool) -> int | None:
    """The depth of the ResNet with these blocks in its stages, `None` where none is known."""
    for depth, known in DEPTHS.items():
        if known == blocks and (depth not in BASIC) == bottleneck:
            return depth
    return None


def find_prefix(tensors: Mapping[str, np.ndarray]) -> str:
    """What the names of a backbone begin with: "backbone." in a classifier or segmenter."""
    return "backbone." if any(name.startswith("backbone.") for name in tensors) else ""


def arguments(tensors: Mapping[str, np.ndarray], path: StrPath, prefix: str = "") -> dict[str, Any]:
    """What a checkpoint's tensors tell of its ResNet.

    Args:
        tensors: dict of arrays by name.
        path: where they come from, for the errors.
        prefix: str, what the names of the backbone begin with. Defaults to "".

    Returns:
        dict of arguments of `isa_tf.backbones.ResNet`: depth, stem, shortcut, filters.

    Raises:
        ValueError: where they are not those of a ResNet, saying why not.
    """
    names = {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
    found = [m for m in map(_BLOCKS.fullmatch, names) if m]
    blocks = tuple(
        len({m[2] for m in found if m[1] == str(stage)})  # one number a stage
        for stage in (1, 2, 3, 4)
    )
    bottleneck = any(m[3] == "3" for m in found)
    depth = find_depth(blocks, bottleneck)
    stem = _stem(names)
    if depth is None or stem is None:
        reason = "has no stem that is known" if depth else f"has {blocks} blocks in its stages"
        raise ValueError(f"{path}: these are no weights of a ResNet that is known: it {reason}")
    widths = tuple(int(names[f"{conv}.weight"].shape[0]) for conv, _ in stem)
    filters = int(names["layer1.0.conv1.weight"].shape[0])
    stems = {
        (filters,): "v1",
        (filters // 2, filters // 2, filters): "v1c",
        (filters, filters, 2 * filters): "deep",
    }
    if widths not in stems:
        raise ValueError(f"{path}: no ResNet that is known has a stem of {widths} filters")
    vd = "layer2.0.downsample.1.weight" in names and names["layer2.0.downsample.1.weight"].ndim == 4
    return {
        "depth": depth,
        "stem": stems[widths],
        "shortcut": "vd" if vd else "conv",
        "filters": filters,
    }


def place(layer: keras.layers.Layer) -> tuple[int, int, str]:
    """(stage, block, part) of a convolution in a block of a `ResNet`: ints from 1, "conv2" or
    "shortcut", ...
    """
    match = _LAYER.fullmatch(layer.name)
    assert match is not None  # the names are `ResNet`'s own
    stage, block, part = match.groups()
    return int(stage), int(block), part


def fill(transfer: Transfer, model: keras.Model, bgr: bool = False) -> None:
    """Says what each weight of a `ResNet` becomes.

    Args:
        transfer: `Transfer` whose names are the backbone's.
        model: `isa_tf.backbones.ResNet`.
        bgr: bool, whether the checkpoint's network reads BGR; the model reads RGB. Defaults to
            `False`.
    """
    prefix = transfer.prefix
    stem = _stem({name[len(prefix) :] for name in transfer.tensors})
    if stem is None:
        raise ValueError(f"{transfer.path}: no stem of a ResNet is known in it")
    transfer.keep_contexts(model)
    for layer in conv_layers(model):
        if layer.name.startswith("stem_conv"):
            i = int(layer.name.removeprefix("stem_conv"))
            if i > len(stem):
                raise ValueError(
                    f"{transfer.path}: {layer.name} of {model.name} has no tensor: the stem has "
                    f"{len(stem)} convolutions"
                )
            conv, norm = stem[i - 1]
            transfer.conv_norm(layer, conv, norm, inputs=REVERSED if bgr and i == 1 else None)
            continue
        stage, number, part = place(layer)
        block = f"layer{stage}.{number - 1}"
        if part == "shortcut":
            # timm's average pooling has a place in the sequence, even where it does nothing.
            first = 1 if f"{block}.downsample.2.weight" in transfer else 0
            transfer.conv_norm(
                layer, f"{block}.downsample.{first}", f"{block}.downsample.{first + 1}"
            )
        else:
            transfer.conv_norm(layer, f"{block}.{part}", f"{block}.bn{part[-1]}")


def load(model: keras.Model, tensors: Mapping[str, np.ndarray], path: StrPath) -> Report:
    """Gives a `ResNet` the ImageNet weights of torchvision, OpenMMLab, timm or the official code.

    Args:
        model: `isa_tf.backbones.ResNet`.
        tensors: dict of arrays by name, from `read_checkpoint`; those of a whole classifier or
            segmenter have the prefix "backbone.".
        path: where they come from, for the errors.

    Returns:
        `Report`; the tensors left over are those of a classifier or of a head.

    Raises:
        ValueError: where a weight is missing, has another shape, or a tensor has no place. The
            model is then as it was.
    """
    transfer = Transfer(tensors, path, prefix=find_prefix(tensors))
    found = arguments(tensors, path, transfer.prefix)
    for name, value in found.items():
        if getattr(model, name) != value:
            raise ValueError(
                f"{path}: these are the weights of a ResNet with {name} {value!r}; "
                f"{model.name} has {getattr(model, name)!r}"
            )
    fill(transfer, model)
    return transfer.finish(model, LEFT_OVER)
