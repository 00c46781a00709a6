import keras
import numpy as np
import pytest
import reference
from batteries import random_inputs, randomize
from PIL import Image

from isa_tf.data.base import voc_palette
from isa_tf.layers import InterlacedSparseAttention, SelfAttention2D, ShortRangeAttention
from isa_tf.models import Segmenter
from isa_tf.visualize import (
    BOTH_RIGHT,
    BOTH_WRONG,
    HEAT_PALETTE,
    IGNORE_COLOR,
    ONLY_FIRST,
    ONLY_SECOND,
    POINT_COLOR,
    colorize,
    difference,
    heat,
    influence,
    legend,
    mark,
    overlay,
    read_attention,
    sheet,
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


# === Attention ===


def matrix(affinity, kind, partition, padded):
    """The N x N matrix of an attention over a padded map, entry by entry."""
    full = np.zeros((padded[0] * padded[1],) * 2)
    groups = reference.groups(*padded, partition, kind)
    assert affinity.shape == (len(groups), len(groups[0]), len(groups[0]))
    for group, weights in zip(groups, affinity, strict=True):
        for a, (row, column) in enumerate(group):
            for b, (other_row, other_column) in enumerate(group):
                i, j = row * padded[1] + column, other_row * padded[1] + other_column
                full[i, j] = weights[a, b]
    return full


def padded_map(size, partition):
    amounts = [reference.padding(n, p) for n, p in zip(size, partition, strict=True)]
    return tuple(before for before, _ in amounts), tuple(
        n + sum(amount) for n, amount in zip(size, amounts, strict=True)
    )


@pytest.mark.parametrize("mask", [True, False], ids=["masked", "unmasked"])
@pytest.mark.parametrize(
    ("size", "partition", "order", "depth"),
    [
        ((5, 7), (2, 3), "long_short", 1),
        ((5, 7), (2, 3), "short_long", 1),
        ((9, 6), (4, 4), "long_short", 2),
        ((3, 5), (4, 2), "short_long", 2),
        ((4, 6), (2, 3), "long_short", 1),
        ((5, 7), (3, 2), "short", 1),
        ((5, 4), (1, 1), "long", 1),
    ],
    ids=str,
)
def test_influence_is_a_row_of_the_product(size, partition, order, depth, mask):
    layer = InterlacedSparseAttention(
        partition, key_filters=4, order=order, depth=depth, mask_padding=mask
    )
    layer.build((1, *size, 3))
    randomize(layer)
    _, affinities = layer(random_inputs((1, *size, 3)), return_affinity=True)
    affinities = [np.asarray(affinity[0]) for affinity in affinities]
    kinds = order.split("_") * depth
    offset, padded = padded_map(size, partition)
    product = np.eye(padded[0] * padded[1])
    for affinity, kind in zip(affinities, kinds, strict=True):
        product = matrix(affinity, kind, partition, padded) @ product
    image = np.zeros(padded, bool)
    image[tuple(slice(o, o + n) for o, n in zip(offset, size, strict=True))] = True
    for position in np.ndindex(size):
        found = influence(affinities, kinds, partition, offset, size, position)
        row, column = np.add(position, offset)
        expected = product[row * padded[1] + column].reshape(padded)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
        assert found.shape == padded and abs(found.sum() - 1) < 1e-5
        if len(kinds) > 1 or partition == (1, 1):
            assert (found[image] > 0).all()  # every position is heard
        if mask:
            assert found[~image].sum() == 0
        elif not image.all() and len(kinds) > 1:
            assert found[~image].sum() > 0


def averaging(layer, channels):
    """Makes an attention module hand on what it attends to, and nothing else."""
    randomize(layer)
    for attention in layer.attentions:
        attention.value.kernel.assign(np.eye(channels)[None, None])
        attention.output_conv.conv.kernel.assign(np.eye(channels)[None, None])
        norm = attention.output_conv.norm
        zeros, ones = np.zeros(channels), np.ones(channels)
        norm.set_weights([ones * np.sqrt(1 + reference.EPSILON), zeros, zeros, ones])


@pytest.mark.parametrize("order", ["long_short", "short_long"])
def test_attentions_read_from_a_model_give_its_outputs(order):
    inputs = keras.Input((None, None, 3))
    x = keras.layers.AveragePooling2D(4, padding="same")(inputs)
    features = keras.layers.Conv2D(2, 1, activation="softplus")(x)
    layer = InterlacedSparseAttention([2, (4, 3)], depth=2, order=order, fuse=False)
    model = keras.Model(inputs, layer(features))
    averaging(layer, 2)
    image = np.random.default_rng(0).integers(0, 256, (26, 18, 3), np.uint8)
    batch = image[None].astype(np.float32)
    outputs = np.split(model(batch)[0].numpy(), 2, axis=-1)  # one a partition
    read_by_all = keras.Model(inputs, features)(batch)[0].numpy()
    attentions = read_attention(model, image)
    assert [a.partition for a in attentions] == [(2, 2), (4, 3)]
    for attention, output in zip(attentions, outputs, strict=True):
        assert attention.size == (7, 5) and attention.kinds == order.split("_") * 2
        (top, left), (height, width) = attention.offset, attention.size
        for position in [(0, 0), (6, 4), (3, 2)]:
            weights = influence(*attention, position)[top : top + height, left : left + width]
            np.testing.assert_allclose(
                (weights[..., None] * read_by_all).sum((0, 1)), output[position], rtol=1e-4
            )


def test_read_attention_of_layers_that_stand_alone():
    inputs = keras.Input((None, None, 3))
    x = keras.layers.AveragePooling2D(2)(inputs)
    x = SelfAttention2D(key_filters=2, name="dense")(x)
    model = keras.Model(inputs, ShortRangeAttention((2, 3), key_filters=2, name="near")(x))
    image = np.random.default_rng(0).integers(0, 256, (10, 14, 3), np.uint8)
    (dense,), (near,) = (read_attention(model, image, name) for name in ("dense", "near"))
    assert dense.kinds == ["long"] and dense.partition == (1, 1) and dense.offset == (0, 0)
    assert dense.affinities[0].shape == (1, 35, 35)
    assert near.kinds == ["short"] and near.offset == (0, 1) and near.size == (5, 7)
    # In the block of rows 2 and 3 and columns 0 to 2, the first column is padding, masked.
    block = np.argwhere(influence(*near, (2, 1)) > 0)
    np.testing.assert_array_equal(block, [[2, 1], [2, 2], [3, 1], [3, 2]])


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


def test_errors_of_attention():
    affinity = np.full((4, 4, 4), 0.25)
    sound = {
        "affinities": [affinity],
        "kinds": ["long"],
        "partition": (2, 2),
        "offset": (0, 0),
        "size": (4, 4),
        "position": (0, 0),
    }
    np.testing.assert_array_equal(influence(**sound)[::2, ::2], 0.25)
    with pytest.raises(ValueError, match=r"position \(4, 0\) is not in a map of \(4, 4\)"):
        influence(**{**sound, "position": (4, 0)})
    with pytest.raises(ValueError, match=r"position \(0, -1\)"):
        influence(**{**sound, "position": (0, -1)})
    with pytest.raises(ValueError, match="2 kinds for 1 affinities"):
        influence(**{**sound, "kinds": ["long", "short"]})
    with pytest.raises(ValueError, match=r"has the shape \(4, 4, 4\), got \(1, 16, 16\)"):
        influence(**{**sound, "affinities": [np.ones((1, 16, 16))]})
    image = np.zeros((8, 8, 3), np.uint8)
    for weights in (np.ones(4), -np.ones((2, 2)), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="weights are finite floats"):
            heat(image, weights)
    with pytest.raises(ValueError, match="an image is uint8"):
        heat(image[..., 0], np.ones((2, 2)))

    without = Segmenter("tiny", None, 3, head_filters=4, name="plain")
    with pytest.raises(ValueError, match="plain has no attention to show"):
        read_attention(without, image)
    inputs = keras.Input((8, 8, 3))
    x = SelfAttention2D(key_filters=2, name="one")(inputs)
    model = keras.Model(inputs, SelfAttention2D(key_filters=2, name="two")(x), name="pair")
    with pytest.raises(ValueError, match="pair has several attentions, name one: one, two"):
        read_attention(model, image)
    with pytest.raises(ValueError, match="has no attention 'three'; it has one, two"):
        read_attention(model, image, "three")
    with pytest.raises(ValueError, match=r"takes images of \(8, 8\) .* this one is \(8, 9\)"):
        read_attention(model, np.zeros((8, 9, 3), np.uint8), "one")
