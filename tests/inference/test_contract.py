"""What a model tells of itself, and the file in which an exported one keeps it."""

import json

import numpy as np
import pytest
from viewing import make_conv, make_model

from isa_tf.inference import (
    Protocol,
    SegmentationContract,
    contract_of,
    contracts,
    read_contract,
    seen_size,
)

NAMES, PALETTE = tuple("abcdefg"), tuple((i, i, i) for i in range(7))


def test_of_a_model():
    protocol = {"flip": True, "scales": (0.5, 1.0)}
    model = make_model(
        class_names=NAMES, palette=np.uint8(PALETTE), protocol=protocol, coordinates="align_corners"
    )
    contract = contract_of(model)
    assert contract == SegmentationContract(
        7, NAMES, PALETTE, "align_corners", Protocol(**protocol), (None, None)
    )
    assert contract_of(make_conv(size=(8, None))) == SegmentationContract(image_size=(8, None))
    assert contract_of(lambda x: x) == SegmentationContract()


def test_round_trip_through_a_file():
    contract = SegmentationContract(
        7, NAMES, PALETTE, "asymmetric", Protocol("slide", 9, 5, flip=True), (32, 48)
    )
    assert read_contract(contract.to_text()) == contract
    assert json.loads(contract.to_text())["task"] == "segmentation"
    assert contract.files() == {
        "isa_tf.json": contract.to_text(),
        "labels.txt": "a\nb\nc\nd\ne\nf\ng\n",
    }
    assert list(SegmentationContract(3).files()) == ["isa_tf.json"]


def test_files_of_before_there_were_tasks():
    older = {"num_classes": 2, "class_names": ["a", "b"], "palette": [[1, 2, 3], [4, 5, 6]]}
    contract = read_contract(json.dumps(older))
    assert contract == SegmentationContract(2, ("a", "b"), ((1, 2, 3), (4, 5, 6)))
    assert read_contract(None) == SegmentationContract()
    for text in ("{", "[]", "3", json.dumps({"num_classes": 2}), '{"task": "poetry"}'):
        with pytest.raises(ValueError, match="damaged isa_tf.json"):
            read_contract(text)


def test_check_finds_the_number_of_classes():
    contract = contract_of(make_conv()).check(make_conv())
    assert contract.num_classes == 4 and contract.image_size == (None, None)
    assert contract_of(make_conv()).check(make_conv(), (8, 9)).image_size == (8, 9)
    fixed = make_conv(size=(8, 10))
    assert contract_of(fixed).check(fixed).image_size == (8, 10)
    with pytest.raises(ValueError, match=r"does not take images \(1, 9, 9, 3\)"):
        contract_of(fixed).check(fixed, (9, 9))


def test_a_model_names_its_task():
    model = make_conv()
    model.task = "poetry"
    with pytest.raises(ValueError, match="unknown task 'poetry'; known: segmentation"):
        contract_of(model)

    @contracts.register("poetry")
    class Verses:
        @classmethod
        def of(cls, model):
            return "verses"

    try:
        assert contract_of(model) == "verses"
    finally:
        del contracts._entries["poetry"]


def test_compare():
    contract = SegmentationContract()
    ids, scores = np.uint8([[[0, 1, 1, 2]]]), np.float32([[[0.5, 0.5, 0.5, 0.5]]])
    other, close = np.uint8([[[0, 1, 2, 2]]]), scores + np.float32([0, 0.25, 0, -0.125])
    found = contract.compare((ids, scores), (other, close))
    assert found == {"agreement": 0.75, "decisions": 4, "kinds": 3, "score_difference": 0.25}
    for nan in ((ids, np.nan * scores), (ids, scores)), ((ids, scores), (ids, np.nan * scores)):
        assert contract.compare(*nan)["agreement"] == 0


def test_the_size_that_an_image_is_seen_at():
    sizes = ((48, 64), (64, 48), (480, 640))
    assert seen_size((7, 9), None) == (7, 9)
    for size, seen in (
        ((64, 48), (64, 48)),
        ((100, 90), (64, 48)),  # neither is larger; it stands, as the image does
        ((30, 40), (48, 64)),
        ((500, 500), (480, 640)),
    ):
        assert seen_size(size, sizes) == seen
        assert seen_size(size, sizes[::-1]) == seen


def test_the_only_size_that_a_model_takes():
    assert SegmentationContract(image_size=[8, 6]).fixed_size == (8, 6)
    assert SegmentationContract(image_size=(8, None)).fixed_size is None
