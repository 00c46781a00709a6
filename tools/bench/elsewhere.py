"""Packs isa_tf's programs to be timed by `tools.bench.device` where there is no TensorFlow.

    python -m tools.bench.elsewhere --out=runs/elsewhere
    python -m tools.bench.elsewhere --out=runs/elsewhere --small

Context modules on a map of 512 channels, forward, and forward and backward; ISANet with ResNet-50
at output stride 8, from image to logits; and its training step, as experiments/configs/default.py
compiles it. Each is what a user with a GPU gets, without minimal filtering, recomputation or a
twin (but for "isa_tf fused", a twin without filtering), lowered by `tools.stablehlo.lower`. Beside
each lies what TensorFlow makes of the same weights here.
"""

import argparse
import json
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import isa_tf
from isa_tf import backbones, cost, inference, models, runtime
from tools.bench import contexts, packed, steps
from tools.stablehlo import lower

POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
LEVELS = "isa:partition=auto:levels=3:share_projections=True"
PASSES = ("forward", "backward")
CLASSES = 19
# Sizes of maps and images, channels, and crops of a training step.
FULL = {"map": (128, 128), "large": (256, 256), "channels": 512, "image": (512, 1024), "batch": 2}
SMALL = {"map": (24, 24), "large": (32, 32), "channels": 32, "image": (64, 64), "batch": 2}


def cases(sizes):
    """What is measured, the most important first: dicts."""

    def module(name, dtype="float32", size="map", passes=PASSES):
        shared = {"what": "module", "module": name, "size": sizes[size], "batch": 1}
        shared["channels"] = sizes["channels"]
        return [{**shared, "dtype": dtype, "pass": one} for one in passes]

    def model(what, dtype, fuse=False):
        batch = sizes["batch"] if what == "train" else 1
        one = "step" if what == "train" else "forward"
        shared = {"what": what, "module": "isa", "size": sizes["image"], "batch": batch}
        return [{**shared, "dtype": dtype, "pass": one, "fuse": fuse}]

    others = ("rcca", "ppm", "aspp", "nonlocal", "pointwise", "isa:partition=auto")
    return [
        *module("isa"),
        *module("self_attention"),
        *model("model", "float32"),
        *model("train", "float32"),
        *model("model", "bfloat16"),
        *model("train", "bfloat16"),
        *module(LEVELS),
        *module("isa", "bfloat16"),
        *module("self_attention", "bfloat16"),
        *(case for name in ("isa", LEVELS) for case in module(name, size="large")),
        *(case for name in others for case in module(name)),
        *module("isa:partition=auto", size="large"),
        *model("model", "float32", fuse=True),
        *model("model", "bfloat16", fuse=True),
        *module(LEVELS, "bfloat16"),
    ]


def pack(folder, case, name):
    """Writes a case's program; returns the case with what else there is to tell of it."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(POLICIES[case["dtype"]])
    start = time.perf_counter()
    path = Path(folder) / name
    try:
        with runtime.memory_checks(False):
            make = {"module": _pack_module, "model": _pack_model, "train": _pack_step}
            found = make[case["what"]](path, case)
    finally:
        keras.config.set_dtype_policy("float32")
    case = {**case, "program": name, **found}
    case["seconds"] = round(time.perf_counter() - start, 1)
    return case


def _pack_module(path, case):
    asked = {**case, "minimal_filtering": None}
    layer, function, specs = contexts.make(asked)
    shape = (1, *case["size"], case["channels"])
    drawn = {"inputs": {"std": 1.0}}
    return _pack_function(path, case, layer, function, specs[0], drawn, (layer, shape))


def _pack_model(path, case):
    model = network = _isanet(case, None)
    if case["fuse"]:
        network = inference.fuse(model, None, product_dtype=case["dtype"])

    def forward(image):
        return network(image, training=False)

    shape = (case["batch"], *case["size"], 3)
    spec = tf.TensorSpec(shape, tf.float32)
    drawn = {"inputs": {"below": 256}}
    return _pack_function(path, case, network, forward, spec, drawn, (model, shape))


def _isanet(case, auxiliary_level):
    backbone = backbones.create("resnet50_v1c", 8, dtype=POLICIES[case["dtype"]])
    return models.ISANet(
        backbone, CLASSES, auxiliary_level=auxiliary_level, dtype=POLICIES[case["dtype"]]
    )


def _pack_function(path, case, network, function, spec, drawn, counted):
    """Of a function of one tensor, whose network's variables are the program's first inputs."""
    variables = list(network.variables)
    names = [f"{number} {v.path}" for number, v in enumerate(variables)]

    def outputs_of(inputs):
        outputs = function(inputs)
        return list(outputs) if isinstance(outputs, list | tuple) else [outputs]

    program = lower.with_state(variables, outputs_of)
    specs = {
        **{name: tf.TensorSpec(v.shape, v.dtype) for name, v in zip(names, variables, strict=True)},
        "inputs": spec,
    }
    for name, variable in zip(names, variables, strict=True):
        drawn[name] = packed.draw_as(keras.ops.convert_to_numpy(variable))
    count = len(network.trainable_variables) + 1 if case["pass"] == "backward" else 1
    lower.write(path, program, specs, [f"output{i}" for i in range(count)])
    arrays = [
        packed.draw(drawn[name], tuple(spec.shape), spec.dtype.name, number)
        for number, (name, spec) in enumerate(specs.items())
    ]
    expected = []
    for output in tf.function(program, autograph=False)(*arrays):
        flat = tf.reshape(tf.cast(output, tf.float32), [-1])
        sample = tf.gather(flat, packed.positions(int(tf.size(flat)))).numpy()
        expected.append([float(f"{value:.7g}") for value in sample])
    flops = cost.flops_by_kind(*counted).total
    trained = sum(int(np.prod(v.shape)) for v in counted[0].trainable_variables)
    return {
        "draw": [drawn[name] for name in specs],
        "expected": expected,
        "gflops": flops / 1e9 * (3 if case["pass"] == "backward" else 1),
        "parameters": trained / 1e6,
        **_lowered(path),
    }


def _pack_step(path, case):
    model = _isanet(case, "c4")
    shape = (case["batch"], *case["size"], 3)
    flops = cost.flops_by_kind(model, (1, *shape[1:])).total
    _compile(model)
    step = lower.TrainingStep(model)
    labels = tf.TensorSpec(shape[:3], tf.uint8)
    step.write(path, tf.TensorSpec(shape, tf.float32), labels)
    drawn = [packed.draw_as(value) for value in step.values().values()]
    drawn += [{"below": 256}, {"below": CLASSES}]
    kinds = [(tuple(v.shape), v.dtype) for v in step.variables]
    kinds += [(shape, "float32"), (shape[:3], "uint8")]
    arrays = [
        packed.draw(how, *kind, number)
        for number, (how, kind) in enumerate(zip(drawn, kinds, strict=True))
    ]
    for variable, value in zip(step.variables, arrays, strict=False):
        variable.assign(value)

    @tf.function
    def loss(images, labels):
        return model.compute_loss(images, labels, model(images, training=True))

    return {
        "draw": drawn,
        "expected": [[float(loss(*map(tf.constant, arrays[-2:])))]],
        "gflops": 3 * case["batch"] * flops / 1e9,
        "parameters": sum(int(np.prod(v.shape)) for v in model.trainable_variables) / 1e6,
        **_lowered(path),
    }


def _compile(model):
    """As `experiments.train` does, by the default config; see `tools.bench.steps`."""
    from experiments.configs import default
    from experiments.tasks import segmentation

    config = default.get_config()
    config.train.pictures = 0
    segmentation.compile_model(model, config, steps.nothing(model.num_classes))


def _lowered(path):
    """What a program says that a card may do otherwise than the processor here."""
    about = json.loads(path.with_suffix(".json").read_text())
    return {name: about[name] for name in ("custom_calls", "precisions")}


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tools.bench.elsewhere", description=__doc__)
    parser.add_argument("--out", required=True, help="folder to write into")
    parser.add_argument("--small", action="store_true", help="sizes for trying, not for timing")
    asked = parser.parse_args(arguments)
    found = []
    for number, case in enumerate(cases(SMALL if asked.small else FULL)):
        found.append(pack(asked.out, case, f"program{number:02d}"))
        told = (found[-1][key] for key in ("module", "what", "pass", "dtype", "seconds"))
        print(*told, flush=True)
        packed.write(asked.out, found, {"isa_tf": isa_tf.__version__, "small": asked.small})
    size = sum(path.stat().st_size for path in Path(asked.out).iterdir())
    print(f"{len(found)} programs, {size / 1e6:.1f} MB: {asked.out}")


if __name__ == "__main__":
    main()
