r"""Context modules on real photographs, on equal terms: EfficientNet-Lite0, no decoder.

python -m experiments.ablate --study=context --config=experiments/configs/context.py:camvid \
    --workdir=runs/context/camvid --seeds=0,1,2
python -m experiments.ablate --study=context --config=experiments/configs/context.py:ccp \
    --workdir=runs/context/ccp --seeds=0,1,2

The network reads photos at about half their size (crops of 180x240; CCP 240x160), so that its maps
hold most of the scene; scores are those of the photos at full size. No decoder and no
auxiliary head, which could hide what the module does. Every score is that of the last step: none is
chosen by it.
"""

from experiments.configs import default

# 54 of CCP's 59 classes, by where on the body they are worn; many occur in a handful of photos.
CCP_GROUPS = (
    ("background", ("null",)),
    ("skin", ("skin",)),
    ("hair", ("hair",)),
    ("hat", ("hat",)),
    ("glasses", ("glasses", "sunglasses")),
    (
        "top",
        ("top", "blouse", "shirt", "t-shirt", "sweater", "sweatshirt", "jumper", "hoodie"),
    ),
    ("coat", ("coat", "jacket", "blazer", "cardigan", "cape", "vest", "suit")),
    ("dress", ("dress", "romper")),
    ("trousers", ("pants", "jeans", "leggings")),
    ("shorts", ("shorts",)),
    ("skirt", ("skirt",)),
    ("stockings", ("stockings", "tights", "socks")),
    (
        "shoes",
        (
            *("shoes", "boots", "clogs", "flats", "heels", "loafers", "pumps", "sandals"),
            *("sneakers", "wedges"),
        ),
    ),
    ("bag", ("bag", "purse", "wallet")),
    ("belt", ("belt",)),
    ("scarf", ("scarf", "tie")),
    ("jewellery", ("accessories", "bracelet", "earrings", "gloves", "necklace", "ring", "watch")),
)


def get_config(data="camvid"):
    config = default.get_config()
    if data == "camvid":
        config.data.crop_size = (180, 240)
    elif data == "ccp":
        config.data.crop_size = (240, 160)
        config.data.options.groups = CCP_GROUPS
    else:
        raise ValueError(f"data is camvid or ccp, got {data!r}")
    config.data.name = data
    config.data.data_dir = f"../shared/data/{data}"
    config.data.scale_range = (0.375, 0.75)
    config.data.cache = True
    config.data.batch_size = 4

    config.model.backbone = "efficientnet_lite0"
    config.model.backbone_weights = "imagenet"
    config.model.output_stride = 16
    config.model.context_options.partition = 4
    config.model.head_filters = 256
    config.model.head_kernel_size = 1

    config.train.steps = 900
    config.train.validate_every = 900
    config.train.optimizer = "adamw"
    config.train.learning_rate = 3e-3
    config.train.end_learning_rate = 0.0
    config.train.weight_decay = 0.02
    config.train.warmup_steps = 100
    config.train.clip_norm = 5.0
    config.train.pictures = 0

    config.test.scales = (0.5,)
    return config
