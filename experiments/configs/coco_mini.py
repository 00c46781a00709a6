r"""Overfits 16 photos of COCO: whether all of a detector learns, in minutes on two cores.

python -m experiments.train --config=experiments/configs/coco_mini.py --workdir=runs/coco_mini \
    --config.data.data_dir=DATA
python -m experiments.evaluate --config=experiments/configs/coco_mini.py --workdir=runs/coco_mini \
    --config.data.data_dir=DATA

DATA is a folder in COCO's format with these images in its split "train"; they are validated on
too. `:none` behind the file's name leaves the module out. The photos are those whose instances a
mask of 28x28 holds best, so that average precision can come near 1.

On two cores of a machine with other work, seed 0, without the module: mask AP 0.698, 0.835, 0.948
and 0.961 after 250, 500, 750 and 1,000 steps, box AP 0.974, in 21 minutes. With it, 0.781 and 0.880
after 250 and 500 steps, in 11 minutes; that run was not gone on with.
"""

from experiments.configs import instances

# Of COCO train2017: 53 instances of 25 classes, no crowd.
IMAGES = (
    *(213148, 173350, 331352, 525891, 24577, 216794, 403385, 294920),
    *(107438, 501760, 196393, 6818, 358083, 41888, 60623, 522418),
)


def get_config(context="isa"):
    if context not in ("isa", "none"):
        raise ValueError(f"the module is isa or none, got {context!r}")
    config = instances.get_config()
    config.data.name = "coco"
    config.data.data_dir = "../shared/data/coco_mini"
    config.data.val_split = "train"
    config.data.image_ids = IMAGES
    config.data.short_side = config.test.short_side = 192
    config.data.long_side = config.test.long_side = 256
    config.data.pad_size = ((192, 256), (256, 192), (256, 256))
    config.data.flip = False
    config.data.max_instances = 10
    config.data.mask_size = 56
    config.data.cache = True
    config.data.batch_size = 4

    config.model.backbone = "resnet18"
    config.model.backbone_options = {"filters": 32}
    config.model.context = context
    if context == "isa":
        config.model.context_options = {"partition": 4}
    config.model.options = {
        "filters": 64,
        "anchor_sizes": (12, 24, 48, 96, 192),
        "box_units": (256,),
        "proposals_before": (200, 100),
        "proposals_after": (200, 100),
        "rpn_samples": 128,
        "box_samples": 64,
        "max_detections": 30,
    }

    config.train.steps = 1_000
    config.train.validate_every = 250
    config.train.optimizer = "adamw"
    config.train.learning_rate = 1e-3
    config.train.schedule = "poly"
    config.train.warmup_steps = 50
    config.train.weight_decay = 1e-4
    config.train.clip_norm = 10.0
    return config
