"""What is public is annotated; that it is true says `make types`."""

import ast
import configparser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What a user calls without writing its name.
CALLED = ("__init__", "__call__", "__iter__", "__len__", "__getitem__", "__enter__", "__exit__")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def functions(text):
    """(name, definition, whether it is a method) of the public functions and methods in a file."""

    tree = ast.parse(text)
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    public = [name for name in classes if not name.startswith("_")]
    for name in public:  # which grows: what a public class has of a private one is public
        bases = (base.id for base in classes[name].bases if isinstance(base, ast.Name))
        public += [base for base in bases if base in classes and base not in public]

    def within(body, prefix):
        for node in body:
            is_public = not getattr(node, "name", "_").startswith("_")
            if isinstance(node, ast.ClassDef) and (is_public or node.name in public):
                yield from within(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, FUNCTIONS) and (is_public or node.name in CALLED):
                yield f"{prefix}{node.name}", node, bool(prefix)

    yield from within(tree.body, "")


def is_annotated(node, is_method):
    arguments = node.args
    plain = [*arguments.posonlyargs, *arguments.args]
    if is_method and not any(getattr(d, "id", "") == "staticmethod" for d in node.decorator_list):
        plain = plain[1:]
    others = [a for a in (*arguments.kwonlyargs, arguments.vararg, arguments.kwarg) if a]
    return node.returns is not None and all(a.annotation for a in (*plain, *others))


def missing(text):
    """The names of what is public in a file and not annotated."""
    return [name for name, *function in functions(text) if not is_annotated(*function)]


def test_mypy_checks_the_package():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["mypy"]["files"] == "isa_tf"


def test_what_is_public_is_annotated():
    files = sorted((ROOT / "isa_tf").rglob("*.py"))
    assert len(files) > 100
    names = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in files
        for name in missing(file.read_text(encoding="utf-8"))
    ]
    assert not names, "\n".join(names)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("def f(a: int, *b: int, c: str = '', **d: int) -> int: ...", []),
        ("def f(a: int): ...", ["f"]),
        ("def f(a) -> int: ...", ["f"]),
        ("def f(*a) -> int: ...", ["f"]),
        ("async def f(*, a) -> int: ...", ["f"]),
        ("def _f(a): ...", []),
        ("class C:\n    def f(self) -> int: ...\n    def g(self): ...", ["C.g"]),
        ("class C:\n    def __call__(self, a): ...\n    def __hash__(self): ...", ["C.__call__"]),
        ("class C:\n    @staticmethod\n    def f(a) -> int: ...", ["C.f"]),
        ("class _C:\n    def f(self): ...", []),
        ("class _C:\n    def f(self): ...\nclass D(_C): ...", ["_C.f"]),
    ],
)
def test_what_counts(text, names):
    assert missing(text) == names
