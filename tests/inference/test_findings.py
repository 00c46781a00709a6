import json
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools import mask as tools

from isa_tf.inference import Instances, class_findings, findings, instance_findings


def decoded(row):
    return tools.decode(row["segmentation"]).astype(bool)


def test_classes_are_told_with_their_masks():
    class_id = np.random.default_rng(0).choice([0, 2, 300], (37, 23), p=[0.5, 0.3, 0.2])
    told = json.loads(json.dumps(class_findings(class_id.astype(np.int32))))
    assert [row["class_id"] for row in told] == [0, 2, 300]
    assert told[2]["name"] == "class 300"
    again = np.full_like(class_id, -1)
    for row in told:
        again[decoded(row)] = row["class_id"]
        assert row["pixels"] == (class_id == row["class_id"]).sum()
        assert row["share"] == pytest.approx(row["pixels"] / (37 * 23))
    np.testing.assert_array_equal(again, class_id)


def test_classes_of_one_size_keep_their_order():
    rows = class_findings(np.uint8([[1, 1, 0, 0]]), ("sky", "sea"), masks=False)
    assert [row["name"] for row in rows] == ["sky", "sea"]
    assert all("segmentation" not in row for row in rows)


def instances(count):
    rng = np.random.default_rng(1)
    boxes, masks = rng.uniform(0, 20, (count, 4)), rng.random((count, 11, 17)) > 0.5
    classes = np.arange(count, dtype=np.int32)
    return Instances(boxes.astype(np.float32), classes, np.float32([0.5] * count), masks)


def test_instances_are_told_with_their_masks():
    found = instances(2)
    told = json.loads(json.dumps(instance_findings(found, ("cat", "dog"), (17, 18))))
    assert [(row["name"], row["category_id"]) for row in told] == [("cat", 17), ("dog", 18)]
    for row, box, mask in zip(told, found.boxes, found.masks, strict=True):
        assert np.float32(row["box"]).tolist() == box.tolist()
        assert row["pixels"] == mask.sum() and row["score"] == 0.5
        np.testing.assert_array_equal(decoded(row), mask)
    assert "category_id" not in instance_findings(found)[0]


def test_a_predictor_is_told_of_by_its_task():
    names = {"class_names": None, "category_ids": None}
    of_classes = SimpleNamespace(task="segmentation", **names)
    told = findings(of_classes, (np.uint8([[0], [1]]), None))
    assert told["task"] == "segmentation" and told["size"] == [2, 1] and len(told["classes"]) == 2
    of_instances = SimpleNamespace(task="instance_segmentation", **names)
    for count in (0, 3):
        told = findings(of_instances, instances(count), masks=False)
        assert told["size"] == [11, 17] and len(told["instances"]) == count
    with pytest.raises(ValueError, match="unknown task 'x'"):
        findings(SimpleNamespace(task="x"), None)
