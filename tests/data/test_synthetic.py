import numpy as np
import pytest

from isa_tf.data import SyntheticDataset, train_pipeline
from isa_tf.data.synthetic import BEACON_RADIUS

DATA = SyntheticDataset(num_examples={"train": 400, "val": 40})


def chebyshev(points, others):
    """The least Chebyshev distance between two sets of pixels, by looking at every pair."""
    return np.abs(points[:, None] - others[None]).max(-1).min()


def test_the_class_shows_near_the_beacon_only():
    for seed in range(12):
        images = {c: DATA.render(seed, c) for c in DATA.context_class_ids}
        base_image, base_label = images[DATA.context_class_ids[0]]
        y, x = DATA.layout(seed).beacon
        for context_class, (image, label) in images.items():
            changed = np.argwhere((image != base_image).any(-1))
            assert not len(changed) or np.hypot(*(changed - (y, x)).T).max() <= BEACON_RADIUS
            # The ships are the same pixels, and only their class differs.
            fleet = base_label == DATA.context_class_ids[0]
            np.testing.assert_array_equal(label == context_class, fleet)
            np.testing.assert_array_equal(label[~fleet], base_label[~fleet])
        a, b = (images[c][0] for c in DATA.context_class_ids[:2])
        assert (a != b).any()


def test_one_number_is_both_sides():
    for image_size in (128, (128,), [128, 128]):
        assert SyntheticDataset(image_size).image_size == (128, 128)
    with pytest.raises(ValueError, match="image_size must be an int above 0 or two"):
        SyntheticDataset((128, 128, 3))


@pytest.mark.parametrize("image_size, min_distance", [((128, 128), 48), ((96, 160), 64)])
def test_ships_are_far_from_all_that_the_class_changes(image_size, min_distance):
    data = SyntheticDataset(image_size, {"train": 1}, min_distance)
    red, green = data.context_class_ids[:2]
    for seed in range(40):
        image, label = data.render(seed, red)
        other, _ = data.render(seed, green)
        ships = np.argwhere(label == red)
        beacon = np.argwhere(label == data.class_names.index("beacon"))
        assert len(ships) > 40 and len(beacon) > 40
        assert chebyshev(ships, beacon) >= min_distance
        assert chebyshev(ships, np.argwhere((image != other).any(-1))) >= min_distance


def test_one_fleet_an_image_and_classes_balanced():
    counts = np.zeros(DATA.num_classes, int)
    ships = []
    for index in range(40):
        _, label = DATA.read("train", index)
        present = [c for c in DATA.context_class_ids if (label == c).any()]
        assert len(present) == 1
        counts[present] += 1
        ships.append(len(DATA.layout(DATA.example_seed("train", index)).ships))
    assert (counts[list(DATA.context_class_ids)] == 10).all()
    assert set(ships) == {2, 3, 4}


def test_ships_look_alike_whatever_the_class():
    """The mean colour of ship pixels, by class, differs no more than chance has it."""
    means = {c: [] for c in DATA.context_class_ids}
    for index in range(120):
        image, label = DATA.read("train", index)
        context_class = DATA.context_class_ids[index % 4]
        means[context_class].append(image[label == context_class].mean())
    errors = [np.std(v) / np.sqrt(len(v)) for v in means.values()]
    centers = [np.mean(v) for v in means.values()]
    assert np.ptp(centers) < 5 * max(errors)


def test_is_deterministic_and_varied():
    again = SyntheticDataset(num_examples={"train": 400, "val": 40})
    for index in (0, 7):
        for a, b in zip(DATA.read("train", index), again.read("train", index), strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.array_equal(DATA.read("train", 0)[0], DATA.read("val", 0)[0])
    assert not np.array_equal(
        DATA.read("train", 0)[0], SyntheticDataset(seed=1).read("train", 0)[0]
    )


def test_in_the_pipeline_as_it_is():
    train = train_pipeline(
        DATA,
        "train",
        4,
        DATA.image_size,
        scale_range=None,
        flip=False,
        photometric=False,
        shuffle=False,
    )
    image, label = next(iter(train))
    for i in range(4):
        expected = DATA.read("train", i)
        np.testing.assert_array_equal(image[i], expected[0])
        np.testing.assert_array_equal(label[i], expected[1])


def test_refuses_what_cannot_be():
    with pytest.raises(ValueError, match="min_distance=100"):
        SyntheticDataset(min_distance=100)
    with pytest.raises(ValueError, match="context_class"):
        DATA.render(0, 1)
