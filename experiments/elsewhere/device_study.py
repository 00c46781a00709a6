"""Does the runs that `experiments.elsewhere.study` has packed; needs JAX, NumPy and Pillow alone.

    PYTHONPATH=. python experiments/elsewhere/device_study.py --folder=runs/packed \
        --data=../shared/data/camvid --out=runs/brought --deadline=400

Leaves runs.jsonl in OUT, a line a run, with its confusion matrix; losses.npz, the loss of every
step; kept.npz, the last weights of what --keep names.
"""

import argparse
import base64
import functools
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from PIL import Image

from tools.stablehlo.load import Program, step_function

jax.config.update("jax_enable_x64", True)
MEAN_COLOR = (124, 116, 104)  # of padding
IGNORE_LABEL = 255


def say(began, *words):
    print(f"{time.monotonic() - began:7.1f} s ", *words, flush=True)


# === Images and their maps ===


def read_images(folder, about, pool):
    """Dict from splits to lists of (image, label), uint8; training images cut to the crop."""
    table = np.array(about["label_of"], np.uint8)

    def read(names):
        image, label = (np.asarray(Image.open(Path(folder) / name)) for name in names)
        return image, table[label]

    found = {split: list(pool.map(read, names)) for split, names in about["files"].items()}
    found["train"] = [
        cut(*pair, *place) for pair, place in zip(found["train"], about["places"], strict=True)
    ]
    return found


def cut(image, label, start, size):
    """A window of an image and its label, padded where it lies outside."""
    cut_image = np.empty((*size, 3), np.uint8)
    cut_image[:] = MEAN_COLOR
    cut_label = np.full(size, IGNORE_LABEL, np.uint8)
    first = [max(s, 0) for s in start]
    last = [min(s + n, side) for s, n, side in zip(start, size, label.shape, strict=True)]
    to = tuple(slice(a - s, b - s) for a, b, s in zip(first, last, start, strict=True))
    of = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    cut_image[to], cut_label[to] = image[of], label[of]
    return cut_image, cut_label


class Backbone:
    """The programs of the backbone, one for each size of images."""

    def __init__(self, folder, about, pool):
        self.about = about
        with np.load(folder / "backbone.npz") as found:
            self.state = [
                a.view(ml_dtypes.bfloat16) if a.dtype == np.uint16 else a
                for a in (found[name] for name in found.files)
            ]
        self.state = jax.device_put(self.state)
        self.programs = {}
        for path in sorted(folder.glob("maps_*.stablehlo")):
            size, batch = path.stem.split("_")[1:]
            key = (*map(int, size.split("x")), int(batch))
            self.programs[key] = pool.submit(self._compile, path)

    def _compile(self, path):
        program = Program(str(path).removesuffix(".stablehlo"))
        kind = program.inputs[-1]
        spec = jax.ShapeDtypeStruct(kind["shape"], kind["dtype"])
        # Every image goes through once: trying out kernels for every size of images costs more.
        untuned = {"xla_gpu_autotune_level": "0"}
        return jax.jit(program).lower(*self.state, spec).compile(compiler_options=untuned)

    def __call__(self, images):
        """Dict from levels to maps (N, h, w, C) of images of one size."""
        size = images.shape[1:3]
        batch = max(b for *s, b in self.programs if tuple(s) == size)
        program = self.programs[*size, batch].result()
        parts = []
        for i in range(0, len(images), batch):
            some = images[i : i + batch]
            padded = np.concatenate([some, np.repeat(some[-1:], batch - len(some), 0)])
            parts.append([m[: len(some)] for m in program(*self.state, padded)])
        maps = [jnp.concatenate(of) for of in zip(*parts, strict=True)]
        return dict(zip(self.about["levels"], maps, strict=True))


# === One run ===


def draw(about, seed, position):
    """The first value of a variable, by what `pack` has told of it."""
    shape, dtype = about["shape"], about["dtype"]
    if "constant" in about:
        return np.full(shape, about["constant"], dtype)
    if "values" in about:
        return np.frombuffer(base64.b64decode(about["values"][position]), dtype).reshape(shape)
    if "generator" in about:
        return np.array([seed + 1, 0], dtype)
    # By its name, so that what two variants share begins alike under one seed.
    random = np.random.default_rng([seed, *about["name"].encode()])
    if "normal" in about:
        return truncated(random, shape, about["normal"], math.inf).astype(dtype)
    given = about["variance_scaling"]
    receptive = math.prod(shape[:-2])
    fan_in, fan_out = shape[-2] * receptive, shape[-1] * receptive
    fans = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
    scale = given["scale"] / max(1.0, fans[given["mode"]])
    if given["distribution"] == "uniform":
        limit = math.sqrt(3 * scale)
        return random.uniform(-limit, limit, shape).astype(dtype)
    if given["distribution"] == "truncated_normal":
        return truncated(random, shape, math.sqrt(scale) / 0.87962566103423978, 2).astype(dtype)
    return (math.sqrt(scale) * random.standard_normal(shape)).astype(dtype)


def truncated(random, shape, deviation, limit):
    """Normal values, those beyond `limit` deviations drawn anew."""
    values = random.standard_normal(shape)
    while (far := np.abs(values) > limit).any():
        values[far] = random.standard_normal(far.sum())
    return deviation * values


class Network:
    """The compiled programs of one variant, and how its state begins."""

    def __init__(self, path, maps, labels, val, batch, chunk_size):
        told = json.loads(Path(f"{path}.state.json").read_text())
        self.state, self.count, self.parameters = told["state"], told["model"], told["parameters"]
        step = step_function(Program(f"{path}.step"))

        def chunk(state, maps, labels, order, steps):
            def body(state, places):
                return step(state, steps, maps[places], labels[places])

            return jax.lax.scan(body, state, order)

        def spec(array):
            return jax.ShapeDtypeStruct(array.shape, array.dtype)

        kinds = [jax.ShapeDtypeStruct(v["shape"], v["dtype"]) for v in self.state]
        order = jax.ShapeDtypeStruct((chunk_size, batch), np.int32)
        self.chunk_size = chunk_size
        length = jax.ShapeDtypeStruct((), np.float32)
        begun = time.monotonic()
        self.chunk = (
            jax.jit(chunk, donate_argnums=0)
            .lower(kinds, spec(maps), spec(labels), order, length)
            .compile()
        )
        self.logits = {}
        for size, (found, _) in val.items():
            program = Program(f"{path}.logits{size[0]}x{size[1]}")
            all_logits = functools.partial(_logits_of_all, program)
            kind = jax.ShapeDtypeStruct(found.shape, found.dtype)
            self.logits[size] = jax.jit(all_logits).lower(kinds[: self.count], kind).compile()
        self.compiled = time.monotonic() - begun

    def begin(self, seed, position):
        return jax.device_put([draw(about, seed, position) for about in self.state])


def _logits_of_all(program, state, maps):
    return jax.lax.map(lambda one: program(*state, one[None])[0][0], maps)


@functools.partial(jax.jit, static_argnums=(2,))
def confusion_of(logits, labels, classes):
    """Confusion matrix, truth by prediction, of logits (N, h, w, C) enlarged to labels' size."""

    def of_one(one):
        logits, label = one
        size = (*label.shape, classes)
        large = jax.image.resize(logits, size, "linear", antialias=False)
        predicted = jnp.argmax(large, -1)
        label = label.astype(jnp.int32)
        cell = jnp.where(label == IGNORE_LABEL, classes * classes, label * classes + predicted)
        return jnp.bincount(cell.ravel(), length=classes * classes + 1)[:-1]

    return jax.lax.map(of_one, (logits, labels)).sum(0).reshape(classes, classes)


def train(network, maps, labels, order, steps, seed, position):
    """(last state, loss of every step)."""
    state, losses = network.begin(seed, position), []
    for first in range(0, steps, network.chunk_size):
        part = order[first : first + network.chunk_size]
        state, some = network.chunk(state, maps, labels, part, np.float32(steps))
        losses.append(some)
    return state, np.concatenate([np.asarray(some) for some in losses])


def score(network, state, val, classes):
    """The confusion matrix of all validation images."""
    total = 0
    for size, (maps, groups) in val.items():
        logits = network.logits[size](state[: network.count], maps)
        first = 0
        for labels in groups:
            total += np.asarray(confusion_of(logits[first : first + len(labels)], labels, classes))
            first += len(labels)
    return total


# === All ===


def run_key(told, seed=None):
    """What a run is told from others by."""
    return *(told[key] for key in ("study", "what", "variant", "steps")), told.get("seed", seed)


def examples_to_train_on(pairs, stride):
    """(images, labels) and their mirror images, in turn; of the labels one pixel in `stride`."""
    images, labels = [], []
    for image, label in pairs:
        for one, its_label in ((image, label), (image[:, ::-1], label[:, ::-1])):
            images.append(one)
            labels.append(its_label[stride // 2 :: stride, stride // 2 :: stride])
    return np.stack(images), np.stack(labels)


def maps_to_score(backbone, pairs):
    """By level and by the size of the maps: (maps, list of the labels of images of one size)."""
    by_size = {}
    for image, label in sorted(pairs, key=lambda pair: pair[1].shape):
        by_size.setdefault(label.shape, []).append((image, label))
    found = {level: {} for level in backbone.about["levels"]}
    for same in by_size.values():
        labels = jax.device_put(np.stack([label for _, label in same]))
        for level, maps in backbone(np.stack([image for image, _ in same])).items():
            kept, groups = found[level].setdefault(maps.shape[1:3], ([], []))
            kept.append(maps)
            groups.append(labels)
    return {
        level: {size: (jnp.concatenate(kept), groups) for size, (kept, groups) in of.items()}
        for level, of in found.items()
    }


def mean_iou(confusion):
    """Of the classes that occur."""
    inside, truth = np.diag(confusion), confusion.sum(1)
    return np.mean((inside / np.maximum(truth + confusion.sum(0) - inside, 1))[truth > 0])


def read_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="of what was packed")
    parser.add_argument("--data", type=Path, required=True, help="of the pictures")
    parser.add_argument("--out", type=Path, required=True, help="for the results")
    parser.add_argument("--deadline", type=float, default=math.inf, help="seconds; no run begins")
    parser.add_argument("--only", nargs="*", help="beginnings of programs' names; by default all")
    parser.add_argument("--after", nargs="*", type=Path, default=[], help="runs.jsonl of others")
    parser.add_argument("--keep", nargs="*", default=[], help="programs whose weights are kept")
    parser.add_argument("--keep_seeds", type=int, default=3, help="the first so many of them")
    parser.add_argument("--cache", help="folder for what is compiled, for the next call")
    parser.add_argument("--threads", type=int, default=8, help="that compile side by side")
    parser.add_argument("--chunk", type=int, default=250, help="steps that are compiled as one")
    parser.add_argument("--steps", type=int, help="in place of each run's own, to try it")
    parser.add_argument("--seeds", type=int, help="the first so many alone, to try it")
    parser.add_argument("--images", type=int, help="the first so many of a split, to try it")
    return parser.parse_args()


def asked_runs(about, arguments):
    """The runs that are to be done, each with the seeds that are left."""
    done = {run_key(json.loads(line)) for path in arguments.after for line in open(path)}
    found = []
    for run in about["runs"]:
        run = {**run, "steps": arguments.steps or run["steps"]}
        run["seeds"] = list(enumerate(run["seeds"]))[: arguments.seeds]
        run["seeds"] = [(i, seed) for i, seed in run["seeds"] if run_key(run, seed) not in done]
        if run["seeds"] and run["program"].startswith(tuple(arguments.only or [""])):
            found.append(run)
    return found


def main():
    arguments = read_arguments()
    began = time.monotonic()
    if arguments.cache:
        jax.config.update("jax_compilation_cache_dir", arguments.cache)
    about = json.loads((arguments.folder / "packed.json").read_text())
    if arguments.images:
        about["files"] = {s: f[: arguments.images] for s, f in about["files"].items()}
        about["places"] = about["places"][: arguments.images]
    arguments.out.mkdir(parents=True, exist_ok=True)
    say(began, jax.__version__, jax.devices())
    pool = ThreadPoolExecutor(arguments.threads)
    backbone = Backbone(arguments.folder, about, pool)
    pairs = read_images(arguments.data, about, ThreadPoolExecutor(16))
    images, labels = examples_to_train_on(pairs["train"], about["label_stride"])
    labels = jax.device_put(labels)
    maps, val = backbone(images), maps_to_score(backbone, pairs["val"])
    jax.block_until_ready(val)
    say(began, "maps made:", {level: found.shape for level, found in maps.items()})

    batch, runs = about["batch_size"], asked_runs(about, arguments)

    def make(run):
        path, level = arguments.folder / run["program"], run["level"]
        return Network(path, maps[level], labels, val[level], batch, arguments.chunk)

    networks = {}
    for run in runs:
        if run["program"] not in networks:
            networks[run["program"]] = pool.submit(make, run)
            if len(networks) == 1:  # alone: what it shares with the others is tuned but once
                networks[run["program"]].result()
    orders = dict(np.load(arguments.folder / "orders.npz"))
    kept, losses = {}, {}
    planned = [(run, *pair) for run in runs for pair in run["seeds"]]
    for run, position, seed in planned:
        network, steps = networks[run["program"]].result(), run["steps"]
        if time.monotonic() - began > arguments.deadline:
            say(began, "the deadline: what is left is not done")
            break
        begun = time.monotonic()
        order = orders[f"seed{seed}"].reshape(-1, batch) % len(labels)
        state, loss = train(network, maps[run["level"]], labels, order, steps, seed, position)
        seconds = time.monotonic() - begun
        confusion = score(network, state, val[run["level"]], about["classes"])
        told = {key: run[key] for key in ("study", "what", "variant", "steps")}
        told |= {"seed": seed, "parameters": network.parameters, "seconds": round(seconds, 2)}
        told |= {"device": jax.devices()[0].device_kind, "confusion": confusion.tolist()}
        with open(arguments.out / "runs.jsonl", "a") as file:
            file.write(json.dumps(told) + "\n")
        name = f"{run['program']}/seed{seed}/{steps}"
        say(
            began,
            f"{name} mIoU {mean_iou(confusion):.4f}, last loss {loss[-50:].mean():.4f}, "
            f"{seconds:.2f} s, {1000 * seconds / steps:.2f} ms a step, compiled in "
            f"{network.compiled:.0f} s",
        )
        losses[name] = loss.astype(np.float32)
        np.savez(arguments.out / "losses.npz", **losses)
        if run["program"] in arguments.keep and position < arguments.keep_seeds:
            named = zip(network.state[: network.count], state, strict=False)
            kept |= {f"{name}:{told['name']}": np.asarray(array) for told, array in named}
            np.savez(arguments.out / "kept.npz", **kept)
    pool.shutdown(wait=False, cancel_futures=True)
    say(began, "done")


if __name__ == "__main__":
    main()
