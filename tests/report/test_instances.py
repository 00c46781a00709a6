"""Scores of each image's instances, by a slow reference, and their page."""

import csv
import io
import re

import numpy as np
import pytest
from pages import Reader, class_rows
from pictures import decode
from pycocotools import mask

from isa_tf.data.base import voc_palette
from isa_tf.inference import Instances, Truth
from isa_tf.report import InstanceScores, choose, instance_page, instance_table
from isa_tf.visualize import draw_instances

NAMES = ("cup & saucer", '<script>alert("1")</script>', "dog", "never")
SIZE = (40, 60)


def rectangles(rng, count):
    masks = np.zeros((count, *SIZE), bool)
    boxes = np.zeros((count, 4), np.float32)
    for i in range(count):
        y, x = rng.integers(0, 25), rng.integers(0, 40)
        h, w = rng.integers(4, 15), rng.integers(4, 20)
        masks[i, y : y + h, x : x + w] = True
        boxes[i] = x, y, x + w, y + h
    return boxes, masks


class Evaluation:
    def __init__(self, count=9, seed=0):
        rng = np.random.default_rng(seed)
        self.examples, self.images = [], InstanceScores(len(NAMES))
        self.names = [f"/data/val/<b> {i} & 'é\".jpg" for i in range(count)]
        for index in range(count):
            boxes, masks = rectangles(rng, 6 if index else 0)
            classes = rng.integers(0, 3, len(boxes)).astype(np.int32)
            truth = Truth(boxes, classes, np.arange(len(boxes)) == 5, masks)
            # What is found: some of it, moved a little; and something else.
            keep = rng.random(len(boxes)) < 0.8
            moved = np.roll(masks[keep], rng.integers(-2, 3), 2)
            more = rectangles(rng, 3)
            found = Instances(
                np.concatenate([boxes[keep], more[0]]),
                np.concatenate([classes[keep], rng.integers(0, 3, 3)]).astype(np.int32),
                np.sort(rng.random(keep.sum() + 3).astype(np.float32))[::-1],
                np.concatenate([moved, more[1]]),
            )
            photo = np.full((*SIZE, 3), 20 * index, np.uint8)
            self.examples.append((photo, truth, found))
            self.images.add(index, truth, found)
        aps = {
            f"{k}_{s}": v for k, v in (("mask", 0.25), ("box", 0.5)) for s in ("ap75", "ap_small")
        }
        classes = {name: {"mask_ap": 0.1 * i, "box_ap": 0.2} for i, name in enumerate(NAMES)}
        classes["never"] = {"mask_ap": None, "box_ap": None}
        self.result = {
            **{"dataset": "toy", "split": "val", "mask_ap": 0.3125, "box_ap": 0.4375, **aps},
            **{"mask_ap_large": None, "classes": classes, "extra": 0.125, "images": count},
        }

    def page(self, **kwargs):
        show = self.examples.__getitem__
        given = self.result, self.images, self.names, NAMES, voc_palette(len(NAMES)), show
        return instance_page(*given, **kwargs)


@pytest.fixture(scope="module")
def evaluation():
    return Evaluation()


def reference(truth, found, least=0.5):
    """Best overlap of each true instance, pixel by pixel in sets; and the false alarms."""

    def pixels(m):
        return set(zip(*np.nonzero(m), strict=True))

    best, alarms = [], []
    sure = [one for one in zip(*found[1:], strict=True) if one[1] >= least]
    guesses = [(int(c), pixels(m)) for c, _, m in sure]
    trues = [(int(c), bool(k), pixels(m)) for c, k, m in zip(*truth[1:], strict=True)]
    for kind, crowd, inside in trues:
        if not crowd:
            overlaps = [len(inside & g) / len(inside | g) for c, g in guesses if c == kind]
            best.append((kind, max(overlaps, default=0)))
    for kind, guess in guesses:
        overlaps = [
            len(inside & guess) / len(guess if crowd else inside | guess)
            for c, crowd, inside in trues
            if c == kind
        ]
        if max(overlaps, default=0) < 0.5:
            alarms.append(kind)
    return best, alarms


def test_scores_of_an_image(evaluation):
    scores, every = evaluation.images.scores(), []
    for score, (_, truth, found) in zip(scores, evaluation.examples, strict=True):
        best, alarms = reference(truth, found)
        every += best
        assert score.instances == len(best) == sum(score.truth.values())
        assert score.false_alarms == len(alarms)
        if not best:
            assert score.mask_iou is score.found is None and score.iou == dict.fromkeys(alarms, 0)
            continue
        assert score.mask_iou == pytest.approx(np.mean([iou for _, iou in best]))
        assert score.found == pytest.approx(np.mean([iou >= 0.5 for _, iou in best]))
        of_class = {k: np.mean([iou for c, iou in best if c == k]) for k, _ in best}
        assert score.iou == pytest.approx({**dict.fromkeys(alarms, 0), **of_class})
        assert set(score.truth) == set(of_class)
    assert sum(score.false_alarms for score in scores) > 3
    assert any(set(score.iou) - set(score.truth) for score in scores)
    for i, row in enumerate(evaluation.images.classes()):
        own = [iou for kind, iou in every if kind == i]
        assert row["instances"] == len(own)
        assert row["mask_iou"] == (pytest.approx(np.mean(own)) if own else None)


def test_the_least_score_that_counts(evaluation):
    images = InstanceScores(len(NAMES), least_score=0.1)
    for index, (_, truth, found) in enumerate(evaluation.examples):
        images.add(index, truth, found)
        best, alarms = reference(truth, found, least=0.1)
        assert images.score(index).false_alarms == len(alarms)
        if best:
            assert images.score(index).mask_iou == pytest.approx(np.mean([i for _, i in best]))
    assert images.scores() != evaluation.images.scores()


def test_run_lengths_are_masks(evaluation):
    again = InstanceScores(len(NAMES))
    for index, (_, truth, found) in enumerate(evaluation.examples):
        lengths = [mask.encode(np.asfortranarray(m.astype(np.uint8))) for m in truth.masks]
        again.add(index, truth._replace(masks=lengths), found)
    assert again.scores() == evaluation.images.scores()


def test_a_crowd_is_neither_found_nor_a_reason_for_alarm():
    box, square = np.array([[0, 0, 10, 10]]), np.zeros((1, *SIZE), bool)
    square[0, :10, :10] = True
    crowd = Truth(np.array([[0, 0, 60, 40]]), np.array([1]), np.array([True]), ~(square & False))
    for kind, alarms in ((1, 0), (0, 1)):
        images = InstanceScores(2)
        images.add(3, crowd, Instances(box, np.array([kind]), np.array([0.9]), square))
        score = images.score(3)
        assert (score.instances, score.false_alarms, score.mask_iou) == (0, alarms, None)


def test_errors(evaluation):
    images, (_, truth, found) = InstanceScores(2), evaluation.examples[1]
    with pytest.raises(ValueError, match=r"image 0: a class outside 0..1"):
        images.add(0, truth, found)
    nothing = truth._replace(classes=truth.classes * 0), found._replace(classes=found.classes * 0)
    images.add(0, *nothing)
    with pytest.raises(ValueError, match="image 0 has been added"):
        images.add(0, *nothing)
    with pytest.raises(ValueError, match="4 class names and 4 colours for scores of 2 classes"):
        instance_page(evaluation.result, images, ["a"], NAMES, voc_palette(4), None)
    with pytest.raises(ValueError, match="max_images"):
        evaluation.page(max_images=-1)


def test_the_table(evaluation):
    scores = evaluation.images.scores()
    rows = list(csv.DictReader(io.StringIO(instance_table(scores, evaluation.names, NAMES))))
    for row, score, name in zip(rows, scores, evaluation.names, strict=True):
        assert row["image"] == name and int(row["false_alarms"]) == score.false_alarms
        assert row["mask_iou"] == ("" if score.mask_iou is None else repr(score.mask_iou))
        cells = {i: float(row[f"iou/{n}"]) for i, n in enumerate(NAMES) if row[f"iou/{n}"]}
        assert cells == score.iou


# === The page ===


def test_its_numbers_are_those_of_the_result(evaluation):
    html = evaluation.page(facts={"seed": 7})
    assert not re.search(r"https?:|@import|url\(|\bfetch\(|XMLHttp|import\(", html)
    reader = Reader(html)
    assert reader.texts("h1") == ["toy val: mask AP 0.3125"]
    tiles = dict(zip(reader.texts("dt"), reader.texts("dd"), strict=True))
    assert (
        tiles["mask AP"] == "0.3125" and tiles["box AP"] == "0.4375" and tiles["extra"] == "0.1250"
    )
    assert tiles["seed"] == "7" and "mask AP75" not in tiles
    table = html[html.index('<table class="ap">') :]
    table = Reader(table[: table.index("</table>") + 8])
    assert table.texts("th") == ["AP", "AP50", "AP75", "small", "medium", "large", "mask", "box"]
    assert table.texts("td")[1:] == [
        *("0.3125", "–", "0.2500", "0.2500", "–", "–"),
        *("0.4375", "–", "0.5000", "0.5000", "–", "–"),
    ]
    rows = class_rows(reader)
    assert tuple(rows) == NAMES
    for i, (name, row) in enumerate(zip(NAMES, evaluation.images.classes(), strict=True)):
        mask_ap, box_ap, iou, found, count, alarms = rows[name]
        assert (int(count), int(alarms)) == (row["instances"], row["false_alarms"])
        if name == "never":
            assert (mask_ap, box_ap, iou, found, count) == ("absent", "–", "–", "–", "0")
        else:
            assert (mask_ap, box_ap) == (f"{0.1 * i:.4f}", "0.2000")
            assert (iou, found) == (f"{row['mask_iou']:.4f}", f"{row['found']:.4f}")


def test_truth_beside_what_was_found(evaluation):
    reader = Reader(evaluation.page(max_images=6))
    scores = evaluation.images.scores()
    chosen = [score for group in choose(scores, 6, [0, 1, 2]) for score in group]
    assert [a["id"] for a, _ in reader.all("article")] == [f"image-{s.index}" for s in chosen]
    assert len(chosen) == 6 and chosen[0].mask_iou == min(s.mask_iou for s in scores[1:])
    pictures = [decode(a["src"]) for a, _ in reader.all("img") if " of " in a.get("alt", "")]
    for k, score in enumerate(chosen):
        photo, truth, found = evaluation.examples[score.index]
        for picture, some in zip(
            pictures[2 * k : 2 * k + 2], (truth, found.take(found.scores >= 0.5)), strict=True
        ):
            drawn = draw_instances(photo, some, NAMES, voc_palette(4), width=560)
            picture = np.asarray(picture, int)
            assert picture.shape == drawn.shape and np.abs(picture - drawn).mean() < 6
    line = next(
        text for text in reader.texts("p") if "false alarms" in text and "mask IoU 0" in text
    )
    first = chosen[0]
    assert line == (
        f"mask IoU {first.mask_iou:.4f}, found {first.found:.4f} of {first.instances}, "
        f"false alarms {first.false_alarms}"
    )
    # All are listed, those without a score last.
    data = reader.data
    assert data["images"][-1][0] == 0 and len(data["images"]) == 9 and data["confusion"] == [[]] * 3
    assert [row[2] for row in data["images"][:-1]] == sorted(row[2] for row in data["images"][:-1])
    heads = re.findall(r'<th scope="col">([^<]*)</th>', evaluation.page()[-60_000:])
    assert heads[-2:] == ["mask IoU", "found"]


def test_curves(evaluation):
    log = [
        {"step": s, "loss": 1.0, "val_mask_ap": 0.1, "val_box_ap": 0.2, "val_mask_ap_small": 0.3}
        | {f"val_mask_ap/{NAMES[0]}": 0.1 * s}
        for s in (1, 2)
    ]
    labels = [a["aria-label"] for a, _ in Reader(evaluation.page(log=log)).all("svg")]
    assert labels[0] == "last values 0.100, 0.200"
    assert "small" not in labels[2] and "val_mask_ap" in labels[2] and len(labels) == 3
