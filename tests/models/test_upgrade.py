"""Files of version 0.1 still load, and compute what they did.

`tests/golden/*_version_0.1.keras` were written by that version, and the arrays beside them are what
its models made of the image below: an ISANet with arguments of its module loose among its own, and
a model of one's own whose convolutions still said what they recompute.
"""

from pathlib import Path

import keras
import numpy as np
import pytest

from isa_tf.layers import ConvNormAct
from isa_tf.models import Segmenter

GOLDEN = Path(__file__).parents[1] / "golden"
IMAGE = np.random.default_rng(0).integers(0, 256, (1, 33, 41, 3)).astype("uint8")


@pytest.mark.some(1)
@pytest.mark.parametrize("name", ["isanet", "own"])
def test_it_computes_what_it_did(name, tmp_path):
    model = keras.models.load_model(GOLDEN / f"{name}_version_0.1.keras")
    with np.load(GOLDEN / f"{name}_version_0.1.npz") as file:
        (expected,) = file.values()
    found = model(IMAGE.astype("float32")).numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    model.save(tmp_path / "again.keras")
    again = keras.models.load_model(tmp_path / "again.keras")
    np.testing.assert_array_equal(again(IMAGE.astype("float32")), found)


def test_what_it_was_told_is_told_to_the_module():
    model = keras.models.load_model(GOLDEN / "isanet_version_0.1.keras")
    assert type(model) is Segmenter and model.compiled
    assert model.context.partitions == [(4, 4), (2, 3)] and model.context.depth == 2
    assert model.context.order == "short_long" and not model.context.mask_padding
    assert (model.context.dropout, model.context.jit_compile) == (0.1, True)
    assert model.context.activation is keras.activations.relu6
    assert model.class_names == ("a", "b", "c") and model.protocol == {"flip": True}
    assert not model.backbone.recompute
    own = keras.models.load_model(GOLDEN / "own_version_0.1.keras")
    assert sum(isinstance(layer, ConvNormAct) for layer in own.layers) == 2
