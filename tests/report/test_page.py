"""The page, read as a browser would read it."""

import configparser
import re
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from pages import Reader, class_rows
from pictures import decode

from isa_tf import metrics, visualize
from isa_tf.data.base import voc_palette
from isa_tf.report import ImageScores, choose, page, short_names, table

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("sky & sea", '<script>alert("1")</script>', "it's </script> ü", "never", "$title")


class Evaluation:
    """Images, labels and predictions, and the page that tells of them."""

    def __init__(self, class_names=NAMES, count=9, size=(24, 32), ignored=(), seed=0):
        rng = np.random.default_rng(seed)
        self.class_names, n = tuple(class_names), len(class_names)
        self.names = [f"/data/val/{i % 2}/<b> {i} & 'é\".jpg" for i in range(count)]
        self.examples, self.images = [], ImageScores(n)
        for index in range(count):
            label = rng.integers(0, n, size).astype(np.uint8)
            label[label == 3] = 0  # "never"
            if index % 2:
                label[label == n - 1] = 1  # so that it is predicted where it is not
            wrong = rng.random(size) < 0.3 + 0.05 * index
            guess = np.where(wrong, n - 1 if index % 2 else 0, label)
            label[:2] = 255
            if index in ignored:
                label[:] = 255
            photo = np.empty((*size, 3), np.uint8)
            photo[:] = np.linspace(20 * index, 255 - 20 * index, size[1])[:, None]
            self.examples.append((photo, label, guess))
            self.images.add(index, label, guess)
        self.result = {"dataset": "toy", "split": "val"}
        self.result["protocol"] = {
            **{"mode": "slide", "crop_size": [769, 513], "scales": [0.5], "pad_size": None},
            **{"flip": True, "flip_pairs": [[1, 2], [0, 3]]},
        }
        self.result |= metrics.scores(self.images.total(), self.class_names)

    def page(self, **kwargs):
        arguments = (self.class_names, voc_palette(len(self.class_names)))
        show = self.examples.__getitem__
        return page(self.result, self.images, self.names, *arguments, show, **kwargs)

    def read(self, **kwargs):
        return Reader(self.page(**kwargs))


@pytest.fixture(scope="module")
def evaluation():
    return Evaluation()


LOG = [
    {"step": 10.0, "loss": 2.0, "val_loss": 2.5, "val_miou": 0.1, f"val_iou/{NAMES[0]}": 0.2},
    {"step": 20.0, "loss": 1.0, "val_loss": 1.5, "val_miou": 0.3, f"val_iou/{NAMES[0]}": 0.4},
]


@pytest.mark.parametrize("log", [(), LOG])
def test_it_needs_nothing_but_itself(evaluation, log):
    html = evaluation.page(log=log)
    reader = Reader(html)
    for _, attributes, _ in reader.elements:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
        assert not {"srcset", "action", "onclick", "onload", "onerror"} & set(attributes)
    assert not re.search(r"https?:|@import|url\(|\bfetch\(|XMLHttp|import\(", html)
    # And the browser is told so.
    policy = reader.all("meta", **{"http-equiv": "Content-Security-Policy"})[0][0]["content"]
    assert "default-src 'none'" in policy
    ids = [attributes["id"] for _, attributes, _ in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {a["href"][1:] for a, _ in reader.all("a") if a["href"].startswith("#")}
    assert links <= set(ids)
    assert ("training" in ids) == bool(log)


def test_its_numbers_are_those_of_the_result(evaluation):
    reader = evaluation.read()
    result = evaluation.result
    tiles = dict(zip(reader.texts("dt"), reader.texts("dd"), strict=True))
    for key, title in (("miou", "mIoU"), ("mean_accuracy", "mean accuracy")):
        assert tiles[title] == f"{result[key]:.4f}"
    assert tiles["pixel accuracy"] == f"{result['pixel_accuracy']:.4f}"
    assert tiles["classes counted"] == "4" and len(tiles) == 7
    protocol = "mode slide, crop size (769, 513), scales 0.5, flip yes, flip pairs ((1, 2), (0, 3))"
    assert tiles["protocol"] == protocol
    assert reader.texts("h1") == [f"toy val: mIoU {result['miou']:.4f}"]
    matrix = np.array(result["confusion_matrix"])
    rows, columns, counts = reader.data["confusion"]
    found = np.zeros_like(matrix)
    found[rows, columns] = counts
    np.testing.assert_array_equal(found, matrix)
    # The table, a row each: percents of the row's pixels.
    cells = [text for a, text in reader.all("td") if a.get("class", "").startswith(("hit", "miss"))]
    share = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    for text, value in zip(cells, share.ravel(), strict=True):
        assert text == ("" if value == 0 else "·" if value < 0.5 else f"{value:.0f}")


def test_the_classes(evaluation):
    rows = class_rows(evaluation.read())
    assert tuple(rows) == NAMES  # as they are called, whatever they contain
    matrix = np.array(evaluation.result["confusion_matrix"])
    for i, name in enumerate(NAMES):
        iou, accuracy, precision, f1, share = rows[name]
        if name == "never":
            assert (iou, accuracy, precision, f1, share) == ("absent", "–", "–", "–", "0.00")
            continue
        assert iou == f"{evaluation.result['iou'][name]:.4f}"
        assert accuracy == f"{matrix[i, i] / matrix[i].sum():.4f}"
        assert precision == f"{matrix[i, i] / matrix[:, i].sum():.4f}"
        assert f1 == f"{2 * matrix[i, i] / (matrix[i].sum() + matrix[:, i].sum()):.4f}"
        assert share == f"{100 * matrix[i].sum() / matrix.sum():.2f}"


def test_whatever_else_the_result_tells(evaluation):
    more = Evaluation()
    more.result |= {"trimmed_miou": 0.123456, "context_miou": None, "band": 3}
    more.result["boundary_iou"] = {name: 0.5 for name in NAMES}
    more.result["accuracy"] = {name: None for name in NAMES}
    reader = more.read(facts={"evaluated": "<today>", "seed": 7})
    told = dict(zip(reader.texts("dt"), reader.texts("dd"), strict=True))
    assert told["trimmed mIoU"] == "0.1235" and told["context mIoU"] == "–"
    assert told["band"] == "3" and told["seed"] == "7" and told["evaluated"] == "<today>"
    heads = [text for a, text in reader.all("button") if text]
    assert "boundary IoU" in heads
    row = class_rows(reader)[NAMES[0]]
    assert row[1] == "–" and row[4] == "0.5000"


def test_the_worst_and_the_best_with_their_pictures(evaluation):
    reader = evaluation.read(max_images=6)
    iou = evaluation.result["iou"]
    order = sorted((i for i in range(5) if iou[NAMES[i]] is not None), key=lambda i: iou[NAMES[i]])
    groups = choose(evaluation.images.scores(), 6, order)
    chosen = [score for group in groups for score in group]
    cards = [a["id"] for a, _ in reader.all("article")]
    assert cards == [f"image-{score.index}" for score in chosen] and len(cards) == 6
    short = [name.removeprefix("/data/val/") for name in evaluation.names]
    assert reader.texts("h4") == [short[score.index] for score in chosen]
    pictures = [decode(a["src"]) for a, _ in reader.all("img") if " of " in a.get("alt", "")]
    assert len(pictures) == 4 * 6
    kinds = ("photo", "truth", "prediction", "errors")
    alts = [a["alt"] for a, _ in reader.all("img") if " of " in a.get("alt", "")]
    assert alts == [f"{kind} of {short[score.index]}" for score in chosen for kind in kinds]
    for k, score in enumerate(chosen):
        photo, label, guess = evaluation.examples[score.index]
        palette = voc_palette(5)
        shown = [np.asarray(picture, int) for picture in pictures[4 * k : 4 * k + 4]]
        np.testing.assert_array_equal(shown[1], visualize.colorize(label, palette))
        np.testing.assert_array_equal(shown[2], visualize.colorize(guess, palette))
        assert np.abs(shown[0] - photo).mean() < 4  # compressed
        np.testing.assert_array_equal(shown[3], visualize.errors(photo, label, guess))
    # Beside a photo the IoU of its classes, the lowest first.
    chips = [(a["data-name"], text) for a, text in reader.all("li")]
    first = chosen[0]
    expected = sorted(first.iou.items(), key=lambda item: (item[1], item[0]))
    assert chips[: len(expected)] == [
        (NAMES[i], f" {value:.2f}".join((NAMES[i], ""))) for i, value in expected
    ]
    unfounded = [a["data-name"] for a, _ in reader.all("li", class_="unfounded")]
    missing = [i for score in chosen for i in sorted(score.iou) if i not in score.truth]
    assert unfounded == [NAMES[i] for i in missing] and unfounded


def test_every_image_is_listed(evaluation):
    data = evaluation.read(max_images=0).data
    assert data["classes"] == list(NAMES) and data["unlisted"] == 0
    scores = {score.index: score for score in evaluation.images.scores()}
    assert [row[2] for row in data["images"]] == sorted(row[2] for row in data["images"])
    for index, name, miou, accuracy, classes in data["images"]:
        score = scores.pop(index)
        assert name == evaluation.names[index].removeprefix("/data/val/")
        assert (miou, accuracy) == (round(score.miou, 4), round(score.pixel_accuracy, 4))
        assert {int(i): iou for i, (iou, _) in classes.items()} == {
            i: round(iou, 4) for i, iou in score.iou.items()
        }
        assert {int(i) for i, (_, there) in classes.items() if there} == set(score.truth)
    assert not scores


def test_nothing_that_is_told_becomes_markup():
    names = ("</title><b>", '" onmouseover="x', "<!--", "]]>", "\u2028&amp;")
    evil = Evaluation(names)
    evil.result |= {"model": "</script><script>", "<i>": 0.5}
    plain = Evaluation(("a", "b", "c", "d", "e"))
    plain.result |= {"model": "m", "i": 0.5}
    log = [{"step": s, "loss<": 1.0, "<u>loss": 1.0, f"val_iou/{names[0]}": 0.1} for s in (1, 2)]
    reader, other = evil.read(log=log), plain.read(log=log)
    assert tuple(class_rows(reader)) == names == tuple(reader.data["classes"])
    # The elements are those of a page whose names are letters (but for the curve of a class).
    for tag in ("script", "b", "li", "i", "style", "circle"):
        assert len(reader.all(tag)) == len(other.all(tag)), tag
    assert not set("<>&") & set(reader.texts("script", id="data")[0])
    assert len(reader.all("script")) == 2 and "title" in {e[0] for e in reader.elements}
    tags = {element[0] for element in reader.elements}
    assert "u" not in tags and not any("onmouseover" in e[1] for e in reader.elements)


def test_curves(evaluation):
    reader = evaluation.read(log=LOG)
    charts = [a["aria-label"] for a, _ in reader.all("svg")]
    assert len(reader.all("svg", class_="chart")) == 2 and len(charts) == 3  # and one class
    assert charts[0] == "last values 0.200, 0.400"
    assert charts[1].startswith("loss: loss, val_loss") and "val_miou" in charts[2]
    assert not evaluation.read().all("svg")
    assert not evaluation.read(log=[{"step": 1.0, "seconds": 3.0}]).all("svg")


def test_images_without_a_score():
    some = Evaluation(ignored=(0, 4))
    reader = some.read()
    cards = {a["id"] for a, _ in reader.all("article")}
    assert cards == {f"image-{i}" for i in range(9)} - {"image-0", "image-4"}
    assert [row[0] for row in reader.data["images"][-2:]] == [0, 4]
    none = Evaluation(ignored=range(9))
    reader = none.read()
    assert reader.texts("h1") == ["toy val: mIoU –"] and not reader.all("article")
    assert {row[0] for row in class_rows(reader).values()} == {"absent"}
    empty = Evaluation(count=0)
    assert empty.read().data["images"] == []


def test_many_classes_are_a_picture():
    names = [f"class {i}, of a rather long name" for i in range(150)]
    reader = Evaluation(names, count=3, size=(60, 80)).read()
    matrix = [a for a, _ in reader.all("img", id="matrix")]
    assert decode(matrix[0]["src"]).size == (150, 150)
    spans = [text for a, text in reader.all("span") if a.get("title", "").startswith("class")]
    assert spans == names * 2
    assert not reader.all("table", class_="matrix")


def test_its_size_is_bounded():
    noise = Evaluation(count=4, size=(450, 600))
    for photo, _, _ in noise.examples:
        photo[:] = np.random.default_rng(0).integers(0, 256, photo.shape)
    pages = [noise.page(max_images=n) for n in (0, 2)]
    pictures = [decode(a["src"]) for a, _ in Reader(pages[1]).all("img") if " of " in a["alt"]]
    assert len(pictures) == 8 and {picture.size for picture in pictures} == {(400, 300)}
    # Even noise takes less than its pixels, in the letters of base64.
    assert len(pages[1]) - len(pages[0]) < 2 * 4 * (400 * 300 * 3) * 4 / 3
    assert len(pages[0]) < 60_000

    many = ImageScores(2)
    for index in range(5003):
        many.add(index, np.zeros(4, int), np.arange(4) < index % 4)
    result = metrics.scores(many.total(), ["a", "b"])
    names = [f"{i}.jpg" for i in range(5003)]
    reader = Reader(page(result, many, names, ["a", "b"], voc_palette(2), None, max_images=0))
    assert reader.data["unlisted"] == 3 and len(reader.data["images"]) == 5000
    assert min(row[2] for row in reader.data["images"]) == 1 / 8
    assert len(table(many.scores(), names, ["a", "b"]).splitlines()) == 5004


def test_errors(evaluation):
    e = evaluation
    with pytest.raises(ValueError, match="4 class names and 5 colours"):
        page(e.result, e.images, e.names, NAMES[:4], voc_palette(5), None)
    with pytest.raises(ValueError, match="of 5 and 4 classes"):
        page(e.result, ImageScores(4), e.names, NAMES, voc_palette(5), None)
    with pytest.raises(ValueError, match="max_images must be at least 0, got -1"):
        e.page(max_images=-1)


def test_short_names():
    assert short_names(["/a/b/1.png", "/a/b/2.png"]) == ["1.png", "2.png"]
    assert short_names(["a/1.png"]) == ["1.png"]
    assert short_names(["val/a/1.png", "val/1.png"]) == ["a/1.png", "1.png"]
    assert short_names([b"/v/\xff\xc3\xbc.png".decode("utf-8", "surrogateescape")]) == ["?ü.png"]
    assert short_names(["1", "2"]) == ["1", "2"] and short_names([]) == []


def test_what_the_page_is_made_of_is_installed():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    patterns = config["options.package_data"]["isa_tf.report"].replace(" ", "").split(",")
    files = [path.name for path in (ROOT / "isa_tf/report").iterdir() if path.is_file()]
    parts = [name for name in files if not name.endswith(".py")]
    assert len(parts) == 3
    assert all(any(fnmatch(name, pattern) for pattern in patterns) for name in parts)
