"""What a detector is made of beside convolutions, against loops over boxes in float64."""

import json

import detecting
import keras
import numpy as np
import pytest
import tensorflow as tf

from isa_tf import layers

SIZE = np.int32([[40, 56], [33, 47]])


def boxes(rng, *shape, most=50):
    corners = np.sort(rng.uniform(0, most, (*shape, 2, 2)), -2)
    return corners.reshape(*shape, 4).astype("float32")


def proposals_case():
    rng = np.random.default_rng(0)
    numbers = (60, 15, 4)
    return {
        "logits": [rng.normal(0, 3, (2, n)).astype("float32") for n in numbers],
        "codes": [rng.normal(0, 0.4, (2, n, 4)).astype("float32") for n in numbers],
        "anchors": [boxes(rng, n) for n in numbers],
        "size": SIZE,
    }


def detections_case():
    rng = np.random.default_rng(1)
    seen = np.ones((2, 12), bool)
    seen[1, 9:] = False
    return {
        "logits": rng.normal(0, 2, (24, 4)).astype("float32"),
        "codes": rng.normal(0, 1, (24, 12)).astype("float32"),
        "proposals": boxes(rng, 2, 12),
        "proposals_valid": seen,
        "size": SIZE,
    }


def maps(sizes=((10, 14), (5, 7))):
    rng = np.random.default_rng(2)
    return [rng.normal(size=(2, h, w, 3)).astype("float32") for h, w in sizes]


CASES = {
    "fill": (
        layers.FillPadding,
        {"color": (9.0, 8.0, 7.0)},
        lambda: [np.ones((2, 40, 60, 3), "float32"), SIZE],
    ),
    "anchors": (
        layers.PyramidAnchors,
        {"sizes": (8, 16), "convention": "detectron"},
        lambda: [np.zeros((2, 40, 56, 3), "float32"), *maps()],
    ),
    "proposals": (layers.Proposals, {"before": (30, 10), "after": (9, 7)}, proposals_case),
    "align": (
        layers.PyramidRoIAlign,
        {"output_size": 3, "aligned": True},
        lambda: [boxes(np.random.default_rng(3), 2, 5), *maps()],
    ),
    "detections": (layers.Detections, {"max_detections": 9}, detections_case),
    "masks": (
        layers.MasksOfClasses,
        {},
        lambda: [maps(((4, 4),))[0], np.int32([[2], [1]]), np.array([[True], [False]])],
    ),
}


def test_the_cases_cover_every_layer_of_boxes():
    assert {cls for cls, *_ in CASES.values()} == detecting.OF_BOXES


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    cls, arguments, make = request.param
    return cls, arguments, tf.nest.map_structure(tf.constant, make())


def equal(found, expected, tolerance=0.0):
    for a, b in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance)


def functional(layer, inputs, fixed):
    """A model of a layer alone; heights, widths and numbers of boxes are known or not."""

    def entry(x, name):
        shape = [n if fixed or i == len(x.shape) - 2 else None for i, n in enumerate(x.shape[1:])]
        return keras.Input(shape, batch_size=None, dtype=x.dtype, name=name)

    entries = {f"i{n}": x for n, x in enumerate(tf.nest.flatten(inputs))}
    symbolic = {name: entry(x, name) for name, x in entries.items()}
    packed = tf.nest.pack_sequence_as(inputs, list(symbolic.values()))
    return keras.Model(symbolic, layer(packed)), entries


def test_config(case):
    cls, arguments, inputs = case
    layer = cls(**arguments)
    config = json.loads(json.dumps(layer.get_config()))
    again = cls.from_config(config)
    assert json.loads(json.dumps(again.get_config())) == config
    equal(again(inputs), layer(inputs))
    assert {name: config[name] for name in arguments} == json.loads(json.dumps(arguments))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_graph(case, jit_compile):
    cls, arguments, inputs = case
    layer = cls(**arguments)
    graph = tf.function(lambda x: layer(x), jit_compile=jit_compile)
    equal(graph(inputs), layer(inputs), 1e-5)


@pytest.mark.parametrize("name", ["fill", "align", "masks"])
def test_saving(name, tmp_path):
    cls, arguments, make = CASES[name]
    inputs = tf.nest.map_structure(tf.constant, make())
    model, entries = functional(cls(**arguments), inputs, fixed=name == "masks")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    equal(loaded(entries), cls(**arguments)(inputs))


def test_proposals_equal_loops():
    case = proposals_case()
    for training, before, after in ((True, 30, 9), (False, 10, 7)):
        found = layers.Proposals((30, 10), (9, 7), 0.5)(case, training=training)
        for b in range(2):
            entries = []
            for level in range(3):
                logits = case["logits"][level][b]
                for i in np.argsort(-logits, kind="stable")[:before]:
                    box = detecting.decode(case["codes"][level][b, i], case["anchors"][level][i])
                    box = detecting.clip(box, SIZE[b])
                    if box[2] - box[0] >= 1e-3 and box[3] - box[1] >= 1e-3:
                        entries.append((detecting.sigmoid(logits[i]), level, box))
            expected = [box for *_, box in detecting.suppress(entries, 0.5, after)]
            own, valid = found[0][b].numpy(), found[1][b].numpy()
            assert valid.sum() == len(expected) and valid[: len(expected)].all()
            np.testing.assert_allclose(own[valid], expected, atol=1e-4)
            assert not own[~valid].any()


def test_detections_equal_loops():
    case = detections_case()
    weights = (10, 10, 5, 5)
    found = layers.Detections(9, 0.1, 0.4)(case)
    logits = case["logits"].reshape(2, 12, 4).astype("float64")
    codes = case["codes"].reshape(2, 12, 3, 4)
    for b in range(2):
        entries = []
        for i in np.flatnonzero(case["proposals_valid"][b]):
            shares = np.exp(logits[b, i]) / np.exp(logits[b, i]).sum()
            for kind in range(3):
                box = detecting.decode(codes[b, i, kind], case["proposals"][b, i], weights)
                box = detecting.clip(box, SIZE[b])
                if shares[1 + kind] > 0.1 and min(box[2] - box[0], box[3] - box[1]) >= 1e-2:
                    entries.append((shares[1 + kind], kind, box))
        expected = detecting.suppress(entries, 0.4, 9)
        scores, kinds, own = zip(*expected, strict=True)
        n = len(expected)
        np.testing.assert_allclose(found["scores"][b, :n], scores, rtol=1e-5)
        np.testing.assert_array_equal(found["classes"][b, :n], kinds)
        np.testing.assert_allclose(found["boxes"][b, :n], own, atol=1e-3)
        np.testing.assert_array_equal(found["valid"][b], np.arange(9) < n)
        assert not np.any(found["boxes"][b, n:]) and not np.any(found["scores"][b, n:])


def test_nothing_seen_is_nothing_found():
    case = detections_case()
    case["proposals_valid"][:] = False
    found = layers.Detections(9)(case)
    assert not any(np.any(value) for value in found.values())
    masks = layers.MasksOfClasses()(
        [np.ones((18, 2, 2, 3), "float32"), found["classes"], found["valid"]]
    )
    assert masks.shape == (2, 9, 2, 2) and not np.any(masks)


def test_masks_are_those_of_the_classes():
    logits = np.random.default_rng(4).normal(size=(6, 2, 2, 5)).astype("float32")
    classes, valid = np.int32([[4, 0, 2], [1, 1, 3]]), np.full((2, 3), True)
    valid[1, 2] = False
    masks = layers.MasksOfClasses()([logits, classes, valid])
    for b, i in np.ndindex(2, 3):
        own = 1 / (1 + np.exp(-logits[3 * b + i, :, :, classes[b, i]])) * valid[b, i]
        np.testing.assert_allclose(masks[b, i], own, rtol=1e-5)


@pytest.mark.parametrize("sizes", [((25, 38), (13, 19)), ((8, 6), (4, 3))])
def test_upsampling_equals_loops(sizes):
    fine, coarse = maps(sizes)
    found = layers.AddUpsampled()([fine, coarse]).numpy()
    (height, width), (h, w) = sizes
    for i, j in np.ndindex(height, width):
        expected = fine[:, i, j] + coarse[:, int(i * h / height), int(j * w / width)]
        np.testing.assert_allclose(found[:, i, j], expected, rtol=1e-6)


def test_anchors_of_both_conventions():
    image, pyramid = np.zeros((1, 100, 75, 3), "float32"), maps(((25, 19), (13, 10)))
    exact = layers.PyramidAnchors((32, 64))([image, *pyramid])
    nominal = layers.PyramidAnchors((32, 64), convention="detectron")([image, *pyramid])
    # The second position of the first row, of ratio 1: torchvision's are 75 // 19 = 3 apart.
    np.testing.assert_allclose(exact[0][3 + 1], [3 - 16, -16, 3 + 16, 16])
    np.testing.assert_allclose(nominal[0][3 + 1], [4 - 16, -16, 4 + 16, 16])
    np.testing.assert_allclose(exact[1][3 * 10 + 1], [-32, 7 - 32, 32, 7 + 32])
    np.testing.assert_allclose(nominal[1][3 * 10 + 1], [-32, 8 - 32, 32, 8 + 32])
    # Twice as wide as high, at the same area.
    wide = 32 * np.array([-(2**-0.5), -(8**-0.5), 2**-0.5, 8**-0.5])
    np.testing.assert_allclose(nominal[0][0], wide, rtol=1e-6)
    np.testing.assert_array_equal(exact[0][0], np.round(wide))
    with pytest.raises(ValueError, match="convention must be one of"):
        layers.PyramidAnchors((32,), convention="tf")
