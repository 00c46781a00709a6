r"""Heads on the feature maps of a frozen backbone: what a context module is worth where no other
layer can take its work over.

python -m experiments.train --config=experiments/configs/frozen.py:camvid --workdir=runs/frozen
python -m experiments.ablate --study=frozen --config=experiments/configs/frozen.py:ccp-c5 \
    --workdir=runs/frozen/ccp-c5 --seeds=0,1,2,3,4

After the colon: camvid or ccp, and, where it is not c4, the map that the head reads. The backbone
is EfficientNet-Lite0 with ImageNet weights, at stride 8. Whole images and their mirror images go
through it once; their maps are kept in runs/features and shared by all runs.
"""

from experiments.configs import context, default


def get_config(what="camvid"):
    data, _, level = what.partition("-")
    config = default.get_config()
    if data == "camvid":
        config.data.crop_size = (360, 480)
    elif data == "ccp":
        config.data.crop_size = (480, 320)
        config.data.options.groups = context.CCP_GROUPS
    else:
        raise ValueError(f"data is camvid or ccp, got {data!r}")
    config.data.name = data
    config.data.data_dir = f"../shared/data/{data}"
    config.data.scale_range = None
    config.data.flip = False
    config.data.photometric = False
    config.data.batch_size = 4

    config.features.folder = f"runs/features/{data}-{level or 'c4'}"
    config.features.mirror = True
    config.features.label_stride = 4  # else the loss costs more than the module

    config.model.backbone = "efficientnet_lite0"
    config.model.backbone_weights = "imagenet"
    config.model.freeze_backbone = True
    config.model.dtype = "mixed_bfloat16"  # twice as fast where processors have AMX
    config.model.output_stride = 8
    config.model.head_level = level or "c4"
    config.model.head_filters = 128
    config.model.context_options.partition = 8

    config.train.steps = 1_500
    config.train.validate_every = 1_500
    config.train.optimizer = "adamw"
    config.train.learning_rate = 3e-3
    config.train.end_learning_rate = 0.0
    config.train.weight_decay = 0.02
    config.train.warmup_steps = 100
    config.train.clip_norm = 5.0
    config.train.pictures = 0
    return config
