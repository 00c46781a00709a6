"""Every key that an experiment can set, with its default: the published recipe on one's own folder.

A config of another experiment begins with `config = default.get_config()` and changes what it
needs; a key that is not here is refused.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config():
    config = ConfigDict()
    config.seed = 0

    config.data = ConfigDict()
    config.data.name = "folder"  # see isa_tf.data.list_names()
    config.data.data_dir = placeholder(str)
    config.data.num_classes = placeholder(int)  # of a folder without classes.json or classes.txt
    config.data.options = ConfigDict()  # further arguments of the dataset
    config.data.train_split = "train"
    config.data.val_split = "val"
    config.data.crop_size = placeholder(object)  # (height, width), or one int for both
    config.data.crop_size = (512, 512)
    config.data.scale_range = placeholder(tuple)
    config.data.scale_range = (0.5, 2.0)  # None: no random scale
    # Of the factor by which the width is scaled more than the height, at the same area.
    config.data.aspect_range = placeholder(tuple)  # such as (0.9, 1.1)
    # What images are resized to before they are scaled at random: one of the three, or none.
    config.data.short_side = placeholder(int)  # of the shorter side, keeping proportions
    config.data.fit_size = placeholder(tuple)  # (long, short) sides to fit into
    config.data.exact_size = placeholder(tuple)  # (height, width), whatever the proportions
    config.data.cat_max_ratio = 1.0  # a crop where one class exceeds it is drawn again
    config.data.flip = True  # with the dataset's flip_pairs, classes that change places then
    config.data.brightness = 0  # the most that is added to all of an image, of 255
    config.data.photometric = True
    config.data.cache = False  # keep decoded images in memory
    config.data.batch_size = 8  # over all replicas
    config.data.replica_batch_size = placeholder(int)  # in place of it: of each replica
    config.data.val_batch_size = 1  # of each replica

    # Maps of a frozen backbone, kept by experiments.features, in place of images to train on.
    config.features = ConfigDict()
    config.features.folder = placeholder(str)  # None: images
    config.features.rounds = 1  # times that the training split goes through the augmentation
    config.features.seed = 0  # of that augmentation
    config.features.mirror = False  # what comes out of it mirrored too
    # Of the pixels that are trained on, as of the logits, one in so many along a row and a column.
    config.features.label_stride = 1

    config.model = ConfigDict()
    config.model.initial = placeholder(str)  # a model of this kind whose weights it begins with
    config.model.backbone = "resnet50_v1c"  # see isa_tf.backbones.list_names()
    config.model.backbone_weights = placeholder(str)  # such as "imagenet"
    config.model.freeze_backbone = False  # leave it as it is, batch normalisation included
    config.model.output_stride = 8
    # Further arguments of the backbone, as --config.model.backbone_options='{"recompute": True}'
    # or '{"last_level": "c4"}', without what lies behind.
    config.model.backbone_options = ConfigDict()
    config.model.context = "isa"  # see isa_tf.layers.list_contexts()
    # Arguments of the module, as --config.model.context_options='{"partition": (4, 8)}'.
    config.model.context_options = ConfigDict()
    config.model.head_filters = 512
    config.model.head_kernel_size = 3
    config.model.decoder_levels = ()  # such as ("c3", "c2")
    config.model.decoder_filters = placeholder(object)  # int, or one for each level
    config.model.decoder_filters = 128
    config.model.input_scale = 1.0  # of the image that the backbone reads
    config.model.auxiliary_level = placeholder(str)  # such as "c4"
    config.model.auxiliary_filters = 256
    config.model.auxiliary_weight = 0.4  # of the auxiliary head's loss
    config.model.coordinates = "half_pixel"  # of the logits' resizing; or "align_corners"
    config.model.dropout = 0.1
    # From how many channels on 3x3 convolutions train by minimal filtering; on CPUs 256 is best.
    config.model.minimal_filtering = placeholder(int)
    config.model.dtype = "float32"  # or "mixed_bfloat16", "mixed_float16"

    config.train = ConfigDict()
    config.train.steps = 40_000
    config.train.validate_every = 2_000  # steps
    # Steps after which the state is kept, apart from validations, where it always is.
    config.train.checkpoint_every = 500
    config.train.optimizer = "sgd"  # or "adamw"
    config.train.learning_rate = 0.01
    # The batch that this rate is for: it is multiplied by batch_size * accumulate / reference_batch
    # (linear scaling). None: the rate is as it stands, whatever the batch.
    config.train.reference_batch = placeholder(int)
    config.train.head_rate = 1.0  # what the rate of all but the backbone is multiplied by
    config.train.momentum = 0.9  # of SGD
    config.train.weight_decay = 5e-4
    # What it spares, as --config.train.decay_spares='"norm","bias"'. None: nothing with "sgd", both
    # with "adamw".
    config.train.decay_spares = placeholder(tuple)
    config.train.power = 0.9  # of the poly schedule
    config.train.end_learning_rate = 1e-4
    config.train.warmup_steps = 0
    config.train.clip_norm = placeholder(float)  # of the whole gradient
    config.train.accumulate = 1  # batches whose gradients make one update; steps are batches
    config.train.ema = 0.0  # share of the averaged weights kept a step; 0: no averaging
    config.train.ema_batches = 32  # on which the average's moving statistics are estimated
    config.train.class_weights = placeholder(tuple)
    config.train.class_weight_steps = placeholder(int)  # they count up to this step; None: always
    # Losses and their weights, as --config.train.losses='{"cross_entropy": 1.0, "dice": 0.5}'; see
    # isa_tf.losses.list_names().
    config.train.losses = ConfigDict({"cross_entropy": 1.0})
    # Their options, as --config.train.loss_options='{"ohem": {"threshold": 0.9}}'.
    config.train.loss_options = ConfigDict()
    config.train.loss_average = "valid"  # or "all", see isa_tf.losses.PixelLoss
    config.train.jit_compile = False  # XLA for the whole step
    config.train.pictures = 4  # predictions of validation images shown in TensorBoard

    # How `experiments.evaluate` shows images to the model, see isa_tf.inference.Protocol.
    # Tuples: --config.test.scales=0.5,1.0 --config.test.flip_pairs="(14,15),(16,17)"
    # One value: --config.test.scales=0.5 or, for both sides, --config.test.crop_size=769
    config.test = ConfigDict()
    config.test.mode = "whole"  # or "slide"
    config.test.crop_size = placeholder(tuple)  # of a window; "slide" needs both
    config.test.stride = placeholder(tuple)
    config.test.scales = (1.0,)  # such as (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    config.test.fit_size = placeholder(tuple)  # (long, short) side to resize to first
    config.test.exact_size = placeholder(tuple)  # (height, width) to resize to first
    # A multiple of which whole images are padded to, such as 8.
    config.test.size_divisor = placeholder(int)
    config.test.pad_size = placeholder(tuple)  # (height, width) that smaller images are padded to
    config.test.flip = False  # the mirror image too
    config.test.flip_pairs = ()  # classes that change places in a mirror, such as ((14, 15),)
    config.lock()
    config.data.options.unlock()
    config.model.context_options.unlock()
    config.model.backbone_options.unlock()
    config.train.losses.unlock()
    config.train.loss_options.unlock()
    return config
