"""Backbones: an image in, a dict of feature maps out; `create` makes one by name.

`register` adds those of others.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras

from isa_tf import presets
from isa_tf.backbones.backbone import Backbone
from isa_tf.backbones.dilate import FAMILIES, application, dilate
from isa_tf.backbones.efficientnet_lite import VARIANTS, EfficientNetLite
from isa_tf.backbones.hrnet import HRNet
from isa_tf.backbones.resnet import ResNet
from isa_tf.backbones.tiny import TinyNet
from isa_tf.hints import StrPath
from isa_tf.names import Registry
from isa_tf.weights import hrnet, list_published, resnet
from isa_tf.weights.architectures import DEPTHS

__all__ = [
    "Backbone",
    "EfficientNetLite",
    "HRNet",
    "ResNet",
    "TinyNet",
    "create",
    "dilate",
    "list_keras_names",
    "list_names",
    "list_weights",
    "output_strides",
    "register",
]

_RESNETS: dict[str, dict[str, Any]] = {
    "": {},
    "_v1c": {"stem": "v1c"},
    "_deep": {"stem": "deep"},
    "_vd": {"stem": "v1c", "shortcut": "vd"},
}
_BACKBONES = Registry("backbone")
for _depth in DEPTHS:
    for _suffix, _arguments in _RESNETS.items():
        _BACKBONES.register(
            f"resnet{_depth}{_suffix}", functools.partial(ResNet, _depth, **_arguments)
        )
for _width in (18, 32, 48):
    _BACKBONES.register(f"hrnet_w{_width}", functools.partial(HRNet, _width))
for _variant in range(len(VARIANTS)):
    _BACKBONES.register(
        f"efficientnet_lite{_variant}", functools.partial(EfficientNetLite, _variant)
    )
_BACKBONES.register("tiny", TinyNet)
_KERAS = "keras:"  # before the names of Keras's networks
for _family in FAMILIES:
    for _name in _family.names:
        _BACKBONES.register(_KERAS + _name, functools.partial(application, _name))


def _published(kind, network, weights, load_weights, **arguments):
    """A backbone of published ImageNet weights."""
    return kind(**{**network, "weights": weights if load_weights else None, **arguments})


for _kind, _converters in (
    (ResNet, resnet.SOURCES),
    (HRNet, hrnet.SOURCES),
    (EfficientNetLite, ("efficientnet_lite",)),
):
    for _entry in list_published(*_converters):
        _weights = "imagenet" if _kind is EfficientNetLite else _entry.name
        presets.register(
            _entry.name,
            functools.partial(_published, _kind, _entry.network, _weights),
            _entry.version,
            kind=_kind,
            told=_entry,
        )


def register(name: str, factory: Callable[..., keras.Model] | None = None) -> Callable[..., Any]:
    """Adds a backbone, which `create` and everything that takes a backbone's name then knows.

    Args:
        name: str.
        factory: function from `weights` and `name`, and from `output_stride`, `dtype` and
            `synchronized` where they are given, to a `Backbone`. Defaults to `None`: a decorator
            is returned.

    Returns:
        The factory.

    Raises:
        ValueError: for a name that is taken.

    Example:

    >>> @register("tiny_wide")
    ... def tiny_wide(**arguments):
    ...     return TinyNet(widths=(32, 48, 64), **arguments)
    >>> create("tiny_wide", output_stride=8).output["c3"].shape[-1]
    64
    """
    return _BACKBONES.register(name, factory)


def list_names() -> list[str]:
    """The names of this package's own networks and of those that were registered."""
    return [name for name in _BACKBONES if not name.startswith(_KERAS)]


def list_keras_names() -> list[str]:
    """The names of Keras's networks, which `create` knows: "keras:ResNet50", ..."""
    return [name for name in _BACKBONES if name.startswith(_KERAS)]


def list_weights() -> list[str]:
    """The names of published ImageNet weights that a `ResNet` or `HRNet` takes as `weights`.

    >>> backbone = create("resnet50_v1c", weights="open-mmlab://resnet50_v1c")  # doctest: +SKIP
    """
    return [entry.name for entry in list_published(*resnet.SOURCES, *hrnet.SOURCES)]


def output_strides(name: str) -> tuple[int, ...]:
    """The output strides that a backbone may be made with; `()` where its factory does not say.

    Raises:
        ValueError: for an unknown name, with the nearest ones.

    Example:

    >>> output_strides("resnet50"), output_strides("hrnet_w48")
    ((8, 16, 32), (4,))
    """
    factory = _BACKBONES[name]
    return getattr(getattr(factory, "func", factory), "output_strides", ())


def create(
    name: str, output_stride: int | None = None, weights: StrPath | None = None, **kwargs: Any
) -> Backbone:
    """Makes a backbone by name.

    Args:
        name: str, "resnet18" .. "resnet152", as it is or with "_v1c", "_deep" or "_vd" behind
            it; "hrnet_w18", "hrnet_w32" or "hrnet_w48"; "efficientnet_lite0" ..
            "efficientnet_lite4"; "tiny"; "keras:" and the name of a `keras.applications` function,
            such as "keras:EfficientNetV2S", see `dilate`; or one that was given to `register`.
        output_stride: int. Defaults to `None`, the network's own: 32, or 4 of HRNets and "tiny".
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
    factory = _BACKBONES[name]
    if output_stride is not None:
        kwargs["output_stride"] = output_stride
    kwargs.setdefault("name", name.removeprefix(_KERAS))
    return factory(weights=weights, **kwargs)
