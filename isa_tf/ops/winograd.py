"""3x3 convolutions by Winograd's minimal filtering, F(4x4, 3x3): a quarter of the products.

Every tile of 4x4 outputs takes 36 multiplications a pair of channels in place of 144, at the price
of two transforms that go through memory. It pays for inference on CPUs, where wide convolutions
are bound by arithmetic; the rounding errors are some ten times those of the plain sum.

Lavin, Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from isa_tf.ops.partition import spatial_size

_TILE = 4  # outputs a side
_READS = 6  # inputs a side: _TILE + kernel size - 1
_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_KERNEL = np.array(
    [(6, 0, 0), (-4, -4, -4), (-4, 4, -4), (1, 2, 4), (1, -2, 4), (0, 0, 24)], np.float64
) / (24, 24, 24)
_OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)

_GRADIENT_CHANNELS = 512  # whose gradients are computed at once, to save memory


def winograd_kernel(kernel: np.ndarray) -> np.ndarray:
    """Transforms the kernel of a convolution for `winograd_conv`.

    Args:
        kernel: array (3, 3, C, filters).

    Returns:
        float32 array (36, C, filters).

    Raises:
        ValueError: for a kernel that is not 3x3.
    """
    kernel = np.asarray(kernel, np.float64)
    if kernel.ndim != 4 or kernel.shape[:2] != (3, 3):
        raise ValueError(f"the kernel must be 3x3, got shape {kernel.shape}")
    u = np.kron(_KERNEL, _KERNEL) @ kernel.reshape(9, -1)
    return u.reshape(_READS**2, *kernel.shape[2:]).astype(np.float32)


def plain_kernel(transformed: np.ndarray) -> np.ndarray:
    """The kernel of which `winograd_kernel` made this one, to float32 rounding.

    Args:
        transformed: array (36, C, filters).

    Returns:
        float32 array (3, 3, C, filters).

    Example:

    >>> kernel = np.arange(18.0).reshape(3, 3, 1, 2)
    >>> np.allclose(plain_kernel(winograd_kernel(kernel)), kernel, atol=1e-5)
    True
    """
    u = np.asarray(transformed, np.float64)
    u = u.reshape(_READS, _READS, *u.shape[1:])
    back = np.linalg.pinv(_KERNEL)
    return np.einsum("ai,bj,ijcd->abcd", back, back, u, optimize=True).astype(np.float32)


def _combine(coefficients, terms):
    """The sum of terms times their coefficients."""
    total = None
    for coefficient, term in zip(coefficients, terms, strict=True):
        if coefficient:
            term = term if coefficient == 1 else coefficient * term
            total = term if total is None else total + term
    return total


def _tiles(x, dilation_rate):
    """How many tiles high and wide each of the map's dilation_rate^2 sub-maps is."""
    return [-(-size // (_TILE * dilation_rate)) for size in spatial_size(x)]


def _windows(x, axis, count):
    """The `_READS` strided slices that hold the first, second, ... input of every tile."""
    slices = []
    for first in range(_READS):
        index = [slice(None)] * x.shape.rank
        index[axis] = slice(first, first + _TILE * count - _TILE + 1, _TILE)
        slices.append(x[tuple(index)])
    return slices


# XLA makes one pass over memory of each of these, and two of them make shorter work of a map than
# one would: the second reads every sum of the first six times.


@tf.function(jit_compile=True)
def _transform_rows(x, dilation_rate):
    """Six maps (B, rows of tiles, d, columns, d, C): the input transform along the rows."""
    (high, wide), d, channels = _tiles(x, dilation_rate), dilation_rate, x.shape[-1]
    height, width = spatial_size(x)
    ends = [_TILE * n * d - size + d for n, size in ((high, height), (wide, width))]
    x = tf.pad(tf.cast(x, tf.float32), [(0, 0), (d, ends[0]), (d, ends[1]), (0, 0)])
    # A dilated convolution is a plain one on each of the maps of every d-th row and column.
    x = tf.reshape(x, (-1, _TILE * high + 2, d, _TILE * wide + 2, d, channels))
    rows = _windows(x, 1, high)
    return [_combine(coefficients, rows) for coefficients in _INPUT]


@tf.function(jit_compile=True)
def _transform_columns(row):
    """Of one of these maps, six matrices (tiles, C)."""
    wide = (spatial_size(row[:, :, 0])[1] - 2) // _TILE
    columns = _windows(row, 3, wide)
    return [tf.reshape(_combine(c, columns), (-1, row.shape[-1])) for c in _INPUT]


@tf.function(jit_compile=True)
def _restore_columns(products, x, dilation_rate):
    """The output transform along the columns: of six matrices (tiles, filters), a map."""
    (high, wide), d, filters = _tiles(x, dilation_rate), dilation_rate, products[0].shape[-1]
    columns = [tf.reshape(m, (-1, high, d, wide, d, filters)) for m in products]
    y = tf.stack([_combine(c, columns) for c in _OUTPUT], 4)
    return tf.reshape(y, (-1, high, d, _TILE * wide * d, filters))


@tf.function(jit_compile=True)
def _restore_rows(rows, bias, x, dilation_rate, activation, dtype):
    """The same along the rows: of six of these maps, the output with bias and activation."""
    (high, wide), d, filters = _tiles(x, dilation_rate), dilation_rate, bias.shape[0]
    height, width = spatial_size(x)
    y = tf.stack([_combine(c, rows) for c in _OUTPUT], 2)
    y = tf.reshape(y, (-1, _TILE * high * d, _TILE * wide * d, filters))
    return tf.cast(activation(y[:, :height, :width] + bias), dtype)


@tf.function(jit_compile=True)
def _spread_rows(y, dilation_rate):
    """The adjoint of `_restore_rows`: six maps of a map of outputs."""
    (high, wide), d, filters = _tiles(y, dilation_rate), dilation_rate, y.shape[-1]
    height, width = spatial_size(y)
    ends = [_TILE * n * d - size for n, size in ((high, height), (wide, width))]
    y = tf.pad(tf.cast(y, tf.float32), [(0, 0), (0, ends[0]), (0, ends[1]), (0, 0)])
    y = tf.reshape(y, (-1, high, _TILE, d, _TILE * wide, d, filters))
    rows = tf.unstack(y, axis=2)
    return [_combine(c, rows) for c in zip(*_OUTPUT, strict=True)]


@tf.function(jit_compile=True)
def _spread_columns(row):
    """That of `_restore_columns`: of one of these maps, six matrices (tiles, filters)."""
    wide = spatial_size(row[:, :, 0])[1] // _TILE
    batch, high, d = (tf.shape(row)[i] for i in range(3))
    shape = (batch, high, d, wide, _TILE, row.shape[4], row.shape[5])
    columns = tf.unstack(tf.reshape(row, shape), axis=4)
    flat = (-1, row.shape[-1])
    return [tf.reshape(_combine(c, columns), flat) for c in zip(*_OUTPUT, strict=True)]


def _filter(x, kernel_row, bias, activation, dilation_rate):
    """The convolution; `kernel_row` gives the i-th six matrices (C, filters) of the kernel."""
    maps = []
    for i, row in enumerate(_transform_rows(x, dilation_rate)):
        # One after the other, so that memory holds a sixth of the transforms and products.
        with tf.control_dependencies(maps[-1:]):
            kernel, columns = kernel_row(i), _transform_columns(row)
        products = [tf.matmul(v, u) for v, u in zip(columns, kernel, strict=True)]
        maps.append(_restore_columns(products, x, dilation_rate))
    return _restore_rows(maps, bias, x, dilation_rate, activation, x.dtype)


def _filter_plainly(x, kernel, bias, activation, dilation_rate):
    """`winograd_conv` of operations that every TensorFlow has, each of them a pass over memory."""
    (high, wide), d = _tiles(x, dilation_rate), dilation_rate
    height, width = spatial_size(x)
    step, filters = _TILE * d, bias.shape[0]
    ends = [step * (n + 1) - size - d for n, size in ((high, height), (wide, width))]
    # Every fourth row and column of each sub-map; what a tile reads beyond its own is its
    # neighbour's, so that pieces move whole. (Strided slices take as long as the products.)
    v = tf.space_to_batch(tf.cast(x, tf.float32), [step] * 2, [[d, ends[0]], [d, ends[1]]])
    v = _tiles_first(v, d, high + 1, wide + 1)
    more = _READS - _TILE
    v = tf.concat([v[:, :, :, :high], v[:more, :, :, 1:]], 0)
    v = tf.concat([v[:, :, :, :, :wide], v[:, :more, :, :, 1:]], 1)
    v = tf.matmul(_transform(_INPUT), tf.reshape(v, (_READS**2, -1)))
    products = tf.matmul(tf.reshape(v, (_READS**2, -1, x.shape[-1])), kernel)
    y = tf.matmul(_transform(_OUTPUT), tf.reshape(products, (_READS**2, -1)))
    if d > 1:
        y = tf.reshape(y, (_TILE, _TILE, d, d, -1, high, wide, filters))
        y = tf.transpose(y, (0, 2, 1, 3, 4, 5, 6, 7))
    y = tf.reshape(y, (step**2 * tf.shape(x)[0], high, wide, filters))
    crops = [[0, step * n - size] for n, size in ((high, height), (wide, width))]
    y = tf.batch_to_space(y, [step] * 2, crops)
    return tf.cast(activation(tf.nn.bias_add(y, bias)), x.dtype)


def _tiles_first(x, d, high, wide):
    """(4, 4, d * d * B, high, wide, C) of what `space_to_batch` made of a map."""
    x = tf.reshape(x, (_TILE, d, _TILE, d, -1, high, wide, x.shape[-1]))
    if d > 1:
        x = tf.transpose(x, (0, 2, 1, 3, 4, 5, 6, 7))
    return tf.reshape(x, (_TILE, _TILE, -1, high, wide, x.shape[-1]))


def _transform(coefficients):
    """What makes of the 36 inputs of a tile its 36 sums, or of 36 products its 16 outputs."""
    return tf.constant(np.kron(coefficients, coefficients), tf.float32)


def winograd_conv(
    x: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor,
    activation: Callable[[tf.Tensor], tf.Tensor],
    dilation_rate: int = 1,
    jit_compile: bool = True,
) -> tf.Tensor:
    """3x3 convolution with zero padding and stride 1, its bias and its activation.

    XLA compiles the transforms, once for every size, or they are matrix products too, of ordinary
    operations for all sizes, which hold twice what the tiles read. All of it is float32.

    Args:
        x: tensor (B, H, W, C), any H and W.
        kernel: float32 tensor (36, C, filters), from `winograd_kernel`.
        bias: float32 tensor (filters,).
        activation: function of a tensor.
        dilation_rate: int. Defaults to 1.
        jit_compile: bool, whether XLA compiles the transforms. Defaults to `True`.

    Returns:
        Tensor (B, H, W, filters) in the dtype of `x`.

    Example:

    >>> kernel = winograd_kernel(np.ones((3, 3, 2, 5)))
    >>> winograd_conv(tf.ones((1, 9, 7, 2)), kernel, tf.zeros(5), tf.nn.relu).shape
    TensorShape([1, 9, 7, 5])
    """
    if not jit_compile:
        return _filter_plainly(x, kernel, bias, activation, dilation_rate)
    rows = [tf.unstack(kernel[i : i + _READS]) for i in range(0, _READS**2, _READS)]
    return _filter(x, rows.__getitem__, bias, activation, dilation_rate)


def _row_transform(i):
    """(6, 9): what makes six matrices of a kernel's nine."""
    return tf.constant(np.einsum("a,jb->jab", _KERNEL[i], _KERNEL).reshape(_READS, 9), tf.float32)


def _convolve(x, kernel, dilation_rate):
    """`winograd_conv` of a kernel (3, 3, C, filters) that is transformed on the way."""
    channels, filters = kernel.shape[2:]
    flat = tf.reshape(tf.cast(kernel, tf.float32), (9, -1))

    def kernel_row(i):
        return tf.unstack(tf.reshape(_row_transform(i) @ flat, (_READS, channels, filters)))

    return _filter(x, kernel_row, tf.zeros(filters), tf.identity, dilation_rate)


def _kernel_gradient(x, gradient, dilation_rate):
    channels, filters = x.shape[-1], gradient.shape[-1]
    rows = zip(
        _transform_rows(x, dilation_rate), _spread_rows(gradient, dilation_rate), strict=True
    )
    total = tf.zeros((9, channels * filters))
    for i, (read, written) in enumerate(rows):
        with tf.control_dependencies([total]):
            pairs = zip(_transform_columns(read), _spread_columns(written), strict=True)
        products = [tf.matmul(v, m, transpose_a=True) for v, m in pairs]
        flat = tf.reshape(tf.stack(products), (_READS, -1))
        total += tf.matmul(_row_transform(i), flat, transpose_a=True)
    return tf.reshape(total, (3, 3, channels, filters))


def trainable_winograd_conv(x: tf.Tensor, kernel: tf.Tensor, dilation_rate: int = 1) -> tf.Tensor:
    """3x3 convolution with zero padding and stride 1, and its gradients, by minimal filtering.

    The kernel is transformed in every call. Nothing but the arguments is kept for the gradients.

    Args:
        x: tensor (B, H, W, C).
        kernel: tensor (3, 3, C, filters).
        dilation_rate: int. Defaults to 1.

    Returns:
        Tensor (B, H, W, filters) in the dtype of `x`.

    Example:

    >>> trainable_winograd_conv(tf.ones((1, 9, 7, 2)), tf.ones((3, 3, 2, 5))).shape
    TensorShape([1, 9, 7, 5])
    """

    @tf.custom_gradient
    def convolve(x, kernel):
        def gradients(gradient):
            turned = tf.transpose(tf.reverse(kernel, (0, 1)), (0, 1, 3, 2))
            from_output, from_kernel = [], []
            # One after the other, so that only one's transforms are held at once.
            for first in range(0, x.shape[-1], _GRADIENT_CHANNELS):
                part = slice(first, first + _GRADIENT_CHANNELS)
                with tf.control_dependencies(from_kernel[-1:]):
                    written = tf.identity(gradient)
                from_output.append(_convolve(written, turned[..., part], dilation_rate))
                with tf.control_dependencies(from_output[-1:]):
                    read = tf.identity(x[..., part])
                from_kernel.append(_kernel_gradient(read, gradient, dilation_rate))
            if len(from_output) > 1:
                from_output, from_kernel = [tf.concat(from_output, 3)], [tf.concat(from_kernel, 2)]
            return from_output[0], tf.cast(from_kernel[0], kernel.dtype)

        return _convolve(x, kernel, dilation_rate), gradients

    return convolve(x, kernel)
