r"""Trains what `experiments.elsewhere.whole` has packed, where there is no TensorFlow.

    PYTHONPATH=. python experiments/elsewhere/device_whole.py --folder=runs/packed \
        --data=../shared/data/camvid --out=runs/results

Needs JAX, NumPy and Pillow. OUT gets NAME.npz of every training, the weights to score and the loss
of every step. One after the other they are trained; at the deadline the one that runs is kept as it
is, and those after it are left out.
"""

import argparse
import concurrent.futures
import json
import time
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from experiments.elsewhere import replay
from tools.stablehlo.load import Program, step_function

jax.config.update("jax_enable_x64", True)
_BEGIN = time.monotonic()
_CHUNK = 50  # steps that run as one call, at most


def read_pictures(trainings, folder):
    """Images and labels of all trainings, on the device, and the place of each among them.

    Returns:
        (images (N, H, W, 3), labels (N, H, W), dict from an image's path to its place).
    """
    told = {tuple(example) for about in trainings.values() for example in about["examples"]}
    told = sorted(told)

    def read(example):
        image, label, checksum = example
        with Image.open(folder / image) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        with Image.open(folder / label) as picture:
            ids = np.asarray(picture)
        if ids.dtype != np.uint8:
            raise ValueError(f"{label}: ids of 8 bits are read, got {ids.dtype}")
        return pixels, ids, zlib.crc32(ids.tobytes(), zlib.crc32(pixels.tobytes())) == checksum

    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = list(pool.map(read, told))
    other = [image for (image, *_), (*_, same) in zip(told, found, strict=True) if not same]
    if other:
        say(f"WARNING: {len(other)} of {len(told)} pictures are not read to the same pixels here")
    images, labels = (jnp.asarray(np.stack([row[i] for row in found])) for i in (0, 1))
    return images, labels, {image: i for i, (image, *_) in enumerate(told)}


def make_chunk(program, about):
    """A function of (state, images, labels, rows of a plan) that gives (state, losses)."""
    step = step_function(program)
    batch_inputs = [given["name"] for given in program.inputs[len(step.names) :]]
    crop_size, padding = about["crop_size"], about["padding"]

    def chunk(state, images, labels, rows):
        def one(state, row):
            weights = row.get("class_weights")
            drawn = {name: row[name] for name in ("index", *replay.FIELDS) if name in row}

            def example(drawn):
                index = drawn.pop("index")
                return replay.replay(jnp, images[index], labels[index], drawn, crop_size, padding)

            crops, ids = jax.vmap(example)(drawn)
            given = {"images": crops, "class_weights": weights, "labels": ids}
            return step(state, *(given[name] for name in batch_inputs))

        return jax.lax.scan(one, state, rows)

    return jax.jit(chunk, donate_argnums=0)


def rows_of(about, folder, positions, steps):
    """The plan of a training, an array a field whose rows are those of a step."""
    size = about["batch_size"]
    with np.load(folder / about["plan"]) as file:
        plan = {name: file[name][: steps * size] for name in file.files}
    place = np.array([positions[image] for image, *_ in about["examples"]], np.int32)
    plan["index"] = place[plan["index"]]
    plan = {name: array.reshape(steps, size, *array.shape[1:]) for name, array in plan.items()}
    (_, weights), *_ = about["phases"]
    if weights is not None:
        plan["class_weights"] = np.zeros((steps, len(weights)), np.float32)
        for last, weights in reversed(about["phases"]):
            plan["class_weights"][:last] = weights
    return plan


def first_state(about, folder, program):
    """The state that a training begins with, in the order of its program."""
    with np.load(folder / about["initial"]) as file:
        return [jnp.asarray(file[name]) for name in step_function(program).names]


def key_of(name, rows):
    """What trainings have in common that one compiled program serves."""
    return (name, chunk_length(len(rows["index"])), *sorted(rows))


def compile_all(trainings, plans, pictures, options):
    """(programs by name, compiled functions by `key_of`), side by side."""
    wanted, programs = {}, {}
    for name, about in trainings.items():
        for form, program in about["programs"].items():
            if options.form in (None, form):
                wanted.setdefault(key_of(program, plans[name]), (name, program))

    def compiled(pair):
        name, program = pair
        about, begin = trainings[name], time.monotonic()
        length = chunk_length(len(plans[name]["index"]))
        part = {field: array[:length] for field, array in plans[name].items()}
        state = [jax.ShapeDtypeStruct(s["shape"], s["dtype"]) for s in states_of(programs[program])]
        run = make_chunk(programs[program], about).lower(state, *pictures, part).compile()
        costs = run.cost_analysis() or {}
        say(
            f"{program}: compiled in {time.monotonic() - begin:.1f} s; "
            f"{costs.get('flops', 0) / 1e9:.1f} GFLOP a step, as XLA counts"
        )
        return run

    for _, program in wanted.values():
        programs[program] = Program(options.folder / program)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        runs = dict(zip(wanted, pool.map(compiled, wanted.values()), strict=True))
    return programs, runs


def states_of(program):
    """What a program's inputs say of the state: dicts of "name", "shape" and "dtype"."""
    return program.inputs[: len(step_function(program).names)]


_FASTEST = {}  # form by the keys that there are to choose from


def fastest(name, about, runs, programs, pictures, rows, folder):
    """(form, compiled function) of the programs of a training, tried where there are several."""
    keys = {form: key_of(program, rows) for form, program in about["programs"].items()}
    keys = {form: key for form, key in keys.items() if key in runs}
    choice = tuple(keys.values())
    if len(keys) > 1 and choice not in _FASTEST:
        took = {}
        for form, key in keys.items():
            part = {field: jnp.asarray(array[: key[1]]) for field, array in rows.items()}
            for _ in range(2):  # the first call warms up
                state = first_state(about, folder, programs[about["programs"][form]])
                begin = time.monotonic()
                jax.block_until_ready(runs[key](state, *pictures, part))
                seconds = time.monotonic() - begin
                if seconds > 3 * min(took.values(), default=seconds):
                    break
            took[form] = seconds
            say(f"{name}, {form}: {1000 * took[form] / key[1]:.2f} ms a step")
        _FASTEST[choice] = min(took, key=took.get)
    form = _FASTEST.get(choice, next(iter(keys)))
    return form, runs[keys[form]]


def train(name, run, state, pictures, rows, deadline):
    """Trains up to the end of the plan or the deadline; gives (state, losses)."""
    steps, done, kept = len(rows["index"]), 0, []
    length, begin, longest, now = chunk_length(steps), time.monotonic(), 0.0, time.monotonic()
    while done < steps:
        if time.monotonic() - _BEGIN + longest > deadline:
            say(f"{name}: stopped by the deadline at step {done:,} of {steps:,}")
            break
        part = {field: jnp.asarray(array[done : done + length]) for field, array in rows.items()}
        state, losses = run(state, *pictures, part)
        kept.append(losses)
        done += length
        # One call ahead: the device does not wait for what is told of the call before.
        if not np.isfinite(known := np.asarray(kept[max(len(kept) - 2, 0)])).all():
            say(f"{name}: the loss is not finite before step {done:,}")
            break
        took, now = time.monotonic() - now, time.monotonic()
        longest = max(longest, took)
        if done % (10 * length) == 0 or done == steps:
            each = f"{1000 * took / length:.1f} ms"
            say(f"{name}: step {done:,} of {steps:,}, loss {known.mean():.4f}, {each}")
    losses = np.concatenate([np.asarray(losses) for losses in kept] or [np.zeros(0, np.float32)])
    say(f"{name}: {done:,} steps in {time.monotonic() - begin:.1f} s")
    return state, losses


def chunk_length(steps):
    """The most steps that a call may have, so that all calls have as many."""
    return max(n for n in range(1, min(_CHUNK, steps) + 1) if steps % n == 0)


def save(path, about, names, state, losses):
    """Writes the weights to score, numbered as the model has them."""
    values = dict(zip(names, state, strict=True))
    arrays = {f"{i:05d}": np.asarray(values[name]) for i, name in enumerate(about["weights"])}
    np.savez(path, **arrays, losses=losses, step=np.int64(len(losses)))


def say(text):
    print(f"[{time.monotonic() - _BEGIN:7.1f} s] {text}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="of what was packed")
    parser.add_argument("--data", type=Path, required=True, help="of the pictures")
    parser.add_argument("--out", type=Path, required=True, help="for the results")
    parser.add_argument("--only", help="names of trainings, between commas; by default all")
    parser.add_argument("--form", help="of depthwise convolutions; by default the faster one")
    parser.add_argument("--cache", help="folder for what is compiled, for the next call")
    parser.add_argument("--steps", type=int, help="at most, of each training")
    parser.add_argument("--deadline", type=float, default=1e9, help="seconds from the beginning")
    options = parser.parse_args()
    if options.cache:
        jax.config.update("jax_compilation_cache_dir", options.cache)
    say(f"JAX {jax.__version__}, {jax.devices()}")
    found = {p.stem: p for p in sorted(options.folder.glob("*.json")) if p.stem[:5] != "step-"}
    names = options.only.split(",") if options.only else list(found)
    trainings = {name: json.loads(found[name].read_text()) for name in names}
    options.out.mkdir(parents=True, exist_ok=True)

    *pictures, positions = read_pictures(trainings, options.data)
    say(f"{len(positions)} pictures")
    plans = {}
    for name, about in trainings.items():
        steps = min(options.steps or about["steps"], about["steps"])
        plans[name] = rows_of(about, options.folder, positions, steps)
    programs, runs = compile_all(trainings, plans, pictures, options)

    for name, about in trainings.items():
        form, run = fastest(name, about, runs, programs, pictures, plans[name], options.folder)
        program = programs[about["programs"][form]]
        state = first_state(about, options.folder, program)
        state, losses = train(name, run, state, pictures, plans[name], options.deadline)
        if len(losses):
            save(options.out / f"{name}.npz", about, step_function(program).names, state, losses)


if __name__ == "__main__":
    main()
