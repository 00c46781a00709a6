import csv
import importlib.util
import re

import pytest
from absl import app

from tools import beside_torch


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
    assert all(float(row["ms"]) > 0 and float(row["rate"]) > 0 for row in rows)
    assert not any(row["ratio"] or row["openvino_ratio"] for row in rows)


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
