"""Anchors: the boxes that a proposal network begins with, by torchvision's convention.

A box is (x1, y1, x2, y2) in pixels of the image.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from isa_tf.hints import Length, MapSize


def base_anchors(
    sizes: float | Sequence[float],
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    rounded: bool = True,
) -> np.ndarray:
    """The anchors of one position, around (0, 0).

    Args:
        sizes: floats, square roots of the anchors' areas, in pixels.
        aspect_ratios: floats, heights over widths. Defaults to (0.5, 1, 2).
        rounded: bool, whether corners are whole pixels, as torchvision's are and those of
            Detectron2 and mmdetection are not. Defaults to `True`.

    Returns:
        float32 array (ratios * sizes, 4), the sizes of the first ratio first, (x1, y1, x2, y2).

    Raises:
        ValueError: unless sizes and ratios are positive and there are some.

    Example:

    >>> base_anchors([32], [0.5, 1.0])
    array([[-23., -11.,  23.,  11.],
           [-16., -16.,  16.,  16.]], dtype=float32)
    """
    sides, ratios = (np.ravel(np.asarray(v, np.float32)) for v in (sizes, aspect_ratios))
    for name, values in (("sizes", sides), ("aspect_ratios", ratios)):
        if not len(values) or not (values > 0).all():
            raise ValueError(f"{name} must be positive numbers, at least one, got {values}")
    tall = np.sqrt(ratios)
    height, width = ((side[:, None] * sides).ravel() for side in (tall, 1 / tall))
    corners: np.ndarray = np.stack([-width, -height, width, height], -1)
    anchors = corners / 2
    # To even where in the middle, which PyTorch's rounding does, too.
    return np.round(anchors) if rounded else anchors


def map_anchors(
    map_size: MapSize,
    stride: Length | Sequence[Length],
    sizes: float | Sequence[float],
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    rounded: bool = True,
) -> tf.Tensor:
    """The anchors of all positions of a map.

    Args:
        map_size: (height, width) of the map, ints or scalar int tensors.
        stride: pixels from one position to the next, an int or (vertical, horizontal);
            torchvision takes image size // map size. Position (0, 0) stands at pixel (0, 0).
        sizes: floats, as for `base_anchors`.
        aspect_ratios: floats, as for `base_anchors`.
        rounded: bool, as for `base_anchors`.

    Returns:
        float32 tensor (height * width * A, 4), (x1, y1, x2, y2) in pixels, in the order of a map
        (height, width, A * 4) that is flattened: row by row, the anchors of a position together.

    Raises:
        ValueError: unless sizes and ratios are positive and there are some.

    Example:

    >>> map_anchors((1, 2), 8, [4], [1.0]).numpy()
    array([[-2., -2.,  2.,  2.],
           [ 6., -2., 10.,  2.]], dtype=float32)
    """
    base = base_anchors(sizes, aspect_ratios, rounded)
    steps = stride if isinstance(stride, (tuple, list)) else (stride, stride)
    y, x = (
        tf.cast(tf.range(n) * step, tf.float32) for n, step in zip(map_size, steps, strict=True)
    )
    y, x = tf.meshgrid(y, x, indexing="ij")
    shift = tf.reshape(tf.stack([x, y, x, y], -1), (-1, 1, 4))
    return tf.reshape(shift + base, (-1, 4))


def pyramid_anchors(
    map_sizes: Sequence[MapSize],
    strides: Sequence[Length | Sequence[Length]],
    sizes: Sequence[float | Sequence[float]],
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    rounded: bool = True,
) -> list[tf.Tensor]:
    """The anchors of a pyramid's maps.

    Args:
        map_sizes: the (height, width) of each map.
        strides: the stride of each map, as for `map_anchors`.
        sizes: for each map a float or floats, as for `base_anchors`.
        aspect_ratios: floats, the same for all maps.
        rounded: bool, as for `base_anchors`.

    Returns:
        A float32 tensor (height * width * A, 4) for each map, as from `map_anchors`.

    Raises:
        ValueError: unless there are as many strides and sizes as maps.

    Paper: Ren et al., "Faster R-CNN"; Lin et al., "Feature Pyramid Networks for Object Detection".

    Example:

    >>> [len(a) for a in pyramid_anchors([(4, 4), (2, 2)], [8, 16], [32, 64])]
    [48, 12]
    """
    if not len(map_sizes) == len(strides) == len(sizes):
        raise ValueError(
            f"{len(map_sizes)} maps need as many strides and sizes, "
            f"got {len(strides)} and {len(sizes)}"
        )
    levels = zip(map_sizes, strides, sizes, strict=True)
    return [map_anchors(*level, aspect_ratios, rounded) for level in levels]
