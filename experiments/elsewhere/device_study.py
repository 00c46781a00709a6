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
        return jax.jit(program).lower(*self.state, spec).compile()

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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--deadline", type=float, default=math.inf, help="seconds")
    parser.add_argument("--steps", type=int, help="in place of each run's own, to try it")
    parser.add_argument("--seeds", type=int, help="the first so many alone")
    parser.add_argument("--images", type=int, help="the first so many of a split, to try it")
    parser.add_argument("--chunk", type=int, default=250, help="steps that are compiled as one")
    parser.add_argument("--keep", nargs="*", default=[], help="programs whose weights are kept")
    parser.add_argument("--keep_seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="beginnings of programs' names; by default all")
    parser.add_argument("--cache", help="folder for what is compiled, for the next call")
    parser.add_argument("--after", nargs="*", type=Path, default=[], help="runs.jsonl of others")
    parser.add_argument("--threads", type=int, default=8, help="that compile side by side")
    arguments = parser.parse_args()
    began = time.monotonic()
    if arguments.cache:
        jax.config.update("jax_compilation_cache_dir", arguments.cache)
    done = {run_key(json.loads(line)) for path in arguments.after for line in open(path)}
    about = json.loads((arguments.folder / "packed.json").read_text())
    if arguments.images:
        about["files"] = {s: f[: arguments.images] for s, f in about["files"].items()}
        about["places"] = about["places"][: arguments.images]
    arguments.out.mkdir(parents=True, exist_ok=True)
    say(began, jax.__version__, jax.devices())
    pool = ThreadPoolExecutor(arguments.threads)
    backbone = Backbone(arguments.folder, about, pool)
    images = read_images(arguments.data, about, ThreadPoolExecutor(16))
    say(began, {split: len(found) for split, found in images.items()}, "images read")

    stride = about["label_stride"]
    train_images = np.stack([x for image, _ in images["train"] for x in (image, image[:, ::-1])])
    train_labels = np.stack(
        [
            x[stride // 2 :: stride, stride // 2 :: stride]
            for _, label in images["train"]
            for x in (label, label[:, ::-1])
        ]
    )
    train_labels = jax.device_put(train_labels)
    train_maps = backbone(train_images)
    # By the size of the maps, then by that of the image, for as few programs as may be.
    by_size = {}
    for image, label in sorted(images["val"], key=lambda pair: pair[1].shape):
        by_size.setdefault(label.shape, []).append((image, label))
    val = {level: {} for level in about["levels"]}
    for pairs in by_size.values():
        found = backbone(np.stack([image for image, _ in pairs]))
        labels = jax.device_put(np.stack([label for _, label in pairs]))
        for level, maps in found.items():
            kept, groups = val[level].setdefault(maps.shape[1:3], ([], []))
            kept.append(maps)
            groups.append(labels)
    val = {
        level: {size: (jnp.concatenate(kept), groups) for size, (kept, groups) in found.items()}
        for level, found in val.items()
    }
    jax.block_until_ready(val)
    say(began, "maps made:", {level: maps.shape for level, maps in train_maps.items()})

    def make(run):
        level = run["level"]
        return Network(
            arguments.folder / run["program"],
            train_maps[level],
            train_labels,
            val[level],
            about["batch_size"],
            arguments.chunk,
        )

    orders = dict(np.load(arguments.folder / "orders.npz"))
    batch = about["batch_size"]
    only = tuple(arguments.only or [""])
    runs = [run for run in about["runs"] if run["program"].startswith(only)]
    runs = [r for r in runs if any(run_key(r, seed) not in done for seed in r["seeds"])]
    networks = {}
    for run in runs:
        if run["program"] not in networks:
            networks[run["program"]] = pool.submit(make, run)
    kept, losses = {}, {}
    for run in runs:
        steps = arguments.steps or run["steps"]
        network = networks[run["program"]].result()
        for position, seed in enumerate(run["seeds"][: arguments.seeds]):
            if run_key(run, seed) in done:
                continue
            if time.monotonic() - began > arguments.deadline:
                say(began, "the deadline: what is left is not done")
                break
            begun = time.monotonic()
            order = orders[f"seed{seed}"].reshape(-1, batch)
            if arguments.images:
                order = order % len(train_labels)
            state, loss = train(
                network, train_maps[run["level"]], train_labels, order, steps, seed, position
            )
            trained = time.monotonic() - begun
            confusion = score(network, state, val[run["level"]], about["classes"])
            told = {key: run[key] for key in ("study", "what", "variant")}
            told |= {"seed": seed, "steps": steps, "parameters": network.parameters}
            told |= {"seconds": round(trained, 2), "confusion": confusion.tolist()}
            told["device"] = jax.devices()[0].device_kind
            with open(arguments.out / "runs.jsonl", "a") as file:
                file.write(json.dumps(told) + "\n")
            name = f"{run['program']}/seed{seed}/{steps}"
            losses[name] = loss.astype(np.float32)
            inside = np.diag(confusion)
            miou = np.mean((inside / (confusion.sum(0) + confusion.sum(1) - inside).clip(1))[
                confusion.sum(1) > 0
            ])  # fmt: skip
            spent = f"{trained:.2f} s, {1000 * trained / steps:.2f} ms a step"
            say(began, name, f"mIoU {miou:.4f}, last loss {loss[-50:].mean():.4f}, {spent}",
                f"(compiled in {network.compiled:.0f} s)")  # fmt: skip
            if run["program"] in arguments.keep and position < arguments.keep_seeds:
                weights = {
                    v["name"]: np.asarray(a)
                    for v, a in zip(network.state[: network.count], state, strict=False)
                }
                kept |= {f"{name}:{v}": a for v, a in weights.items()}
        np.savez(arguments.out / "losses.npz", **losses)
        if kept:
            np.savez(arguments.out / "kept.npz", **kept)
    say(began, "done")


if __name__ == "__main__":
    main()
