"""The figures of a study: what its variants score, and how their training losses fall."""

import numpy as np

from isa_tf import files

_STYLES = ("-", "--", ":")  # where there are more variants than colours


def scores(study):
    """Each seed's scores, with mean and standard deviation of each variant."""
    size = (1.6 + 3.7 * len(study.scores), 1.5 + 0.42 * len(study.variants))
    figure = _figure(study, size)
    axes = figure.subplots(1, len(study.scores), sharey=True, squeeze=False)[0]
    several, rows = len(study.seeds) > 1, study.rows()
    shift = 0.085 * several  # means a little above, seeds a little below the line
    for ax, score in zip(axes, study.scores, strict=True):
        for y, (variant, row) in enumerate(zip(study.variants, rows, strict=True)):
            points = [v for v in study.values(variant, score) if v is not None]
            if points:
                mean, spread = row[f"{score}_mean"], row[f"{score}_sd"]
                error = {"capsize": 3, "elinewidth": 1.4}
                ax.errorbar(mean, y - shift, xerr=spread, fmt="o", color="C0", ms=6, **error)
            if several:
                heights = [y + 2 * shift] * len(points)
                ax.plot(points, heights, "o", color="0.55", ms=4, mew=0, alpha=0.8)
        ax.set_xlabel(study.labels[score])
        ax.locator_params(axis="x", nbins=6)
        ax.set_axisbelow(True)
        ax.grid(color="0.9")
        ax.tick_params(length=0)
        ax.spines[["top", "right", "left"]].set_visible(False)
    axes[0].set_yticks(range(len(study.variants)), study.variants)
    axes[0].set_ylim(len(study.variants) - 0.5, -0.5)
    key = "blue: mean ± standard deviation; grey: each seed"
    figure.supxlabel(key if several else f"seed {study.seeds[0]}", fontsize=8, color="0.4")
    return figure


def losses(study):
    """The training loss of each variant from the first steps on: mean and range of the seeds.

    On a logarithmic axis: most of the fall is in the first tenth.
    """
    figure = _figure(study, (7.5, 4.5))
    ax = figure.subplots()
    for number, variant in enumerate(study.variants):
        curves = [curve for curve in study.values(variant, "losses") if curve]
        if not curves:
            continue
        steps = sorted(set.intersection(*map(set, curves)))
        values = np.array([[curve[step] for step in steps] for curve in curves])
        color, style = f"C{number % 10}", _STYLES[number // 10 % len(_STYLES)]
        ax.plot(steps, values.mean(0), style, color=color, label=variant, linewidth=1.6)
        if len(curves) > 1:
            ax.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.15, lw=0)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("{x:g}")
    ax.set_xlim(0, study.config.train.steps)
    ax.set_xlabel("step")
    ax.set_ylabel("training loss")
    ax.grid(color="0.9", which="both")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    if ax.lines:
        ax.legend(frameon=False, fontsize=8, ncols=1 + len(ax.lines) // 8)
    several = len(study.seeds) > 1
    key = "mean and range of the seeds" if several else f"seed {study.seeds[0]}"
    figure.supxlabel(key, fontsize=8, color="0.4")
    return figure


def _figure(study, size):
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    steps = f"{study.config.train.steps:,} steps on {study.config.data.name}"
    done = f"{len(study.results)} of {len(study.runs)} runs"
    figure.suptitle(f"{study.name}, {steps}, {done}", fontsize=11)
    return figure


def save(path, figure):
    """Saves a figure of matplotlib, whole or not at all."""
    with files.replacing(path) as new:
        figure.savefig(new, dpi=150)
