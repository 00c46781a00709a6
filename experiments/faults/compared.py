"""In what the results of two trainings differ."""

import keras
import numpy as np

from isa_tf import training

TIMES = ("seconds", "images_per_second", "step_seconds", "waiting", "memory_gib")


def differences(one, other, tolerance=0.0):
    """In what the results of two runs differ beyond a tolerance: a list of sentences."""
    found = []

    def same(a, b):
        if not tolerance:
            return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        return a.shape == b.shape and np.allclose(a, b, rtol=tolerance, atol=tolerance)

    (facts, arrays), (their_facts, their_arrays) = (state(folder) for folder in (one, other))
    if arrays.keys() != their_arrays.keys():
        found.append("the checkpoints hold other arrays")
    unequal = [n for n in arrays if n in their_arrays and not same(arrays[n], their_arrays[n])]
    if unequal:
        found.append(
            f"{len(unequal)} of {len(arrays)} arrays of the checkpoint differ: {unequal[:3]}"
        )
    for name in ("step", "config", "train_logs"):
        if facts[name] != their_facts[name]:
            found.append(f"{name} of the checkpoint is {facts[name]} and {their_facts[name]}")
    logs = [training.read_log(folder / training.LOG) for folder in (one, other)]
    scores = [[training.best_score(folder)] for folder in (one, other)]
    bests = [[without_digest(each["best"])] for each in (facts, their_facts)]
    for what, (a, b) in {
        training.LOG: logs,
        "log of the checkpoint": (facts["rows"], their_facts["rows"]),
        training.BEST_SCORE: scores,
        "best score of the checkpoint": bests,
    }.items():
        if (how := rows_differ(a, b, tolerance)) is not None:
            found.append(f"{what}: {how}")
    weights = [keras.models.load_model(f / training.BEST).get_weights() for f in (one, other)]
    unequal = sum(not same(a, b) for a, b in zip(*weights, strict=True))
    if unequal:
        found.append(f"{unequal} of {len(weights[0])} weights of {training.BEST} differ")
    left = [p.name for p in other.rglob("*") if p.name.startswith((".new-", ".tmp", "damaged-"))]
    if left and not tolerance:
        found.append(f"left over: {', '.join(left)}")
    return found


def state(workdir):
    """(facts, arrays) of the newest checkpoint."""
    return training.Checkpoints(workdir / training.CHECKPOINTS).newest()


def without_digest(best):
    """The best score as `best.json` tells it, of one in a checkpoint."""
    return best and {name: value for name, value in best.items() if name != "sha256"}


def rows_differ(ours, theirs, tolerance=0.0):
    """In words how lists of dicts of numbers differ, apart from times; `None` if they do not."""
    if len(ours) != len(theirs):
        return f"{len(ours)} rows and {len(theirs)}"
    for a, b in zip(ours, theirs, strict=True):
        a, b = ({k: v for k, v in row.items() if k not in TIMES} for row in (a, b))
        if a.keys() != b.keys():
            return f"one of {a['step']} lacks {sorted(a.keys() ^ b.keys())}"
        for name in a:
            if not np.isclose(a[name], b[name], rtol=tolerance, atol=tolerance, equal_nan=True):
                return f"at step {a['step']} {name} is {a[name]!r} and {b[name]!r}"
    return None


def as_log(rows):
    """The rows of a checkpoint as `training.read_log` reads them."""
    return [{name: float(value) for name, value in row.items()} for row in rows]
