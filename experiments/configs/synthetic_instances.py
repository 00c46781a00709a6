"""Shapes upon shapes, found by a small Mask R-CNN with ISA in its backbone; minutes on two cores.

python -m experiments.train --config=experiments/configs/synthetic_instances.py \
    --workdir=runs/synthetic_instances
python -m experiments.evaluate --config=experiments/configs/synthetic_instances.py \
    --workdir=runs/synthetic_instances --report

`--config.model.context=none` trains the same network without the block.
"""

from experiments.configs import instances


def get_config():
    config = instances.get_config()
    config.data.name = "synthetic_instances"
    config.data.options.image_size = (96, 128)
    config.data.options.num_examples = {"train": 1000, "val": 100}
    config.data.short_side = config.test.short_side = 96
    config.data.long_side = config.test.long_side = 128
    config.data.pad_size = (96, 128)
    config.data.max_instances = 8
    config.data.mask_size = 56
    config.data.cache = True
    config.data.batch_size = 8

    config.model.backbone = "resnet18"
    config.model.backbone_options.filters = 16
    config.model.context = "isa"
    config.model.context_options.partition = 2
    config.model.options = {
        "filters": 32,
        "anchor_sizes": (8, 16, 32, 64, 96),
        "box_units": (128,),
        "mask_convs": 2,
        "proposals_before": (100, 50),
        "proposals_after": (100, 50),
        "rpn_samples": 64,
        "box_samples": 32,
        "max_detections": 20,
    }

    config.train.steps = 1_000
    config.train.validate_every = 250
    config.train.optimizer = "adamw"
    config.train.learning_rate = 2e-3
    config.train.schedule = "poly"
    config.train.warmup_steps = 50
    config.train.weight_decay = 1e-4
    config.train.clip_norm = 10.0
    return config
