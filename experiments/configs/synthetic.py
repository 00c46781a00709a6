"""The demonstration: a tiny network on synthetic harbours, where only context tells the classes.

python -m experiments.train --config=experiments/configs/synthetic.py --workdir=runs/synthetic

`--config.model.context=none` trains the same network without the block.
"""

from experiments.configs import default


def get_config():
    config = default.get_config()
    config.data.name = "synthetic"
    config.data.options.num_examples = {"train": 2000, "val": 200}
    config.data.crop_size = (128, 128)
    config.data.scale_range = None
    config.data.photometric = False
    config.data.cache = True
    config.data.batch_size = 16

    config.model.backbone = "tiny"
    config.model.output_stride = 4
    config.model.head_filters = 64
    config.model.head_kernel_size = 1
    config.model.dropout = 0.0

    config.train.steps = 1_000
    config.train.validate_every = 250
    config.train.optimizer = "adamw"
    config.train.learning_rate = 3e-3
    config.train.end_learning_rate = 0.0
    config.train.weight_decay = 1e-4
    config.train.warmup_steps = 50
    # sea, rock, beacon, the four ships: the rare ones are what it is about.
    config.train.class_weights = (0.5, 0.7, 1.0, 1.0, 1.0, 1.0, 1.0)
    return config
