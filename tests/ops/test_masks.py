"""Cutting and pasting of masks against loops over bins and pixels."""

import math

import numpy as np
import pytest
import tensorflow as tf

from isa_tf import ops

SIZE = (30, 40)
# Within, over the edges, without area, outside on either side, larger than all, on half pixels.
BOXES = [
    [3.3, 5.1, 20.7, 25.2],
    [-9.4, -7.2, 11, 13],
    [30, 20.6, 60, 55],
    [8, 8, 8, 8],
    [12.4, 9, 30.1, 9],
    [-90, -90, -80, -80],
    [90, 90, 99, 99],
    [-30, -20, 80, 70],
    [4.5, 6.5, 5.5, 27.5],
    [0, 0, 0, 0],
]
BOXES = np.float32([BOXES, BOXES[::-1]])


def read(mask, y, x, beyond):
    """Bilinearly; the edges go on for `beyond` pixels, then is nothing."""
    height, width = mask.shape
    outside = max(-y, y - (height - beyond), -x, x - (width - beyond))
    if outside > beyond:
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    rows, columns = {math.floor(y), math.ceil(y)}, {math.floor(x), math.ceil(x)}
    return sum((1 - abs(y - r)) * (1 - abs(x - c)) * mask[r, c] for r in rows for c in columns)


def cut_by_loops(mask, box, size):
    x1, y1, x2, y2 = map(float, box)
    height, width = max(y2 - y1, 1), max(x2 - x1, 1)
    rows, columns = math.ceil(height / size[0]), math.ceil(width / size[1])
    out = np.zeros(size)
    for i, j in np.ndindex(*size):
        for r, c in np.ndindex(rows, columns):
            y = y1 + (i + (r + 0.5) / rows) * height / size[0]
            x = x1 + (j + (c + 0.5) / columns) * width / size[1]
            out[i, j] += read(mask, y, x, 1) / (rows * columns)
    return out


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("size", [(4, 4), (2, 7)])
def test_cut_equals_loops(size, jit_compile):
    rng = np.random.default_rng(0)
    masks = (rng.uniform(size=(2, 3, *SIZE)) > 0.5).astype("uint8")
    matches = rng.integers(0, 3, BOXES.shape[:2]).astype("int32")
    specs = [(None, None, *SIZE), (None, None, 4), (None, None)]

    @tf.function(
        input_signature=[
            tf.TensorSpec(s, a.dtype) for s, a in zip(specs, (masks, BOXES, matches), strict=True)
        ],
        jit_compile=jit_compile,
    )
    def cut(masks, boxes, matches):
        return ops.crop_masks(masks, boxes, matches, size)

    found = cut(masks, BOXES, matches)
    for image, k in np.ndindex(*matches.shape):
        expected = cut_by_loops(masks[image, matches[image, k]], BOXES[image, k], size)
        np.testing.assert_allclose(found[image, k], expected, atol=2e-5)
    assert not found[0, 5:7].numpy().any() and found[0, 7].numpy().any()


def paste_by_loops(mask, box, size):
    """Every pixel of the grown box in whole pixels, read off the bordered mask."""
    small = len(mask) + 2
    bordered = np.zeros((small, small))
    bordered[1:-1, 1:-1] = mask
    x1, y1, x2, y2 = map(float, box)
    grow = small / (small - 2) / 2
    ends = [
        (math.trunc(middle - half), math.trunc(middle + half))
        for middle, half in (
            ((y1 + y2) / 2, (y2 - y1) * grow),
            ((x1 + x2) / 2, (x2 - x1) * grow),
        )
    ]
    out = np.zeros(size)
    for i, j in np.ndindex(*size):
        if all(first <= n <= last for n, (first, last) in zip((i, j), ends, strict=True)):
            y, x = (
                (n - first + 0.5) * small / (last - first + 1) - 0.5
                for n, (first, last) in zip((i, j), ends, strict=True)
            )
            out[i, j] = read(bordered, y, x, small)
    return out


@pytest.mark.parametrize("jit_compile", [False, True])
def test_pasted_equals_loops(jit_compile):
    masks = np.random.default_rng(0).uniform(size=(*BOXES.shape[:2], 7, 7)).astype("float32")

    @tf.function(
        input_signature=[tf.TensorSpec((None, None, 7, 7)), tf.TensorSpec((None, None, 4))],
        jit_compile=jit_compile,
    )
    def paste(masks, boxes):
        return ops.paste_masks(masks, boxes, SIZE, None), ops.paste_masks(masks, boxes, SIZE, 0.4)

    soft, hard = paste(masks, BOXES)
    assert hard.dtype == tf.bool
    for image, k in np.ndindex(*BOXES.shape[:2]):
        expected = paste_by_loops(masks[image, k], BOXES[image, k], SIZE)
        np.testing.assert_allclose(soft[image, k], expected, atol=1e-5)
    np.testing.assert_array_equal(hard, soft > 0.4)
    assert not soft[0, 5:7].numpy().any() and soft[0, 3].numpy().any()


def test_image_sizes_known_when_it_runs():
    masks = np.random.default_rng(0).uniform(size=(2, 10, 7, 7)).astype("float32")

    @tf.function(input_signature=[tf.TensorSpec((), tf.int32)] * 2)
    def paste(height, width):
        return ops.paste_masks(masks, BOXES, (height, width))

    np.testing.assert_array_equal(paste(*SIZE), ops.paste_masks(masks, BOXES, SIZE))


def test_a_pasted_mask_is_cut_back():
    mask = np.zeros((8, 8), "float32")
    mask[:, :4] = mask[:4] = 1
    box = np.float32([[[4, 3, 36, 27]]])
    pasted = ops.paste_masks(mask[None, None], box, SIZE)
    cut = ops.crop_masks(pasted, box, [[0]], (8, 8))[0, 0].numpy()
    # A box in whole pixels is not the box: at the edges between inside and outside they differ.
    wrong = (cut > 0.5) != mask
    assert wrong.sum() <= 8


def test_no_boxes():
    none = np.zeros((2, 0, 4), "float32")
    assert ops.paste_masks(np.zeros((2, 0, 7, 7), "float32"), none, SIZE).shape == (2, 0, *SIZE)
    cut = ops.crop_masks(np.zeros((2, 1, *SIZE)), none, np.zeros((2, 0), int), (4, 4))
    assert cut.shape == (2, 0, 4, 4)


def test_what_is_wrong_is_told():
    masks = np.zeros((2, 10, 7, 7), "float32")
    with pytest.raises(ValueError, match=r"boxes must be \(B, K, 4\), got \(10, 4\)"):
        ops.paste_masks(masks, BOXES[0], SIZE)
    with pytest.raises(ValueError, match=r"masks must be \(B, K, m, m\), got \(10, 7, 7\)"):
        ops.paste_masks(masks[0], BOXES, SIZE)
    with pytest.raises(ValueError, match=r"boxes must be \(B, K, 4\), got \(10, 4\)"):
        ops.crop_masks(masks, BOXES[0], [[0]], (4, 4))
    with pytest.raises(ValueError, match=r"size must be positive, got \(0, 4\)"):
        ops.crop_masks(masks, BOXES, np.zeros((2, 10), int), (0, 4))
