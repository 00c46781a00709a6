"""Pyramid pooling and ASPP against NumPy float64 and explicit loops, and what they must mean."""

import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from isa_tf.layers.conv import leaky_relu_001
from isa_tf.layers.pyramid import (
    AtrousSpatialPyramidPooling,
    PyramidPooling,
    adaptive_average_pool,
)
from isa_tf.testing import randomize, relative_error

# The default pool sizes divide the first two; the others are smaller than some of them.
SIZES = [(6, 6), (12, 6), (5, 7), (3, 2), (1, 4)]


def a_map(height, width, channels=6, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    return tf.constant(rng.normal(size=(batch, height, width, channels)), "float32")


def made(cls, channels=6, **arguments):
    layer = cls(**arguments)
    layer.build((None, None, None, channels))
    randomize(layer)
    return layer


# --- The modules in NumPy, one map (H, W, C) at a time -------------------------------------------


def numpy_conv(x, layer):
    """A ConvNormAct with ReLU, by the moving statistics; zeros around the map."""
    kernel, gamma, beta, mean, variance = (
        np.asarray(w, np.float64)
        for w in (
            layer.conv.kernel,
            layer.norm.gamma,
            layer.norm.beta,
            layer.norm.moving_mean,
            layer.norm.moving_variance,
        )
    )
    height, width, rate, reach = *x.shape[:2], layer.dilation_rate, kernel.shape[0] // 2
    y = np.zeros((height, width, kernel.shape[-1]))
    for row, column in np.ndindex(height, width):
        for i, j in np.ndindex(kernel.shape[:2]):
            r, c = row + rate * (i - reach), column + rate * (j - reach)
            if 0 <= r < height and 0 <= c < width:
                y[row, column] += x[r, c] @ kernel[i, j]
    return np.maximum((y - mean) / np.sqrt(variance + layer.norm.epsilon) * gamma + beta, 0)


def numpy_pool(x, n):
    """The mean of every bin from floor(i H / n) to ceil((i + 1) H / n)."""

    def bins(length):
        edges = ((i * length / n, (i + 1) * length / n) for i in range(n))
        return [range(math.floor(start), math.ceil(stop)) for start, stop in edges]

    y = np.zeros((n, n, x.shape[-1]))
    for (i, rows), (j, columns) in itertools.product(*(enumerate(bins(s)) for s in x.shape[:2])):
        y[i, j] = np.mean([x[r, c] for r in rows for c in columns], axis=0)
    return y


def numpy_resize(x, size, coordinates):
    """Bilinear, a position at a time."""

    def source(i, to, length):
        if coordinates == "half_pixel":
            at = min(max((i + 0.5) * length / to - 0.5, 0), length - 1)
        else:
            at = i * (length - 1) / max(to - 1, 1)
        low = math.floor(at)
        return low, min(low + 1, length - 1), at - low

    y = np.zeros((*size, x.shape[-1]))
    for row, column in np.ndindex(*size):
        top, bottom, v = source(row, size[0], x.shape[0])
        left, right, h = source(column, size[1], x.shape[1])
        y[row, column] = (1 - v) * ((1 - h) * x[top, left] + h * x[top, right]) + v * (
            (1 - h) * x[bottom, left] + h * x[bottom, right]
        )
    return y


def numpy_pyramid(x, layer):
    maps = [x]
    for conv, n in zip(layer.pools, layer.pool_sizes, strict=True):
        maps.append(
            numpy_resize(numpy_conv(numpy_pool(x, n), conv), x.shape[:2], layer.coordinates)
        )
    return numpy_conv(np.concatenate(maps, axis=-1), layer.fusion)


def numpy_aspp(x, layer):
    mean = numpy_conv(x.mean((0, 1), keepdims=True), layer.image_pool)
    maps = [np.broadcast_to(mean, (*x.shape[:2], mean.shape[-1]))]
    maps += [numpy_conv(x, conv) for conv in (layer.pointwise, *layer.dilated)]
    return numpy_conv(np.concatenate(maps, axis=-1), layer.fusion)


def check_reference(layer, x, reference):
    expected = np.stack([reference(image, layer) for image in np.asarray(x, np.float64)])
    assert 0.1 < np.mean(expected > 0) < 1  # the ReLU neither dead nor idle
    assert relative_error(layer(x), expected) < 1e-5


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners"])
def test_pyramid_equals_the_reference(size, coordinates):
    check_reference(made(PyramidPooling, coordinates=coordinates), a_map(*size), numpy_pyramid)


@pytest.mark.parametrize(
    "arguments",
    [
        {"pool_sizes": (4,), "pool_filters": 5, "filters": 3},
        {"pool_sizes": [2, 2, 9], "filters": 8, "epsilon": 0.1},
    ],
    ids=str,
)
def test_pyramid_arguments(arguments):
    check_reference(made(PyramidPooling, **arguments), a_map(7, 10), numpy_pyramid)


def test_pyramid_widths():
    layer = made(PyramidPooling, channels=10)
    assert [pool.filters for pool in layer.pools] == [2] * 4
    assert layer.fusion.conv.kernel.shape == (3, 3, 10 + 4 * 2, 10)
    assert made(PyramidPooling, channels=2).pools[0].filters == 1


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("fusion_kernel_size", [1, 3])
def test_aspp_equals_the_reference(size, fusion_kernel_size):
    layer = made(
        AtrousSpatialPyramidPooling,
        dilation_rates=(1, 2, 4),
        branch_filters=4,
        fusion_kernel_size=fusion_kernel_size,
    )
    check_reference(layer, a_map(*size), numpy_aspp)


def test_aspp_arguments():
    """The default rates, whose outer taps partly leave the map; other widths and epsilon."""
    layer = made(AtrousSpatialPyramidPooling, branch_filters=3, filters=5, epsilon=0.1)
    assert layer.dilation_rates == (6, 12, 18)
    check_reference(layer, a_map(13, 20, batch=1), numpy_aspp)


@pytest.mark.parametrize("cls", [PyramidPooling, AtrousSpatialPyramidPooling])
def test_arguments_reach_every_convolution(cls):
    layer = made(
        cls, activation=leaky_relu_001, epsilon=0.01, momentum=0.7, synchronized=True, dropout=0.5
    )
    convs = [sub for sub in layer._flatten_layers() if hasattr(sub, "norm")]
    assert len(convs) == (5 if cls is PyramidPooling else 6)
    for conv in convs:
        assert conv.activation is leaky_relu_001
        norm = conv.norm
        assert (norm.epsilon, norm.momentum, norm.synchronized) == (0.01, 0.7, True)


@pytest.mark.parametrize("cls", [PyramidPooling, AtrousSpatialPyramidPooling])
def test_dropout_takes_whole_channels_of_the_output(cls):
    layer = made(cls, filters=64, dropout=0.5, activation="softplus")  # never zero by itself
    y = layer(a_map(4, 4), training=True).numpy()
    dropped = (y == 0).mean((1, 2))
    assert set(np.unique(dropped)) == {0, 1} and 0.25 < dropped.mean() < 0.75
    assert np.all(layer(a_map(4, 4)).numpy() > 0)


# --- Adaptive pooling ----------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False], ids=["static", "dynamic"])
def test_adaptive_pooling_equals_loops(known):
    sizes = [1, 2, 3, 6, 7]

    def pool(x):
        return adaptive_average_pool(x, sizes)

    if not known:
        pool = tf.function(pool, input_signature=[tf.TensorSpec((None, None, None, 3))])
    for size in SIZES:
        x = a_map(*size, channels=3)
        found = pool(x)
        for n, y in zip(sizes, found, strict=True):
            expected = np.stack([numpy_pool(image, n) for image in np.asarray(x, np.float64)])
            assert relative_error(y, expected) < 1e-6, (size, n)


def test_one_bin_is_the_mean_and_a_bin_a_position_the_map():
    x = a_map(5, 5)
    mean, same = adaptive_average_pool(x, [1, 5])
    np.testing.assert_allclose(mean, tf.reduce_mean(x, (1, 2), keepdims=True), atol=1e-6)
    np.testing.assert_allclose(same, x, atol=1e-6)


def test_adaptive_pooling_commutes_with_mirroring():
    x = a_map(7, 5)
    for y, mirrored in zip(
        adaptive_average_pool(x, [2, 3, 6]),
        adaptive_average_pool(x[:, ::-1, ::-1], [2, 3, 6]),
        strict=True,
    ):
        np.testing.assert_allclose(y[:, ::-1, ::-1], mirrored, atol=1e-6)


@pytest.mark.parametrize("cls", [PyramidPooling, AtrousSpatialPyramidPooling])
def test_half_precision_averages_in_float32(cls):
    """The values of a region sum to more than float16 can hold."""
    x = 100 + a_map(32, 32, batch=1)
    arguments = {} if cls is PyramidPooling else {"branch_filters": 4, "dilation_rates": (2,)}
    expected = made(cls, **arguments)(x)
    assert relative_error(made(cls, dtype="mixed_float16", **arguments)(x), expected) < 0.01


# --- What they must mean -------------------------------------------------------------------------


@pytest.mark.parametrize("fusion_kernel_size", [1, 3])
def test_aspp_commutes_with_shifts_in_the_interior(fusion_kernel_size):
    """Something on an empty map, away from the borders: moved, it gives the same, moved."""
    layer = made(
        AtrousSpatialPyramidPooling,
        dilation_rates=(1, 2, 4),
        branch_filters=4,
        fusion_kernel_size=fusion_kernel_size,
    )
    x = tf.pad(a_map(4, 4), [(0, 0), (10, 10), (10, 10), (0, 0)])
    y = layer(x).numpy()
    moved = layer(tf.roll(x, (2, -3), axis=(1, 2))).numpy()
    interior = np.s_[:, 5:-5, 5:-5]
    assert np.abs(moved - y)[interior].max() > 0.1
    np.testing.assert_allclose(moved[interior], np.roll(y, (2, -3), (1, 2))[interior], atol=1e-5)


@pytest.mark.parametrize("cls", [PyramidPooling, AtrousSpatialPyramidPooling])
def test_every_position_hears_every_other(cls):
    """Also beyond the reach of all kernels, through the mean of the whole map."""
    arguments = {} if cls is PyramidPooling else {"dilation_rates": (1,), "branch_filters": 4}
    layer = made(cls, activation="softplus", **arguments)
    x = a_map(16, 15, batch=1)
    with tf.GradientTape() as tape:
        tape.watch(x)
        corner = layer(x)[0, 0, 0]
    gradient = tf.reduce_max(tf.abs(tape.gradient(corner, x)), -1)[0].numpy()
    assert np.all(gradient > 0)


# --- Wrong arguments -----------------------------------------------------------------------------

WRONG = [
    (PyramidPooling, {"pool_sizes": ()}, r"pool_sizes .* got \(\)"),
    (PyramidPooling, {"pool_sizes": 6}, "pool_sizes .* got 6"),
    (PyramidPooling, {"pool_sizes": (1, 0)}, r"pool_sizes .* got \(1, 0\)"),
    (PyramidPooling, {"pool_sizes": (1.5,)}, r"pool_sizes .* got \(1.5,\)"),
    (PyramidPooling, {"pool_filters": 0}, "pool_filters .* got 0"),
    (PyramidPooling, {"coordinates": "corners"}, "coordinates .* got 'corners'"),
    (PyramidPooling, {"filters": 0}, "filters .* got 0"),
    (PyramidPooling, {"dropout": 1.0}, "dropout .* got 1.0"),
    (AtrousSpatialPyramidPooling, {"dilation_rates": []}, r"dilation_rates .* got \[\]"),
    (AtrousSpatialPyramidPooling, {"dilation_rates": (6, -1)}, r"dilation_rates .* got \(6, -1\)"),
    (AtrousSpatialPyramidPooling, {"branch_filters": 0}, "branch_filters .* got 0"),
    (AtrousSpatialPyramidPooling, {"fusion_kernel_size": 2}, "fusion_kernel_size .* got 2"),
    (AtrousSpatialPyramidPooling, {"filters": -1}, "filters .* got -1"),
]


@pytest.mark.parametrize(("cls", "arguments", "message"), WRONG, ids=lambda w: str(w)[:60])
def test_wrong_arguments_are_refused(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(**arguments)


@pytest.mark.parametrize("cls", [PyramidPooling, AtrousSpatialPyramidPooling])
def test_only_maps_are_read(cls):
    for shape in ((None, 5, 6), (None, 5, 5, None)):
        with pytest.raises(ValueError, match="feature map"):
            cls(name="context").build(shape)
    with pytest.raises(ValueError, match="feature map"):
        cls()(keras.random.normal((2, 7, 6)))
