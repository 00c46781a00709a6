"""Models from other people's checkpoints: the tensors tell the architecture and fill it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras

from isa_tf.backbones import HRNet, ResNet
from isa_tf.hints import StrPath
from isa_tf.models.isanet import ISANet
from isa_tf.models.mask_rcnn import MaskRCNN
from isa_tf.names import unknown
from isa_tf.weights import hrnet, list_sources, read_checkpoint, resnet, sources
from isa_tf.weights.transfer import Report

# Sources of ImageNet backbones, each with its name map and its network; those of whole models are
# `isa_tf.weights.list_sources()`.
BACKBONES = {
    **dict.fromkeys(hrnet.SOURCES, (hrnet, HRNet)),
    **dict.fromkeys(resnet.SOURCES, (resnet, ResNet)),
}
# Arguments that are dicts of arguments, which add to each other.
_NESTED = ("backbone", "context_options")


class Converted(NamedTuple):
    """A model with the weights of a checkpoint.

    Attributes:
        model: `isa_tf.models.ISANet` or `MaskRCNN`, or `ResNet` or `HRNet` of `isa_tf.backbones`.
        source: str, whose checkpoint it is.
        report: `isa_tf.weights.Report`: the tensors and the weights that were left over.
    """

    model: keras.Model
    source: str
    report: Report


def from_checkpoint(
    path: StrPath, source: str | None = None, num_classes: int | None = None, **arguments: Any
) -> Converted:
    """Makes the model that a checkpoint was trained with, and gives it the weights.

    Args:
        path: `.pth`, `.pkl`, `.pdparams`, `.safetensors` or `.npz` file, read without its framework
            and without running anything in it.
        source: "mmseg", "openseg", "paddleseg" or another of `isa_tf.weights.list_sources` for
            ISANets, "torchvision_detection", "detectron2" or "mmdet" for Mask R-CNNs;
            "torchvision", "openmmlab" or "timm" for ImageNet weights of ResNets, "hrnet" for those
            of HRNets; `None` to tell it from the tensors' names. Defaults to `None`.
        num_classes: int, for other classes than the checkpoint's: the classifiers are then new,
            with random weights. Defaults to `None`, the checkpoint's.
        **arguments: of `Segmenter` or `MaskRCNN` that the tensors do not tell or that are to
            differ: coordinates, class_names, palette, protocol, dropout, dtype, ...;
            `context_options` is a dict of those of `InterlacedSparseAttention`: partition,
            mask_padding, dropout; `backbone` is one of those of `ResNet` or `HRNet`, and all there
            is to set of a
            backbone.

    Returns:
        `Converted`.

    Raises:
        CheckpointError: (a ValueError) for a file that cannot be read.
        ValueError: for a checkpoint of another source or architecture, a tensor that is missing,
            has another shape or no place; with its name and the weight's.

    Example:

    >>> model, source, report = from_checkpoint("isanet_r50-d8_...-981bd763.pth")  # doctest: +SKIP
    """
    tensors = read_checkpoint(path)
    source = find_source(tensors, path) if source is None else check_source(source)
    if source in BACKBONES:
        if num_classes is not None:
            raise ValueError(f"{path}: a backbone, of {source}, has no num_classes")
        settings = arguments.pop("backbone", {})
        if arguments:
            raise ValueError(f"{path}: a backbone, of {source}, has no {', '.join(arguments)}")
        return _backbone(tensors, path, source, settings)
    module = sources.SOURCES[source]
    found = module.arguments(tensors, path)
    make: Callable[..., keras.Model] = ISANet
    if getattr(module, "TASK", None) == MaskRCNN.task:
        make, settings = MaskRCNN, _merge(found, module.SETTINGS, arguments)
        if settings.pop("context_options"):
            raise ValueError(
                f"{path}: a Mask R-CNN has no context_options; its backbone has context_at"
            )
    else:
        partitions = found.pop("partitions", 1)
        # Without a mask, as all of them were trained.
        trained = {"context_options": {"partition": 8, "mask_padding": False}}
        settings = _merge(trained, found, module.SETTINGS, arguments)
        _check_partitions(path, partitions, settings["context_options"]["partition"])
    changed = num_classes not in (None, found["num_classes"])
    if num_classes is not None:
        settings["num_classes"] = num_classes
    shared = {name: settings[name] for name in ("dtype", "synchronized") if name in settings}
    network = HRNet if "width" in settings["backbone"] else ResNet
    settings["backbone"] = network(**settings["backbone"], **shared)
    model = make(**settings)
    report = module.load(model, tensors, path, ("classifier",) if changed else ())
    return Converted(model, source, report)


def _merge(*parts):
    """One dict of arguments: of two values the later, of two dicts of arguments both."""
    merged = {}
    for part in parts:
        nested = {name: {**merged.get(name, {}), **part.get(name, {})} for name in _NESTED}
        merged = {**merged, **part, **nested}
    return merged


def _backbone(tensors, path, source, arguments):
    module, network = BACKBONES[source]
    found = module.arguments(tensors, path, module.find_prefix(tensors))
    model = network(**{**found, **arguments})
    return Converted(model, source, module.load(model, tensors, path))


def _check_partitions(path, count, partition):
    given = len(partition) if isinstance(partition, list) else 1
    if given != count:
        raise ValueError(
            f"{path}: the network has {count} partitions, whose sizes its tensors do not tell; "
            f"give as many, such as context_options={{'partition': {[(8, 8)] * count}}}"
        )


def check_source(source: str) -> str:
    """A source as it is, or ValueError with the known ones."""
    known = [*list_sources(), *BACKBONES]
    if source not in known:
        raise ValueError(unknown("source", source, known))
    return source


def find_source(tensors: Mapping[str, Any], path: StrPath) -> str:
    """Whose checkpoint these tensors are, by their names; ValueError where none is known."""
    # HRNet before ResNet, whose stem and first stage it has too.
    found = (module.find_source(tensors) for module in (sources, hrnet, resnet))
    source = next(filter(None, found), None)
    if source is None:
        names = ", ".join(sorted(tensors)[:5])
        raise ValueError(
            f"{path}: the names of its tensors ({names}, ...) are those of no source that is "
            f"known: {', '.join([*list_sources(), *BACKBONES])}"
        )
    return source
