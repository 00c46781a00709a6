"""The scores of each image, held against counting pixel by pixel."""

import csv
import io

import numpy as np
import pytest

from isa_tf import inference, metrics
from isa_tf.report import ImageScores, choose, table

CLASSES = 5


@pytest.fixture(scope="module")
def examples():
    """(label, predicted) of 12 images, some with few classes; number 4 is ignored altogether."""
    rng = np.random.default_rng(0)
    found = []
    for index in range(12):
        label = rng.choice(rng.choice(CLASSES - 1, 3), (9, 13)).astype(np.uint8)
        wrong = rng.random(label.shape) < rng.random()
        predicted = np.where(wrong, rng.integers(0, CLASSES - 1, label.shape), label)
        label[rng.random(label.shape) < 0.2] = 255
        found.append((label if index != 4 else np.full_like(label, 255), predicted))
    return found


@pytest.fixture(scope="module")
def images(examples):
    images = ImageScores(CLASSES)
    for index, example in enumerate(examples):
        images.add(index, *example)
    return images


def ious(label, predicted):
    """Class id: IoU, of the classes in truth or prediction, by sets of pixels."""
    pairs = [(t, p) for t, p in zip(label.ravel(), predicted.ravel(), strict=True) if t != 255]
    found = {}
    for i in range(CLASSES):
        truth = {k for k, (t, _) in enumerate(pairs) if t == i}
        guess = {k for k, (_, p) in enumerate(pairs) if p == i}
        if truth | guess:
            found[i] = len(truth & guess) / len(truth | guess)
    return found


def test_confusion_of_each_and_of_all(examples, images):
    total = np.zeros((CLASSES, CLASSES), int)
    for index, (label, predicted) in enumerate(examples):
        matrix = np.zeros_like(total)
        for truth, guess in zip(label.ravel(), predicted.ravel(), strict=True):
            if truth != 255:
                matrix[truth, guess] += 1
        np.testing.assert_array_equal(images.confusion(index), matrix)
        total += matrix
    np.testing.assert_array_equal(images.total(), total)
    answers = iter(predicted[None] for _, predicted in examples)
    batches = [(np.zeros((1, 9, 13, 3), np.uint8), label[None]) for label, _ in examples]
    counted = inference.confusion_matrix(lambda image: (next(answers),), batches, CLASSES)
    np.testing.assert_array_equal(images.total(), counted)


def test_scores_of_an_image(examples, images):
    for score, (label, predicted) in zip(images.scores(), examples, strict=True):
        expected, counted = ious(label, predicted), label != 255
        assert score.iou == pytest.approx(expected)
        assert score.pixels == counted.sum() == sum(score.truth.values())
        assert score.truth == {i: (label == i).sum() for i in np.unique(label[counted])}
        if not counted.any():
            assert score.miou is score.pixel_accuracy is None and score.index == 4
            continue
        assert score.miou == pytest.approx(np.mean(list(expected.values())))
        assert score.pixel_accuracy == pytest.approx((label == predicted)[counted].mean())
        assert score.miou == metrics.scores(images.confusion(score.index))["miou"]
    assert any(set(score.iou) - set(score.truth) for score in images.scores())
    assert images.scores()[4].iou == {}


def test_a_batch_tells_which_images_it_has(examples, images):
    batched = ImageScores(CLASSES)
    for order in ([7, 2, 0], [1, 3]):
        labels, predicted = (
            np.stack(each) for each in zip(*(examples[i] for i in order), strict=True)
        )
        batched.add_batch({"index": np.array(order), "label": labels}, predicted)
    assert [score.index for score in batched.scores()] == [0, 1, 2, 3, 7]
    for index in (0, 1, 2, 3, 7):
        np.testing.assert_array_equal(batched.confusion(index), images.confusion(index))


def test_the_worst_and_the_best(examples, images):
    worst, best, of_a_class = choose(images.scores(), 8)
    means = {i: np.mean(list(ious(*e).values())) for i, e in enumerate(examples) if i != 4}
    ranked = sorted(means, key=means.get)
    assert [score.index for score in worst] == ranked[:4]
    assert [score.index for score in best] == ranked[::-1][:2]
    rest = ranked[4:-2]
    # Class after class, the worst of those that are left.
    expected = []
    for i in range(CLASSES):
        having = [k for k in rest if (examples[k][0] == i).any() and k not in expected]
        if having and len(expected) < 2:
            expected.append(min(having, key=lambda k, i=i: ious(*examples[k])[i]))
    assert [score.index for score in of_a_class] == expected and len(expected) == 2


@pytest.mark.parametrize("limit", range(14))
def test_as_many_as_are_asked_for_and_none_twice(images, limit):
    groups = choose(images.scores(), limit)
    found = [score.index for group in groups for score in group]
    assert len(found) == len(set(found)) == min(limit, 11)
    assert 4 not in found
    if limit >= 11:
        worst, best, of_a_class = groups
        assert not of_a_class and len(worst) == 6
        assert max(s.miou for s in worst) <= min(s.miou for s in best)


def test_of_those_that_miss_a_class_the_one_with_most_of_it():
    images = ImageScores(3)
    images.add(0, np.ones(20, int), np.zeros(20, int))  # the worst
    images.add(1, np.ones(20, int), np.ones(20, int))  # the best
    for index, pixels in ((2, 2), (3, 5), (4, 3)):
        images.add(index, np.repeat([0, 2], (20 - pixels, pixels)), np.zeros(20, int))
    groups = choose(images.scores(), 3, class_ids=[2])
    assert [[score.index for score in group] for group in groups] == [[0], [1], [3]]


def test_bad_images_are_refused_and_not_counted():
    images = ImageScores(3)
    good = np.array([[0, 1]])
    with pytest.raises(ValueError, match=r"image 7: a label \(1, 2\), predicted \(2, 1\)"):
        images.add(7, good, good.T)
    with pytest.raises(ValueError, match=r"image 7: label outside 0\.\.2"):
        images.add(7, good + 2, good)
    with pytest.raises(ValueError, match=r"image 7: prediction outside 0\.\.2"):
        images.add(7, good, good - 1)
    assert len(images) == 0
    images.add(7, good, good)
    with pytest.raises(ValueError, match="image 7 has been added"):
        images.add(7, good, good)
    with pytest.raises(ValueError, match="no image 8 among the 1"):
        images.confusion(8)
    np.testing.assert_array_equal(images.total(), np.diag([1, 1, 0]))


def test_table(images):
    names = [f'folder/{i}, "é".jpg' for i in range(12)]
    classes = ["a,b", 'c"d', "e\nf", "ü", "<g>"]
    rows = list(csv.DictReader(io.StringIO(table(images.scores(), names, classes))))
    assert [row["image"] for row in rows] == names
    for row, score in zip(rows, images.scores(), strict=True):
        assert int(row["pixels"]) == score.pixels
        if score.miou is not None:
            assert float(row["miou"]) == score.miou
        found = {i: row[f"iou/{name}"] for i, name in enumerate(classes)}
        assert {i: float(value) for i, value in found.items() if value} == score.iou
    assert rows[4]["miou"] == rows[4]["pixel_accuracy"] == ""
