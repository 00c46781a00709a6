"""Files that are whole or not there, and what archives may inflate to."""

import contextlib
import errno
import fnmatch
import hashlib
import json
import os
import shutil
import socket
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias

# As in isa_tf.hints, which brings TensorFlow: this file needs nothing but Python.
StrPath: TypeAlias = str | os.PathLike[str]

# What an archive may inflate to: weights hardly shrink, so a small file that claims much is a trap.
INFLATED_FREE = 64 * 2**20  # bytes that any archive may have
INFLATED_RATIO = 20  # times its size on disk, beyond them

_UNWRITABLE = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EFBIG", "EIO")
}


class FileFault(ValueError):
    """A file or folder that cannot be used as it is: carries its `path` and the `reason`.

    Args:
        path: of the file, or what its str names, such as one in an archive.
        reason: str, what is wrong with it.
    """

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is made anew of `args`, its text alone, where another process is to have it.
        return type(self), (self.path, self.reason)


@contextlib.contextmanager
def replacing(path: StrPath) -> Iterator[Path]:
    """A path of the same suffix beside `path`, which takes its place when all went well.

    Whatever happens, an older file at `path` is untouched until the new one is complete, and
    nothing is left of one that was not completed (but by a process that was killed: `sweep`).
    Folders above `path` are made.

    Args:
        path: of the file.

    Raises:
        OSError: naming `path`, where the disk is full or may not be written to.

    Example:

    >>> with replacing("note.txt") as new:
    ...     _ = new.write_text("whole")
    >>> Path("note.txt").read_text()
    'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = _aside(path, "new")
    try:
        yield new
        with open(new, "rb+") as file:  # on the disk before it takes the other's place
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError as error:
        if error.errno not in _UNWRITABLE and "No space left" not in str(error):
            raise
        # What raised it names the file that was written aside, or none.
        raise OSError(
            error.errno, f"could not be written ({error}); what was there is as it was", str(path)
        ) from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)


def _aside(path, age):
    # Two that write the same file do not write into each other's: of several processes, or of
    # several hosts or containers with one folder, which may give them one number, or threads.
    writer = f"{socket.gethostname()} {os.getpid()} {threading.get_ident()}"
    token = hashlib.sha256(writer.encode()).hexdigest()[:12]
    return path.with_name(f".{age}-{token}-{path.name}")


def is_left(path: StrPath) -> bool:
    """Whether a file is what a writer that was killed has left, by its name.

    Example:

    >>> is_left(".new-0f3a-note.txt"), is_left("note.txt")
    (True, False)
    """
    # The second is how safetensors writes aside.
    return any(fnmatch.fnmatchcase(Path(path).name, p) for p in (".new-*", ".tmp??????"))


def sweep(folder: StrPath) -> None:
    """Removes what writers that were killed left in a folder that nobody else writes to now.

    Folders that they were making, such as exported models, stay.

    Args:
        folder: path; it need not exist.
    """
    for path in filter(is_left, Path(folder).glob(".*")):
        if not path.is_dir():
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(path: StrPath) -> Iterator[None]:
    """Holds a file that one process may hold at a time; it is let go when the process dies.

    Args:
        path: of the file, which is made and stays.

    Raises:
        BlockingIOError: where another process holds it, naming that.

    Example:

    >>> with lock("work.lock"):
    ...     pass
    """
    path = Path(path)
    with open(path, "a+", errors="replace") as file:
        try:
            import fcntl
        except ImportError:  # Windows: nobody is kept out
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise BlockingIOError(
                error.errno, f"in use by {holder}; wait for it or stop it", str(path.parent)
            ) from None
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


@contextlib.contextmanager
def replacing_folder(path: StrPath) -> Iterator[Path]:
    """`replacing` for a folder: a path beside it, which takes its place at the end.

    >>> with replacing_folder("new_folder") as new:
    ...     new.mkdir()
    >>> Path("new_folder").is_dir()
    True
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = _aside(path, "new"), _aside(path, "old")
    try:
        yield new
        # A folder that is not empty cannot be renamed over.
        if path.exists():
            path.rename(old)
        new.rename(path)
    finally:
        # Ctrl-C may have come between the two as well.
        if old.exists() and not path.exists():
            old.rename(path)
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)


def save_model(model: Any, path: StrPath) -> None:
    """`model.save(path)` that leaves an older file untouched until the new one is complete.

    Args:
        model: `keras.Model`.
        path: of the `.keras` file.

    Example:

    >>> save_model(model, "kept.keras")
    """
    with replacing(path) as new:
        model.save(new)


def write_json(path: StrPath, content: Any, indent: int | None = None) -> None:
    """Writes JSON, whole or not at all.

    Args:
        path: of the file.
        content: what JSON can hold.
        indent: int, see `json.dumps`. Defaults to `None`, one line.

    Example:

    >>> write_json("told.json", {"step": 3})
    >>> read_json("told.json")
    {'step': 3}
    """
    with replacing(path) as new:
        new.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


def read_json(path: StrPath) -> Any:
    """The dict that a file of JSON holds; `None` where there is none, or it is damaged.

    >>> read_json("missing.json") is None
    True
    """
    return try_read_json(path)[0]


def try_read_json(path: StrPath) -> tuple[dict[str, Any] | None, str | None]:
    """(the dict that a file of JSON holds, `None`), or (`None`, what is wrong with it).

    >>> _ = Path("told.json").write_text("[3]")
    >>> try_read_json("told.json")
    (None, 'holds no dictionary but [3]')
    """
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # the last of brackets by the thousand
        return None, f"cannot be read ({error})"
    if not isinstance(told, dict):
        return None, f"holds no dictionary but {str(told)[:40]}"
    return told, None


def size(path: StrPath) -> int:
    """The bytes of a file, or of all files of a folder.

    >>> _ = Path("note.txt").write_text("whole")
    >>> size("note.txt")
    5
    """
    path = Path(path)
    inside = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in inside)


def digest(path: StrPath) -> str:
    """The SHA-256 of a file, or of the names and contents of all files of a folder.

    Args:
        path: of the file or folder.

    Returns:
        str of hexadecimal digits.

    Example:

    >>> _ = Path("note.txt").write_text("whole")
    >>> digest("note.txt")[:8]
    '5d5766cf'
    """
    path = Path(path)
    if path.is_dir():
        told = hashlib.sha256()
        for inner in sorted(p for p in path.rglob("*") if p.is_file()):
            told.update(f"{inner.relative_to(path).as_posix()}\n{digest(inner)}\n".encode())
        return told.hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_inflated(path: StrPath | IO[bytes]) -> None:
    """Refuses a zip archive whose members claim more bytes than such a file can honestly hold.

    Args:
        path: of the archive, or an open binary file.

    Raises:
        ValueError: where they claim more than `INFLATED_FREE` and `INFLATED_RATIO` times the size
            of the file; nothing has been inflated then.
        zipfile.BadZipFile: for a file that is no zip archive.

    Example:

    >>> np.savez("weights.npz", stem=np.zeros((32, 3), "float32"))
    >>> check_inflated("weights.npz")
    """
    with zipfile.ZipFile(path) as archive:
        claimed = sum(info.file_size for info in archive.infolist())
        assert archive.fp is not None  # it is open
        archive.fp.seek(0, os.SEEK_END)
        size = archive.fp.tell()
    allowed = INFLATED_FREE + INFLATED_RATIO * size
    if claimed > allowed:
        raise ValueError(
            f"an archive of {size:,} bytes that would inflate to {claimed:,}; at most {allowed:,} "
            "are read of it"
        )
