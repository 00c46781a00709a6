"""Average precision, against results whose score is known by hand and against pycocotools."""

import contextlib
import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from isa_tf.data import Annotations, CocoDataset, InstanceDataset, SyntheticInstances
from isa_tf.metrics import CocoScores

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:pyc")

COCO_MINI = Path(__file__).parents[2].parent / "shared/data/coco_mini"
KEYS = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"]


class Instances(NamedTuple):
    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    masks: np.ndarray


def boxed(size, *found):
    """Instances that fill their boxes, of (box, class, score)."""
    masks = np.zeros((len(found), *size), bool)
    for inside, ((x1, y1, x2, y2), _, _) in zip(masks, found, strict=True):
        inside[y1:y2, x1:x2] = True
    boxes, classes, scores = ([each[i] for each in found] for i in range(3))
    boxes = np.reshape(boxes, (-1, 4)).astype(np.float32)
    return Instances(boxes, np.int32(classes), np.float32(scores), masks)


class Boxes(InstanceDataset):
    """Images of 100 x 120 with true boxes that their instances fill: (box, class, crowd)."""

    SIZE = (100, 120)

    def __init__(self, *images, first_id=1):
        super().__init__("boxes", ["cat", "dog", "bird"], ("val",), category_ids=[17, 18, 16])
        self._images, self._first_id = images, first_id

    def examples(self, split):
        self._check_split(split)
        return tuple(map(str, range(len(self._images))))

    def image_id(self, split, index):
        return 100 - index

    def read(self, split, index):
        entries, masks = [], []
        before = sum(len(image) for image in self._images[:index])
        for n, ((x1, y1, x2, y2), kind, crowd) in enumerate(self._images[index]):
            inside = np.zeros(self.SIZE, np.uint8)
            inside[y1:y2, x1:x2] = 1
            told = {"bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": int(crowd)}
            told |= {"category_id": self.category_ids[kind], "area": int(inside.sum())}
            entries.append({**told, "id": self._first_id + before + n})
            masks.append(mask.encode(np.asfortranarray(inside)))
        return np.zeros((*self.SIZE, 3), np.uint8), Annotations.of(entries, masks, self.class_ids)


def without_classes(scores):
    return {key: value for key, value in scores.items() if key != "classes"}


# === Known by hand ===

# True: two cats and a dog. Found: one cat exactly (0.9), a cat where there is none (0.8), the dog
# with two thirds of its box (0.7).
BY_HAND = Boxes(
    [((10, 10, 50, 50), 0, False), ((60, 10, 100, 50), 0, False)],
    [((20, 20, 50, 80), 1, False)],
)


@pytest.mark.parametrize("first_id", [0, 1, 77])
def test_a_score_that_is_known(first_id):
    """Ids of 0 are ids like others, though pycocotools takes 0 for none."""
    data = Boxes(*BY_HAND._images, first_id=first_id)
    scores = CocoScores(data, "val")
    scores.add(0, boxed(data.SIZE, ((10, 10, 50, 50), 0, 0.9), ((10, 60, 50, 90), 0, 0.8)))
    scores.add(1, boxed(data.SIZE, ((20, 20, 50, 60), 1, 0.7)))
    found = scores.scores()
    # The cats: precision 1 up to a recall of 1/2, 51 of the 101 recalls 0, 0.01, ..., 1; then 0.
    # The dog: intersection over union 2/3, so 1 at thresholds 0.5, 0.55, 0.6 and 0.65.
    cats, dogs = 51 / 101, 4 / 10
    for kind in ("box", "mask"):
        assert found["classes"]["cat"][f"{kind}_ap"] == pytest.approx(cats)
        assert found["classes"]["dog"][f"{kind}_ap"] == pytest.approx(dogs)
        assert found["classes"]["bird"][f"{kind}_ap"] is None
        assert found[f"{kind}_ap"] == pytest.approx((cats + dogs) / 2)
        assert found[f"{kind}_ap50"] == pytest.approx((cats + 1) / 2)
        assert found[f"{kind}_ap75"] == pytest.approx(cats / 2)
        # All of them have 1600 or 1800 pixels.
        assert found[f"{kind}_ap_medium"] == found[f"{kind}_ap"]
        assert found[f"{kind}_ap_small"] is None and found[f"{kind}_ap_large"] is None
    assert list(without_classes(found)) == [
        f"{kind}_{key}" for kind in ("box", "mask") for key in KEYS
    ]


def test_boxes_and_masks_are_scored_apart():
    scores = CocoScores(BY_HAND, "val")
    true = boxed(BY_HAND.SIZE, ((20, 20, 50, 80), 1, 0.7))
    scores.add(1, true._replace(masks=true.masks & False))
    found = scores.scores()["classes"]["dog"]
    assert found == pytest.approx({"box_ap": 1.0, "mask_ap": 0.0})
    # What is given again of an image counts.
    scores.add(1, true._replace(boxes=true.boxes / 4))
    found = scores.scores()["classes"]["dog"]
    assert found == pytest.approx({"box_ap": 0.0, "mask_ap": 1.0})


def test_what_lies_in_a_crowd_is_no_mistake():
    data = Boxes([((10, 10, 40, 40), 0, False), ((50, 10, 110, 90), 0, True)])
    true = ((10, 10, 40, 40), 0, 0.5)
    inside = [((60, 20, 80, 50), 0, 0.9), ((70, 30, 100, 60), 0, 0.8)]
    scores = CocoScores(data, "val")
    scores.add(0, boxed(data.SIZE, true, *inside))
    assert scores.scores()["box_ap"] == scores.scores()["mask_ap"] == pytest.approx(1)
    outside = ((10, 60, 40, 95), 0, 0.9)
    scores.add(0, boxed(data.SIZE, true, *inside, outside))
    assert scores.scores()["box_ap"] == pytest.approx(0.5)
    # Of another class it is one.
    scores.add(0, boxed(data.SIZE, true, ((60, 20, 80, 50), 1, 0.9)))
    assert scores.scores()["classes"]["dog"]["box_ap"] is None


def test_nothing_found_and_nothing_there():
    empty = boxed(BY_HAND.SIZE)
    scores = CocoScores(BY_HAND, "val")
    assert scores.results() == []
    before = scores.scores()
    scores.add(0, empty)
    scores.add(1, empty._replace(masks=np.zeros((0, 28, 28), bool)))
    for found in (before, scores.scores()):
        assert found["box_ap"] == found["mask_ap"] == found["mask_ap50"] == 0.0
        assert found["classes"]["cat"] == {"box_ap": 0.0, "mask_ap": 0.0}
    nothing = CocoScores(Boxes([]), "val")
    nothing.add(0, boxed(BY_HAND.SIZE, ((1, 1, 9, 9), 0, 0.5)))
    assert all(value is None for value in without_classes(nothing.scores()).values())


def test_images_that_were_not_added_count_as_missed():
    scores = CocoScores(BY_HAND, "val")
    scores.add(1, boxed(BY_HAND.SIZE, ((20, 20, 50, 80), 1, 0.7)))
    assert scores.scores()["box_ap"] == pytest.approx(0.5)
    only = scores.scores(only_added=True)
    assert only["box_ap"] == pytest.approx(1) and only["classes"]["cat"]["box_ap"] is None


def test_results_have_cocos_format():
    scores = CocoScores(BY_HAND, "val")
    scores.add(1, boxed(BY_HAND.SIZE, ((20, 20, 50, 80), 1, 0.75)))
    scores.add(0, boxed(BY_HAND.SIZE, ((10, 10, 50, 50), 0, 0.5), ((1, 2, 9, 5), 2, 0.25)))
    found = json.loads(json.dumps(scores.results()))
    assert [each["image_id"] for each in found] == [100, 100, 99]
    assert [each["category_id"] for each in found] == [17, 16, 18]
    assert [each["score"] for each in found] == [0.5, 0.25, 0.75]
    assert found[2]["bbox"] == [20, 20, 30, 60]
    decoded = mask.decode(found[1]["segmentation"])
    expected = boxed(BY_HAND.SIZE, ((1, 2, 9, 5), 2, 0.25)).masks[0]
    np.testing.assert_array_equal(decoded, expected)


def test_it_is_silent(capsys):
    scores = CocoScores(BY_HAND, "val")
    scores.scores()
    assert capsys.readouterr() == ("", "")


def test_what_cannot_be_added():
    scores = CocoScores(BY_HAND, "val")
    true = boxed(BY_HAND.SIZE, ((20, 20, 50, 80), 1, 0.7))
    for index, instances, told in (
        (2, true, "has 2 images, and no index 2"),
        (-1, true, "no index -1"),
        (0, true._replace(classes=[3]), r"classes must be 0 to 2, got \[3\]"),
        (0, true._replace(classes=[-1]), "classes must be 0 to 2"),
        (0, true._replace(scores=[0.1, 0.2]), "as many, got 1, 1, 2, 1"),
        (0, true._replace(masks=true.masks[:, :50]), r"masks must be \(100, 120\)"),
    ):
        with pytest.raises(ValueError, match=told):
            scores.add(index, instances)
    assert scores.results() == []
    with pytest.raises(ValueError, match="no split 'test'"):
        CocoScores(BY_HAND, "test")


# === Against pycocotools alone ===


def directly(truth, results, kind):
    """What pycocotools says of two files: its twelve numbers."""
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(truth)
        said = known.loadRes(results)
        evaluation = COCOeval(known, said, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def guesses(data, split, seed):
    """The truth, moved, with other scores and classes, some left out and some made up."""
    rng = np.random.default_rng(seed)
    for index in range(data.size(split)):
        found, (height, width) = data.annotations(split, index), data.size_of(split, index)
        kept = rng.random(len(found.classes)) < 0.8
        masks = [mask.decode(found.masks[n]) for n in np.flatnonzero(kept)]
        count = len(masks)
        shifts = rng.integers(-6, 7, (count, 2))
        masks = [np.roll(m, s, (0, 1)) for m, s in zip(masks, shifts, strict=True)]
        masks = np.array(masks, bool).reshape(-1, height, width)
        boxes = found.boxes[kept] + np.tile(shifts[:, ::-1], 2)
        boxes[:, 2:] *= rng.uniform(0.97, 1.03, (count, 1))
        other = rng.random(count) < 0.1
        classes = np.where(other, rng.integers(0, data.num_classes, count), found.classes[kept])
        yield index, Instances(boxes, classes, rng.random(count).astype(np.float32), masks)


def compare(data, split, truth, tmp_path):
    scores = CocoScores(data, split)
    for index, instances in guesses(data, split, 0):
        scores.add(index, instances)
    found = scores.scores()
    for kind, told in (("box", "bbox"), ("mask", "segm")):
        left_out = {"box": "segmentation", "mask": "bbox"}[kind]  # so that areas are this kind's
        results = [
            {key: value for key, value in each.items() if key != left_out}
            for each in scores.results()
        ]
        (tmp_path / "results.json").write_text(json.dumps(results))
        stats = directly(str(truth), str(tmp_path / "results.json"), told)
        for key, value in zip(KEYS, stats, strict=False):
            assert found[f"{kind}_{key}"] == (
                None if value == -1 else pytest.approx(value, abs=1e-12)
            )
        assert 0.05 < found[f"{kind}_ap"] < 0.95
    return found


def test_the_mini_set_scores_as_pycocotools_says(tmp_path):
    if not COCO_MINI.is_dir():
        pytest.skip(f"no {COCO_MINI}")
    data = CocoDataset(COCO_MINI)
    found = compare(data, "val", COCO_MINI / "instances_val.json", tmp_path)
    assert len({found[f"mask_{key}"] for key in KEYS}) == 6


def test_made_up_shapes_score_as_pycocotools_says(tmp_path):
    data = SyntheticInstances((160, 200), {"val": 12}, crowds=True)
    truth = data.ground_truth("val")
    for entry in truth["annotations"]:
        counts = entry["segmentation"]["counts"].decode()
        entry["segmentation"] = {"size": entry["segmentation"]["size"], "counts": counts}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    compare(data, "val", tmp_path / "truth.json", tmp_path)


def test_the_truth_of_the_mini_set_scores_1():
    if not COCO_MINI.is_dir():
        pytest.skip(f"no {COCO_MINI}")
    data = CocoDataset(COCO_MINI)
    scores = CocoScores(data, "val")
    for index in range(data.size("val")):
        found, size = data.annotations("val", index), data.size_of("val", index)
        kept = ~found.crowd
        masks = [mask.decode(found.masks[n]) for n in np.flatnonzero(kept)]
        masks = np.array(masks, bool).reshape(-1, *size)
        ones = np.ones(kept.sum())
        scores.add(index, Instances(found.boxes[kept], found.classes[kept], ones, masks))
    found = scores.scores()
    assert all(value == pytest.approx(1) for value in without_classes(found).values())
    for row in found["classes"].values():
        assert set(row.values()) == {None} or min(row.values()) > 1 - 1e-12
    assert sum(row["box_ap"] is not None for row in found["classes"].values()) == 62
