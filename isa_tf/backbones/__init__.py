"""Backbones: an image in, a dict of feature maps out; `create` makes one by name."""

import functools

from isa_tf.backbones.backbone import Backbone
from isa_tf.backbones.dilate import FAMILIES, application, dilate
from isa_tf.backbones.efficientnet_lite import VARIANTS, EfficientNetLite
from isa_tf.backbones.resnet import DEPTHS, ResNet
from isa_tf.backbones.tiny import TinyNet
from isa_tf.names import unknown
from isa_tf.weights.resnet import PUBLISHED

__all__ = [
    "Backbone",
    "EfficientNetLite",
    "ResNet",
    "TinyNet",
    "create",
    "dilate",
    "list_keras_names",
    "list_names",
    "list_weights",
]

_RESNETS = {
    "": {},
    "_v1c": {"stem": "v1c"},
    "_deep": {"stem": "deep"},
    "_vd": {"stem": "v1c", "shortcut": "vd"},
}
_BACKBONES = {
    **{
        f"resnet{depth}{suffix}": functools.partial(ResNet, depth, **arguments)
        for depth in DEPTHS
        for suffix, arguments in _RESNETS.items()
    },
    **{
        f"efficientnet_lite{variant}": functools.partial(EfficientNetLite, variant)
        for variant in range(len(VARIANTS))
    },
    "tiny": TinyNet,
}
_KERAS = {
    f"keras:{name}": functools.partial(application, name)
    for family in FAMILIES
    for name in family.names
}


def list_names() -> list[str]:
    """The names of this package's own networks, which `create` knows."""
    return list(_BACKBONES)


def list_keras_names() -> list[str]:
    """The names of Keras's networks, which `create` knows: "keras:ResNet50", ..."""
    return list(_KERAS)


def list_weights() -> list[str]:
    """The names of published ImageNet weights that a `ResNet` takes as `weights`.

    >>> backbone = create("resnet50_v1c", weights="open-mmlab://resnet50_v1c")  # doctest: +SKIP
    """
    return list(PUBLISHED)


def create(name, output_stride=None, weights=None, **kwargs) -> Backbone:
    """Makes a backbone by name.

    Args:
        name: str, "resnet18" .. "resnet152", as it is or with "_v1c", "_deep" or "_vd" behind
            it; "efficientnet_lite0" .. "efficientnet_lite4"; "tiny"; or "keras:" and the name of
            a `keras.applications` function, such as "keras:EfficientNetV2S", see `dilate`.
        output_stride: int. Defaults to `None`, the network's own: 32, or 4 of "tiny".
        weights: `None`, "imagenet", a name of `list_weights` or a path, as the backbone takes it.
            Defaults to `None`.
        **kwargs: the backbone's other arguments: dtype, synchronized, ...; with "keras:" also
            those of the Keras function: alpha, minimalistic, ...

    Raises:
        ValueError: for an unknown name, with the nearest ones.

    Example:

    >>> backbone = create("efficientnet_lite0", output_stride=8, weights="imagenet")
    >>> backbone.feature_strides
    {'c1': 2, 'c2': 4, 'c3': 8, 'c4': 8, 'c5': 8}
    """
    known = {**_BACKBONES, **_KERAS}
    if name not in known:
        raise ValueError(unknown("backbone", name, known))
    if output_stride is not None:
        kwargs["output_stride"] = output_stride
    kwargs.setdefault("name", name.removeprefix("keras:"))
    return known[name](weights=weights, **kwargs)
