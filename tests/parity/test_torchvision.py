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
from detectors import LOSSES, batch_of, drawn_anchors, drawn_rois  # noqa: E402
from torchvision.ops.roi_align import _roi_align  # noqa: E402

from isa_tf import ops  # noqa: E402
from isa_tf.models import from_checkpoint  # noqa: E402
from tools import torchvision_operators as operators  # noqa: E402


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
    for found, counts, theirs, scores in zip(
        boxes.numpy(), valid, expected["proposals"], expected["objectness"], strict=True
    ):
        assert int(tf.math.count_nonzero(counts)) == len(theirs) > 100
        places = set(range(len(theirs)))
        for k in range(len(theirs)):  # in the same order but for ties
            tied = places & set(np.flatnonzero(np.abs(scores - scores[k]) <= 1e-4))
            same = [j for j in tied if np.abs(found[k] - theirs[j]).max() <= 0.05]
            assert same, f"proposal {k} is none of theirs"
            places.remove(same[0])


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


def test_losses_of_what_torchvision_draws(pair):
    theirs, found, ours = pair
    targets = reference.truth(
        found["size"], (4, 3, 5), theirs.roi_heads.box_predictor.cls_score.out_features
    )
    expected = reference.record_losses(theirs, found["image"], found["size"], targets)
    y = batch_of(found["image"].shape[1:3], targets)
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
    # A position away from the edge, beyond which the compiled ones see nothing and the plain one
    # does: there a box that is not aligned may reach, as it is one position long at least.
    boxes = np.sort(rng.uniform(0, 1, (40, 2, 2)), 1) * [232, 152]
    index = rng.integers(0, 2, (40, 1))
    rois = torch.from_numpy(np.concatenate([index, boxes.reshape(-1, 4)], 1).astype("float32"))
    expected = _roi_align.__wrapped__(x, rois, 1 / 8, 7, 7, samples, aligned)
    found = operators.roi_align(x, rois, 7, 1 / 8, samples, aligned)
    np.testing.assert_allclose(found, expected, atol=3e-5)
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5], [6, 6, 9, 9], [1, 1, 1, 1]])
    kept = operators.nms(boxes, torch.tensor([0.5, 0.9, 0.7, 0.6]), 0.5)
    assert kept.tolist() == [1, 2, 3]
