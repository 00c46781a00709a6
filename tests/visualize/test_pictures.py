import numpy as np
import pytest
from PIL import Image

from isa_tf.data.base import voc_palette
from isa_tf.visualize import (
    BOTH_RIGHT,
    BOTH_WRONG,
    ERROR_COLOR,
    HEAT_PALETTE,
    IGNORE_COLOR,
    ONLY_FIRST,
    ONLY_SECOND,
    POINT_COLOR,
    colorize,
    curve_names,
    difference,
    draw_classes,
    errors,
    heat,
    legend,
    mark,
    overlay,
    save_picture,
    sheet,
    with_legend,
)

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
    picture = overlay(image, label, PALETTE, opacity=0.5, clear=())
    assert picture.shape == image.shape and picture.dtype == np.uint8
    assert picture[0, 0].tolist() == [100, 100, 100]  # ignored: the photo
    assert picture[3, 1].tolist() == [150, 50, 50]  # inside: half and half
    assert picture[3, 6].tolist() == [50, 150, 50]
    assert picture[3, 3].tolist() == [180, 20, 20]  # on either side of a border: four fifths
    assert picture[3, 4].tolist() == [20, 180, 20]
    np.testing.assert_array_equal(image, 100)
    # By default class 0 is the photo itself, up to the border.
    picture = overlay(image, label, PALETTE)
    np.testing.assert_array_equal(picture[:, :4], 100)
    assert picture[3, 4].tolist() == [20, 180, 20] and picture[3, 6].tolist() == [50, 150, 50]
    np.testing.assert_array_equal(overlay(image, label, PALETTE, clear=(0, 1)), image)


def test_overlay_extremes():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (9, 7, 3), np.uint8)
    label = rng.integers(0, 3, (9, 7), np.uint8)
    np.testing.assert_array_equal(overlay(image, label, PALETTE, 0), image)
    np.testing.assert_array_equal(
        overlay(image, label, PALETTE, 1, clear=()), colorize(label, PALETTE)
    )
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


def test_a_legend_underneath():
    photo = np.random.default_rng(0).integers(0, 100, (50, 400, 3), np.uint8)
    page = with_legend(photo, NAMES, (PALETTE[0], None, PALETTE[2]))
    np.testing.assert_array_equal(page[:50], photo)
    beneath = page[50:]
    assert count(beneath, PALETTE[0]) > 100 and count(beneath, PALETTE[2]) > 100
    assert count(beneath, PALETTE[1]) == 0  # not painted: an empty swatch, and a name
    both = with_legend(photo, NAMES[::2], PALETTE[::2])[50:]
    assert count(beneath, (32, 33, 36)) > count(both, (32, 33, 36)) > 20
    # Letters grow with the picture; a narrow one is given room for them.
    large = with_legend(np.zeros((9, 4000, 3), np.uint8), NAMES, PALETTE)
    assert count(large, PALETTE[0]) > 9 * count(page, PALETTE[0])
    narrow = with_legend(photo[:, :30], NAMES, PALETTE)
    assert narrow.shape[1] > 200 and (narrow[:50, 30:] == 255).all()
    np.testing.assert_array_equal(narrow[:50, :30], photo[:, :30])
    with pytest.raises(ValueError, match="2 colours for 3 class names"):
        with_legend(photo, NAMES, PALETTE[:2])


def test_classes_that_were_found():
    image, class_id = np.full((40, 400, 3), 90, np.uint8), np.zeros((40, 400), np.uint8)
    class_id[:, 200:] = 2
    plain = draw_classes(image, class_id, NAMES, PALETTE, labels=False)
    np.testing.assert_array_equal(plain, overlay(image, class_id, PALETTE))
    page = draw_classes(image, class_id, NAMES, PALETTE)
    np.testing.assert_array_equal(page[:40], plain)
    # Blue, and red without a colour; no green.
    beneath = page[40:]
    assert count(beneath, PALETTE[2]) > 100
    assert count(beneath, PALETTE[0]) == count(beneath, PALETTE[1]) == 0
    beneath = draw_classes(image, class_id, NAMES, PALETTE, clear=())[40:]
    assert count(beneath, PALETTE[0]) > 100
    # Without names and colours, and with ids that no one announced.
    picture = draw_classes(image, class_id + np.int32(300), clear=(300,))
    np.testing.assert_array_equal(picture[:40, :200], image[:, :200])
    assert (picture[:40, 200:] != image[:, 200:]).any() and picture.shape[0] > 60


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
    with pytest.raises(ValueError, match="opacity must lie in"):
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


def test_difference():
    rng = np.random.default_rng(0)
    label, first, second = rng.integers(0, 3, (3, 9, 11))
    label[:2] = 255
    found = difference(label, first, second)
    names = {
        (True, True): BOTH_RIGHT,
        (True, False): ONLY_FIRST,
        (False, True): ONLY_SECOND,
        (False, False): BOTH_WRONG,
    }
    for place, truth in np.ndenumerate(label):
        expected = names[bool(first[place] == truth), bool(second[place] == truth)]
        assert found[place] == (255 if truth == 255 else expected)
    assert len(np.unique(found)) == 5  # all of them occurred
    np.testing.assert_array_equal(difference(label % 3, first, first) % 3, 0)
    with pytest.raises(ValueError, match=r"\(9, 11\) and predictions \(9, 11\) and \(8, 11\)"):
        difference(label, first, second[1:])


def test_errors_over_a_photo():
    rng = np.random.default_rng(0)
    image = np.repeat(rng.integers(0, 256, (9, 11, 1), np.uint8), 3, -1)
    label, predicted = rng.integers(0, 3, (2, 9, 11))
    label[:2] = 255
    picture = errors(image, label, predicted)
    for place, truth in np.ndenumerate(label):
        grey = 96 + 14 * (int(image[(*place, 0)]) // 32)
        right = [grey] * 3 if predicted[place] == truth else [*ERROR_COLOR]
        assert picture[place].tolist() == ([*IGNORE_COLOR] if truth == 255 else right)
    assert picture.dtype == np.uint8 and len(np.unique(picture[..., 0])) == 8 + 2
    assert count(errors(image, label, label), ERROR_COLOR) == 0
    for wrong in (
        (image[1:], label),
        (image, label[1:]),
        (image / 1, label),
        (image[..., 0], label),
    ):
        with pytest.raises(ValueError, match="its label and prediction"):
            errors(*wrong, predicted)
    with pytest.raises(ValueError, match=r"\(9, 11\) and \(9, 10\)"):
        errors(image, label, predicted[:, 1:])


def test_names_of_curves():
    rows = [
        {"step": 1, "seconds": 2.0, "loss": 1.0, "miou": 0.1, "rate": 0.1},
        {"step": 2, "val_loss": 1.0, "val_miou": 0.2, "val_iou/a": 0.2, "val_other_loss": 3.0},
    ]
    assert curve_names(rows) == {
        "loss": ["loss", "val_loss", "val_other_loss"],
        "score": ["miou", "val_miou"],
        "classes": ["val_iou/a"],
    }
    assert curve_names([]) == {"loss": [], "score": [], "classes": []}


def test_heat():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (24, 40, 3), np.uint8)
    weights = np.zeros((3, 5))
    weights[1, 3], weights[2, 0] = 0.4, 0.1
    picture = heat(image, weights).astype(int)
    assert picture.shape == image.shape
    # Redness and greenness over blue, cell by cell: the heaviest is the most yellow.
    cells = (picture[..., 0] + picture[..., 1] - picture[..., 2]).reshape(3, 8, 5, 8)
    means = cells.mean((1, 3))
    order = np.argsort(means.ravel())[::-1]
    assert order[0] == 1 * 5 + 3 and order[1] == 2 * 5 + 0
    # A quarter of the largest weight has the middle of the colours.
    grey = np.full_like(image, 100)
    flat = heat(grey, weights)
    for place, color, opacity in (
        ((12, 28), HEAT_PALETTE[4], 0.95),
        ((20, 4), HEAT_PALETTE[2], 0.65),
        ((4, 4), HEAT_PALETTE[0], 0.35),
    ):
        expected = 80 * (1 - opacity) + np.array(color) * opacity
        np.testing.assert_allclose(flat[place], expected, atol=1)
    np.testing.assert_array_equal(heat(grey, weights / 7), flat)  # each map has its own scale
    # Sizes that the cells do not divide: the same pixels as Pillow's nearest.
    small = Image.fromarray(flat[4::8, 4::8])
    np.testing.assert_array_equal(
        heat(np.full((7, 11, 3), 100, np.uint8), weights),
        small.resize((11, 7), Image.Resampling.NEAREST),
    )
    np.testing.assert_array_equal(
        heat(grey, np.zeros((3, 5))), np.broadcast_to(flat[4, 4], grey.shape)
    )


def test_mark():
    image = np.zeros((60, 80, 3), np.uint8)
    marked = mark(image, (20, 50))
    ring = np.argwhere((marked == np.array(POINT_COLOR)).all(-1))
    np.testing.assert_allclose(ring.mean(0), (20, 50), atol=0.5)
    assert not marked[20, 50].any()  # what is pointed at stays to be seen
    np.testing.assert_array_equal(
        heat(image, np.ones((2, 2)), (20, 50))[tuple(ring[0])], POINT_COLOR
    )
    assert not image.any()
    mark(image, (0, 79))  # partly outside


def test_errors_of_heat():
    image = np.zeros((8, 8, 3), np.uint8)
    for weights in (np.ones(4), -np.ones((2, 2)), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="weights are finite floats"):
            heat(image, weights)
    with pytest.raises(ValueError, match="an image is uint8"):
        heat(image[..., 0], np.ones((2, 2)))


def test_a_picture_is_saved_whole_or_not_at_all(tmp_path):
    ids = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    save_picture(tmp_path / "made" / "ids.png", ids)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "made" / "ids.png")), ids)
    before = (tmp_path / "made" / "ids.png").read_bytes()
    with pytest.raises(TypeError):
        save_picture(tmp_path / "made" / "ids.png", np.zeros((3, 4, 7)))
    with pytest.raises(ValueError, match="unknown file extension"):
        save_picture(tmp_path / "made" / "ids.photo", ids)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["ids.png"]
    assert (tmp_path / "made" / "ids.png").read_bytes() == before
