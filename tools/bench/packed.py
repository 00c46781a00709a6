"""A folder of programs that are timed elsewhere: its cases, and the arrays that they are called on.

Weights are not packed: they are drawn anew from numbers, the same ones wherever it is done. So a
program's outputs can be held against those of where it was made. Needs NumPy alone.
"""

import json
from pathlib import Path

import numpy as np

INDEX = "cases.json"
SAMPLES = 64  # of each output, that are compared


def write(folder, cases, facts):
    """Writes what a folder holds beside its programs.

    Args:
        folder: path.
        cases: list of dicts, the most important first.
        facts: dict of what all have in common.
    """
    (Path(folder) / INDEX).write_text(json.dumps({**facts, "cases": cases}, indent=1) + "\n")


def read(folder):
    """(cases, facts) of a folder."""
    facts = json.loads((Path(folder) / INDEX).read_text())
    return facts.pop("cases"), facts


def draw_as(value):
    """By what an array like this one is drawn: what `draw` takes, beside shape and dtype.

    Args:
        value: array, a weight as it was initialised.
    """
    value = np.asarray(value)
    if not value.size or (value == value.flat[0]).all():
        return {"fill": value.flat[0].item() if value.size else 0}
    if value.dtype.kind in "iu":  # the state of a generator
        return {"values": value.tolist()}
    return {"std": float(value.astype("float64").std())}


def draw(how, shape, dtype, number):
    """An array.

    Args:
        how: dict of one: "fill", a number; "values", a list; "std", of a normal distribution;
            "below", of integers from 0 on.
        shape: tuple of ints.
        dtype: str.
        number: int, which it is of those that are drawn together.
    """
    if "fill" in how:
        return np.full(shape, how["fill"], dtype)
    if "values" in how:
        return np.asarray(how["values"], dtype).reshape(shape)
    rng = np.random.default_rng(number)
    if "below" in how:
        return rng.integers(0, how["below"], shape, "uint8").astype(dtype)
    return (rng.standard_normal(shape, "float32") * np.float32(how["std"])).astype(dtype)


def positions(size):
    """Which elements of an output are compared."""
    return np.linspace(0, size - 1, min(size, SAMPLES)).astype("int64")


def errors(found, expected):
    """How far samples of outputs lie from those expected: the norm of each difference, relative.

    Args:
        found, expected: lists of lists of numbers, one for each output.
    """
    pairs = [
        (np.asarray(a, "float64"), np.asarray(b, "float64"))
        for a, b in zip(found, expected, strict=True)
    ]
    return [float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)) for a, b in pairs]
