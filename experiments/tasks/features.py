"""Feature maps of a frozen backbone, kept in a folder: what a config's `features` are about."""

import functools
import hashlib
import itertools

import numpy as np
import tensorflow as tf

from isa_tf import data, inference
from isa_tf.data import augment
from isa_tf.inference import views
from isa_tf.training import workers
from tools import progress

# What of `config.data` the maps that are trained on depend on.
_AUGMENTATION = (
    *("crop_size", "scale_range", "aspect_range", "cat_max_ratio", "short_side", "fit_size"),
    *("exact_size", "flip", "brightness", "photometric"),
)
_BATCH = 4  # images that go through the backbone at once


def facts(config, model, protocol):
    """What kept maps depend on, beside the images: a dict that JSON can hold.

    Args:
        config: of the experiment.
        model: its `Segmenter`.
        protocol: the `inference.Protocol` by which it sees images that it is scored on.

    Raises:
        ValueError: where the backbone is not frozen, or the protocol shows an image otherwise than
            once and whole.
    """
    c = config.features
    if c.rounds < 1 or c.label_stride < 1:
        raise ValueError(
            f"features.rounds and features.label_stride must be at least 1, got {c.rounds} and "
            f"{c.label_stride}"
        )
    if not config.model.freeze_backbone:
        raise ValueError(
            "features.folder keeps what a frozen backbone makes of images: it needs "
            "model.freeze_backbone=True"
        )
    usual = inference.Protocol(
        scales=protocol.scales, fit_size=protocol.fit_size, exact_size=protocol.exact_size
    )
    if protocol != usual or len(protocol.scales) > 1:
        raise ValueError(
            f"features.folder keeps one view of an image, whole and not padded; config.test shows "
            f"{protocol}"
        )
    if c.mirror and config.data.flip:
        raise ValueError(
            "features.mirror=True keeps every image and its mirror image: it needs data.flip=False"
        )
    digest = hashlib.sha256()
    for variable in model.backbone.variables:
        digest.update(variable.numpy().tobytes())
    return {
        "rounds": c.rounds,
        "mirror": c.mirror,
        "label_stride": c.label_stride,
        "seed": c.seed,
        "augmentation": {name: config.data[name] for name in _AUGMENTATION},
        "view": {
            "scale": protocol.scales[0],
            "fit": protocol.fit_size,
            "exact": protocol.exact_size,
        },
        "input_scale": model.input_scale,
        "output_stride": config.model.output_stride,
        "dtype": config.model.dtype,
        "backbone": {"name": config.model.backbone, "sha256": digest.hexdigest()},
    }


def keep(config, dataset, model, protocol, make_train_data):
    """Computes what is missing of the maps that a config is about.

    Of several workers the chief does it: each takes what another is writing for what a process that
    was killed has left.

    Args:
        config: of the experiment.
        dataset: its `data.SegmentationDataset` of images.
        model: its `Segmenter`.
        protocol: see `facts`.
        make_train_data: function of a config and a dataset, see `segmentation.make_train_data`.

    Returns:
        `data.FeatureDataset`, of which nothing is missing.

    Raises:
        ValueError: see `facts`; or for a folder of other maps, naming what differs.
    """
    act = functools.partial(_keep, config, dataset, model, protocol, make_train_data)
    kept = workers.by_chief(tf.distribute.get_strategy(), act)
    return act() if kept is None else kept  # of which nothing is missing any more


def _keep(config, dataset, model, protocol, make_train_data):
    c = config.data
    about = facts(config, model, protocol)
    extractor = model.feature_extractor()
    channels = {level: int(x.shape[-1]) for level, x in extractor.output.items()}
    names = dataset.examples(c.train_split)
    kinds = ("", " mirrored") if config.features.mirror else ("",)
    rounds = [
        f"{name} #{r}{kind}" for r in range(config.features.rounds) for name in names
        for kind in kinds
    ]  # fmt: skip
    examples = {c.train_split: rounds, c.val_split: dataset.examples(c.val_split)}
    kept = data.create_features(config.features.folder, dataset, examples, channels, about)
    total = sum(len(kept.missing(split)) for split in kept.splits)
    if not total:
        return kept
    print(f"{config.features.folder}: feature maps of {total:,} images", flush=True)
    tell, made = progress.Lines(), itertools.count(1)

    @tf.function(
        input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)], jit_compile=False
    )
    def run(images):
        return extractor(images, training=False)

    def write(split, indices, images, labels):
        maps = {level: x.numpy() for level, x in run(images).items()}
        for row, index in enumerate(indices):
            data.write_features(
                kept, split, index, {level: x[row] for level, x in maps.items()}, labels[row]
            )
            tell(None, next(made), total)

    _keep_train(config, dataset, kept, make_train_data, len(kinds), write)
    _keep_val(c.val_split, dataset, kept, protocol, write)
    return kept


def _keep_train(config, dataset, kept, make_train_data, kinds, write):
    split = config.data.train_split
    missing = set(kept.missing(split))
    places = sorted({index // kinds for index in missing})
    if not places:
        return
    plain = config.copy_and_resolve_references()
    plain.data.batch_size, plain.seed, plain.features.folder = 1, plain.features.seed, None
    step = config.features.label_stride
    # Single examples in order, so that the stream can be taken up at any of them.
    stream = iter(make_train_data(plain, dataset, places[0], shuffle=False))
    waiting = []
    for place in range(places[0], places[-1] + 1):
        image, label = (part[0] for part in next(stream))
        both = (image, label), augment.mirror(image, label, dataset.flip_pairs)
        for index, (image, label) in enumerate(both[:kinds], start=place * kinds):
            if index in missing:
                waiting.append((index, image, label[step // 2 :: step, step // 2 :: step]))
        if waiting and (len(waiting) >= _BATCH or place == places[-1]):
            indices, images, labels = zip(*waiting, strict=True)
            write(split, indices, np.stack(images), labels)
            waiting = []


def _keep_val(split, dataset, kept, protocol, write):
    for index in kept.missing(split):
        image, label = dataset.read(split, index)
        size = views.view_size(
            label.shape, protocol.scales[0], protocol.fit_size, protocol.exact_size
        )
        write(split, [index], views.resize_image(image[None], size), [label])
