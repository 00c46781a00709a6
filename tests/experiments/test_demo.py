"""The demonstration from end to end, with trainings of two steps."""

import json
import shlex
import sys

from experiments.configs import synthetic
from experiments.demo import demo, in_a_browser
from isa_tf import data


def test_demo_leaves_what_it_promises(tmp_path, monkeypatch):
    def few():
        config = get_config()
        config.data.options.num_examples = {"train": 32, "val": 8}
        return config

    get_config = synthetic.get_config
    monkeypatch.setattr(synthetic, "get_config", few)
    metrics = demo(tmp_path, steps=2)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    for context in ("none", "isa"):
        assert set(metrics[context]) == {"miou", "context_miou", "seconds"}
        assert 0 <= metrics[context]["context_miou"] <= 1
    assert min(metrics["agreement_with_keras"].values()) >= 0.999
    report = (tmp_path / "report.md").read_text()
    assert f"{metrics['isa']['context_miou']:.3f}" in report and "0.143" in report
    pictures = [tmp_path / "comparison.png", *(tmp_path / "predictions").glob("*.png")]
    assert len(pictures) > 12
    examples = [*(tmp_path / "images").glob("*.png")]  # for a page in the browser
    assert len(examples) == 6
    pictures += examples
    for path in pictures:
        data.pictures.read_image(path)


def test_the_command_that_is_told_is_there_outside_of_a_checkout_too(monkeypatch, tmp_path):
    workdir = tmp_path / "the demo"
    given = [f"--model={workdir / 'model.tflite'}", f"--images={workdir / 'images'}"]
    for started, how in (("isa-tf demo", ["isa-tf", "web"]), ("demo.py", ["-m", "tools.demo_web"])):
        monkeypatch.setattr(sys, "argv", [started])
        words = shlex.split(in_a_browser(workdir).replace("\\\n", ""))
        assert words[-5:-3] == how and words[-3:] == [*given, "--title=Harbours"]
