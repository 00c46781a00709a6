r"""Studies of heads on frozen maps (`experiments.ablate`), trained where there is no TensorFlow.

    python -m experiments.elsewhere.study pack --folder=runs/packed \
        --studies=frozen/camvid,frozen/camvid-c3,frozen/camvid@4:pointwise+isa
    PYTHONPATH=. python experiments/elsewhere/device_study.py --folder=runs/packed \
        --data=../shared/data/camvid --out=runs/brought
    python -m experiments.elsewhere.study collect --brought=runs/brought --workdir=runs/elsewhere \
        --studies=frozen/camvid,frozen/camvid-c3,frozen/camvid@4:pointwise+isa

A study is STUDY/WHAT, of experiments.ablate and of what stands after the colon of
experiments/configs/frozen.py; behind them, where that is not all, @N for so many times the config's
own steps, and the variants. `pack` lowers, for every variant, its training step and its network,
beside the backbone; the second command, on the other machine, computes the maps of the images and
does the runs; `collect` writes the tables that `experiments.ablate` writes. Batches are those that
`experiments.ablate` sees. The first weights are drawn by NumPy from the distributions that the
layers have: these are not the runs of `experiments.ablate` under the same seeds, but runs like
them.
"""

import base64
import contextlib
import json
import math
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import flags
from PIL import Image

from experiments import ablate, setup, tasks
from experiments.configs import frozen
from isa_tf import data, files, runtime
from isa_tf.data import augment
from isa_tf.metrics import scores
from tools import progress
from tools.stablehlo import lower

ABOUT = "packed.json"
LONGEST = 4  # times a study's own length, that the orders of examples are told for
BATCH = 8  # images that go through the backbone at once


class Planned(NamedTuple):
    """A study that is asked for.

    Attributes:
        name: str, of `ablate.STUDIES`.
        what: str, what stands after the colon of frozen.py.
        length: int, times the config's own steps.
        variants: list of str, or `None` for all.
    """

    name: str
    what: str
    length: int
    variants: list[str] | None

    @classmethod
    def parse(cls, text):
        """
        >>> Planned.parse("frozen/camvid-c3@2:none+isa")
        Planned(name='frozen', what='camvid-c3', length=2, variants=['none', 'isa'])
        """
        head, _, variants = text.partition(":")
        head, _, length = head.partition("@")
        name, _, what = head.partition("/")
        if not what:
            raise ValueError(f"a study is STUDY/WHAT[@LENGTH][:VARIANT+...], got {text!r}")
        return cls(name, what, int(length or 1), variants.split("+") if variants else None)

    def config(self):
        """Of the experiment."""
        config = frozen.get_config(self.what)
        config.train.steps *= self.length
        config.train.validate_every = config.train.steps
        return config

    def study(self, workdir, seeds):
        """The `ablate.Study` that these runs are of."""
        place = self.what if self.length == 1 else f"{self.what}-x{self.length}"
        return ablate.Study(
            self.name, self.config(), Path(workdir) / place, seeds, self.variants, _command()
        )


# === Pack ===


def pack(folder, planned, seeds):
    """Writes what the other machine needs, but for the images.

    Raises:
        ValueError: for what is not done elsewhere: a data set with classes that change places in a
            mirror, a backbone that does not compute in bfloat16, or pictures that are read
            differently there; or for an unknown study or variant.
    """
    folder, config = Path(folder), planned[0].config()
    task = tasks.of(config)
    dataset = task.make_dataset(config)
    if dataset.flip_pairs:
        raise ValueError(f"{dataset.name}: classes that change places in a mirror are not packed")
    configs = {_level(one.config()): one.config() for one in planned}
    levels = sorted(configs)
    deepest = task.make_model(configs[levels[-1]], dataset)
    if deepest.dtype_policy.compute_dtype != "bfloat16":
        raise ValueError("kernels are packed in bfloat16, as they are used: model.dtype is other")
    folder.mkdir(parents=True, exist_ok=True)
    sizes = _sizes(dataset, "val")
    about = {
        "levels": levels,
        "classes": dataset.num_classes,
        "label_stride": config.features.label_stride,
        "batch_size": config.data.batch_size,
        "files": _files(dataset),
        "label_of": _label_table(dataset),
        "places": _places(config, dataset),
        "runs": [],
    }
    batches = {**dict.fromkeys(sizes, 1), tuple(config.data.crop_size): BATCH}
    for size, batch in batches.items():
        path = folder / f"maps_{size[0]}x{size[1]}_{batch}"
        if not Path(f"{path}.json").exists():
            _write_backbone(path, deepest, levels, size, batch)
    _write_backbone_weights(folder / "backbone.npz", deepest)
    orders = {f"seed{seed}": _order(config, 2 * dataset.size("train"), seed) for seed in seeds}
    np.savez_compressed(folder / "orders.npz", **orders)

    map_sizes = sorted({_map_size(size, config) for size in sizes})
    tell = progress.Lines()
    studies = [(one, one.study(folder, [0])) for one in planned]
    runs = [(one, study, variant) for one, study in studies for variant in study.variants]
    for number, (one, study, variant) in enumerate(runs, start=1):
        config, _ = study.runs[variant, 0]
        program = f"{one.what}-{one.name}-{variant}"
        if not (folder / f"{program}.state.json").exists():  # which is written last
            _write_head(folder / program, config, dataset, seeds, map_sizes)
        run = {"study": one.name, "what": one.what, "variant": variant, "program": program}
        run |= {"level": _level(config), "steps": config.train.steps}
        about["runs"].append({**run, "seeds": seeds})
        tell(None, number, len(runs))
    files.write_json(folder / ABOUT, about)
    print(f"{folder}: {len(runs)} networks, {files.size(folder) / 2**20:.1f} MiB")


def _level(config):
    return config.model.backbone_options.last_level


def _map_size(size, config):
    """That of the maps of an image; the levels from "c3" on have one at output stride 8."""
    return tuple(math.ceil(side / config.model.output_stride) for side in size)


def _sizes(dataset, split):
    return [dataset.read(split, i)[1].shape for i in range(dataset.size(split))]


def _files(dataset):
    """The names of images and labels of every split, below the folder of the data set."""
    found = {}
    for split in dataset.splits:
        names = dataset.examples(split)
        found[split] = [[f"{split}/images/{Path(n).name}", f"{split}/labels/{Path(n).stem}.png"]
                        for n in names]  # fmt: skip
    return found


def _label_table(dataset):
    """What of 256 labels of a file each is to the data set, which may unite classes."""
    table = np.full(256, 255)
    root = Path(frozen.get_config(dataset.name).data.data_dir)
    for split, names in _files(dataset).items():
        for index, (image, label) in enumerate(names):
            raw = np.asarray(Image.open(root / label))
            read, seen = dataset.read(split, index)
            if index < 3 and not np.array_equal(np.asarray(Image.open(root / image)), read):
                raise ValueError(
                    f"{root / image}: Pillow reads it otherwise than the data set does"
                )
            table[raw.ravel()] = seen.ravel()
            if not np.array_equal(table[raw], seen):
                raise ValueError(f"{root / label}: no table makes of it what the data set reads")
    return table.tolist()


def _places(config, dataset):
    """Window of every training image, (start, size), as the training's augmentation draws it."""
    found = []
    for index in range(dataset.size("train")):
        seed = data.pipeline.place_seeds(config.features.seed, index)[0]
        label = dataset.read("train", index)[1]
        found.append(augment.crop_place(label, config.data.crop_size, seed).numpy().tolist())
    return found


def _order(config, size, seed):
    """Which of `size` kept examples stand in the batches of a training, in turn."""

    class Kept:
        def size(self, split):
            return size

    batch = config.data.batch_size
    to_index = data.pipeline.example_order(Kept(), "train", batch, seed, shuffle=True)
    count = LONGEST * config.train.steps * batch
    places = tf.data.Dataset.range(count).map(to_index, runtime.processors()).batch(count)
    return next(iter(data.pipeline.finish(places))).numpy().astype(np.int32)


def _write_backbone(path, whole, levels, size, batch):
    backbone, variables = whole.backbone, whole.backbone.variables
    extractor = keras.Model(whole.input, backbone(whole.input))

    def function(images):
        maps = extractor(images, training=False)
        return [tf.cast(maps[level], tf.float16) for level in levels]

    inputs = {f"{i}": tf.TensorSpec(v.shape, _kept_as(v)) for i, v in enumerate(variables)}
    inputs["images"] = tf.TensorSpec((batch, *size, 3), tf.uint8)
    lower.write(path, lower.with_state(variables, function), inputs, levels)


def _kept_as(variable):
    # Kernels are rounded so before they are used: to a half the size, and nothing is lost.
    return tf.bfloat16 if len(variable.shape) == 4 else variable.dtype


def _write_backbone_weights(path, whole):
    arrays = {}
    for i, variable in enumerate(whole.backbone.variables):
        kept = tf.cast(variable.value, _kept_as(variable))
        bits = tf.bitcast(kept, tf.uint16) if kept.dtype == tf.bfloat16 else kept
        arrays[f"{i}"] = bits.numpy()
    np.savez(path, **arrays)


@contextlib.contextmanager
def _recorded_initializers(found):
    """Notes in `found`, by the variable's id, the initializer that each weight is drawn by."""
    plain = keras.Layer.add_weight

    def add_weight(self, shape=None, initializer=None, **kwargs):
        variable = plain(self, shape=shape, initializer=initializer, **kwargs)
        found[id(variable)] = keras.initializers.get(initializer or "glorot_uniform")
        return variable

    keras.Layer.add_weight = add_weight
    try:
        yield
    finally:
        keras.Layer.add_weight = plain


def _write_head(path, config, dataset, seeds, map_sizes):
    """The training step of a head, its network up to the classifier, and how its state begins."""
    keras.utils.clear_session()
    initializers = {}
    with _recorded_initializers(initializers):
        task = tasks.of(config)
        whole = task.make_model(config, dataset)
    head = whole.head()
    task.compile_model(head, config, dataset, task.phases(config)[0])
    level = _level(config)
    channels = head.input[level].shape[-1]
    crop, stride = config.data.crop_size, config.features.label_stride
    batch = config.data.batch_size
    label_size = [len(range(stride // 2, side, stride)) for side in crop]
    step = lower.TrainingStep(head, steps=True)
    step.write(
        f"{path}.step",
        tf.TensorSpec((batch, *_map_size(crop, config), channels), tf.float16),
        tf.TensorSpec((batch, *label_size), tf.uint8),
        lambda maps: {
            level: tf.cast(maps, tf.float32),
            "image": tf.zeros((batch, *label_size, 3), tf.uint8),
        },
    )
    variables = head.variables
    # What the resizing to the image's size reads: that depends on the image, the rest does not.
    history = head.outputs[0]._keras_history
    before = history.operation._inbound_nodes[history.node_index].input_tensors[0]
    network = keras.Model(head.input[level], before)

    def logits(maps):
        return [tf.cast(network(tf.cast(maps, tf.float32), training=False), tf.float32)]

    names = step.names[: len(variables)]
    inputs = {n: tf.TensorSpec(v.shape, v.dtype) for n, v in zip(names, variables, strict=True)}
    for size in map_sizes:
        spec = tf.TensorSpec((1, *size, channels), tf.float16)
        program, given = lower.with_state(variables, logits), {**inputs, "maps": spec}
        lower.write(f"{path}.logits{size[0]}x{size[1]}", program, given, ["logits"])

    told = [
        _told(name, variable, initializers.get(id(variable)), seeds)
        for name, variable in zip(step.names, step.variables, strict=True)
    ]
    about = {"state": told, "model": len(variables), "parameters": whole.count_params()}
    files.write_json(f"{path}.state.json", about)


def _told(name, variable, initializer, seeds):
    """How a variable begins: a dict of which `device_study.draw` makes its first value."""
    told = {"name": name, "shape": list(variable.shape), "dtype": str(variable.dtype)}
    value = keras.ops.convert_to_numpy(variable)
    if isinstance(initializer, keras.initializers.VarianceScaling):
        parts = ("scale", "mode", "distribution")
        return {**told, "variance_scaling": {part: getattr(initializer, part) for part in parts}}
    if isinstance(initializer, keras.initializers.RandomNormal):
        return {**told, "normal": initializer.stddev}
    if "seed_generator" in name:
        return {**told, "generator": True}
    if (value == value.flat[0]).all():
        return {**told, "constant": float(value.flat[0])}
    # Such as an orthogonal one: drawn here, for every seed.
    drawn = [type(initializer).from_config(initializer.get_config()) for _ in seeds]
    values = (keras.ops.convert_to_numpy(one(variable.shape)) for one in drawn)
    return {**told, "values": [base64.b64encode(v.tobytes()).decode() for v in values]}


# === Collect ===


def collect(brought, workdir, planned, seeds):
    """Writes the tables of what the other machine has left."""
    found = {}
    for folder in brought:
        for line in (Path(folder) / "runs.jsonl").read_text().splitlines():
            run = json.loads(line)
            key = run["study"], run["what"], run["variant"], run["seed"], run["steps"]
            found[key] = run
    for one in planned:
        study = one.study(workdir, seeds)
        _fill(study, found, one.what)
        study.write()
        print(f"{study.folder / 'results.md'}: {study.progress()}")


def _fill(study, found, what):
    dataset = tasks.of(study.config).make_dataset(study.config)
    for variant, seed in study.runs:
        run = found.get((study.name, what, variant, seed, study.config.train.steps))
        if run is None:
            continue
        result = scores(np.array(run["confusion"]), dataset.class_names)
        study.results[variant, seed] = {
            "miou": result["miou"],
            "pixel_accuracy": result["pixel_accuracy"],
            "iou": {c: row["iou"] for c, row in result["classes"].items()},
            "parameters": run["parameters"],
            "seconds": run["seconds"],
            "images": dataset.size("val"),
            "tensorflow": version("tensorflow"),
            "keras": version("keras"),
        }


def _command():
    return "python -m experiments.elsewhere.study collect " + shlex.join(sys.argv[1:])


def main(argv):
    del argv
    values = flags.FLAGS
    seeds = [int(seed) for seed in values.seeds]
    planned = [Planned.parse(text) for text in values.studies]
    if _asked == "pack":
        pack(values.folder, planned, seeds)
    else:
        collect(values.brought, values.workdir, planned, seeds)


if __name__ == "__main__":
    _asked = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if _asked not in ("pack", "collect"):
        sys.exit("the first argument is pack or collect")
    flags.DEFINE_list("studies", None, "STUDY/WHAT[@LENGTH][:VARIANT+...].", required=True)
    flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Whole numbers.")
    if _asked == "pack":
        flags.DEFINE_string("folder", None, "Folder to pack into.", required=True)
    else:
        flags.DEFINE_list("brought", None, "Folders of what came back.", required=True)
        flags.DEFINE_string("workdir", None, "Of the tables, in WHAT/STUDY.", required=True)
    setup.run(main)
