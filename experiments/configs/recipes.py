r"""The published recipes: data set x backbone x context module, generated from the tables below.

python -m experiments.train --config=experiments/configs/recipes.py:ade20k-resnet101-isa \
    --config.data.data_dir=DATA --workdir=runs/ade20k-resnet101-isa
python -m experiments.evaluate --config=experiments/configs/recipes.py:ade20k-resnet101-isa \
    --config.data.data_dir=DATA --workdir=runs/ade20k-resnet101-isa

None of them was run here: figures are their publishers', on their hardware, four GPUs of a kind
that is not told (openseg.pytorch) or four V100s (mmsegmentation). All of them, each with its
command, hardware and figure: `python -m experiments.configs.recipes`. More: docs/recipes.md.

Names are DATA-BACKBONE-CONTEXT for openseg.pytorch's, the official code, and
DATA-BACKBONE-CONTEXT-mmseg-CROP-STEPS for mmsegmentation's, such as
cityscapes-resnet50-isa-mmseg-769x769-80k. Where a publisher's row has no such backbone or context,
the recipe is the row's with that network, and has no figure.
"""

from typing import NamedTuple

from experiments.configs import default
from isa_tf.names import unknown
from isa_tf.weights import list_published

BACKBONES = ("resnet50", "resnet101", "hrnet_w48")
# fcn is the network without a module.
CONTEXTS = {"fcn": "none", "self_attention": "self_attention", "isa": "isa"}
CITYSCAPES_WEIGHTS = (
    *(0.8373, 0.9180, 0.8660, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023),
    *(0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507),
)
LIP_PAIRS = ((14, 15), (16, 17), (18, 19))
SPLITS = {"voc2012": ("trainaug", "val"), "coco_stuff10k": ("train", "test")}


class Images(NamedTuple):
    """How images become crops, and how they are shown in a test."""

    crop_size: tuple
    resized: dict  # before the random scale: short_side, fit_size or exact_size
    scale_range: tuple
    test: dict


class Training(NamedTuple):
    """How a network learns: `steps` of ResNets, and of HRNet."""

    batch_size: int
    learning_rate: float
    head_rate: float
    weight_decay: float
    warmup_steps: int
    steps: tuple


# === openseg.pytorch: configs/*/{R_101_D_8,R_101_D_16,H_48_D_4}.json and scripts/ ===
#
# Shared by all of its rows: SGD with momentum 0.9, poly 0.9 to 0, cross-entropy divided by the
# class weights of the pixels that count, weight decay that spares nothing (`group_method` of its
# main.py is off), aspect 0.9 to 1.1, flips, brightness +-10, SyncBN.
#
# Its command lines set the rate of all but the backbone to ten times (`nbb_mult`) for
# PASCAL-Context, COCO-Stuff and VOC. Its configs have the warm-up that stands here, but its command
# lines leave the switch (`is_warm`) off: --config.train.warmup_steps=0 is what they do. The warm-up
# here is linear and of all rates; the one there is of the backbone's, by the fourth power. Some of
# its command lines for R-101 run longer than its configs: 60,000 steps on COCO-Stuff.

# fmt: off
_MS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
_BY_8 = {"size_divisor": 8}
_OFFICIAL_IMAGES = {
    #                        crop         resized first              scale       test
    "cityscapes":     Images((512, 1024), {},                        (0.5, 2.0), {}),
    "ade20k":         Images((520, 520),  {"short_side": 520},       (0.5, 2.0), _BY_8),
    "lip":            Images((473, 473),  {"exact_size": (473, 473)}, (0.5, 1.5),
                             {"exact_size": (473, 473), "scales": (0.75, 1.0, 1.25),
                              "flip": True, "flip_pairs": LIP_PAIRS}),
    "pascal_context": Images((520, 520),  {"short_side": 520},       (0.5, 2.0),
                             {**_BY_8, "scales": (0.6, 0.8, 1.0, 1.2, 1.4, 1.6), "flip": True}),
    "coco_stuff10k":  Images((520, 520),  {"short_side": 520},       (0.5, 2.0),
                             {**_BY_8, "scales": _MS, "flip": True}),
    "voc2012":        Images((513, 513),  {"short_side": 513},       (0.5, 2.0),
                             {**_BY_8, "scales": _MS, "flip": True}),
}
_OFFICIAL_TRAINING = {
    #                          batch  rate   head's  decay  warm-up  steps: ResNets, HRNet
    "cityscapes":     Training(8,     0.01,  1.0,    5e-4,  0,       (40_000, 80_000)),
    "ade20k":         Training(16,    0.02,  1.0,    1e-4,  1_000,   (150_000, 150_000)),
    "lip":            Training(32,    0.007, 1.0,    5e-4,  1_000,   (110_000, 100_000)),
    "pascal_context": Training(16,    0.001, 10.0,   1e-4,  1_000,   (30_000, 60_000)),
    "coco_stuff10k":  Training(16,    0.001, 10.0,   1e-4,  1_000,   (30_000, 60_000)),
    "voc2012":        Training(16,    0.001, 10.0,   1e-4,  1_000,   (60_000, 60_000)),
}
# Of ADE20K with HRNet alone; the code keeps 100,000 pixels of each of four GPUs.
_OHEM = {"threshold": 0.9, "min_kept": 400_000}
# (data, backbone, context): mIoU of one scale.
_OFFICIAL_FIGURES = {
    ("cityscapes", "resnet101", "isa"): 79.55,
    ("cityscapes", "resnet101", "self_attention"): 79.49,
}
# Where it has no figure of ISA: HRNet-W48 with OCR, which it trained alike.
_OCR = {"pascal_context": 55.11, "lip": 56.72, "coco_stuff10k": 39.61, "ade20k": 44.62}


# === mmsegmentation 1.2.2: configs/{isanet,fcn,hrnet} and configs/_base_ ===
#
# Shared by all of its rows: SGD with momentum 0.9, poly 0.9 to 1e-4, cross-entropy divided by all
# pixels, weight decay that spares nothing, one rate, no warm-up, flips, photometric distortion, a
# crop of which no class has more than three quarters, SyncBN.

_FIT = {"fit_size": (2048, 512)}
_769 = {"fit_size": (2049, 1025)}
_MMSEG_IMAGES = {
    #                                  crop         resized first            scale       test
    ("cityscapes", (512, 1024)): Images((512, 1024), {},                     (0.5, 2.0), {}),
    ("cityscapes", (769, 769)):  Images((769, 769),  _769,                   (0.5, 2.0),
        {**_769, "mode": "slide", "crop_size": (769, 769), "stride": (513, 513)}),
    ("ade20k", (512, 512)):      Images((512, 512),  _FIT,                   (0.5, 2.0), _FIT),
    ("voc2012", (512, 512)):     Images((512, 512),  _FIT,                   (0.5, 2.0), _FIT),
    ("coco_stuff164k", (512, 512)): Images((512, 512), _FIT,                 (0.5, 2.0), _FIT),
    ("pascal_context", (480, 480)): Images((480, 480), {"fit_size": (520, 520)}, (0.5, 2.0),
        {"fit_size": (520, 520), "mode": "slide", "crop_size": (480, 480), "stride": (320, 320)}),
}
_MMSEG_TRAINING = {  # batch, rate, decay
    "cityscapes":     (8,  0.01,  5e-4),
    "ade20k":         (16, 0.01,  5e-4),
    "voc2012":        (16, 0.01,  5e-4),
    "coco_stuff164k": (16, 0.01,  5e-4),
    "pascal_context": (16, 0.004, 1e-4),
}
# (data, crop, backbone): {thousands of steps: (mIoU, of six scales and flips)}, of fcn. Those of
# isa stand in isa_tf.weights, beside the weights.
_MMSEG_FCN = {
    ("cityscapes", (512, 1024), "resnet50"): {40: (72.25, 73.36), 80: (73.61, 74.24)},
    ("cityscapes", (512, 1024), "resnet101"): {40: (75.45, 76.58), 80: (75.13, 75.94)},
    ("cityscapes", (512, 1024), "hrnet_w48"): {
        40: (78.48, 79.69), 80: (79.93, 80.72), 160: (80.65, 81.92)},
    ("cityscapes", (769, 769), "resnet50"): {40: (71.47, 72.54), 80: (72.64, 73.32)},
    ("cityscapes", (769, 769), "resnet101"): {40: (73.93, 75.14), 80: (75.52, 76.61)},
    ("ade20k", (512, 512), "resnet50"): {80: (35.94, 37.94), 160: (36.10, 38.08)},
    ("ade20k", (512, 512), "resnet101"): {80: (39.61, 40.83), 160: (39.91, 41.40)},
    ("ade20k", (512, 512), "hrnet_w48"): {80: (41.90, 43.27), 160: (42.02, 43.86)},
    ("voc2012", (512, 512), "resnet50"): {20: (67.08, 69.94), 40: (66.97, 69.04)},
    ("voc2012", (512, 512), "resnet101"): {20: (71.16, 73.57), 40: (69.91, 72.38)},
    ("voc2012", (512, 512), "hrnet_w48"): {20: (75.87, 78.58), 40: (76.24, 78.49)},
    ("pascal_context", (480, 480), "resnet101"): {40: (48.42, 50.40), 80: (49.35, 51.38)},
    ("pascal_context", (480, 480), "hrnet_w48"): {40: (50.33, 52.83), 80: (51.12, 53.56)},
}
_DATA_OF = {"Cityscapes": "cityscapes", "ADE20K": "ade20k", "VOC12aug": "voc2012"}
# fmt: on


class Recipe(NamedTuple):
    """A published training, or a publisher's row with a network that it has no figure of.

    Attributes:
        name, family, data, backbone, context: str; the family is "openseg" or "mmseg".
        images, training: its rows of the tables.
        steps: int.
        miou, miou_ms_flip: the publisher's figures, in %, or `None`.
        note: str, what is particular about the figure; may be empty.
    """

    name: str
    family: str
    data: str
    backbone: str
    context: str
    images: Images
    training: Training
    steps: int
    miou: float | None = None
    miou_ms_flip: float | None = None
    note: str = ""

    @property
    def hardware(self):
        """What its publisher trained it on."""
        return "4 V100 GPUs" if self.family == "mmseg" else "4 GPUs"

    @property
    def command(self):
        """The line that trains it."""
        return (
            f"python -m experiments.train --config=experiments/configs/recipes.py:{self.name} "
            f"--config.data.data_dir=DATA --workdir=runs/{self.name}"
        )


def _official():
    for data, training in _OFFICIAL_TRAINING.items():
        for backbone in BACKBONES:
            for context in CONTEXTS:
                hrnet = backbone == "hrnet_w48"
                note = ""
                if hrnet and context == "isa" and data in _OCR:
                    note = f"its neighbour there, HRNet-W48 with OCR: {_OCR[data]}"
                yield Recipe(
                    f"{data}-{backbone}-{context}",
                    "openseg",
                    data,
                    backbone,
                    context,
                    _OFFICIAL_IMAGES[data],
                    training,
                    training.steps[hrnet],
                    miou=_OFFICIAL_FIGURES.get((data, backbone, context)),
                    note=note,
                )


def _mmseg():
    figures = [
        (key, "isa", {k: (each.miou, each.miou_ms_flip)})
        for each in list_published("mmseg")
        for key in [(_DATA_OF[each.dataset], each.crop_size, f"resnet{each.network['depth']}")]
        for k in [int(each.schedule.removesuffix("k"))]
    ]
    figures += [(key, "fcn", by_steps) for key, by_steps in _MMSEG_FCN.items()]
    figures += [
        (("coco_stuff164k", (512, 512), backbone), context, {80: (None, None)})
        for backbone in BACKBONES
        for context in CONTEXTS
    ]
    for (data, crop, backbone), context, by_steps in figures:
        for thousands, (miou, miou_ms_flip) in by_steps.items():
            batch_size, learning_rate, weight_decay = _MMSEG_TRAINING[data]
            steps = 1_000 * thousands
            note = ""
            if context == "fcn" and backbone != "hrnet_w48" and miou is not None:
                note = "of a head with one convolution more, which joins the backbone's map again"
            yield Recipe(
                f"{data}-{backbone}-{context}-mmseg-{crop[0]}x{crop[1]}-{thousands}k",
                "mmseg",
                data,
                backbone,
                context,
                _MMSEG_IMAGES[data, crop],
                Training(batch_size, learning_rate, 1.0, weight_decay, 0, (steps, steps)),
                steps,
                miou,
                miou_ms_flip,
                note,
            )


RECIPES = {recipe.name: recipe for recipe in (*_official(), *_mmseg())}


def get_config(name=""):
    """The config of a recipe.

    Args:
        name: str, of `RECIPES`: what stands behind the colon of
            --config=experiments/configs/recipes.py:NAME.

    Raises:
        ValueError: for a name that is none, with the nearest that are.
    """
    if name not in RECIPES:
        raise ValueError(unknown("recipe", name, list(RECIPES)))
    recipe = RECIPES[name]
    config = default.get_config()
    _set_data(config, recipe)
    _set_model(config, recipe)
    _set_training(config, recipe)
    return config


def _set_data(config, recipe):
    data, images = config.data, recipe.images
    data.name = recipe.data
    data.train_split, data.val_split = SPLITS.get(recipe.data, ("train", "val"))
    data.crop_size = images.crop_size
    data.update(images.resized)
    data.scale_range = images.scale_range
    if recipe.family == "openseg":
        data.aspect_range = (0.9, 1.1)
        data.brightness = 10
        data.photometric = False
    else:
        data.photometric = True
        data.cat_max_ratio = 0.75
    data.batch_size = recipe.training.batch_size
    config.test.update(images.test)


def _set_model(config, recipe):
    model, official = config.model, recipe.family == "openseg"
    model.backbone_weights = "imagenet"
    model.context = CONTEXTS[recipe.context]
    model.head_filters = 512
    if official or recipe.images.crop_size == (769, 769):
        model.coordinates = "align_corners"
    if recipe.backbone == "hrnet_w48":
        model.backbone = "hrnet_w48"
        model.output_stride = 4
        if recipe.context == "fcn":
            model.head_filters = 720  # as many as the four scales have
            model.head_kernel_size = 3 if official else 1
    else:
        model.backbone = f"{recipe.backbone}_{'deep' if official else 'v1c'}"
        model.output_stride = 16 if official and recipe.data == "lip" else 8
        model.auxiliary_level = "c4"
        model.auxiliary_filters = 512 if official else 256
        model.auxiliary_weight = 0.4
        if official:
            model.backbone_options.ceil_mode = True
    model.dropout = 0.1
    if recipe.context != "fcn" and official:
        model.dropout = 0.0
        model.context_options.dropout = 0.05
    elif recipe.backbone == "hrnet_w48" and recipe.context == "fcn" and not official:
        model.dropout = 0.0
    if recipe.context == "isa":
        model.context_options.partition = 8
        model.context_options.mask_padding = False  # padded zeros are keys, as there


def _set_training(config, recipe):
    train, row = config.train, recipe.training
    train.steps = recipe.steps
    train.validate_every = recipe.steps // 10
    train.checkpoint_every = 1_000
    train.optimizer = "sgd"
    train.momentum = 0.9
    train.learning_rate = row.learning_rate
    train.reference_batch = row.batch_size
    train.head_rate = row.head_rate
    train.weight_decay = row.weight_decay
    train.decay_spares = ()
    train.warmup_steps = row.warmup_steps
    train.power = 0.9
    if recipe.family == "mmseg":
        train.end_learning_rate = 1e-4
        train.loss_average = "all"
        return
    train.end_learning_rate = 0.0
    train.loss_average = "valid"
    if recipe.data == "cityscapes":
        train.class_weights = CITYSCAPES_WEIGHTS
    if recipe.data == "ade20k" and recipe.backbone == "hrnet_w48":
        train.losses = {"ohem": 1.0}
        train.loss_options.ohem = _OHEM


def describe(recipe):
    """A recipe in a few lines: its figure, whose, on what, and the command that trains it."""
    publisher = {"openseg": "openseg.pytorch", "mmseg": "mmsegmentation"}[recipe.family]
    if recipe.miou is None:
        figure = f"no published figure of this network; others of {publisher}"
    else:
        figure = f"mIoU {recipe.miou:.2f}"
        if recipe.miou_ms_flip is not None:
            figure += f", multi-scale and flip {recipe.miou_ms_flip:.2f}"
        figure += f", {publisher}"
    note = f" ({recipe.note})" if recipe.note else ""
    return (
        f"{recipe.name}\n    {figure} on {recipe.hardware}{note}; not run here\n"
        f"    {recipe.command}"
    )


def main():
    for recipe in RECIPES.values():
        print(describe(recipe))


if __name__ == "__main__":
    main()
