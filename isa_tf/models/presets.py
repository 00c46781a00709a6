"""Published ISANets by name: where their weights are, what they scored, how they were tested."""

import dataclasses
import logging

import keras

from isa_tf.data import label_sets
from isa_tf.files import save_model
from isa_tf.models.convert import from_checkpoint
from isa_tf.names import unknown
from isa_tf.weights import cache

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
_LABELS = {
    "Cityscapes": label_sets.CITYSCAPES,
    "ADE20K": label_sets.ADE20K,
    "VOC12aug": label_sets.VOC,
}

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Preset:
    """A published model.

    Attributes:
        name: str, the publisher's name of the model.
        source: str, whose it is: "mmseg", "paddleseg" or "openseg".
        depth: int, of the ResNet.
        backbone: str, as the publisher writes it, such as "R-50-D8".
        dataset: str, "Cityscapes", "ADE20K" or "VOC12aug".
        crop_size: (height, width) of the training.
        schedule: str, iterations of the training, such as "80k".
        miou: float, published, single scale, %.
        miou_ms_flip: float, published, multi-scale and flip, %; `None` where not published.
        url: str, of the weights; of a page with a link where no program can fetch them.
        arguments: dict of arguments of `isa_tf.models.from_checkpoint` that the weights do not
            tell.
    """

    name: str
    source: str
    depth: int
    backbone: str
    dataset: str
    crop_size: tuple[int, int]
    schedule: str
    miou: float
    miou_ms_flip: float | None
    url: str
    arguments: dict

    @property
    def file_name(self) -> str:
        """Of the weights in the cache."""
        if self.source == "mmseg":
            return self.url.rsplit("/", 1)[1]
        return self.name + (".pdparams" if self.source == "paddleseg" else ".pth")

    @property
    def stem(self) -> str:
        """The name of the weight file without its ending."""
        return self.file_name.rsplit(".", 1)[0]

    @property
    def parameters(self) -> float:
        """Trainable ones, the auxiliary head's included, in millions."""
        return _COSTS[self.source, self.depth, self.dataset, self.crop_size][0]

    @property
    def gflops(self) -> float:
        """Of an image of the crop's size, without the auxiliary head; a multiply-add counts 2."""
        return _COSTS[self.source, self.depth, self.dataset, self.crop_size][1]

    @property
    def labels(self) -> label_sets.LabelSet:
        """Names and colours of the classes."""
        return _LABELS[self.dataset]


# === The published models ===


def _mmseg(depth, dataset, crop_size, schedule, file, miou, miou_ms_flip):
    """A model of mmsegmentation's metafile; `file` is the end of its file's name."""
    height, width = crop_size
    batch = "4xb2" if dataset == "Cityscapes" else "4xb4"
    size, data = f"{height}x{width}", dataset.lower()
    stem = f"isanet_r{depth}-d8_{size}_{schedule}_{data}"
    fit_size = {"Cityscapes": None, "ADE20K": (2048, 512), "VOC12aug": (2048, 512)}[dataset]
    arguments, protocol = {}, {}
    if fit_size is not None:
        protocol = {"fit_size": fit_size}
    if size == "769x769":
        arguments["coordinates"] = "align_corners"
        protocol = {"mode": "slide", "crop_size": crop_size, "stride": (513, 513)}
        protocol["fit_size"] = (2049, 1025)
    if protocol:
        arguments["protocol"] = protocol
    return Preset(
        name=f"isanet_r{depth}-d8_{batch}-{schedule}_{data}-{size}",
        source="mmseg",
        depth=depth,
        backbone=f"R-{depth}-D8",
        dataset=dataset,
        crop_size=crop_size,
        schedule=schedule,
        miou=miou,
        miou_ms_flip=miou_ms_flip,
        url=f"https://download.openmmlab.com/mmsegmentation/v0.5/isanet/{stem}/{stem}_{file}.pth",
        arguments=arguments,
    )


def _paddleseg(depth, dataset, crop_size, schedule, miou, miou_ms_flip):
    """A model of PaddleSeg's; it was tested on whole images, padded."""
    height, width = crop_size
    folder, data = {
        "Cityscapes": ("cityscapes", "cityscapes"),
        "VOC12aug": ("pascal_voc12", "voc12aug"),
    }[dataset]
    name = f"isanet_resnet{depth}_os8_{data}_{height}x{width}_{schedule}"
    padded = {"Cityscapes": (1025, 2049), "VOC12aug": (512, 512)}[dataset]
    arguments = {"protocol": {"pad_size": padded}}
    if dataset == "VOC12aug":
        arguments["coordinates"] = "align_corners"
    return Preset(
        name=name,
        source="paddleseg",
        depth=depth,
        backbone=f"ResNet{depth}_vd OS8",
        dataset=dataset,
        crop_size=crop_size,
        schedule=schedule,
        miou=miou,
        miou_ms_flip=miou_ms_flip,
        url=f"https://bj.bcebos.com/paddleseg/dygraph/{folder}/{name}/model.pdparams",
        arguments=arguments,
    )


_WIDE, _SQUARE, _SMALL = (512, 1024), (769, 769), (512, 512)
_PRESETS = [
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
    Preset(
        name="isanet_r101-d8_openseg_cityscapes-512x1024",
        source="openseg",
        depth=101,
        backbone="R-101-D8, deep stem",
        dataset="Cityscapes",
        crop_size=_WIDE,
        schedule="40k",
        miou=79.55,
        miou_ms_flip=None,
        url="https://drive.google.com/open?id=1Sf9YFjo9dpirojzLev8CfHAc99U6cBwH",
        arguments={},
    ),
]
_BY_NAME = {preset.name: preset for preset in _PRESETS}


def list_presets() -> list[Preset]:
    """All published models that `from_preset` knows.

    Example:

    >>> max(list_presets(), key=lambda preset: preset.miou).name
    'isanet_r101-d8_4xb2-80k_cityscapes-769x769'
    """
    return list(_PRESETS)


def find_preset(name) -> Preset:
    """A published model by its name, or by that of its weight file without the ending.

    Raises:
        ValueError: for an unknown name, with the nearest ones.
    """
    for preset in _PRESETS:
        if name in (preset.name, preset.stem, preset.file_name):
            return preset
    raise ValueError(unknown("preset", name, _BY_NAME))


def from_preset(name, num_classes=None, **arguments):
    """A published ISANet with its weights, class names, colours and test protocol.

    The weights are fetched into Keras's cache, checked, and converted once; the converted `.keras`
    file is kept beside them.

    Args:
        name: str, see `list_presets`; the stem of the weight file is accepted too.
        num_classes: int, for classes of one's own: the classifiers are then new. Defaults to
            `None`, the published ones.
        **arguments: of `from_checkpoint`: dropout, dtype, synchronized, ...

    Returns:
        `isa_tf.models.ISANet`.

    Raises:
        ValueError: for an unknown name, or a file that is not the published one.
        OSError: where the weights cannot be fetched, with the address and the place where a file
            that was fetched otherwise may be put.

    Example:

    >>> model = from_preset(  # doctest: +SKIP
    ...     "isanet_r50-d8_4xb2-80k_cityscapes-769x769"
    ... )
    >>> class_id, score = isa_tf.inference.Predictor.from_model(model)(images)
    """
    preset = find_preset(name)
    converted = cache.cache_folder() / f"{preset.stem}.keras"
    plain = num_classes is None and not arguments
    if plain and converted.exists():
        return keras.models.load_model(converted, compile=False)
    path = cache.fetch(preset.url, preset.file_name, preset.source != "openseg")
    settings = {**preset.arguments, **arguments}
    if num_classes in (None, len(preset.labels.class_names)):
        settings = {**preset.labels._asdict(), **settings}
    logger.info("converting %s", path)
    model = from_checkpoint(path, preset.source, num_classes, **settings).model
    if plain:
        save_model(model, converted)
        logger.info("kept as %s", converted)
    return model
