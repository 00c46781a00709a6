import time

import numpy as np
import pytest
import tensorflow as tf

from isa_tf.data import augment


def noise_image(height=90, width=120, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def reference(image, label, size):
    """Bilinear and nearest resizing to `size`, with half-pixel centers, in plain NumPy."""
    points = [(np.arange(n) + 0.5) * s / n for n, s in zip(size, label.shape, strict=True)]
    near = [np.floor(p).astype(int) for p in points]
    blended = image.astype(np.float64)
    for axis, (p, n) in enumerate(zip(points, label.shape, strict=True)):
        low = np.floor(p - 0.5).astype(int)
        part = (p - 0.5 - low).reshape([-1 if a == axis else 1 for a in range(3)])
        below = np.take(blended, np.clip(low, 0, n - 1), axis)
        above = np.take(blended, np.clip(low + 1, 0, n - 1), axis)
        blended = below * (1 - part) + above * part
    return np.round(blended), label[np.ix_(*near)]


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5, 2.0])
def test_is_resize_then_crop(scale):
    """A window that begins at any whole pixel of the source, found again by its label."""
    image = noise_image()
    label = (np.arange(90 * 120).reshape(90, 120) % 251).astype(np.uint8)
    for seed in range(3):
        crop_image, crop_label = augment.random_scale_crop(
            image, label, (36, 42), (seed, 1), (scale, scale)
        )
        crop_image, crop_label = crop_image.numpy(), crop_label.numpy()
        errors = []
        for top, left in np.ndindex(2, 2):  # what half-pixel places a whole scale cannot reach
            whole = (round(88 * scale), round(118 * scale))
            sources = (a[top : top + 88, left : left + 118] for a in (image, label))
            whole_image, whole_label = reference(*sources, whole)
            windows = np.lib.stride_tricks.sliding_window_view(whole_label, (36, 42))
            for y, x in np.argwhere((windows == crop_label).all((2, 3))):
                inside = whole_image[y + 1 : y + 35, x + 1 : x + 41]
                errors.append(np.abs(inside - crop_image[1:-1, 1:-1]).max())
        assert errors, "the crop's label is nowhere in the resized label"
        assert min(errors) <= 1


def test_image_and_label_stay_together():
    """Colours tell where a pixel was taken from, labels in which 6x8 block that is."""
    y, x = np.mgrid[:90, :120]
    image = np.stack([2 * y, 2 * x, 0 * x], axis=-1).astype(np.uint8)
    label = (y // 6 * 15 + x // 8).astype(np.uint8)
    for seed in range(20):
        new_image, new_label = augment.random_scale_crop(
            image, label, (64, 80), (7, seed), (0.5, 2.0), (0.8, 1.25)
        )
        new_image, new_label = augment.random_flip(new_image, new_label, (8, seed))
        new_image, new_label = new_image.numpy(), new_label.numpy()
        inside = new_label != 255
        assert inside.mean() > 0.15
        assert (new_image[~inside] == augment.MEAN_COLOR).all()
        blocks = new_label[inside].astype(int)
        for channel, block, size in ((0, blocks // 15, 6), (1, blocks % 15, 8)):
            place = new_image[inside][:, channel] / 2 + 0.5  # where pixel n is [n, n + 1)
            assert (place > block * size - 0.3).all()
            assert (place < (block + 1) * size + 0.3).all()


def test_padding_is_ignored_and_everything_is_there():
    image, label = noise_image(20, 30), np.full((20, 30), 3, np.uint8)
    places = set()
    for seed in range(8):
        new_image, new_label = augment.random_scale_crop(image, label, (40, 50), (0, seed))
        new_image, new_label = new_image.numpy(), new_label.numpy()
        rows, columns = np.nonzero(new_label == 3)
        assert (new_label != 255).sum() == 20 * 30
        y, x = rows.min(), columns.min()
        np.testing.assert_array_equal(new_image[y : y + 20, x : x + 30], image)
        assert (new_image[new_label == 255] == augment.MEAN_COLOR).all()
        places.add((y, x))
    assert len(places) > 1


def test_one_number_is_both_sides():
    crops = [
        augment.random_scale_crop(noise_image(), noise_image()[..., 0], size, (0, 1))
        for size in ((40, 40), 40, (40,))
    ]
    for crop in crops[1:]:
        np.testing.assert_array_equal(crop[0], crops[0][0])
        np.testing.assert_array_equal(crop[1], crops[0][1])
    with pytest.raises(ValueError, match="crop_size must be"):
        augment.random_scale_crop(noise_image(), noise_image()[..., 0], (40, 0), (0, 1))


def test_without_scale_a_window_of_the_image_is_unchanged():
    image, label = noise_image(), noise_image(seed=1)[..., 0]
    same = augment.random_scale_crop(image, label, (90, 120), (0, 0))
    np.testing.assert_array_equal(same[0], image)
    np.testing.assert_array_equal(same[1], label)


def test_windows_reach_every_border():
    label = np.arange(100, dtype=np.uint8).reshape(10, 10)
    image = np.stack([label] * 3, -1)
    corners = {
        int(augment.random_scale_crop(image, label, (8, 8), (3, seed))[1][0, 0])
        for seed in range(150)
    }
    assert corners == {10 * y + x for y in range(3) for x in range(3)}


def test_cat_max_ratio_avoids_windows_of_one_class():
    image, label = noise_image(200, 200), np.zeros((200, 200), np.uint8)
    label[:, 120:] = 1

    def one_class(ratio):
        found = 0
        for seed in range(40):
            _, crop = augment.random_scale_crop(
                image, label, (60, 60), (5, seed), cat_max_ratio=ratio
            )
            found += np.bincount(crop.numpy().ravel(), minlength=2).max() > 0.8 * 60 * 60
        return found

    assert one_class(1.0) > 25
    assert one_class(0.75) < 10


def test_flip_mirrors_both_or_none():
    image, label = noise_image(), noise_image(seed=1)[..., 0]
    flipped = 0
    for seed in range(40):
        new_image, new_label = augment.random_flip(image, label, (0, seed))
        mirrored = np.array_equal(new_image, image[:, ::-1])
        flipped += mirrored
        np.testing.assert_array_equal(new_image, image[:, ::-1] if mirrored else image)
        np.testing.assert_array_equal(new_label, label[:, ::-1] if mirrored else label)
    assert 10 < flipped < 30


def only(image, **changes):
    """One of the four distortions, with a seed that uses it."""
    neutral = {"brightness": 0.0, "contrast": (1, 1), "saturation": (1, 1), "hue": 0.0}
    results = [
        augment.photometric_distortion(image, (0, seed), **(neutral | changes)).numpy()
        for seed in range(12)
    ]
    return next(r for r in results if np.abs(r.astype(int) - image).max() > 2)


def test_photometric_parts():
    image = (60 + noise_image(8, 8) // 3).astype(np.uint8)
    wide = image.astype(np.float64)
    difference = only(image, brightness=20.0) - wide
    assert np.ptp(difference) <= 1 and abs(difference.mean()) > 1
    np.testing.assert_allclose(only(image, contrast=(1.5, 1.5)), wide * 1.5, atol=1)
    grey = wide @ (0.299, 0.587, 0.114)
    np.testing.assert_allclose(only(image, saturation=(0, 0)), grey[..., None] + 0 * wide, atol=1.5)
    turned = only(image, hue=18.0)
    np.testing.assert_allclose(turned @ np.array((0.299, 0.587, 0.114)), grey, atol=1.5)


def test_photometric_stays_in_range_and_often_changes():
    image = noise_image(16, 16)
    changed = 0
    for seed in range(20):
        new = augment.photometric_distortion(image, (1, seed))
        assert new.dtype == tf.uint8 and new.shape == image.shape
        changed += not np.array_equal(new, image)
    assert changed >= 15
    np.testing.assert_array_equal(
        augment.photometric_distortion(image, (1, 3)),
        augment.photometric_distortion(image, (1, 3)),
    )


def test_speed():
    """Generous: about 4 ms on one core of 2020, and the bound catches a slow path."""
    image, label = tf.constant(noise_image(360, 480)), tf.zeros((360, 480), tf.uint8)

    @tf.function
    def distort(seed):
        new_image, new_label = augment.random_scale_crop(
            image, label, (360, 480), (seed, 0), (0.5, 2.0)
        )
        new_image, new_label = augment.random_flip(new_image, new_label, (seed, 1))
        return augment.photometric_distortion(new_image, (seed, 2)), new_label

    distort(tf.constant(0))
    start = time.process_time()
    for seed in range(20):
        distort(tf.constant(seed))
    assert (time.process_time() - start) / 20 < 0.05


# === What recipes ask for ===


def places(size, crop, count=2000, **arguments):
    """The windows of many seeds: (count, 2, 2)."""
    label = tf.zeros(size, tf.uint8)

    @tf.function
    def all_of_them():
        return tf.map_fn(
            lambda i: augment.crop_place(label, crop, tf.stack([7, i]), **arguments),
            tf.range(count),
        )

    return all_of_them().numpy()


def is_uniform(values, low, high):
    """Kolmogorov and Smirnov's distance from a uniform distribution, at one in 10,000."""
    share = (np.sort(values) - low) / (high - low)
    steps = np.arange(len(values) + 1) / len(values)
    distance = max(np.abs(share - steps[1:]).max(), np.abs(share - steps[:-1]).max())
    return distance < np.sqrt(np.log(2 / 1e-4) / 2 / len(values))


def test_scale_and_aspect_are_drawn_as_published():
    """Width by sqrt(aspect), height by its inverse, both times the scale: the factors found."""
    found = places((4000, 6000), (2000, 2000), scale_range=(0.5, 2.0), aspect_range=(0.9, 1.1))
    vertical, horizontal = (2000 / found[:, 1, i] for i in (0, 1))
    assert is_uniform(np.sqrt(vertical * horizontal), 0.5, 2.0)
    assert is_uniform(horizontal / vertical, 0.9, 1.1)
    scale, aspect = np.sqrt(vertical * horizontal), horizontal / vertical
    assert abs(np.corrcoef(scale, aspect)[0, 1]) < 0.1


def test_windows_lie_anywhere_on_the_image():
    """Also where the image is smaller than the window, within it."""
    for start, low, high in zip(
        places((700, 90), (200, 150))[:, 0].T, (0, -60), (500, 0), strict=True
    ):
        assert start.min() == low and start.max() == high
        assert is_uniform(start + np.random.default_rng(0).uniform(size=2000), low, high + 1)


@pytest.mark.parametrize(
    "resize, factors",
    [
        ({"short_side": 520}, (520 / 300, 520 / 300)),
        ({"fit": (2048, 512)}, (512 / 300, 512 / 300)),
        ({"fit": 480}, (480 / 400, 480 / 400)),
        ({"size": (473, 946)}, (473 / 300, 946 / 400)),
    ],
    ids=str,
)
def test_what_is_resized_before_it_is_scaled(resize, factors):
    found = places(
        (300, 400), (260, 260), 200, resize=augment.make_resize(**resize), scale_range=(2.0, 2.0)
    )
    assert (found[:, 1] == np.round(260 / (2 * np.array(factors)))).all()


def test_a_whole_image_resized_is_what_resizing_makes_of_it():
    image, label = noise_image(60, 90), noise_image(60, 90, 1)[..., 0]
    new_image, new_label = augment.random_scale_crop(
        image, label, (48, 48), (0, 1), resize=augment.make_resize(size=48)
    )
    whole_image, whole_label = reference(image, label, (48, 48))
    np.testing.assert_array_equal(new_label, whole_label)
    assert np.abs(new_image.numpy() - whole_image).max() <= 1


@pytest.mark.parametrize(
    "given, message",
    [
        ({"short_side": 5, "size": 5}, "resize by one of"),
        ({"short_side": 0}, "short_side"),
        ({"short_side": (5, 6)}, "short_side must be an int above 0"),
        ({"fit": (2048, 512, 3)}, "fit must be"),
    ],
)
def test_what_cannot_be_resized_to(given, message):
    with pytest.raises(ValueError, match=message):
        augment.make_resize(**given)


def test_label_follows_image_through_everything():
    """Each pixel's colours tell its place; its label, the same; outside there is only ignore."""
    y, x = np.mgrid[:90, :120]
    image = np.stack([2 * y, 2 * x, 0 * x], axis=-1).astype(np.uint8)
    label = np.where(x < 60, 0, 1).astype(np.uint8)  # left and right
    sides = set()
    for seed in range(30):
        new_image, new_label = augment.random_scale_crop(
            image,
            label,
            (64, 80),
            (7, seed),
            (0.5, 2.0),
            (0.9, 1.1),
            resize=augment.make_resize(short_side=70),
        )
        new_image, new_label = augment.random_flip(
            new_image, new_label, (8, seed), flip_pairs=((0, 1),)
        )
        new_image, new_label = new_image.numpy(), new_label.numpy()
        outside = new_label == 255
        assert (new_image[outside] == augment.MEAN_COLOR).all()
        columns = new_image[..., 1] / 2
        flipped = np.diff(np.where(outside, np.nan, columns), axis=1)
        flipped = np.nanmean(flipped) < 0
        near = np.abs(columns - 59.5) < 2.5  # half a pixel of either grid
        right = (columns > 59.5) != flipped  # what was right is left in the mirror
        checked = ~outside & ~near
        np.testing.assert_array_equal(new_label[checked], right[checked])
        sides.add(bool(flipped))
    assert sides == {True, False}


def test_flip_pairs_change_places_where_it_flips_and_nowhere_else():
    image, label = noise_image(), noise_image(seed=1)[..., 0] % 20
    label[0, :5] = 255
    swapped = np.arange(256)
    swapped[[14, 15, 16, 17, 18, 19]] = [15, 14, 17, 16, 19, 18]
    flipped = 0
    for seed in range(40):
        new_image, new_label = augment.random_flip(
            image, label, (0, seed), flip_pairs=((14, 15), (16, 17), (18, 19))
        )
        mirrored = np.array_equal(new_image, image[:, ::-1])
        flipped += mirrored
        expected = swapped[label[:, ::-1]] if mirrored else label
        np.testing.assert_array_equal(new_label, expected)
        assert new_label.dtype == tf.uint8
    assert 10 < flipped < 30


def test_brightness_is_one_whole_number_for_all_of_an_image():
    image = np.random.default_rng(0).integers(10, 246, (4, 5, 3), np.uint8)
    shifts = []
    for seed in range(400):
        new = augment.random_brightness(image, (3, seed), 10).numpy().astype(int)
        shift = np.unique(new - image)
        assert shift.shape == (1,)
        shifts.append(shift[0])
    counts = np.bincount(np.add(shifts, 10), minlength=21)
    assert len(counts) == 21 and counts.min() > 0  # every one of -10 .. 10
    assert ((counts - 400 / 21) ** 2).sum() / (400 / 21) < 52.4  # chi square, one in 10,000


def test_brightness_ends_at_black_and_white():
    image = np.array([[[0, 3, 128], [252, 255, 100]]], np.uint8)
    seen = {tuple(augment.random_brightness(image, (0, s), 9).numpy().ravel()) for s in range(60)}
    assert (9, 12, 137, 255, 255, 109) in seen and (0, 0, 119, 243, 246, 91) in seen
