"""Weights that others publish: fetched once, checked, kept in Keras's cache."""

import logging
import os
from pathlib import Path

import keras

from isa_tf.files import digest, read_json, replacing, write_json

FOLDER = "isa_tf"  # in Keras's cache

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where weights are kept: the folder isa_tf in Keras's, ~/.keras or the variable KERAS_HOME."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / FOLDER


def fetch(
    url: str,
    file_name: str,
    sha256: str | None = None,
    size: int | None = None,
    by_program: bool = True,
) -> Path:
    """A file of weights, from the cache or from its publisher, checked.

    A file that is fetched gets its name when it is complete and has been checked, so that what was
    killed on its way is never taken for the file. Where no sum is published, sum and size are
    recorded beside the file at its first use, and must stay what they were.

    Args:
        url: str.
        file_name: str, in the cache.
        sha256: str, its first digits, as many as are known. Defaults to `None`.
        size: int, bytes. Defaults to `None`, not known.
        by_program: bool; `False` where the url is a page for people, so that the file has to be
            put into the cache by hand. Defaults to `True`.

    Returns:
        `Path` of the file.

    Raises:
        ValueError: where the file is not the published one, or not what it was at its first use.
            One that was fetched for this call is not kept then.
        OSError: where it cannot be fetched, with the address and the place where a file that was
            fetched otherwise may be put.

    Example:

    >>> path = fetch(  # doctest: +SKIP
    ...     "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    ...     "resnet18.pth",
    ...     sha256="f37072fd",
    ... )
    """
    path = cache_folder() / file_name
    record = path.with_name(f"{file_name}.json") if sha256 is None else None
    if path.exists():
        try:
            found = _check(path, sha256, size, record)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; delete it to fetch it again, see {url}") from None
    elif by_program:
        with replacing(path) as new:
            _download(url, new, path)
            try:
                found = _check(new, sha256, size, record)
            except ValueError as error:
                raise ValueError(f"{url}: {error}; {file_name} was not kept") from None
    else:
        raise OSError(f"no program can fetch {file_name}: see {url}, and put the file at {path}")
    if record is not None and not record.exists():
        write_json(record, found)
    return path


def _download(url, new, path):
    logger.info("fetching %s", url)
    try:
        # Forced, as Keras takes whatever is there already for the whole file.
        keras.utils.get_file(
            new.name, url, cache_dir=new.parent, cache_subdir="", force_download=True
        )
    except Exception as error:
        raise OSError(
            f"cannot fetch {url} ({error}); without a network, put the file at {path} by hand"
        ) from error


def _check(path, sha256, size, record):
    """Sum and size of a file; ValueError unless they are those that are known or recorded."""
    with open(path, "rb") as file:
        if file.read(512).lstrip().startswith(b"<"):
            raise ValueError("this is a web page (HTML), not the weights")
    whole = digest(path)
    found = {"sha256": whole, "bytes": path.stat().st_size}
    if size is not None and found["bytes"] != size:
        raise ValueError(f"it has {found['bytes']:,} bytes, the published file has {size:,}")
    if sha256 is not None and not whole.startswith(sha256):
        raise ValueError(
            f"its sha256 begins with {whole[: len(sha256)]}, that of the published file with "
            f"{sha256}"
        )
    if record is not None and record.exists():
        first = read_json(record)
        if first != found:
            told = f"the file has changed since its first use, from {first} to {found}"
            if first is None:
                told = "what was recorded of it at its first use cannot be read"
            raise ValueError(f"{told}; delete {record} to use it as it is")
    return found
