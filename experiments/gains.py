r"""Tables and draws what variants gain in several studies: over where a head reads, over length.

    python -m experiments.gains --variants=isa,isa_plus --output=runs/gains.png \
        --study=CamVid:c3:runs/frozen/camvid-c3/frozen --study=CamVid:c4:runs/frozen/camvid/frozen \
        --study=CCP:c3:runs/frozen/ccp-c3/frozen --study=CCP:c4:runs/frozen/ccp/frozen

A study is SERIES:PLACE:FOLDER, the folder being one that experiments.ablate has made or a
results.csv of one. Places stand side by side in the order in which they come; a series has a
colour, and a variant a line. One that a study has not is left out there. Drawn is the mean of the
differences under the same seeds from what the study compares with, in points of the first score,
and its 95 % interval. Printed are two tables of a row for each variant and a column for each study:
the scores, and these differences. Without --output nothing is drawn.
"""

import csv
from pathlib import Path
from typing import NamedTuple

from absl import flags

from experiments import ablate, setup, study_figures
from isa_tf.names import unknown
from tools import tables

# Flags of its own where it is imported, so that tools do not meet in one set.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()

flags.DEFINE_multi_string(
    "study", None, "SERIES:PLACE:FOLDER, for every study once", flag_values=FLAGS
)
flags.DEFINE_list(
    "variants", ["isa"], "The variants that are told of, in this order.", flag_values=FLAGS
)
flags.DEFINE_string("output", None, "The picture to write; none by default.", flag_values=FLAGS)
flags.mark_flags_as_required(["study"], FLAGS)

_STYLES = ("o-", "s--", "^:")


class Gain(NamedTuple):
    """What a variant gains in one study, in points of 100.

    Attributes:
        series, place: str, what the study is of.
        variant: str.
        score, spread: floats, the mean of its first score and the sample standard deviation over
            the seeds, or `None` where the study has too few.
        mean, low, high: floats, of the difference; `None` where the study has too few seeds, and of
            what it compares with.
        seeds: int, how many the score is of.
        pairs: int, how many the difference is of.
        against: str, the variant it is compared with.
    """

    series: str
    place: str
    variant: str
    score: float | None
    spread: float | None
    mean: float | None
    low: float | None
    high: float | None
    seeds: int
    pairs: int
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
    own = [_number(row[score + part]) for part in ("_mean", "_sd")]
    gained = (_number(row[score + part]) for part in ablate.DIFFERENCE)
    gained = [None if value is None else 100 * value for value in gained]
    columns = [name for name in row if name.startswith(f"{score}_seed")]
    seeds = sum(bool(row[name]) for name in columns)
    pairs = sum(bool(row[name] and other[name]) for name in columns)
    return Gain(series, place, variant, *own, *gained, seeds, pairs, against)


def _number(cell):
    return float(cell) if cell else None


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


def score_table(gains, variants):
    """The Markdown of the scores: mean ± sample standard deviation (seeds)."""
    return _table(gains, variants, _score)


def gain_table(gains, variants):
    """The Markdown of the gains in points: mean, its 95 % interval (seeds)."""
    gained = {g.variant for g in gains if g.mean is not None}
    return _table(gains, [variant for variant in variants if variant in gained], _gained)


def _table(gains, variants, told):
    """A row for each variant, a column for each study."""
    studies = list(dict.fromkeys((g.series, g.place) for g in gains))
    cells = {(g.variant, g.series, g.place): told(g) for g in gains}
    rows = [[v, *(cells.get((v, *study)) for study in studies)] for v in variants]
    return tables.markdown(["variant", *(", ".join(study) for study in studies)], rows)


def _score(gain):
    if gain.score is None:
        return None
    spread = "" if gain.spread is None else f" ± {gain.spread:.3f}"
    return f"{gain.score:.3f}{spread} ({gain.seeds})"


def _gained(gain):
    if gain.mean is None:
        return None
    between = "" if gain.low is None else f", {gain.low:+.1f} to {gain.high:+.1f}"
    return f"{gain.mean:+.1f}{between} ({gain.pairs})"


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
    gains = read_all(FLAGS.study, FLAGS.variants)
    against = ", ".join(sorted({g.against for g in gains}))
    print(f"Scores (seeds):\n\n{score_table(gains, FLAGS.variants)}\n")
    print(f"Points over {against}, 95 % interval (seeds):\n\n{gain_table(gains, FLAGS.variants)}")
    if FLAGS.output:
        gained = f"{', '.join(FLAGS.variants)} against {against}: mean and 95 % interval"
        study_figures.save(FLAGS.output, draw(gains, gained))
        print(f"\nwritten: {FLAGS.output}")


if __name__ == "__main__":
    setup.run(main)
