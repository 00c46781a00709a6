"""Checkpoints of others become models: the golden files of mmsegmentation, and what is refused."""

import keras
import numpy as np
import pytest
from golden import CHECKPOINT, EXAMPLES, HRNET, HRNET_EXAMPLES, checkpoint_arrays, examples

from isa_tf.models import Segmenter, from_checkpoint
from isa_tf.models.segmenter import AUXILIARY, LOGITS
from isa_tf.testing import relative_error
from isa_tf.weights import openseg


def save(tmp_path, tensors):
    path = tmp_path / "checkpoint.npz"
    np.savez(path, **tensors)
    return path


@pytest.mark.parametrize("network", ["resnet", "hrnet"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners"])
def test_golden(coordinates, network):
    """mmsegmentation's logits of both heads, to 1e-4 of their largest magnitude."""
    path, arguments = CHECKPOINT, {"coordinates": coordinates}
    if network == "hrnet":  # which concatenates its scales as the head resizes its logits
        path, arguments = HRNET, {**arguments, "backbone": dict(arguments)}
    model, source, report = from_checkpoint(path, **arguments)
    assert source == "mmseg" and report == ([], [])
    wanted = examples(HRNET_EXAMPLES if network == "hrnet" else EXAMPLES)
    image = wanted["image"].astype("float32")
    logits = model(image)
    assert relative_error(logits, wanted[coordinates]) < 1e-4
    agree = np.argmax(logits, -1) == wanted[coordinates].argmax(-1)
    assert agree.mean() >= 0.9999
    # Batch statistics would differ, so the auxiliary head is read as it is in evaluation.
    layers = {name: model.get_layer(name).output for name in (LOGITS, AUXILIARY)}
    both = keras.Model(model.input, layers)(image)
    assert relative_error(both[AUXILIARY], wanted[f"auxiliary_{coordinates}"]) < 1e-4


def test_the_two_ways_of_resizing_differ():
    wanted = examples()
    assert relative_error(wanted["half_pixel"], wanted["align_corners"]) > 1e-2


def test_the_architecture_is_told_from_the_tensors(tmp_path):
    model = from_checkpoint(CHECKPOINT).model
    assert isinstance(model, Segmenter)
    backbone = model.backbone
    assert (backbone.depth, backbone.stem, backbone.filters) == (50, "v1c", 4)
    assert backbone.output_stride == 8 and backbone.contract_dilation
    assert (model.num_classes, model.head_filters, model.context.key_filters) == (5, 32, 16)
    assert (model.auxiliary_level, model.auxiliary_filters) == ("c4", 16)
    assert not model.context.mask_padding
    hrnet = from_checkpoint(HRNET).model
    assert (hrnet.backbone.width, hrnet.backbone.filters, hrnet.backbone.blocks) == (2, 4, 1)
    assert hrnet.backbone.modules == (1, 2, 1) and hrnet.backbone.fuse_by == "factor"
    assert hrnet.auxiliary_level == "concatenated"
    # A checkpoint without an auxiliary head makes a model without one.
    tensors = {k: v for k, v in checkpoint_arrays().items() if "auxiliary" not in k}
    model, _, report = from_checkpoint(save(tmp_path, tensors))
    assert model.auxiliary_level is None and report == ([], [])


def test_other_classes_keep_all_but_the_classifiers():
    old = from_checkpoint(CHECKPOINT).model
    new, _, report = from_checkpoint(CHECKPOINT, num_classes=7)
    assert report.left_over == [
        f"{head}.conv_seg.{part}"
        for head in ("auxiliary_head", "decode_head")
        for part in ("bias", "weight")
    ]
    assert len(report.kept) == 4 and all("classifier" in path for path in report.kept)
    for a, b in zip(old.weights, new.weights, strict=True):
        if "classifier" in a.path:
            assert b.shape[-1] == 7
        else:
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"decode_head.out_conv.bn.bias": None},
            r"decode_head\.out_conv\.bn\.bias, for .*context/fusion/norm/beta, is missing",
        ),
        (
            {"decode_head.in_conv.conv.weight": np.zeros((32, 128, 1, 1), "float32")},
            r"in_conv\.conv\.weight of shape \(32, 128, 1, 1\) doesn't fit .*head/conv/kernel of",
        ),
        (
            {"decode_head.pam.gamma": np.zeros(1, "float32")},
            r"has no place for decode_head\.pam\.gamma",
        ),
        (
            {"decode_head.global_relation.value_project.bias": None},
            r"value_project\.bias, for .*output/norm/moving_mean, is missing",
        ),
    ],
    ids=["missing", "shape", "unknown", "folded"],
)
def test_what_does_not_fit(tmp_path, change, message):
    tensors = {k: v for k, v in {**checkpoint_arrays(), **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        from_checkpoint(save(tmp_path, tensors))


def test_another_architecture(tmp_path):
    tensors = checkpoint_arrays()
    other = {k.replace("global_relation", "psp_modules"): v for k, v in tensors.items()}
    path = save(tmp_path, other)
    with pytest.raises(ValueError, match="not mmsegmentation's ISANet.*its head has .*psp_modules"):
        from_checkpoint(path, "mmseg")
    with pytest.raises(ValueError, match="not the official code's ISANet"):
        from_checkpoint(path, "openseg")
    with pytest.raises(ValueError, match='unknown source "?\'?mmsegg.*did you mean "mmseg"'):
        from_checkpoint(path, "mmsegg")
    with pytest.raises(
        ValueError, match=r"the network has 1 partitions.*context_options=\{'partition'"
    ):
        from_checkpoint(CHECKPOINT, context_options={"partition": [8, 4]})


def test_in_place_activated_bn_is_told_from_its_names():
    abn = {"isa_head.1.weight": 0}
    plain = {"module.isa_head.1.0.weight": 0}
    assert openseg.in_place(abn) and not openseg.in_place(plain)
