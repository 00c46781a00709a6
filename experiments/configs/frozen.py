r"""Heads on the feature maps of a frozen backbone: what a context module is worth where no other
layer can take its work over.

python -m experiments.train --config=experiments/configs/frozen.py:camvid --workdir=runs/frozen
python -m experiments.ablate --study=frozen --config=experiments/configs/frozen.py:ccp-c5 \
    --workdir=runs/frozen/ccp-c5 --seeds=0,1,2,3,4

After the colon: camvid or ccp, and, where it is not c4, the map that the head reads. The backbone
is EfficientNet-Lite0 with ImageNet weights, at stride 8. Whole images and their mirror images go
through it once; their maps are kept in runs/features and shared by all runs.
"""

from experiments.configs import context

_SIZES = {"camvid": (360, 480), "ccp": (480, 320)}


def get_config(what="camvid"):
    data, _, level = what.partition("-")
    config = context.get_config(data)
    config.data.crop_size = _SIZES[data]
    config.data.scale_range = None
    config.data.flip = False
    config.data.photometric = False
    config.data.cache = False

    config.features.folder = f"runs/features/{data}-{level or 'c4'}"
    config.features.mirror = True
    config.features.label_stride = 4  # else the loss costs more than the module

    config.model.freeze_backbone = True
    config.model.dtype = "mixed_bfloat16"  # twice as fast where processors have AMX
    config.model.output_stride = 8
    config.model.backbone_options.last_level = level or "c4"
    config.model.head_filters = 128
    config.model.head_kernel_size = 3
    config.model.context_options.partition = 8

    config.train.steps = 1_500
    config.train.validate_every = 1_500

    config.test.scales = (1.0,)
    return config
