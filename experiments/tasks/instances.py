"""Instance segmentation: boxes, classes and masks of objects, compared by average precision."""

import concurrent.futures
import itertools
import json
import math
import zlib
from collections import deque
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from experiments import setup
from experiments.setup import batch_files  # noqa: F401 (a part of what a task is)
from isa_tf import backbones, data, files, inference, metrics, report, training, visualize
from isa_tf.models import MaskRCNN
from isa_tf.names import two_ints, unknown

# The score by which models are compared, and what an ablation tables: of metrics.json.
MONITOR = "mask_ap"
SCORES = {"mask_ap": "mask AP", "box_ap": "box AP"}
EXAMPLES = "images"  # what a training reads
DETECTIONS, FACTS = "detections.json", "facts.json"
_AHEAD = 4  # images that are read while others are looked at


def make_protocol(config, dataset=None):
    """The `inference.DetectionProtocol` of an experiment's `config.test`."""
    del dataset  # of segmentation alone
    names = ("short_side", "long_side", "size_divisor")
    return inference.DetectionProtocol(**{name: config.test[name] for name in names})


# === Data ===


class Subset(data.InstanceDataset):
    """Some images and some classes of a dataset.

    Args:
        dataset: `data.InstanceDataset`.
        image_ids: ints, the ids of the images to keep, in all splits; `None` for all.
        classes: names of the classes to keep; images without any of them stay. `None` for all.

    Raises:
        ValueError: for an id that no split has, or an unknown class, with the nearest.
    """

    def __init__(self, dataset, image_ids=None, classes=None):
        names = dataset.class_names if classes is None else tuple(classes)
        for name in names:
            if name not in dataset.class_names:
                raise ValueError(unknown("class", name, dataset.class_names))
        kept = [dataset.class_names.index(name) for name in names]
        super().__init__(
            dataset.name,
            names,
            dataset.splits,
            [dataset.palette[i] for i in kept],
            [dataset.category_ids[i] for i in kept],
            dataset.on_error,
        )
        self._dataset = dataset
        # What becomes of each class of the dataset: -1 for those that are left out.
        self._class_ids = np.full(dataset.num_classes, -1, np.int32)
        self._class_ids[kept] = np.arange(len(kept))
        self._indices = {split: range(dataset.size(split)) for split in dataset.splits}
        if image_ids is not None:
            wanted, seen = {int(i) for i in image_ids}, set()
            for split, indices in self._indices.items():
                ids = [dataset.image_id(split, index) for index in indices]
                self._indices[split] = [
                    i for i, image in zip(indices, ids, strict=True) if image in wanted
                ]
                seen |= wanted.intersection(ids)
            if missing := sorted(wanted - seen):
                raise ValueError(f"{dataset.name} has no image {', '.join(map(str, missing))}")

    def _at(self, split, index):
        self._check_split(split)
        return split, self._indices[split][index]

    def examples(self, split):
        self._check_split(split)
        names = self._dataset.examples(split)
        return tuple(names[i] for i in self._indices[split])

    def image_id(self, split, index):
        return self._dataset.image_id(*self._at(split, index))

    def size_of(self, split, index):
        return self._dataset.size_of(*self._at(split, index))

    def annotations(self, split, index):
        return self._of(self._dataset.annotations(*self._at(split, index)))

    def read(self, split, index):
        image, annotations = self._dataset.read(*self._at(split, index))
        return image, self._of(annotations)

    def orientations(self, split):
        self._check_split(split)
        known = self._dataset.orientations(split)
        return None if known is None else known[list(self._indices[split])]

    def image_reader(self, split):
        self._check_split(split)
        reader, indices = self._dataset.image_reader(split), list(self._indices[split])
        if reader is None or not indices:
            return None
        places = tf.constant(indices, tf.int64)
        able = None if reader.able is None else np.asarray(reader.able)[indices]
        return data.GraphReader(lambda index: reader.read(places[index]), able)

    def _of(self, annotations):
        classes = self._class_ids[annotations.classes]
        kept = np.flatnonzero(classes >= 0)
        return annotations._replace(
            boxes=annotations.boxes[kept],
            classes=classes[kept],
            crowd=annotations.crowd[kept],
            masks=[annotations.masks[i] for i in kept],
            ids=annotations.ids[kept],
            areas=annotations.areas[kept],
        )


def make_dataset(config):
    """The dataset of an experiment: all of it, or the images and classes that are named."""
    c = config.data
    dataset = data.create(c.name, c.data_dir, **c.options.to_dict())
    if not isinstance(dataset, data.InstanceDataset):
        raise ValueError(
            f"data.name={c.name!r}: the data set has no instances, such as the task "
            f"{config.task!r} learns from"
        )
    if c.image_ids is None and c.classes is None:
        return dataset
    return Subset(dataset, c.image_ids, c.classes)


def make_train_data(config, dataset, start_step=0, context=None):
    """Batches from `start_step` on, without end; see `data.instance_train_pipeline`."""
    c = config.data
    return data.instance_train_pipeline(
        dataset,
        c.train_split,
        c.batch_size,
        short_side=c.short_side,
        long_side=c.long_side,
        pad_size=c.pad_size,
        size_divisor=c.size_divisor,
        flip=c.flip,
        max_instances=c.max_instances,
        mask_size=c.mask_size,
        seed=config.seed,
        start_step=start_step,
        cache=c.cache,
        input_context=context,
    )


def map_size(config):
    """(height, width) of the largest map that the context module reads of a training image."""
    c, stride = config.data, 2 ** int(config.model.context_level.removeprefix("c"))
    if c.pad_size is None:
        largest = int(np.max(c.short_side)), c.long_side
    else:
        pads = c.pad_size if np.ndim(c.pad_size) == 2 else [c.pad_size]
        largest = max((two_ints("pad_size", pad) for pad in pads), key=math.prod)
    return tuple(math.ceil(side / stride) for side in largest)


# === Training ===


def make_model(config, dataset):
    """The model of an experiment, not compiled."""
    c = config.model
    shared = {"dtype": c.dtype, "synchronized": tf.distribute.has_strategy()}
    of_backbone = dict(shared)
    if c.minimal_filtering is not None:
        of_backbone["minimal_filtering"] = c.minimal_filtering
    of_backbone |= c.backbone_options.to_dict()
    if c.context != "none":
        if "context_at" in of_backbone:
            raise ValueError(
                f"model.context={c.context!r} and model.backbone_options.context_at: the module "
                "in the backbone is told by one of them"
            )
        module = {"name": c.context, **c.context_options.to_dict()}
        of_backbone["context_at"] = {c.context_level: module}
    return MaskRCNN(
        backbones.create(c.backbone, 32, c.backbone_weights, **of_backbone),
        dataset.num_classes,
        freeze_at=c.freeze_at,
        freeze_norm=c.freeze_norm,
        class_names=dataset.class_names,
        palette=dataset.palette,
        category_ids=dataset.category_ids,
        protocol=make_protocol(config).to_dict(),
        **c.options.to_dict(),
        **shared,
    )


def part_to_train(config, dataset, model):
    """What of a model is trained: all of it."""
    del config, dataset  # of other tasks
    return model


class Phase(NamedTuple):
    """A part of a training: its last step."""

    steps: int


def phases(config):
    """The parts of a training: one."""
    return [Phase(config.train.steps)]


def compile_model(model, config, dataset, phase=None):
    """Compiles with the experiment's optimizer; the losses are the model's own.

    Args:
        model: of `make_model`.
        config, dataset: of the experiment.
        phase: `Phase`; there is one.

    Returns:
        dict: the arguments of `training.Run.fit` by which the model is validated and drawn.
    """
    del phase
    model.compile(setup.make_optimizer(config), jit_compile=config.train.jit_compile)
    # One for both, since tracing takes longest.
    predictor_of = setup.once_a_model(inference.InstancePredictor.from_model)

    def evaluate(model, watch):
        split = config.data.val_split
        indices = setup.spread(dataset.size(split), config.train.val_images)
        strategy = model.distribute_strategy
        found = count(predictor_of(model), dataset, split, indices, strategy, watch)
        return _plain(found.scores(only_added=True))

    def draw(model):
        split, pictures = config.data.val_split, config.train.pictures
        return make_sheet(config, predictor_of(model), dataset, split, pictures)

    return {
        "evaluate": evaluate,
        "monitor": MONITOR,
        "draw": draw if config.train.pictures else None,
    }


def look(predictor, dataset, split, indices, hear):
    """Has a predictor look at images of a split, one after the other.

    Args:
        predictor: `inference.InstancePredictor`.
        dataset, split: whose images.
        indices: positions of the images.
        hear: function of (position, `inference.Instances`), called after each; of an image that
            cannot be read, where `dataset.on_error` is "skip", of its position and `None`.
    """
    for index, image in _read_ahead(dataset, split, indices):
        hear(index, None if image is None else predictor(image))


def count(predictor, dataset, split, indices, strategy=None, watch=None):
    """`metrics.CocoScores` of what a predictor finds in images of a split.

    The workers of a strategy share the images; each uses one of its devices.

    Args:
        predictor, dataset, split, indices: see `look`.
        strategy: `tf.distribute.Strategy` whose workers all call it; `None` for this process alone.
        watch: function of (images done, images in all), called after each. Defaults to `None`.

    Returns:
        The scores, the same in all workers.
    """
    workers = 1 if strategy is None else training.num_workers(strategy)
    own = 0 if strategy is None else training.worker_index(strategy)
    mine = indices[own::workers]
    # All have as many turns, since workers ask one another in `watch`.
    turns, done = -(-len(indices) // workers), itertools.count(1)
    scores = metrics.CocoScores(dataset, split)

    def hear(index, instances):
        if instances is not None:
            scores.add(index, instances)
        if watch is not None:
            watch(next(done), turns)

    look(predictor, dataset, split, mine, hear)
    if len(mine) < turns and watch is not None:
        watch(turns, turns)
    if workers > 1:
        text = json.dumps(scores.by_image()).encode()
        for share in training.gather(strategy, zlib.compress(text)):
            for index, results in json.loads(zlib.decompress(share)).items():
                scores.add_results(int(index), results)
    return scores


def _read_ahead(dataset, split, indices):
    """(position, image or `None`) of some images, of which the next are read meanwhile."""

    def read(index):
        try:
            return dataset.read(split, index)[0]
        except data.DataError:
            if dataset.on_error == "raise":
                raise
            return None

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting, left = deque(), iter(indices)
        try:
            while True:
                for index in itertools.islice(left, _AHEAD - len(waiting)):
                    waiting.append((index, pool.submit(read, index)))
                if not waiting:
                    return
                index, image = waiting.popleft()
                yield index, image.result()
        finally:
            for _, image in waiting:
                image.cancel()


# === Pictures and scores ===


def make_sheet(config, predictor, dataset, split, count, heading=None):
    """A picture of truth and detections of `count` examples spread over a split."""
    examples, captions = [], []
    for index in setup.spread(dataset.size(split), count):
        image, annotations = dataset.read(split, index)
        truth = inference.Truth.of(annotations, image.shape[:2])
        examples.append((image, truth, predictor(image).above(config.test.score_threshold)))
        captions.append(Path(str(dataset.examples(split)[index])).name)
    return visualize.instance_sheet(
        examples, dataset.class_names, dataset.palette, captions, heading
    )


def score(config, dataset, predictor, split, by_image=False):
    """Scores a predictor on a split.

    Args:
        config, dataset: of the experiment.
        predictor: `isa_tf.inference.InstancePredictor`.
        split: name of the split.
        by_image: whether what was found in each image is wanted too. Defaults to False.

    Returns:
        (dict of scores for metrics.json, `report.InstanceScores`, empty unless `by_image`).
    """
    images = report.InstanceScores(dataset.num_classes)
    scores = metrics.CocoScores(dataset, split)

    def hear(index, instances):
        if instances is not None:
            scores.add(index, instances)
            if by_image:
                images.add(index, dataset.annotations(split, index), instances)

    look(predictor, dataset, split, range(dataset.size(split)), hear)
    return scores.scores(only_added=True), images


def headline(result):
    """The score that stands above a picture."""
    return ", ".join(f"{label} {setup.shown(result[name])}" for name, label in SCORES.items())


def lines(result):
    """What is printed of an evaluation's scores, line by line."""
    yield " " * 20 + f"  {'box AP':>9}  {'mask AP':>9}"
    for name, row in result["classes"].items():
        yield f"{name:>20}  {setup.shown(row['box_ap']):>9}  {setup.shown(row['mask_ap']):>9}"
    kinds = {"": "AP", "50": "AP 50", "75": "AP 75"}
    kinds |= {f"_{size}": f"AP {size}" for size in ("small", "medium", "large")}
    for ending, label in kinds.items():
        box, mask = (setup.shown(result[f"{kind}_ap{ending}"]) for kind in ("box", "mask"))
        yield f"{label:>20}  {box:>9}  {mask:>9}"


def make_report(result, images, dataset, predictor, log, facts, max_images):
    """(text of images.csv, text of report.html); the images shown are predicted once more."""
    split = result["split"]
    names = report.short_names(dataset.examples(split))

    def show(index):
        image, annotations = dataset.read(split, index)
        return image, inference.Truth.of(annotations, image.shape[:2]), predictor(image)

    page = report.instance_page(
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
    return report.instance_table(images.scores(), names, dataset.class_names), page


def write_predictions(predictor, dataset, split, folder, facts):
    """Writes what is found in a split as COCO's server takes it: FOLDER/detections.json.

    It has the dataset's image ids and category ids. What it is of stands beside it, in facts.json.

    Returns:
        List of the path.

    Raises:
        FileExistsError: for a folder that holds anything but such files.
    """
    folder = Path(folder)
    left = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if strange := sorted(left - {DETECTIONS, FACTS}):
        raise FileExistsError(
            f"{folder} holds {strange[0]}, which is no file of detections; name another folder"
        )
    scores = count(predictor, dataset, split, range(dataset.size(split)))
    results = scores.results()
    told = {
        "dataset": dataset.name,
        "split": split,
        "images": len(scores.by_image()),
        "detections": len(results),
        "protocol": predictor.protocol.to_dict(),
        **facts,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((DETECTIONS, results), (FACTS, told)):
        files.write_json(folder / name, content)
    return [folder / DETECTIONS]


def _plain(scores):
    """The scores for a log: floats alone, those of classes with a slash, absent ones left out."""
    found = {name: value for name, value in scores.items() if name != "classes"}
    for name, each in scores["classes"].items():
        found[f"{MONITOR}/{name}"] = each[MONITOR]
    return {name: float(value) for name, value in found.items() if value is not None}
