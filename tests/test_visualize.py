import numpy as np
import pytest

from isa_tf.data.base import voc_palette
from isa_tf.visualize import IGNORE_COLOR, colorize, legend, overlay, sheet

PALETTE = ((200, 0, 0), (0, 200, 0), (0, 0, 200))
NAMES = ("red", "green", "blue")


def count(picture, color):
    return int((picture == np.array(color)).all(-1).sum())


def test_colorize():
    label = np.array([[0, 1], [2, 255]], np.uint8)
    painted = colorize(label, PALETTE)
    assert painted.dtype == np.uint8
    assert painted.tolist() == [[[200, 0, 0], [0, 200, 0]], [[0, 0, 200], [*IGNORE_COLOR]]]
    assert colorize(label, PALETTE, ignore_color=(1, 2, 3))[1, 1].tolist() == [1, 2, 3]
    # 255 is a class where nothing is ignored.
    colors = [*voc_palette(255), (9, 8, 7)]
    assert colorize(label, colors, ignore_label=None)[1, 1].tolist() == [9, 8, 7]


def test_overlay():
    image = np.full((6, 8, 3), 100, np.uint8)
    label = np.zeros((6, 8), np.uint8)
    label[:, 4:] = 1
    label[0, 0] = 255
    picture = overlay(image, label, PALETTE, opacity=0.5)
    assert picture.shape == image.shape and picture.dtype == np.uint8
    assert picture[0, 0].tolist() == [100, 100, 100]  # ignored: the photo
    assert picture[3, 1].tolist() == [150, 50, 50]  # inside: half and half
    assert picture[3, 6].tolist() == [50, 150, 50]
    assert picture[3, 3].tolist() == [180, 20, 20]  # on either side of a border: four fifths
    assert picture[3, 4].tolist() == [20, 180, 20]
    np.testing.assert_array_equal(image, 100)


def test_overlay_extremes():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (9, 7, 3), np.uint8)
    label = rng.integers(0, 3, (9, 7), np.uint8)
    np.testing.assert_array_equal(overlay(image, label, PALETTE, 0), image)
    np.testing.assert_array_equal(overlay(image, label, PALETTE, 1), colorize(label, PALETTE))
    single = overlay(image[:1, :1], label[:1, :1], PALETTE)
    assert single.shape == (1, 1, 3)


def test_legend():
    picture = legend(NAMES, PALETTE, width=400)
    assert picture.shape[1] == 400 and picture.dtype == np.uint8
    x = []
    for color in PALETTE:
        assert count(picture, color) > 100
        x.append(np.argwhere((picture == np.array(color)).all(-1))[:, 1].mean())
    assert x == sorted(x)  # left to right, in the order of the classes
    names = [f"class number {i}" for i in range(30)]
    colors = [(10 + i, 0, 200) for i in range(30)]
    narrow, wide = (legend(names, colors, width=width) for width in (150, 900))
    assert narrow.shape[0] > 3 * wide.shape[0]
    assert all(count(narrow, color) > 100 for color in colors)
    assert legend(["a" * 500], [(0, 0, 0)], width=100).shape[1] == 100


def test_sheet():
    photo = np.full((20, 40, 3), (10, 120, 130), np.uint8)
    label = np.zeros((20, 40), np.int64)
    label[:, 20:] = 2
    tall = np.full((80, 40, 3), (140, 20, 150), np.uint8)
    titles = ("photo", "truth")
    picture = sheet([(photo, label), (tall, None)], titles, PALETTE, cell_width=100)
    assert picture.dtype == np.uint8 and picture.ndim == 3
    # All cells have one width, and their own proportions.
    assert count(picture, (10, 120, 130)) == 100 * 50
    assert count(picture, PALETTE[0]) == count(picture, PALETTE[2]) == 50 * 50
    assert count(picture, (140, 20, 150)) == 100 * 200
    # The photo is left of its label, the second row under the first.
    places = [
        np.argwhere((picture == np.array(color)).all(-1)).mean(0)
        for color in ((10, 120, 130), PALETTE[0], (140, 20, 150))
    ]
    assert places[0][0] == places[1][0] < places[2][0]
    assert places[0][1] == places[2][1] < places[1][1]

    with_legend = sheet([(photo, label)], titles, PALETTE, NAMES, cell_width=100)
    assert count(with_legend, PALETTE[1]) > 100
    plain = sheet([(photo, label)], titles, PALETTE, cell_width=100)
    more = sheet([(photo, label)], titles, PALETTE, captions=["a"], heading="b", cell_width=100)
    assert plain.shape[0] < more.shape[0] and plain.shape[1] == more.shape[1]


def test_sheet_names_the_ignored():
    label = np.zeros((20, 40), np.uint8)
    without = sheet([(label,)], ("label",), PALETTE, NAMES)
    label[:10] = 255
    assert count(without, IGNORE_COLOR) < 100  # but for the edges of letters
    assert count(sheet([(label,)], ("label",), PALETTE, NAMES), IGNORE_COLOR) > 320 * 80 + 100


def test_errors():
    image, label = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)
    with pytest.raises(ValueError, match="no colour for class 3: the palette has 3"):
        colorize(label + 3, PALETTE)
    with pytest.raises(ValueError, match="no colour for class -1"):
        colorize(label.astype(int) - 1, PALETTE)
    with pytest.raises(ValueError, match=r"ints \(H, W\), got float32"):
        colorize(label.astype(np.float32), PALETTE)
    with pytest.raises(ValueError, match=r"got uint8 \(4, 4, 3\) and \(4, 3\)"):
        overlay(image, label[:, :3], PALETTE)
    with pytest.raises(ValueError, match="opacity lies in"):
        overlay(image, label, PALETTE, opacity=2)
    with pytest.raises(ValueError, match="3 colours for 2 class names"):
        legend(NAMES[:2], PALETTE)
    with pytest.raises(ValueError, match="row 1 has 1 cells for 2 titles"):
        sheet([(image, image), (image,)], ("a", "b"))
    with pytest.raises(ValueError, match="1 captions for 2 rows"):
        sheet([(image,), (image,)], ("a",), captions=["x"])
    with pytest.raises(ValueError, match="a label needs a palette"):
        sheet([(label,)], ("a",))
    with pytest.raises(ValueError, match="a legend needs a palette"):
        sheet([(image,)], ("a",), class_names=NAMES)
    with pytest.raises(ValueError, match="a cell is an image"):
        sheet([(image[..., :1],)], ("a",))
