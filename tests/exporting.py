"""A model whose classes are well mixed, and what exports of it are compared with."""

import numpy as np

import isa_tf
from isa_tf.testing import blotches as random_images
from isa_tf.testing import decisions_of as expected
from isa_tf.testing import small_segmenter as make_model
from isa_tf.testing.formats import SIZES
from isa_tf.testing.models import NAMES, PALETTE

__all__ = [
    "BEYOND",
    "NAMES",
    "PALETTE",
    "SIZES",
    "assert_agree",
    "assert_agrees_at_any_size",
    "expected",
    "make_model",
    "random_images",
]

# Of the context module: what is beyond the paper, beside the levels and projections that it has.
BEYOND = {
    "levels": {"partition": 2, "levels": 3},
    "shared": {"partition": 4, "share_projections": True},
    "shared-levels": {"partition": "auto", "levels": 3, "share_projections": True},
    "shared-auto": {"partition": "auto", "levels": "auto", "share_projections": True},
    "positions": {"partition": 4, "position_bias": True, "num_heads": 2},
}


def assert_agree(result, truth, agreement=0.999, rtol=1e-4):
    """Class ids agree but for near-ties, scores to `rtol`."""
    (class_id, score), (true_id, true_score) = result, truth
    assert len(np.unique(true_id)) > 2
    assert (np.asarray(class_id) == np.asarray(true_id)).mean() >= agreement
    np.testing.assert_allclose(score, true_score, rtol=rtol)


def assert_agrees_at_any_size(model, path):
    predictor = isa_tf.load_predictor(path)
    for size in SIZES:
        images = random_images(*size)
        result = predictor(images)
        if size[1] > 1:
            assert_agree(result, expected(model, images))
        assert result[0].shape == size and result[0].dtype == np.uint8
        assert result[1].shape == size and result[1].dtype == np.float32
