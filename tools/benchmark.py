r"""What a context module, or a whole model, costs: parameters, operations, time and memory.

    python -m tools.benchmark context --size=128x128 --channels=512
    python -m tools.benchmark context --sizes=64,96,128,192,256 \
        --modules=isa:partition=auto,self_attention
    python -m tools.benchmark model --backbone=resnet50_v1c --contexts=isa,self_attention \
        --size=512x1024 --dtypes=float32,mixed_bfloat16 --jit_compile=no,yes --train
    python -m tools.benchmark detector --backbone=resnet50 --size=800x1216 --contexts=none,isa
    python -m tools.benchmark deploy
    python -m tools.benchmark compare runs/before runs/benchmark --threshold=1.2

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

compare: row by row, what is slower, bigger or missing in the second of two stored results,
NAME.json, or of two folders of them; by more than --threshold, the ratio of new to old. It warns
where machines, versions or settings differ. Exits with 1 where something got slower or bigger, with
2 where nothing could be compared.

Forward, forward and backward, and the attention proper (without projections) are measured in fresh
processes, one after the other, and so is the memory of each. Without a GPU, forward is that of the
twin for inference that isa_tf.inference.fuse makes; --nofuse measures what Keras calls as it is.
Of a model, and of a whole detector, forward and backward is the training step that
experiments.train runs (tools/bench/steps.py), with its optimizer, losses and metrics; in it minimal
filtering (--minimal_filtering), and recomputation in ResNets, which its configs leave to the user.
The time is the median of warm calls; the memory is what a warm call takes at its highest beyond
what the process held before it (Linux alone tells). Operations are counted on the graph; a
multiply-add counts 2. What would not fit into the free memory is refused before anything is
allocated.

Writes NAME.csv, NAME.md, NAME.json, which says what it was measured on, and, where matplotlib is
installed, NAME.png and NAME.svg into --output, and prints the table.
"""

import itertools
import sys
from pathlib import Path

from absl import app, flags

from isa_tf.names import unknown
from tools.bench import (
    comparison,
    costs,
    deploy,
    detector,
    measure,
    pictures,
    results,
    timing,
)
from tools.typed import parse_module, parse_size

# Flags of its own where it is imported, so that tools do not meet in one set.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()

_SIZE = flags.DEFINE_list("size", ["128x128"], "HEIGHTxWIDTH, or one number.", flag_values=FLAGS)
_SIZES = flags.DEFINE_list(
    "sizes", None, "Several sizes in place of --size, for a curve.", flag_values=FLAGS
)
_CHANNELS = flags.DEFINE_integer(
    "channels", 512, "Channels of the map that a context module reads.", 1, flag_values=FLAGS
)
_BATCH = flags.DEFINE_integer("batch", 1, "Maps or images at once.", 1, flag_values=FLAGS)
_MODULES = flags.DEFINE_list(
    "modules", None, "Context modules, or parts of a detector; by default all.", flag_values=FLAGS
)
_BASELINE = flags.DEFINE_string(
    "baseline", "self_attention", "The row that the others are compared with.", flag_values=FLAGS
)
_BACKBONE = flags.DEFINE_string(
    "backbone", "resnet50_v1c", "Backbone of a model.", flag_values=FLAGS
)
_OUTPUT_STRIDE = flags.DEFINE_integer(
    "output_stride", 8, "Output stride of the backbone.", flag_values=FLAGS
)
_CONTEXTS = flags.DEFINE_list("contexts", ["isa"], "Context modules of models.", flag_values=FLAGS)
_NUM_CLASSES = flags.DEFINE_integer("num_classes", 19, "Classes of a model.", 1, flag_values=FLAGS)
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

_THRESHOLD = flags.DEFINE_float(
    "threshold", 1.1, "The ratio beyond which compare tells a figure.", 1.0, flag_values=FLAGS
)

_DEPLOY_MODELS = flags.DEFINE_list(
    "deploy_models", list(deploy.CASES), "Models to deploy: r50, camvid.", flag_values=FLAGS
)
_DEPLOY_ONLY = flags.DEFINE_list(
    "deploy_only", None, f"Contestants of deploy: {', '.join(deploy.NAMES)}.", flag_values=FLAGS
)
_DEPLOY_DATA = flags.DEFINE_string(
    "deploy_data", "../shared/data/camvid", "CamVid's folder.", flag_values=FLAGS
)
_DEPLOY_ROUNDS = flags.DEFINE_integer(
    "deploy_rounds", 7, "Calls of each of deploy's contestants.", 1, flag_values=FLAGS
)
_DEPLOY_THREADS = flags.DEFINE_integer(
    "deploy_threads", 2, "Threads of each contestant.", 1, flag_values=FLAGS
)
_DEPLOY_EVERY = flags.DEFINE_integer(
    "deploy_every",
    3,
    "Each so many-th photo of val is compared on; of r50 8 of them.",
    1,
    flag_values=FLAGS,
)
_DEPLOY_CALIBRATION = flags.DEFINE_integer(
    "deploy_calibration",
    100,
    "Photos of train to quantise by; of r50 16 of them.",
    1,
    flag_values=FLAGS,
)
_DEPLOY_REUSE = flags.DEFINE_bool(
    "deploy_reuse",
    False,
    "Whether deploy takes the files that an earlier run left in --output.",
    flag_values=FLAGS,
)

_KINDS = ("context", "model", "detector")


def main(argv):
    what, *others = argv[1:] or [None]
    if what == "compare":
        if len(others) != 2:
            raise app.UsageError("compare OLD NEW: two stored results, or two folders of them", 2)
        return compare(*others)
    try:
        if what == "deploy" and not others:
            return benchmark_deploy()
        if what in _KINDS and not others:
            return benchmark(what)
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    raise app.UsageError(f"What is to be measured? {', '.join(_KINDS)} or deploy; or compare")


def benchmark(what):
    """Measures the rows of the flags, and writes and prints their table."""
    sizes = [parse_size(text) for text in _SIZES.value or _SIZE.value]
    kinds = {"context": benchmark_context, "model": benchmark_model, "detector": benchmark_parts}
    rows = kinds[what](sizes)
    gemm = measure.run({"what": "gemm"}).get("gflops")
    costs.add_ratios(rows, _BASELINE.value, gemm)
    settings = {"minimal_filtering": _MINIMAL_FILTERING.value, "fused": is_fused()}
    settings |= {"context": {"channels": _CHANNELS.value}}.get(what, {"backbone": _BACKBONE.value})
    if what == "model":
        settings |= {"output_stride": _OUTPUT_STRIDE.value, "num_classes": _NUM_CLASSES.value}
    result = results.of_now(
        "tools.benchmark", what, rows, costs.IDENTITY, costs.COSTS, settings, matmul_gflops=gemm
    )
    table = costs.report(rows, costs.fit_exponents(rows), is_fused())
    output = Path(_OUTPUT.value)
    text = f"{table}\n\n{result.footer()}"
    written = results.write(result, output, text, costs.COLUMNS)
    try:
        written += pictures.draw(rows, output / what)
    except ImportError:
        print("no picture: matplotlib is not installed")
    print(f"written: {output / what}{', '.join(written)}")
    return 0


def benchmark_deploy():
    """Measures the formats that leave the package."""
    told = (_DEPLOY_MODELS, _DEPLOY_ONLY, _DEPLOY_DATA, _DEPLOY_ROUNDS, _DEPLOY_THREADS)
    told += (_DEPLOY_EVERY, _DEPLOY_CALIBRATION, _DEPLOY_REUSE)
    given = {flag.name.removeprefix("deploy_"): flag.value for flag in told}
    output = Path(_OUTPUT.value)
    result, text = deploy.benchmark(given, output)
    written = results.write(result, output, text)
    print(f"written: {output / 'deploy'}{', '.join(written)}")
    return 0


def compare(old, new):
    """Tells what got slower or bigger; gives the exit status, see above."""
    try:
        paths, lone = comparison.pairs(old, new)
        compared = [comparison.compare(*map(results.read, pair)) for pair in paths]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for each in compared:
        print(f"{comparison.report(each, _THRESHOLD.value)}\n")
    for text in lone:
        print(f"MISSING: {text}")
    return 1 if any(each.worse(_THRESHOLD.value) for each in compared) else 0


# === What is measured ===


def benchmark_context(sizes):
    """A row for each size and module of the flags."""
    from isa_tf.layers import list_contexts

    modules = _MODULES.value or [name for name in list_contexts() if name != "none"]
    for module in modules:
        parse_module(module)
    _check_baseline(modules)
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
    if odd := set(_JIT_COMPILE.value) - set(compiled):
        raise ValueError(f"--jit_compile is no, yes or both, not {', '.join(odd)}")
    for context in _CONTEXTS.value:
        parse_module(context)
    cases = {}
    forms = itertools.product(_CONTEXTS.value, _DTYPES.value, _JIT_COMPILE.value)
    for context, dtype, jit in forms:
        name = f"{_BACKBONE.value}+{context} {dtype}{' XLA' * compiled[jit]}"
        cases[name] = {"module": context, "dtype": dtype, "jit_compile": compiled[jit]}
    _check_baseline(cases)
    return [_row(name, size, {**shared, **cases[name]}) for size in sizes for name in cases]


def benchmark_parts(sizes):
    """A row for each size and part of Mask R-CNN, and one for each context in its backbone."""
    rows, rate = [], timing.copy_rate()
    for context in _CONTEXTS.value:
        parse_module(context)
    if odd := set(_MODULES.value or ()) - set(detector.PARTS):
        known = ", ".join(detector.PARTS)
        raise ValueError(f"--modules={','.join(odd)}: the parts of a detector are {known}")
    cases = {part: (part, "none") for part in _MODULES.value or detector.PARTS}
    cases |= {f"backbone+{name}": ("backbone", name) for name in _CONTEXTS.value if name != "none"}
    _check_baseline(cases)
    shared = {"what": "detector", "backbone": _BACKBONE.value}
    for size in sizes:
        for name, (part, context) in cases.items():
            rows.append(_row(name, size, {**shared, "part": part, "module": context}))
            moved = detector.bytes_moved(part, size)
            if moved and "forward_ms" in rows[-1]:
                rows[-1]["bound_ratio"] = rows[-1]["forward_ms"] / (moved / rate / 1e6)
    return rows


def _check_baseline(names):
    """Raises ValueError, before anything is measured, for a baseline that is asked for and none."""
    if not FLAGS["baseline"].using_default_value and _BASELINE.value not in names:
        raise ValueError(f"--baseline: {unknown('row', _BASELINE.value, names)}")


def _row(name, size, case):
    """Measures one line of the table, printing what is being done."""
    case = {**case, "size": list(size), "batch": _BATCH.value, "seconds": _SECONDS.value}
    case["fuse"], case["minimal_filtering"] = is_fused(), _MINIMAL_FILTERING.value or None
    row = _new_row(name, size)
    train = _TRAIN.value
    if case["what"] == "detector":
        train = train and case["part"] in (*detector.TRAINED, "whole")
    passes = ["forward"] + ["backward"] * train + ["core"] * (case["what"] == "context")
    for kind in passes:
        print(f"{name} {row['size']}: {kind}", file=sys.stderr, flush=True)
        found = measure.run({**case, "pass": kind})
        if kind != "core" and "refused" not in found:
            found |= measure.run({**case, "pass": kind, "memory": True})
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
        found = measure.run({"what": "turns", "cases": cases, "rounds": _ROUNDS.value})
        for row, more in zip(rows, found.get("rows") or [dict(found) for _ in rows], strict=True):
            if refused := more.pop("refused", None):
                costs.add_note(row, f"{kind}: {refused}")
            row.update(more)
    for row in rows:
        _add_rate(row)
    return rows


def is_fused():
    """Whether forward is measured of `inference.fuse`, which is for CPUs."""
    import tensorflow as tf

    return not tf.config.list_physical_devices("GPU") if _FUSE.value is None else _FUSE.value


if __name__ == "__main__":
    app.run(main)
