"""ISANet beside mmsegmentation 1.2.2, with its weights, on images of many sizes."""

import numpy as np
import pytest

pytest.importorskip("mmseg", reason="mmsegmentation is in the environment of `make parity` alone")

import keras  # noqa: E402
import mmseg_reference as reference  # noqa: E402
from parity import check, images  # noqa: E402

from isa_tf.inference import (  # noqa: E402
    Predictor,
    Protocol,
    pieces,
    resize_image,
    view_logits,
    view_size,
)
from isa_tf.models import from_checkpoint  # noqa: E402

SIZES = [(128, 128), (129, 257), (97, 161)]
COORDINATES = {False: "half_pixel", True: "align_corners"}


@pytest.fixture(scope="module", params=[False, True], ids=["half_pixel", "align_corners"])
def align_corners(request):
    return request.param


@pytest.fixture(scope="module", params=[50, 101], ids=["r50", "r101"])
def pair(request, align_corners, tmp_path_factory):
    """mmsegmentation's model, and this package's with its weights."""
    theirs = reference.isanet(request.param, align_corners=align_corners)
    path = tmp_path_factory.mktemp("mmseg") / "isanet.pth"
    reference.save(theirs, path)
    ours, source, report = from_checkpoint(path, coordinates=COORDINATES[align_corners])
    assert source == "mmseg" and report == ([], [])
    assert ours.backbone.depth == request.param
    path.unlink()
    return theirs, ours


@pytest.mark.parametrize("head", ["logits", "auxiliary_logits"])
def test_logits(pair, head):
    theirs, ours = pair
    model = keras.Model(ours.input, ours.get_layer(head).output)

    def both(size):
        x = images(*size)
        return model(x.astype("float32")), reference.logits(theirs, x)[head != "logits"]

    check(map(both, SIZES))


@pytest.mark.parametrize(("crop_size", "stride"), [(97, 65), (769, 513)])
def test_slide(align_corners, tmp_path, crop_size, stride):
    """With the published window on an image that it is larger than, and a small one on a larger."""
    test_cfg = {"mode": "slide", "crop_size": [crop_size] * 2, "stride": [stride] * 2}
    theirs = reference.isanet(50, 7, align_corners, filters=8, test_cfg=test_cfg)
    reference.save(theirs, tmp_path / "isanet.pth")
    ours = from_checkpoint(tmp_path / "isanet.pth", coordinates=COORDINATES[align_corners]).model
    x = images(130, 201)
    protocol = Protocol("slide", crop_size, stride)
    (found,) = view_logits(ours, x, protocol, ours.coordinates)
    check([(found, reference.whole_or_slide(theirs, x))])


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_multi_scale_and_flip(align_corners, tmp_path, monkeypatch, mode):
    """At once, and in the pieces and bands that large images are predicted in."""
    window = {"crop_size": (97, 97), "stride": (65, 65)} if mode == "slide" else {}
    test_cfg = {"mode": mode, **{name: list(value) for name, value in window.items()}}
    theirs = reference.isanet(50, 7, align_corners, filters=8, test_cfg=test_cfg)
    reference.save(theirs, tmp_path / "isanet.pth")
    protocol = Protocol(mode, **window, scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True)
    ours = from_checkpoint(
        tmp_path / "isanet.pth",
        coordinates=COORDINATES[align_corners],
        protocol=protocol.to_dict(),
    ).model
    x = images(130, 201)
    views = []
    for scale in protocol.scales:
        view = np.asarray(resize_image(x, view_size((130, 201), scale)))
        views += [(view, False), (np.ascontiguousarray(view[:, :, ::-1]), True)]
    expected, scores = reference.augmented(theirs, views, (130, 201))
    predictor = Predictor.from_model(ours)
    for limits in ({}, {"AT_ONCE_BYTES": 0, "PIECE_BYTES": 50_000, "VOTE_BYTES": 300_000}):
        for name, value in limits.items():
            monkeypatch.setattr(pieces, name, value)
        found, found_scores = (np.asarray(t)[0] for t in predictor(x))
        assert (found == expected).mean() >= 0.9999
        np.testing.assert_allclose(found_scores, scores, rtol=1e-4)
    assert np.ptp(scores) > 0.05
