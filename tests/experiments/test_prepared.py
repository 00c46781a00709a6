"""From a publisher's archives to scores: prepared, trained on for a step, evaluated."""

import io
import json

import miniatures
import numpy as np
import pytest
from PIL import Image

from experiments.configs import default, recipes
from experiments.evaluate import evaluate
from experiments.train import train
from isa_tf import data, load_predictor, training


@pytest.mark.some("voc2012-voc2012-resnet101-fcn-21")
@pytest.mark.parametrize(
    ("name", "recipe", "num_classes"),
    [("lip", "lip-resnet101-isa", 20), ("voc2012", "voc2012-resnet101-fcn", 21)],
)
def test_from_archives_to_scores(name, recipe, num_classes, tmp_path):
    miniature = miniatures.WRITERS[name](tmp_path / "archives")
    data.prepare(name, tmp_path / "archives", tmp_path / "data", check_sizes=False, num_threads=1)
    config = recipes.get_config(recipe)
    assert config.data.name == name
    config.data.data_dir = str(tmp_path / "data")
    size = miniatures.HEIGHT, miniatures.WIDTH
    config.data.crop_size = size
    config.data.exact_size, config.data.short_side = (size, None) if name == "lip" else (None, 24)
    config.data.batch_size = 2
    config.model.backbone, config.model.backbone_weights = "tiny", None
    config.model.backbone_options, config.model.output_stride = {}, 4
    config.model.head_filters = config.model.auxiliary_filters = 8
    config.model.auxiliary_level = "c1"
    config.train.steps = config.train.validate_every = 1
    config.train.pictures = 0
    train(config, tmp_path / "run", verbose=0)
    config.test = default.get_config().test  # what the labels are counted by below
    config.test.flip = name == "lip"
    found = evaluate(config, tmp_path / "run", pictures=1, report_images=1)
    assert json.loads((tmp_path / "run/metrics.json").read_text()) == found
    assert found["images"] == len(miniature.splits["val"])
    # The pairs are what was prepared says, not the recipe alone.
    pairs = [[14, 15], [16, 17], [18, 19]] if name == "lip" else []
    assert found["protocol"]["flip_pairs"] == pairs
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert f"{name} val: mIoU {found['miou']:.4f}" in page
    assert all(image in page for image in miniature.splits["val"])
    # The score over again, from what was packed: ids of both are train ids, 255 apart.
    predictor = load_predictor(tmp_path / "run" / training.BEST, protocol=found["protocol"])
    right, valid = 0, 0
    for picture in miniature.splits["val"].values():
        image = np.asarray(Image.open(io.BytesIO(picture.image)))
        predicted = np.asarray(predictor(image[None])[0])[0]
        valid += (picture.ids < num_classes).sum()
        right += ((predicted == picture.ids) & (picture.ids < num_classes)).sum()
    assert found["pixel_accuracy"] == pytest.approx(right / valid)
