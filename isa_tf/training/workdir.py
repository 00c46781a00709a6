"""The folder of one training: whose it is, and what lies in it beside the checkpoints."""

import contextlib
import hashlib
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras

from isa_tf import files
from isa_tf.hints import StrPath
from isa_tf.names import differences, flat
from isa_tf.training.callbacks import read_log, write_log
from isa_tf.training.checkpoint import Checkpoints, Damaged

CONFIG = "config.json"
LOG = "log.csv"
BEST = "best.keras"
BEST_SCORE = "best.json"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
LOCK = ".lock"
_OF_VERSION_01 = "last.keras"

logger = logging.getLogger(__name__)


class Workdir:
    """A work directory, which belongs to one config, and to one process at a time.

    Checkpoints tell all that the other files tell, so that these can be mended.

    Args:
        path: of the folder; made when it is owned.
        config: dict that JSON can hold: what the run is.
        may_change: dotted names of the entries of `config` in which it may differ from the
            folder's; of a dict, its name stands for all it holds.
    """

    def __init__(self, path: StrPath, config: Mapping[str, Any], may_change: Iterable[str]) -> None:
        self.path = Path(path)
        self.config = json.loads(json.dumps(config))
        self.may_change = tuple(may_change)
        self.checkpoints = Checkpoints(self.path / CHECKPOINTS)

    # === Whose it is ===

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Owns the folder for as long as its `with` block lasts.

        Where it ends by an error before anything of a training is there, the folder is nobody's
        again: whoever mends the config can use it.

        Raises:
            ValueError: where it is another run's or nobody's, naming what differs.
            OSError: where another process has it, or it cannot be written to.
        """
        self._check()
        self.path.mkdir(parents=True, exist_ok=True)
        with files.lock(self.path / LOCK):
            is_new = not (self.path / CONFIG).exists()
            self._claim()
            for folder in (self.path, self.checkpoints.folder):
                files.sweep(folder)
            try:
                yield
            except BaseException:
                if is_new and not self.checkpoints.paths() and not self._traces():
                    (self.path / CONFIG).unlink(missing_ok=True)
                raise

    def _check(self):
        if self.path.exists() and not (self.path / CONFIG).exists():
            # A run that was killed as it first wrote its config has left a part of that.
            if any(p.name != LOCK and not files.is_left(p) for p in self.path.iterdir()):
                raise ValueError(
                    f"{self.path} is not empty and holds no {CONFIG}; choose another workdir"
                )
        if (self.path / _OF_VERSION_01).exists():
            raise ValueError(
                f"{self.path / _OF_VERSION_01} is the state of a run of version 0.1, which this "
                "version cannot go on from; end it with that version, or choose another workdir"
            )

    def _claim(self):
        """Writes the config, or checks that the folder's is the same."""
        path = self.path / CONFIG
        if path.exists():
            theirs, reason = _read(path)
            if theirs is None:
                theirs = self._config_of_checkpoint(path, reason)
            differing = [n for n in differences(theirs, self.config) if not self._changes(n)]
            if differing:
                raise ValueError(
                    f"{self.path} belongs to another experiment, which differs in "
                    f"{', '.join(differing)} (see {path}); choose another workdir"
                )
        files.write_json(path, self.config, indent=2)

    def _config_of_checkpoint(self, path, reason):
        """The config that the newest checkpoint holds, where the file is damaged."""
        with contextlib.suppress(Damaged):
            if found := self.checkpoints.newest():
                logger.warning("%s: %s; written anew from the checkpoint", path, reason)
                return found[0]["config"]
        raise ValueError(
            f"{path}: {reason}, and no checkpoint tells whose {self.path} is; put the file back "
            "from a copy, or choose another workdir"
        )

    def _changes(self, name):
        return any(name == free or name.startswith(f"{free}.") for free in self.may_change)

    def identity(self) -> str:
        """A digest of what may not change, by which checkpoints know their run."""
        fixed = [(n, v) for n, v in flat(self.config) if not self._changes(n)]
        return hashlib.sha256(json.dumps(sorted(fixed)).encode()).hexdigest()

    # === What lies in it ===

    def check_new(self) -> None:
        """Raises ValueError where a training has been that left no checkpoint."""
        if left := self._traces():
            raise ValueError(
                f"{self.checkpoints.folder} holds no checkpoint any more, though a training has "
                f"left {', '.join(left)}; put one back from a copy, or choose another workdir"
            )

    def _traces(self):
        # TensorBoard's folder is made once the first state is kept, the others by validations.
        traces = (LOG, BEST, BEST_SCORE, TENSORBOARD)
        return [name for name in traces if (self.path / name).exists()]

    def keep_best(self, model: keras.Model, best: dict[str, Any]) -> None:
        """Keeps a model, and what it scored with the digest of its file, which `best` is given."""
        files.save_model(model, self.path / BEST)
        best["sha256"] = files.digest(self.path / BEST)
        self._write_score(best)

    def _write_score(self, best):
        # In this order, whatever that in a checkpoint is.
        (monitor,) = best.keys() - {"step", "sha256"}
        ordered = {name: best[name] for name in ("step", monitor, "sha256")}
        files.write_json(self.path / BEST_SCORE, ordered)

    def write_log(self, rows: list[dict[str, float]]) -> None:
        write_log(self.path / LOG, rows)

    def mend(
        self, step: int, rows: list[dict[str, float]], best: dict[str, Any] | None, pending: bool
    ) -> bool:
        """Brings the files beside a checkpoint to what it says, naming what was not so.

        Args:
            step: int, of the checkpoint; later ones are set aside.
            rows: list of dicts, the log.
            best: dict, the best score with the digest of its model; or `None`.
            pending: bool, whether the validation of this step is still to come.

        Returns:
            Whether the best model is there, or will be when the next validation is done. `False`
            where the score is of a model that is gone or damaged.
        """
        self.checkpoints.set_aside(after=step)
        path = self.path / LOG
        try:
            # It may hold more: rows of the validation that this state stands before, and of those
            # after a state that is damaged.
            found = [r for r in read_log(path) if r["step"] < step + (not pending)]
            if found != rows:
                logger.warning("%s: not what the checkpoint knows; written anew from it", path)
        except ValueError as error:
            logger.warning("%s; written anew from the checkpoint", error)
        if rows:
            write_log(path, rows)
        else:
            path.unlink(missing_ok=True)
        return best is None or self._mend_best(step, best, pending)

    def _mend_best(self, step, best, pending):
        path, model = self.path / BEST_SCORE, self.path / BEST
        digest = files.digest(model) if model.exists() else None
        theirs, reason = _read(path)
        if digest == best["sha256"]:
            if theirs != best:
                reason = reason or "not what the checkpoint knows"
                logger.warning("%s: %s; written anew from the checkpoint", path, reason)
                self._write_score(best)
            return True
        later = (theirs or {}).get("step")
        if digest is None:
            what = "gone"
        elif theirs is None or theirs.get("sha256") != digest:
            what = "damaged: not what was written"
        elif not isinstance(later, int) or later < step + (not pending):
            what = "not the one that the checkpoint knows"
        else:  # a validation was stopped after it was written, and will be done again
            return True
        logger.warning("%s is %s; the next validation writes it anew", model, what)
        return False


def best_score(workdir: StrPath) -> dict[str, Any] | None:
    """What is known of the best model of a run: {"step": ..., monitor: ...}, or `None`.

    Raises:
        ValueError: for a file that holds nothing of the kind.
    """
    path = Path(workdir) / BEST_SCORE
    if not path.exists():
        return None
    found, reason = _read(path)
    if found is None:
        raise ValueError(f"{path}: {reason}; the run writes it anew when it goes on")
    return {name: value for name, value in found.items() if name != "sha256"}


def _read(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The same as `files.try_read_json`; a score that is not finite is wrong too."""
    found, reason = files.try_read_json(path)
    if found and any(isinstance(v, float) and not math.isfinite(v) for v in found.values()):
        return None, "holds a number that is not finite"
    return found, reason
