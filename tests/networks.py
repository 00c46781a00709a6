"""Images and normalisations that tests of backbones share."""

import numpy as np

from isa_tf.layers.conv import ConvNormAct


def image(height, width, batch=1, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 255, (batch, height, width, 3)).astype("float32")


def randomize_norms(model, gamma=(0.5, 1.5)):
    """Statistics and scales that hide no layer; convolutions stay as they were initialised."""
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, ConvNormAct):
            norm, shape = layer.norm, layer.norm.gamma.shape
            norm.gamma.assign(rng.uniform(*gamma, shape))
            norm.beta.assign(rng.normal(0, 0.3, shape))
            norm.moving_mean.assign(rng.normal(0, 0.3, shape))
            norm.moving_variance.assign(rng.uniform(0.5, 1.5, shape))
