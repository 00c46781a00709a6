"""Mask R-CNN beside what Detectron2's and mmdetection's compute, rendered through torchvision's."""

import importlib.util

import pytest

if importlib.util.find_spec("torchvision") is None:  # which does not import by itself everywhere
    pytest.skip("torchvision is in the environment of `make parity` alone", allow_module_level=True)

import detectron_reference as reference  # noqa: E402
import torchvision_reference  # noqa: E402
from detections import assert_same_detections, few, inputs  # noqa: E402

from isa_tf.models import from_checkpoint  # noqa: E402


@pytest.mark.parametrize("source", ["detectron2", "mmdet"])
def test_detections(source, tmp_path):
    theirs = reference.mask_rcnn(source)
    reference.save(theirs, tmp_path / "model", source)
    ours, found, report = from_checkpoint(tmp_path / "model", **few())
    left_over = ["pixel_mean"] if source == "detectron2" else []
    assert found == source and report == (left_over, [])
    assert ours.backbone.stride_in_1x1 == (source == "detectron2")
    assert ours.aligned and ours.sampling_ratio == 0 and ours.freeze_norm
    with reference.aligned_rois():
        expected = torchvision_reference.record(theirs, torchvision_reference.pictures())
    assert_same_detections(ours(inputs(expected)), expected)
