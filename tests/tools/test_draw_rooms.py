"""What stands on what, drawn of a checkout."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tools import draw_rooms

ROOT = Path(__file__).resolve().parents[2]


def drawn(tmp_path, checkout):
    command = [sys.executable, "-m", "tools.draw_rooms"]
    command += [f"--checkout={checkout}", f"--output={tmp_path / 'rooms.png'}"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    red, green, _ = np.asarray(Image.open(tmp_path / "rooms.png"))[..., :3].astype(int).T
    return (red - green > 100).sum()


def test_this_house_has_no_circle(tmp_path):
    assert drawn(tmp_path, ROOT) == 0


def test_a_circle_is_red_and_no_code_is_run(tmp_path):
    for package in ("isa_tf", "isa_tf/layers", "isa_tf/ops", "tools", "experiments"):
        (tmp_path / package).mkdir(parents=True)
        (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / "isa_tf/layers/__init__.py").write_text("from isa_tf import ops\n1 / 0\n")
    assert drawn(tmp_path, tmp_path) == 0
    (tmp_path / "isa_tf/ops/__init__.py").write_text("from isa_tf import layers\n")
    assert drawn(tmp_path, tmp_path) > 100


def test_floors_are_above_what_is_imported():
    imports = {"a": {"b", "c"}, "b": {"c"}, "c": set(), "x": {"y"}, "y": {"x", "c"}}
    assert draw_rooms._floors(sorted(imports), imports) == [["c"], ["b", "x", "y"], ["a"]]
