"""The model that the repository keeps is what its config says."""

import re
from pathlib import Path

import numpy as np
import pytest

import isa_tf
from experiments.configs import camvid
from experiments.evaluate import evaluate

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "experiments" / "trained" / "camvid" / "best.keras"


def test_the_kept_model_is_small_and_whole():
    """With weights of half precision."""
    assert KEPT.stat().st_size < 9e6
    assert sorted(p.name for p in KEPT.parent.iterdir()) == ["LICENSE", KEPT.name]
    model = isa_tf.formats.load_model(KEPT)
    assert model.class_names[:2] == ("Sky", "Building") and model.num_classes == 11
    assert model.context.partitions == [(8, 8)]
    assert model.context.attentions[0].value.kernel.shape == (1, 1, 256, 256)
    assert {v.dtype for v in model.variables if "seed" not in v.path} == {"float32"}


@pytest.mark.slow
def test_what_is_exported_of_it_predicts_the_same(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (1, 90, 120, 3)).astype("uint8")
    exported = isa_tf.export(isa_tf.formats.load_model(KEPT), tmp_path / "saved_model")
    (class_id, score), (other_id, other_score) = (
        isa_tf.load_predictor(path)(image) for path in (KEPT, exported)
    )
    assert (class_id == other_id).mean() > 0.999
    np.testing.assert_allclose(score, other_score, atol=1e-3)


@pytest.mark.slow
def test_the_kept_model_scores_what_its_config_says(tmp_path):
    config = camvid.get_config()
    config.data.data_dir = str(ROOT / config.data.data_dir)
    if not Path(config.data.data_dir).exists():
        pytest.skip(f"CamVid is not at {config.data.data_dir}")
    stated = float(re.search(r"val mIoU of\s+(0\.\d+)", camvid.__doc__)[1])
    result = evaluate(config, tmp_path, model=KEPT, pictures=1)
    assert result["images"] == 101
    assert result["miou"] == pytest.approx(stated, abs=2e-4)
