import csv
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import app

from tools import beside_torch
from tools.bench import beside, ours, results, steps

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_our_side_alone(run, tmp_path):
    """What PyTorch is compared with; PyTorch itself is in the environment of `make parity`."""
    status, printed = run(
        beside_torch,
        "dense",
        "--sizes=6x8",
        "--rounds=2",
        "--only=isa_tf,isa_tf fused,isa_tf interlaced",
        f"--output={tmp_path}",
    )
    assert status == 0 and "| isa_tf fused |" in printed
    rows = list(csv.DictReader((tmp_path / "dense.csv").open()))
    assert [row["contestant"] for row in rows] == ["isa_tf", "isa_tf fused", "isa_tf interlaced"]
    stored = results.read(tmp_path / "dense.json")
    assert [row["ms"] for row in stored.rows] == [float(row["ms"]) for row in rows]
    assert all(float(row["ms"]) > 0 and float(row["rate"]) > 0 for row in rows)
    assert not {"ratio", "openvino_ratio"} & rows[0].keys()  # to whom there is not


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "What is to be timed?"),
        (("tail",), "What is to be timed?"),
        (("head", "--only=isa_tf,jax"), "--only=jax: there are torch eager"),
        (("head", "--dtypes=int8"), "--dtypes=int8"),
        (("head", "--only=isa_tf", "--sizes=big"), "HEIGHTxWIDTH"),
    ],
)
def test_wrong_arguments(run, arguments, reason):
    with pytest.raises(app.UsageError, match=re.escape(reason)):
        run(beside_torch, *arguments)


@pytest.mark.skipif(importlib.util.find_spec("mmseg") is not None, reason="mmsegmentation is here")
def test_without_pytorch(run):
    with pytest.raises(app.UsageError, match="make parity"):
        run(beside_torch, "head")


def test_ratios_are_to_the_best_of_each():
    times = {"torch eager": 4.0, "torch compile": 2.0, "openvino": 1.0, "isa_tf": 3.0}
    rows = [{"contestant": name, "ms": ms} for name, ms in times.items()]
    rows[-1]["gflops"] = 0.3
    beside_torch.add_ratios(rows, matmul_rate=200.0)
    assert [row["ratio"] for row in rows] == [2.0, 1.0, 0.5, 1.5]
    assert [row["openvino_ratio"] for row in rows] == [4.0, 2.0, 1.0, 3.0]
    # The operations are counted on ours, and those of PyTorch are as many.
    assert rows[-1]["rate"] == pytest.approx(0.5) == 2 * rows[0]["rate"] * 2 / 3


def test_pytorch_without_tensorflow():
    """A process of PyTorch carries nothing of the other framework."""
    code = "import sys; from tools.bench import theirs; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "False\n", done.stderr


def test_what_trains_is_the_shipped_step(monkeypatch):
    """Of ResNet-50 as recipes train it, but for what a config leaves to the user."""
    made = []
    monkeypatch.setattr(steps, "of_segmenter", lambda model, *_: made.append(model) or print)
    case = {"what": "train", "size": (16, 16), "dtype": "float32", "batch": 1, "name": "isa_tf"}
    monkeypatch.setattr("tensorflow.config.threading.set_intra_op_parallelism_threads", lambda n: n)
    _, _, facts = ours.make({**case, "threads": 1})
    assert made[0].num_classes == beside.CLASSES and facts["gflops"] > 0
    assert made[0].auxiliary_level == "c4"
