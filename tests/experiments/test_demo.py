"""The demonstration from end to end, with trainings of two steps."""

import json

from experiments.configs import synthetic
from experiments.demo import demo
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
