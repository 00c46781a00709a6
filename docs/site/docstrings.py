"""Docstrings of this package as Markdown, for the API reference (an extension of griffe).

Sections are the package's own: `Args:`, `Call arguments:`, `Attributes:`, `Raises:` are lists
of "name: text", `Returns:`, `Shapes:` and `Example:` are text, and an example stands at the margin.
What a name in backticks stands for is linked where the reference has it.
"""

import html
import re
import textwrap

LISTS = ("Args", "Call arguments", "Attributes", "Raises")
TEXTS = ("Returns", "Yields", "Shapes", "Example", "Examples")
_HEADING = re.compile(rf"({'|'.join((*LISTS, *TEXTS))}):$")
_ITEM = re.compile(r"(\*{0,2}\w[\w.]*(?:, \*{0,2}\w[\w.]*)*):\s+(.*)", re.DOTALL)
_FLAGS = re.compile(r"\s*# doctest:.*")
_NAME = re.compile(r"(?<!`)`([A-Za-z_][\w.]*)(\([^`]*\))?`(?!`)")


def to_markdown(text, resolve=lambda name: None):
    """What a docstring says, in Markdown.

    Args:
        text: str, the docstring, without the indentation of its code.
        resolve: function from a name in backticks to the name that it has in the reference, or
            `None` for what is no name of the package's.
    """
    blocks, heading, lines = [], None, []
    for line in [*text.strip().splitlines(), None]:
        found = line is not None and _HEADING.match(line)
        if line is None or found:
            blocks += _section(heading, lines, resolve)
            heading, lines = found and found[1], []
        else:
            lines.append(line)
    return "\n\n".join(blocks)


def _section(heading, lines, resolve):
    """The blocks of a section, and of what stands at the margin behind it."""
    if heading:
        yield f'<span class="doc-section-title">{heading}:</span>'
    if heading in LISTS:
        inside = []
        while lines and (lines[0].startswith("    ") or not lines[0].strip()):
            inside.append(lines.pop(0))
        yield "\n".join(_items(textwrap.dedent("\n".join(inside)), resolve))
    yield from _text(textwrap.dedent("\n".join(_dedented(lines))), resolve)


def _dedented(lines):
    """Lines of which those that are indented at the beginning lose it."""
    first = next((i for i, line in enumerate(lines) if line and line[0] != " "), len(lines))
    return [line[4:] if i < first else line for i, line in enumerate(lines)]


def _items(text, resolve):
    """The lines of a Markdown list; an item ends where the next line is not indented."""
    for item in re.split(r"\n(?=\S)", text.strip()):
        found = _ITEM.match(item)
        if not found:
            yield f"- {_linked(_joined(item), resolve)}"
            continue
        names = ", ".join(f"`{name}`" for name in found[1].split(", "))
        yield f"- {_linked(names, resolve)}: {_linked(_joined(found[2]), resolve)}"


def _joined(text):
    return re.sub(r"\s*\n\s*", " ", text.strip())


def _text(text, resolve):
    """Paragraphs, of which those that begin with a prompt become code."""
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        if not paragraph.strip():
            continue
        if paragraph.lstrip().startswith(">>>"):
            code = "\n".join(map(_without_flags, textwrap.dedent(paragraph).splitlines()))
            yield f"```pycon\n{code}\n```"
        elif paragraph.startswith("    "):
            yield paragraph
        else:
            yield _linked(paragraph, resolve)


def _without_flags(line):
    return _FLAGS.sub("", line)


def _linked(text, resolve):
    """A text whose names in backticks are links, where `resolve` knows them."""

    def link(found):
        if not (target := resolve(found[1])):
            return found[0]
        shown = html.escape(found[1] + (found[2] or ""))
        return f'<autoref optional identifier="{target}"><code>{shown}</code></autoref>'

    return _NAME.sub(link, text)


def resolver(room, public):
    """A function that finds names as a docstring of a room writes them.

    Args:
        room: str, the package that the docstring is in, such as "isa_tf.layers".
        public: dict from a room to its public names.
    """

    def resolve(name):
        if name.startswith("isa_tf."):
            return name
        first, _, rest = name.partition(".")
        if first in public.get(room, ()):
            return f"{room}.{name}"
        if rest and rest.split(".")[0] in public.get(f"isa_tf.{first}", ()):
            return f"isa_tf.{name}"
        return None

    return resolve


try:
    import griffe
except ImportError:  # the tests read docstrings without it
    pass
else:

    def _comment(attribute):
        """The comment above an attribute, which is what there is instead of a docstring."""
        above = attribute.module.lines_collection[attribute.filepath][: attribute.lineno - 1]
        said = []
        while above and above[-1].lstrip().startswith("# "):
            said.insert(0, above.pop().lstrip()[2:])
        return "\n".join(said)

    def _bring_forward(room):
        """Puts a public function where a file of the same name hides it, as in `inference.fuse`."""
        names = room.exports or ()
        hidden = {
            name: room.imports[name]
            for name in names
            if not room.members[name].is_alias
            and room.members[name].is_module
            and room.imports.get(name, f"{room.path}.{name}") != f"{room.path}.{name}"
        }
        found = {name: room.modules_collection[path] for name, path in hidden.items()}
        for name in names:  # while these files are to be found
            if room.members[name].is_alias:
                room.members[name].resolve_target()
        for name, target in found.items():
            room.members[name] = griffe.Alias(name, target, parent=room)

    class Docstrings(griffe.Extension):
        """Makes Markdown of all docstrings of a package that has been read."""

        def on_package(self, *, pkg, **kwargs):
            del kwargs
            public = {
                module.path: set(module.exports or ())
                for module in [pkg, *pkg.modules.values()]
                if not module.is_alias
            }
            self._rewrite(pkg, public)
            for room in public:
                _bring_forward(pkg.modules_collection[room])

        def _rewrite(self, scope, public):
            for member in scope.members.values():
                if member.is_alias:
                    continue
                constant = member.is_attribute and scope.is_module and not member.docstring
                if constant and (said := _comment(member)):
                    member.docstring = griffe.Docstring(said, parent=member)
                if member.docstring:
                    room = ".".join(member.path.split(".")[:2])
                    resolve = resolver(room, public)
                    member.docstring.value = to_markdown(member.docstring.value, resolve)
                if member.is_module or member.is_class:
                    self._rewrite(member, public)
