"""RoIAlign over a map and over a pyramid: bilinear samples at exact places, averaged in bins.

A box is (x1, y1, x2, y2) in pixels of the image. A bin of `sampling_ratio`^2 samples reads
(2 sampling_ratio)^2 positions of a map. XLA makes one pass of gathering, weighing and adding them,
so that only the output is written; TensorFlow's own operators write a map's worth for each.
"""

from collections.abc import Sequence

import tensorflow as tf

from isa_tf.hints import Length
from isa_tf.ops.boxes import box_area
from isa_tf.ops.partition import spatial_size


def leading_size(boxes: tf.Tensor) -> tuple[Length, Length]:
    """B and K of boxes (B, K, 4): ints where known, scalar tensors otherwise."""
    dynamic = tf.shape(boxes)
    return tuple(dynamic[i] if boxes.shape[i] is None else boxes.shape[i] for i in (0, 1))


def sample_places(
    start: tf.Tensor, end: tf.Tensor, bins: int, samples: int, aligned: bool
) -> tf.Tensor:
    """Where the samples of an axis lie.

    Args:
        start: float tensor (...), where a box begins, in positions of the map.
        end: float tensor (...), where it ends.
        bins: int.
        samples: int, how many in each bin.
        aligned: bool, as for `roi_align`.

    Returns:
        Tensor (..., bins * samples), in positions of the map.
    """
    length = end - start
    if aligned:
        start = start - 0.5
    else:
        length = tf.maximum(length, 1)
    step = tf.expand_dims(length / (bins * samples), -1)
    index = tf.range(bins * samples, dtype=start.dtype) + 0.5
    return tf.expand_dims(start, -1) + index * step


def _taps(places, size):
    """(positions, weights), (..., n, 2) each: what samples at `places` read of an axis."""
    size = tf.expand_dims(size, -1)
    length = tf.cast(size, places.dtype)
    inside = tf.cast((places >= -1) & (places <= length), places.dtype)
    # Up to a position beyond the map, its edge goes on; farther out is nothing.
    places = tf.clip_by_value(places, 0, length - 1)
    lower = tf.floor(places)
    rest = places - lower
    lower = tf.cast(lower, tf.int32)
    positions = tf.stack([lower, tf.minimum(lower + 1, size - 1)], -1)
    return positions, tf.stack([(1 - rest) * inside, rest * inside], -1)


def _products(rows, columns, combine):
    """`combine` of every row's tap with every column's, (R, bins, taps) each: (R, h, w) each."""
    return [
        combine(row[:, :, None], column[:, None, :])
        for row in tf.unstack(rows, axis=-1)
        for column in tf.unstack(columns, axis=-1)
    ]


def _pool(positions, rows, columns, row_weights, column_weights):
    """Weighted sums (R, h, w, C) of the positions (P, C) that rows and columns name."""
    indices = _products(rows, columns, tf.add)
    weights = _products(row_weights, column_weights, tf.multiply)
    return tf.add_n(
        [w[..., None] * tf.gather(positions, i) for i, w in zip(indices, weights, strict=True)]
    )


def _spread(upstream, rows, columns, row_weights, column_weights, number):
    """The adjoint of `_pool`: sums (P, C)."""
    indices = tf.stack(_products(rows, columns, tf.add), -1)
    weights = tf.stack(_products(row_weights, column_weights, tf.multiply), -1)
    parts = weights[..., None] * upstream[..., None, :]
    flat = tf.reshape(parts, (-1, upstream.shape[-1]))
    return tf.math.unsorted_segment_sum(flat, tf.reshape(indices, (-1,)), number)


_pool_compiled = tf.function(_pool, jit_compile=True)
_spread_compiled = tf.function(_spread, jit_compile=True)


def _as_long_as_bins(start, end, bins, size, aligned):
    """(positions (p,), weights (bins, p)) of one box and axis, as many samples as a bin is long."""
    if aligned:
        start, end = start - 0.5, end - 0.5
    length = end - start
    if not aligned:
        length = tf.maximum(length, 1)
    samples = tf.maximum(tf.cast(tf.math.ceil(length / bins), tf.int32), 0)
    number = bins * samples
    index = tf.range(tf.cast(number, start.dtype)) + 0.5
    places = start + index * (length / tf.cast(tf.maximum(number, 1), start.dtype))
    limit = tf.cast(size, start.dtype)
    inside = tf.cast((places >= -1) & (places <= limit), places.dtype)
    places = tf.clip_by_value(places, 0, limit - 1)
    # Of no samples, one position of weight 0: shapes of nothing have no least value.
    first = tf.cast(tf.reduce_min(tf.concat([places, [limit - 1]], 0)), tf.int32)
    last = tf.cast(tf.math.ceil(tf.reduce_max(tf.concat([places, [0.0]], 0))), tf.int32)
    positions = tf.range(first, tf.maximum(last, first) + 1)
    away = tf.abs(places[:, None] - tf.cast(positions, places.dtype))
    weights = tf.maximum(1 - away, 0) * inside[:, None]
    weights = tf.reshape(weights, (bins, samples, tf.size(positions)))
    return positions, tf.reduce_sum(weights, 1) / tf.cast(tf.maximum(samples, 1), weights.dtype)


def _pool_adaptive(table, box, size, aligned):
    """Sums (h, w, C) of a box over positions (P, C), and what they were made of.

    Samples lie on a grid, so that rows and columns are weighed one after the other.
    """
    x1, y1, x2, y2, begin, height, width = box
    row, row_weights = _as_long_as_bins(y1, y2, size[0], height, aligned)
    column, column_weights = _as_long_as_bins(x1, x2, size[1], width, aligned)
    indices = begin + row[:, None] * width + column
    channels = table.shape[-1]
    patch = tf.reshape(tf.gather(table, indices), (tf.size(row), -1))
    rows = tf.reshape(row_weights @ patch, (size[0], tf.size(column), channels))
    return column_weights @ rows, (indices, row_weights, column_weights)


def _spread_adaptive(upstream, made_of):
    """The adjoint of `_pool_adaptive`: (indices (n,), values (n, C))."""
    indices, row_weights, column_weights = made_of
    channels = upstream.shape[-1]
    rows = tf.matmul(column_weights, upstream, transpose_a=True)
    rows = tf.reshape(rows, (tf.shape(upstream)[0], -1))
    patch = tf.matmul(row_weights, rows, transpose_a=True)
    return tf.reshape(indices, (-1,)), tf.reshape(patch, (-1, channels))


def _adaptive(boxes, size, aligned):
    """The function from positions (P, C) to sums (R, h, w, C), box after box, with its gradient."""

    @tf.custom_gradient
    def pooled(positions):
        spec = tf.TensorSpec((*size, positions.shape[-1]), positions.dtype)

        def pool(box):
            return _pool_adaptive(positions, box, size, aligned)[0]

        def gradient(upstream):
            def add(i, total):
                box = [part[i] for part in boxes]
                made_of = _pool_adaptive(positions, box, size, aligned)[1]
                indices, values = _spread_adaptive(upstream[i], made_of)
                return i + 1, tf.tensor_scatter_nd_add(total, indices[:, None], values)

            number = tf.shape(upstream)[0]
            loop = (0, tf.zeros_like(positions))
            return tf.while_loop(lambda i, _: i < number, add, loop, parallel_iterations=1)[1]

        return tf.map_fn(pool, boxes, fn_output_signature=spec), gradient

    return pooled


def _align(maps, boxes, levels, scales, size, sampling_ratio, aligned, jit_compile):
    """RoIAlign of boxes (B, K, 4), each over the one of `maps` that `levels` (B, K) names."""
    channels, dtype = maps[0].shape[-1], maps[0].dtype
    sizes = [spatial_size(m) for m in maps]
    heights, widths = (tf.stack([s[axis] for s in sizes]) for axis in (0, 1))
    ends = tf.cumsum(heights * widths)
    # One table of all positions of the batch, each image's levels one after the other.
    flat = [tf.reshape(m, (-1, h * w, channels)) for m, (h, w) in zip(maps, sizes, strict=True)]
    table = tf.concat(flat, 1)

    boxes = tf.stop_gradient(tf.cast(boxes, tf.float32))
    batch, number = leading_size(boxes)
    boxes = boxes * tf.gather(tf.constant(scales, tf.float32), levels)[..., None]
    x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
    height, width = tf.gather(heights, levels), tf.gather(widths, levels)
    begin = tf.gather(ends, levels) - height * width + tf.range(batch)[:, None] * ends[-1]
    # Sums and weights are float32, whatever the maps are.
    table = tf.cast(tf.reshape(table, (-1, channels)), tf.float32)
    if not sampling_ratio:
        parts = [tf.reshape(v, (-1,)) for v in (x1, y1, x2, y2, begin, height, width)]
        y = _adaptive(parts, size, aligned)(table)
        return tf.cast(tf.reshape(y, (batch, number, *size, channels)), dtype)

    def axis(start, end, bins, length):
        places = sample_places(start, end, bins, sampling_ratio, aligned)
        positions, weights = _taps(places, length)
        shape = (-1, bins, 2 * sampling_ratio)
        return tf.reshape(positions, shape), tf.reshape(weights / sampling_ratio, shape)

    rows, row_weights = axis(y1, y2, size[0], height)
    columns, column_weights = axis(x1, x2, size[1], width)
    begin, width = (tf.reshape(v, (-1, 1, 1)) for v in (begin, width))
    rows = begin + rows * width

    pool, spread = (_pool_compiled, _spread_compiled) if jit_compile else (_pool, _spread)
    taps = (rows, columns, row_weights, column_weights)

    @tf.custom_gradient
    def pooled(positions):
        def gradient(upstream):
            return spread(upstream, *taps, tf.shape(positions)[0])

        return pool(positions, *taps), gradient

    y = tf.reshape(pooled(table), (batch, number, *size, channels))
    return tf.cast(y, dtype)


def _check(boxes, size, sampling_ratio):
    if boxes.shape.rank != 3 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes must be (B, K, 4), got {boxes.shape}")
    if sampling_ratio < 0 or min(size) < 1:
        raise ValueError(
            "size must be positive and sampling_ratio at least 0, "
            f"got {tuple(size)} and {sampling_ratio}"
        )


def roi_align(
    x: tf.Tensor,
    boxes: tf.Tensor,
    size: Sequence[int],
    scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = False,
    jit_compile: bool = True,
) -> tf.Tensor:
    """Samples a map in boxes, each into a small map of one size.

    Args:
        x: float tensor (B, H, W, C).
        boxes: float tensor (B, K, 4), (x1, y1, x2, y2) in pixels of the image. Padding among them
            must be finite; zeros do.
        size: (height, width) of the output, ints.
        scale: positions of the map for a pixel, such as 1 / 16. Defaults to 1.
        sampling_ratio: int, samples a bin and axis; 0 for as many as a bin is positions long,
            rounded up, as Detectron2's and mmdetection's detectors take them. Then one box is
            computed after the other, by shapes that depend on it, which XLA compiles nowhere: not
            in a model that is compiled by it either. Defaults to 2.
        aligned: bool. If `False`, as torchvision's detectors have it, position (0, 0) stands for
            pixel coordinates (0, 0) and a box is at least one position wide and high; if `True`,
            as Detectron2's, it stands for the pixel's center, (0.5, 0.5) positions, and a box may
            be of any size. Defaults to `False`.
        jit_compile: bool, whether XLA compiles it, once for every shape, with a `sampling_ratio`
            above 0. Defaults to `True`.

    Returns:
        Tensor (B, K, height, width, C) in the dtype of `x`, computed in float32. A sample farther
        than one position outside of the map is 0. Gradients flow to `x`, none to `boxes`.

    Raises:
        ValueError: for boxes of another shape, a size that is not positive, a negative ratio.

    Paper: He et al., "Mask R-CNN", 3; arXiv 1703.06870.

    Example:

    >>> x = tf.reshape(tf.range(16.0), (1, 4, 4, 1))
    >>> roi_align(x, tf.constant([[[0.0, 0.0, 2.0, 2.0]]]), (2, 2))[0, 0, :, :, 0].numpy()
    array([[2.5, 3.5],
           [6.5, 7.5]], dtype=float32)
    """
    x, boxes = tf.convert_to_tensor(x), tf.convert_to_tensor(boxes)
    _check(boxes, size, sampling_ratio)
    levels = tf.zeros(tf.shape(boxes)[:2], tf.int32)
    return _align([x], boxes, levels, [scale], size, sampling_ratio, aligned, jit_compile)


def roi_levels(
    boxes: tf.Tensor,
    lowest: int,
    highest: int,
    canonical_size: float = 224,
    canonical_level: int = 4,
) -> tf.Tensor:
    """Which level of a pyramid a box is sampled from: larger boxes from coarser levels.

    Args:
        boxes: float tensor (..., 4), (x1, y1, x2, y2) in pixels of the image.
        lowest: int, the finest level; level l has stride 2^l.
        highest: int, the coarsest.
        canonical_size: the square root of the area, in pixels, from which on `canonical_level` is
            taken. Defaults to 224.
        canonical_level: int. Defaults to 4.

    Returns:
        int32 tensor (...) of levels less `lowest`: from 0.

    Paper: Lin et al., "Feature Pyramid Networks for Object Detection", equation 1.

    Example:

    >>> roi_levels(tf.constant([[0.0, 0, 9, 9], [0, 0, 112, 112], [0, 0, 800, 800]]), 2, 5).numpy()
    array([0, 1, 3], dtype=int32)
    """
    side = tf.sqrt(tf.maximum(box_area(boxes), 0))
    # A millionth of a level is added before levels are cut off, as the detectors in use do.
    steps = [2.0 ** (n - canonical_level - 1e-6) for n in range(lowest + 1, highest + 1)]
    reached = side[..., None] >= tf.constant(steps, side.dtype) * canonical_size
    return tf.reduce_sum(tf.cast(reached, tf.int32), -1)


def pyramid_roi_align(
    maps: Sequence[tf.Tensor],
    boxes: tf.Tensor,
    size: Sequence[int],
    lowest_level: int = 2,
    sampling_ratio: int = 2,
    aligned: bool = False,
    canonical_size: float = 224,
    canonical_level: int = 4,
    jit_compile: bool = True,
) -> tf.Tensor:
    """`roi_align`, each box over the level of a pyramid that its area tells.

    Args:
        maps: float tensors (B, H_l, W_l, C), from the finest to the coarsest; level l is of
            stride 2^l and each map one level above the one before.
        boxes: float tensor (B, K, 4), (x1, y1, x2, y2) in pixels of the image. Padding among them
            must be finite; zeros do.
        size: (height, width) of the output, ints.
        lowest_level: int, the level of the first map. Defaults to 2.
        sampling_ratio: int, as for `roi_align`. Defaults to 2.
        aligned: bool, as for `roi_align`. Defaults to `False`.
        canonical_size: as for `roi_levels`. Defaults to 224.
        canonical_level: as for `roi_levels`. Defaults to 4.
        jit_compile: bool, whether XLA compiles it, once for every shape. Defaults to `True`.

    Returns:
        Tensor (B, K, height, width, C) in the dtype of the maps. Gradients flow to the maps.

    Raises:
        ValueError: for no maps, boxes of another shape, a size that is not positive, a negative
            ratio.

    Paper: Lin et al., "Feature Pyramid Networks for Object Detection"; He et al., "Mask R-CNN".

    Example:

    >>> maps = [tf.ones((1, 64 // 2**i, 64 // 2**i, 3)) for i in range(4)]
    >>> pyramid_roi_align(maps, tf.constant([[[0.0, 0.0, 200.0, 100.0]]]), (7, 7)).shape
    TensorShape([1, 1, 7, 7, 3])
    """
    maps, boxes = [tf.convert_to_tensor(m) for m in maps], tf.convert_to_tensor(boxes)
    if not maps:
        raise ValueError("a pyramid has one map at least, got none")
    _check(boxes, size, sampling_ratio)
    highest = lowest_level + len(maps) - 1
    levels = roi_levels(boxes, lowest_level, highest, canonical_size, canonical_level)
    scales = [2.0**-level for level in range(lowest_level, highest + 1)]
    return _align(maps, boxes, levels, scales, size, sampling_ratio, aligned, jit_compile)
