"""The plan of the rooms in docs/design.md, held against the code's own imports."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def lint(folder):
    """(exit status, what it says) of import-linter on the package in a folder."""
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
    shutil.copytree(ROOT / "isa_tf", tmp_path / "isa_tf")
    return tmp_path


def test_imports_go_down_and_in_no_circle():
    status, said = lint(ROOT)
    assert status == 0, said
    assert "2 kept, 0 broken" in said


@pytest.mark.parametrize(
    ("file", "line", "reason"),
    [
        # Upwards, also where a function does it late.
        ("ops/resize.py", "from isa_tf.layers import ConvNormAct", "isa_tf.ops is not allowed"),
        ("weights/cache.py", "def f():\n    import isa_tf.backbones", "isa_tf.weights is not"),
        (
            "visualize/pictures.py",
            "import isa_tf.layers.conv\nimport isa_tf.attention_maps",
            "visualize",
        ),
        # What is for tests, from anywhere.
        ("models/load.py", "import isa_tf.testing", "isa_tf.models is not allowed"),
        # In a circle inside of a room.
        ("layers/twin.py", "from isa_tf.layers import conv", "broken"),
        # A room that has no place in the plan.
        ("attic.py", "", "attic"),
    ],
)
def test_what_does_not_is_found(copy, file, line, reason):
    with open(copy / "isa_tf" / file, "a") as source:
        source.write(f"\n{line}\n")
    status, said = lint(copy)
    assert status != 0 and reason in said, said
