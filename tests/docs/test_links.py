"""Links of README, CONTRIBUTING, CHANGELOG and docs/ lead to files and to headings on them."""

import json
import re

import handbook
import pytest
from handbook import DOCS, ROOT

PAGES = [*handbook.PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md"))]
_LINK = re.compile(r"(?<!\\)\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.*?)\s*#*$", re.MULTILINE)
TEXTS = {page: handbook.split(page.read_text())[1] for page in PAGES}
for book in sorted(DOCS.rglob("*.ipynb")):
    cells = json.loads(book.read_text())["cells"]
    told = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    TEXTS[book] = "\n\n".join(told)


def anchors(text):
    """The anchors that headings get, on git hosts and in the site."""
    headings = (re.sub(r"[`*]|\]\([^)]*\)", "", found) for found in _HEADING.findall(text))
    return {re.sub(r"[^\w\- ]", "", found.lower()).strip().replace(" ", "-") for found in headings}


@pytest.mark.parametrize("page", TEXTS, ids=handbook.name)
def test_links_lead_somewhere(page):
    for target in _LINK.findall(TEXTS[page]):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT) and file.exists(), target
        if anchor:
            text = TEXTS[file] if file in TEXTS else file.read_text()
            assert anchor in anchors(text), target


def test_links_are_found():
    assert sum(len(_LINK.findall(text)) for text in TEXTS.values()) > 100
