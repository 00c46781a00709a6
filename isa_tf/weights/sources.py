"""Whose checkpoints of whole models are read: by name, open to those of others.

A source is a module, or any object, with

* `is_source(tensors)`: whether tensors of these names look like its own;
* `TASK`: which kind of model it is of, "instance_segmentation" for a `MaskRCNN`; where it has no
  such attribute, a `Segmenter`;
* `arguments(tensors, path)`: what the tensors tell of the network, a dict of arguments of the
  `Segmenter` or the `MaskRCNN`, num_classes among them. "backbone" is a dict of those of `ResNet`,
  or of those of `HRNet` with its width, "context_options" of those of `InterlacedSparseAttention`,
  and "partitions" says of how many there are weights, where it is not 1;
* `SETTINGS`: such a dict of what the tensors do not tell;
* `load(model, tensors, path, optional)`: gives the model the weights, all or none of them, and
  returns a `Report`. Variables whose path holds one of `optional` may keep their values.

`tensors` is what `read_checkpoint` gives, `path` is for errors. `isa_tf.weights.Transfer` does
most of what `load` has to do.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from isa_tf.names import Registry
from isa_tf.weights import (
    detectron2,
    mmdet,
    mmseg,
    openseg,
    paddleseg,
    torchvision_detection,
)

SOURCES = Registry("source")
SOURCES.register("mmseg", mmseg)
SOURCES.register("openseg", openseg)
SOURCES.register("paddleseg", paddleseg)
SOURCES.register("torchvision_detection", torchvision_detection)
SOURCES.register("detectron2", detectron2)
SOURCES.register("mmdet", mmdet)


def register(name: str, source: Any = None) -> Any:
    """Adds a source, which `isa_tf.models.from_checkpoint` then finds; also a decorator.

    Args:
        name: str.
        source: module or object, see above. Defaults to `None`: a decorator is returned.

    Returns:
        The source.

    Raises:
        ValueError: for a name that is taken.

    Example:

    >>> @register("mine")
    ... class Mine:
    ...     SETTINGS = {"coordinates": "half_pixel"}
    ...
    ...     def is_source(tensors):
    ...         return "my_head.weight" in tensors
    ...
    ...     def arguments(tensors, path):
    ...         num_classes = tensors["my_head.weight"].shape[0]
    ...         return {"backbone": {"depth": 18}, "num_classes": num_classes}
    ...
    ...     def load(model, tensors, path, optional=()):
    ...         transfer = isa_tf.weights.Transfer(tensors, path, optional=optional)
    ...         transfer.conv(model.get_layer("logits_classifier"), "my_head")
    ...         return transfer.finish(model)
    >>> list_sources()[-1]
    'mine'
    """
    return SOURCES.register(name, source)


def list_sources() -> list[str]:
    """The names of all sources, in the order of their registration.

    >>> list_sources()[:3]
    ['mmseg', 'openseg', 'paddleseg']
    """
    return list(SOURCES)


def find_source(tensors: Mapping[str, np.ndarray]) -> str | None:
    """The source whose tensors these are, `None` where it is none's.

    Those that were added last are asked first: they may know better than those before them.
    """
    for name in reversed(list_sources()):
        if SOURCES[name].is_source(tensors):
            return name
    return None
