"""What can befall the files of a workdir."""

import csv
import json
import random
import shutil
from typing import NamedTuple

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from isa_tf import training


class Damage(NamedTuple):
    """Something done to a copy of a workdir, and what it may come to."""

    file: str  # that a warning or an error must name
    kind: str
    act: object  # function of the folder
    may_be: tuple = ("recovered", "refused")
    folder: str = "halfway"  # that is damaged; "young" before a validation, "end" when all is done
    goes_on: bool = False  # trained to the end as well


def draw_damages(sources, seed, each):
    """The damages: of every file what can befall any, then what can befall its kind."""
    draw = random.Random(seed)
    stateless = {".lock": ("harmless",), str(sources.events): ("harmless",)}
    if (sources.folder / "halfway" / "curves.png").exists():
        stateless["curves.png"] = ("harmless",)
    names = [training.CONFIG, training.LOG, training.BEST_SCORE, training.BEST]
    names += [str(sources.newest), str(sources.older), *stateless]
    found = []
    for name in names:
        may_be = stateless.get(name, ("recovered", "refused"))
        if name == str(sources.older):
            may_be = ("harmless",)
        found += _general(sources, name, may_be, each, draw)
    found += _of_json(sources)
    found += _of_log(sources)
    found += _of_checkpoints(sources)
    return found


def _general(sources, name, may_be, each, draw):
    path = sources.folder / "halfway" / name
    size = path.stat().st_size

    def damage(kind, change, may_be=may_be, goes_on=False):
        def act(folder):
            content = change((folder / name).read_bytes())
            (folder / name).unlink()
            if content is not None:
                (folder / name).write_bytes(content)

        return Damage(name, kind, act, may_be, goes_on=goes_on)

    def flipped(content, bit):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)

    found = []
    places = [size - 1, 1, *(draw.randrange(1, size) for _ in range(each - 2))][:each]
    for i, place in enumerate(places):
        goes_on = i == 0 and name in (str(sources.newest), training.BEST, training.LOG)
        cut = damage("cut", lambda content, place=place: content[:place], goes_on=goes_on)
        found.append(cut)
    for _ in range(each):
        bit = draw.randrange(8 * size)
        found.append(damage("a bit flipped", lambda content, bit=bit: flipped(content, bit)))
    noise = draw.randbytes(size)
    found.append(damage("emptied", lambda _: b"", goes_on=name == training.CONFIG))
    # Of a checkpoint that is gone, nothing can tell: the one before it is the newest.
    gone = ("harmless",) if name == str(sources.newest) else may_be
    found.append(damage("removed", lambda _: None, gone))
    found.append(damage("random bytes", lambda _: noise))
    for other in ("other", "earlier"):
        theirs = sources.folder / other / name
        if not theirs.exists():  # of another step, or with a time in its name
            pattern = "events*" if "tensorboard" in name else "step-*"
            theirs = next(iter(sorted(theirs.parent.glob(pattern), reverse=True)), None)
        if theirs is not None:
            content = theirs.read_bytes()
            kind = {"other": "that of another seed", "earlier": "that of an earlier step"}[other]
            found.append(damage(kind, lambda _, content=content: content))
    return found


def _of_json(sources):
    found = []
    for name in (training.CONFIG, training.BEST_SCORE):
        original = json.loads((sources.folder / "halfway" / name).read_text())
        number = "seed" if name == training.CONFIG else "miou"
        texts = {
            "null": "null",
            "a list": json.dumps([original]),
            "NaN": json.dumps({**original, number: float("nan")}),
            "another number": json.dumps({**original, number: 0.75}),
            "a key is gone": json.dumps({k: v for k, v in original.items() if k != number}),
            "a text for a number": json.dumps({**original, number: "x"}),
            "nested without end": "[" * 200_000,
            "no UTF-8": '{"seed": "\udcff"}',
        }
        for kind, text in texts.items():

            def act(folder, name=name, text=text):
                (folder / name).write_bytes(text.encode(errors="surrogateescape"))

            goes_on = kind == "null" and name == training.BEST_SCORE
            found.append(Damage(name, kind, act, goes_on=goes_on))

    def other_pair(folder):
        for name in (training.BEST, training.BEST_SCORE):
            shutil.copy(sources.folder / "other" / name, folder / name)

    def no_pair(folder):
        for name in (training.BEST, training.BEST_SCORE):
            (folder / name).unlink()

    found.append(Damage(training.BEST, "and score of another seed", other_pair))
    found.append(Damage(training.BEST, "and score removed", no_pair))
    return found


def _of_log(sources):
    with open(sources.folder / "halfway" / training.LOG, newline="") as file:
        rows = list(csv.reader(file))
    text = (sources.folder / "halfway" / training.LOG).read_text()
    changed = [[*row] for row in rows]
    changed[1][rows[0].index("val_miou")] = "0.9"
    texted = [[*row] for row in rows]
    texted[-1][1] = "x"
    tables = {
        "a row is cut": text[: text.rindex(",") - 20],
        "a field too many": [*rows[:-1], [*rows[-1], "1.0"]],
        "a text for a number": texted,
        "without its header": rows[1:],
        "its header alone": rows[:1],
        "another number": changed,
        "a row is gone": [rows[0], *rows[2:]],
        "a row twice": [*rows, rows[-1]],
        "a column is gone": [row[:-1] for row in rows],
    }
    found = []
    for kind, table in tables.items():

        def act(folder, table=table):
            with open(folder / training.LOG, "w", newline="") as file:
                if isinstance(table, str):
                    file.write(table)
                else:
                    csv.writer(file).writerows(table)

        found.append(Damage(training.LOG, kind, act))
    return found


def _of_checkpoints(sources):
    newest, older = str(sources.newest), str(sources.older)
    step = max(sources.states)
    facts, arrays = sources.states[step]

    def checkpoints(folder):
        return training.Checkpoints(folder / training.CHECKPOINTS, keep=9)

    def cut(*names):
        def act(folder):
            for name in names:
                content = (folder / name).read_bytes()
                (folder / name).write_bytes(content[: len(content) // 2])

        return act

    def remove(folder):
        shutil.rmtree(folder / training.CHECKPOINTS)

    def renamed(to):
        def act(folder):
            path = folder / newest
            path.rename(path.with_name(f"step-{to:08d}.safetensors"))

        return act

    def written(to=step, changed=None, **other):
        def act(folder):
            checkpoints(folder).write(to, {**arrays, **(changed or {})}, {**facts, **other})

        return act

    def without(group):
        def act(folder):
            kept = {n: a for n, a in arrays.items() if not n.startswith(group)}
            checkpoints(folder).write(step, kept, facts)

        return act

    def not_finite(folder):
        # By hand, since Checkpoints refuse to write it.
        name = next(n for n, a in arrays.items() if n.startswith("model/") and a.ndim == 4)
        bad = {**arrays, name: np.full_like(arrays[name], np.nan)}
        with safe_open(folder / newest, "numpy") as file:
            metadata = file.metadata()
        metadata["sha256"] = training.checkpoint._digest(bad, metadata["facts"])
        save_file(bad, folder / newest, metadata)

    def other_run(to):
        def act(folder):
            theirs = training.Checkpoints(sources.folder / "other" / training.CHECKPOINTS)
            their_facts, their_arrays = theirs.newest()
            checkpoints(folder).write(to, their_arrays, their_facts)

        return act

    def old(folder):
        (folder / "last.keras").write_bytes((folder / training.BEST).read_bytes())

    def lose(folder):
        (folder / training.BEST).unlink()

    counts = {n: a + np.asarray(9, a.dtype) for n, a in arrays.items() if _counts(a, step)}
    kernel = next(n for n, a in arrays.items() if n.startswith("model/") and a.ndim == 4)
    wider = {kernel: np.repeat(arrays[kernel], 2, axis=-1)}
    refused, recovered, harmless = ("refused",), ("recovered",), ("harmless",)
    later = newest.replace(f"{step:08d}", f"{step + 4:08d}")
    return [
        Damage(newest, "both cut", cut(newest, older), refused),
        Damage(training.CHECKPOINTS, "folder removed", remove, refused),
        Damage(training.CHECKPOINTS, "removed before a validation", remove, refused, "young"),
        Damage("last.keras", "is there, of version 0.1", old, refused),
        Damage(later, "renamed to a later step", renamed(step + 4), recovered, goes_on=True),
        Damage(newest, "renamed to an earlier step", renamed(1), harmless),
        Damage(newest, "of another optimizer", without("optimizer"), recovered),
        Damage(newest, "of another model", written(changed=wider), recovered),
        Damage(newest, "of other metrics", without("metrics"), recovered),
        Damage(newest, "not finite", not_finite, recovered),
        Damage(newest, "counts more steps than it has", written(changed=counts), recovered),
        Damage(newest, "of another run", written(run="0" * 64), recovered),
        Damage(later, "of another seed, later", other_run(step + 4), recovered),
        Damage(training.BEST, "removed when all was done", lose, folder="end", goes_on=True),
    ]


def _counts(array, step):
    return array.ndim == 0 and array.dtype.kind in "iu" and array == step
