"""The same networks in isa_tf, PyTorch (mmsegmentation) and OpenVINO, timed in turn in one run.

    python -m tools.beside_torch head --sizes=64x128,128x128
    python -m tools.beside_torch model --sizes=512x1024 --dtypes=float32,bfloat16
    python -m tools.beside_torch train --sizes=256x512 --batch=2
    python -m tools.beside_torch dense --sizes=64x128
    python -m tools.beside_torch detector --sizes=800x1216
    python -m tools.beside_torch box_head
    python -m tools.beside_torch mask_head

head: the 3x3 convolution, the interlaced module and the classifier, on a map of 2048 channels.
model: ISANet with ResNet-50 at output stride 8, from image to logits of its size.
train: the step of it that experiments.train runs (tools/bench/steps.py), with auxiliary loss, SGD
and mIoU; of PyTorch, one with the same losses and optimizer. dense: `SelfAttention2D` and torch's
products; "interlaced" is ISA's two attentions in its place, fused, with the same projections.
detector: ResNet-50, pyramid and proposal head of Mask R-CNN, beside torchvision's
maskrcnn_resnet50_fpn. box_head and mask_head: its heads, of 1000 and 100 boxes' maps. What
torchvision has compiled operators for, suppression and RoIAlign, is in none of them, as these do
not load beside the CPU build of PyTorch: see `tools.benchmark detector`.

PyTorch runs eagerly, in channels_last, and compiled; isa_tf as a tf.function, as `inference.fuse`
makes it, and, of model, as the SavedModel that is exported of that, with XLA and without; OpenVINO
has the very network of isa_tf, converted and compiled for the size. Training is by minimal
filtering from 256 channels on, and recomputes.

Each contestant is a process of its own that holds its network and works only when called; they are
called in turn, as many rounds as asked for. The rate is that of the network's operations, counted
on ours, beside the better of the two frameworks' float32 matrix product, measured in the same
turns. The memory is what a warm call holds at its highest beyond what the process held before its
first one; it is measured before the turns, in one more process for each, whose freed blocks go back
to the system at once (`tools.bench.memory.RETURNED`).

PyTorch and OpenVINO are in the environment of `make parity`. Writes NAME.csv, NAME.md and
NAME.json into --output; `tools.benchmark compare` compares two of the latter.
"""

import contextlib
import importlib.util
import statistics
import sys
from pathlib import Path

import numpy as np
from absl import app, flags

from isa_tf import runtime
from tools import tables, typed
from tools.bench import beside, memory, processes, results, timing
from tools.bench.beside import DETECTOR, INTERLACED, OPENVINO, OURS, THEIRS

FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()
_SIZES = flags.DEFINE_list(
    "sizes", None, "Sizes of maps or images, HEIGHTxWIDTH.", flag_values=FLAGS
)
_DTYPES = flags.DEFINE_list("dtypes", ["float32"], "float32, bfloat16.", flag_values=FLAGS)
_BATCH = flags.DEFINE_integer("batch", None, "By default 2 in training, else 1.", flag_values=FLAGS)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Calls of each contestant.", 1, flag_values=FLAGS)
_THREADS = flags.DEFINE_integer(
    "threads", runtime.processors(), "Threads of each contestant.", 1, flag_values=FLAGS
)
_ONLY = flags.DEFINE_list("only", None, "Contestants; by default all.", flag_values=FLAGS)
_OUTPUT = flags.DEFINE_string(
    "output", "runs/beside_torch", "Folder to write into.", flag_values=FLAGS
)

SIZES = {"head": ["64x128", "128x128"], "model": ["512x1024"], "train": ["256x512"]}
SIZES |= {"dense": ["64x64", "64x128"], "detector": ["800x1216"]}
SIZES |= {"box_head": ["7x7"], "mask_head": ["14x14"]}
COLUMNS = {
    "what": ("", "{}"),
    "size": ("size", "{}"),
    "dtype": ("dtype", "{}"),
    "contestant": ("contestant", "{}"),
    "ms": ("median (ms)", "{:.0f}"),
    "ratio": ("of best torch", "{:.2f}"),
    "openvino_ratio": ("of OpenVINO", "{:.2f}"),
    "rate": ("of matmul rate", "{:.2f}"),
    "memory_mb": ("memory (MB)", "{:.0f}"),
}
# By the module that a contestant needs: what is installed, of which a stored result tells.
_PACKAGES = {
    "mmseg": ("torch", "mmsegmentation"),
    "torchvision": ("torch", "torchvision"),
    "openvino": ("openvino",),
}
# Of a stored result.
_IDENTITY = ("what", "size", "dtype", "batch", "contestant")
_COSTS = {"ms": "median (ms)", "memory_mb": "memory (MB)"}


def main(argv):
    if len(argv) != 2 or argv[1] not in OURS:
        raise app.UsageError(f"What is to be timed? {', '.join(OURS)}")
    what, rows, rates = argv[1], [], []
    known = beside.contestants_of(what)
    if unknown := set(_ONLY.value or ()) - set(known):
        raise app.UsageError(f"--only={','.join(unknown)}: there are {', '.join(known)}")
    if unknown := set(_DTYPES.value) - {"float32", "bfloat16"}:
        raise app.UsageError(f"--dtypes={','.join(unknown)}: there are float32 and bfloat16")
    names = [name for name in known if name in (_ONLY.value or known)]
    packages = []
    needed = {"torchvision" if what in DETECTOR else "mmseg": THEIRS, "openvino": [OPENVINO]}
    for module, group in needed.items():
        if {*names} & {*group}:
            if not importlib.util.find_spec(module):
                raise app.UsageError(f"{module} is in the environment of `make parity` alone")
            packages += _PACKAGES[module]
    try:
        sizes = [typed.parse_size(text) for text in _SIZES.value or SIZES[what]]
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    for size in sizes:
        for dtype in _DTYPES.value:
            case = {"what": what, "size": size, "dtype": dtype, "threads": _THREADS.value}
            case["batch"] = _BATCH.value or (2 if what == "train" else 1)
            found, rate = compete(case, names, _ROUNDS.value)
            rows, rates = [*rows, *found], [*rates, rate]
    settings = {"threads": _THREADS.value}
    given = ("tools.beside_torch", what, rows, _IDENTITY, _COSTS, settings)
    result = results.of_now(*given, packages=packages, matmul_gflops=statistics.median(rates))
    more = f"{_THREADS.value} threads, {_ROUNDS.value} rounds"
    text = f"{tables.of_dicts(COLUMNS, rows)}\n\n{result.footer(more)}"
    output = Path(_OUTPUT.value)
    written = results.write(result, output, text, COLUMNS)
    print(f"written: {output / what}{', '.join(written)}")
    return 0


def compete(case, names, rounds):
    """(a row for each contestant in one case, the rate of the better matrix product, GFLOP/s).

    Args:
        case: dict of "what", "size", "dtype", "batch" and "threads".
        names: of the contestants.
        rounds: int, how often each is called.
    """
    rows, rates = [], []
    with contextlib.ExitStack() as stack:
        contestants = {}
        for name in names:
            print(f"{case['what']} {case['size']} {case['dtype']}: {name}", file=sys.stderr)
            asked = (name, beside.module_of(name), {**case, "name": name})
            with processes.Contestant(*asked, memory.RETURNED) as measured:
                held = measured.ask("memory")
            contestants[name] = stack.enter_context(processes.Contestant(*asked))
            facts = contestants[name].ask("ready")
            if held is not None:
                facts["memory_mb"] = held
            size = "x".join(map(str, case["size"]))
            rows.append({**case, "size": size, "contestant": name, "times": [], **facts})
        for row in timing.in_turn(rows, rounds):
            contestant = contestants[row["contestant"]]
            row["times"].append(contestant.ask("call"))
            rates.append(contestant.ask("matmul"))
    for row in rows:
        row["ms"] = statistics.median(row["times"])
    rate = float(np.percentile(rates, 90))
    add_ratios(rows, rate)
    return rows, rate


def add_ratios(rows, matmul_rate):
    """Adds to rows of one case what they are beside the best of PyTorch, OpenVINO, and the rate.

    Args:
        rows: dicts, with "ms".
        matmul_rate: float, GFLOP/s.
    """
    torch = [row["ms"] for row in rows if row["contestant"] in THEIRS]
    openvino = [row["ms"] for row in rows if row["contestant"] == OPENVINO]
    # PyTorch's networks do what ours do, but for the one that ours is compared with besides.
    ours = [row for row in rows if "gflops" in row and row["contestant"] != INTERLACED]
    for row in rows:
        if torch:
            row["ratio"] = row["ms"] / min(torch)
        if openvino:
            row["openvino_ratio"] = row["ms"] / openvino[0]
        if "gflops" in row or ours:
            gflops = row["gflops"] if "gflops" in row else ours[0]["gflops"]
            row["rate"] = gflops / (row["ms"] / 1000) / matmul_rate


if __name__ == "__main__":
    app.run(main)
