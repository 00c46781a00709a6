"""README and docs/ as data: the blocks of code on a page, and the commands in them."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

_FENCE = re.compile(r"( {0,3})(```+|~~~+)\s*(.*)")
_TITLE = re.compile(r'title="([^"]+)"')
_INLINE = re.compile(r"`([^`]+)`")
_PROGRAM = re.compile(
    r"(?:python -m (?:tools|experiments)\.[a-z_.]+|isa-tf|make|bash|pip|docker|curl|ray)(?:\s|$)"
)
_SETTING = re.compile(r"[A-Z][A-Z0-9_]*=\S+\s+")


class Block(NamedTuple):
    """A block of code: its language ("" where none is told), its title, its text."""

    language: str
    title: str | None
    text: str


class Command(NamedTuple):
    """A command of a page: where it stands, the program, and its arguments."""

    page: str
    program: str
    arguments: tuple[str, ...]

    def __str__(self):
        return shlex.join([*self.program.split(), *self.arguments])


def name(page):
    return page.relative_to(ROOT).as_posix()


def split(text):
    """(blocks of code, the text without them) of a page."""
    blocks, prose = [], []
    fence, code, indented = None, [], []

    def end_indented():
        if any(line.strip() for line in indented):
            blocks.append(Block("", None, "\n".join(indented).strip("\n") + "\n"))
        indented.clear()

    previous = ""
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if fence is not None:
            if mark and mark[2].startswith(fence[0]) and not mark[3]:
                language, title = fence[1].split(" ")[0], _TITLE.search(fence[1])
                blocks.append(Block(language, title and title[1], "\n".join([*code, ""])))
                fence = None
            else:
                code.append(line)
        elif mark:
            end_indented()
            fence, code = (mark[2], mark[3]), []
        elif line.startswith("    ") and (indented or not previous.strip()):
            indented.append(line[4:])
        elif indented and not line.strip():
            indented.append("")
        else:
            end_indented()
            prose.append(line)
        previous = line
    end_indented()
    assert fence is None, "a block of code that does not end"
    return blocks, "\n".join(prose)


def commands(page):
    """The commands of a page, in blocks and in the text, in their order: list of `Command`."""
    blocks, prose = split(page.read_text(encoding="utf-8"))
    lines = []
    for block in blocks:
        if block.language not in ("python", "pycon"):
            lines += block.text.replace("\\\n", "").split("\n")  # as a shell joins them
    lines += [" ".join(found.split()) for found in _INLINE.findall(prose)]
    return [made for line in lines if (made := _command(name(page), line.strip()))]


def _command(page, line):
    while found := _SETTING.match(line):
        line = line[found.end() :]
    if not _PROGRAM.match(line.removeprefix("srun ")):
        return None
    # What may be left out stands in brackets; '.[extra]' has brackets of its own.
    words = [word.removeprefix("[") for word in shlex.split(line, comments=True)]
    words = [word if "[" in word else word.removesuffix("]") for word in words]
    if words[0] == "srun":
        words = words[1:]
    count = 3 if words[0] == "python" else 2 if words[0] in ("isa-tf", "make") else 1
    return Command(page, " ".join(words[:count]), tuple(words[count:]))
