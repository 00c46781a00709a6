"""The table of what context modules, models and parts of detectors cost."""

import math
import statistics

from tools import tables
from tools.bench import timing

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
    "memory_ratio": ("of baseline", "{:.3f}"),
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
# Of a stored result: what a row is known by, and which of its figures are costs.
IDENTITY = ("name", "size", "batch")
COSTS = {
    "parameters": "parameters (M)",
    "gflops": "GFLOPs",
    "forward_ms": "forward (ms)",
    "core_ms": "attention (ms)",
    "forward_mb": "memory (MB)",
    "backward_ms": "forward+backward (ms)",
    "backward_mb": "its memory (MB)",
}


def add_ratios(rows, baseline, gemm):
    """Adds to each row its ratios to the baseline of its size, and to the matmul rate."""
    for row in rows:
        for same in rows:
            if (same["name"], same["size"]) != (baseline, row["size"]):
                continue
            for ratio, figure in RATIOS.items():
                turns = [r.get(f"{figure}_rounds") for r in (row, same)]
                if all(turns):
                    busy = [r[f"{figure}_busy"] for r in (row, same)]
                    _add_ratio_of_rounds(row, ratio, turns, busy)
                elif figure in row and same.get(figure) and ratio in ("time_ratio", "memory_ratio"):
                    row[ratio] = row[figure] / same[figure]
        if gemm and "forward_ms" in row and "gflops" in row:
            row["rate"] = row.get("batch", 1) * row["gflops"] / (row["forward_ms"] / 1000) / gemm


def _add_ratio_of_rounds(row, ratio, times, busy):
    """Adds the median of the ratios of the rounds, and notes how far they lie apart."""
    found, of_busy = timing.ratios(*times), timing.ratios(*busy)
    row[ratio] = statistics.median(found)
    if min(found) < max(found):
        name = RATIOS[ratio].removesuffix("_ms")
        by = statistics.median(of_busy)
        text = f"{name} {min(found):.3f} to {max(found):.3f} of baseline, {by:.3f} of its"
        add_note(row, f"{text} processor time")


def add_note(row, text):
    """Adds to what is said of a row beside its figures."""
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
                line = statistics.linear_regression(*zip(*points, strict=True))
                exponents[name, figure] = line.slope
    return exponents


def report(rows, exponents, fused):
    """The Markdown of the table, of the growth, and of what forward is.

    Args:
        rows: dicts.
        exponents: of `fit_exponents`.
        fused: bool, whether forward is that of the twin for inference.
    """
    lines = [tables.of_dicts(COLUMNS, rows)]
    if exponents:
        lines += ["", "Growth with the number of positions N, as N to the power of:", ""]
        grown = []
        for name in dict.fromkeys(name for name, _ in exponents):
            figures = (exponents.get((name, f)) for f in ("forward_ms", "core_ms", "products"))
            grown.append([name, *(None if f is None else f"{f:.2f}" for f in figures)])
        heads = ["module", "forward", "attention", "attention FLOPs"]
        lines.append(tables.markdown(heads, grown))
    forward = "`isa_tf.inference.fuse(...)`" if fused else "what Keras calls"
    return "\n".join([*lines, "", f"Forward is that of {forward}."])
