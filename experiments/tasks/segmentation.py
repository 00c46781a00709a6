"""Semantic segmentation: a class for every pixel, compared by mean IoU."""

import math
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf

from experiments import setup
from experiments.tasks import features
from isa_tf import (
    backbones,
    data,
    formats,
    inference,
    losses,
    report,
    training,
    visualize,
)
from isa_tf.metrics import MeanIoU, scores
from isa_tf.models import Segmenter
from isa_tf.names import two_ints

# The metric by which models are compared, and what an ablation tables: of metrics.json.
MONITOR = "miou"
SCORES = {"miou": "mIoU", "context_miou": "context mIoU"}
EXAMPLES = "crops"  # what a training reads
# Pixels so near a boundary between labels are left out of a second mIoU: annotators err there.
BAND = 3


def make_protocol(config, dataset=None):
    """The `inference.Protocol` of an experiment's `config.test`.

    Where the mirror image is seen and no `flip_pairs` are given, they are the dataset's own.
    """
    # --config.test.stride=None arrives as (None,).
    given = {key: value for key, value in config.test.items() if value != (None,)}
    if given.get("flip") and not given.get("flip_pairs"):
        given["flip_pairs"] = dataset.flip_pairs if dataset is not None else ()
    return inference.Protocol.from_dict(given)


def make_dataset(config):
    """The dataset of an experiment."""
    options = config.data.options.to_dict()
    if config.data.num_classes is not None:
        options["num_classes"] = config.data.num_classes
    return data.create(config.data.name, config.data.data_dir, **options)


def kept_features(config, dataset):
    """The `data.FeatureDataset` that stands for the images of a dataset; `None`: themselves."""
    if not config.features.folder:
        return None
    if not hasattr(dataset, "kept_features"):
        dataset.kept_features = data.FeatureDataset(config.features.folder)
    return dataset.kept_features


def make_train_data(config, dataset, start_step=0, context=None, shuffle=True):
    """Augmented training batches from `start_step` on, without end; see `data.train_pipeline`.

    Where the config has a folder of feature maps, those; see `data.feature_pipeline`.
    """
    c = config.data
    if kept := kept_features(config, dataset):
        return data.feature_pipeline(
            kept,
            c.train_split,
            c.batch_size,
            seed=config.seed,
            start_step=start_step,
            cache=c.cache,
            input_context=context,
        )
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
        shuffle=shuffle,
        start_step=start_step,
        cache=c.cache,
        input_context=context,
    )


def batch_files(config, dataset, step):
    """The names of the examples in the training batch of a step."""
    return setup.batch_files(config, kept_features(config, dataset) or dataset, step)


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


def map_size(config):
    """(height, width) of the map that the context module reads of a training crop."""
    scale, stride = config.model.input_scale, config.model.output_stride
    crop_size = two_ints("crop_size", config.data.crop_size)
    return tuple(math.ceil(side * scale / stride) for side in crop_size)


def make_model(config, dataset):
    """The model of an experiment, not compiled."""
    c = config.model
    shared = {"dtype": c.dtype, "synchronized": tf.distribute.has_strategy()}
    if c.minimal_filtering is not None:
        shared["minimal_filtering"] = c.minimal_filtering
    backbone = backbones.create(
        c.backbone, c.output_stride, c.backbone_weights, **c.backbone_options.to_dict(), **shared
    )
    backbone.trainable = not c.freeze_backbone
    model = Segmenter(
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
    if c.initial:
        begin_with(model, c.initial)
    return model


def begin_with(model, path):
    """Gives a model the weights of a kept one.

    Raises:
        ValueError: where that one is of another shape.
    """
    kept = formats.load_model(path)
    ours, theirs = ([tuple(w.shape) for w in m.weights] for m in (model, kept))
    if ours != theirs:
        raise ValueError(
            f"model.initial={path} is no model of this kind: its {len(theirs)} weights and our "
            f"{len(ours)} differ in number or shapes"
        )
    model.set_weights(kept.get_weights())


def part_to_train(config, dataset, model):
    """What of a model is trained: all of it, or its head, where feature maps stand for images.

    Those that are not there yet are computed.

    Raises:
        ValueError: see `features.keep`.
    """
    if not config.features.folder:
        return model
    protocol = make_protocol(config, dataset)
    dataset.kept_features = features.keep(config, dataset, model, protocol, make_train_data)
    return model.head()


def whole(model):
    """The model that a part is of; a whole one itself."""
    return getattr(model, "segmenter", model)


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


def head_layers(model):
    """The names of the layers that learn and are not the backbone's: list of str."""
    backbone = {id(variable) for variable in model.backbone.trainable_variables}
    paths = {True: set(), False: set()}
    for variable in model.trainable_variables:
        paths[id(variable) in backbone].add(variable.path.split("/")[0])
    if both := sorted(paths[True] & paths[False]):
        raise ValueError(f"train.head_rate: backbone and head have layers of one name, {both}")
    return sorted(paths[False])


def compile_model(model, config, dataset, phase=None):
    """Compiles with the experiment's optimizer, loss and metrics.

    Args:
        model: of `part_to_train`.
        config, dataset: of the experiment.
        phase: `Phase`, which tells whether class weights count; `None`: they do.

    Returns:
        dict: the arguments of `training.Run.fit` by which the model is validated and drawn.
    """
    c = config.train
    rates = None
    if c.head_rate != 1:
        rates = dict.fromkeys(head_layers(whole(model)), c.head_rate)
    metrics = [MeanIoU(dataset.num_classes, dataset.ignore_label)]
    if context_ids := getattr(dataset, "context_class_ids", None):
        metrics.append(
            MeanIoU(dataset.num_classes, dataset.ignore_label, context_ids, name="context_miou")
        )
    loss = losses.combine(
        c.losses.to_dict(),
        c.loss_options.to_dict(),
        ignore_label=dataset.ignore_label,
        class_weights=c.class_weights if phase is None or phase.weighted else None,
        average=c.loss_average,
    )
    optimizer = setup.make_optimizer(config, rates=rates)
    model.compile(optimizer, loss, metrics=metrics, jit_compile=c.jit_compile)

    def class_scores(model):
        confusion = training.read_variable(metrics[0].confusion)
        iou = scores(confusion, dataset.class_names)["iou"]
        return {f"val_iou/{name}": value for name, value in iou.items() if value is not None}

    def validate_on(context):
        if kept := kept_features(config, dataset):
            c = config.data
            return data.feature_eval_pipeline(
                kept, c.val_split, c.val_batch_size, c.cache, input_context=context
            )
        return make_val_data(config, dataset, context=context)

    return {
        "make_val_data": validate_on,
        "monitor": MONITOR,
        "details": class_scores,
        "draw": make_draw(config, dataset),
    }


def make_draw(config, dataset):
    """The function that draws validation predictions of a model, `None` for no pictures."""
    if not config.train.pictures:
        return None
    predictor_of = setup.once_a_model(inference.Predictor.from_model)

    def draw(model):
        split, pictures = config.data.val_split, config.train.pictures
        return make_sheet(config, predictor_of(whole(model)), dataset, split, pictures)

    return draw


def score(config, dataset, predictor, split, by_image=False):
    """Scores a predictor on a split.

    Args:
        config, dataset: of the experiment.
        predictor: `isa_tf.inference.Predictor`.
        split: name of the split.
        by_image: whether the scores of each image are wanted too. Defaults to False.

    Returns:
        (dict of scores for metrics.json, `report.ImageScores`, empty unless `by_image`).
    """
    batches = make_val_data(config, dataset, split, with_index=by_image)
    images = report.ImageScores(dataset.num_classes, dataset.ignore_label)
    confusion, inside = inference.confusion_matrix(
        predictor,
        batches,
        dataset.num_classes,
        dataset.ignore_label,
        band=BAND,
        hear=images.add_batch if by_image else None,
    )
    result = scores(confusion, dataset.class_names)
    result["miou_without_boundaries"] = scores(inside)["miou"]
    if context_ids := getattr(dataset, "context_class_ids", None):
        context = scores(confusion, dataset.class_names, context_ids)
        result["context_miou"] = context["miou"]
    return result, images


def headline(result):
    """The score that stands above a picture."""
    return f"mIoU {setup.shown(result['miou'])}"


def lines(result):
    """What is printed of an evaluation's scores, line by line."""
    kinds = ("iou", "accuracy", "precision", "f1")
    yield " " * 20 + "".join(f"  {kind:>9}" for kind in kinds)
    for name, row in result["classes"].items():
        cells = ("-" if row[kind] is None else f"{row[kind]:.4f}" for kind in kinds)
        yield f"{name:>20}" + "".join(f"  {cell:>9}" for cell in cells)
    inside = setup.shown(result["miou_without_boundaries"])
    yield f"{'mIoU':>20}  {setup.shown(result['miou'])} over {result['classes_counted']} classes"
    yield f"{'mIoU inside':>20}  {inside} further than {BAND} pixels from a boundary"
    yield f"{'mean accuracy':>20}  {setup.shown(result['mean_accuracy'])}"
    yield f"{'pixel accuracy':>20}  {setup.shown(result['pixel_accuracy'])}"


def make_sheet(config, predictor, dataset, split, count, heading=None):
    """A picture of photo, truth and prediction of `count` examples spread over a split."""
    del config  # of other tasks
    rows, captions = [], []
    for index in setup.spread(dataset.size(split), count):
        image, label = dataset.read(split, index)
        rows.append((image, label, predictor(image[None])[0][0]))
        captions.append(Path(str(dataset.examples(split)[index])).name)
    titles = ("photo", "truth", "prediction")
    return visualize.sheet(
        rows, titles, dataset.palette, dataset.class_names, captions, heading, ignore_label=255
    )


def make_report(result, images, dataset, predictor, log, facts, max_images):
    """(text of images.csv, text of report.html); the images shown are predicted once more."""
    split = result["split"]
    names = report.short_names(dataset.examples(split))

    def show(index):
        image, label = dataset.read(split, index)
        return image, label, predictor(image)[0]

    page = report.page(
        result,
        images,
        names,
        dataset.class_names,
        dataset.palette,
        show,
        log,
        facts,
        max_images,
    )
    return report.table(images.scores(), names, dataset.class_names), page


def write_predictions(predictor, dataset, split, folder, facts):
    """Writes a PNG an image, see `inference.write_results`; gives their paths."""
    return inference.write_results(predictor, dataset, split, folder, facts=facts)
