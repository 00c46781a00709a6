"""From a publisher's archives to scores: prepared, trained on for a step, evaluated."""

import io
import json

import miniatures
import numpy as np
import pytest
from PIL import Image

from experiments.configs import default
from experiments.evaluate import evaluate
from experiments.train import train
from isa_tf import data, load_predictor, training


@pytest.mark.parametrize(
    ("name", "train_split", "num_classes", "context"),
    [("lip", "train", 20, "isa"), ("voc2012", "trainaug", 21, "none")],
)
def test_from_archives_to_scores(name, train_split, num_classes, context, tmp_path):
    miniature = miniatures.WRITERS[name](tmp_path / "archives")
    data.prepare(name, tmp_path / "archives", tmp_path / "data", check_sizes=False, num_threads=1)
    config = default.get_config()
    config.data.name, config.data.data_dir = name, str(tmp_path / "data")
    config.data.train_split = train_split
    config.data.crop_size = (miniatures.HEIGHT, miniatures.WIDTH)
    config.data.batch_size = 2
    config.model.backbone, config.model.output_stride = "tiny", 4
    config.model.context = context
    config.model.head_filters, config.model.head_kernel_size = 8, 1
    config.train.steps = config.train.validate_every = 1
    config.train.pictures = 0
    train(config, tmp_path / "run")
    found = evaluate(config, tmp_path / "run", pictures=1)
    assert json.loads((tmp_path / "run/metrics.json").read_text()) == found
    assert found["images"] == len(miniature.splits["val"])
    # The score over again, from what was packed: ids of both are train ids, 255 apart.
    predictor = load_predictor(tmp_path / "run" / training.BEST)
    right, valid = 0, 0
    for picture in miniature.splits["val"].values():
        image = np.asarray(Image.open(io.BytesIO(picture.image)))
        predicted = np.asarray(predictor(image[None])[0])[0]
        valid += (picture.ids < num_classes).sum()
        right += ((predicted == picture.ids) & (picture.ids < num_classes)).sum()
    assert found["pixel_accuracy"] == pytest.approx(right / valid)
