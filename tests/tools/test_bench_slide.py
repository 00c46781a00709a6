"""The tool that measures large images: what it measures and prints."""

import re

import pytest
from absl import app

from isa_tf.inference import Protocol
from tools import bench_slide
from tools.bench import results


@pytest.mark.parametrize("mode", ["slide", "whole"])
def test_a_row_for_each_size_and_how_they_grow(run, monkeypatch, mode):
    protocols = []

    def measure(height, width, classes, protocol):
        protocols.append(protocol)
        return bench_slide.measure(height, width, classes, protocol)

    monkeypatch.setattr(bench_slide, "measure_apart", measure)  # in this process
    arguments = ["--sizes=40x60,80x120", "--classes=5", "--scales=0.5,1.0", "--flip"]
    windows = ["--crop_size=32", "--stride=24"]
    _, printed = run(bench_slide, *arguments, *windows, f"--mode={mode}")
    given = {"crop_size": 32, "stride": 24} if mode == "slide" else {}
    assert protocols == 2 * [Protocol(mode, **given, scales=(0.5, 1.0), flip=True)]
    rows = re.findall(r"^\| (\d+x\d+) \| (\d+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", printed, re.M)
    assert [row[0] for row in rows] == ["40x60", "80x120"]
    assert all(int(row[1]) > 50 and float(row[3]) > 0 for row in rows)
    assert "python -m tools.bench_slide" in printed and "instructions " in printed
    assert re.search(r"2.4e\+03 to 9.6e\+03 pixels: memory\^-?[\d.]+, time\^-?[\d.]+", printed)


def test_what_did_not_grow_has_no_power():
    """Of images of as many pixels, or where the time is rounded to none."""
    sizes = ((6, 0.0), (6, 0.1), (12, 0.2), (12, 0.3), (24, 0.0))
    rows = [{"pixels": n, "peak_mb": 10 * n, "cpu_seconds": t} for n, t in sizes]
    assert bench_slide.growth(rows) == ["* 6 to 12 pixels: memory^1.00, time^1.00"]


@pytest.mark.slow
def test_a_process_for_each_size_and_what_is_stored(run, tmp_path):
    arguments = ["--sizes=40x60", "--classes=5", "--mode=whole", f"--output={tmp_path}"]
    status, printed = run(bench_slide, *arguments)
    assert status == 0 and f"written: {tmp_path}/slide.md, .csv, .json" in printed
    stored = results.read(tmp_path / "slide.json")
    assert stored.settings["classes"] == 5 and stored.rows[0]["peak_mb"] > 50


@pytest.mark.parametrize("arguments", [["--sizes=40x"], ["--sizes=0x60"], ["now"]])
def test_wrong_arguments(run, arguments):
    with pytest.raises(app.UsageError, match="HEIGHTxWIDTH|Unexpected arguments: now"):
        run(bench_slide, *arguments)
