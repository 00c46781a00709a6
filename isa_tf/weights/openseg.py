"""openseg.pytorch, the official code: from the names of its ISANet to this package's."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from isa_tf.hints import StrPath
from isa_tf.layers.conv import leaky_relu_001
from isa_tf.weights import resnet
from isa_tf.weights.transfer import Report, Transfer

# In-place activated BN, with which the published models were trained, scales by |weight| + this.
ABN_EPSILON = 1e-5
_STAGES = "isa_head.2.stages."
_CLASSIFIERS = ("cls_head.", "dsn_head.3.")
# What the tensors do not tell, as its authors trained.
SETTINGS = {
    "coordinates": "align_corners",
    "dropout": 0.0,
    "context_options": {"dropout": 0.05},
    # The mean in RGB order, of a network that reads BGR.
    "backbone": {"mean": (122.7717, 115.9465, 102.9801), "std": (1.0, 1.0, 1.0)},
}


def strip(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors without the "module." that training on several devices puts before them."""
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def is_source(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether these look like the tensors of the official ISANet."""
    return f"{_STAGES}0.long_range_sa.f_value.weight" in strip(tensors)


def in_place(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether its normalisations are in-place activated BN: one layer with its activation."""
    return "isa_head.1.weight" in strip(tensors)


def arguments(tensors: Mapping[str, np.ndarray], path: StrPath) -> dict[str, Any]:
    """What the tensors tell of the network.

    Returns:
        dict with "backbone", the arguments of `ResNet`; "context_options", those of
        `InterlacedSparseAttention`; those of `Segmenter`: num_classes, head_filters,
        auxiliary_level, auxiliary_filters, activation; and "partitions", how many there are.

    Raises:
        ValueError: where they are not those of an ISANet with a ResNet.
    """
    tensors = strip(tensors)
    if not is_source(tensors):
        raise ValueError(
            f"{path}: this is not the official code's ISANet: {_STAGES}0.long_range_sa is missing"
        )
    stages = {name.split(".")[3] for name in tensors if name.startswith(_STAGES)}
    return {
        "backbone": {
            **resnet.arguments(tensors, path, "backbone."),
            "output_stride": 8,
            "contract_dilation": True,
            "ceil_mode": True,
        },
        "num_classes": int(tensors["cls_head.weight"].shape[0]),
        "head_filters": int(tensors["isa_head.0.weight"].shape[0]),
        "context_options": {
            "key_filters": int(tensors[f"{_STAGES}0.long_range_sa.f_key.0.weight"].shape[0])
        },
        "auxiliary_level": "c4",
        "auxiliary_filters": int(tensors["dsn_head.0.weight"].shape[0]),
        "activation": leaky_relu_001 if in_place(tensors) else "relu",
        "partitions": len(stages),
    }


def load(
    model: keras.Model,
    tensors: Mapping[str, np.ndarray],
    path: StrPath,
    optional: Sequence[str] = (),
) -> Report:
    """Gives an `ISANet` the weights of the official one.

    The official network reads BGR and concatenates [input, context]; the kernels' inputs are put
    in this package's order. Its 3x3 convolutions have biases, which go into the normalisations.

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
    tensors = strip(tensors)
    abn = in_place(tensors)
    options: dict[str, Any] = {"positive_scale": ABN_EPSILON if abn else None, "optional": optional}
    transfer = Transfer(tensors, path, **options)
    backbone = Transfer(tensors, path, prefix="backbone.", **options)
    resnet.fill(backbone, model.backbone, bgr=True)
    transfer.include(backbone)

    def pair(layer, name, i=0, **arguments):
        norm = f"{name}.{i + 1}" if abn else f"{name}.{i + 1}.0"
        transfer.conv_norm(layer, f"{name}.{i}", norm, **arguments)

    context = model.context
    pair(model.get_layer("head"), "isa_head")
    for i, layer in enumerate(context.attentions):
        half = ("long_range_sa", "short_range_sa")[i % 2]
        name = f"{_STAGES}{i // 2}.{half}"
        for k in (0, 1):
            pair(layer.query[k], f"{name}.f_query", 2 * k)
            pair(layer.key[k], f"{name}.f_key", 2 * k)
        transfer.conv(layer.value, f"{name}.f_value")
        pair(layer.output_conv, f"{name}.W")
    if context.widen is not None:
        pair(context.widen, "isa_head.2.up_conv")
    half = context.fusion.conv.kernel.shape[-2] // 2
    order = np.r_[half : 2 * half, 0:half]
    pair(context.fusion, "isa_head.2.conv_bn", inputs=order)
    transfer.conv(model.get_layer("logits_classifier"), "cls_head")
    pair(model.get_layer("auxiliary"), "dsn_head")
    transfer.conv(model.get_layer("auxiliary_logits_classifier"), "dsn_head.3")
    return transfer.finish(model, _CLASSIFIERS if optional else ())
