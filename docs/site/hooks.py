"""What the site needs beyond the pages: a part of MkDocs' build (`hooks:` in mkdocs.yml).

* A page links files of the repository, such as a config, as a reader of the repository needs it.
  In the site such a file becomes a page below source/.
* A notebook becomes a page with the outputs that it was kept with.
* `isa_tf.some.name` in a text leads to the reference.
"""

import base64
import html
import json
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs/"
_SOURCE = "source/"  # below it, in the site, lie the pages of files that lie elsewhere
_LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?(\))")
_FENCE = re.compile(r"^ {0,3}(```+|~~~+)")
_NAME = re.compile(r"(?<![`\[])`(isa_tf\.[A-Za-z_][\w.]*\w)(\(\))?`(?![`\]])")


def on_files(files, config):
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            for made in _of_notebook(file, config):
                files.append(made)
    todo = [file for file in files if file.is_documentation_page()]
    while todo:
        page = todo.pop()
        for _, target, _, _ in _LINK.findall(page.content_string):
            path = _target(page.src_uri, target)
            if path is None or files.get_file_from_path(_place(path)):
                continue
            made = File.generated(config, _place(path), content=_source(path))
            files.append(made)
            todo.append(made)
    return files


def on_page_markdown(markdown, page, config, files):
    del config, files
    uri = page.file.src_uri
    folder = posixpath.dirname(uri) or "."

    def relink(found):
        before, target, anchor, after = found.groups()
        if (path := _target(uri, target)) is None:
            return found[0]
        place = _place(path)
        if place.endswith(".ipynb") and not target.startswith("./"):
            place = place.removesuffix(".ipynb") + ".md"
        return f"{before}{posixpath.relpath(place, folder)}{anchor or ''}{after}"

    markdown = _outside_code(markdown, lambda line: _LINK.sub(relink, line))
    if uri.startswith(("api/", "source/")):
        return markdown
    return _outside_code(markdown, lambda line: _NAME.sub(_reference, line))


def _reference(found):
    shown = html.escape(found[1] + (found[2] or ""))
    return f'<autoref optional identifier="{found[1]}"><code>{shown}</code></autoref>'


def _outside_code(markdown, change):
    """A text whose lines outside of code are changed by a function."""
    lines, fence = [], None
    for line in markdown.split("\n"):
        mark = _FENCE.match(line)
        if fence is None and mark:
            fence = mark[1]
        elif fence is not None and mark and mark[1].startswith(fence):
            fence = None
        elif fence is None and not line.startswith("    "):
            line = change(line)
        lines.append(line)
    return "\n".join(lines)


# === Files of the repository ===


def _target(uri, target):
    """The path in the repository of what a page links, a file that is there; or None."""
    if "://" in target or target.startswith(("mailto:", "/")):
        return None
    origin = uri.removeprefix(_SOURCE).removesuffix(".md") if uri.startswith(_SOURCE) else None
    folder = posixpath.dirname(origin or f"{DOCS}{uri}")
    path = posixpath.normpath(posixpath.join(folder, target))
    return path if not path.startswith("..") and (ROOT / path).is_file() else None


def _place(path):
    """Where a file of the repository is in the site: a page's or file's URI."""
    return path.removeprefix(DOCS) if path.startswith(DOCS) else f"{_SOURCE}{path}.md"


def _source(path):
    """The page of a file: what it says, if it is Markdown, or else its text as code."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    language = {".py": "python", ".cfg": "ini"}.get(Path(path).suffix, "text")
    return f"# {path}\n\n`````{language}\n{text.rstrip()}\n`````\n"


# === Notebooks ===


def _of_notebook(file, config):
    """The page of a notebook, and the pictures on it."""
    stem = file.src_uri.removesuffix(".ipynb")
    name = posixpath.basename(stem)
    parts = []
    for number, cell in enumerate(json.loads(file.content_string)["cells"]):
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        printed = []
        for index, output in enumerate(cell["outputs"]):
            data = output.get("data", {})
            if picture := data.get("image/png") or data.get("image/jpeg"):
                suffix = "png" if "image/png" in data else "jpg"
                uri = f"{stem}_{number}_{index}.{suffix}"
                content = base64.b64decode("".join(picture))
                yield File.generated(config, uri, content=content)
                parts.append(f"![what the cell shows]({posixpath.basename(uri)})")
            elif shown := "".join(output.get("text") or data.get("text/plain") or ()):
                printed.append(shown.rstrip())
        if printed:
            parts.append("```{ .text .output }\n" + "\n".join(printed) + "\n```")
    heading, rest = parts[0].split("\n", 1) if "\n" in parts[0] else (parts[0], "")
    download = f"This page is [a notebook](./{name}.ipynb), with what it printed when it was run."
    content = "\n\n".join([heading, download, rest.strip(), *parts[1:]])
    yield File.generated(config, f"{stem}.md", content=content + "\n")
