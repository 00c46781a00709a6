"""What is drawn and what is true of it, against loops over boxes."""

import sys

import detecting
import numpy as np
import pytest
import tensorflow as tf

from isa_tf import ops
from isa_tf.ops.targets import uniform


def anchors(number=400, seed=3):
    rng = np.random.default_rng(seed)
    corner, side = rng.uniform(-20, 110, (number, 2)), rng.uniform(8, 50, (number, 2))
    return np.concatenate([corner, corner + side], -1).astype("float32")


def truth(seed=0):
    return {name: value.numpy() for name, value in detecting.batch(seed=seed)[1].items()}


def labels_by_loops(boxes, told, b, low, high, low_quality):
    """(label, match) of every box against the objects of image b."""
    objects = np.flatnonzero(told["valid"][b] & ~told["crowd"][b])
    crowds = np.flatnonzero(told["crowd"][b])
    table = [[detecting.iou(box, told["boxes"][b, n]) for n in objects] for box in boxes]
    best = np.max(table, 0)
    found = []
    for box, row in zip(boxes, table, strict=True):
        label = 1 if max(row) >= high else 0 if max(row) < low else -1
        if label == 0 and any(detecting.coverage(box, told["boxes"][b, n]) > 0.5 for n in crowds):
            label = -1
        if low_quality and any(value == top > 0 for value, top in zip(row, best, strict=True)):
            label = 1
        found.append((label, objects[int(np.argmax(row))]))
    return found


def test_anchors_drawn():
    told, boxes = truth(), anchors()
    drawn = ops.anchor_targets(boxes, truth(), count=40, low=0.3, high=0.6)
    drawn = {name: value.numpy() for name, value in drawn.items()}
    for b in range(2):
        expected = labels_by_loops(boxes, told, b, 0.3, 0.6, True)
        positives = [i for i, (label, _) in enumerate(expected) if label == 1]
        own = drawn["indices"][b][drawn["valid"][b]]
        positive = drawn["positive"][b][drawn["valid"][b]]
        assert 0 < len(positives) and len(set(own)) == len(own) == 40
        assert positive.sum() == min(len(positives), 20)
        for i, is_positive in zip(own, positive, strict=True):
            assert expected[i][0] == int(is_positive)
        for place, i in enumerate(drawn["indices"][b]):
            np.testing.assert_array_equal(drawn["references"][b, place], boxes[i])
            if drawn["positive"][b, place]:
                match = told["boxes"][b, expected[i][1]]
                np.testing.assert_array_equal(drawn["boxes"][b, place], match)
    with pytest.raises(ValueError, match="low must not be above high"):
        ops.anchor_targets(boxes, truth(), low=0.5, high=0.4)


def test_proposals_drawn():
    told = truth()
    proposals = np.stack([anchors(60, seed) for seed in (4, 5)])
    proposals[:, :20] = told["boxes"][:, [0]] + np.random.default_rng(0).normal(0, 4, (2, 20, 4))
    seen = np.arange(60) < np.array([[60], [50]])
    drawn = ops.proposal_targets(proposals, seen, truth(), 32, 0.25)
    drawn = {name: value.numpy() for name, value in drawn.items()}
    for b in range(2):
        among = np.concatenate([proposals[b], told["boxes"][b]])
        usable = np.concatenate([seen[b], told["valid"][b] & ~told["crowd"][b]])
        expected = labels_by_loops(among, told, b, 0.5, 0.5, False)
        of_box = {tuple(box): e for box, e, u in zip(among, expected, usable, strict=True) if u}
        positives = sum(label == 1 for label, _ in of_box.values())
        assert (drawn["labels"][b] > 0).sum() == min(positives, 8) == 8
        # Positives come first.
        assert (np.diff((drawn["labels"][b] > 0).astype(int)) <= 0).all()
        own = drawn["references"][b][drawn["valid"][b]]
        assert len({tuple(box) for box in own}) == len(own) > 20
        for place in np.flatnonzero(drawn["valid"][b]):
            label, match = of_box[tuple(drawn["references"][b, place])]
            kind = 1 + told["classes"][b, match] if label == 1 else 0
            assert label in (0, 1) and drawn["labels"][b, place] == kind
            if label == 1:
                assert drawn["matches"][b, place] == match
                np.testing.assert_array_equal(drawn["boxes"][b, place], told["boxes"][b, match])


def test_an_image_without_objects_has_negatives_alone():
    told = truth()
    told["valid"][:] = False
    told["crowd"][:] = False
    drawn = ops.anchor_targets(anchors(), told, count=40)
    assert drawn["valid"].numpy().all() and not drawn["positive"].numpy().any()
    drawn = ops.proposal_targets(anchors()[None].repeat(2, 0), np.full((2, 400), True), told, 32)
    assert drawn["valid"].numpy().all() and not drawn["labels"].numpy().any()


def test_what_is_drawn_is_of_the_seed_alone():
    told, boxes = truth(), anchors()
    first = ops.anchor_targets(boxes, truth(), 40)["indices"].numpy()
    compiled = tf.function(lambda t: ops.anchor_targets(boxes, t, 40), jit_compile=True)
    np.testing.assert_array_equal(compiled(truth())["indices"], first)
    # Of an image's own, not of its place in the batch.
    turned = {name: value[::-1].copy() for name, value in told.items()}
    np.testing.assert_array_equal(ops.anchor_targets(boxes, turned, 40)["indices"], first[::-1])
    told["seed"] += 1
    assert np.any(ops.anchor_targets(boxes, told, 40)["indices"].numpy() != first)


def test_random_numbers_are_uniform():
    values = uniform(tf.constant([[0, 1], [0, 2], [7, 1]]), 1, 20_000).numpy()
    assert values.min() >= 0 and values.max() < 1
    counts = np.stack([np.histogram(row, 50, (0, 1))[0] for row in values])
    statistic = ((counts - 400) ** 2 / 400).sum(1)  # chi-squared of 49 degrees: 49 +- 10
    assert (statistic < 90).all() and (statistic > 20).all()
    # Of independent numbers each of these is within 1 / sqrt(20000) = 0.007 or so.
    together = np.corrcoef(np.concatenate([values, np.roll(values, 1, 1), np.roll(values, 64, 1)]))
    assert np.abs(together - np.eye(9)).max() < 0.03
    assert np.any(uniform(tf.constant([[0, 1]]), 2, 9) != values[:1, :9])


def test_masks_are_shares_of_what_is_covered():
    # The left half of a rectangle, which covers more of the image than the box itself.
    mask = np.zeros((1, 1, 32, 32), "uint8")
    mask[..., 16:] = 255
    told = {"masks": mask, "mask_boxes": np.float32([[[10, 20, 42, 52]]])}
    boxes = np.float32([[[18, 28, 34, 44], [26, 20, 42, 52], [10, 20, 26, 52], [60, 60, 90, 90]]])
    found = ops.mask_targets(boxes, np.zeros((1, 4), "int32"), told, 4).numpy()[0]
    np.testing.assert_allclose(found[0], np.tile([0, 0, 1, 1], (4, 1)), atol=0.13)
    np.testing.assert_allclose(found[0].mean(), 0.5, atol=1e-6)
    np.testing.assert_allclose(found[1], 1, atol=0.13)
    np.testing.assert_allclose(found[2][:, :3], 0, atol=1e-6)
    assert not found[3].any()


def test_masks_of_whole_images_are_cropped_as_ever():
    """With masks as large as the image, it is `crop_masks`, which has its own reference."""
    rng = np.random.default_rng(0)
    masks = (rng.uniform(size=(1, 2, 30, 40)) < 0.5).astype("uint8")
    boxes = np.float32([[[3.3, 5.1, 20.7, 25.2], [-4, 2, 50, 20]]])
    whole = np.tile(np.float32([-0.5, -0.5, 39.5, 29.5]), (1, 2, 1))
    told = {"masks": masks * 255, "mask_boxes": whole}
    matches = np.int32([[1, 0]])
    found = ops.mask_targets(boxes, matches, told, 7)
    np.testing.assert_allclose(found, ops.crop_masks(masks, boxes, matches, (7, 7)), atol=1e-5)


def test_what_counts_alone_takes_many_samples(monkeypatch):
    """A mask that is padding has a box of no size, beside which any other is endlessly long."""
    told = {
        "masks": np.full((1, 2, 8, 8), 255, "uint8"),
        "mask_boxes": np.float32([[[10, 20, 30, 40], [0, 0, 0, 0]]]),
    }
    boxes = np.float32([[[12, 20, 30, 38], [0, 0, 90, 90], [0, 0, 90, 90]]])
    matches, positive = np.int32([[0, 0, 1]]), np.array([[True, False, False]])
    longest = []

    def crop(masks, boxes, *rest):
        longest.append(float(tf.reduce_max(boxes[..., 2:] - boxes[..., :2])))
        return ops.crop_masks(masks, boxes, *rest)

    monkeypatch.setattr(sys.modules["isa_tf.ops.targets"], "crop_masks", crop)
    found = ops.mask_targets(boxes, matches, told, 4, positive)
    assert longest.pop() <= 8
    np.testing.assert_array_equal(found[0, 0], ops.mask_targets(boxes[:, :1], [[0]], told, 4)[0, 0])
