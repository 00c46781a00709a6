"""Every key of an experiment with instances, with its default: Mask R-CNN on COCO's format.

A config of another experiment begins with `config = instances.get_config()` and changes what it
needs; a key that is not here is refused. What is as in default.py is said there.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config():
    config = ConfigDict()
    config.task = "instance_segmentation"  # default.py has none, which is segmentation
    config.seed = 0

    config.data = ConfigDict()
    config.data.name = "coco"  # see isa_tf.data.list_names()
    config.data.data_dir = placeholder(str)
    config.data.options = ConfigDict()  # further arguments of the dataset
    config.data.train_split = "train"
    config.data.val_split = "val"
    # The ids of the images that there are, in all splits, such as 9,25,30; None: all of them.
    config.data.image_ids = placeholder(tuple)
    config.data.classes = placeholder(tuple)  # names of the classes that there are; None: all
    # Of training images, pixels: the shorter side gets this, unless the longer would get more than
    # `long_side`. Several, as --config.data.short_side=640,672,704: one of them is drawn.
    config.data.short_side = placeholder(object)
    config.data.short_side = 800
    config.data.long_side = 1333
    # (height, width) that every training batch is padded to, or several, of which a batch takes the
    # smallest that holds its images; None: the least multiple of size_divisor that does.
    config.data.pad_size = placeholder(tuple)
    config.data.size_divisor = 32
    config.data.flip = True
    config.data.max_instances = 100  # annotations of an image beyond these are left out
    config.data.mask_size = 112  # of the square that each true mask is kept in
    config.data.cache = False  # keep decoded images in memory
    config.data.batch_size = 16  # over all replicas
    config.data.replica_batch_size = placeholder(int)  # in place of it: of each replica

    config.model = ConfigDict()
    config.model.backbone = "resnet50"  # see isa_tf.backbones.list_names()
    config.model.backbone_weights = placeholder(str)  # such as "imagenet"
    # Further arguments of the backbone, as --config.model.backbone_options='{"recompute": True}'.
    config.model.backbone_options = ConfigDict()
    # The module in the backbone, just before the last block of the stage that makes the map
    # `context_level`; see isa_tf.layers.list_contexts().
    config.model.context = "none"
    config.model.context_level = "c4"
    # Arguments of the module, as --config.model.context_options='{"partition": (4, 8)}'.
    config.model.context_options = ConfigDict()
    # What of the backbone does not learn: all up to the map of this name, such as "c2"; and its
    # normalisations, statistics and all, but for those of the module.
    config.model.freeze_at = placeholder(str)
    config.model.freeze_norm = False
    # Further arguments of isa_tf.models.MaskRCNN, as --config.model.options='{"filters": 64}'.
    config.model.options = ConfigDict()
    # From how many channels on 3x3 convolutions train by minimal filtering; on CPUs 256 is best.
    config.model.minimal_filtering = placeholder(int)
    config.model.dtype = "float32"  # or "mixed_bfloat16", "mixed_float16"

    config.train = ConfigDict()
    config.train.steps = 90_000
    config.train.validate_every = 7_500  # steps
    # Steps after which the state is kept, apart from validations, where it always is.
    config.train.checkpoint_every = 500
    config.train.optimizer = "sgd"  # or "adamw"
    config.train.learning_rate = 0.02
    # The batch that this rate is for: it is multiplied by batch_size * accumulate / reference_batch
    # (linear scaling). None: the rate is as it stands, whatever the batch.
    config.train.reference_batch = placeholder(int)
    config.train.schedule = "step"  # or "poly"
    config.train.boundaries = (60_000, 80_000)  # of "step": the steps at which the rate falls
    config.train.decay_factor = 0.1  # of "step": what it is multiplied by there
    config.train.warmup_factor = 0.001  # of "step": the share of the rate that warming up begins at
    config.train.warmup_steps = 500
    config.train.power = 0.9  # of "poly"
    config.train.end_learning_rate = 0.0  # of "poly"
    config.train.momentum = 0.9  # of SGD
    config.train.weight_decay = 1e-4
    # What it spares, as --config.train.decay_spares='"norm","bias"'. None: nothing with "sgd", both
    # with "adamw".
    config.train.decay_spares = placeholder(tuple)
    config.train.clip_norm = placeholder(float)  # of the whole gradient
    config.train.accumulate = 1  # batches whose gradients make one update; steps are batches
    config.train.ema = 0.0  # share of the averaged weights kept a step; 0: no averaging
    config.train.ema_batches = 32  # on which the average's moving statistics are estimated
    config.train.jit_compile = False  # XLA for the whole step
    config.train.pictures = 4  # detections in validation images shown in TensorBoard
    # How many images of the validation split score a model during training, spread over it; None:
    # all. `experiments.evaluate` always scores all.
    config.train.val_images = placeholder(int)

    # How validation and `experiments.evaluate` show images, see isa_tf.inference.DetectionProtocol.
    config.test = ConfigDict()
    config.test.short_side = 800
    config.test.long_side = 1333
    config.test.size_divisor = 32
    # Detections below are not drawn and do not count where an image's mistakes are told. Average
    # precision counts all that the model gives: --config.model.options='{"score_threshold": 0.1}'.
    config.test.score_threshold = 0.5
    config.lock()
    config.data.options.unlock()
    config.model.backbone_options.unlock()
    config.model.context_options.unlock()
    config.model.options.unlock()
    return config
