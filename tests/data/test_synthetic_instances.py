import numpy as np
import pytest
from pycocotools import mask

from isa_tf.data import SyntheticInstances, create

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:pyc")


def test_the_same_seed_the_same_images():
    one, same, other = (
        create("synthetic_instances", image_size=48, num_examples={"train": 8}, seed=seed)
        for seed in (3, 3, 4)
    )
    for i in range(8):
        image, found = one.read("train", i)
        again, same_found = same.read("train", i)
        np.testing.assert_array_equal(image, again)
        assert found.masks == same_found.masks
        assert not np.array_equal(image, other.read("train", i)[0])


def test_masks_boxes_and_areas_agree():
    data = SyntheticInstances((60, 90), {"train": 40, "val": 2}, crowds=True)
    counts = []
    for i in range(40):
        image, found = data.read("train", i)
        assert image.shape == (60, 90, 3) == (*data.size_of("train", i), 3)
        total = np.zeros((60, 90), int)
        for box, lengths, area in zip(found.boxes, found.masks, found.areas, strict=True):
            inside = mask.decode(lengths)
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            assert inside.sum() == area >= 9
            total += inside
        assert total.max(initial=0) <= 1  # what lies below is hidden
        assert not found.crowd.any() or i % 3 == 0
        counts.append(len(found.classes))
    assert min(counts) == 0 and max(counts) >= 5
    ids = [i for n in range(40) for i in data.annotations("train", n).ids.tolist()]
    assert len(set(ids)) == len(ids) and min(ids) > 0


def test_every_class_is_there_and_crowds_on_request():
    data = SyntheticInstances(48, {"train": 30})
    classes, crowds = zip(*((a.classes, a.crowd) for _, a in map_read(data, 30)), strict=True)
    assert np.bincount(np.concatenate(classes), minlength=4).min() > 5
    assert not np.concatenate(crowds).any()
    told = SyntheticInstances(48, {"train": 30}, crowds=True)
    assert sum(a.crowd.sum() for _, a in map_read(told, 30)) >= 5


def map_read(data, count):
    return [data.read("train", i) for i in range(count)]


def test_ground_truth():
    data = SyntheticInstances(48, {"val": 5}, crowds=True)
    truth = data.ground_truth("val")
    assert [image["id"] for image in truth["images"]] == [1, 2, 3, 4, 5]
    assert [c["name"] for c in truth["categories"]] == list(data.class_names)
    assert len(truth["annotations"]) == sum(len(data.annotations("val", i).ids) for i in range(5))
    entry = truth["annotations"][0]
    assert entry["category_id"] in data.category_ids and entry["segmentation"]["size"] == [48, 48]


def test_sizes_that_are_none():
    with pytest.raises(ValueError, match="image_size must be"):
        SyntheticInstances(0)
    with pytest.raises(ValueError, match="no split 'test'"):
        SyntheticInstances().read("test", 0)
