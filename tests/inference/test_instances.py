"""Finding instances: the way into a detector and back, its contract, its predictor."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from finding import (
    IDS,
    NAMES,
    PALETTE,
    PROTOCOL,
    assert_agrees,
    expected,
    make_detector,
    photos,
)

from isa_tf.inference import (
    DetectionProtocol,
    InstanceContract,
    InstancePredictor,
    Instances,
    Protocol,
    contract_of,
    predictor_of_model,
    predictor_of_run,
    read_contract,
)

SIZES = ((50, 70), (96, 61), (33, 120))


@pytest.fixture(scope="module")
def detector():
    return make_detector()


@pytest.fixture(scope="module")
def blind():
    """A detector that finds nothing in any image."""
    return make_detector(finds=False)


@pytest.fixture(scope="module")
def predictor(detector):
    return InstancePredictor.from_model(detector)


# === The protocol ===


def test_sizes_are_the_same_of_ints_and_of_tensors():
    protocol = DetectionProtocol()
    rng = np.random.default_rng(0)

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.int32)] * 2)
    def of_tensors(heights, widths):
        each = tf.TensorSpec((2,), tf.int32)
        return tf.map_fn(
            lambda s: tf.stack(protocol.resized(s[0], s[1])),
            tf.stack([heights, widths], 1),
            fn_output_signature=each,
        )

    sides = np.concatenate([rng.integers(1, 3000, (400, 2)), [[480, 640], [1, 1], [1, 9000]]])
    found = of_tensors(*sides.T.astype("int32")).numpy()
    for (h, w), size in zip(sides.tolist(), found.tolist(), strict=True):
        scale = min(800 / min(h, w), 1333 / max(h, w))
        assert tuple(size) == protocol.resized(h, w)
        assert size == [max(int(np.floor(h * scale)), 1), max(int(np.floor(w * scale)), 1)]
        assert max(size) <= 1333 and min(size) <= 800


def test_protocols_that_are_none():
    for values in ({"short_side": 0}, {"long_side": 1.5}, {"size_divisor": True}):
        with pytest.raises(ValueError, match=f"{next(iter(values))} must be an int above 0"):
            DetectionProtocol(**values)
    with pytest.raises(ValueError, match='did you mean "short_side"'):
        DetectionProtocol.from_dict({"short_sid": 3})
    assert DetectionProtocol.of(None) == DetectionProtocol(800, 1333, 32)


# === The contract ===


def test_of_a_model_and_through_a_file(detector):
    contract = contract_of(detector)
    assert contract == InstanceContract(3, NAMES, PALETTE, IDS, DetectionProtocol(**PROTOCOL))
    assert read_contract(contract.to_text()) == contract
    assert json.loads(contract.to_text())["task"] == "instance_segmentation"
    assert contract.files()["labels.txt"] == "cup\ndog\nBäume\n"
    assert list(InstanceContract().files()) == ["isa_tf.json"]
    assert read_contract(contract.of_size((8, 9)).to_text()).image_size == (8, 9)
    damaged = json.loads(contract.to_text())
    del damaged["category_ids"]
    for text in (json.dumps(damaged), json.dumps({**damaged, "category_ids": [1]})):
        with pytest.raises(ValueError, match="damaged isa_tf.json"):
            read_contract(text)


def test_check_refuses_what_finds_no_instances(detector):
    contract = contract_of(detector)
    assert contract.check(detector) == contract
    assert contract.check(detector, (40, 50)).image_size == (40, 50)
    image = keras.Input((None, None, 3))
    other = keras.Model(image, keras.layers.Conv2D(2, 1)(image), name="other")
    with pytest.raises(ValueError, match="other finds no instances: it does not take"):
        contract.check(other)
    inputs = dict(detector.input)
    half = {name: detector.output[name] for name in ("boxes", "scores")}
    with pytest.raises(ValueError, match=r"half finds no instances: it makes .'boxes': \(1, "):
        contract.check(keras.Model(inputs, half, name="half"))


def instances(*each, size=(20, 30)):
    """Instances of (box, class, score), whose masks fill the boxes."""
    boxes = np.float32([box for box, _, _ in each]).reshape(-1, 4)
    masks = np.zeros((len(each), *size), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = True
    classes, scores = (np.array([e[i] for e in each], t) for i, t in ((1, "int32"), (2, "float32")))
    return Instances(boxes, classes, scores, masks)


def test_compare():
    compare = InstanceContract().compare
    cup, dog = ([2, 2, 12, 12], 0, 0.75), ([5, 0, 25, 18], 1, 0.5)
    both, none = instances(cup, dog), instances()
    assert compare([both], [both]) == {
        "agreement": 1.0, "decisions": 2, "kinds": 2, "score_difference": 0.0
    }  # fmt: skip
    # In another order, with other scores.
    swapped = instances(dog, (*cup[:2], 0.5))
    found = compare([both, none], [swapped, none])
    assert found["agreement"] == 1 and found["score_difference"] == 0.25
    for other in (([2, 2, 12, 12], 1, 0.75), ([2, 2, 12, 14], 0, 0.75), ([2, 2, 12, 11], 0, 0.75)):
        # Another class; a corner too far; a mask too different.
        found = compare([both], [instances(other, dog)])
        assert found["agreement"] == pytest.approx(1 / 3) and found["decisions"] == 3
        assert found["score_difference"] == 0.75
    # One detection has one partner.
    found = compare([instances(cup, cup)], [instances(cup)])
    assert found["agreement"] == 0.5 and found["decisions"] == 2
    assert compare([none], [none])["kinds"] == 0 and compare([none], [none])["agreement"] == 1
    assert compare([none], [both])["agreement"] == 0
    nan = both._replace(scores=both.scores * np.nan)
    assert compare([both], [nan])["agreement"] == compare([nan], [nan])["agreement"] == 0


# === The predictor ===


@pytest.mark.some(1)
@pytest.mark.parametrize("size", SIZES)
def test_an_image_goes_in_and_its_instances_come_back(detector, predictor, size):
    image = photos(1, *size)[0]
    truth = expected(detector, image)
    assert len(truth[0]) >= 2
    assert_agrees(predictor(image), truth)


def test_batches_and_lists(detector):
    predictor = predictor_of_model(detector)
    assert isinstance(predictor, InstancePredictor) and predictor.task == "instance_segmentation"
    assert predictor.class_names == NAMES and predictor.category_ids == IDS
    batch = np.concatenate([photos(3, 96, 61), np.zeros((1, 96, 61, 3), np.uint8)])
    lone = [photos(1, 50, 70)[0], batch[0]]
    for found, image in zip(predictor(batch) + predictor(lone), [*batch, *lone], strict=True):
        assert_agrees(found, expected(detector, image))
    assert len({len(found.scores) for found in predictor(batch)}) > 1
    for wrong in (batch.astype("float32"), batch[..., :2], batch[0, 0]):
        with pytest.raises(ValueError, match="reads RGB images as uint8"):
            predictor(wrong)


def test_it_is_traced_once_for_all_sizes(detector, monkeypatch):
    traces = []
    run = InstanceContract.run

    def noted(self, model, images):
        traces.append(images.shape)
        return run(self, model, images)

    monkeypatch.setattr(InstanceContract, "run", noted)
    predictor = InstancePredictor.from_model(detector)
    for size in SIZES:
        predictor(photos(2, *size))
        predictor(photos(1, *size))
    assert [shape.as_list() for shape in traces] == [[None, None, None, 3]]


def test_an_image_without_anything(blind):
    found = InstancePredictor.from_model(blind)(photos(1, 40, 64)[0])
    assert [part.shape for part in found] == [(0, 4), (0,), (0,), (0, 40, 64)]
    answer = contract_of(blind).run(blind, tf.constant(photos(2, 40, 64)))
    shapes = {name: tuple(value.shape) for name, value in answer.items()}
    assert shapes == {
        "boxes": (2, 0, 4), "classes": (2, 0), "scores": (2, 0), "valid": (2, 0),
        "masks": (2, 0, 40, 64),
    }  # fmt: skip


def test_places_that_are_filled_up(detector, blind):
    """For images of one size there is a place even where nothing is found, and it is empty."""
    for model, places in ((blind, 1), (detector, 6)):
        contract = contract_of(model).of_size((40, 64))
        images = photos(1, 40, 64)
        answer = contract.run(model, tf.constant(images))
        assert {value.shape[1] for value in answer.values()} == {places}
        assert answer["valid"].numpy().sum() == len(expected(model, images[0])[0])
        for value in answer.values():
            assert not value.numpy()[~answer["valid"].numpy()].any()


def test_join():
    answers = []
    for places in (2, 0, 3):
        ones = {"boxes": (1, places, 4), "masks": (1, places, 5, 6)}
        ones |= dict.fromkeys(("classes", "scores"), (1, places))
        answers.append({name: np.ones(shape, np.float32) for name, shape in ones.items()})
        answers[-1]["valid"] = np.ones((1, places), bool)
    joined = InstanceContract().join(answers)
    assert joined["valid"].tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1]]
    assert joined["masks"].shape == (3, 3, 5, 6) and joined["masks"].sum() == 5 * 30
    assert joined["boxes"].sum() == 5 * 4 and joined["classes"].dtype == np.float32


def test_a_protocol_of_ones_own(detector):
    image, other = photos(1, 50, 70)[0], {"short_side": 96, "long_side": 200, "size_divisor": 16}
    predictor = predictor_of_model(detector, other)
    assert predictor.protocol == DetectionProtocol(**other)
    assert_agrees(predictor(image), expected(detector, image, other))
    contract = contract_of(detector)
    for protocol in (None, PROTOCOL, DetectionProtocol(**PROTOCOL)):
        predictor_of_run(contract, lambda images: None, protocol)
    with pytest.raises(ValueError, match="sees images by DetectionProtocol.*needs the .keras file"):
        predictor_of_run(contract, lambda images: None, other)
    with pytest.raises(ValueError, match="argument of a protocol 'mode'"):
        predictor_of_model(detector, Protocol().to_dict())
    with pytest.raises(ValueError, match="a DetectionProtocol is needed, .* got Protocol"):
        predictor_of_model(detector, Protocol())


def test_above_and_take():
    some = instances(([0, 0, 2, 2], 0, 0.9), ([0, 0, 3, 3], 1, 0.5), ([0, 0, 4, 4], 2, 0.1))
    assert some.above(0.5).classes.tolist() == [0, 1]
    assert some.take([2, 0]).boxes[:, 3].tolist() == [4, 2]
    assert some.above(2).masks.shape == (0, 20, 30)
