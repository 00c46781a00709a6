"""The curves of a training."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it is an extra
    import matplotlib.figure


def curve_names(rows: Sequence[Mapping[str, float]]) -> dict[str, list[str]]:
    """What of a log is drawn as curves, and in which picture.

    Args:
        rows: dicts of numbers, as `isa_tf.training.read_log` gives them.

    Returns:
        dict from "loss", "score" and "classes" to lists of names. Losses are what ends in "loss";
        scores what has a "val_" of its own; classes are what is named "val_SCORE/CLASS".

    Example:

    >>> curve_names([{"step": 1, "loss": 2.0, "val_loss": 3.0, "val_miou": 0.1, "seconds": 9.0}])
    {'loss': ['loss', 'val_loss'], 'score': ['val_miou'], 'classes': []}
    """
    names = sorted({name for row in rows for name in row})
    losses = [n for n in names if n.endswith("loss")]
    classes = [n for n in names if n.startswith("val_") and "/" in n]
    validated = {n for n in names if n.startswith("val_")} - {*classes, *losses}
    scores = [n for n in names if n in validated or f"val_{n}" in validated]
    return {"loss": losses, "score": scores, "classes": classes}


def curves(rows: Sequence[Mapping[str, float]]) -> "matplotlib.figure.Figure":
    """Draws how a training went: losses, scores, and each class's score, over its steps.

    Args:
        rows: dicts of numbers, each with "step", as `isa_tf.training.read_log` gives them; of them
            what `curve_names` tells.

    Returns:
        A `matplotlib.figure.Figure`, which `savefig` writes.

    Raises:
        ImportError: where matplotlib is not installed (`pip install isa_tf[plot]`).
        ValueError: for no rows.

    Example:

    >>> rows = [{"step": s, "loss": 1 / s, "val_loss": 2 / s, "val_miou": 0.1 * s} for s in (1, 2)]
    >>> curves(rows).savefig("curves.png")
    """
    from matplotlib.figure import Figure

    if not rows:
        raise ValueError("no rows to draw")
    names = curve_names(rows)
    panels, classes = [(t, panel) for t, panel in names.items() if panel], names["classes"]
    figure = Figure(figsize=(4.6 * len(panels) + 1.4 * bool(classes), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, panel) in zip(axes, panels, strict=True):
        # The last score first, so that the legend is in the order of the lines.
        last = {n: next((r[n] for r in reversed(rows) if n in r), 0.0) for n in panel}
        for i, name in enumerate(sorted(panel, key=last.__getitem__, reverse=True)):
            points = [(row["step"], row[name]) for row in rows if name in row]
            style = {"color": f"C{i % 10}", "linestyle": ("-", "--", ":", "-.")[i // 10 % 4]}
            if title != "classes":
                style = {"color": "C0" if name.startswith("val_") else "0.6"}
                if i >= 2:
                    style["linestyle"] = "--"
            marker = "o" if len(points) < 12 else None
            label = name.split("/", 1)[-1] if title == "classes" else name
            ax.plot(*zip(*points, strict=True), marker=marker, ms=3, lw=1.3, label=label, **style)
        ax.set_title({"classes": classes[0].split("/")[0] if classes else ""}.get(title, title))
        ax.set_xlabel("step")
        ax.set_ylim(bottom=0)
        ax.grid(color="0.92")
        ax.spines[["top", "right"]].set_visible(False)
        if title == "classes" and len(panel) > 24:
            continue  # a legend of so many names would be larger than the picture
        outside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        ax.legend(fontsize=8, frameon=False, **(outside if title == "classes" else {}))
    return figure
