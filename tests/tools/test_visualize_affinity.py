import re

import keras
import numpy as np
import pytest
from absl import app
from PIL import Image

from isa_tf.attention_maps import influence, read_attention
from isa_tf.layers import InterlacedSparseAttention, SelfAttention2D
from isa_tf.models import Segmenter
from isa_tf.visualize import heat, mark
from tools import visualize_affinity

WIDTH, MARGIN, GAP = 360, 24, 12
STRIDE = 4


def looking_for_light(layer):
    """Hand-made weights: every query looks for bright keys, and what it finds is handed on."""
    for attention in getattr(layer, "attentions", [layer]):
        for conv in [*attention.query, *attention.key, attention.output_conv]:
            conv.norm.set_weights(
                [np.full(w.shape, v) for w, v in zip(conv.norm.weights, [1, 0, 0, 1], strict=True)]
            )
        for conv in attention.query:
            conv.conv.kernel.assign(np.zeros(conv.conv.kernel.shape))
            conv.norm.beta.assign([1.0])
        for conv in attention.key:
            conv.conv.kernel.assign(np.ones(conv.conv.kernel.shape))
        for same in (attention.value, attention.output_conv.conv):
            same.kernel.assign(np.eye(3)[None, None])


def save(path, layer, image_size=(None, None)):
    inputs = keras.Input((*image_size, 3))
    x = keras.layers.AveragePooling2D(STRIDE, padding="same")(inputs)
    x = keras.layers.Rescaling(1 / 255)(x)
    outputs = keras.layers.Conv2D(2, 1)(layer(x))
    looking_for_light(layer)
    keras.Model(inputs, outputs).save(path)
    return path


@pytest.fixture
def photo(tmp_path):
    """A dark photo of 28 x 44, a map of 7 x 11, one of whose cells is bright: row 4, column 7."""
    image = np.full((28, 44, 3), 20, np.uint8)
    image[16:20, 28:32] = 250
    Image.fromarray(image).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def draw(run, photo, tmp_path):
    def draw(model, *arguments, point="9,13"):
        output = tmp_path / "made" / "picture.png"
        status, printed = run(
            visualize_affinity,
            f"--model={model}",
            f"--image={photo}",
            f"--point={point}",
            f"--output={output}",
            *arguments,
        )
        assert status == 0 and printed.splitlines()[-1] == str(output)
        found = re.findall(
            r"(\w+), ([\w -]+): heaviest ([\d.]+) % at \((\d+), (\d+)\); ([\d.]+) % on padding",
            printed,
        )
        lines = [
            (partition, name, float(weight), (int(y), int(x)), float(share))
            for partition, name, weight, y, x, share in found
        ]
        return np.asarray(Image.open(output)), lines, printed

    return draw


def panel_heights(picture):
    """Where the rows of panels begin and end: where their left edge is not paper."""
    inside = (picture[:, MARGIN] != 255).any(-1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inside, [0]])))
    runs = edges.reshape(-1, 2)
    return [(a, b) for a, b in runs if b - a > 100]


def panels(picture, count):
    """All panels of the picture, row by row."""
    lefts = [MARGIN + i * (WIDTH + GAP) for i in range(count)]
    return [
        [picture[top:bottom, left : left + WIDTH] for left in lefts]
        for top, bottom in panel_heights(picture)
    ]


def test_the_heaviest_is_where_the_hand_put_it(draw, photo, tmp_path):
    layer = InterlacedSparseAttention((4, 4), key_filters=1)
    model = save(tmp_path / "m.keras", layer)
    picture, lines, printed = draw(model)
    # The map is padded to 8x12, at the bottom and the right. The long group of (2, 3), rows 2 and
    # 6 of columns 3, 7 and 11 (padding), has nothing bright; in its block, rows and columns 0 to
    # 3, (0, 3) has heard the bright (4, 7).
    assert "pixel (9, 13) lies at (2, 3) of a map of 7x11" in printed
    assert [line[:2] for line in lines] == [
        ("4x4", "long-range"),
        ("4x4", "short-range"),
        ("4x4", "long then short"),
    ]
    assert lines[0][2] == 25
    assert lines[1][3] == (0, 3) and lines[2][3] == (4, 7)
    assert lines[1][2] > lines[2][2] > 20
    # The picture shows these very numbers as colours, at the size of the cells.
    ((marked, long, short, both),) = panels(picture, 4)
    attention = read_attention(keras.models.load_model(model), np.asarray(Image.open(photo)))[0]
    large = Image.open(photo).resize((WIDTH, long.shape[0]), Image.Resampling.LANCZOS)
    point = (2 * 9 + 1) * long.shape[0] // (2 * 28), (2 * 13 + 1) * WIDTH // (2 * 44)
    np.testing.assert_array_equal(marked, mark(large, point))
    weights = influence(*attention, (2, 3))[:7, :11]
    np.testing.assert_array_equal(both, heat(np.asarray(large), weights, point))
    single = influence(attention.affinities[:1], ["long"], *attention[2:], (2, 3))[:7, :11]
    np.testing.assert_array_equal(long, heat(np.asarray(large), single, point))
    assert not np.array_equal(short, both)
    # From within its block the bright cell is seen itself.
    _, lines, _ = draw(model, point="17,25")
    assert lines[1][3] == lines[2][3] == (4, 7)


def test_weight_on_padding_is_told_and_cut_off(draw, tmp_path):
    shares = []
    for mask in (True, False):
        layer = InterlacedSparseAttention((4, 4), key_filters=1, mask_padding=mask)
        _, lines, _ = draw(save(tmp_path / "m.keras", layer), point="27,43")
        shares.append([line[4] for line in lines])
    masked, unmasked = shares
    # Of the last block row 7 and column 11 are padding, 7 of 16 positions, and one of these has
    # heard the bright cell. Masked, the second attention reads them, the first no padding; the
    # long group of (6, 10) itself has none.
    assert masked[0] == masked[2] == unmasked[0] == 0
    assert masked[1] > 50 and unmasked[1] > 40 and unmasked[2] > 5


def test_rows_for_partitions_and_rounds(draw, tmp_path):
    layer = InterlacedSparseAttention([2, (4, 3)], key_filters=1, depth=2, order="short_long")
    model = save(tmp_path / "m.keras", layer)
    picture, lines, _ = draw(model)
    names = ["short-range 2", "long-range 2", "all"]
    assert [line[:2] for line in lines] == [(p, n) for p in ("2x2", "4x3") for n in names]
    assert len(panel_heights(picture)) == 2
    more, lines, _ = draw(model, "--all")
    assert [line[1] for line in lines[:5]] == ["short-range 1", "long-range 1", *names]
    assert more.shape[1] == picture.shape[1] + 2 * (WIDTH + GAP)


@pytest.mark.parametrize("shared", [False, True])
def test_three_levels(draw, tmp_path, shared):
    layer = InterlacedSparseAttention(
        ((2, 1), (2, 3)), key_filters=1, levels=3, share_projections=shared
    )
    _, lines, _ = draw(save(tmp_path / "m.keras", layer))
    names = ["level 0", "level 1", "level 2", "0 then 1 then 2"]
    assert [line[1] for line in lines] == names
    # Of 4x3 positions and padding: from anywhere, what lies in the light is seen in the end.
    assert lines[3][3] == (4, 7)


def test_one_map_for_dense_attention(draw, tmp_path):
    picture, lines, _ = draw(save(tmp_path / "m.keras", SelfAttention2D(key_filters=1)))
    assert [line[:2] for line in lines] == [("1x1", "dense")]
    assert lines[0][3] == (4, 7) and lines[0][4] == 0
    assert picture.shape[1] == 2 * MARGIN + 2 * WIDTH + GAP


def test_a_segmenter(draw, tmp_path):
    arguments = {"output_stride": 4, "head_filters": 4, "auxiliary_level": "c1"}
    model = Segmenter("tiny", InterlacedSparseAttention(8), 3, **arguments)
    model.save(tmp_path / "m.keras")
    _, lines, printed = draw(tmp_path / "m.keras")
    assert "lies at (2, 3) of a map of 7x11" in printed and len(lines) == 3


def test_usage(run, photo, tmp_path):
    model = save(tmp_path / "m.keras", SelfAttention2D(key_filters=1), (28, 44))
    plain = tmp_path / "plain.keras"
    Segmenter("tiny", None, 3, head_filters=4, name="plain").save(plain)
    small = tmp_path / "small.png"
    Image.new("RGB", (44, 20)).save(small)
    output = tmp_path / "no.png"
    sound = {"model": model, "image": photo, "point": "1,2", "output": output}

    def refused(message, *extra, **changes):
        given = [f"--{k}={v}" for k, v in {**sound, **changes}.items() if v is not None]
        with pytest.raises(app.UsageError, match=message):
            run(visualize_affinity, *given, *extra)

    for name in sound:
        refused(f"Give --{name}", **{name: None})
    refused("--plugins: 'no_such_module' cannot be imported", "--plugins=no_such_module")
    refused("--point=28,2 is outside the photo: y is 0 to 27, x 0 to 43", point="28,2")
    refused("--point=0,-1 is outside", point="0,-1")
    for bad in ("1", "1,2,3", "a,b", "1.5,2"):
        refused(f"--point={bad}: give y,x, two whole numbers", point=bad)
    refused("plain has no attention to show", model=plain)
    refused("has no attention 'other'", "--layer=other")
    refused(r"takes images of \(28, 44\) .* this one is \(20, 44\)", image=small)
    refused("none.keras: no such file", model=tmp_path / "none.keras")
    refused("none.png: no such file", image=tmp_path / "none.png")
    refused("a .png file is written", output=tmp_path / "picture.gif")
    refused("photo.png is the --image", output=photo)
    refused("Unexpected arguments: x", "x")
    assert not output.exists()
