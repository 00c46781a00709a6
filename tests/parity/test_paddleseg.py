"""ISANet beside PaddleSeg's, with its weights: what `make_paddleseg.py` wrote down."""

import os
from pathlib import Path

import keras
import numpy as np
import pytest

from isa_tf.models import from_checkpoint

FOLDER = os.environ.get("ISA_TF_PADDLESEG")  # of folders, one a model
pytestmark = pytest.mark.skipif(
    not FOLDER, reason="PaddleSeg's outputs are made by `make parity` alone"
)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("depth", [50, 101])
def test_logits_of_both_heads(depth, align_corners):
    from parity import check

    folder = Path(FOLDER) / f"r{depth}{'_align_corners' if align_corners else ''}"
    arguments = {"coordinates": "align_corners"} if align_corners else {}
    model, source, report = from_checkpoint(folder / "model.pdparams", **arguments)
    assert source == "paddleseg" and report == ([], [])
    assert model.coordinates == ("align_corners" if align_corners else "asymmetric")
    with np.load(folder / "outputs.npz") as file:
        wanted = dict(file)
    assert wanted["depth"] == depth and wanted["align_corners"] == align_corners
    np.testing.assert_allclose(model.backbone.mean, wanted["mean"])
    np.testing.assert_allclose(model.backbone.std, wanted["std"])
    sizes = [name.removeprefix("image_") for name in wanted if name.startswith("image_")]
    assert len(sizes) == 3
    for head in ("logits", "auxiliary_logits"):
        ours = keras.Model(model.input, model.get_layer(head).output)
        theirs = head.removesuffix("_logits")
        check(
            (
                ours(wanted[f"image_{size}"][None].astype("float32")),
                wanted[f"{theirs}_{size}"][None],
            )
            for size in sizes
        )
