r"""Mask R-CNN on COCO: ResNet-50 and -101 with FPN, 1x and 2x, a context module at res4 or none.

python -m experiments.train --config=experiments/configs/mask_rcnn.py:resnet50-isa-1x \
    --config.data.data_dir=COCO --workdir=runs/resnet50-isa-1x
python -m experiments.evaluate --config=experiments/configs/mask_rcnn.py:resnet50-isa-1x \
    --config.data.data_dir=COCO --workdir=runs/resnet50-isa-1x

None of them was run here: figures are their publishers', of COCO val2017, on eight GPUs with two
images each. All of them, each with its command, hardware and figure: `python -m
experiments.configs.mask_rcnn`. More: docs/recipes.md.

Names are BACKBONE-CONTEXT-SCHEDULE. The module stands just before the last block of res4, the map
"c4", where the non-local paper has its block; it adds to its input, and a fresh one changes no
output. The ISA paper (arXiv 1907.12273) says that its block gains over the plain network and over
the non-local one there; neither its figures nor its place in the backbone were found in any source
that was at hand, so the recipes with it have none, and its place is the non-local block's.

The schedule is counted in mmdetection's epochs: 16 images a step, 7,330 steps for the 117,266
images of train2017 that have an annotation, 12 epochs (1x, the rate falls after 8 and 11) or 24
(2x, after 16 and 22). Detectron's 1x is 90,000 steps, falling at 60,000 and 80,000; so it is with
--config.train.steps=90_000 --config.train.boundaries=60_000,80_000.
"""

from typing import NamedTuple

from experiments.configs import instances
from isa_tf.names import unknown
from tools import tables

BACKBONES = ("resnet50", "resnet101")
CONTEXTS = ("none", "nonlocal", "isa", "self_attention", "rcca")
SCHEDULES = {"1x": 12, "2x": 24}  # epochs
# 117,266 images in batches of 16, the last of which is not full.
EPOCH = 7_330

# Seven shapes in place of some hundred, of all of which kernels would be chosen and compiled anew:
# photos of 4:3, of 3:2 and wider, lying and standing, and the one batch an epoch that mixes both.
PADS = (
    *((800, 1088), (800, 1216), (800, 1344)),
    *((1088, 800), (1216, 800), (1344, 800)),
    (1344, 1344),
)

_MMDETECTION, _NON_LOCAL = "mmdetection", "the non-local paper"
# (backbone, context, schedule): box AP, mask AP, whose. The non-local paper does not say in what
# was at hand which schedule its figures are of; they stand with the shorter one.
_FIGURES = {
    ("resnet50", "none", "1x"): (38.2, 34.7, _MMDETECTION),
    ("resnet50", "none", "2x"): (39.2, 35.4, _MMDETECTION),
    ("resnet101", "none", "1x"): (40.0, 36.1, _MMDETECTION),
    ("resnet101", "none", "2x"): (40.8, 36.6, _MMDETECTION),
    ("resnet50", "nonlocal", "1x"): (39.0, 35.5, _NON_LOCAL),
    ("resnet101", "nonlocal", "1x"): (40.8, 37.1, _NON_LOCAL),
}
_NOTES = {
    ("resnet50", "none", "1x"): "37.3 and 34.2 in GCNet's paper, 37.8 and 34.2 of "
    "maskrcnn-benchmark, with frozen normalisation",
}
# As the non-local paper's code has it: pooled keys, scores divided by the root of their length.
_OPTIONS = {"nonlocal": {"sub_sample": "before", "use_scale": True}}


class Recipe(NamedTuple):
    """A network and a schedule.

    Attributes:
        name, backbone, context, schedule: str.
        box_ap, mask_ap: the publisher's figures, in %, or `None`.
        publisher: str, whose they are, or `None`.
        note: str, what else is known of the figure; may be empty.
    """

    name: str
    backbone: str
    context: str
    schedule: str
    box_ap: float | None = None
    mask_ap: float | None = None
    publisher: str | None = None
    note: str = ""

    hardware = "8 GPUs, 2 images each"

    @property
    def steps(self):
        """How many there are: int."""
        return SCHEDULES[self.schedule] * EPOCH

    @property
    def command(self):
        """The line that trains it."""
        return (
            f"python -m experiments.train --config=experiments/configs/mask_rcnn.py:{self.name} "
            f"--config.data.data_dir=COCO --workdir=runs/{self.name}"
        )


def _all():
    for backbone in BACKBONES:
        for schedule in SCHEDULES:
            for context in CONTEXTS:
                key = backbone, context, schedule
                figures = _FIGURES.get(key, (None, None, None))
                name = f"{backbone}-{context}-{schedule}"
                yield Recipe(name, *key, *figures, note=_NOTES.get(key, ""))


RECIPES = {recipe.name: recipe for recipe in _all()}


def get_config(name=""):
    """The config of a recipe.

    Args:
        name: str, of `RECIPES`: what stands behind the colon of
            --config=experiments/configs/mask_rcnn.py:NAME.

    Raises:
        ValueError: for a name that is none, with the nearest that are.
    """
    if name not in RECIPES:
        raise ValueError(unknown("recipe", name, list(RECIPES)))
    recipe = RECIPES[name]
    config = instances.get_config()
    config.data.name = "coco"
    # Of train2017 the 117,266 images that have an instance.
    config.data.options.drop_empty = ("train",)
    config.data.short_side, config.data.long_side = 800, 1333
    config.data.pad_size = PADS
    config.data.batch_size = 16

    config.model.backbone = recipe.backbone
    config.model.backbone_weights = "imagenet"
    config.model.context, config.model.context_level = recipe.context, "c4"
    config.model.context_options = _OPTIONS.get(recipe.context, {})
    config.model.freeze_at, config.model.freeze_norm = "c2", True

    train, epochs = config.train, SCHEDULES[recipe.schedule]
    train.steps = recipe.steps
    train.validate_every = EPOCH
    train.checkpoint_every = 1_000
    train.optimizer = "sgd"
    train.learning_rate = 0.02
    train.reference_batch = 16
    train.momentum = 0.9
    train.weight_decay = 1e-4
    train.decay_spares = ()
    train.schedule = "step"
    train.boundaries = (epochs * 2 // 3 * EPOCH, epochs * 11 // 12 * EPOCH)
    train.decay_factor = 0.1
    train.warmup_steps = 500
    train.warmup_factor = 0.001
    return config


def figure(recipe):
    """What was published of a recipe, in words."""
    if recipe.box_ap is None:
        return "no published figure at hand"
    return f"box AP {recipe.box_ap:.1f}, mask AP {recipe.mask_ap:.1f}, {recipe.publisher}"


def describe(recipe):
    """A recipe in a few lines: its figure, whose, on what, and the command that trains it."""
    note = f" ({recipe.note})" if recipe.note else ""
    return (
        f"{recipe.name}\n    {figure(recipe)}{note}; on {recipe.hardware}; not run here\n"
        f"    {recipe.command}"
    )


def table():
    """The recipes as a Markdown table, which docs/recipes.md has."""
    heads = ["recipe", "backbone", "module at res4", "steps", "box AP", "mask AP", "whose figures"]
    rows = []
    for recipe in RECIPES.values():
        figures = ["–", "–", "–"]
        if recipe.box_ap is not None:
            figures = [f"{recipe.box_ap:.1f}", f"{recipe.mask_ap:.1f}", recipe.publisher]
        network = f"ResNet-{recipe.backbone.removeprefix('resnet')}-FPN"
        names = [f"`{recipe.name}`", network, f"`{recipe.context}`", f"{recipe.steps:,}"]
        rows.append([*names, *figures])
    return tables.markdown(heads, rows)


def main():
    for recipe in RECIPES.values():
        print(describe(recipe))


if __name__ == "__main__":
    main()
