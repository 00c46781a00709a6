"""From a config to the objects of an experiment; shared by training and evaluation."""

import json
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf
from absl import app, flags, logging
from ml_collections import config_flags

from isa_tf import backbones, data, files, inference, losses, training, visualize
from isa_tf.metrics import MeanIoU, scores
from isa_tf.models import Segmenter


def define_config_flag():
    """Defines --config, the file of an experiment, and --config.KEY=VALUE to change it."""
    config_flags.DEFINE_config_file("config", None, "The experiment, a file in configs/.")


def run(main):
    """`app.run(main)` that answers a wrong argument with a line instead of a traceback."""

    def parse(argv):
        try:
            return app.parse_flags_with_usage(argv)
        except (AttributeError, KeyError, TypeError, OSError) as error:
            # What config_flags lets through: a key that is not there, a value of another type.
            sys.exit(f"error: {message(error)}")

    def guarded(argv):
        # TensorFlow reports every step of an export at INFO.
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        if argv[1:]:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        try:
            main(argv)
        except training.Interrupted as stop:
            print(stop, flush=True)
            sys.exit(stop.exit_code)
        except (ValueError, OSError, ImportError, FloatingPointError) as error:
            if flags.FLAGS.traceback:
                raise
            sys.exit(f"error: {message(error)}\n(--traceback shows where)")

    flags.DEFINE_bool("traceback", False, "Show where an error was raised.")
    app.run(guarded, flags_parser=parse)


def message(error):
    """What an error says, without the quotation marks that a KeyError puts around it."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def make_run(workdir, config, strategy=None):
    """The `training.Run` of an experiment: only what is named here may change as it goes on."""
    may_change = ("data.data_dir", "train.steps", "train.checkpoint_every", "test")
    return training.Run(workdir, json.loads(config.to_json()), may_change, strategy)


def make_dataset(config):
    """The dataset of an experiment."""
    options = config.data.options.to_dict()
    if config.data.num_classes is not None:
        options["num_classes"] = config.data.num_classes
    return data.create(config.data.name, config.data.data_dir, **options)


def make_train_data(config, dataset, start_step=0, context=None):
    """Augmented training batches from `start_step` on, without end; see `data.train_pipeline`."""
    c = config.data
    return data.train_pipeline(
        dataset,
        c.train_split,
        c.batch_size,
        c.crop_size,
        scale_range=c.scale_range,
        aspect_range=c.aspect_range,
        cat_max_ratio=c.cat_max_ratio,
        short_side=c.short_side,
        fit_size=c.fit_size,
        exact_size=c.exact_size,
        flip=c.flip,
        brightness=c.brightness,
        photometric=c.photometric,
        seed=config.seed,
        start_step=start_step,
        cache=c.cache,
        input_context=context,
    )


def batch_files(config, dataset, step):
    """The names of the examples in the training batch of a step."""
    c = config.data
    return data.batch_examples(dataset, c.train_split, c.batch_size, step, seed=config.seed)


def make_val_data(config, dataset, split=None, context=None, with_index=False):
    """Whole images of a split, by default the validation split; see `data.eval_pipeline`."""
    c = config.data
    return data.eval_pipeline(
        dataset,
        split or c.val_split,
        c.val_batch_size,
        cache=c.cache,
        input_context=context,
        with_index=with_index,
    )


def make_model(config, dataset):
    """The model of an experiment, not compiled."""
    c = config.model
    shared = {"dtype": c.dtype, "synchronized": tf.distribute.has_strategy()}
    if c.minimal_filtering is not None:
        shared["minimal_filtering"] = c.minimal_filtering
    backbone = backbones.create(
        c.backbone, c.output_stride, c.backbone_weights, **c.backbone_options.to_dict(), **shared
    )
    return Segmenter(
        backbone,
        c.context,
        dataset.num_classes,
        context_options=dict(c.context_options),
        head_filters=c.head_filters,
        head_kernel_size=c.head_kernel_size,
        decoder_levels=c.decoder_levels,
        decoder_filters=c.decoder_filters,
        input_scale=c.input_scale,
        auxiliary_level=c.auxiliary_level,
        auxiliary_filters=c.auxiliary_filters,
        auxiliary_weight=c.auxiliary_weight,
        coordinates=c.coordinates,
        dropout=c.dropout,
        class_names=dataset.class_names,
        palette=dataset.palette,
        **shared,
    )


def claim(workdir, config):
    """Makes the work directory of an experiment, or checks that it is this one's and free."""
    with make_run(workdir, config) as run:
        return run.workdir


class Phase(NamedTuple):
    """A part of a training: its last step, and whether class weights count up to there."""

    steps: int
    weighted: bool


def phases(config):
    """The parts of a training: a list of `Phase`.

    Raises:
        ValueError: for `train.class_weight_steps` without class weights or outside the training.
    """
    c = config.train
    if c.class_weight_steps is None:
        return [Phase(c.steps, True)]
    if c.class_weights is None or not 0 < c.class_weight_steps <= c.steps:
        raise ValueError(
            f"train.class_weight_steps={c.class_weight_steps} needs train.class_weights, and lies "
            f"in 1..{c.steps}"
        )
    return [Phase(c.class_weight_steps, True), Phase(c.steps, False)]


def for_replicas(config, replicas):
    """The config of a training on so many replicas, by two rules that it states itself.

    * `data.replica_batch_size`, where it is set: `data.batch_size` is that for each replica.
    * `train.reference_batch`, where it is set: the rate is the batch's that makes an update, in
      proportion; `train.learning_rate` is multiplied by batch_size * accumulate / reference_batch.

    Steps stay as they are: a batch of twice the size sees twice the images.

    Args:
        config: of the experiment; it is not changed.
        replicas: int, of the strategy.

    Returns:
        The config with what follows from them; given to this function again, it stays as it is.

    Raises:
        ValueError: for a size below 1.
    """
    config = config.copy_and_resolve_references()
    each, reference = config.data.replica_batch_size, config.train.reference_batch
    for name, value in (("data.replica_batch_size", each), ("train.reference_batch", reference)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if each is not None:
        config.data.batch_size = each * replicas
    if reference is not None:
        batch = config.data.batch_size * config.train.accumulate
        config.train.learning_rate *= batch / reference
        config.train.reference_batch = batch
    return config


def tell_scaling(given, config):
    """Prints what `for_replicas` made of a config."""
    one, other = given.data.batch_size, config.data.batch_size
    if one != other:
        print(f"data.batch_size={other}: {config.data.replica_batch_size} of each replica")
    one, other = given.train.learning_rate, config.train.learning_rate
    if one != other:
        print(
            f"train.learning_rate={other:g}: {one:g}, which is for {given.train.reference_batch} "
            f"images, for the {config.train.reference_batch} of an update"
        )


def check_strategy(config, strategy):
    """Raises ValueError for what a config asks and a strategy cannot do."""
    replicas = strategy.num_replicas_in_sync
    if config.data.batch_size % replicas:
        raise ValueError(
            f"data.batch_size={config.data.batch_size} is over all replicas, and there are "
            f"{replicas}: choose a multiple of {replicas}"
        )
    if config.train.jit_compile and replicas > 1:
        raise ValueError(
            f"train.jit_compile=True compiles the whole step, which holds variables of {replicas} "
            "devices, and XLA compiles for one; use one device, or compile the attention alone: "
            "--config.model.context_options='{\"jit_compile\": True}'"
        )


def head_layers(model):
    """The names of the layers that learn and are not the backbone's: list of str."""
    backbone = {id(variable) for variable in model.backbone.trainable_variables}
    paths = {True: set(), False: set()}
    for variable in model.trainable_variables:
        paths[id(variable) in backbone].add(variable.path.split("/")[0])
    if both := sorted(paths[True] & paths[False]):
        raise ValueError(f"train.head_rate: backbone and head have layers of one name, {both}")
    return sorted(paths[False])


def compile_model(model, config, dataset, weighted=True):
    """Compiles with the experiment's optimizer, loss and metrics.

    Class weights count if `weighted`.

    Returns:
        A function of the model that tells the IoU of each class, once a validation is done.
    """
    c = config.train
    rates = None
    if c.head_rate != 1:
        rates = dict.fromkeys(head_layers(model), c.head_rate)
    optimizer = training.make_optimizer(
        c.optimizer,
        c.learning_rate,
        c.steps // c.accumulate,
        momentum=c.momentum,
        weight_decay=c.weight_decay,
        power=c.power,
        end_learning_rate=c.end_learning_rate,
        warmup_steps=c.warmup_steps // c.accumulate,
        clip_norm=c.clip_norm,
        ema=c.ema,
        accumulate=c.accumulate,
        loss_scale=config.model.dtype == "mixed_float16",
        decay_spares=c.decay_spares,
        rates=rates,
    )
    metrics = [MeanIoU(dataset.num_classes, dataset.ignore_label)]
    if context_ids := getattr(dataset, "context_class_ids", None):
        metrics.append(
            MeanIoU(dataset.num_classes, dataset.ignore_label, context_ids, name="context_miou")
        )
    loss = losses.combine(
        c.losses.to_dict(),
        c.loss_options.to_dict(),
        ignore_label=dataset.ignore_label,
        class_weights=c.class_weights if weighted else None,
        average=c.loss_average,
    )
    model.compile(optimizer, loss, metrics=metrics, jit_compile=c.jit_compile)

    def class_scores(model):
        confusion = training.read_variable(metrics[0].confusion)
        iou = scores(confusion, dataset.class_names)["iou"]
        return {f"val_iou/{name}": value for name, value in iou.items() if value is not None}

    return class_scores


def make_sheet(predictor, dataset, split, count, heading=None):
    """A picture of photo, truth and prediction of `count` examples spread over a split."""
    rows, captions = [], []
    size = dataset.size(split)
    indices = [i * size // count for i in range(min(count, size))]
    for index in dict.fromkeys(indices):
        image, label = dataset.read(split, index)
        rows.append((image, label, predictor(image[None])[0][0]))
        captions.append(Path(str(dataset.examples(split)[index])).name)
    titles = ("photo", "truth", "prediction")
    return visualize.sheet(
        rows, titles, dataset.palette, dataset.class_names, captions, heading, ignore_label=255
    )


def make_draw(config, dataset):
    """The function that draws validation predictions of a model, `None` for no pictures."""
    predictors = {}
    if not config.train.pictures:
        return None

    def draw(model):
        predictor = predictors.setdefault(id(model), inference.Predictor.from_model(model))
        return make_sheet(predictor, dataset, config.data.val_split, config.train.pictures)

    return draw


def draw_curves(run):
    """Writes curves.png into a run's workdir, where matplotlib is installed."""
    if not run.chief:
        return
    try:
        figure = visualize.curves(training.read_log(run.workdir / training.LOG))
    except ImportError:
        return
    with files.replacing(run.workdir / "curves.png") as path:
        figure.savefig(path, dpi=120)


def tell(config, workdir, best, arguments):
    """Prints what a training has come to, and the commands that go on with it."""
    workdir = Path(workdir)
    given = [a for a in arguments if a.startswith("--config")]
    print(f"best: {json.dumps(best)}, the model in {workdir / training.BEST}")
    if (workdir / "curves.png").exists():
        print(f"curves: {workdir / 'curves.png'}")
    evaluate = ["python", "-m", "experiments.evaluate", *given, f"--workdir={workdir}"]
    export = ["python", "-m", "tools.export", f"--model={workdir / training.BEST}"]
    print(f"to evaluate: {shlex.join(evaluate)}")
    print(f"to export:   {shlex.join(export)}")
