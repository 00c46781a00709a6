"""Weights that others publish: fetched once, checked, kept in Keras's cache."""

import hashlib
import json
import logging
import os
import re
from pathlib import Path

import keras

FOLDER = "isa_tf"  # in Keras's cache
# What OpenMMLab and torchvision end a file's name in: the first digits of its sha256.
_DIGITS = re.compile(r"-([0-9a-f]{8})\.pth$")

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where weights are kept: the folder isa_tf in Keras's, ~/.keras or the variable KERAS_HOME."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / FOLDER


def fetch(url, file_name=None, by_program=True) -> Path:
    """A file of weights, from the cache or from its publisher, checked.

    Args:
        url: str.
        file_name: str, in the cache; `None` for the end of the url. Defaults to `None`.
        by_program: bool; `False` where the url is a page for people, so that the file has to be
            put into the cache by hand. Defaults to `True`.

    Returns:
        `Path` of the file.

    Raises:
        ValueError: where the file is not the published one (see `check`).
        OSError: where it cannot be fetched, with the address and the place where a file that was
            fetched otherwise may be put.

    Example:

    >>> path = fetch("https://download.pytorch.org/models/resnet18-f37072fd.pth")  # doctest: +SKIP
    """
    file_name = file_name or url.rsplit("/", 1)[1]
    path = cache_folder() / file_name
    by_hand = f"put the file at {path} by hand"
    if not path.exists():
        if not by_program:
            raise OSError(f"no program can fetch {file_name}: see {url}, and {by_hand}")
        logger.info("fetching %s", url)
        # Keras writes to /tmp where the folder is not there yet.
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            keras.utils.get_file(
                file_name, url, cache_dir=path.parent.parent, cache_subdir=path.parent.name
            )
        except Exception as error:
            raise OSError(f"cannot fetch {url} ({error}); without a network, {by_hand}") from error
    check(path, url)
    return path


def check(path, url):
    """Raises ValueError unless a file is what its name, or else its first use, says.

    A name that ends in eight digits of the sha256 must tell the truth. Of other files sum and size
    are recorded beside them when they are first used, and must stay what they were.
    """
    path = Path(path)
    with open(path, "rb") as file:
        if file.read(512).lstrip().startswith(b"<"):
            raise ValueError(
                f"{path}: this is a web page (HTML), not the weights; delete it, and see {url}"
            )
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if match := _DIGITS.search(path.name):
        if not digest.startswith(match[1]):
            raise ValueError(
                f"{path}: its sha256 begins with {digest[:8]}, that of the published file with "
                f"{match[1]}; delete it to fetch it again"
            )
        return
    record = path.with_name(f"{path.name}.json")
    found = {"sha256": digest, "bytes": path.stat().st_size}
    if not record.exists():
        record.write_text(json.dumps(found) + "\n")
    elif (first := json.loads(record.read_text())) != found:
        raise ValueError(
            f"{path}: the file has changed since its first use, from {first} to {found}; delete it "
            f"to fetch it again, or {record} to use it as it is"
        )
