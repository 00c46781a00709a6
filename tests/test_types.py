"""What of the public API is annotated stays so; that it is true says `make types`."""

import ast
import configparser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def covered():
    """The files that mypy checks, by setup.cfg."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return [name.strip() for name in config["mypy"]["files"].split(",")]


def functions(path):
    """(name, definition, whether it is a method) of the public functions and methods of a file."""

    def within(body, prefix):
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from within(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef) and (
                node.name == "__init__" or not node.name.startswith("_")
            ):
                yield f"{prefix}{node.name}", node, bool(prefix)

    yield from within(ast.parse(path.read_text(encoding="utf-8")).body, "")


def is_annotated(node, is_method):
    arguments = node.args
    plain = [*arguments.posonlyargs, *arguments.args]
    if is_method and not any(getattr(d, "id", "") == "staticmethod" for d in node.decorator_list):
        plain = plain[1:]
    others = [a for a in (*arguments.kwonlyargs, arguments.vararg, arguments.kwarg) if a]
    return node.returns is not None and all(a.annotation for a in (*plain, *others))


# What is not yet: optimizers' mixin, the parts of COCO's json, most pictures.
MISSING = 28


def test_the_files_are_there():
    assert all((ROOT / name).is_file() for name in covered())


def test_what_is_public_is_annotated():
    missing = [
        f"{name}: {function}"
        for name in covered()
        for function, node, is_method in functions(ROOT / name)
        if not is_annotated(node, is_method)
    ]
    assert len(missing) <= MISSING, "\n".join(missing)


@pytest.mark.parametrize(
    ("text", "annotated"),
    [
        ("def f(a: int, *b: int, c: str = '', **d: int) -> int: ...", True),
        ("def f(a: int): ...", False),
        ("def f(a) -> int: ...", False),
        ("def f(*a) -> int: ...", False),
    ],
)
def test_what_counts(text, annotated):
    assert is_annotated(ast.parse(text).body[0], is_method=False) == annotated
