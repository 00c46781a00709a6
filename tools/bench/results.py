"""Stored results: figures with what they were measured on, and by which command."""

import csv
import json
import math
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from isa_tf import files
from tools import command
from tools.bench import machine

KIND = "isa_tf benchmark"
VERSION = 1


class NotStored(ValueError):
    """A file that is no stored result, whole or damaged."""


class Result(NamedTuple):
    """What was measured, of what, where and how: what NAME.json holds.

    Attributes:
        tool: str, the module that measured, such as "tools.benchmark".
        what: str, which of the things that it measures, such as "context".
        rows: list of dicts that JSON can hold.
        identity: keys by which a row is known.
        costs: dict from the key of a figure, of which less is better, to what a table calls it.
        settings: dict of what was asked for: of whatever makes figures others than those of another
            run, and is in no row.
        command: str, by which it was started.
        time: str, when, in ISO 8601.
        machine, versions, commit, dirty: see `machine.describe`.
    """

    tool: str
    what: str
    rows: list
    identity: tuple
    costs: dict
    settings: dict
    command: str
    time: str
    machine: dict
    versions: dict
    commit: str | None
    dirty: bool | None

    def footer(self, more=""):
        """The last line of a report: the machine, what else there is to say, the command."""
        words = [machine.line(self._asdict()), more]
        return f"{'; '.join(filter(None, words))}. `{self.command}`"


def of_now(tool, what, rows, identity, costs, settings, *, packages=(), matmul_gflops=None):
    """The `Result` of rows that this process, or those that it started, has measured.

    Args:
        tool, what, rows, identity, costs, settings: see `Result`.
        packages: names of packages whose versions matter. Defaults to none.
        matmul_gflops: float, the rate of this machine, where it was measured. Defaults to `None`.
    """
    described = machine.describe(packages)
    described["machine"]["matmul_gflops"] = matmul_gflops
    started = command.spell(f"python -m {tool} {shlex.join(sys.argv[1:])}".rstrip())
    now = datetime.now(UTC).isoformat(timespec="seconds")
    given = (tuple(identity), dict(costs), dict(settings), started, now)
    return Result(tool, what, list(rows), *given, **described)


def write(result, folder, text, columns=None):
    """Writes WHAT.json, WHAT.md and, of `columns`, WHAT.csv into a folder, and prints the report.

    Args:
        result: `Result`.
        folder: path; made where it is missing.
        text: str, the Markdown of the report, without its last line break.
        columns: keys of the rows, in order; those that no row has are left out. Defaults to `None`,
            for no .csv.

    Returns:
        The endings of what was written.
    """
    folder = Path(folder)
    stored = {"kind": KIND, "version": VERSION, **result._asdict()}
    files.write_json(folder / f"{result.what}.json", stored, indent=1)
    with files.replacing(folder / f"{result.what}.md") as new:
        new.write_text(f"{text}\n", encoding="utf-8")
    print(f"\n{text}\n")
    if columns is None:
        return [".md", ".json"]
    shown = [key for key in columns if any(key in row for row in result.rows)]
    path = folder / f"{result.what}.csv"
    with files.replacing(path) as new, open(new, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, shown, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(result.rows)
    return [".md", ".csv", ".json"]


def read(path):
    """The `Result` that a file holds.

    Args:
        path: of a .json that `write` wrote.

    Raises:
        NotStored: for a file that is none.
        ValueError: for one of another version, or that is damaged.
        OSError: for one that cannot be read.
    """
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise NotStored(f"{path} is no stored result, and no JSON: {error}") from None
    if not isinstance(stored, dict) or stored.get("kind") != KIND:
        raise NotStored(f'{path} is no stored result of a benchmark: it has no "kind": "{KIND}"')
    if stored.get("version") != VERSION:
        raise ValueError(
            f"{path} is a stored result of version {stored.get('version')!r}, and this program "
            f"reads version {VERSION}"
        )
    try:
        return _checked({name: stored[name] for name in Result._fields})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is a stored result, but damaged: {_message(error)}") from None


def _checked(values):
    """A `Result` of what JSON held."""
    kinds = {"tool": str, "what": str, "rows": list, "identity": list, "costs": dict}
    kinds |= {"settings": dict, "command": str, "time": str, "machine": dict, "versions": dict}
    for name, kind in kinds.items():
        if not isinstance(values[name], kind):
            raise TypeError(f"{name} is {values[name]!r}")
    for number, row in enumerate(values["rows"]):
        if not isinstance(row, dict):
            raise TypeError(f"row {number} is {row!r}")
        for key in values["costs"]:
            figure = row.get(key)
            is_number = isinstance(figure, int | float) and not isinstance(figure, bool)
            if figure is not None and not (is_number and math.isfinite(figure) and figure >= 0):
                raise TypeError(f"{key} of row {number} is {figure!r}")
    return Result(**{**values, "identity": tuple(values["identity"])})


def _message(error):
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)
