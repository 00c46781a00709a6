"""Interlaced sparse self-attention for Keras 3 on TensorFlow.

>>> x = isa_tf.layers.InterlacedSparseAttention(partition=8)(x)
>>> model = isa_tf.models.ISANet("resnet50", num_classes=19)

Importing the package registers its classes with Keras, so that `keras.models.load_model` knows
them.
"""

import isa_tf.backend  # noqa: F401  first: it refuses other backends of Keras
from isa_tf import (
    attention_maps,
    backbones,
    cost,
    data,
    files,
    formats,
    inference,
    layers,
    losses,
    metrics,
    models,
    ops,
    plugins,
    presets,
    report,
    runtime,
    schedules,
    serving,
    training,
    visualize,
    web,
    weights,
)
from isa_tf.formats import export, load_predictor
from isa_tf.version import __version__

__all__ = [
    "__version__",
    "attention_maps",
    "backbones",
    "cost",
    "data",
    "export",
    "files",
    "formats",
    "inference",
    "layers",
    "load_predictor",
    "losses",
    "metrics",
    "models",
    "ops",
    "plugins",
    "presets",
    "report",
    "runtime",
    "schedules",
    "serving",
    "training",
    "visualize",
    "web",
    "weights",
]
