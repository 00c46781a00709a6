"""Times on a GPU what `tools.bench.elsewhere` has packed, beside PyTorch, without TensorFlow.

    python -m tools.bench.device --folder=runs/elsewhere --out=runs/gpu
    python -m tools.bench.device --render=runs/gpu/gpu.json

JAX's XLA compiles isa_tf's programs; PyTorch has the same networks (tools/bench/torch_networks.py),
eager, in channels_last, compiled, and with its own attention kernels. Each is a process that makes
all of its cases first, side by side with the others; what is not made after --making seconds is
left out. Then they are timed, one at a time, in rounds, for as long as the deadline allows, and
every figure is in gpu.json as soon as it is known. --render prints the tables of such a file.
"""

import argparse
import contextlib
import datetime
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools import tables
from tools.bench import machine, packed, processes

START = time.monotonic()
KIND, VERSION = "isa_tf benchmark", 1  # as in `tools.bench.results`, which imports TensorFlow
IDENTITY = ("module", "what", "pass", "size", "batch", "dtype", "contestant")
COSTS = {"ms": "time (ms)", "lone_ms": "by itself (ms)", "memory_mb": "memory (MB)"}
OURS, FUSED = "isa_tf", "isa_tf fused"
COMPILED = "torch compile"
THEIRS = {
    "module": ("torch eager", COMPILED, "torch kernels"),
    "model": ("torch channels_last", COMPILED, "torch eager"),
    "train": ("torch channels_last", COMPILED),
}
ISA, DENSE = "isa", "self_attention"
MATMUL = {False: 8192, True: 512}  # rows of the products that rates are measured by
UNMADE = ("waiting", "making", "made", "stopped")
GRACE = 25  # seconds more for what is being made when the time for making is over
# JAX would take most of the memory, and XLA would keep what it frees.
VARIABLES = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "2"}


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tools.bench.device", description=__doc__)
    parser.add_argument("--folder", help="of tools.bench.elsewhere")
    parser.add_argument("--out", help="folder to write into")
    parser.add_argument("--deadline", type=float, default=330, help="no case begins after seconds")
    parser.add_argument("--making", type=float, default=200, help="seconds for compiling at most")
    parser.add_argument("--seconds", type=float, default=0.4, help="how long each is called")
    parser.add_argument("--rounds", type=int, default=3, help="at most")
    parser.add_argument("--only", default="jax,torch", help="jax, torch")
    parser.add_argument("--commit", help="of the checkout, where git is not at hand")
    parser.add_argument("--render", help="a gpu.json, whose tables are printed; nothing is timed")
    asked = parser.parse_args(arguments)
    if asked.render:
        print(report(json.loads(Path(asked.render).read_text())))
        return
    if not (asked.folder and asked.out):
        parser.error("--folder and --out, or --render")
    measured = Measured(asked)
    with contextlib.ExitStack() as stack:
        contestants = start(stack, measured, asked.only.split(","))
        make(contestants, asked.making)
        measured.begin(contestants)
        run(contestants, measured, asked)
    text = report(measured.result)
    (Path(asked.out) / "gpu.md").write_text(f"{text}\n")
    print(text)


# === Measuring ===


class Measured:
    """What is known so far, and its file.

    Args:
        asked: the command's arguments.

    Attributes:
        cases: of the packed folder.
        small: bool, whether these are for trying alone.
        rows: {(number of the case, contestant): row}.
        result: what the file holds.
    """

    def __init__(self, asked):
        self.cases, facts = packed.read(asked.folder)
        self.small, self.rows = facts["small"], {}
        self.folder = str(Path(asked.folder).resolve())
        self.path = Path(asked.out).resolve() / "gpu.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        commit, dirty = (asked.commit, None) if asked.commit else machine.revision()
        command = "python -m tools.bench.device " + shlex.join(sys.argv[1:])
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.result = {
            "kind": KIND,
            "version": VERSION,
            "tool": "tools.bench.device",
            "what": "gpu",
            "rows": [],
            "identity": IDENTITY,
            "costs": COSTS,
            "settings": {
                "seconds": asked.seconds,
                "small": self.small,
                "xla_flags": os.environ.get("XLA_FLAGS", ""),
                "precision": "float32 products may be TF32: DEFAULT in isa_tf's programs and in "
                "JAX, allow_tf32 for products and convolutions in PyTorch",
            },
            "command": command,
            "time": now,
            "machine": _machine(),
            "versions": {"python": ".".join(map(str, sys.version_info[:3]))},
            "commit": commit,
            "dirty": dirty,
        }
        self.result["versions"]["isa_tf"] = facts["isa_tf"]

    def begin(self, contestants):
        """Notes what everything was made in, and what the card's rates are."""
        self.result["machine"]["made_s"] = round(seconds(), 1)
        for name in ("jax", "torch"):
            if name not in contestants:
                continue
            facts = ask(contestants, name, "facts")
            if facts is None:
                continue
            self.result["machine"]["gpu"] = facts["device"]
            self.result["versions"] |= facts["versions"]
            rates = {
                dtype: contestants[name].ask("matmul", dtype) for dtype in ("float32", "bfloat16")
            }
            self.result["machine"][f"{name}_matmul_tflops"] = rates
            self.result["machine"]["matmul_gflops"] = 1000 * rates["float32"]
        self.save()

    def add(self, number, contestant, found):
        """A case's figures, of one more round."""
        about = self.cases[number]
        known = ("module", "what", "pass", "dtype", "batch")
        row = self.rows.get((number, contestant))
        if row is None:
            row = {name: about[name] for name in known}
            row |= {"size": "x".join(map(str, about["size"])), "contestant": contestant}
            row |= {"gflops": about["gflops"], "parameters": about["parameters"]}
            row |= {"times": [], "rounds": []}
            self.rows[number, contestant] = row
            self.result["rows"].append(row)
        found = dict(found)
        times = found.pop("times", None)
        for name in ("error", "worst_error", "losses"):  # which the first round tells
            if name in row:
                found.pop(name, None)
        row |= found
        if times:
            row["times"] += times
            row["rounds"].append(statistics.median(times))
            row["ms"] = statistics.median(row["times"])
            row["rate"] = row["gflops"] / row["ms"] / self._tflops(row)
        self.save()
        return row

    def _tflops(self, row):
        """The rate of the quicker of both libraries' products in a precision, TFLOP/s."""
        told = [v for k, v in self.result["machine"].items() if k.endswith("_matmul_tflops")]
        return max(rates[row["dtype"]] for rates in told)

    def save(self):
        """Writes the file, whole or not at all."""
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.result, indent=1) + "\n")
        part.replace(self.path)


def _machine():
    facts = {
        "cpu": machine.processor(),
        "cores": os.cpu_count(),
        "instructions": machine.instructions(),
        "memory_gb": machine.memory_gb(),
        "load": machine.load(),
    }
    asked = "--query-gpu=name,driver_version,memory.total"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", asked, "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        facts["driver"] = done.stdout.strip()
    return facts


def seconds():
    """Since the start."""
    return time.monotonic() - START


def start(stack, measured, sides):
    """{name: contestant with a `plan` of (case's number, its name in a row, its own number)}."""
    found, folder = {}, Path(stack.enter_context(tempfile.TemporaryDirectory()))

    def add(name, module, plan):
        if not plan:
            return
        cases = [{**measured.cases[i], "contestant": how} for i, how in plan]
        for case in cases:
            if module.endswith("torch"):  # which draws for itself
                case.pop("draw"), case.pop("expected")
        # An argument of a command has too little room for all of them.
        path = folder / f"{name.replace(' ', '_')}.json"
        path.write_text(json.dumps(cases))
        asked = {"folder": measured.folder, "cases": str(path), "matmul": MATMUL[measured.small]}
        contestant = processes.Contestant(name, module, asked, VARIABLES)
        contestant.plan = [(i, how, own) for own, (i, how) in enumerate(plan)]
        found[name] = stack.enter_context(contestant)

    cases = measured.cases
    if "jax" in sides:
        ours = [(i, FUSED if case.get("fuse") else OURS) for i, case in enumerate(cases)]
        add("jax", "tools.bench.on_jax", ours)
    if "torch" in sides:
        plan = [
            (i, how)
            for i, case in enumerate(cases)
            if case["module"] in (ISA, DENSE) and not case.get("fuse")
            for how in THEIRS[case["what"]]
        ]
        # What takes long to compile holds up nothing else.
        compiled = [(i, how) for i, how in plan if how == COMPILED]
        add("torch", "tools.bench.on_torch", [one for one in plan if one not in compiled])
        for what in THEIRS:
            own = [(i, how) for i, how in compiled if cases[i]["what"] == what]
            add(f"torch compile {what}", "tools.bench.on_torch", own)
    return found


def make(contestants, limit):
    """Returns once all cases are made, or those that are begun when the time is over."""
    told = {}
    while True:
        states = {name: made(contestants, name) for name in [*contestants]}
        counts = {
            name: f"{sum(s not in ('waiting', 'making') for s in found)} of {len(found)}"
            for name, found in states.items()
        }
        if counts != told:
            print(f"{seconds():6.1f} s made: {counts}", flush=True)
            told = counts
        busy = {state for found in states.values() for state in found} & {"waiting", "making"}
        if not busy or seconds() > limit + GRACE:
            return
        if seconds() > limit:
            if "making" not in busy:
                return
            for name in [*contestants]:
                ask(contestants, name, "stop")
        time.sleep(0.5)


def ask(contestants, name, *question):
    """A contestant's answer; `None`, and there is one less, where its process has ended."""
    try:
        return contestants[name].ask(*question)
    except processes.Failed as error:
        print(f"{seconds():6.1f} s {error}", flush=True)
        del contestants[name]
        return None


def made(contestants, name):
    """What is known of a contestant's cases: a list; one who has ended has none."""
    return ask(contestants, name, "made") or []


def run(contestants, measured, asked):
    """Times in rounds what is made, until there is no more time."""
    turns = [
        (i, how, name, own)
        for i in range(len(measured.cases))
        for name, contestant in contestants.items()
        for case, how, own in contestant.plan
        if case == i
    ]
    why = dict.fromkeys(turns, "no time was left")
    for number in range(asked.rounds):
        for turn in turns:
            i, how, name, own = turn
            states = made(contestants, name) if name in contestants else []
            known = measured.rows.get((i, how))
            if not states or (known and "ms" not in known):
                continue
            if seconds() > asked.deadline:
                print(f"{seconds():6.1f} s: no more time, in round {number + 1}", flush=True)
                break
            # PyTorch's thread makes or times; XLA may be late with one program alone.
            late = "making" in states
            if states[own] != "made" or (late and name != "jax"):
                why[turn] = "not made in time" if states[own] in UNMADE else states[own]
                continue
            found = ask(contestants, name, "time", own, asked.seconds)
            if found is None:
                why[turn] = "its process has ended"
                continue
            row = measured.add(i, how, {**found, "beside_making": late})
            why.pop(turn, None)
            if number == 0 or "refused" in row:
                _tell(row)
    for (i, how, _, _), reason in why.items():
        measured.add(i, how, {"refused": reason})


def _tell(row):
    words = [row[name] for name in ("module", "what", "pass", "size", "dtype", "contestant")]
    figures = [f"{name} {row[name]:.3g}" for name in ("ms", "memory_mb", "error") if row.get(name)]
    print(f"{seconds():6.1f} s", *words, *figures, row.get("refused", ""), flush=True)


# === Tables ===

SECTION = """## On a GPU

isa_tf's programs, as TensorFlow lowers them to StableHLO, compiled and run by JAX's XLA on one
card, beside PyTorch's own networks on it: what TensorFlow compiles them to there with
`jit_compile=True` is XLA's too. No minimal filtering, no recomputation, no twin ("isa_tf fused": a
twin without filtering). A time is the median of warm calls that are waited for together, so that
what the processor does to start one hides behind the one before; "by itself" is of a call that is
waited for alone. Memory is what a call holds at its highest beyond weights and input, with its
outputs and gradients: of XLA the program's temporary arrays and outputs (`memory_analysis`), of
PyTorch what its allocator tells. "torch kernels" has `scaled_dot_product_attention` in place of
products and softmax, "torch compile" of whole networks is in channels_last. Dilated convolutions
stand in isa_tf's programs as TensorFlow writes them, between space_to_batch and batch_to_space.

    python -m tools.bench.elsewhere --out=runs/elsewhere
"""


def report(result):
    """What is told of a result, as the Markdown of a section of docs/benchmarks.md."""
    rows = result["rows"]
    found = [_modules(rows), _beside(rows, ("module",)), _beside(rows, ("model", "train"))]
    parts = [f"{SECTION}    {result['command']}", "", _where(result)]
    for table in found:
        parts += ["", table] if table else []
    if refused := [row for row in rows if "refused" in row and "ms" not in row]:
        parts += ["", "Not measured:", ""]
        for row in refused:
            names = ("module", "what", "pass", "size", "dtype", "contestant")
            parts.append(f"* {', '.join(row[name] for name in names)}: {row['refused']}")
    return "\n".join(parts)


def _where(result):
    told, versions = result["machine"], dict(result["versions"])
    versions.pop("python", None)
    words = [f"{told.get('driver') or told.get('gpu')}; {told['cpu']}, {told['cores']} cores"]
    for name in ("jax", "torch"):
        if rates := told.get(f"{name}_matmul_tflops"):
            text = ", ".join(f"{rate:.3g} in {dtype}" for dtype, rate in rates.items())
            words.append(f"{name}'s matrix product does {text} TFLOP/s")
    words.append(", ".join(f"{name} {found}" for name, found in versions.items()))
    if result["commit"]:
        words.append(f"commit {result['commit'][:10]}")
    worst = [row["error"] for row in result["rows"] if "error" in row and row["what"] != "train"]
    if worst:
        words.append(f"isa_tf's outputs differ from TensorFlow's on a CPU by {max(worst):.1e}")
    if "made_s" in told:
        words.append(f"made in {told['made_s']:.0f} s")
    return "; ".join(words) + ". " + result["settings"]["precision"] + "."


def _modules(rows):
    """isa_tf's context modules, each beside dense attention of its size and precision."""
    columns = {
        "module": ("module", "{}"),
        "size": ("size", "{}"),
        "dtype": ("dtype", "{}"),
        "parameters": ("parameters (M)", "{:.2f}"),
        "gflops": ("GFLOPs", "{:.1f}"),
        "forward_ms": ("forward (ms)", "{:.2f}"),
        "forward_ms_ratio": ("of dense", "{:.3f}"),
        "forward_ms_of_isa": ("of isa", "{:.3f}"),
        "forward_memory_mb": ("memory (MB)", "{:.0f}"),
        "forward_memory_mb_ratio": ("of dense", "{:.3f}"),
        "backward_ms": ("forward+backward (ms)", "{:.2f}"),
        "backward_ms_ratio": ("of dense", "{:.3f}"),
        "backward_ms_of_isa": ("of isa", "{:.3f}"),
        "backward_memory_mb": ("its memory (MB)", "{:.0f}"),
        "backward_memory_mb_ratio": ("of dense", "{:.3f}"),
    }
    ours = [r for r in rows if r["what"] == "module" and r["contestant"] == OURS]
    found = _of_passes(ours, ("module", "size", "dtype"))
    for row in found:
        for same in found:
            alike = all(row[name] == same[name] for name in ("size", "dtype"))
            if alike and same["module"] in (DENSE, ISA):
                _add_ratios(row, same, "of_isa" if same["module"] == ISA else "ratio")
    found.sort(key=lambda row: (row["dtype"] != "float32", _area(row["size"])))
    return found and tables.of_dicts(columns, found)


def _add_ratios(row, same, ending):
    for one in ("forward", "backward"):
        for figure in ("ms", "memory_mb"):
            name = f"{one}_{figure}"
            if row.get(name) and same.get(name):
                row[f"{name}_{ending}"] = row[name] / same[name]


def _area(size):
    height, _, width = size.partition("x")
    return int(height) * int(width)


def _of_passes(rows, names):
    """One dict for what differs by its pass alone, whose figures have the pass in their names."""
    found = {}
    for row in rows:
        one = found.setdefault(tuple(row[name] for name in names), {n: row[n] for n in names})
        if row["pass"] != "backward":
            one |= {name: row[name] for name in ("parameters", "gflops", "batch")}
        for figure in ("ms", "lone_ms", "memory_mb", "ratio", "rate"):
            if row.get(figure) is not None:
                one[f"{row['pass']}_{figure}"] = row[figure]
    return [one for one in found.values() if any(key.endswith("_ms") for key in one)]


def _beside(rows, whats):
    """What PyTorch has too, beside the quickest of PyTorch's."""
    columns = {
        "what": ("", "{}"),
        "module": ("module", "{}"),
        "size": ("size", "{}"),
        "batch": ("batch", "{}"),
        "dtype": ("dtype", "{}"),
        "contestant": ("contestant", "{}"),
    }
    passes = {"forward": "forward", "backward": "forward+backward", "step": "step"}
    for one, head in passes.items():
        columns |= {
            f"{one}_ms": (f"{head} (ms)", "{:.2f}"),
            f"{one}_lone_ms": ("by itself (ms)", "{:.2f}"),
            f"{one}_ratio": ("of best torch", "{:.2f}"),
            f"{one}_rate": ("of matmul rate", "{:.2f}"),
            f"{one}_memory_mb": ("memory (MB)", "{:.0f}"),
        }
    rows = [dict(row) for row in rows if row["what"] in whats]
    same = ("what", "module", "pass", "size", "dtype")
    for row in rows:
        torch = [
            other["ms"]
            for other in rows
            if other["contestant"].startswith("torch")
            and "ms" in other
            and all(row[name] == other[name] for name in same)
        ]
        if torch and "ms" in row:
            row["ratio"] = row["ms"] / min(torch)
    given = {tuple(r[n] for n in same) for r in rows if r["contestant"].startswith("torch")}
    kept = [row for row in rows if tuple(row[name] for name in same) in given]
    found = _of_passes(kept, ("what", "module", "size", "dtype", "contestant"))
    ranks = [*THEIRS["module"], "torch channels_last", OURS, FUSED]
    found.sort(
        key=lambda r: (
            r["what"],
            r["dtype"] != "float32",
            r["module"] == DENSE,
            ranks.index(r["contestant"]),
        )
    )
    if whats == ("module",):
        found = [{k: v for k, v in row.items() if k not in ("what", "batch")} for row in found]
    return found and tables.of_dicts(columns, found)


if __name__ == "__main__":
    main()
