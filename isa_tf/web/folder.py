"""A folder that anyone can host, whose page runs LiteRT models in the browser."""

import html
import json
import re
import shutil
import string
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from isa_tf import files
from isa_tf.data.base import voc_palette
from isa_tf.hints import StrPath
from isa_tf.inference import METADATA_FILE, SegmentationContract, read_contract
from isa_tf.names import id_of_class
from isa_tf.version import __version__

# What `make web` builds from the sources in web/.
PAGE = Path(__file__).with_name("page")

# Scripts, models and pictures come from the page's own host and go nowhere.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' 'wasm-unsafe-eval'",
        "worker-src 'self' blob:",
        "connect-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "media-src 'self' blob:",
        "base-uri 'none'",
        "form-action 'none'",
    )
)

# What browsers show.
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")

_INDEX = Path("models") / "models.json"
_UNKNOWN_CLASSES = 256  # of a model that does not tell how many it has
_IDENTIFIER = b"TFL3"  # of LiteRT's files, from their fifth byte on


def is_built(page: StrPath | None = None) -> bool:
    """Whether the page has been built: bool.

    Args:
        page: folder of the built page; `None` for the package's own. Defaults to `None`.
    """
    page = PAGE if page is None else Path(page)
    return (page / "index.html").is_file() and (page / "wasm").is_dir()


def write(
    folder: StrPath,
    models: Mapping[str, StrPath] | Iterable[StrPath],
    examples: Iterable[StrPath] = (),
    title: str = "Segmentation",
    clear: Collection[int | str] = (0,),
    page: StrPath | None = None,
) -> Path:
    """Writes a static folder whose page runs segmentation models in the browser.

    It holds the page, LiteRT's runtime as WebAssembly (28 MB, of which a browser loads a third),
    the models, and `models/models.json`, which tells names and colours of their classes. Any host
    of static files serves it: by https, as browsers give no camera otherwise, and quickest with the
    headers of `make_server`, which let the runtime have threads.

    Args:
        folder: path of the folder. What was there is replaced at the end, if this function wrote
            it or it is empty.
        models: mapping from names to paths of `.tflite` files that `isa_tf.export` wrote; or the
            paths alone, whose stems are the names then. The first is what the page begins with.
        examples: paths of pictures that the page offers; copied as they are. Defaults to none.
        title: str, the page's heading. Defaults to "Segmentation".
        clear: ids or names of classes that are not coloured until the person asks for them.
            Defaults to `(0,)`, as `tools.predict` has it.
        page: folder of the built page; `None` for the package's own. Defaults to `None`.

    Returns:
        The folder, a `pathlib.Path`.

    Raises:
        FileNotFoundError: for a model or an example that is not there.
        ValueError: for a file that is no LiteRT model of `isa_tf.export`, a model of another task
            than segmentation, an example that browsers do not show, two of one name, no model, or
            a folder that holds something else. Nothing has been written then.
        RuntimeError: where the page has not been built.

    Example:

    >>> if isa_tf.web.is_built():
    ...     page = isa_tf.web.write("page", {"streets": "model.tflite"}, ["photo.jpg"])
    """
    folder, page = Path(folder), PAGE if page is None else Path(page)
    if not isinstance(models, Mapping):
        paths = [Path(path) for path in models]
        _check_unique([path.stem for path in paths], "models")
        models = {path.stem: path for path in paths}
    if not models:
        raise ValueError("no model: the page needs one at least")
    told = [_describe(str(name), Path(path), clear) for name, path in models.items()]
    for number, row in enumerate(told):  # what is left of two names may be the same
        row["file"] = f"{number}-{row['file']}"
    pictures = [Path(path) for path in examples]
    for picture in pictures:
        if not picture.is_file():
            raise FileNotFoundError(f"{picture}: no such file")
        if picture.suffix.lower() not in PICTURES:
            raise ValueError(f"{picture}: browsers show {', '.join(PICTURES)}")
    _check_unique([picture.name for picture in pictures], "examples")
    if not is_built(page):
        raise RuntimeError(
            f"the page is not built ({page}): `make web` builds it in a checkout, which needs "
            "Node.js 18 and npm; a wheel that is made after that holds it"
        )
    if folder.exists() and not (folder / _INDEX).is_file():
        if not folder.is_dir() or any(folder.iterdir()):
            raise ValueError(f"{folder} holds something else than a page: give another folder")
    with files.replacing_folder(folder) as new:
        shutil.copytree(page, new, copy_function=shutil.copyfile)
        _fill(new / "index.html", title)
        (new / "models").mkdir()
        for row, path in zip(told, models.values(), strict=True):
            shutil.copyfile(path, new / "models" / row["file"])
        if pictures:
            (new / "examples").mkdir()
        for picture in pictures:
            shutil.copyfile(picture, new / "examples" / picture.name)
        index = {"models": told, "examples": [picture.name for picture in pictures]}
        text = json.dumps(index, indent=1, ensure_ascii=False)
        (new / _INDEX).write_text(text + "\n", encoding="utf-8")
    return folder


def _describe(name, path, clear):
    """What the page is told of a model; ValueError, with the path, for one that it cannot run."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    contract = _contract(path)
    if contract.task != SegmentationContract.task:
        raise ValueError(
            f"{path}: a model of {contract.task}; the page shows segmentation models alone"
        )
    count = contract.num_classes or _UNKNOWN_CLASSES
    names = contract.class_names or [f"class {i}" for i in range(count)]
    palette = contract.palette or voc_palette(count)
    return {
        "name": name,
        "file": re.sub(r"[^A-Za-z0-9._-]+", "_", name) + ".tflite",
        "bytes": path.stat().st_size,
        "image_sizes": [list(size) for size in contract.image_sizes or [contract.image_size]],
        "classes": [
            {"name": name, "color": [*map(int, color)]}
            for name, color in zip(names, palette, strict=True)
        ],
        "clear": sorted(id_of_class(given, names, f"class to clear in {path}:") for given in clear),
    }


def _contract(path):
    """The contract that is packed into a `.tflite` file."""
    with open(path, "rb") as file:
        head = file.read(8)
    if head[4:] != _IDENTIFIER:
        raise ValueError(f"{path}: not a LiteRT model")
    text = None
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if METADATA_FILE in archive.namelist():
                    text = archive.read(METADATA_FILE)
        if text is None:
            raise ValueError(f"it has no {METADATA_FILE}: not a model that isa_tf.export wrote")
        return read_contract(text)
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: {error}") from error


def _check_unique(names, what):
    seen = {}
    for name in names:
        if name.casefold() in seen:  # file systems and people take them for the same
            raise ValueError(f"two {what} of the name {name!r}: give them names of their own")
        seen[name.casefold()] = name


def _fill(path, title):
    """Puts what is told in Python into the page."""
    values = {"title": title, "policy": POLICY, "version": __version__}
    values = {name: html.escape(value) for name, value in values.items()}
    text = string.Template(path.read_text(encoding="utf-8")).substitute(values)
    path.write_text(text, encoding="utf-8")
