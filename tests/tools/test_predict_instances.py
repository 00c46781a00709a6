"""`tools.predict` with a model that finds instances."""

import json
import re

import numpy as np
import pytest
from absl import app
from finding import IDS, NAMES, PALETTE, make_detector, photos
from PIL import Image
from pycocotools import mask

import isa_tf
from isa_tf.visualize import draw_instances
from tools import compare, predict, predictions


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return isa_tf.export(make_detector(), tmp_path_factory.mktemp("tool") / "saved")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos").mkdir()
    for i, name in enumerate(("000000000139.png", "street.png")):
        Image.fromarray(photos(1, 50 + 9 * i, 70, seed=i)[0]).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def test_overlays_and_one_file_of_detections(run, model, folder, tmp_path):
    given = f"--model={model}", f"--images={folder}", f"--output={tmp_path}/out"
    status, printed = run(predict, *given, "--score_threshold=0")
    assert status == 0 and printed.splitlines()[-1].startswith("2 of 2 images searched")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *("000000000139_overlay.png", "detections.json", "street_overlay.png")
    ]
    results = json.loads((tmp_path / "out/detections.json").read_text())
    predictor = isa_tf.load_predictor(model)
    for name, image_id in (("000000000139.png", 139), ("street.png", "street.png")):
        image = np.asarray(Image.open(folder / name))
        found = predictor(image)
        rows = [row for row in results if row["file_name"] == name]
        assert len(rows) == len(found.scores) > 1
        for i, row in enumerate(rows):
            assert row["image_id"] == image_id
            assert row["category_id"] == IDS[found.classes[i]]
            assert row["score"] == found.scores[i]
            x, y, w, h = row["bbox"]
            np.testing.assert_allclose([x, y, x + w, y + h], found.boxes[i], rtol=1e-6)
            np.testing.assert_array_equal(mask.decode(row["segmentation"]), found.masks[i])
        picture = np.asarray(Image.open(tmp_path / "out" / name.replace(".", "_overlay.")))
        np.testing.assert_array_equal(picture, draw_instances(image, found, NAMES, PALETTE))
        line = next(line for line in printed.splitlines() if name in line)
        counts = {word: int(n) for n, word in re.findall(r"(\d+) (cup|dog|Bäume)", line)}
        assert sum(counts.values()) == len(rows)
    assert len({row["file_name"] for row in results}) == 2


def test_compare_refuses_such_a_model(run, model, folder, tmp_path):
    given = f"--images={folder}", f"--labels={folder}", f"--output={tmp_path}/sheet.png"
    with pytest.raises(app.UsageError, match="saved: a model of instance_segmentation, which has"):
        run(compare, f"--models={model},{model}", *given)


def test_the_threshold(run, model, folder, tmp_path):
    image = np.asarray(Image.open(folder / "street.png"))
    found = isa_tf.load_predictor(model)(image)
    least = float(np.sort(found.scores)[len(found.scores) // 2])
    for given, kept, drawn in (((), 0, 0.5), ((f"--score_threshold={least}",), least, least)):
        out = tmp_path / f"out{len(given)}"
        where = f"--model={model}", f"--images={folder}/street.png", f"--output={out}"
        assert run(predict, *where, *given, "--nolegend", "--opacity=0.9")[0] == 0
        results = json.loads((out / "detections.json").read_text())
        assert len(results) == (found.scores >= kept).sum() >= 1
        picture = np.asarray(Image.open(out / "street_overlay.png"))
        some = found.take(found.scores >= drawn)
        expected = draw_instances(image, some, NAMES, PALETTE, 0.9, labels=False)
        np.testing.assert_array_equal(picture, expected)


@pytest.mark.slow
def test_images_without_anything_and_a_bad_one(run, folder, tmp_path):
    model = isa_tf.export(make_detector(finds=False), tmp_path / "saved")
    (folder / "bad.png").write_bytes(b"no image")
    given = f"--model={model}", f"--images={folder}", f"--output={tmp_path}/out"
    status, printed = run(predict, *given)
    assert status == 1 and f"FAULT {folder / 'bad.png'}" in printed
    assert printed.count("ms; nothing") == 2
    assert json.loads((tmp_path / "out/detections.json").read_text()) == []


def test_a_model_that_knows_no_category_ids():
    found = isa_tf.inference.InstancePredictor.from_model(make_detector())(photos(1, 50, 70)[0])
    ids = [row["category_id"] for row in found.to_coco("a.jpg")]
    assert ids == (found.classes + 1).tolist() and isinstance(ids[0], int)


def test_the_threshold_is_of_instances(run, folder, tmp_path):
    isa_tf.models.Segmenter("tiny", None, 4, head_filters=8).save(tmp_path / "m.keras")
    given = f"--model={tmp_path}/m.keras", f"--images={folder}", f"--output={tmp_path}/out"
    with pytest.raises(app.UsageError, match="--score_threshold is for models that find instances"):
        run(predict, *given, "--score_threshold=0.5")


def test_classes_are_told_the_most_frequent_first():
    classes = np.array([0, 2, 2, 1, 2, 0])
    found = isa_tf.inference.Instances(None, classes, None, None)
    assert predictions._counts(found, ("cat", "dog", "bird")) == "3 bird, 2 cat, 1 dog"
    assert predictions._counts(found._replace(classes=classes[:0]), None) == "nothing"
