"""docs/keras.md: its code runs, from top to bottom, and says what it says."""

import pytest
from handbook import DOCS, split

from isa_tf.models import Segmenter


@pytest.mark.slow
def test_its_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks, _ = split((DOCS / "keras.md").read_text(encoding="utf-8"))
    names = {}
    for block in blocks:
        assert block.language == "python"
        exec(compile(block.text, "keras.md", "exec"), names)
    assert len(blocks) == 5
    assert list(Segmenter.presets)[-1] == "coast"
    assert names["other"].num_classes == 5 and names["half"].dropout == 0.2
    assert names["on_top"].backbone is names["backbone"]
    model = names["model"]
    found = [model.get_layer(name).compute_dtype for name in ("head", "context")]
    assert found == ["bfloat16", "float32"]
    assert names["loss"].class_weights == (1.0, 1.0, 5.0)
