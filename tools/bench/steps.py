"""The training step that `experiments.train` runs, called by itself.

A model is compiled as the experiment of its task compiles it, by experiments/configs/default.py or
instances.py: the optimizer of `training.make_optimizer` (SGD with momentum, weight decay in the
gradient, the poly or step schedule), the losses and, of segmentation, the confusion matrix of its
mIoU. `training.prepare` has seen the model, and what is called is Keras's train function with a
batch in its hand, as `training.Run` does; so a step is `train_step` with everything that it counts
and averages, as a graph. What it leaves out is the reading of data, and what a run does between
steps: the loss is waited for, but not looked at.

Minimal filtering and recomputation are arguments of a model, which a config may name
(`model.minimal_filtering`, `model.backbone_options`); a case says whether it has them.
"""

import functools

from tools.bench.timing import wait


def of_segmenter(model, size, batch, jit_compile=False):
    """A call of (images, labels) that trains a `Segmenter` by one step and gives the logs.

    Args:
        model: `isa_tf.models.Segmenter`; it is compiled.
        size: (height, width) of the images.
        batch: int, how many.
        jit_compile: bool, `train.jit_compile`. Defaults to `False`.
    """
    import tensorflow as tf

    from experiments.configs import default
    from experiments.tasks import segmentation

    config = default.get_config()
    config.train.jit_compile, config.train.pictures = jit_compile, 0
    segmentation.compile_model(model, config, nothing(model.num_classes))
    specs = (
        tf.TensorSpec((batch, *size, 3), tf.float32),
        tf.TensorSpec((batch, *size), tf.uint8),
    )
    return _step(model, specs)


def of_detector(model, specs):
    """The same of (inputs, truth) of a `MaskRCNN`.

    Args:
        model: `isa_tf.models.MaskRCNN`; it is compiled.
        specs: of the inputs and of the truth, as `isa_tf.data.instance_train_pipeline` gives them.
    """
    from experiments.configs import instances as config_of_instances
    from experiments.tasks import instances

    config = config_of_instances.get_config()
    config.train.pictures = 0
    instances.compile_model(model, config, nothing(model.num_classes))
    return _step(model, specs)


def _step(model, specs):
    from isa_tf import training
    from isa_tf.compat import symbolic_build

    training.prepare(model)
    symbolic_build(model, specs)  # the variables of the optimizer and the metrics
    model.make_train_function()

    def step(*batch):
        logs = model.train_function([batch])
        wait(logs)
        return logs

    return step


@functools.lru_cache
def nothing(num_classes):
    """A data set of so many classes and no examples, for what asks for classes alone."""
    from isa_tf import data
    from isa_tf.data.base import voc_palette

    class Nothing(data.SegmentationDataset):
        def examples(self, split):
            return ()

    names = [f"class {i}" for i in range(num_classes)]
    return Nothing("nothing", names, ("train", "val"), voc_palette(num_classes))
