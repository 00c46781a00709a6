"""The state of a run on disk: written whole, checked when read, the one before it in reserve."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from isa_tf.files import FileFault, replacing
from isa_tf.hints import StrPath

_NAME = re.compile(r"step-(\d{8,})\.safetensors")
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_FORMAT = "isa_tf.training 1"

logger = logging.getLogger(__name__)


class Damaged(FileFault):
    """A checkpoint that cannot be gone on from: carries its `path` and the `reason`."""


class Checkpoints:
    """The last checkpoints of a run, in a folder of their own.

    A checkpoint is one file, step-NNNNNNNN.safetensors, of arrays and of facts that JSON can hold,
    with a SHA-256 of both. It takes its name when it is complete; older ones beyond `keep` go only
    then.

    Args:
        folder: of the checkpoints.
        keep: int, how many are kept. Defaults to 2.

    Example:

    >>> checkpoints = isa_tf.training.Checkpoints("checkpoints")
    >>> path = checkpoints.write(100, {"weights/0": np.ones(3, "float32")}, {"best": None})
    >>> facts, arrays = checkpoints.read(path)
    >>> facts["step"], arrays["weights/0"].tolist()
    (100, [1.0, 1.0, 1.0])
    """

    def __init__(self, folder: StrPath, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def paths(self) -> list[Path]:
        """Those that there are, the newest first."""
        found = self.folder.glob("step-*.safetensors") if self.folder.is_dir() else ()
        return sorted((p for p in found if _NAME.fullmatch(p.name)), key=_step, reverse=True)

    def write(self, step: int, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Path:
        """Writes the checkpoint of a step.

        Args:
            step: int.
            arrays: dict of NumPy arrays by name.
            facts: dict that JSON can hold.

        Returns:
            `Path` of the file.

        Raises:
            FloatingPointError: for an array with a value that is not finite; nothing is written.
            OSError: where it cannot be written; those before it are as they were.
        """
        for name, array in arrays.items():
            if not _finite(array):
                raise FloatingPointError(
                    f"{name} holds values that are not finite; no checkpoint of step {step} is made"
                )
        arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        told = json.dumps({**facts, "step": step}, sort_keys=True)
        path = self.folder / f"step-{step:08d}.safetensors"
        metadata = {"format": _FORMAT, "facts": told, "sha256": _digest(arrays, told)}
        with replacing(path) as new:
            try:
                save_file(arrays, new, metadata)
            except SafetensorError as error:  # that is how it reports a full disk
                number = _OS_ERROR.search(str(error))
                raise OSError(number and int(number[1]), str(error)) from error
            mask = os.umask(0)
            os.umask(mask)
            new.chmod(0o666 & ~mask)  # as any other file, where safetensors is its owner's alone
        for old in [p for p in self.paths() if _step(p) <= step][self.keep :]:
            old.unlink()
        return path

    def read(self, path: StrPath) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """(facts, arrays) of a checkpoint.

        Raises:
            Damaged: for a file that is torn or changed, or of an impossible step.
        """
        path = Path(path)
        try:
            with safe_open(path, "numpy") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise Damaged(path, f"cannot be read as a checkpoint ({error})") from error
        if metadata.get("format") != _FORMAT:
            raise Damaged(path, f"not a checkpoint: format {metadata.get('format')!r}")
        if metadata.get("sha256") != _digest(arrays, metadata.get("facts", "")):
            raise Damaged(path, "its contents are not what was written (SHA-256 differs)")
        facts = json.loads(metadata["facts"])
        if facts["step"] != _step(path):
            raise Damaged(path, f"it is of step {facts['step']}, whatever its name says")
        for name, array in arrays.items():
            if not _finite(array):
                raise Damaged(path, f"{name} holds values that are not finite")
        return facts, arrays

    def newest(
        self,
        check: Callable[[dict[str, Any], dict[str, np.ndarray]], object] = lambda facts, arrays: (
            None
        ),
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """(facts, arrays) of the newest checkpoint that is whole and fits; `None` if there is none.

        Those passed over are named in a warning.

        Args:
            check: function of (facts, arrays) that raises `ValueError` for what does not fit.

        Raises:
            Damaged: where there are checkpoints, and none can be used.
        """
        refused = []
        for path in self.paths():
            try:
                facts, arrays = self.read(path)
                try:
                    check(facts, arrays)
                except ValueError as error:
                    raise Damaged(path, str(error)) from error
            except Damaged as error:
                refused.append(error)
                continue
            for fault in refused:
                logger.warning("%s; going on from %s", fault, path.name)
            return facts, arrays
        if refused:
            others = "".join(f"\nand {fault}" for fault in refused[1:])
            raise Damaged(
                refused[0].path,
                f"{refused[0].reason}{others}\nThere is no other checkpoint: put one back from a "
                "copy, or begin again in another workdir",
            )
        return None

    def set_aside(self, after: int) -> None:
        """Renames the checkpoints of steps after `after` to `damaged-...`: they are not gone on."""
        for path in self.paths():
            if _step(path) > after:
                path.replace(path.with_name(f"damaged-{path.name}"))


def _step(path):
    return int(_NAME.fullmatch(path.name)[1])


def _finite(array):
    if array.dtype.kind in "biu":
        return True
    # A sum is not finite where one of its terms is not, and takes no memory.
    with np.errstate(invalid="ignore"):  # of infinities of both signs
        return bool(np.isfinite(array.sum(dtype="float64")))


def _digest(arrays, facts):
    """SHA-256 of names, types, shapes, bytes and facts."""
    sha = hashlib.sha256(facts.encode())
    for name in sorted(arrays):
        array = arrays[name]
        sha.update(f"{name} {array.dtype.str} {array.shape}".encode())
        sha.update(np.asarray(array, order="C").reshape(-1).view("uint8").data)
    return sha.hexdigest()
