"""Scores beside mmsegmentation's IoUMetric and cityscapesScripts' evaluation."""

import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from isa_tf.data import SegmentationDataset
from isa_tf.data.label_sets import CITYSCAPES
from isa_tf.inference import Predictor, confusion_matrix, write_results
from isa_tf.metrics import MeanIoU, class_scores, scores

# Of cityscapesScripts' table, checked against it below: the labelIds of the 19 train ids.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def maps(classes, absent=(), unpredicted=(), count=3, size=(37, 53), seed=0):
    """(label, prediction) with ignored pixels; `absent` classes occur in neither."""
    rng = np.random.default_rng(seed)
    here = [c for c in range(classes) if c not in absent]
    said = [c for c in here if c not in unpredicted]
    for _ in range(count):
        label, guess = rng.choice(here, size), rng.choice(said, size)
        guess = np.where((rng.random(size) < 0.6) & np.isin(label, said), label, guess)
        label = np.where(rng.random(size) < 0.15, 255, label)
        yield label.astype(np.uint8), guess.astype(np.uint8)


def echo(images):
    """The red channel is the class."""
    return images[..., 0], images[..., 0] / 255


@pytest.mark.parametrize(
    ("classes", "absent", "unpredicted"),
    [
        (19, (), ()),
        (19, (3, 18), (5,)),
        (150, range(100, 140), (0, 149)),
        (2, (), ()),
        (3, (1,), ()),
    ],
    ids=str,
)
def test_mmsegmentation(classes, absent, unpredicted):
    """Integer areas are equal, and scores before rounding agree to 1e-6."""
    torch = pytest.importorskip("torch")
    module = pytest.importorskip(
        "mmseg.evaluation.metrics", reason="mmsegmentation is in `make parity` alone"
    )
    pairs = list(maps(classes, absent, unpredicted))
    areas = [
        module.IoUMetric.intersect_and_union(
            torch.from_numpy(guess.astype("int64")),
            torch.from_numpy(label.astype("int64")),
            classes,
            255,
        )
        for label, guess in pairs
    ]
    intersect, union, predicted, truth = (sum(each) for each in zip(*areas, strict=True))

    batches = [(np.repeat(guess[None, ..., None], 3, -1), label[None]) for label, guess in pairs]
    matrix = confusion_matrix(echo, batches, classes)
    metric = MeanIoU(classes)
    for label, guess in pairs:
        metric.update_state(label[None], guess[None])
    np.testing.assert_array_equal(matrix, metric.confusion)
    np.testing.assert_array_equal(np.diag(matrix), intersect)
    np.testing.assert_array_equal(matrix.sum(0), predicted)
    np.testing.assert_array_equal(matrix.sum(1), truth)
    np.testing.assert_array_equal(matrix.sum(0) + matrix.sum(1) - np.diag(matrix), union)

    kinds = ["mIoU", "mDice", "mFscore"]
    theirs = module.IoUMetric.total_area_to_metrics(intersect, union, predicted, truth, kinds)
    ours, table = scores(matrix), class_scores(matrix)
    columns = {"IoU": "iou", "Acc": "accuracy", "Dice": "f1", "Precision": "precision"}
    columns["Recall"] = "recall"
    for their_name, our_name in columns.items():
        column = [row[our_name] for row in table.values()]
        column = np.array([np.nan if value is None else value for value in column])
        np.testing.assert_allclose(column, theirs[their_name], rtol=0, atol=1e-6)
        assert np.isnan(column).sum() >= len(absent)
    for name, value in (
        ("miou", np.nanmean(theirs["IoU"])),
        ("mean_accuracy", np.nanmean(theirs["Acc"])),
        ("pixel_accuracy", theirs["aAcc"]),
    ):
        assert ours[name] == pytest.approx(float(value), abs=1e-6)
    assert float(metric.result()) == pytest.approx(float(np.nanmean(theirs["IoU"])), abs=1e-6)
    assert 0 < ours["miou"] < 1


class Cityscapes(SegmentationDataset):
    """Small examples by the names of Cityscapes, whose red channel is what is predicted."""

    submission_ids, submission_suffix = LABEL_IDS, "_pred"

    def __init__(self, pairs):
        super().__init__("cityscapes", CITYSCAPES.class_names, ("val",), CITYSCAPES.palette)
        self.pairs = pairs

    def examples(self, split):
        names = (f"aachen/aachen_{i:06d}_000019_leftImg8bit.png" for i in range(len(self.pairs)))
        return tuple(names)

    def read(self, split, index):
        label, guess = self.pairs[index]
        return np.repeat(guess[..., None], 3, -1), label


@pytest.mark.parametrize("absent", [(), (2, 16)], ids=str)
def test_cityscapes_scripts(tmp_path, monkeypatch, absent):
    """Its evaluation of our files gives our confusion matrix, and the same IoU of each class."""
    monkeypatch.setenv("CITYSCAPES_RESULTS", str(tmp_path / "results"))
    evaluation = pytest.importorskip(
        "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling",
        reason="cityscapesScripts is in the environment of `make parity` alone",
    )
    from cityscapesscripts.helpers.labels import trainId2label  # noqa: PLC0415

    assert tuple(trainId2label[i].id for i in range(19)) == LABEL_IDS
    pairs = list(maps(19, absent, unpredicted=(6,)))
    data = Cityscapes(pairs)
    paths = write_results(Predictor(echo, 19), data, "val", tmp_path / "results")

    # The truth as its publisher's files have it: several ids stand for the ignored label.
    rng, truths = np.random.default_rng(1), []
    for index, (label, _) in enumerate(pairs):
        ids = np.array([*LABEL_IDS, *[0] * 237])[label]
        ignored = rng.choice([0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30], label.shape)
        truth = np.where(label == 255, ignored, ids).astype(np.uint8)
        truths.append(tmp_path / f"aachen_{index:06d}_000019_gtFine_labelIds.png")
        Image.fromarray(truth).save(truths[-1])

    args = evaluation.args
    for name, value in {"predictionPath": None, "predictionWalk": None}.items():
        monkeypatch.setattr(args, name, value)
    monkeypatch.setattr(args, "evalInstLevelScore", False)  # which needs instances
    monkeypatch.setattr(args, "JSONOutput", True)
    monkeypatch.setattr(args, "exportFile", str(tmp_path / "scores.json"))
    monkeypatch.setattr(args, "quiet", True)
    found = [evaluation.getPrediction(args, str(truth)) for truth in truths]
    assert found == [str(path) for path in paths]
    evaluation.evaluateImgLists(found, [str(truth) for truth in truths], args)
    theirs = json.loads((tmp_path / "scores.json").read_text())

    batches = [
        (image[None], label[None]) for image, label in (data.read("val", i) for i in range(3))
    ]
    ours = confusion_matrix(echo, batches, 19)
    their_matrix = np.array(theirs["confMatrix"])
    np.testing.assert_array_equal(ours, their_matrix[np.ix_(LABEL_IDS, LABEL_IDS)])
    result = scores(ours, data.class_names)
    for name, iou in result["iou"].items():
        their = theirs["classScores"][name]
        if iou is None:
            assert np.isnan(their)
        else:
            assert iou == pytest.approx(their, abs=1e-12)
    assert sum(iou is None for iou in result["iou"].values()) == len(absent)
    assert result["miou"] == pytest.approx(theirs["averageScoreClasses"], abs=1e-12)
    assert tf.io.decode_png(paths[0].read_bytes()).shape == (37, 53, 1)
