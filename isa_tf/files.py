"""Files that are whole or not there, and what archives may inflate to."""

import contextlib
import os
import shutil
import zipfile
from pathlib import Path

# What an archive may inflate to: weights hardly shrink, so a small file that claims much is a trap.
INFLATED_FREE = 64 * 2**20  # bytes that any archive may have
INFLATED_RATIO = 20  # times its size on disk, beyond them


@contextlib.contextmanager
def replacing(path):
    """A path of the same suffix beside `path`, which takes its place when all went well.

    Whatever happens, an older file at `path` is untouched until the new one is complete, and
    nothing is left of one that was not completed. Folders above `path` are made.

    Args:
        path: of the file.

    Example:

    >>> with replacing("note.txt") as new:
    ...     _ = new.write_text("whole")
    >>> Path("note.txt").read_text()
    'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # With the process's number: two that write the same file do not write into each other's.
    new = path.with_name(f".new-{os.getpid()}-{path.name}")
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path):
    """`replacing` for a folder: a path beside it, which takes its place at the end.

    >>> with replacing_folder("new_folder") as new:
    ...     new.mkdir()
    >>> Path("new_folder").is_dir()
    True
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = (path.with_name(f".{age}-{os.getpid()}-{path.name}") for age in ("new", "old"))
    try:
        yield new
        # A folder that is not empty cannot be renamed over.
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    finally:
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)


def save_model(model, path):
    """`model.save(path)` that leaves an older file untouched until the new one is complete.

    Args:
        model: `keras.Model`.
        path: of the `.keras` file.

    Example:

    >>> save_model(model, "kept.keras")
    """
    with replacing(path) as new:
        model.save(new)


def check_inflated(path):
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
        archive.fp.seek(0, os.SEEK_END)
        size = archive.fp.tell()
    allowed = INFLATED_FREE + INFLATED_RATIO * size
    if claimed > allowed:
        raise ValueError(
            f"an archive of {size:,} bytes that would inflate to {claimed:,}; at most {allowed:,} "
            "are read of it"
        )
