"""A model whose classes are well mixed, and what exports of it are compared with."""

import keras
import numpy as np
from PIL import Image

import isa_tf
from isa_tf.layers import InterlacedSparseAttention
from isa_tf.layers.position import PositionBias
from isa_tf.models import Segmenter

NAMES = ("void", "sky", "tree", "road", "wall", "sign", "Bäume")
PALETTE = tuple((i, 2 * i, 255 - i) for i in range(7))


# Of the context module: what is beyond the paper, beside the levels and projections that it has.
BEYOND = {
    "levels": {"partition": 2, "levels": 3},
    "shared": {"partition": 4, "share_projections": True},
    "shared-levels": {"partition": "auto", "levels": 3, "share_projections": True},
    "shared-auto": {"partition": "auto", "levels": "auto", "share_projections": True},
    "positions": {"partition": 4, "position_bias": True},
}


def make_model(
    partition=8,
    names=NAMES,
    dtype=None,
    jit_compile=False,
    backbone="tiny",
    levels=2,
    share_projections=False,
    position_bias=False,
    **kwargs,
):
    """A small segmenter with random weights and statistics, whose classes are well mixed."""
    keras.utils.set_random_seed(3)
    context = InterlacedSparseAttention(
        partition,
        key_filters=8,
        jit_compile=jit_compile,
        dtype=dtype,
        name="context",
        levels=levels,
        share_projections=share_projections,
        position_bias=position_bias,
    )
    model = Segmenter(
        backbone,
        context,
        num_classes=7,
        head_filters=16,
        head_kernel_size=1,
        output_stride=4,
        class_names=names,
        palette=None if names is None else PALETTE,
        dtype=dtype,
        **kwargs,
    )
    rng = np.random.default_rng(0)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            n = layer.gamma.shape[0]
            layer.gamma.assign(rng.uniform(0.5, 1.5, n))
            layer.beta.assign(rng.normal(0, 0.5, n))
            layer.moving_mean.assign(rng.normal(0, 0.5, n))
            layer.moving_variance.assign(rng.uniform(0.5, 1.5, n))
        elif isinstance(layer, PositionBias):  # which begins at zero
            layer.outer.assign(rng.normal(0, 1, layer.outer.shape))
    # Every class wins somewhere: their mean logits are made equal.
    logits = model(random_images(2, 64, 64, seed=9).astype("float32"))
    classifier = model.get_layer("logits_classifier")
    classifier.bias.assign(-np.asarray(logits).mean((0, 1, 2)))
    return model


def random_images(batch, height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (batch, 7, 9, 3), np.uint8)
    resized = (Image.fromarray(c).resize((width, height), Image.BICUBIC) for c in coarse)
    return np.stack([np.asarray(image) for image in resized])


def expected(model, images):
    logits = np.asarray(model(images.astype("float32"), training=False), np.float64)
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    return logits.argmax(-1), (probabilities / probabilities.sum(-1, keepdims=True)).max(-1)


def assert_agree(result, truth, agreement=0.999, rtol=1e-4):
    """Class ids agree but for near-ties, scores to `rtol`."""
    (class_id, score), (true_id, true_score) = result, truth
    assert len(np.unique(true_id)) > 2
    assert (np.asarray(class_id) == np.asarray(true_id)).mean() >= agreement
    np.testing.assert_allclose(score, true_score, rtol=rtol)


# 90x118: a map of 23x30, which 8 does not divide. 20x26: a map of 5x7, smaller than 8.
SIZES = ((2, 90, 118), (1, 64, 64), (3, 20, 26), (1, 1, 1))


def assert_agrees_at_any_size(model, path):
    predictor = isa_tf.load_predictor(path)
    for size in SIZES:
        images = random_images(*size)
        result = predictor(images)
        if size[1] > 1:
            assert_agree(result, expected(model, images))
        assert result[0].shape == size and result[0].dtype == np.uint8
        assert result[1].shape == size and result[1].dtype == np.float32
