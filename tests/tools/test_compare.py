import csv
import re

import numpy as np
import pytest
from absl import app
from PIL import Image

from isa_tf.models import Segmenter
from isa_tf.visualize import DIFFERENCE_PALETTE
from tools import compare

HEIGHT, WIDTH, CELL, MARGIN, GAP = 8, 10, 320, 24, 12
# How many of the 80 pixels the second model has right, the first having the others; the label has
# class 1 in the second model's.
COUNTS = {"a": 40, "b": 80, "c": 0, "d": 56, "e": 24}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    paths = []
    for class_id in (0, 1):
        # A Segmenter, so that number, names and colours of the classes are kept in the file.
        model = Segmenter(
            "tiny",
            None,
            2,
            head_filters=4,
            class_names=("land", "water"),
            palette=((200, 10, 10), (10, 200, 10)),
        )
        classifier = model.get_layer("logits_classifier")
        kernel, _ = classifier.get_weights()
        classifier.set_weights([np.zeros_like(kernel), np.eye(2, dtype="float32")[class_id]])
        model.save(folder / f"{class_id}.keras")
        paths.append(folder / f"{class_id}.keras")
    return ",".join(map(str, paths))


def label_of(count):
    label = np.zeros(HEIGHT * WIDTH, np.uint8)
    label[:count] = 1
    return label.reshape(HEIGHT, WIDTH)


@pytest.fixture
def data(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "labels").mkdir()
    for name, count in COUNTS.items():
        photo = np.full((HEIGHT, WIDTH, 3), (90, 90, 200), np.uint8)
        Image.fromarray(photo).save(tmp_path / f"photos/{name}.png")
        Image.fromarray(label_of(count)).save(tmp_path / f"labels/{name}.png")
    return tmp_path


@pytest.fixture
def draw(run, models, data):
    def draw(*arguments, status=0):
        found, printed = run(
            compare,
            f"--models={models}",
            "--names=land,sea",
            f"--images={data}/photos",
            f"--labels={data}/labels",
            f"--output={data}/out/sheet.png",
            *arguments,
        )
        assert found == status
        with open(data / "out/sheet.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        return np.asarray(Image.open(data / "out/sheet.png")), rows, printed

    return draw


def shown(rows):
    """The names of the images in the picture, from the top."""
    placed = {int(row["row"]): row["image"][-5] for row in rows if row["row"]}
    assert sorted(placed) == list(range(1, len(placed) + 1))
    return "".join(placed[i] for i in sorted(placed))


def column(picture, number):
    left = MARGIN + number * (CELL + GAP)
    return picture[:, left : left + CELL]


def count(picture, color):
    return int((picture == np.array(color)).all(-1).sum())


def test_scores(draw):
    _, rows, printed = draw()
    assert [row["image"][-5] for row in rows] == list(COUNTS)
    for row, right in zip(rows, COUNTS.values(), strict=True):
        share = right / 80
        assert float(row["sea_pixel_accuracy"]) == pytest.approx(share)
        assert float(row["land_pixel_accuracy"]) == pytest.approx(1 - share)
        # The predicted class has this share as IoU, the other none; it counts unless absent.
        assert float(row["sea_miou"]) == pytest.approx(share / (1 if share == 1 else 2))
        assert float(row["land_miou"]) == pytest.approx((1 - share) / (1 if share == 0 else 2))
        assert float(row["disagreement"]) == 1
    assert re.search(r"d.png: pixel accuracy land 30.0 %, sea 70.0 % \(\+40.0\); mIoU ", printed)
    # Over all pixels: 200 of 400.
    assert "sea, all 5 images as one: pixel accuracy 50.0 %, mIoU 25.0 %" in printed
    assert "5 of 5 images drawn" in printed


def test_gain_is_spread_over_the_ranks(draw):
    # By the gain of the second: b (+100), d (+40), a (0), e (-40), c (-100).
    assert shown(draw("--examples=5")[1]) == "bdaec"
    assert shown(draw("--examples=3")[1]) == "bac"
    assert shown(draw("--examples=1")[1]) == "b"
    assert shown(draw("--examples=9", "--score=miou")[1]) == "bdaec"


def test_disagreement_and_random():
    def result(gain, disagreement):
        scores = {"pixel_accuracy": 0.5}, {"pixel_accuracy": 0.5 + gain}
        return compare.Result(None, None, scores, disagreement)

    results = [result(g, d) for g, d in ((0.1, 0.3), (0.4, 0.1), (-0.2, 0.9), (0.0, 0.3))]
    assert compare.choose(results, "disagreement", 3) == [2, 0, 3]
    assert compare.choose(results, "gain", 2) == [1, 2]
    drawn = [compare.choose(results * 5, "random", 6, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] == sorted(set(drawn[0])) and len(drawn[0]) == 6
    assert compare.choose(results, "random", 9) == [0, 1, 2, 3]


def test_difference_map(draw, data):
    label = label_of(56)
    label[-1, :6] = 255
    Image.fromarray(label).save(data / "labels/d.png")
    picture, rows, _ = draw(f"--images={data}/photos/d.png")
    scale = (CELL // WIDTH) ** 2
    truth, land, sea, differ = (column(picture[:], i) for i in range(1, 5))
    _, only_land, only_sea, _ = DIFFERENCE_PALETTE
    water = (label == 1).sum()
    earth = (label == 0).sum()
    # Cells alone: the legend below has swatches of these colours too.
    height = HEIGHT * CELL // WIDTH
    top = np.argwhere((truth == (10, 200, 10)).all(-1))[0, 0]
    truth, land, sea, differ = (cell[top : top + height] for cell in (truth, land, sea, differ))
    assert count(differ, only_sea) == count(truth, (10, 200, 10)) == water * scale
    assert count(differ, only_land) == count(truth, (200, 10, 10)) == earth * scale
    assert count(differ, (224, 224, 224)) == 6 * scale
    assert count(land, (200, 10, 10)) == count(sea, (10, 200, 10)) == CELL * height
    # Where: the label's own pixels.
    blue = (differ == np.array(only_sea)).all(-1)
    cell = CELL // WIDTH
    np.testing.assert_array_equal(blue[cell // 2 :: cell, cell // 2 :: cell], label == 1)
    assert float(rows[0]["sea_pixel_accuracy"]) == pytest.approx(water / (water + earth))


def test_both_right_and_both_wrong(draw, models, data):
    sea = models.split(",")[1]
    picture, rows, _ = draw(f"--models={sea},{sea}", f"--images={data}/photos/d.png")
    both_right, only_land, only_sea, both_wrong = DIFFERENCE_PALETTE
    differ = column(picture, 4)
    assert count(differ, both_right) >= 56 * 32**2
    assert 24 * 32**2 <= count(differ, both_wrong) < 24 * 32**2 + 500  # and a swatch
    assert count(differ, only_land) < 500 > count(differ, only_sea)
    assert float(rows[0]["disagreement"]) == 0


def test_bad_pairs_are_named_and_left_out(draw, data):
    Image.fromarray(np.zeros((9, 10), np.uint8)).save(data / "labels/a.png")
    (data / "labels/b.png").unlink()
    Image.fromarray(label_of(3) * 2).save(data / "labels/c.png")
    Image.fromarray(np.full((8, 10), 255, np.uint8)).save(data / "labels/d.png")
    _, rows, printed = draw(status=1)
    assert [row["image"][-5] for row in rows] == ["e"]
    labels = re.escape(f"{data}/labels/")
    assert re.search(rf"FAULT {labels}a.png: the label is 10x9 and its image 10x8", printed)
    assert re.search(rf"FAULT {labels}b.png: no such file", printed)
    assert re.search(rf"FAULT {labels}c.png: label value 2 in 3 pixels", printed)
    assert re.search(rf"FAULT {labels}d.png: no pixel is labelled", printed)
    assert "1 of 1 images drawn" in printed


def test_usage(run, models, data, tmp_path):
    three = tmp_path / "three.keras"
    Segmenter("tiny", None, 3, head_filters=4).save(three)
    one = models.split(",")[0]
    sound = {
        "models": models,
        "images": data / "photos",
        "labels": data / "labels",
        "output": tmp_path / "no.png",
    }

    def refused(message, *extra, **changes):
        given = [f"--{k}={v}" for k, v in {**sound, **changes}.items() if v is not None]
        with pytest.raises(app.UsageError, match=message):
            run(compare, *given, *extra)

    for name in sound:
        refused(f"Give --{name}", **{name: None})
    refused("--plugins: 'no_such_module' cannot be imported", "--plugins=no_such_module")
    refused("--models takes two, A,B, got 1: '.*0.keras'", models=one)
    refused("--names takes two, A,B, got 3: 'a,b,c'", "--names=a,b,c")
    refused("one number of classes, got 2 and 3", models=f"{one},{three}")
    refused("x.keras: no such file", models=f"{one},x.keras")
    refused("nowhere: no such folder", labels="nowhere")
    refused("ends in .jpg", images=data)
    refused("a .png file is written", output=tmp_path / "sheet.pdf")
    photo = sorted((data / "photos").iterdir())[0]
    refused("is one of the images or labels", output=data / "labels" / f"{photo.stem}.png")
    refused("x .a pattern of --images needs quotes", "x")
    assert not (tmp_path / "no.png").exists()
