"""Pictures of instances, pixel by pixel."""

from types import SimpleNamespace

import numpy as np
import pytest

from isa_tf.visualize import IGNORE_COLOR, draw_instances, instance_sheet

PALETTE = ((200, 0, 0), (0, 160, 0), (0, 0, 220))
NAMES = ("cup", "dog", "tree")


def instances(*each, size=(600, 800), crowd=None, scores=None):
    """Instances of (box, class), whose masks fill the boxes."""
    boxes = np.array([box for box, _ in each]).reshape(-1, 4)
    masks = np.zeros((len(each), *size), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    some = {"boxes": boxes, "classes": np.array([c for _, c in each], int), "masks": masks}
    if scores is not None:
        some["scores"] = np.array(scores)
    if crowd is not None:
        some["crowd"] = np.array(crowd)
    return SimpleNamespace(**some)


def photo(size=(600, 800), value=100):
    return np.full((*size, 3), value, np.uint8)


def test_masks_are_mixed_in_and_their_rims_are_not():
    some = instances(([100, 200, 300, 500], 1))
    picture = draw_instances(
        photo(), some, palette=PALETTE, opacity=0.25, boxes=False, labels=False
    )
    assert picture.shape == (600, 800, 3) and picture.dtype == np.uint8
    inside = np.zeros((600, 800), bool)
    inside[200:500, 100:300] = True
    core = np.zeros_like(inside)
    core[202:498, 102:298] = True  # lines are two pixels wide at this size
    assert (picture[~inside] == 100).all()
    assert (picture[inside & ~core] == PALETTE[1]).all()
    np.testing.assert_array_equal(np.unique(picture[core], axis=0), [[75, 115, 75]])
    # All of it opaque, none of it at all, and nothing to draw.
    for opacity, color in ((1, PALETTE[1]), (0, (100, 100, 100))):
        picture = draw_instances(photo(), some, None, PALETTE, opacity, labels=False)
        assert (picture[core] == color).all()
    np.testing.assert_array_equal(draw_instances(photo(), instances()), photo())


def test_smaller_ones_lie_on_top_in_whatever_order_they_come():
    large, small = ([100, 100, 500, 500], 0), ([200, 200, 300, 300], 2)
    for each in ((large, small), (small, large)):
        picture = draw_instances(photo(), instances(*each), None, PALETTE, 1.0, labels=False)
        assert (picture[250, 250] == PALETTE[2]).all() and (picture[450, 250] == PALETTE[0]).all()


def test_two_of_a_class_are_told_apart():
    some = instances(([0, 0, 100, 100], 0), ([200, 0, 300, 100], 0), ([400, 0, 500, 100], 1))
    picture = draw_instances(photo(), some, None, PALETTE, 1.0, labels=False)
    first, second, other = picture[50, 50], picture[50, 250], picture[50, 450]
    assert (first == PALETTE[0]).all() and (other == PALETTE[1]).all()
    assert (second != first).any() and second[0] > second[1]


def test_boxes_lie_on_their_corners():
    some = instances(([100, 200, 300, 500], 1))
    some.masks[:] = False
    changed = (draw_instances(photo(), some, None, PALETTE, labels=False) != 100).any(-1)
    rows, columns = (np.flatnonzero(changed.any(axis)) for axis in (1, 0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (200, 499, 100, 299)
    assert changed.sum() == 2 * 2 * (200 + 300) - 4 * 4


def test_labels_hide_no_other():
    """Many at one place: each is whole, and the highest score has the first place."""
    box = [300, 300, 420, 420]
    few = instances((box, 0), (box, 1), scores=[0.2, 0.9])
    picture = draw_instances(photo(), few, NAMES, PALETTE, 0.0, boxes=False)
    rim = draw_instances(photo(), few, NAMES, PALETTE, 0.0, boxes=False, labels=False)
    where = [(np.abs(picture.astype(int) - color).sum(-1) == 0) for color in PALETTE[:2]]
    above = np.flatnonzero((picture[:299] != 100).any((1, 2)))
    assert above.size and where[1][above[0] : 299].any()
    assert (picture != rim).any()
    many = instances(*[(box, 0)] * 40, scores=np.linspace(0, 1, 40))
    some = (draw_instances(photo(), many, NAMES, PALETTE, 0.0, boxes=False) != 100).any(-1).mean()
    assert some < 0.12  # those without room are left out


def test_crowds_are_grey():
    some = instances(([100, 100, 300, 300], 0), ([400, 100, 700, 400], 1), crowd=[False, True])
    picture = draw_instances(photo(), some, NAMES, PALETTE, labels=False)
    np.testing.assert_array_equal(
        picture[250, 550], np.round(100 + 0.75 * (np.array(IGNORE_COLOR) - 100))
    )
    assert (picture[101, 200] == PALETTE[0]).all()


def test_its_size():
    some = instances(([10, 10, 40, 30], 1), size=(45, 60))
    small = draw_instances(photo((45, 60)), some, NAMES, PALETTE, 1.0, boxes=False, labels=False)
    assert small.shape == (360, 480, 3)  # enlarged, so that letters have room
    painted = (small == PALETTE[1]).all(-1)
    assert abs(painted.sum() - 64 * 20 * 30) < 0.03 * 64 * 600 and painted[160, 200]
    large = instances(([100, 200, 300, 500], 1))
    picture = draw_instances(photo(), large, NAMES, PALETTE, 1.0, labels=False, width=400)
    painted = (picture == PALETTE[1]).all(-1)
    assert picture.shape == (300, 400, 3) and painted[100:250, 50:150].all()
    assert painted.sum() == 150 * 100
    assert draw_instances(photo((1, 900)), instances(size=(1, 900)), width=10).shape == (1, 10, 3)


def test_a_sheet():
    some, none = instances(([100, 200, 300, 500], 1)), instances()
    page = instance_sheet(
        [(photo(), some, none)] * 2, NAMES, PALETTE, ["a", "b"], "two", cell_width=200
    )
    assert page.shape[1] == 2 * 200 + 12 + 2 * 24 and page.shape[0] > 2 * 150
    cells = draw_instances(photo(), some, NAMES, PALETTE, width=200)
    found = [(page[y : y + 150, 24:224] == cells).all() for y in range(page.shape[0] - 150)]
    assert sum(found) == 2
    with pytest.raises(ValueError, match="row 0 has 1 cells for 2 titles"):
        instance_sheet([(photo(), some)])


def test_errors():
    some = instances(([1, 1, 5, 5], 1), size=(8, 9))
    for change, message in (
        ({"masks": some.masks[:, :-1]}, r"masks are bool \(1, 8, 9\)"),
        ({"masks": some.masks.astype(int)}, "got int64"),
        ({"boxes": np.zeros((2, 4))}, "2 boxes for 1 classes"),
        ({"classes": np.array([5])}, "no name or colour for class 5"),
        ({"classes": np.array([-1])}, "no name or colour for class -1"),
    ):
        wrong = SimpleNamespace(**{**vars(some), **change})
        with pytest.raises(ValueError, match=message):
            draw_instances(photo((8, 9)), wrong, NAMES, PALETTE)
    with pytest.raises(ValueError, match="opacity must lie in"):
        draw_instances(photo((8, 9)), some, opacity=2)
    with pytest.raises(ValueError, match="an image is uint8"):
        draw_instances(np.zeros((8, 9, 3)), some)
