"""HRNets beside those of mmsegmentation 1.2.2 and timm, with their weights."""

import numpy as np
import pytest

pytest.importorskip("mmseg", reason="mmsegmentation is in the environment of `make parity` alone")

import hrnet_reference as reference  # noqa: E402
import keras  # noqa: E402
import mmseg_reference  # noqa: E402
import parity  # noqa: E402
import torch  # noqa: E402
from parity import images  # noqa: E402

from isa_tf.backbones import HRNet  # noqa: E402
from isa_tf.models import from_checkpoint  # noqa: E402

SIZES = [(129, 257), (97, 161), (75, 43)]
LEFT_OVER = ("classifier.", "downsamp_modules.", "final_layer.", "incre_modules.")


def check(ours, theirs, image):
    """To 1e-4 of the largest magnitude of each map."""
    found = ours(image.astype("float32"))
    for name, expected in theirs.items():
        assert found[name].shape == expected.shape
        assert np.ptp(expected, axis=(1, 2)).max() > 0.2 * np.abs(expected).max()
        error = np.abs(found[name] - expected).max() / np.abs(expected).max()
        assert error <= 1e-4, (name, image.shape)


def converted(model, path, **arguments):
    torch.save(model.state_dict(), path)
    ours, source, report = from_checkpoint(path, backbone=arguments)
    path.unlink()
    assert source == "hrnet" and isinstance(ours, HRNet) and report.kept == []
    return ours, report.left_over


@pytest.mark.parametrize("width", [18, 32, 48])
def test_mmsegmentation(width, tmp_path):
    theirs = reference.mmseg(width)
    ours, left_over = converted(theirs, tmp_path / "hrnet.pth", fuse_by="factor")
    assert left_over == [] and ours.width == width
    for size in SIZES:
        image = images(*size)
        check(ours, reference.features(reference.scales(theirs, image)), image)


@pytest.mark.parametrize("align_corners", [False, True], ids=["half_pixel", "align_corners"])
def test_the_official_ways_of_resizing(align_corners, tmp_path):
    theirs = reference.mmseg(18)
    coordinates = "align_corners" if align_corners else "half_pixel"
    ours, _ = converted(theirs, tmp_path / "hrnet.pth", coordinates=coordinates)
    theirs = reference.official(theirs, align_corners)
    for size in SIZES:
        image = images(*size)
        scales = reference.scales(theirs, image)
        check(ours, reference.features(scales, align_corners), image)


@pytest.mark.parametrize("width", [18, 48])
def test_timm(width, tmp_path):
    theirs = reference.timms(width)
    ours, left_over = converted(theirs, tmp_path / "hrnet.pth")
    assert ours.width == width
    assert {name.split(".")[0] + "." for name in left_over} == set(LEFT_OVER)
    for size in [(128, 96), (96, 160)]:
        image = images(*size)
        check(ours, reference.features(reference.timm_scales(theirs, image)), image)


@pytest.mark.parametrize("align_corners", [False, True], ids=["half_pixel", "align_corners"])
def test_isanet(align_corners, tmp_path):
    """The logits of both heads, which read all scales."""
    theirs = reference.isanet(18, 7, align_corners, modules=(1, 1, 1))
    mmseg_reference.save(theirs, tmp_path / "isanet.pth")
    arguments = {"coordinates": "align_corners" if align_corners else "half_pixel"}
    ours, source, report = from_checkpoint(tmp_path / "isanet.pth", backbone=arguments, **arguments)
    assert source == "mmseg" and report == ([], [])
    assert ours.auxiliary_level == "concatenated"
    for i, head in enumerate(("logits", "auxiliary_logits")):
        model = keras.Model(ours.input, ours.get_layer(head).output)
        xs = [images(*size) for size in SIZES]
        parity.check((model(x.astype("float32")), mmseg_reference.logits(theirs, x)[i]) for x in xs)
