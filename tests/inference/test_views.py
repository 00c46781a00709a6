"""The views of an image against slow references: windows, mirrors, scales, sizes."""

import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
from viewing import (
    bilinear,
    make_conv,
    photos,
    run_of,
    slide_reference,
    softmax,
    windows,
)

from isa_tf.data.augment import MEAN_COLOR
from isa_tf.inference import (
    Predictor,
    Protocol,
    class_dtype,
    classify,
    resize_image,
    resize_logits,
    slide,
    slide_tiles,
    view_logits,
    view_size,
    vote,
    window_starts,
)


@pytest.mark.parametrize("crop, stride", [(1, 1), (4, 1), (4, 3), (4, 4), (9, 2), (769, 513)])
def test_window_starts(crop, stride):
    for length in (1, 3, 4, 5, 8, 9, 10, 12, 513, 769, 770, 1024, 1282, 1283):
        expected = [begin for begin, _ in windows(length, crop, stride)]
        assert window_starts(length, crop, stride) == expected


@pytest.mark.parametrize(
    ("size", "crop", "stride"),
    [
        ((17, 23), (7, 9), (5, 4)),
        ((14, 18), (7, 9), (7, 9)),  # without overlap
        ((7, 9), (7, 9), (5, 4)),  # one window
        ((5, 30), (7, 9), (5, 4)),  # lower than a window
        ((5, 6), (7, 9), (5, 4)),  # smaller than a window
        ((12, 10), (7, 9), (1, 1)),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_slide_is_the_mean_of_its_windows(size, crop, stride, batch):
    run, images = run_of(make_conv()), photos(batch, *size)
    logits = slide(run, images, crop, stride)
    expected = slide_reference(run, images, crop, stride)
    assert logits.shape == (batch, *size, 4)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    predictor = Predictor.from_model(make_conv(), Protocol("slide", crop, stride))
    class_id, score = predictor(images)
    np.testing.assert_array_equal(class_id, np.argmax(logits, -1))
    np.testing.assert_allclose(score, softmax(expected).max(-1), rtol=1e-5)
    if size == (17, 23):  # the windows' borders are seen
        assert np.abs(logits - run(images)).max() > 0.1


def test_slide_averages_logits_and_views_average_softmax():
    # Sure of class 0, sure of class 2; class 1 is second to both.
    a, b = np.float32([9.5, 5, 0]), np.float32([0, 5, 9])

    def run(images):
        return np.where(np.asarray(images)[:, :1, :1, :1] == 0, a, b) + np.zeros((1, 1, 4, 1))

    images = np.zeros((1, 1, 6, 3), np.uint8)
    images[:, :, 2:] = 1  # what the second window begins with
    logits = slide(run, images, (1, 4), (1, 2))
    assert np.argmax(logits, -1).tolist() == [[[0, 0, 1, 1, 2, 2]]]
    class_id, score = vote(np.float32(view)[None, None, None] for view in (a, b))
    assert class_id.numpy().item() == 0
    expected = (softmax(a) + softmax(b)) / 2
    np.testing.assert_allclose(score.numpy().item(), expected.max(), rtol=1e-6)


@pytest.mark.parametrize("size", [(17, 23), (23, 17), (7, 40), (8, 8), (5, 4), (31, 12)])
@pytest.mark.parametrize(("crop", "stride"), [((7, 9), (5, 4)), ((6, 6), (1, 2)), ((8, 8), (8, 3))])
def test_tiles_cover_the_images_once(size, crop, stride):
    run, images = run_of(make_conv()), photos(2, *size)
    expected = slide_reference(run, images, crop, stride)
    covered = np.zeros(size, int)
    for top, left, logits in slide_tiles(run, images, crop, stride):
        place = np.s_[top : top + logits.shape[1], left : left + logits.shape[2]]
        covered[place] += 1
        np.testing.assert_allclose(logits, expected[:, *place], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(covered, 1)


def test_windows_are_seen_once_and_some_at_once(monkeypatch):
    images, seen = photos(2, 30, 50), []

    def run(windows):
        seen.append(windows.shape[0])
        return tf.cast(windows, tf.float32)

    slide(run, images, (10, 10), (10, 10))
    # The first alone, to see how large logits are; of two images two windows at once are four.
    assert seen == [2] + 7 * [4]
    seen.clear()
    monkeypatch.setattr("isa_tf.inference.views.WINDOWS_BYTES", 2 * 10 * 10 * 3 * 4)
    slide(run, images, (10, 10), (10, 10))
    assert seen == 15 * [2]


def test_work_grows_with_the_pixels():
    """No window is padded to the image, and no more is held of a longer one."""

    def run(windows):
        return np.repeat(np.asarray(windows, np.float32), 8, axis=-1)

    def most(length, stride):
        images, given = photos(1, 64, length), 0
        tracemalloc.start()
        for *_, logits in slide_tiles(run, images, (32, 32), (24, stride)):
            given += logits.size
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert given == 64 * length * 24  # each pixel once
        return peak

    for stride in (24, 32):
        shorter = most(320, stride)
        assert shorter < 64 * 320 * 24 * 4  # the logits of the whole image
        # The last windows fall where they do: they hold a little more or less.
        assert most(320 * 16, stride) < 1.15 * shorter


@pytest.mark.parametrize("classes", [256, 257, 300])
def test_ids_of_many_classes(classes):
    logits = np.eye(classes, dtype=np.float32)[[[[classes - 1, 0, 255]]]]
    for class_id, _ in (classify(logits), vote([logits, logits])):
        assert class_id.numpy().tolist() == [[[classes - 1, 0, 255]]]
        assert class_id.dtype == class_dtype(classes) == ("uint8" if classes == 256 else "int32")


# === Sizes ===


@pytest.mark.parametrize(
    ("size", "scale", "fit_size", "expected"),
    [
        ((1024, 2048), 1.0, None, (1024, 2048)),
        ((97, 161), 0.5, None, (49, 81)),
        ((97, 161), 1.75, None, (170, 282)),
        ((602, 99), 0.75, None, (450, 74)),  # of 451.5 x 74.25; 74 columns are fewer than 3/4
        ((1, 2), 0.25, None, (1, 1)),
        ((1024, 2048), 1.0, (2049, 1025), (1025, 2049)),
        ((480, 640), 1.0, (2048, 512), (512, 683)),
        ((640, 480), 1.0, (512, 2048), (683, 512)),
        ((100, 1000), 1.0, (2048, 512), (205, 2048)),
        ((480, 640), 0.75, (2048, 513), (384, 512)),
    ],
)
def test_view_size(size, scale, fit_size, expected):
    assert view_size(size, scale, fit_size) == expected


@pytest.mark.parametrize("size", [(20, 31), (7, 11), (13, 44), (1, 1), (50, 3)])
def test_resize_image_is_bilinear_and_rounded(size):
    images = photos(2, 13, 22)
    resized = resize_image(images, size).numpy()
    assert resized.dtype == np.uint8 and resized.shape == (2, *size, 3)
    exact = bilinear(images, size)
    assert np.abs(resized - exact).max() <= 0.5 + 1e-4
    np.testing.assert_array_equal(resize_image(images, (13, 22)), images)


@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners", "asymmetric"])
def test_resize_logits(coordinates):
    logits = np.random.default_rng(0).normal(size=(2, 9, 14, 5)).astype(np.float32)
    for size in ((17, 27), (5, 20), (1, 1), (9, 14)):
        resized = resize_logits(logits, size, coordinates)
        np.testing.assert_allclose(resized, bilinear(logits, size, coordinates), atol=1e-5)
    with pytest.raises(ValueError, match="coordinates must be one of half_pixel, .*got 'corners'"):
        resize_logits(logits, (9, 14), "corners")


def test_fitted_views_come_back_at_the_image_s_size():
    images = photos(1, 12, 30)
    seen = []

    def run(view):
        seen.append(tuple(view.shape[1:3]))
        return tf.cast(view, tf.float32)

    protocol = Protocol(fit_size=(20, 10), scales=(1.0, 0.5))
    shapes = {tuple(logits.shape) for logits in view_logits(run, images, protocol)}
    assert seen == [(8, 20), (4, 10)] and shapes == {(1, 12, 30, 3)}


def test_exact_sizes():
    assert view_size((480, 640), exact_size=(473, 473)) == (473, 473)
    assert view_size((480, 640), 0.75, exact_size=(473, 473)) == (354, 354)
    assert view_size((480, 640), 1.25, exact_size=(473, 200)) == (591, 250)


def test_views_are_multiples_where_they_must_be():
    """Padded behind scaling and mirroring, in the mean colour; the padding is cut off again."""
    images, seen = photos(2, 12, 30), []

    def run(view):
        seen.append(view.numpy())
        return tf.cast(view, tf.float32) + 1

    protocol = Protocol(size_divisor=8, exact_size=(12, 30), scales=(1.0, 0.5), flip=True)
    found = list(view_logits(run, images, protocol))
    assert [view.shape[1:3] for view in seen] == [(16, 32), (16, 32), (8, 16), (8, 16)]
    for view, wanted in zip(seen, (images, images[:, :, ::-1]), strict=False):
        np.testing.assert_array_equal(view[:, :12, :30], wanted)
        assert (view[:, 12:] == MEAN_COLOR).all() and (view[:, :, 30:] == MEAN_COLOR).all()
    for logits in found[:2]:
        np.testing.assert_array_equal(logits, images.astype("float32") + 1)
    assert all(logits.shape == (2, 12, 30, 3) for logits in found)


@pytest.mark.parametrize("size", [(12, 30), (40, 10), (32, 24), (40, 50)])
def test_small_images_are_padded(size):
    images = photos(2, *size)
    whole = np.full((2, max(size[0], 32), max(size[1], 24), 3), 128, "uint8")
    whole[:, : size[0], : size[1]] = images
    seen = []

    def run(view):
        seen.append(view.numpy())
        return tf.cumsum(tf.cumsum(tf.cast(view, tf.float32), 1, reverse=True), 2, reverse=True)

    protocol = Protocol(pad_size=(32, 24), flip=True)
    plain, mirrored = view_logits(run, images, protocol)
    np.testing.assert_array_equal(seen[0], whole)
    np.testing.assert_array_equal(seen[1], whole[:, :, ::-1])
    expected = [run(tf.constant(whole)), run(tf.constant(whole[:, :, ::-1]))[:, :, ::-1]]
    for found, wanted in zip((plain, mirrored), expected, strict=True):
        np.testing.assert_array_equal(found, wanted[:, : size[0], : size[1]])
