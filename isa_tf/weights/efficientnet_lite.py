"""EfficientNet-Lite: from the names of its PyTorch port to this package's layers."""

import re

from isa_tf.layers.conv import ConvNormAct
from isa_tf.weights.transfer import Report, Transfer

# The classifier, which a backbone has not.
LEFT_OVER = ("_conv_head.", "_bn1.", "_fc.")
_NORM_OF = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}
_BLOCK = re.compile(r"(stage\d+_block\d+)_(expand|depthwise|project)")


def load(model, tensors, path) -> Report:
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
    blocks = []
    for layer in model.layers:
        if not isinstance(layer, ConvNormAct):
            continue
        if layer.name == "stem":
            transfer.conv_norm(layer, "_conv_stem", "_bn0")
            continue
        block, part = _BLOCK.fullmatch(layer.name).groups()
        if block not in blocks:
            blocks.append(block)
        prefix = f"_blocks.{blocks.index(block)}."
        transfer.conv_norm(layer, f"{prefix}_{part}_conv", prefix + _NORM_OF[part])
    return transfer.finish(model, LEFT_OVER)
