r"""EfficientNet-Lite0 + ISA on CamVid, 11 classes, 480x360.

python -m experiments.train --config=experiments/configs/camvid.py:all --workdir=runs/camvid

trains on the frames of train and val, and so was the model trained that is kept in
experiments/trained/camvid, with seed 0, its weights rounded to float16. That it has a val mIoU of
0.8716 (101 whole images, single scale) says nothing: it has seen them. To score it on frames
that it has not, once they are prepared:

python -m experiments.evaluate --config=experiments/configs/camvid.py --workdir=runs/camvid_test \
    --config.data.data_dir=prepared --split=test --model=experiments/trained/camvid/best.keras

and with the mirror image and three scales, six times as many pixels:

    --config.test.flip --config.test.scales=0.75,1.0,1.25

Without anything after the colon train alone is trained on. But val flatters: its frames are of a
sequence of which train has others. One of the three sequences, 0001TP, 0006R0 or 0016E5, after the
colon is left out of training and scored:

python -m experiments.train --config=experiments/configs/camvid.py:0006R0 --workdir=runs/0006R0

Such scores are lower by far, and more honest: docs/results.md has them.

The network reads the image enlarged by 1.5: thin and distant things then look to the backbone more
like what it was trained on. Class weights teach the rare classes in the first four fifths; the last
fifth goes without them, since they make rare classes be predicted too often.
"""

import math

from experiments.configs import default

# Share of the pixels of the training split, by class.
FREQUENCIES = (
    *(0.1754, 0.2421, 0.0102, 0.3296, 0.0467, 0.1012),
    *(0.0122, 0.0117, 0.0611, 0.0067, 0.0030),
)
SEQUENCES = ("0001TP", "0006R0", "0016E5")
ALL = "all"


def get_config(held_out="val"):
    config = default.get_config()
    config.train.steps = 6_000
    config.train.validate_every = 1_500
    if held_out == ALL:
        # At the end of each phase alone: a score of frames that it has seen is to choose little.
        config.train.validate_every = config.train.steps
        config.data.options.splits = {"train": ("train/*", "val/*"), "val": ("val/*",)}
    elif held_out in SEQUENCES:
        others = tuple(f"*/{name}_*" for name in SEQUENCES if name != held_out)
        config.data.options.splits = {"train": others, "val": (f"*/{held_out}_*",)}
    elif held_out != "val":
        known = ", ".join(("val", *SEQUENCES, ALL))
        raise ValueError(f"after the colon stands one of {known}, got {held_out!r}")
    config.data.name = "camvid"
    config.data.data_dir = "../shared/data/camvid"
    config.data.crop_size = (264, 352)
    config.data.scale_range = (0.5, 2.0)
    config.data.cache = True
    config.data.batch_size = 4

    config.model.backbone = "efficientnet_lite0"
    config.model.backbone_weights = "imagenet"
    config.model.backbone_options.drop_path_rate = 0.2
    config.model.output_stride = 16
    config.model.head_filters = 256
    config.model.head_kernel_size = 1
    config.model.decoder_levels = ("c3", "c2")
    config.model.decoder_filters = (128, 96)
    config.model.input_scale = 1.5

    config.train.optimizer = "adamw"
    config.train.learning_rate = 1e-3
    config.train.end_learning_rate = 0.0
    config.train.weight_decay = 0.02
    config.train.warmup_steps = 200
    config.train.clip_norm = 5.0
    config.train.ema = 0.998
    config.train.losses.jaccard = 0.5
    config.train.class_weights = tuple(1 / math.log(1.1 + f) for f in FREQUENCIES)
    config.train.class_weight_steps = 4_800
    return config
