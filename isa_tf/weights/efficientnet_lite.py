"""EfficientNet-Lite: from the names of its PyTorch port to this package's layers."""

import re

import numpy as np

from isa_tf.layers.conv import ConvNormAct

# The classifier, which a backbone has not.
LEFT_OVER = ("_conv_head.", "_bn1.", "_fc.")
_NORM_OF = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}
_BLOCK = re.compile(r"(stage\d+_block\d+)_(expand|depthwise|project)")


def name_map(model) -> dict[str, tuple[str, str]]:
    """For each `ConvNormAct` of an `EfficientNetLite`: its convolution and norm in PyTorch."""
    names, blocks = {}, []
    for layer in model.layers:
        if not isinstance(layer, ConvNormAct):
            continue
        if layer.name == "stem":
            names[layer.name] = ("_conv_stem", "_bn0")
            continue
        block, part = _BLOCK.fullmatch(layer.name).groups()
        if block not in blocks:
            blocks.append(block)
        prefix = f"_blocks.{blocks.index(block)}."
        names[layer.name] = (f"{prefix}_{part}_conv", prefix + _NORM_OF[part])
    return names


def load(model, tensors, path) -> list[str]:
    """Gives an `EfficientNetLite` the weights of its PyTorch port.

    Args:
        model: an `EfficientNetLite`.
        tensors: dict of arrays by PyTorch name, from `read_checkpoint`.
        path: where they come from, for the errors.

    Returns:
        The names of the tensors that were left over: those of the classifier.

    Raises:
        ValueError: where a weight is missing, has another shape, or a tensor has no place. The
            model is then as it was.
    """
    return transfer(model, tensors, name_map(model), path, LEFT_OVER)


def transfer(model, tensors, names, path, left_over=()) -> list[str]:
    """Sets every weight of a model of `ConvNormAct` layers from PyTorch tensors, or none.

    Args:
        model: keras model whose only layers with weights are `ConvNormAct`.
        tensors: dict of arrays by PyTorch name; `num_batches_tracked` is ignored.
        names: dict from layer names to the PyTorch names of convolution and norm.
        path: where the tensors come from, for the errors.
        left_over: tuple of str, how the names of tensors begin that have no place in the model.

    Returns:
        The names of those tensors, sorted.

    Raises:
        ValueError: for a weight that is missing or has another shape, a layer without names, a
            tensor without a place.
    """
    wanted = []  # variable, PyTorch name, axes
    for layer in model.layers:
        if not layer.weights:
            continue
        if layer.name not in names:
            raise ValueError(f"{path}: no names are known for layer {layer.name}")
        conv, norm = names[layer.name]
        # (C, 1, H, W) -> (H, W, C, 1), or OIHW -> HWIO.
        axes = (2, 3, 0, 1) if layer.filters is None else (2, 3, 1, 0)
        wanted += [
            (layer.conv.kernel, f"{conv}.weight", axes),
            (layer.norm.gamma, f"{norm}.weight", (0,)),
            (layer.norm.beta, f"{norm}.bias", (0,)),
            (layer.norm.moving_mean, f"{norm}.running_mean", (0,)),
            (layer.norm.moving_variance, f"{norm}.running_var", (0,)),
        ]
    values = []
    for variable, name, axes in wanted:
        if name not in tensors:
            raise ValueError(f"{path}: {name}, for {variable.path}, is missing")
        value, shape = np.asarray(tensors[name]), tuple(variable.shape)
        if value.ndim != len(axes) or value.transpose(axes).shape != shape:
            raise ValueError(
                f"{path}: {name} of shape {value.shape} doesn't fit "
                f"{variable.path} of shape {shape}"
            )
        values.append(value.transpose(axes))
    used = {name for _, name, _ in wanted}
    left = sorted(tensors.keys() - used)
    left = [name for name in left if not name.endswith(".num_batches_tracked")]
    unknown = [name for name in left if not name.startswith(left_over)]
    if unknown:
        raise ValueError(f"{path}: {model.name} has no place for {', '.join(unknown)}")
    for (variable, _, _), value in zip(wanted, values, strict=True):
        variable.assign(value)
    return left
