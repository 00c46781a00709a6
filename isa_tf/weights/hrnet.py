"""HRNet: from the names of its authors, which OpenMMLab and timm have kept, to this package's."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from isa_tf.hints import StrPath
from isa_tf.weights import published
from isa_tf.weights.transfer import Report, Transfer, conv_layers

# The classifier, which a backbone has not.
LEFT_OVER = ("incre_modules.", "downsamp_modules.", "final_layer.", "classifier.")
# Who publishes ImageNet weights of HRNets: all by the same names.
SOURCES = ("hrnet",)
_MARK = "stage2.0.branches.0.0.conv1.weight"
_BLOCK = re.compile(r"stage(\d)\.(\d+)\.branches\.(\d)\.(\d+)\.conv1\.weight")
_FIRST_BLOCK = re.compile(r"layer1\.(\d+)\.conv1\.weight")


def find(model: keras.Model, weights: StrPath) -> Path:
    """The file of an `HRNet`'s weights, as `isa_tf.weights.published.find` has it."""
    network = {"width": model.width}
    usual = {"modules": (1, 4, 3), "blocks": 4, "filters": 64}
    network |= {name: getattr(model, name) for name in usual if getattr(model, name) != usual[name]}
    return published.find(weights, model, network, SOURCES)


def find_prefix(tensors: Mapping[str, np.ndarray]) -> str:
    """What the names of a backbone begin with: "" in a classifier, "backbone." in a segmenter."""
    return next((name.removesuffix(_MARK) for name in tensors if name.endswith(_MARK)), "")


def find_source(tensors: Mapping[str, np.ndarray]) -> str | None:
    """ "hrnet" where the tensors of an HRNet are called so, else `None`."""
    return SOURCES[0] if any(name.endswith(_MARK) for name in tensors) else None


def arguments(tensors: Mapping[str, np.ndarray], path: StrPath, prefix: str = "") -> dict[str, Any]:
    """What a checkpoint's tensors tell of its HRNet.

    Args:
        tensors: dict of arrays by name.
        path: where they come from, for the errors.
        prefix: str, what the names of the backbone begin with. Defaults to "".

    Returns:
        dict of arguments of `isa_tf.backbones.HRNet`: width, modules, blocks, filters.

    Raises:
        ValueError: where they are not those of an HRNet, saying why not.
    """
    names = {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
    refused = f"{path}: these are no weights of an HRNetV2 that is known"
    if _MARK not in names or "layer1.0.conv1.weight" not in names:
        raise ValueError(f"{refused}: {prefix}{_MARK} or layer1.0.conv1.weight is missing")
    found = [m for m in map(_BLOCK.fullmatch, names) if m]
    modules = tuple(len({m[2] for m in found if m[1] == stage}) for stage in "234")
    branches: dict[tuple[str, str, str], set[str]] = {}  # blocks of each
    for stage, module, branch, block in (m.groups() for m in found):
        branches.setdefault((stage, module, branch), set()).add(block)
    blocks = {len(numbers) for numbers in branches.values()}
    blocks.add(sum(bool(_FIRST_BLOCK.fullmatch(name)) for name in names))
    if 0 in modules or len(blocks) > 1:
        reason = f"{modules} modules in its stages, and {sorted(blocks)} blocks in their branches"
        raise ValueError(f"{refused}: it has {reason}")
    return {
        "width": int(names[_MARK].shape[0]),
        "modules": modules,
        "blocks": blocks.pop(),
        "filters": int(names["layer1.0.conv1.weight"].shape[0]),
    }


def levels(width: int) -> dict[int, str]:
    """The maps of `isa_tf.backbones.HRNet` by their channels.

    >>> levels(18)
    {18: 'c2', 36: 'c3', 72: 'c4', 144: 'c5', 270: 'concatenated'}
    """
    return {**{width << i: f"c{i + 2}" for i in range(4)}, 15 * width: "concatenated"}


def names_of(layer: str) -> tuple[str, str]:
    """What convolution and normalisation of a layer of `HRNet` are called by its authors.

    Args:
        layer: str, the layer's name, in which all is counted from 1.

    Example:

    >>> names_of("stage3_module2_fuse3_from1_conv2")
    ('stage3.1.fuse_layers.2.0.1.0', 'stage3.1.fuse_layers.2.0.1.1')
    """
    n = {part: int(number) for part, number in re.findall(r"([a-z]+)(\d+)", layer)}
    if layer.startswith("stem"):
        return f"conv{n['conv']}", f"bn{n['conv']}"
    if "transition" in n:
        place = f"transition{n['transition']}.{n['branch'] - 1}"
        if n["branch"] > 1:  # a new scale: a sequence of strided convolutions, here of one
            place += ".0"
        return f"{place}.0", f"{place}.1"
    if "fuse" in n:
        place = f"stage{n['stage']}.{n['module'] - 1}.fuse_layers.{n['fuse'] - 1}.{n['from'] - 1}"
        if "conv" in n:
            place += f".{n['conv'] - 1}"
        return f"{place}.0", f"{place}.1"
    place = f"layer1.{n['block'] - 1}"
    if "module" in n:
        branch = f"branches.{n['branch'] - 1}.{n['block'] - 1}"
        place = f"stage{n['stage']}.{n['module'] - 1}.{branch}"
    if "conv" in n:
        return f"{place}.conv{n['conv']}", f"{place}.bn{n['conv']}"
    return f"{place}.downsample.0", f"{place}.downsample.1"


def fill(transfer: Transfer, model: keras.Model) -> None:
    """Says what each weight of an `HRNet` becomes.

    Args:
        transfer: `Transfer` whose names are the backbone's.
        model: `isa_tf.backbones.HRNet`.
    """
    transfer.keep_contexts(model)
    for layer in conv_layers(model):
        transfer.conv_norm(layer, *names_of(layer.name))


def load(model: keras.Model, tensors: Mapping[str, np.ndarray], path: StrPath) -> Report:
    """Gives an `HRNet` the weights of its authors, OpenMMLab or timm.

    Args:
        model: `isa_tf.backbones.HRNet`.
        tensors: dict of arrays by name, from `read_checkpoint`; those of a whole segmenter have a
            prefix, such as "backbone.".
        path: where they come from, for the errors.

    Returns:
        `Report`; the tensors left over are those of a classifier.

    Raises:
        ValueError: where a weight is missing, has another shape, or a tensor has no place. The
            model is then as it was.
    """
    transfer = Transfer(tensors, path, prefix=find_prefix(tensors))
    for name, value in arguments(tensors, path, transfer.prefix).items():
        if getattr(model, name) != value:
            raise ValueError(
                f"{path}: these are the weights of an HRNet with {name} {value!r}; "
                f"{model.name} has {getattr(model, name)!r}"
            )
    fill(transfer, model)
    return transfer.finish(model, LEFT_OVER)
