"""What a context module, or a whole model, costs: parameters, operations, time and memory.

    python -m tools.benchmark context --size=128x128 --channels=512
    python -m tools.benchmark context --sizes=64,96,128,192,256 \
        --modules=isa:partition=auto,self_attention
    python -m tools.benchmark model --backbone=resnet50_v1c --contexts=isa,self_attention \
        --size=512x1024 --dtypes=float32,mixed_bfloat16 --jit_compile=no,yes --train
    python -m tools.benchmark detector --backbone=resnet50 --size=800x1216 --contexts=none,isa
    python -m tools.benchmark deploy

    python -m tools.benchmark context --size=128x128 --rounds=9 --baseline=isa \
        --modules=isa,isa:share_projections=True

A module is named as in a config; its arguments follow a colon: isa:partition=4:order=short_long,
isa:fuse=False for long-range and short-range attention without the concatenation.

--rounds: the context modules of a size are called in turn, in one process: what the machine does
beside then slows all of them alike, and ratios are medians of the rounds', not of times measured
minutes apart; the note has the smallest and the largest, and the ratio of processor times, which
others' work delays less. Memory is not measured.

detector: Mask R-CNN by part, and as a whole, and the backbone again with each context module at its
map c4. Backward is of what learns, in 512 proposals of which 128 have masks; of the whole it is a
training step. "of bound" is the time beside that of copying the bytes that a part without products
must read and write.

deploy: the same models in every format that leaves the package, ISANet with ResNet-50 at output
stride 8, 256x512, and the kept model of CamVid, 360x480: time from a photo to its class ids and
scores, size, the share of the pixels of val that are as by Keras, and mIoU. Each is a process of
its own, all called in turn. OpenVINO's int8 is NNCF's, where it is installed. It has flags of its
own, --deploy_...; the files stay in --output, of which it writes deploy.md and deploy.json.

Forward, forward and backward, and the attention proper (without projections) are measured in fresh
processes, one after the other, and so is the memory of each. Without a GPU, forward is that of the
twin for inference that isa_tf.inference.fuse makes; --nofuse measures what Keras calls as it is.
Training uses minimal filtering (--minimal_filtering), and recomputation in ResNets.
The time is the median of warm calls; the memory is what a warm call takes at its highest beyond
what the process held before it (Linux alone tells). Operations are counted on the graph; a
multiply-add counts 2. What would not fit into the free memory is refused before anything is
allocated.

Writes NAME.csv, NAME.md, NAME.png and NAME.svg into --output, and prints the table.
"""

import ast
import csv
import ctypes
import functools
import gc
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from absl import app, flags

from tools import benchmark_deploy, benchmark_detector

# Flags of its own where it is imported, so that tools do not meet in one set.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()

_SIZE = flags.DEFINE_list("size", ["128x128"], "HEIGHTxWIDTH, or one number.", flag_values=FLAGS)
_SIZES = flags.DEFINE_list(
    "sizes", None, "Several sizes in place of --size, for a curve.", flag_values=FLAGS
)
_CHANNELS = flags.DEFINE_integer(
    "channels", 512, "Of the map that a context module reads.", 1, flag_values=FLAGS
)
_BATCH = flags.DEFINE_integer("batch", 1, "Maps or images at once.", 1, flag_values=FLAGS)
_MODULES = flags.DEFINE_list(
    "modules", None, "Context modules, or parts of a detector; by default all.", flag_values=FLAGS
)
_BASELINE = flags.DEFINE_string(
    "baseline", "self_attention", "The module that the others are compared with.", flag_values=FLAGS
)
_BACKBONE = flags.DEFINE_string("backbone", "resnet50_v1c", "Of a model.", flag_values=FLAGS)
_OUTPUT_STRIDE = flags.DEFINE_integer("output_stride", 8, "Of the backbone.", flag_values=FLAGS)
_CONTEXTS = flags.DEFINE_list("contexts", ["isa"], "Context modules of models.", flag_values=FLAGS)
_NUM_CLASSES = flags.DEFINE_integer("num_classes", 19, "Of a model.", 1, flag_values=FLAGS)
_DTYPES = flags.DEFINE_list(
    "dtypes", ["float32"], "float32, mixed_bfloat16, mixed_float16.", flag_values=FLAGS
)
_JIT_COMPILE = flags.DEFINE_list(
    "jit_compile", ["no"], "Whether XLA compiles everything: no, yes or no,yes.", flag_values=FLAGS
)
_TRAIN = flags.DEFINE_bool(
    "train",
    True,
    "Whether to measure forward and backward (of a model: the step).",
    flag_values=FLAGS,
)
_FUSE = flags.DEFINE_bool(
    "fuse",
    None,
    "Whether forward is that of isa_tf.inference.fuse(...); by default where there is no GPU.",
    flag_values=FLAGS,
)
_MINIMAL_FILTERING = flags.DEFINE_integer(
    "minimal_filtering",
    256,
    "From how many channels on 3x3 convolutions train by minimal filtering; 0 for never.",
    0,
    flag_values=FLAGS,
)
_SECONDS = flags.DEFINE_float(
    "seconds", 5.0, "How long each time is measured for, after warming up.", 0.0, flag_values=FLAGS
)
_ROUNDS = flags.DEFINE_integer(
    "rounds",
    0,
    "Context modules: how many times all are called in turn; 0 for one after the other.",
    0,
    flag_values=FLAGS,
)
_OUTPUT = flags.DEFINE_string(
    "output", "runs/benchmark", "Folder to write into.", flag_values=FLAGS
)

benchmark_deploy.define(FLAGS)

LEAST_CALLS = 3
_WARM_UP_SIZE = (16, 16)
# Where memory is measured, what is freed goes back to the system at once: it costs time, and tells
# what is held. glibc would keep it, and so would the pool that TensorFlow has with oneDNN.
RETURN_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**18),
    "TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "true",
}
GEMM = 2048  # rows and columns of the matrix product that machines are compared by
COLUMNS = {
    # Key of a row: heading of its column, number format.
    "name": ("module", "{}"),
    "size": ("size", "{}"),
    "parameters": ("parameters (M)", "{:.2f}"),
    "gflops": ("GFLOPs", "{:.1f}"),
    "projections": ("projections", "{:.1f}"),
    "products": ("attention", "{:.1f}"),
    "forward_ms": ("forward (ms)", "{:.1f}"),
    "time_ratio": ("of baseline", "{:.3f}"),
    "rate": ("of matmul rate", "{:.2f}"),
    "bound_ratio": ("of bound", "{:.1f}"),
    "images_s": ("images/s", "{:.2f}"),
    "core_ms": ("attention (ms)", "{:.1f}"),
    "core_ratio": ("of baseline", "{:.3f}"),
    "forward_mb": ("memory (MB)", "{:.0f}"),
    "memory_ratio": ("of baseline ", "{:.3f}"),
    "backward_ms": ("forward+backward (ms)", "{:.1f}"),
    "backward_ratio": ("of baseline", "{:.3f}"),
    "backward_mb": ("its memory (MB)", "{:.0f}"),
    "note": ("note", "{}"),
}
# What a ratio to the baseline is of.
RATIOS = {
    "time_ratio": "forward_ms",
    "memory_ratio": "forward_mb",
    "backward_ratio": "backward_ms",
    "core_ratio": "core_ms",
}


def main(argv):
    kinds = {"context": benchmark_context, "model": benchmark_model, "detector": benchmark_parts}
    if len(argv) == 3 and argv[1] == "measure":  # what this file starts itself with
        print(json.dumps(measure(json.loads(argv[2]))))
        return 0
    if argv[1:] == ["deploy"]:
        told = {name: FLAGS[name].value for name in FLAGS if name.startswith("deploy_")}
        given = {name.removeprefix("deploy_"): value for name, value in told.items()}
        return benchmark_deploy.main(given, Path(_OUTPUT.value), machine())
    if len(argv) != 2 or argv[1] not in kinds:
        raise app.UsageError(f"What is to be measured? {' or '.join([*kinds, 'deploy'])}")
    sizes = [parse_size(text) for text in _SIZES.value or _SIZE.value]
    try:
        rows = kinds[argv[1]](sizes)
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    gemm = run_case({"what": "gemm"}).get("gflops")
    compare(rows, _BASELINE.value, gemm)
    exponents = fit_exponents(rows)
    folder = Path(_OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    text = report(rows, exponents, gemm, is_fused())
    (folder / f"{argv[1]}.md").write_text(text, encoding="utf-8")
    with open(folder / f"{argv[1]}.csv", "w", newline="", encoding="utf-8") as file:
        shown = [key for key in COLUMNS if any(key in row for row in rows)]
        writer = csv.DictWriter(file, shown, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, folder / argv[1])
    print(f"\n{text}\nwritten: {folder / argv[1]}.md, .csv, .png, .svg")
    return 0


# === What is measured ===


def benchmark_context(sizes):
    """A row for each size and module of the flags."""
    from isa_tf.layers import list_contexts

    modules = _MODULES.value or [name for name in list_contexts() if name != "none"]
    for module in modules:
        parse_module(module)
    shared = {"what": "context", "channels": _CHANNELS.value}
    if _ROUNDS.value:
        return [row for size in sizes for row in _rows_in_turn(modules, size, shared)]
    return [
        _row(module, size, {**shared, "module": module}) for size in sizes for module in modules
    ]


def benchmark_model(sizes):
    """A row for each size, context, dtype and compilation of the flags."""
    shared = {
        "what": "model",
        "backbone": _BACKBONE.value,
        "output_stride": _OUTPUT_STRIDE.value,
        "num_classes": _NUM_CLASSES.value,
    }
    compiled = {"no": False, "yes": True}
    if unknown := set(_JIT_COMPILE.value) - set(compiled):
        raise ValueError(f"--jit_compile is no, yes or both, not {', '.join(unknown)}")
    for context in _CONTEXTS.value:
        parse_module(context)
    rows = []
    for size in sizes:
        for context in _CONTEXTS.value:
            for dtype in _DTYPES.value:
                for jit in _JIT_COMPILE.value:
                    name = f"{_BACKBONE.value}+{context} {dtype}" + (
                        " XLA" if compiled[jit] else ""
                    )
                    case = {"module": context, "dtype": dtype, "jit_compile": compiled[jit]}
                    rows.append(_row(name, size, {**shared, **case}))
    return rows


def benchmark_parts(sizes):
    """A row for each size and part of Mask R-CNN, and one for each context in its backbone."""
    rows, rate = [], benchmark_detector.copy_rate()
    for context in _CONTEXTS.value:
        parse_module(context)
    if unknown := set(_MODULES.value or ()) - set(benchmark_detector.PARTS):
        known = ", ".join(benchmark_detector.PARTS)
        raise ValueError(f"--modules={','.join(unknown)}: the parts of a detector are {known}")
    for size in sizes:
        shared = {"what": "detector", "backbone": _BACKBONE.value}
        cases = [(part, "none") for part in _MODULES.value or benchmark_detector.PARTS]
        cases += [("backbone", name) for name in _CONTEXTS.value if name != "none"]
        for part, context in cases:
            name = part if context == "none" else f"{part}+{context}"
            rows.append(_row(name, size, {**shared, "part": part, "module": context}))
            moved = benchmark_detector.bytes_moved(part, size)
            if moved and "forward_ms" in rows[-1]:
                rows[-1]["bound_ratio"] = rows[-1]["forward_ms"] / (moved / rate / 1e6)
    return rows


def _row(name, size, case):
    """Measures one line of the table, printing what is being done."""
    case = {**case, "size": list(size), "batch": _BATCH.value, "seconds": _SECONDS.value}
    case["fuse"], case["minimal_filtering"] = is_fused(), _MINIMAL_FILTERING.value or None
    row = _new_row(name, size)
    train = _TRAIN.value
    if case["what"] == "detector":
        train = train and case["part"] in (*benchmark_detector.TRAINED, "whole")
    passes = ["forward"] + ["backward"] * train + ["core"] * (case["what"] == "context")
    for kind in passes:
        print(f"{name} {row['size']}: {kind}", file=sys.stderr, flush=True)
        found = run_case({**case, "pass": kind})
        if kind != "core" and "refused" not in found:
            found |= run_case({**case, "pass": kind, "memory": True})
        note = found.pop("refused", None)
        if note:
            row["note"] = f"{kind}: {note}"
        row.update(found)
    _add_rate(row)
    return row


def _new_row(name, size):
    """A line of the table in which nothing is measured yet."""
    positions = size[0] * size[1]
    size = f"{size[0]}x{size[1]}"
    return {"name": name, "size": size, "positions": positions, "batch": _BATCH.value}


def _add_rate(row):
    if "forward_ms" in row:
        row["images_s"] = 1000 * row["batch"] / row["forward_ms"]


def _rows_in_turn(modules, size, shared):
    """The rows of one size, whose modules are called in turn."""
    shared = {**shared, "size": list(size), "batch": _BATCH.value, "fuse": is_fused()}
    shared["minimal_filtering"] = _MINIMAL_FILTERING.value or None
    rows = [_new_row(module, size) for module in modules]
    for kind in ["forward"] + ["backward"] * _TRAIN.value + ["core"]:
        print(f"{shared['size']}: {kind} in turn", file=sys.stderr, flush=True)
        cases = [{**shared, "module": module, "pass": kind} for module in modules]
        found = run_case({"what": "turns", "cases": cases, "rounds": _ROUNDS.value})
        for row, more in zip(rows, found.get("rows") or [dict(found) for _ in rows], strict=True):
            if refused := more.pop("refused", None):
                _note(row, f"{kind}: {refused}")
            row.update(more)
    for row in rows:
        _add_rate(row)
    return rows


def is_fused():
    """Whether forward is measured of `inference.fuse`, which is for CPUs."""
    import tensorflow as tf

    return not tf.config.list_physical_devices("GPU") if _FUSE.value is None else _FUSE.value


def run_case(case):
    """`measure` in a fresh process."""
    environment = dict(os.environ)
    if case.get("memory"):
        environment |= RETURN_MEMORY
    done = subprocess.run(
        [sys.executable, "-m", "tools.benchmark", "measure", json.dumps(case)],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["killed, perhaps for its memory"]
        return {"refused": f"failed ({last[0]})"}
    return json.loads(done.stdout.splitlines()[-1])


def measure(case):
    """Figures of one case, measured in this process: a dict for the row."""
    if case["what"] == "gemm":
        return {"gflops": matmul_rate()}
    import keras
    import tensorflow as tf

    from isa_tf import runtime

    keras.utils.set_random_seed(0)
    if case["what"] == "turns":
        return {"rows": _measure_in_turn(case)}
    if case["what"] == "detector":
        return _measure_part(case)
    make = _make_context if case["what"] == "context" else _make_model
    layer, function, specs = make(case)
    if function is None:
        return {}
    result = {}
    if case["pass"] == "forward" and not case.get("memory"):
        result = _counted(layer, specs[0])
    # It has its own check, and XLA compiles no graph that asks for free memory.
    with runtime.memory_checks(False):
        concrete = function.get_concrete_function(*specs)
    if refused := too_large(concrete.graph):
        return {**result, "refused": refused}
    if not case.get("jit_compile"):  # a small call loads what every first call loads
        small = [tf.TensorSpec((s.shape[0], *_WARM_UP_SIZE, *s.shape[3:]), s.dtype) for s in specs]
        function(*map(_random, small))
    inputs = [_random(spec) for spec in specs]
    kind = case["pass"]
    concrete(*inputs)  # what compiling takes is not the call's
    if case.get("memory"):
        result[f"{kind}_mb"] = peak_memory(lambda: concrete(*inputs))
    else:
        result[f"{kind}_ms"] = latency(lambda: concrete(*inputs), case["seconds"])
    return {name: value for name, value in result.items() if value is not None}


def _counted(layer, spec):
    """Parameters and operations of a layer or model for one map or image, for its row."""
    from isa_tf.cost import flops_by_kind

    flops = flops_by_kind(layer, (1, *spec.shape[1:]))
    return {
        "parameters": sum(math.prod(v.shape) for v in layer.trainable_weights) / 1e6,
        "gflops": flops.total / 1e9,
        "projections": flops.convolutions / 1e9,
        "products": flops.products / 1e9,
    }


def _measure_in_turn(case):
    """`measure` of several context modules that are called in turn: a dict for each one's row."""
    from isa_tf import runtime

    rows, calls, inputs = [{} for _ in case["cases"]], {}, {}
    for number, one in enumerate(case["cases"]):
        layer, function, specs = _make_context(one)
        if function is None:
            continue
        if one["pass"] == "forward":
            rows[number] |= _counted(layer, specs[0])
        with runtime.memory_checks(False):
            concrete = function.get_concrete_function(*specs)
        if refused := too_large(concrete.graph):
            rows[number]["refused"] = refused
            continue
        given = [inputs.setdefault(tuple(spec.shape), _random(spec)) for spec in specs]
        calls[number] = functools.partial(concrete, *given)
        _wait(calls[number]())
    key = f"{case['cases'][0]['pass']}_ms"
    for number, (times, busy) in latencies(calls, case["rounds"]).items():
        rows[number] |= {key: statistics.median(times), f"{key}_rounds": times}
        rows[number][f"{key}_busy"] = busy
    return rows


def _measure_part(case):
    """`measure` of a detector's part."""
    import tensorflow as tf

    from isa_tf import cost, inference, runtime, training

    part, size, kind = case["part"], case["size"], case["pass"]
    backward = kind == "backward"
    name, arguments = parse_module(case["module"])
    options = {"recompute": True} if backward else {}
    model = benchmark_detector.make_model(
        case["backbone"],
        {"name": name, **arguments} if name != "none" else "none",
        case["minimal_filtering"] if backward else None,
        **options,
    )
    network = inference.fuse(model) if case.get("fuse") and not backward else model
    inputs = benchmark_detector.inputs_of(part, size, network, backward)
    inputs = tf.nest.map_structure(tf.constant, inputs)
    whole = part == "whole"
    if not backward:
        call = tf.function(benchmark_detector.function_of(part, network))
        extra = ()
    elif whole:
        model.compile(training.CoupledSGD(0.01, momentum=0.9), jit_compile=False)
        model.optimizer.build(model.trainable_variables)
        extra = (tf.nest.map_structure(tf.constant, benchmark_detector.truth(size)),)

        @tf.function
        def call(x, y):
            return model.train_step((x, y))["loss"]
    else:
        layer, extra = benchmark_detector.layer_of(part, model), ()

        @tf.function
        def call(inputs):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                parts = inputs if part == "rpn_head" else [inputs]
                outputs = tf.nest.flatten([layer(x, training=True) for x in parts])
                loss = tf.add_n([tf.reduce_mean(tf.cast(y, tf.float32) ** 2) for y in outputs])
            learned = [x for x in tf.nest.flatten(inputs) if x.shape.rank == 4]
            return tape.gradient(loss, [*learned, *layer.trainable_variables])

    with runtime.memory_checks(False):
        concrete = call.get_concrete_function(inputs, *extra)
        result = {}
        if not backward and not case.get("memory"):
            plain = benchmark_detector.function_of(part, model)
            graph = tf.function(plain, jit_compile=False).get_concrete_function(inputs).graph
            layer = benchmark_detector.layer_of(part, model)
            result = {
                "parameters": sum(math.prod(v.shape) for v in layer.trainable_weights) / 1e6,
                "gflops": cost.graph_flops(graph).total / 1e9,
            }
    if refused := too_large(concrete.graph):
        return {**result, "refused": refused}
    call(inputs, *extra)
    if case.get("memory"):
        result[f"{kind}_mb"] = peak_memory(lambda: call(inputs, *extra))
    else:
        result[f"{kind}_ms"] = latency(lambda: call(inputs, *extra), case["seconds"])
    return {name: value for name, value in result.items() if value is not None}


def _random(spec):
    import tensorflow as tf

    if spec.dtype == tf.uint8:  # labels
        return tf.zeros(spec.shape, tf.uint8)
    return tf.random.stateless_normal(spec.shape, (0, 1), dtype=spec.dtype)


def _make_context(case):
    """(layer, tf.function, specs of its inputs); no function where there is none to measure."""
    import tensorflow as tf

    from isa_tf import inference
    from isa_tf.layers import create_context

    name, arguments = parse_module(case["module"])
    layer = create_context(name, **{"minimal_filtering": case["minimal_filtering"], **arguments})
    shape = (case["batch"], *case["size"], case["channels"])
    spec = tf.TensorSpec(shape, tf.float32)
    if layer is None:
        return layer, None, None
    layer.build((None, None, None, case["channels"]))
    network = inference.fuse(layer) if case.get("fuse") else layer
    if case["pass"] == "core":
        return _make_core(network, shape)

    @tf.function
    def forward(inputs):
        return network(inputs, training=False)

    @tf.function
    def backward(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=True)
            loss = tf.reduce_mean(outputs**2)
        return tape.gradient(loss, [inputs, *layer.trainable_variables])

    return layer, {"forward": forward, "backward": backward}[case["pass"]], [spec]


def _make_core(layer, shape):
    """The attention proper of a layer on maps of queries, keys and values, without projections."""
    import tensorflow as tf

    from isa_tf import ops
    from isa_tf.layers import FactorizedAttention, SelfAttention2D
    from isa_tf.layers.self_attention import grouped

    attentions = getattr(layer, "attentions", [layer])
    if not all(isinstance(attention, SelfAttention2D) for attention in attentions):
        return layer, None, None
    batch, *size, channels = shape
    width = attentions[0].filters or channels
    key_filters = attentions[0].key_filters or max(1, width // 2)

    def one(attention, maps):
        size = ops.spatial_size(maps[0])
        partition = attention.resolve_partition(size)
        padded, offsets = zip(*(ops.pad_to_partition(x, partition) for x in maps), strict=True)
        whole = ops.spatial_size(padded[0])
        flat = [grouped(x, partition, attention.kind) for x in padded]
        context, _ = ops.grouped_attention(*flat, None, attention.is_compiled(partition))
        context = ops.from_groups(context, partition, attention.kind, whole)
        return ops.crop(context, offsets[0], size)

    @tf.function
    def core(query, key, value):
        for attention in attentions:
            if isinstance(attention, FactorizedAttention):
                partition = attention.resolve_partition(ops.spatial_size(value))
                value, _ = attention.gather_levels(query, key, value, partition)
            else:
                value = one(attention, (query, key, value))
        return value

    widths = (key_filters, key_filters, width)
    return layer, core, [tf.TensorSpec((batch, *size, c), tf.float32) for c in widths]


def _make_model(case):
    import tensorflow as tf

    from isa_tf import backbones, inference, runtime, training
    from isa_tf.losses import PixelCrossEntropy
    from isa_tf.models import Segmenter

    name, arguments = parse_module(case["module"])
    dtype = case["dtype"]
    shared = {"dtype": dtype}
    if case["minimal_filtering"] is not None:
        shared["minimal_filtering"] = case["minimal_filtering"]
    options = {"recompute": True} if case["backbone"].startswith("resnet") else {}
    backbone = backbones.create(case["backbone"], case["output_stride"], **options, **shared)
    levels = sorted(backbone.feature_strides)
    model = Segmenter(
        backbone,
        name,
        case["num_classes"],
        context_options=arguments,
        auxiliary_level=levels[-2] if len(levels) > 1 else None,
        **shared,
    )
    optimizer = training.CoupledSGD(0.01, momentum=0.9)
    model.compile(optimizer, PixelCrossEntropy(), jit_compile=False)
    optimizer.build(model.trainable_variables)

    network = model
    if case.get("fuse"):
        network = inference.fuse(model, product_dtype=runtime.product_dtype(dtype))

    @tf.function(jit_compile=case["jit_compile"])
    def forward(image):
        return network(image, training=False)

    @tf.function(jit_compile=case["jit_compile"])
    def backward(image, label):
        """A training step, which gives its loss."""
        with tf.GradientTape() as tape:
            outputs = model(image, training=True)
            loss = model.compute_loss(image, label, outputs)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    image = tf.TensorSpec((case["batch"], *case["size"], 3), tf.float32)
    label = tf.TensorSpec((case["batch"], *case["size"]), tf.uint8)
    if case["pass"] == "forward":
        return model, forward, [image]
    return model, backward, [image, label]


# === How it is measured ===


def latency(call, seconds):
    """Median of warm calls, in milliseconds."""
    times, end = [], time.perf_counter() + seconds
    while len(times) < LEAST_CALLS or time.perf_counter() < end:
        start = time.perf_counter()
        _wait(call())
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def latencies(calls, rounds):
    """Milliseconds of warm calls, all called in turn: {name: (times, busy)}, of {name: call}.

    `times` has one a round; `busy` is the processor time of all cores, which others' work delays
    less.
    """
    found = {name: ([], []) for name in calls}
    for number in range(rounds):
        # Now from the first to the last, now back: none is always behind the same.
        for name in list(calls)[:: 1 if number % 2 == 0 else -1]:
            start = time.perf_counter(), time.process_time()
            _wait(calls[name]())
            end = time.perf_counter(), time.process_time()
            for times, a, b in zip(found[name], start, end, strict=True):
                times.append(1000 * (b - a))
    return found


def _wait(result):
    import tensorflow as tf

    for tensor in tf.nest.flatten(result):
        if tf.is_tensor(tensor):
            try:
                memoryview(tensor).release()  # waits for it and, unlike numpy(), makes no copy
            except (BufferError, TypeError, ValueError):
                tensor.numpy()


def resident_memory():
    """KB that this process holds in memory; None where the system does not tell."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed and not given back is not held
    except AttributeError:
        pass  # not glibc
    try:
        return _status("VmRSS")
    except OSError:
        return None


def peak_memory(call, before=None):
    """What a call holds at its highest beyond what is held before it, MB; None where not told.

    `before`, from `resident_memory`, says what was held at another time.
    """
    before = resident_memory() if before is None else before
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far is now
        result = call()
        _wait(result)
        return max(_status("VmHWM") - before, 0) / 1024
    except OSError:
        return None


def _status(name):
    """KB of this process, by the name in Linux's /proc/self/status."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def too_large(graph):
    """Why a graph cannot run in the memory that is free; None where it can.

    Its largest tensor has to exist beside another of its size: a softmax reads one and makes one.
    """
    from isa_tf import runtime

    largest, size = None, 0
    for op in graph.get_operations():
        for tensor in op.outputs:
            shape = tensor.shape
            if shape.rank is not None and shape.is_fully_defined() and tensor.dtype.size:
                count = shape.num_elements() * tensor.dtype.size
                if count > size:
                    largest, size = tensor, count
    free = runtime.free_memory()
    if free is None or 2 * size <= free:
        return None
    shape = "x".join(map(str, largest.shape))
    return (
        f"refused: its largest tensor, {shape} {largest.dtype.name}, takes {size / 1e9:.1f} GB, "
        f"and two of its size are held at once; {free / 1e9:.1f} GB are free"
    )


def matmul_rate(seconds=3.0):
    """GFLOP/s of a large float32 matrix product: the highest rate that anything can hope for."""
    import tensorflow as tf

    a, b = (tf.random.stateless_normal((GEMM, GEMM), (0, i)) for i in range(2))
    product = tf.function(lambda: tf.matmul(a, b))
    _wait(product())
    return 2 * GEMM**3 / latency(product, seconds) / 1e6


# === What is made of it ===


def compare(rows, baseline, gemm):
    """Adds to each row its ratios to the baseline of its size, and to the matmul rate."""
    for row in rows:
        for same in rows:
            if (same["name"], same["size"]) != (baseline, row["size"]):
                continue
            for ratio, figure in RATIOS.items():
                turns = [r.get(f"{figure}_rounds") for r in (row, same)]
                if all(turns):
                    busy = [r[f"{figure}_busy"] for r in (row, same)]
                    _compare_rounds(row, ratio, turns, busy)
                elif figure in row and same.get(figure) and ratio in ("time_ratio", "memory_ratio"):
                    row[ratio] = row[figure] / same[figure]
        if gemm and "forward_ms" in row and "gflops" in row:
            row["rate"] = row.get("batch", 1) * row["gflops"] / (row["forward_ms"] / 1000) / gemm


def _compare_rounds(row, ratio, times, busy):
    """Adds the median of the ratios of the rounds, and notes how far they lie apart."""
    found, of_busy = ([a / b for a, b in zip(*pair, strict=True)] for pair in (times, busy))
    row[ratio] = statistics.median(found)
    if min(found) < max(found):
        name = RATIOS[ratio].removesuffix("_ms")
        by = statistics.median(of_busy)
        text = f"{name} {min(found):.3f} to {max(found):.3f} of baseline, {by:.3f} of its"
        _note(row, f"{text} processor time")


def _note(row, text):
    row["note"] = "; ".join(filter(None, [row.get("note"), text]))


def fit_exponents(rows):
    """How time grows with positions: {(name, figure): exponent} of a least-squares fit."""
    exponents = {}
    for name in dict.fromkeys(row["name"] for row in rows):
        for figure in ("forward_ms", "core_ms", "products"):
            points = [
                (math.log(row["positions"]), math.log(row[figure]))
                for row in rows
                if row["name"] == name and row.get(figure)
            ]
            if len({x for x, _ in points}) > 1:
                exponents[name, figure] = statistics.linear_regression(*zip(*points, strict=True))[
                    0
                ]
    return exponents


def report(rows, exponents, gemm, fused):
    """The Markdown of the table, the growth and the machine."""
    shown = [key for key in COLUMNS if any(key in row for row in rows)]
    lines = ["| " + " | ".join(COLUMNS[key][0].strip() for key in shown) + " |"]
    lines.append("|" + "---|" * len(shown))
    for row in rows:
        cells = (COLUMNS[key][1].format(row[key]) if key in row else "" for key in shown)
        lines.append("| " + " | ".join(cells) + " |")
    if exponents:
        lines += ["", "Growth with the number of positions N, as N to the power of:", ""]
        lines += ["| module | forward | attention | attention FLOPs |", "|---|---|---|---|"]
        for name in dict.fromkeys(name for name, _ in exponents):
            figures = (exponents.get((name, f)) for f in ("forward_ms", "core_ms", "products"))
            cells = ("" if figure is None else f"{figure:.2f}" for figure in figures)
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    command = f"`python -m tools.benchmark {' '.join(sys.argv[1:])}`"
    forward = "`isa_tf.inference.fuse(...)`" if fused else "what Keras calls"
    lines += ["", f"{machine(gemm)}; forward is that of {forward}. {command}"]
    return "\n".join(lines) + "\n"


def machine(gemm=None):
    """One line on what the figures were measured on."""
    from importlib.metadata import version

    name = platform.processor() or platform.machine()
    try:
        name = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        pass
    rate = f", {gemm:.0f} GFLOP/s of float32 matrix products" if gemm else ""
    return (
        f"{name}, {os.cpu_count()} cores{rate}; TensorFlow {version('tensorflow')}, Keras "
        f"{version('keras')}"
    )


def draw(rows, path):
    """Time and memory: bars for one size, curves over the positions for several."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figures = {"forward_ms": "forward (ms)", "forward_mb": "memory (MB)"}
    # In turn, no memory is measured; and of what is refused, nothing.
    figures = {key: label for key, label in figures.items() if any(key in row for row in rows)}
    if not figures:
        return
    names = list(dict.fromkeys(row["name"] for row in rows))
    curve = len({row["size"] for row in rows}) > 1
    height = 4.5 if curve else 1.2 + 0.35 * len(names)
    width = 5.5 * len(figures)
    fig, axes = plt.subplots(
        1, len(figures), figsize=(width, height), layout="constrained", squeeze=False
    )
    axes = axes[0]
    for ax, (figure, label) in zip(axes, figures.items(), strict=True):
        for i, name in enumerate(names):
            points = [r for r in rows if r["name"] == name and figure in r]
            values = [row[figure] for row in points]
            if curve:
                positions = [row["positions"] for row in points]
                ax.plot(positions, values, "o-", color=f"C{i % 10}", label=name)
            else:
                bars = ax.barh([name] * len(values), values, color="C0")
                ax.bar_label(bars, fmt="%.0f", padding=3)
        if curve:
            ax.set(xscale="log", yscale="log", xlabel="positions", ylabel=label)
            ax.grid(which="both", alpha=0.3)
        else:
            ax.set(xlabel=label)
            ax.set_yticks(range(len(names)), names)
            ax.invert_yaxis()
            ax.margins(x=0.15)
        ax.spines[["top", "right"]].set_visible(False)
    if curve:
        axes[0].legend(frameon=False)
    else:
        for ax in axes[1:]:
            ax.set_yticklabels([])
    for ending in ("png", "svg"):
        fig.savefig(f"{path}.{ending}", dpi=150)
    plt.close(fig)


# === What is typed ===


def parse_size(text):
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip())
    if not match or int(match[1]) == 0 or match[2] == "0":
        raise app.UsageError(f"A size is HEIGHTxWIDTH, such as 97x97, or one number, not {text!r}")
    return int(match[1]), int(match[2] or match[1])


def parse_module(text):
    """(name, arguments) of a module as it is typed: "isa:partition=4:order=long".

    Raises:
        ValueError: for an unknown name, or an argument that the module does not take.
    """
    from isa_tf.layers import create_context

    name, *pairs = text.split(":")
    arguments = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{text}: an argument is NAME=VALUE, not {pair!r}")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[key] = value  # a word, such as long_short
    try:
        create_context(name, **arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{text}: {error}") from error
    return name, arguments


if __name__ == "__main__":
    app.run(main)
