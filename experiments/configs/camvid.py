"""EfficientNet-Lite0 + ISA on CamVid, 11 classes, 480x360.

python -m experiments.train --config=experiments/configs/camvid.py --workdir=runs/camvid
python -m experiments.evaluate --config=experiments/configs/camvid.py --workdir=runs/camvid
"""

from experiments.configs import default


def get_config():
    config = default.get_config()
    config.data.name = "camvid"
    config.data.data_dir = "../shared/data/camvid"
    config.data.crop_size = (240, 320)
    config.data.scale_range = (0.7, 1.6)
    config.data.cache = True
    config.data.batch_size = 4

    config.model.backbone = "efficientnet_lite0"
    config.model.backbone_weights = "imagenet"
    # A pole is two pixels wide here: the network reads the image enlarged, and reads it finely.
    config.model.input_scale = 1.5
    config.model.output_stride = 32
    config.model.key_filters = 128
    config.model.head_filters = 256
    config.model.head_kernel_size = 1
    config.model.decoder_levels = ("c4", "c3", "c2", "c1")
    config.model.decoder_filters = (128, 128, 96, 32)

    config.train.steps = 4_500
    config.train.validate_every = 450
    config.train.optimizer = "adamw"
    config.train.learning_rate = 1e-3
    config.train.end_learning_rate = 0.0
    config.train.weight_decay = 0.02
    config.train.warmup_steps = 200
    config.train.clip_norm = 5.0
    config.train.ema = 0.998
    config.train.jaccard_weight = 1.0
    return config
