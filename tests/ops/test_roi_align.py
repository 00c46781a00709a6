"""RoIAlign against loops over bins and samples."""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from isa_tf import ops

# In pixels of an image of 40 x 48: within, over the edges, without area, outside, inside out, all.
BOXES = [
    [3.3, 5.1, 20.7, 30.2],
    [-9, -7, 11, 13],
    [30, 35, 60, 55],
    [8, 8, 8, 8],
    [12, 40, 30, 40],
    [-90, -90, -80, -80],
    [90, 90, 99, 99],
    [48, 40, 48, 40],
    [0, 0, 48, 40],
    [0, 0, 0, 0],
]
BOXES = np.float32([BOXES, np.float32(BOXES)[::-1] + 0.77])
SCALE = 1 / 4
# No side is a whole number of bins long, where rounding decides how many samples there are.
UNEVEN = BOXES * np.float32(0.987)


def bilinear(image, y, x):
    """Of an image (H, W, C) at a place; the edges go on for one position, then is nothing."""
    height, width = image.shape[:2]
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(image.shape[2])
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    total = 0.0
    for row, column in itertools.product(
        {math.floor(y), math.ceil(y)}, {math.floor(x), math.ceil(x)}
    ):
        total += (1 - abs(y - row)) * (1 - abs(x - column)) * image[row, column]
    return total


def by_loops(image, box, size, scale, samples, aligned):
    """One box over one image; `samples` None for as many as a bin is long."""
    x1, y1, x2, y2 = (float(v) * scale - (0.5 if aligned else 0) for v in box)
    height, width = y2 - y1, x2 - x1
    if not aligned:
        height, width = max(height, 1), max(width, 1)
    rows, columns = samples or math.ceil(height / size[0]), samples or math.ceil(width / size[1])
    out = np.zeros((*size, image.shape[2]))
    for i, j in np.ndindex(*size):
        for r, c in np.ndindex(rows, columns):
            y = y1 + (i + (r + 0.5) / rows) * height / size[0]
            x = x1 + (j + (c + 0.5) / columns) * width / size[1]
            out[i, j] += bilinear(image, y, x) / (rows * columns)
    return out


def batch_by_loops(x, boxes, *rest):
    return np.array(
        [[by_loops(image, box, *rest) for box in own] for image, own in zip(x, boxes, strict=True)]
    )


def a_map(height=10, width=12, channels=3, seed=0):
    return np.random.default_rng(seed).normal(size=(2, height, width, channels)).astype("float32")


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(
    ("size", "samples"), [((3, 2), 2), ((7, 7), 2), ((2, 3), 1), ((2, 2), 3), ((2, 3), 0)]
)
def test_equals_loops(size, samples, aligned):
    x, boxes = a_map(), BOXES if samples else UNEVEN
    found = ops.roi_align(x, boxes, size, SCALE, samples, aligned, jit_compile=False)
    expected = batch_by_loops(x.astype(float), boxes, size, SCALE, samples, aligned)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    # Outside is nothing at all, rather than an edge that goes on.
    assert not found[0, 5:7].numpy().any()


@pytest.mark.parametrize("aligned", [False, True])
def test_compiled_equals_eager(aligned):
    x = a_map()
    eager = ops.roi_align(x, BOXES, (3, 2), SCALE, 2, aligned, jit_compile=False)
    alone = ops.roi_align(x, BOXES, (3, 2), SCALE, 2, aligned)
    np.testing.assert_allclose(alone, eager, atol=1e-5)

    @tf.function(
        input_signature=[tf.TensorSpec((None, None, None, 3)), tf.TensorSpec((None, None, 4))],
        jit_compile=True,
    )
    def inside(x, boxes):
        return ops.roi_align(x, boxes, (3, 2), SCALE, 2, aligned)

    np.testing.assert_allclose(inside(x, BOXES), eager, atol=1e-5)


def levels_by_loops(boxes):
    return [
        min(max(math.floor(4 + math.log2(math.sqrt(a) / 224) + 1e-6), 2), 5) - 2 if a else 0
        for a in ((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes.astype(float))
    ]


def test_levels_equal_the_formula():
    rng = np.random.default_rng(0)
    boxes = np.sort(rng.uniform(0, 1000, (300, 2, 2)), 1).reshape(-1, 4).astype("float32")
    exact = [[0, 0, s, s] for s in (0, 111, 112, 113, 224, 448, 447, 896)] + [[5, 5, 61, 229]]
    boxes = np.concatenate([np.float32(exact), boxes])
    found = ops.roi_levels(boxes, 2, 5).numpy()
    assert found.tolist() == levels_by_loops(boxes)
    assert found[:9].tolist() == [0, 0, 1, 1, 2, 3, 2, 3, 1]
    assert set(found) == {0, 1, 2, 3}
    assert ops.roi_levels(boxes[4:5] - [0, 0, 400, 0], 2, 5).numpy().tolist() == [0]


PYRAMID = [a_map(16 // 2**i, 24 // 2**i, 2, seed=i) for i in range(3)]
# Of each level, by a canonical size of 28 pixels at level 3; one beyond the edge, one of no area.
LEVELLED = [[4, 5, 15, 12], [10, 3, 40, 35], [2, 1, 90, 62], [60, 30, 130, 80], [0, 0, 0, 0]]
LEVELLED = np.float32([LEVELLED, LEVELLED[::-1]])
CANONICAL = {"canonical_size": 28, "canonical_level": 3}


@pytest.mark.parametrize("samples", [2, 0])
@pytest.mark.parametrize("aligned", [False, True])
def test_each_box_reads_the_level_of_its_size(aligned, samples):
    options = {"aligned": aligned, "sampling_ratio": samples, **CANONICAL}
    found = ops.pyramid_roi_align(PYRAMID, LEVELLED, (3, 3), **options)
    levels = ops.roi_levels(LEVELLED, 2, 4, **CANONICAL).numpy()
    assert levels.tolist() == [[0, 1, 2, 2, 0], [0, 2, 2, 1, 0]]
    for image, box in np.ndindex(*levels.shape):
        level = levels[image, box]
        x = PYRAMID[level][image].astype(float)
        expected = by_loops(x, LEVELLED[image, box], (3, 3), 2.0 ** -(2 + level), samples, aligned)
        np.testing.assert_allclose(found[image, box], expected, atol=2e-5)


def test_pyramid_with_unknown_sizes_compiled():
    specs = [tf.TensorSpec((None, None, None, 2))] * 3, tf.TensorSpec((None, 5, 4))

    @tf.function(input_signature=specs, jit_compile=True)
    def inside(maps, boxes):
        return ops.pyramid_roi_align(maps, boxes, (2, 2), **CANONICAL)

    eager = ops.pyramid_roi_align(PYRAMID, LEVELLED, (2, 2), **CANONICAL, jit_compile=False)
    np.testing.assert_allclose(inside(PYRAMID, LEVELLED), eager, atol=1e-5)


@pytest.mark.parametrize(("samples", "jit_compile"), [(2, False), (2, True), (0, False)])
def test_gradients_equal_finite_differences(samples, jit_compile):
    maps, weights = PYRAMID, np.random.default_rng(5).normal(size=(2, 5, 2, 2, 2))

    def gradients(*maps):
        with tf.GradientTape() as tape:
            tape.watch(maps)
            options = {"sampling_ratio": samples, "jit_compile": jit_compile, **CANONICAL}
            y = ops.pyramid_roi_align(maps, LEVELLED, (2, 2), **options)
            loss = tf.reduce_sum(y * tf.constant(weights, tf.float32))
        return tape.gradient(loss, maps)

    found = gradients(*map(tf.constant, maps))
    levels = ops.roi_levels(LEVELLED, 2, 4, **CANONICAL).numpy()

    def loss(maps):
        return sum(
            (
                by_loops(
                    maps[level][i], LEVELLED[i, k], (2, 2), 2.0 ** -(2 + level), samples, False
                )
                * weights[i, k]
            ).sum()
            for (i, k), level in np.ndenumerate(levels)
        )

    maps, step = [m.astype(float) for m in maps], 1e-3
    places = [(level, p) for level in range(3) for p in np.argwhere(np.abs(found[level]) > 1e-3)]
    chosen = np.random.default_rng(0).choice(len(places), 20, replace=False)
    still = [(level, tuple(np.argwhere(found[level] == 0)[0])) for level in range(2)]
    for level, place in [(places[i][0], tuple(places[i][1])) for i in chosen] + still:
        ends = []
        for way in (step, -step):
            moved = [m.copy() for m in maps]
            moved[level][place] += way
            ends.append(loss(moved))
        difference = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(found[level][place], difference, atol=1e-5)


def test_as_many_samples_as_a_bin_is_long_with_unknown_sizes():
    """In a graph of one signature, gradients included."""
    x, weights = a_map(), np.random.default_rng(5).normal(size=(2, 10, 3, 2, 3)).astype("float32")
    specs = [tf.TensorSpec((None, None, None, 3)), tf.TensorSpec((None, None, 4))]

    def both(x, boxes):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = ops.roi_align(x, boxes, (3, 2), SCALE, 0, True)
            loss = tf.reduce_sum(y * weights)
        return y, tape.gradient(loss, x)

    found, eager = tf.function(both, input_signature=specs)(x, UNEVEN), both(tf.constant(x), UNEVEN)
    expected = batch_by_loops(x.astype(float), UNEVEN, (3, 2), SCALE, None, True)
    np.testing.assert_allclose(found[0], expected, atol=2e-5)
    assert np.abs(eager[1]).max() > 0.1
    np.testing.assert_allclose(found[1], eager[1], atol=1e-5)


def test_half_precision_is_summed_in_single():
    x = a_map().astype("float16")
    found = ops.roi_align(x, BOXES, (3, 2), SCALE)
    assert found.dtype == tf.float16
    expected = ops.roi_align(x.astype("float32"), BOXES, (3, 2), SCALE)
    np.testing.assert_array_equal(found, tf.cast(expected, tf.float16))


def test_what_is_known_of_shapes_stays_known():
    @tf.function(input_signature=[tf.TensorSpec((None, 10, 12, 3)), tf.TensorSpec((None, 7, 4))])
    def shape(x, boxes):
        known.append(ops.roi_align(x, boxes, (3, 2)).shape.as_list())
        masks = ops.crop_masks(x[:, None, ..., 0], boxes, tf.zeros_like(boxes[..., 0]), (4, 4))
        known.append(masks.shape.as_list())
        known.append(ops.paste_masks(masks, boxes, (9, 8)).shape.as_list())

    known = []
    shape.get_concrete_function()
    assert known == [[None, 7, 3, 2, 3], [None, 7, 4, 4], [None, 7, 9, 8]]


def test_no_boxes():
    assert ops.roi_align(a_map(), np.zeros((2, 0, 4), "float32"), (3, 2)).shape == (2, 0, 3, 2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.roi_align(a_map(), BOXES[0], (2, 2)), r"boxes must be \(B, K, 4\)"),
        (lambda: ops.roi_align(a_map(), BOXES, (0, 2)), "must be positive and"),
        (lambda: ops.roi_align(a_map(), BOXES, (2, 2), sampling_ratio=-1), "at least 0, got"),
        (lambda: ops.pyramid_roi_align([], BOXES, (2, 2)), "one map at least, got none"),
    ],
)
def test_what_is_wrong_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
