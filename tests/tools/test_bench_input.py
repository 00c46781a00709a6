"""The tool that times reading: a row for each pipeline, beside the bare loop."""

import pytest
from absl import app

from tools import bench_input
from tools.bench import results


def test_pipelines_beside_the_bare_loop(run, tmp_path):
    arguments = ["--formats=jpeg", "--files=2", "--height=64", "--crop=32", "--batch_size=1"]
    output = f"--output={tmp_path}"
    status, printed = run(bench_input, *arguments, "--batches=2", "--rounds=1", "--python", output)
    assert status == 0 and "128x64 files, crops of 32:" in printed
    stored = results.read(tmp_path / "input.json")
    rows = {row["name"]: row for row in stored.rows}
    assert list(rows) == ["bare", "ours", "prepared", "python"]
    assert rows["bare"]["ratio"] == rows["bare"]["busy_ratio"] == 1
    for row in rows.values():
        assert row["image_ms"] == pytest.approx(1000 / row["images_s"]) and row["busy_ms"] > 0
    assert "| jpeg | bare |" in printed and f"written: {tmp_path}/input.md" in printed


@pytest.mark.parametrize("arguments", [["now"], ["--formats=png,bmp"]])
def test_wrong_arguments(run, arguments):
    with pytest.raises(app.UsageError, match="now|png and jpeg, not bmp"):
        run(bench_input, *arguments)
