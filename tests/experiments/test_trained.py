"""The models that the repository keeps are what their configs say."""

import re
from pathlib import Path

import numpy as np
import pytest

from experiments.configs import camvid
from experiments.evaluate import evaluate
from isa_tf import load_predictor

ROOT = Path(__file__).resolve().parents[2]
CAMVID = ROOT / "experiments" / "trained" / "camvid"


def test_the_saved_model_is_the_kept_model():
    image = np.random.default_rng(0).integers(0, 256, (1, 90, 120, 3)).astype("uint8")
    kept, exported = (load_predictor(CAMVID / name) for name in ("best.keras", "saved_model"))
    assert kept.class_names == exported.class_names and kept.num_classes == 11
    (class_id, score), (other_id, other_score) = kept(image), exported(image)
    assert (class_id == other_id).mean() > 0.999
    np.testing.assert_allclose(score, other_score, atol=1e-3)


@pytest.mark.slow
def test_the_kept_model_scores_what_its_config_says(tmp_path):
    config = camvid.get_config()
    config.data.data_dir = str(ROOT / config.data.data_dir)
    if not Path(config.data.data_dir).exists():
        pytest.skip(f"CamVid is not at {config.data.data_dir}")
    stated = float(re.search(r"val mIoU of (0\.\d+)", camvid.__doc__)[1])
    for name in ("best.keras", "saved_model"):
        result = evaluate(config, tmp_path, model=CAMVID / name, pictures=1)
        assert result["images"] == 101
        assert result["miou"] == pytest.approx(stated, abs=2e-4)
