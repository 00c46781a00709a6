r"""Draws what variants gain in several studies: over where a head reads, over training's length.

    python -m experiments.gains --variants=isa,isa_plus --output=runs/gains.png \
        --study=CamVid:c3:runs/frozen/camvid-c3/frozen --study=CamVid:c4:runs/frozen/camvid/frozen \
        --study=CCP:c3:runs/frozen/ccp-c3/frozen --study=CCP:c4:runs/frozen/ccp/frozen

A study is SERIES:PLACE:FOLDER, the folder being one that experiments.ablate has made or a
results.csv of one. Places stand side by side in the order in which they come; a series has a
colour, and a variant a line. One that a study has not is left out there. Drawn is the mean of the
differences under the same seeds from what the study compares with, in points of the first score,
and its 95 % interval; the same is printed as a table.
"""

import csv
from pathlib import Path
from typing import NamedTuple

from absl import flags

from experiments import ablate, setup, study_figures
from isa_tf.names import unknown
from tools import tables

_STYLES = ("o-", "s--", "^:")


class Gain(NamedTuple):
    """What a variant gains in one study, in points of 100.

    Attributes:
        series, place: str, what the study is of.
        variant: str.
        mean, low, high: floats, or `None` where the study has too few seeds.
        seeds: int, how many.
        against: str, the variant it is compared with.
    """

    series: str
    place: str
    variant: str
    mean: float | None
    low: float | None
    high: float | None
    seeds: int
    against: str


def read_gains(named, variants):
    """What variants gain in a study named SERIES:PLACE:FOLDER.

    Returns:
        A list of `Gain`, of those variants that the study has.

    Raises:
        ValueError: for a name of other parts, a file that is no study's, a study that compares
            with nothing, or one that has none of the variants.
        OSError: for a file that cannot be read.
    """
    parts = named.split(":", 2)
    if len(parts) != 3 or not all(parts):
        raise ValueError(f"a study is SERIES:PLACE:FOLDER, got {named!r}")
    series, place, path = parts[0], parts[1], Path(parts[2])
    if path.is_dir():
        path /= "results.csv"
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    study = next(iter(rows[0]), None) if rows else None
    if study not in ablate.STUDIES:
        raise ValueError(f"{path} is of no study of experiments.ablate")
    found = {row[study]: row for row in rows}
    against = ablate.AGAINST.get(study)
    if against not in found:
        raise ValueError(f"{path}: the study compares with nothing")
    known = [variant for variant in variants if variant in found]
    if not known:
        raise ValueError(f"{path}: {unknown('variant', variants[0], found)}")
    return [_gain(series, place, found[variant], found[against]) for variant in known]


def _gain(series, place, row, other):
    """`Gain` of a row of a study's table over another."""
    (variant, *_), (against, *_) = row.values(), other.values()
    first = ablate.DIFFERENCE[0]
    score = next(name for name in row if name.endswith(first)).removesuffix(first)
    gained = [row[score + part] for part in ablate.DIFFERENCE]
    mean, low, high = (100 * float(value) if value else None for value in gained)
    columns = [name for name in row if name.startswith(f"{score}_seed")]
    seeds = sum(bool(row[name] and other[name]) for name in columns)
    return Gain(series, place, variant, mean, low, high, seeds, against)


def read_all(studies, variants):
    """The gains of variants in several studies, one after the other.

    Raises:
        ValueError: see `read_gains`; and for a variant that none of the studies has.
        OSError: for a file that cannot be read.
    """
    gains = [gain for named in studies for gain in read_gains(named, variants)]
    for variant in variants:
        if all(gain.variant != variant for gain in gains):
            raise ValueError(f"none of the studies has a variant {variant!r}")
    return gains


def table(gains):
    """The Markdown of gains."""
    rows = []
    for g in gains:
        mean = "–" if g.mean is None else f"{g.mean:+.1f}"
        between = "–" if g.low is None else f"{g.low:+.1f} to {g.high:+.1f}"
        rows.append([g.series, g.place, g.variant, mean, between, g.seeds])
    return tables.markdown(["", "", "variant", "gain (points)", "95 % interval", "seeds"], rows)


def draw(gains, title=""):
    """A matplotlib figure of gains: places side by side, a colour for each series.

    Where there are several variants, each has a kind of line.
    """
    from matplotlib.figure import Figure

    places = list(dict.fromkeys(g.place for g in gains))
    gains = [g for g in gains if g.mean is not None]
    series = list(dict.fromkeys(g.series for g in gains))
    variants = list(dict.fromkeys(g.variant for g in gains))
    lines = list(dict.fromkeys((g.series, g.variant) for g in gains))
    # Side by side, as wide together as three lines.
    apart = 0.12 if len(lines) <= 3 else 0.36 / len(lines)
    figure = Figure(figsize=(4.2 + 1.5 * len(places), 3.6), layout="constrained")
    ax = figure.subplots()
    ax.axhline(0, color="0.4", lw=1)
    for number, line in enumerate(lines):
        own = [g for g in gains if (g.series, g.variant) == line]
        shift = apart * (number - (len(lines) - 1) / 2)
        x = [places.index(g.place) + shift for g in own]
        # Of a single seed there is no interval.
        below = [0 if g.low is None else g.mean - g.low for g in own]
        above = [0 if g.high is None else g.high - g.mean for g in own]
        heights = [g.mean for g in own]
        style = _STYLES[variants.index(line[1]) % len(_STYLES)]
        color = f"C{series.index(line[0])}"
        label = ", ".join(line if len(variants) > 1 else line[:1])
        ax.errorbar(x, heights, [below, above], fmt=style, color=color, capsize=4, label=label)
    ax.set_xticks(range(len(places)), places)
    ax.set_xlim(-0.5, len(places) - 0.5)
    ax.set_ylabel("gain (points)")
    ax.grid(axis="y", color="0.9")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    if lines:  # beside the axes, where it hides no interval
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    ax.set_title(title, fontsize=11)
    return figure


def main(argv):
    del argv
    values = flags.FLAGS
    gains = read_all(values.study, values.variants)
    against = ", ".join(sorted({g.against for g in gains}))
    figure = draw(gains, f"{', '.join(values.variants)} against {against}: mean and 95 % interval")
    study_figures.save(values.output, figure)
    print(f"{table(gains)}\n\nwritten: {values.output}")


if __name__ == "__main__":
    flags.DEFINE_multi_string("study", None, "SERIES:PLACE:FOLDER, for every study once")
    flags.DEFINE_list("variants", ["isa"], "The variants whose gains are drawn.")
    flags.DEFINE_string("output", None, "The picture to write.")
    flags.mark_flags_as_required(["study", "output"])
    setup.run(main)
