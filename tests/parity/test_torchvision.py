"""Mask R-CNN beside torchvision's, both versions, with its weights: every part, and the losses."""

import importlib.util

import numpy as np
import pytest

if importlib.util.find_spec("torchvision") is None:  # which does not import by itself everywhere
    pytest.skip("torchvision is in the environment of `make parity` alone", allow_module_level=True)

import tensorflow as tf  # noqa: E402
import torch  # noqa: E402
import torchvision_reference as reference  # noqa: E402
from detections import assert_same_detections, few, inputs  # noqa: E402
from torchvision.ops.roi_align import _roi_align  # noqa: E402

from isa_tf import ops  # noqa: E402
from isa_tf.models import from_checkpoint  # noqa: E402
from tools import torchvision_operators as operators  # noqa: E402

LOSSES = {
    "rpn_objectness": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "box_class": "loss_classifier",
    "box": "loss_box_reg",
    "mask": "loss_mask",
}


@pytest.fixture(scope="module", params=[1, 2], ids=["v1", "v2"])
def pair(request, tmp_path_factory):
    """torchvision's model, what it makes of three images in one batch, and ours of its weights."""
    theirs = reference.mask_rcnn(request.param)
    path = tmp_path_factory.mktemp("torchvision") / "mask_rcnn.pth"
    reference.save(theirs, path)
    ours, source, report = from_checkpoint(path, **few())
    path.unlink()
    assert source == "torchvision_detection" and report == ([], [])
    assert ours.normalized_heads == (request.param == 2)
    return theirs, reference.record(theirs, reference.pictures()), ours


def assert_near(found, expected, part=1e-4):
    """To a part of the largest magnitude."""
    assert np.shape(found) == np.shape(expected)
    assert np.abs(np.asarray(found) - expected).max() <= part * np.abs(expected).max()


def test_pyramid_and_proposal_head(pair):
    _, expected, ours = pair
    seen = ours._run_trunk(inputs(expected), training=False)
    for found, theirs in zip(seen["pyramid"], expected["maps"].values(), strict=False):
        assert_near(found, theirs)
    for name, last in (("logits", ()), ("codes", (4,))):
        for found, theirs in zip(seen[name], expected[name], strict=True):
            assert_near(found, theirs.reshape(len(theirs), -1, *last))


def test_proposals(pair):
    _, expected, ours = pair
    seen = ours._run_trunk(inputs(expected), training=False)
    told = {name: seen[name] for name in ("logits", "codes", "anchors")}
    boxes, valid = ours.get_layer("proposals")({**told, "size": expected["size"]})
    for found, counts, theirs in zip(boxes, valid, expected["proposals"], strict=True):
        assert int(tf.math.count_nonzero(counts)) == len(theirs) > 100
        np.testing.assert_allclose(found[: len(theirs)], theirs, atol=0.05)


def test_detections_of_a_padded_batch(pair):
    _, expected, ours = pair
    assert_same_detections(ours(inputs(expected)), expected)


def test_detections_of_single_images(pair):
    theirs, _, ours = pair
    for picture in reference.pictures(seed=5):
        expected = reference.record(theirs, [picture])
        assert_same_detections(ours(inputs(expected)), expected)


def test_fewer_detections_than_there_is_room_for(pair):
    """A threshold that most scores are below; images without padding are read alone."""
    theirs, _, ours = pair
    picture = reference.pictures([(160, 192)], seed=9)
    theirs.roi_heads.score_thresh = 0.8
    try:
        expected = reference.record(theirs, picture)
    finally:
        theirs.roi_heads.score_thresh = 0.05
    detect = ours.get_layer("detections")
    detect.score_threshold = 0.8
    try:
        found = ours(tf.constant(expected["image"]))
    finally:
        detect.score_threshold = 0.05
    assert len(expected["boxes"][0]) < 90
    assert_same_detections(found, expected)
    assert not found["boxes"][0, len(expected["boxes"][0]) :].numpy().any()


def batch_of(found, targets):
    """Our truth of torchvision's targets.

    torchvision reads a true mask as if pixel i lay at i, not i + 0.5: that is said here by where
    the masks lie, half a pixel up and to the left.
    """
    number = max(len(t["boxes"]) for t in targets)
    batch, (height, width) = len(targets), found["image"].shape[1:3]
    y = {
        "boxes": np.zeros((batch, number, 4), "float32"),
        "classes": np.zeros((batch, number), "int32"),
        "valid": np.zeros((batch, number), bool),
        "crowd": np.zeros((batch, number), bool),
        "masks": np.zeros((batch, number, height, width), "uint8"),
        "mask_boxes": np.float32([[[-0.5, -0.5, width - 0.5, height - 0.5]] * number] * batch),
        "seed": np.zeros((batch, 2), "int32"),
    }
    for i, target in enumerate(targets):
        count, (h, w) = len(target["boxes"]), target["masks"].shape[1:]
        y["boxes"][i, :count] = target["boxes"]
        y["classes"][i, :count] = target["labels"] - 1
        y["valid"][i, :count] = True
        y["masks"][i, :count, :h, :w] = 255 * target["masks"].numpy()
    return {name: tf.constant(value) for name, value in y.items()}


def drawn_anchors(marks, anchors, y):
    """What `ops.anchor_targets` would have told of the anchors that torchvision drew."""
    count = int((marks >= 0).sum(1).max())
    indices = np.argsort(-marks, 1, kind="stable")[:, :count]
    told = np.take_along_axis(marks, indices, 1)
    quality = np.stack([ops.box_iou(boxes, anchors).numpy() for boxes in y["boxes"]])
    best = np.take_along_axis(quality.argmax(1), indices, 1)
    return {
        "indices": tf.constant(indices.astype("int32")),
        "valid": told >= 0,
        "positive": told > 0,
        "references": tf.gather(anchors, indices),
        "boxes": tf.gather(y["boxes"], best, batch_dims=1),
    }


def drawn_rois(expected, y):
    """What `ops.proposal_targets` would have told of the RoIs that torchvision drew."""
    parts = []
    for rois, labels, matches in zip(
        *(expected[name] for name in ("rois", "roi_labels", "roi_matches")), strict=True
    ):
        order = np.argsort(labels == 0, kind="stable")  # positives come first here
        parts.append((rois[order], labels[order].astype("int32"), matches[order].astype("int32")))
    references, labels, matches = (np.stack(each) for each in zip(*parts, strict=True))
    return {
        "references": tf.constant(references),
        "labels": tf.constant(labels),
        "matches": tf.constant(matches),
        "boxes": tf.gather(y["boxes"], matches, batch_dims=1),
        "valid": tf.ones(labels.shape, tf.bool),
    }


def test_losses_of_what_torchvision_draws(pair):
    theirs, found, ours = pair
    targets = reference.truth(
        found["size"], (4, 3, 5), theirs.roi_heads.box_predictor.cls_score.out_features
    )
    expected = reference.record_losses(theirs, found["image"], found["size"], targets)
    y = batch_of(found, targets)
    seen = ours._run_trunk(inputs(found), training=False)
    logits, codes = tf.concat(seen["logits"], 1), tf.concat(seen["codes"], 1)
    marks = np.stack(expected["anchors"])
    drawn = drawn_anchors(marks, tf.concat(seen["anchors"], 0), y)
    assert (marks > 0).sum() > 10
    picked = {"indices": drawn["indices"], "batch_dims": 1}
    losses = ours.rpn_losses(tf.gather(logits, **picked), tf.gather(codes, **picked), drawn)
    drawn = drawn_rois(expected, y)
    assert tf.math.count_nonzero(drawn["labels"]) > 5
    losses |= ours.roi_losses(seen["pyramid"], drawn, y, training=False)
    assert losses.keys() == LOSSES.keys()
    for name, value in losses.items():
        np.testing.assert_allclose(value, expected["losses"][LOSSES[name]], rtol=1e-4)
    # And what is drawn here is of what torchvision draws from: positives are the same.
    targets = ops.anchor_targets(tf.concat(seen["anchors"], 0), y, 256)
    for ours_, theirs_ in zip(
        tf.reduce_sum(tf.cast(targets["positive"], tf.int32), 1), marks, strict=True
    ):
        assert int(ours_) == (theirs_ > 0).sum()


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("samples", [2, 0])
def test_what_stands_for_torchvisions_operators(samples, aligned):
    """RoIAlign equals torchvision's own plain one, which is too slow; suppression, by hand."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(2, 4, 20, 30)).astype("float32"))
    boxes = np.sort(rng.uniform(0, 1, (40, 2, 2)), 1) * [240, 160]
    index = rng.integers(0, 2, (40, 1))
    rois = torch.from_numpy(np.concatenate([index, boxes.reshape(-1, 4)], 1).astype("float32"))
    expected = _roi_align.__wrapped__(x, rois, 1 / 8, 7, 7, samples, aligned)
    found = operators.roi_align(x, rois, 7, 1 / 8, samples, aligned)
    np.testing.assert_allclose(found, expected, atol=3e-5)
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5], [6, 6, 9, 9], [1, 1, 1, 1]])
    kept = operators.nms(boxes, torch.tensor([0.5, 0.9, 0.7, 0.6]), 0.5)
    assert kept.tolist() == [1, 2, 3]
