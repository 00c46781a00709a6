"""The reference has every public name, and every page of the docs is in the site's contents."""

import importlib
import inspect
import json
import pkgutil
import re
import runpy

import handbook
import pytest
from handbook import DOCS, ROOT

import isa_tf

PAGES = sorted((DOCS / "api").glob("*.md"))
SHOWN = [
    name for page in PAGES for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
]
ROOMS = [f"isa_tf.{room.name}" for room in pkgutil.iter_modules(isa_tf.__path__)]
# What is of use in the package alone.
INSIDE = {f"isa_tf.{name}" for name in ("backend", "compat", "hints", "names", "version")}
to_markdown = runpy.run_path(DOCS / "site/docstrings.py")["to_markdown"]


@pytest.mark.parametrize("room", ["isa_tf", *sorted({*ROOMS} - INSIDE)])
def test_public_names_of_a_room_are_shown(room):
    if room in SHOWN:
        return  # the whole module
    names = importlib.import_module(room).__all__
    missing = {f"{room}.{name}" for name in names} - {*SHOWN}
    # Of the package itself the rooms are pages.
    missing -= {name for name in missing if (DOCS / f"api/{name.rpartition('.')[2]}.md").exists()}
    assert not missing, f"docs/api/ lacks {sorted(missing)}"


def test_what_is_shown_is_there():
    for name in SHOWN:
        found = pkgutil.resolve_name(name)
        assert inspect.getdoc(found) or not (inspect.ismodule(found) or callable(found)), name


def test_nothing_is_shown_twice():
    assert len(SHOWN) == len({*SHOWN})


def test_contents_have_every_page():
    text = (ROOT / "mkdocs.yml").read_text()
    contents = set(re.findall(r"(\S+\.md)$", text, re.MULTILINE))
    pages = {page.relative_to(DOCS).as_posix() for page in handbook.PAGES[1:]}
    books = DOCS.rglob("*.ipynb")
    books = {book.relative_to(DOCS).with_suffix(".md").as_posix() for book in books}
    others = {"source/CONTRIBUTING.md.md", "source/CHANGELOG.md.md"}  # which pages link
    assert contents == pages | books | others


@pytest.mark.parametrize("book", sorted(DOCS.glob("notebooks/*.ipynb")), ids=lambda book: book.stem)
def test_notebooks_are_kept_as_they_ran(book):
    assert book.stat().st_size < 400_000
    cells = [c for c in json.loads(book.read_text())["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {shown["output_type"] for cell in cells for shown in cell["outputs"]}
    assert kinds == {"stream", "execute_result"}
    assert not [s for cell in cells for s in cell["outputs"] if s.get("name") == "stderr"]


def test_docstrings_become_markdown():
    text = """Makes `Thing` of `other`.

Second paragraph, of
two lines.

Args:
    size: int, its
        size. Defaults to 8.
    rows, columns: ints.
    **kwargs: others.

Call arguments:
    inputs: a map.

Shapes:
    (B, H) -> (B,).

Raises:
    ValueError: for a size below 1.

Example:

>>> thing = Thing(3)  # doctest: +SKIP
>>> thing.size
3

Reference: somebody.
"""
    link = '<autoref optional identifier="isa_tf.Thing"><code>Thing</code></autoref>'
    assert to_markdown(text, lambda name: {"Thing": "isa_tf.Thing"}.get(name)).split("\n\n") == [
        f"Makes {link} of `other`.",
        "Second paragraph, of\ntwo lines.",
        '<span class="doc-section-title">Args:</span>',
        "- `size`: int, its size. Defaults to 8.\n"
        "- `rows`, `columns`: ints.\n- `**kwargs`: others.",
        '<span class="doc-section-title">Call arguments:</span>',
        "- `inputs`: a map.",
        '<span class="doc-section-title">Shapes:</span>',
        "(B, H) -> (B,).",
        '<span class="doc-section-title">Raises:</span>',
        "- `ValueError`: for a size below 1.",
        '<span class="doc-section-title">Example:</span>',
        "```pycon\n>>> thing = Thing(3)\n>>> thing.size\n3\n```",
        "Reference: somebody.",
    ]
