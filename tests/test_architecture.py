"""The plan of the rooms in docs/design.md, held against the code's own imports."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def lint(folder):
    """(exit status, what it says) of import-linter on the packages in a folder."""
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
        + ["--no-cache", f"--config={ROOT / 'setup.cfg'}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def copy(tmp_path):
    for name in ("isa_tf", "tools", "experiments"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("trained"))
    return tmp_path


def test_imports_go_down_and_in_no_circle():
    status, said = lint(ROOT)
    assert status == 0, said
    assert "3 kept, 0 broken" in said


@pytest.mark.parametrize(
    ("file", "line", "reason"),
    [
        # Upwards, also where a function does it late.
        (
            "isa_tf/ops/resize.py",
            "from isa_tf.layers import ConvNormAct",
            "isa_tf.ops is not allowed",
        ),
        (
            "isa_tf/weights/cache.py",
            "def f():\n    import isa_tf.backbones",
            "isa_tf.weights is not",
        ),
        (
            "isa_tf/visualize/pictures.py",
            "import isa_tf.layers.conv\nimport isa_tf.attention_maps",
            "visualize",
        ),
        # What is for tests, from anywhere.
        ("isa_tf/models/load.py", "import isa_tf.testing", "isa_tf.models is not allowed"),
        # In a circle inside of a room.
        ("isa_tf/layers/twin.py", "from isa_tf.layers import conv", "broken"),
        # The package or a tool on what stands above it.
        ("isa_tf/models/load.py", "import tools.progress", "isa_tf is not allowed to import tools"),
        ("tools/progress.py", "import experiments.setup", "tools.progress is not allowed"),
        # A room that has no place in the plan.
        ("isa_tf/attic.py", "", "attic"),
    ],
)
def test_what_does_not_is_found(copy, file, line, reason):
    with open(copy / file, "a") as source:
        source.write(f"\n{line}\n")
    status, said = lint(copy)
    assert status != 0 and reason in said, said


def long_places(lines_of_file=550, lines_of_function=80):
    """(file, function or `None`) of what is longer; of a function without its docstring."""
    for name in ("isa_tf", "tools", "experiments"):
        for path in sorted((ROOT / name).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            place = path.relative_to(ROOT / name if name == "isa_tf" else ROOT)
            if text.count("\n") > lines_of_file:
                yield place, None
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef):
                    told = ast.get_docstring(node, clean=False) or ""
                    lines = node.end_lineno - node.lineno - told.count("\n")
                    if lines > lines_of_function:
                        yield place, node.name


def test_what_is_large_is_told_with_a_reason():
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    told = text[text.index("## What is large") :]
    for place, function in long_places():
        whole = [place.as_posix(), "/".join(place.parts[-2:])]
        if function is None:
            assert any(f"`{name}`" in told for name in whole), place
        elif function in ("__init__", "fit"):
            tree = ast.parse((ROOT / "isa_tf" / place).read_text(encoding="utf-8"))
            classes = [n.name for n in tree.body if isinstance(n, ast.ClassDef)]
            assert any(f"`{name}.{function}`" in told for name in classes), (place, function)
        else:
            line = next((t for t in told.split("* ") if f"`{function}`" in t), "")
            assert any(f"`{name}`" in line for name in whole), (place, function)
