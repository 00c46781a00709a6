"""Drawings, read back."""

import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from pictures import decode

from isa_tf.report import charts


def test_pictures():
    photo = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
    painting = np.array([(200, 0, 0), (0, 90, 13)], np.uint8)[photo[..., 0] // 128]
    np.testing.assert_array_equal(decode(charts.picture_uri(painting, lossless=True)), painting)
    small = decode(charts.picture_uri(painting, 20, lossless=True))
    assert small.size == (20, 12)
    colors = {tuple(color) for color in np.asarray(small).reshape(-1, 3).tolist()}
    assert colors == {(200, 0, 0), (0, 90, 13)}
    smooth = np.broadcast_to(np.arange(0, 250, 5, dtype=np.uint8)[None, :, None], photo.shape)
    close = np.asarray(decode(charts.picture_uri(smooth)), int)
    assert np.abs(close - smooth).mean() < 4
    assert decode(charts.picture_uri(photo, 20)).size == (20, 12)
    assert decode(charts.picture_uri(photo[:1], 20)).size == (20, 1)
    assert decode(charts.picture_uri(photo, 900)).size == (50, 30)


def test_the_picture_of_a_confusion_matrix():
    matrix = np.array([[6, 2, 0], [0, 0, 0], [9, 0, 27]])
    picture = charts.confusion_picture(matrix)
    opacity = 255 * np.sqrt([[0.75, 0.25, 0], [0, 0, 0], [0.25, 0, 0.75]])
    np.testing.assert_array_equal(picture[..., 3], np.round(opacity))
    for i in range(3):
        for j in range(3):
            color = charts.HIT_COLOR if i == j else charts.MISS_COLOR
            assert tuple(picture[i, j, :3]) == color
    np.testing.assert_array_equal(decode(charts.picture_uri(picture, lossless=True)).size, (3, 3))


def test_ticks_are_round_and_span():
    rng = np.random.default_rng(0)
    for low, width in zip(rng.normal(0, 3, 200), 10 ** rng.uniform(-4, 5, 200), strict=True):
        found = charts.ticks(low, low + width)
        assert found[0] <= low + 1e-6 * width and found[-1] >= low + width * (1 - 1e-6)
        assert 2 <= len(found) <= 8
        step = found[1] - found[0]
        mantissa = step / 10 ** math.floor(math.log10(step * (1 + 1e-6)))
        assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-5
        np.testing.assert_allclose(np.diff(found), step, rtol=1e-6)
    assert charts.ticks(0, 0)[0] == 0  # a curve that lies on 0


def test_curves_of_a_log():
    rows = [
        {"step": 10, "loss": 4.0, "val_miou": 0.1},
        {"step": 20, "loss": math.nan, "val_<loss> & co": 2.0},
        {"step": 30, "loss": 1.0, "val_<loss> & co": math.inf},
        {"step": 40, "val_<loss> & co": 3.0},
    ]
    chart = ElementTree.fromstring(charts.curve_chart("a < b", rows, ["loss", "val_<loss> & co"]))
    texts = [element.text for element in chart.iter("text")]
    assert texts[0] == "a < b" and {"loss", "val_<loss> & co", "step", "4", "40"} <= set(texts)
    points = {}
    for circle in chart.iter("circle"):
        points.setdefault(circle.get("class"), []).append(
            (float(circle.get("cx")), float(circle.get("cy")))
        )
    (x0, y0), (x1, y1) = points["train"]
    (x2, y2), (x3, y3) = points["val"]
    # Places grow with the step, and fall with the value, in proportion.
    assert (x1 - x0) / (x3 - x2) == pytest.approx(1, abs=0.01)
    assert (y1 - y0) / (y2 - y3) == pytest.approx(3, abs=0.02)
    assert x0 < x2 < x1 < x3 and y0 < y3 < y2 < y1
    assert not any("dashed" in path.get("class") for path in chart.iter("path"))
    more = [row | {"context_loss": 3.0} for row in rows]
    chart = ElementTree.fromstring(charts.curve_chart("more", more, ["context_loss", "loss"]))
    styles = [path.get("class") for path in chart.iter("path") if "curve" in path.get("class")]
    # A line and its place in the legend, the shorter name's plain.
    assert styles == ["curve train"] * 2 + ["curve train dashed"] * 2
    assert charts.curve_chart("none", rows, ["miou"]) == ""
    assert charts.ticks(0, 0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    nothing = [{"step": step, "val_mask_ap": 0.0} for step in (0, 5)]  # found yet
    chart = charts.curve_chart("none yet", nothing, ["val_mask_ap"])
    assert len({c.get("cy") for c in ElementTree.fromstring(chart).iter("circle")}) == 1
    one = charts.curve_chart("one", rows[:1], ["loss"])
    assert len(list(ElementTree.fromstring(one).iter("circle"))) == 1


def test_sparkline():
    line = ElementTree.fromstring(charts.sparkline([(0, 0.0), (5, 1.0), (10, 0.5)]))
    path = [e.get("d") for e in line.iter("path") if "curve" in e.get("class")][0]
    assert path == "M1.0 19.0L42.0 1.0L83.0 10.0"
    assert charts.sparkline([(3, 0.5)]) == charts.sparkline([]) == ""
    assert charts.sparkline([(3, 0.5), (3, 0.6)]) == ""
