"""Mask R-CNNs of torchvision, Detectron2 and mmdetection: a narrow one with what it computes."""

import pickle

import numpy as np
import pytest
import tensorflow as tf
from detectors import LOSSES, batch_of, drawn_anchors, drawn_rois, legacy, renamed
from golden import MASK_RCNN, MASK_RCNN_EXAMPLES, MASK_RCNN_FEW, checkpoint_arrays, examples

from isa_tf.models import from_checkpoint
from isa_tf.weights import torchvision_detection


@pytest.fixture(scope="module")
def expected():
    return examples(MASK_RCNN_EXAMPLES)


@pytest.fixture(scope="module")
def model():
    converted = from_checkpoint(MASK_RCNN, **MASK_RCNN_FEW)
    assert converted.source == "torchvision_detection" and converted.report == ([], [])
    return converted.model


def inputs(expected):
    return {
        "image": tf.constant(expected["image"].astype("float32")),
        "size": tf.constant(expected["size"]),
    }


def test_what_the_tensors_tell(model):
    assert (model.backbone.depth, model.backbone.filters, model.backbone.stem) == (18, 4, "v1")
    told = ("num_classes", "filters", "rpn_convs", "box_convs", "box_units", "mask_convs")
    assert [getattr(model, name) for name in told] == [5, 8, 1, 0, (16, 16), 4]
    assert not model.normalized_heads
    assert model.freeze_norm  # the file counts no batches, as those of frozen ones


def test_detections_are_torchvisions(model, expected):
    found = {name: value.numpy() for name, value in model(inputs(expected)).items()}
    for i in range(2):
        count = len(expected[f"scores{i}"])
        assert found["valid"][i].sum() == count == 12
        np.testing.assert_allclose(found["boxes"][i], expected[f"boxes{i}"], rtol=0, atol=0.05)
        np.testing.assert_allclose(found["scores"][i], expected[f"scores{i}"], rtol=0, atol=1e-4)
        np.testing.assert_array_equal(found["classes"][i] + 1, expected[f"labels{i}"])
        np.testing.assert_allclose(found["masks"][i], expected[f"masks{i}"], rtol=0, atol=2e-3)


def test_proposals_are_torchvisions(model, expected):
    seen = model._run_trunk(inputs(expected), training=False)
    logits = tf.concat(seen["logits"], 1)
    largest = np.abs(expected["logits"]).max()
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=1e-4 * largest)
    told = {name: seen[name] for name in ("logits", "codes", "anchors")}
    boxes, valid = model.get_layer("proposals")({**told, "size": expected["size"]})
    for i in range(2):
        count = len(expected[f"proposals{i}"])
        assert int(tf.math.count_nonzero(valid[i])) == count > 20
        theirs = expected[f"proposals{i}"]
        np.testing.assert_allclose(boxes[i, :count], theirs, rtol=0, atol=0.05)


def test_losses_are_torchvisions(model, expected):
    """On the anchors and RoIs that torchvision has drawn."""
    targets = [
        {name: expected[f"true_{name}{i}"] for name in ("boxes", "labels", "masks")} for i in (0, 1)
    ]
    y = batch_of(expected["image"].shape[1:3], targets)
    seen = model._run_trunk(inputs(expected), training=False)
    drawn = drawn_anchors(expected["anchors"], tf.concat(seen["anchors"], 0), y)
    picked = {"indices": drawn["indices"], "batch_dims": 1}
    logits, codes = (tf.gather(tf.concat(seen[name], 1), **picked) for name in ("logits", "codes"))
    losses = model.rpn_losses(logits, codes, drawn)
    losses |= model.roi_losses(seen["pyramid"], drawn_rois(expected, y), y, training=False)
    for name, value in losses.items():
        np.testing.assert_allclose(value, expected[LOSSES[name]], rtol=1e-4)


def save(path, arrays):
    with open(path, "wb") as file:
        np.savez(file, **arrays)
    return path


def assert_same_weights(model, other):
    for ours, theirs in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_names_of_torchvisions_first_files(model, tmp_path):
    arrays = legacy(checkpoint_arrays(MASK_RCNN))
    assert {"rpn.head.conv.weight", "backbone.fpn.inner_blocks.0.bias"} < arrays.keys()
    found = from_checkpoint(save(tmp_path / "old.npz", arrays), **MASK_RCNN_FEW).model
    assert_same_weights(found, model)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_detectron2_by_pickles(model, tmp_path, protocol):
    """As it publishes them: arrays under "model"; BGR and the last class's place are undone."""
    arrays = renamed(checkpoint_arrays(MASK_RCNN), "detectron2")
    arrays["proposal_generator.anchor_generator.cell_anchors.0"] = np.zeros((3, 4), "float32")
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}, protocol))
    # Blocks of two convolutions have no stride in a 1x1 one.
    few = {**MASK_RCNN_FEW, "backbone": {"stride_in_1x1": False}}
    found, source, report = from_checkpoint(path, **few)
    assert source == "detectron2" and report.kept == []
    assert report.left_over == ["proposal_generator.anchor_generator.cell_anchors.0"]
    assert_same_weights(found, model)
    assert (found.aligned, found.sampling_ratio, found.anchors) == (True, 0, "detectron")
    assert found.backbone.std == (1.0, 1.0, 1.0) and found.beta == 0


def test_mmdetection(model, tmp_path):
    arrays = renamed(checkpoint_arrays(MASK_RCNN), "mmdet")
    found, source, report = from_checkpoint(save(tmp_path / "mmdet", arrays), **MASK_RCNN_FEW)
    assert source == "mmdet" and report == ([], [])
    assert_same_weights(found, model)
    assert (found.aligned, found.sampling_ratio, found.freeze_norm) == (True, 0, True)


def test_other_classes_get_new_heads(model):
    found, _, report = from_checkpoint(MASK_RCNN, num_classes=2, **MASK_RCNN_FEW)
    assert len(report.kept) == 6 and found.num_classes == 2
    assert {name.split(".")[1] for name in report.left_over} == {"box_predictor", "mask_predictor"}
    for head, layer in (("rpn_head", "logits"), ("box_head", "dense2"), ("mask_head", "upsample")):
        pairs = (m.get_layer(head).get_layer(layer).get_weights() for m in (found, model))
        for ours, theirs in zip(*pairs, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_context_module_in_the_backbone_stays_as_it_is(model, expected):
    few = {**MASK_RCNN_FEW, "backbone": {"context_at": {"c4": "isa"}}}
    found, _, report = from_checkpoint(MASK_RCNN, **few)
    assert report.kept and all("context" in name for name in report.kept)
    ours, theirs = found(inputs(expected)), model(inputs(expected))
    for name in theirs:  # it begins as the identity
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_all_or_nothing(model):
    arrays = checkpoint_arrays(MASK_RCNN)
    before = model.get_weights()
    for change, message in (
        ({"roi_heads.mask_head.2.0.bias": None}, "roi_heads.mask_head.2.0.bias, for .* is missing"),
        ({"rpn.head.more": np.ones(3)}, "has no place for rpn.head.more"),
        ({"roi_heads.box_predictor.cls_score.bias": np.ones(3)}, "cls_score.bias of shape"),
    ):
        changed = {name: value for name, value in {**arrays, **change}.items() if value is not None}
        changed = {name: value * 2 if value.ndim == 4 else value for name, value in changed.items()}
        with pytest.raises(ValueError, match=message):
            torchvision_detection.load(model, changed, "file.pth")
        for ours, was in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(ours, was)


def test_a_part_that_is_missing_is_named(tmp_path):
    arrays = checkpoint_arrays(MASK_RCNN)
    del arrays["rpn.head.cls_logits.weight"]
    with pytest.raises(ValueError, match="no Mask R-CNN with a pyramid: rpn.head.cls_logits is"):
        from_checkpoint(save(tmp_path / "file.npz", arrays))
    with pytest.raises(ValueError, match="no context_options"):
        from_checkpoint(MASK_RCNN, context_options={"partition": 4})
