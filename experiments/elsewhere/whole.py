r"""Packs trainings of whole segmenters for where there is no TensorFlow; takes up their results.

    python -m experiments.elsewhere.whole pack --config=camvid:0001TP --out=runs/packed
    python experiments/elsewhere/device_whole.py --folder=runs/packed --data=../shared/data/camvid \
        --out=runs/results
    python -m experiments.elsewhere.whole collect --config=camvid:0001TP --folder=runs/results \
        --workdir=runs/0001TP

The second command needs JAX, NumPy and Pillow alone. It trains all that was packed into the folder,
of one program where only data and seeds differ. What is packed of a training: its first state, its
step as a program, and a plan: which example stands at each place of `isa_tf.data.train_pipeline`'s
stream, and what is drawn for it. Pictures are read there, and checked to be these.
"""

import hashlib
import json
import sys
import zlib
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from experiments import evaluate, setup, tasks
from isa_tf import files, losses, runtime, training
from isa_tf.compat import averaged_variables
from isa_tf.data import augment
from isa_tf.data.pipeline import example_order, finish, place_seeds
from isa_tf.names import two_ints
from isa_tf.training.averaging import averaging_optimizer, estimate_statistics
from tools.stablehlo.lower import TrainingStep

_PLACES = 1024  # of the stream, drawn at once
# What the program of a step depends on, beside the number of classes.
_OF_PROGRAM = ("model", "train")


def pack(config, folder, name, forms=("shifted", "convolution")):
    """Packs one training.

    Args:
        config: of the experiment.
        folder: where its files go; those that others have there already are shared.
        name: of the training, in this folder.
        forms: names of `FORMS`, of each of which a program is written.

    Returns:
        dict: what NAME.json tells.

    Raises:
        ValueError: for what is not trained elsewhere: other tasks than segmentation, feature maps,
            `data.brightness`, classes that change places in a mirror, images of several sizes or of
            no files, mixed_float16, and a name that is taken.
    """
    folder, task = Path(folder), tasks.of(config)
    _check(config, task)
    if (folder / f"{name}.json").exists():
        raise ValueError(f"{folder} holds a training {name!r} already")
    config = setup.for_replicas(config, 1)
    keras.utils.set_random_seed(config.seed)
    dataset = task.make_dataset(config)
    if config.data.flip and dataset.flip_pairs:
        raise ValueError(f"{dataset.name}: classes that change places in a mirror are not packed")
    model = task.make_model(config, dataset)
    phases = task.phases(config)
    task.compile_model(model, config, dataset, phases[0])
    step = TrainingStep(model)
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "programs": _write_programs(config, dataset, model, step, folder, forms),
        "initial": _write_initial(step, folder),
        "plan": f"{name}-plan.npz",
        "steps": config.train.steps,
        "batch_size": config.data.batch_size,
        "crop_size": list(two_ints("crop_size", config.data.crop_size)),
        "padding": [list(augment.MEAN_COLOR), dataset.ignore_label],
        "phases": _class_weights(config, dataset, phases),
        "examples": _examples(config, dataset),
        # Where the weights to score are, in the state that there is at the end.
        "weights": _sources(model, step),
    }
    with files.replacing(folder / about["plan"]) as new, open(new, "wb") as file:
        np.savez_compressed(file, **plan(config, dataset))
    files.write_json(folder / f"{name}.json", about)
    return about


def _check(config, task):
    wrong = {
        "of another task than segmentation": task is not tasks.tasks["segmentation"],
        "of feature maps": bool(config.features.folder),
        "with data.brightness": bool(config.data.brightness),
        "in mixed_float16": config.model.dtype == "mixed_float16",
    }
    for what, is_so in wrong.items():
        if is_so:
            raise ValueError(f"a training {what} is not packed")


def shifted_depthwise(x, kernel, strides=1, padding="same", data_format=None, dilation_rate=1):
    """`keras.ops.depthwise_conv` as a sum over the kernel's places, of maps channels last.

    Its gradients are sums too. Where an accelerator has no fast gradient of grouped convolutions,
    this reads memory more often, but never computes a dense convolution in their place.
    """
    del data_format
    height, width, channels, _ = kernel.shape
    if padding == "same":
        pads = []
        for side, places in zip(x.shape[1:3], (height, width), strict=True):
            reach = (places - 1) * dilation_rate
            total = max((-(-side // strides) - 1) * strides + reach + 1 - side, 0)
            pads.append((total // 2, total - total // 2))
        x = tf.pad(x, [(0, 0), *pads, (0, 0)])
    kernel = tf.reshape(kernel, (height, width, channels))
    sides = [
        (side - (places - 1) * dilation_rate - 1) // strides * strides + 1
        for side, places in zip(x.shape[1:3], (height, width), strict=True)
    ]
    terms = []
    for row, column in np.ndindex(height, width):
        top, left = row * dilation_rate, column * dilation_rate
        part = x[:, top : top + sides[0] : strides, left : left + sides[1] : strides]
        terms.append(part * kernel[row, column])
    return tf.add_n(terms)


# How depthwise convolutions stand in a program: which is faster, a device has to tell.
FORMS = {"shifted": shifted_depthwise, "convolution": keras.ops.depthwise_conv}


def _write_programs(config, dataset, model, step, folder, forms):
    """Writes the programs of a step that the folder has not got; gives their names by form."""
    size = two_ints("crop_size", config.data.crop_size)
    shape = (config.data.batch_size, *size)
    parts = [json.loads(config.to_json())[part] for part in _OF_PROGRAM]
    parts[0].pop("initial")  # in the first state, as the seed is
    parts += [shape, dataset.num_classes, dataset.ignore_label]
    digest = _digest(json.dumps(parts, sort_keys=True).encode())
    names = {form: f"step-{digest}-{form}" for form in forms}
    read = {"images": tf.TensorSpec((*shape, 3), tf.uint8)}
    # Class weights are read, so that phases with them and without are of one program.
    weighed = _weighed(model.loss)
    if weighed:
        read["class_weights"] = tf.TensorSpec((dataset.num_classes,), tf.float32)
    kept = [loss.class_weights for loss in weighed]

    def prepare(x):
        for loss in weighed:
            loss.class_weights = tuple(tf.unstack(x["class_weights"]))
        return x["images"]

    try:
        for form, name in names.items():
            if not (folder / f"{name}.json").exists():
                keras.ops.depthwise_conv = FORMS[form]
                step.write(folder / name, read, tf.TensorSpec(shape, tf.uint8), prepare)
    finally:
        keras.ops.depthwise_conv = FORMS["convolution"]
        for loss, weights in zip(weighed, kept, strict=True):
            loss.class_weights = weights
    return names


def _weighed(loss):
    """The losses with class weights that a loss is, or is the sum of."""
    parts = loss.losses if isinstance(loss, losses.SumOfLosses) else [loss]
    return [each for each in parts if getattr(each, "class_weights", None) is not None]


def _class_weights(config, dataset, phases):
    """[(last step, class weights or `None`)] of the phases of a training."""
    weights = config.train.class_weights
    if weights is None:
        return [(phase.steps, None) for phase in phases]
    ones = [1.0] * dataset.num_classes
    return [(phase.steps, list(weights) if phase.weighted else ones) for phase in phases]


def _write_initial(step, folder):
    """Writes the state that a training begins with; gives the file's name."""
    values = step.values()
    parts = (b"".join([name.encode(), array.tobytes()]) for name, array in values.items())
    name = f"initial-{_digest(*parts)}.npz"
    if not (folder / name).exists():
        with files.replacing(folder / name) as new, open(new, "wb") as file:
            np.savez_compressed(file, **values)
    return name


def _digest(*parts):
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()[:8]


def _sources(model, step):
    """For every variable of a model the name in the state of what it is to be scored with."""
    names = {id(v): name for v, name in zip(step.variables, step.names, strict=True)}
    sources = {id(v): names[id(v)] for v in model.variables}
    if (optimizer := averaging_optimizer(model.optimizer)) is not None:
        for variable, average in averaged_variables(optimizer):
            if average is not None:
                sources[id(variable)] = names[id(average)]
    return [sources[id(v)] for v in model.variables]


def _examples(config, dataset):
    """[image's path, label's path, checksum of both] of every example to train on."""
    split, root = config.data.train_split, Path(config.data.data_dir or ".").resolve()
    if not hasattr(dataset, "pairs"):
        raise ValueError(f"data set {dataset.name!r} is not of files")
    found, sizes = [], set()
    for index, pair in enumerate(dataset.pairs(split)):
        image, label = dataset.read(split, index)
        sizes.add(label.shape)
        relative = [str(path.resolve().relative_to(root)) for path in pair]
        found.append([*relative, zlib.crc32(label.tobytes(), zlib.crc32(image.tobytes()))])
    if len(sizes) != 1:
        raise ValueError(f"split {split!r} has images of {len(sizes)} sizes; of one it is packed")
    return found


def plan(config, dataset, start=0, stop=None):
    """What `data.train_pipeline` draws, place by place.

    Args:
        config, dataset: of the experiment.
        start, stop: int, places of the stream. Default to 0 and `None`, for the whole training.

    Returns:
        dict of arrays of a row a place: "index" of the example, and what `replay.replay` reads.
    """
    c = config.data
    size = dataset.size(c.train_split)
    to_index = example_order(dataset, c.train_split, c.batch_size, config.seed, shuffle=True)
    resize = augment.make_resize(c.short_side, c.fit_size, c.exact_size)
    crop_size = two_ints("crop_size", c.crop_size)
    stacked = [dataset.read(c.train_split, i)[1] for i in range(size if c.cat_max_ratio < 1 else 1)]
    labels = tf.constant(np.stack(stacked))  # one, where their sizes alone count

    def draw(place):
        seeds, index = place_seeds(config.seed, place), to_index(place)
        label = labels[index if len(stacked) > 1 else 0]
        ranges = (c.scale_range, c.aspect_range, c.cat_max_ratio, resize)
        drawn = {
            "index": tf.cast(index, tf.int32),
            "place": augment.crop_place(label, crop_size, seeds[0], *ranges),
            "flip": augment.flips(seeds[1]) if c.flip else tf.constant(False),
        }
        if c.photometric:
            drawn["matrix"], drawn["offset"] = augment.color_change(seeds[2])
        return drawn

    stop = config.train.steps * c.batch_size if stop is None else stop
    drawn = tf.data.Dataset.range(start, stop).map(draw, runtime.processors())
    rows = list(finish(drawn.batch(_PLACES)).as_numpy_iterator())
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def collect(config, folder, name, workdir):
    """Makes a work directory of what a training has given: best.keras and its scores.

    The moving statistics of averaged weights are estimated as at the end of a training here.

    Args:
        config: of the experiment.
        folder: of the results.
        name: of the training, as it was packed.
        workdir: folder of this experiment alone.

    Returns:
        The scores of `experiments.evaluate`.

    Raises:
        ValueError: for results of another model, or that are not finite; or for a folder of another
            experiment.
    """
    path, task = Path(folder) / f"{name}.npz", tasks.of(config)
    with np.load(path) as file:
        found = {key: file[key] for key in file.files}
    step, trained = int(found.pop("step")), found.pop("losses")
    config = setup.for_replicas(config, 1)
    keras.utils.set_random_seed(config.seed)
    dataset = task.make_dataset(config)
    model = task.make_model(config, dataset)
    weights = [found[key] for key in sorted(found)]
    shapes = [tuple(v.shape) for v in model.variables]
    if shapes != [array.shape for array in weights]:
        raise ValueError(f"{path} holds the weights of another model")
    if not all(np.isfinite(array).all() for array in (*weights, trained)):
        raise ValueError(f"{path} holds what is not finite")
    for variable, array in zip(model.variables, weights, strict=True):
        variable.assign(array)
    if config.train.ema:
        batches = task.make_train_data(config, dataset).take(config.train.ema_batches)
        estimate_statistics(model, batches)

    kept = setup.make_run(workdir, config).folder
    with kept.owned():
        files.save_model(model, kept.path / training.BEST)
        result = evaluate.evaluate(config, workdir)
        kept.keep_best(model, {"step": step, task.MONITOR: result[task.MONITOR]})
        np.savetxt(kept.path / "losses.csv", trained, header="loss", comments="", fmt="%.6g")
    return result


def main(argv):
    values = flags.FLAGS
    name = values.name or Path(values["config"].config_filename).name.replace(".py", "")
    name = name.replace(":", "-")
    if _asked == "pack":
        about = pack(values.config, values.out, name, values.forms)
        programs = ", ".join(about["programs"].values())
        print(f"packed: {name}, {about['steps']:,} steps, programs {programs}")
        return
    result = collect(values.config, values.folder, name, values.workdir)
    for line in tasks.of(values.config).lines(result):
        print(line)


if __name__ == "__main__":
    _asked = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if _asked not in ("pack", "collect"):
        sys.exit("the first argument is pack or collect")
    setup.define_config_flag()
    flags.DEFINE_string("name", None, "Of the training; by default the config's.")
    if _asked == "pack":
        flags.DEFINE_multi_enum(
            "forms", list(FORMS), list(FORMS), "Of depthwise convolutions, a program of each."
        )
        flags.DEFINE_string("out", None, "Folder to pack into, for several.", required=True)
    else:
        flags.DEFINE_string("folder", None, "Folder of the results.", required=True)
        flags.DEFINE_string("workdir", None, "Folder of this experiment alone.", required=True)
    flags.mark_flags_as_required(["config"])
    setup.run(main)
