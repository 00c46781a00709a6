"""Published models by name: their weights, what they cost, how they were tested."""

import dataclasses
import functools
import logging
from typing import Any

import keras
import numpy as np

from isa_tf import presets
from isa_tf.data import label_sets
from isa_tf.files import save_model
from isa_tf.hints import StrPath
from isa_tf.models.convert import Converted, from_checkpoint
from isa_tf.models.mask_rcnn import MaskRCNN
from isa_tf.models.segmenter import Segmenter
from isa_tf.names import unknown
from isa_tf.version import __version__
from isa_tf.weights import Published, cache, list_published

# Trainable parameters (millions) and operations of an image of the crop's size (GFLOPs, a
# multiply-add counts 2), as `isa_tf.cost` counts them.
_COSTS = {
    ("mmseg", 50, "Cityscapes", (512, 1024)): (37.7, 600),
    ("mmseg", 50, "Cityscapes", (769, 769)): (37.7, 702),
    ("mmseg", 101, "Cityscapes", (512, 1024)): (56.7, 910),
    ("mmseg", 101, "Cityscapes", (769, 769)): (56.7, 1063),
    ("mmseg", 50, "ADE20K", (512, 512)): (37.8, 300),
    ("mmseg", 101, "ADE20K", (512, 512)): (56.8, 455),
    ("mmseg", 50, "VOC12aug", (512, 512)): (37.7, 299),
    ("mmseg", 101, "VOC12aug", (512, 512)): (56.7, 455),
    ("paddleseg", 50, "Cityscapes", (769, 769)): (37.7, 704),
    ("paddleseg", 101, "Cityscapes", (769, 769)): (56.7, 1065),
    ("paddleseg", 50, "VOC12aug", (512, 512)): (37.7, 299),
    ("paddleseg", 101, "VOC12aug", (512, 512)): (56.7, 455),
    ("openseg", 101, "Cityscapes", (512, 1024)): (59.2, 972),
}
# Likewise of detectors by name, of COCO's 80 classes; of an image of 800x1216 with 1000 proposals
# and 100 masks. All parameters, also those that were frozen, but for normalisations' statistics.
_DETECTOR_COSTS = {
    "maskrcnn_resnet50_fpn": (44.4, 499),
    "maskrcnn_resnet50_fpn_v2": (46.3, 824),
    "mask_rcnn_R_50_FPN_1x": (44.4, 499),
    "mask_rcnn_R_50_FPN_3x": (44.4, 499),
    "mask_rcnn_R_101_FPN_3x": (63.4, 643),
    "mask_rcnn_r50_fpn_1x_coco": (44.4, 499),
    "mask_rcnn_r50_fpn_2x_coco": (44.4, 499),
    "mask_rcnn_r101_fpn_1x_coco": (63.4, 643),
    "mask_rcnn_r101_fpn_2x_coco": (63.4, 643),
}
_LABELS = {
    "Cityscapes": label_sets.CITYSCAPES,
    "ADE20K": label_sets.ADE20K,
    "VOC12aug": label_sets.VOC,
    "COCO": label_sets.COCO,
}

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset(Published):
    """A published model: its weights, and how it was tested.

    Attributes:
        backbone: str, as the publisher writes it, such as "R-50-D8".
        arguments: dict of arguments of `isa_tf.models.from_checkpoint` that the weights do not
            tell.
        ...: those of `isa_tf.weights.Published`: name, network, dataset, crop_size, schedule, miou,
            miou_ms_flip, box_ap, mask_ap, url, file_name, ...

    Example:

    >>> preset = list_presets()[0]
    >>> preset.source, preset.backbone, preset.dataset, preset.miou
    ('mmseg', 'R-50-D8', 'Cityscapes', 78.49)
    """

    backbone: str
    arguments: dict[str, Any]

    @property
    def source(self) -> str:
        """Whose it is, see `isa_tf.weights.list_sources`: "mmseg", "detectron2", ..."""
        return self.converter

    @property
    def task(self) -> str:
        """What it is for: "segmentation" or "instance_segmentation"."""
        return MaskRCNN.task if self.dataset == "COCO" else "segmentation"

    @property
    def depth(self) -> int:
        """Of the ResNet."""
        assert self.network is not None  # every preset tells it
        return self.network["depth"]

    @property
    def stem(self) -> str:
        """The name of the weight file without its ending."""
        assert self.file_name is not None
        return self.file_name.rsplit(".", 1)[0]

    @property
    def parameters(self) -> float:
        """In millions: trainable ones, an auxiliary head's included; of a detector all."""
        return self._costs[0]

    @property
    def gflops(self) -> float:
        """Of an image of the crop's size, without the auxiliary head, a detector's of 800x1216; a
        multiply-add counts 2.
        """
        return self._costs[1]

    @property
    def _costs(self):
        if self.name in _DETECTOR_COSTS:
            return _DETECTOR_COSTS[self.name]
        return _COSTS[self.source, self.depth, self.dataset, self.crop_size]

    @property
    def labels(self) -> label_sets.LabelSet:
        """Names and colours of the classes."""
        return _LABELS[self.dataset]


# === How the published models' backbones are called, and how they were tested ===


def _mmseg(depth, dataset, crop_size):
    if crop_size == (769, 769):
        slide = {"mode": "slide", "crop_size": crop_size, "stride": (513, 513)}
        protocol = {**slide, "fit_size": (2049, 1025)}
        return f"R-{depth}-D8", {"coordinates": "align_corners", "protocol": protocol}
    if dataset == "Cityscapes":
        return f"R-{depth}-D8", {}
    return f"R-{depth}-D8", {"protocol": {"fit_size": (2048, 512)}}


def _paddleseg(depth, dataset, _):
    """On whole images, padded."""
    if dataset == "Cityscapes":
        arguments = {"protocol": {"pad_size": (1025, 2049)}}
    else:
        arguments = {"protocol": {"pad_size": (512, 512)}, "coordinates": "align_corners"}
    return f"ResNet{depth}_vd OS8", arguments


def _openseg(depth, *_):
    return f"R-{depth}-D8, deep stem", {}


def _detector(depth, *_):
    return f"R-{depth}-FPN", {}


_TOLD = {
    "mmseg": _mmseg,
    "paddleseg": _paddleseg,
    "openseg": _openseg,
    "torchvision_detection": _detector,
    "detectron2": _detector,
    "mmdet": _detector,
}
# By name, what differs from others of its source: the first of torchvision's was trained when its
# frozen normalisations had no epsilon, and is still given none.
_OWN = {"maskrcnn_resnet50_fpn": {"backbone": {"epsilon": 0.0}}}


def _preset(weights):
    told = _TOLD[weights.converter]
    backbone, arguments = told(weights.network["depth"], weights.dataset, weights.crop_size)
    arguments = {**arguments, **_OWN.get(weights.name, {})}
    return Preset(**vars(weights), backbone=backbone, arguments=arguments)


_PRESETS = [_preset(weights) for weights in list_published(*_TOLD)]


def list_presets(task: str | None = None) -> list[Preset]:
    """All published models that `from_preset` knows.

    Args:
        task: "segmentation" or "instance_segmentation" for those of a kind. Defaults to `None`.

    Example:

    >>> max(list_presets("segmentation"), key=lambda preset: preset.miou).name
    'isanet_r101-d8_4xb2-80k_cityscapes-769x769'
    >>> max(list_presets("instance_segmentation"), key=lambda preset: preset.mask_ap).name
    'maskrcnn_resnet50_fpn_v2'
    """
    return [preset for preset in _PRESETS if task in (None, preset.task)]


def find_preset(name: str) -> Preset:
    """A published model by its name, or by that of its weight file without the ending.

    Raises:
        ValueError: for an unknown name, with the nearest ones.
    """
    for preset in _PRESETS:
        if name in (preset.name, preset.stem, preset.file_name):
            return preset
    raise ValueError(unknown("preset", name, [preset.name for preset in _PRESETS]))


def from_preset(
    preset: StrPath,
    num_classes: int | None = None,
    load_weights: bool = True,
    **arguments: Any,
) -> keras.Model:
    """A model by name or of a folder, with its weights, class names, colours and test protocol.

    Published weights are fetched into Keras's cache, checked, and converted once for each version
    of this package and each global dtype policy; the converted `.keras` file is kept beside them.

    Args:
        preset: the name of a published model, see `list_presets` (the stem of the weight file is
            accepted too), or of another registered preset, see `isa_tf.presets`; or the path of a
            folder that `save_to_preset` wrote. "NAME/1" is version 1, "NAME" the newest.
        num_classes: int, for classes of one's own: the classifiers are then new. Defaults to
            `None`, the preset's own.
        load_weights: bool; `False` for random weights. (Published ones are fetched all the same,
            since their tensors tell the architecture.) Defaults to `True`.
        **arguments: in place of the preset's: dropout, dtype, synchronized, ...; of a published
            model those of `from_checkpoint`.

    Returns:
        What the preset is of: `Segmenter` for an ISANet, `MaskRCNN`, a backbone.

    Raises:
        ValueError: for an unknown name or version, with the nearest; for a file that is not the
            published one, or a folder as `isa_tf.presets.PresetModel.from_preset` has it.
        FileNotFoundError: where a folder, or a file in it, is missing.
        OSError: where the weights cannot be fetched, with the address and the place where a file
            that was fetched otherwise may be put.

    Example:

    >>> model.save_to_preset("kept_preset")
    >>> from_preset("kept_preset").num_classes == model.num_classes
    True
    >>> model = from_preset(  # doctest: +SKIP
    ...     "isanet_r50-d8_4xb2-80k_cityscapes-769x769"
    ... )
    """
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    return presets.load(preset, load_weights=load_weights, **arguments)


def _load_published(name, load_weights=True, num_classes=None, **arguments):
    """A published model, converted or as it was kept."""
    preset = find_preset(name)
    policy = keras.config.dtype_policy()
    # Both decide what is in the file: another policy's layers would compute in another dtype.
    converted = cache.cache_folder() / f"{preset.stem}.{__version__}.{policy.name}.keras"
    # Of maps of policies the name tells nothing.
    mapped = isinstance(policy, keras.dtype_policies.DTypePolicyMap)
    plain = num_classes is None and not arguments and not mapped
    if plain and converted.exists():
        model = keras.models.load_model(converted, compile=False)
    else:
        path = preset.fetch()
        logger.info("converting %s", path)
        model = convert_published(preset, path, num_classes, **arguments).model
        if plain:
            save_model(model, converted)
            logger.info("kept as %s", converted)
    return model if load_weights else type(model).from_config(model.get_config())


for _each in _PRESETS:
    presets.register(
        _each.name,
        functools.partial(_load_published, _each.name),
        _each.version,
        kind=MaskRCNN if _each.task == MaskRCNN.task else Segmenter,
        told=_each,
        aliases=(_each.stem, _each.file_name),
    )


def convert_published(
    preset: Preset, path: StrPath, num_classes: int | None = None, **arguments: Any
) -> Converted:
    """A file of a preset as a model, with the class names, colours and test protocol of it.

    Args:
        preset: `Preset`.
        path: of the file.
        num_classes: as for `from_preset`.
        **arguments: of `from_checkpoint`.

    Returns:
        `isa_tf.models.convert.Converted`. Of torchvision's labels, COCO's ids, the ten that stand
        for nothing are left out.

    Raises:
        As `from_checkpoint`.

    Example:

    >>> model, source, report = convert_published(list_presets()[0], "f.pth")  # doctest: +SKIP
    """
    own = num_classes in (None, len(preset.labels.class_names))
    labels = preset.labels._asdict() if own else {}
    settings = {**preset.arguments, **arguments}
    if "backbone" in settings:
        parts = (each.get("backbone", {}) for each in (preset.arguments, arguments))
        settings["backbone"] = {name: value for part in parts for name, value in part.items()}
    if not (own and preset.task == MaskRCNN.task):
        return from_checkpoint(path, preset.source, num_classes, **{**labels, **settings})
    labels["category_ids"] = label_sets.COCO_IDS
    if preset.source != "torchvision_detection":
        return from_checkpoint(path, preset.source, num_classes, **{**labels, **settings})
    whole = from_checkpoint(path, preset.source, **settings)
    model = _keep_classes(whole.model, [i - 1 for i in label_sets.COCO_IDS], **labels)
    return whole._replace(model=model)


def _keep_classes(model, places, **changes):
    """A `MaskRCNN` of some of a model's classes, in the order of their places among its own.

    The scores of those that are left out go to all others, in proportion.
    """
    changes["num_classes"] = len(places)
    other = MaskRCNN.from_config({**model.get_config(), **changes})
    for ours, theirs in zip(other.layers, model.layers, strict=True):
        if ours.name not in ("box_head", "mask_head"):
            ours.set_weights(theirs.get_weights())
            continue
        taken = {
            ("box_head", "logits"): np.r_[0, np.add(places, 1)],
            ("box_head", "codes"): np.add.outer(4 * np.array(places), range(4)).ravel(),
            ("mask_head", "logits"): places,
        }
        for layer, own in zip(ours.layers, theirs.layers, strict=True):
            outputs = taken.get((ours.name, layer.name), slice(None))
            layer.set_weights([value[..., outputs] for value in own.get_weights()])
    return other
