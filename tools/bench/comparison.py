"""What got slower or bigger from one stored result to another."""

import math
from pathlib import Path
from typing import NamedTuple

from tools import tables
from tools.bench import results

# Below these, by the ends of figures' names, a difference is the measuring's.
_LEAST = {"_mb": 1.0, "_ms": 0.05}
_FACTS = ("cpu", "cores", "instructions", "memory_gb")


class Change(NamedTuple):
    """A figure of one row, then and now.

    Attributes:
        row: str, what the row is known by.
        figure: str, as a table calls it.
        old, new: floats.
        ratio: float, new to old.
    """

    row: str
    figure: str
    old: float
    new: float
    ratio: float


class Comparison(NamedTuple):
    """What two stored results of one kind tell of each other.

    Attributes:
        title: str, what was measured.
        warnings: texts: what makes the two no fair comparison.
        changes: list of `Change`, of every figure that both have.
        missing: texts: what one of them has alone.
    """

    title: str
    warnings: list
    changes: list
    missing: list

    def worse(self, threshold):
        """The changes for the worse beyond a ratio."""
        return [change for change in self.changes if change.ratio > threshold]

    def better(self, threshold):
        """Those for the better."""
        return [change for change in self.changes if change.ratio < 1 / threshold]


def pairs(old, new):
    """Which files are to be compared: (pairs of paths, texts of what is there once alone).

    Args:
        old, new: two files, or two folders, of which the stored results of the same names are
            compared; what else lies there is left alone.

    Raises:
        ValueError: for a file and a folder, or for folders without any that both have.
        FileNotFoundError: for what is not there.
    """
    old, new = Path(old), Path(new)
    for path in (old, new):
        if not path.exists():
            raise FileNotFoundError(f"there is no {path}")
    if old.is_dir() != new.is_dir():
        raise ValueError(f"give two files or two folders, not {old} and {new}")
    if not old.is_dir():
        return [(old, new)], []
    names = [{p.name for p in folder.glob("*.json") if _is_stored(p)} for folder in (old, new)]
    for folder, found in zip((old, new), names, strict=True):
        if not found:
            raise ValueError(f"{folder} holds no stored result, NAME.json, of a benchmark")
    both = sorted(names[0] & names[1])
    if not both:
        lists = [", ".join(sorted(found)) for found in names]
        raise ValueError(f"no name is in both: {old} holds {lists[0]}, {new} holds {lists[1]}")
    lone = [f"{name} is in {old} alone" for name in sorted(names[0] - names[1])]
    lone += [f"{name} is in {new} alone" for name in sorted(names[1] - names[0])]
    return [(old / name, new / name) for name in both], lone


def compare(old, new):
    """The `Comparison` of two `results.Result`s.

    Raises:
        ValueError: where they are of different things.
    """
    title, other = (f"{result.tool} {result.what}" for result in (old, new))
    if title != other:
        raise ValueError(f"the one is of {title}, the other of {other}: nothing to compare")
    ours, theirs = _named(new), _named(old)
    missing = [f"{name}: old alone" for name in theirs if name not in ours]
    missing += [f"{name}: new alone" for name in ours if name not in theirs]
    changes = []
    for name in (name for name in theirs if name in ours):
        for key, label in {**old.costs, **new.costs}.items():
            was, now = (row[name].get(key) for row in (theirs, ours))
            if was is None and now is None:
                continue
            if was is None or now is None:
                reason = (ours if now is None else theirs)[name].get("note")
                where = "new" if was is None else "old"
                text = f"{name}, {label}: {where} alone"
                missing.append(f"{text} ({reason})" if reason else text)
                continue
            changes.append(Change(name, label, was, now, _ratio(key, was, now)))
    return Comparison(title, _warnings(old, new), changes, missing)


def report(comparison, threshold):
    """What a `Comparison` has to say, as Markdown.

    Args:
        comparison: `Comparison`.
        threshold: float, the ratio from which on a figure is told.
    """
    lines = [f"{comparison.title}:", *(f"WARNING: {text}" for text in comparison.warnings)]
    told = [("slower or bigger", comparison.worse(threshold))]
    told.append(("quicker or smaller", comparison.better(threshold)))
    for heading, changes in told:
        if not changes:
            continue
        rows = [
            [c.row, c.figure, f"{c.old:.4g}", f"{c.new:.4g}", f"{c.ratio:.2f}"] for c in changes
        ]
        heads = [heading, "figure", "old", "new", "new / old"]
        lines += ["", tables.markdown(heads, rows), ""]
    lines += [f"MISSING: {text}" for text in comparison.missing]
    worse = len(comparison.worse(threshold))
    count = f"{len(comparison.changes)} figures compared"
    lines.append(f"{count}, {worse or 'none'} slower or bigger by more than {threshold:g}.")
    return "\n".join(lines)


def _is_stored(path):
    """Whether a file among others is a stored result; a damaged one is, and is told of later."""
    try:
        results.read(path)
    except results.NotStored:
        return False
    except ValueError:
        pass
    return True


def _named(result):
    """{name: row}, the name being what the row is known by, and how often it came before."""
    found = {}
    for row in result.rows:
        name = base = ", ".join(str(row[key]) for key in result.identity if key in row)
        count = 1
        while name in found:
            count += 1
            name = f"{base} ({count})"
        found[name] = row
    return found


def _ratio(key, was, now):
    least = next((least for end, least in _LEAST.items() if key.endswith(end)), 0.0)
    was, now = max(was, least), max(now, least)
    if was == now:
        return 1.0
    return now / was if was else math.inf


def _warnings(old, new):
    """What differs beside the code."""
    pairs = [(key, old.machine.get(key), new.machine.get(key)) for key in _FACTS]
    names = {**old.versions, **new.versions}
    names.pop("isa_tf", None)  # which the comparison is of
    pairs += [(name, old.versions.get(name), new.versions.get(name)) for name in names]
    names = {**old.settings, **new.settings}
    pairs += [(name, old.settings.get(name), new.settings.get(name)) for name in names]
    found = [f"{name} differs: {_text(a)}, now {_text(b)}" for name, a, b in pairs if a != b]
    rates = [result.machine.get("matmul_gflops") for result in (old, new)]
    if all(rates) and not 0.9 < rates[1] / rates[0] < 1 / 0.9:
        found.append(
            f"the machine itself multiplied at {rates[0]:.0f} GFLOP/s, now at {rates[1]:.0f}"
        )
    return found


def _text(value):
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)
