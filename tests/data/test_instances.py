import numpy as np
import pytest

from isa_tf.data import Annotations, InstanceDataset


def test_arguments():
    data = InstanceDataset("mine", ["a", "b"], ("train",), category_ids=[7, 3])
    assert data.category_ids == (7, 3) and data.class_ids == {7: 0, 3: 1}
    assert InstanceDataset("mine", ["a", "b"], ("train",)).category_ids == (1, 2)
    assert (0, 0, 0) not in data.palette
    for arguments, told in (
        ({"class_names": []}, "class_names must be at least one"),
        ({"category_ids": [1]}, "one a class"),
        ({"category_ids": [4, 4]}, "no id twice"),
        ({"palette": [(1, 2, 3)]}, "got 1 colours for 2 classes"),
        ({"on_error": "ignore"}, '"raise" or "skip"'),
    ):
        with pytest.raises(ValueError, match=told):
            InstanceDataset(**{"name": "x", "class_names": "ab", "splits": ["train"], **arguments})


def test_more_than_255_classes():
    names = [str(i) for i in range(1203)]  # as LVIS has
    assert InstanceDataset("many", names, ("train",)).num_classes == 1203


def test_what_reads_alone_tells_the_rest():
    """`size_of`, `annotations` and `ground_truth` without anything but `read`."""

    class Least(InstanceDataset):
        def examples(self, split):
            return ("one",)

        def read(self, split, index):
            masks = [{"size": [4, 5], "counts": b"0"}]
            told = [{"bbox": [1, 2, 3, 1], "category_id": 9, "iscrowd": 0, "id": 5, "area": 3}]
            return np.zeros((4, 5, 3), np.uint8), Annotations.of(told, masks, self.class_ids)

    data = Least("least", ["a"], ("val",), category_ids=[9])
    assert data.size_of("val", 0) == (4, 5)
    assert data.sizes("val") is None and data.orientations("val") is None
    assert data.image_reader("val") is None
    truth = data.ground_truth("val")
    assert truth["images"] == [{"id": 1, "file_name": "one", "height": 4, "width": 5}]
    (entry,) = truth["annotations"]
    assert (entry["bbox"], entry["category_id"], entry["id"]) == ([1, 2, 3, 1], 9, 5)
    assert truth["categories"] == [{"id": 9, "name": "a"}]
