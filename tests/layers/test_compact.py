"""CGNL and double attention against NumPy loops, and what they must mean."""

import math

import numpy as np
import pytest
import reference
import tensorflow as tf

from isa_tf.layers.compact import (
    CompactGeneralizedNonLocal,
    DoubleAttention,
    kernel_coefficients,
    separable_attention,
)
from isa_tf.testing import randomize, relative_error

SIZES = pytest.mark.parametrize("size", [(5, 7), (1, 4), (6, 6)], ids=str)
PRECISIONS = pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-10)]
)


def a_map(height, width, channels=8, batch=2, seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    return tf.constant(rng.normal(size=(batch, height, width, channels)), dtype)


def made(cls, channels=8, **arguments):
    layer = cls(**arguments)
    layer.build((None, None, None, channels))
    randomize(layer)
    return layer


# --- CGNL in NumPy -------------------------------------------------------------------------------


def conv(x, layer):
    """1x1 convolution of positions (N, C)."""
    y = x @ np.asarray(layer.kernel, np.float64)[0, 0]
    return y if layer.bias is None else y + np.asarray(layer.bias, np.float64)


def kernel_value(theta, phi, layer):
    if layer.kernel == "dot":
        return theta * phi
    gamma = 1e-4
    series = sum((2 * gamma * theta * phi) ** p / math.factorial(p) for p in range(layer.order + 1))
    return math.exp(-2 * gamma) * series


def cgnl(image, layer):
    """Groups are lists of channels; within one, every (position, channel) asks every other."""
    x = np.asarray(image, np.float64).reshape(-1, image.shape[-1])
    theta, phi, g = (conv(x, part) for part in (layer.theta, layer.phi, layer.g))
    n, channels, width = len(x), x.shape[1], theta.shape[1]
    output_kernel = np.asarray(layer.output_kernel, np.float64)[0, 0]
    result = np.zeros_like(x)
    for group in range(layer.groups):
        inside = np.arange(width).reshape(layer.groups, -1)[group]
        outside = np.arange(channels).reshape(layer.groups, -1)[group]
        gathered = np.zeros((n, len(inside)))
        for i, j in np.ndindex(n, len(inside)):
            asked = theta[i, inside[j]]
            for k in range(n):
                for c in inside:
                    gathered[i, j] += kernel_value(asked, phi[k, c], layer) * g[k, c]
        if layer.use_scale:
            gathered /= math.sqrt(n * len(inside))
        y = gathered @ output_kernel[:, outside]
        y = (y - y.mean()) / np.sqrt(y.var() + layer.epsilon)
        gamma, beta = (np.asarray(w, np.float64) for w in (layer.norm.gamma, layer.norm.beta))
        result[:, outside] = y * gamma[outside] + beta[outside]
    return (result + x).reshape(image.shape)


def made_cgnl(**arguments):
    """Large theta and phi for "rbf": at gamma = 1e-4 its higher powers could not be seen."""
    layer = made(CompactGeneralizedNonLocal, **arguments)
    if layer.kernel == "rbf":
        for part in (layer.theta, layer.phi):
            part.kernel.assign(part.kernel * 60)
    return layer


@PRECISIONS
@SIZES
@pytest.mark.parametrize(
    "arguments",
    [
        {"groups": 2},
        {"groups": 4, "use_scale": True, "epsilon": 0.1, "filters": 8},
        {"groups": 1, "key_filters": 3},
        {"groups": 2, "kernel": "rbf"},
        {"groups": 4, "kernel": "rbf", "order": 1, "use_scale": True},
    ],
    ids=str,
)
def test_cgnl_equals_the_reference(arguments, size, dtype, tolerance):
    layer = made_cgnl(dtype=dtype, **arguments)
    x = a_map(*size, batch=1, dtype=dtype)
    found = layer(x)
    assert found.dtype == dtype
    assert relative_error(found[0], cgnl(x[0], layer)) < tolerance


def test_every_power_of_the_series_is_seen_by_these_tests():
    layer = made_cgnl(groups=2, kernel="rbf")
    results = []
    for order in range(1, 5):
        layer.order = order
        results.append(cgnl(a_map(5, 7)[0], layer))
    for fewer, more in zip(results, results[1:], strict=False):
        assert relative_error(fewer, more) > 1e-3


def test_default_widths():
    layer = made(CompactGeneralizedNonLocal, channels=32)
    assert layer.theta.kernel.shape == layer.phi.kernel.shape == (1, 1, 32, 16)
    assert layer.output_kernel.shape == (1, 1, 2, 32)
    assert len(layer.weights) == 6


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_the_series_is_the_exponential_up_to_its_remainder(order):
    """Lagrange's bound, and no less than a tenth of it: the order is the one asked for."""
    gamma = 1e-4
    rng = np.random.default_rng(0)
    theta, phi = rng.uniform(20, 30, (2, 1, 4, 2, 3))
    g = rng.uniform(0.5, 1.5, (1, 4, 2, 3))
    found = separable_attention(
        *(tf.constant(t) for t in (theta, phi, g)), kernel_coefficients("rbf", order)
    )
    for n, group, k in np.ndindex(4, 2, 3):
        t = 2 * gamma * theta[0, n, group, k] * phi[0, :, group]
        factor = math.exp(-2 * gamma) * g[0, :, group]
        error = np.sum(factor * np.exp(t)) - float(found[0, n, group, k])
        bound = np.sum(factor * np.exp(t) * t ** (order + 1)) / math.factorial(order + 1)
        assert bound / 10 < error < bound


def test_rbf_is_the_gaussian_where_the_squares_are_one():
    """For theta, phi = +-1 the published simplification is exact."""
    rng = np.random.default_rng(0)
    theta, phi = rng.choice([-1.0, 1.0], (2, 1, 4, 2, 3))
    g = rng.normal(size=(1, 4, 2, 3))
    found = separable_attention(
        *(tf.constant(t) for t in (theta, phi, g)), kernel_coefficients("rbf", 4)
    )
    distance = theta[0, :, None, :, :, None] - phi[0, None, :, :, None, :]
    exact = np.einsum("nmgkc,mgc->ngk", np.exp(-1e-4 * distance**2), g[0])
    assert relative_error(found[0], exact) < 1e-14


def test_with_dot_a_group_is_left_with_the_sign_of_its_scalar():
    layer = made(CompactGeneralizedNonLocal, groups=2, dtype="float64")
    x = a_map(5, 7, dtype="float64")
    layer.norm.beta.assign(tf.zeros(8))
    added = layer(x) - x
    layer.g.kernel.assign(100 * layer.g.kernel)
    assert 1e-9 < relative_error(layer(x) - x, added) < 1e-2
    layer.g.kernel.assign(-layer.g.kernel / 100)
    assert relative_error(x - layer(x), added) < 1e-10


# --- Double attention in NumPy -------------------------------------------------------------------


def double(image, layer):
    x = np.asarray(image, np.float64).reshape(-1, image.shape[-1])
    feature, attention, distribution = (
        conv(x, part) for part in (layer.feature, layer.attention, layer.distribution)
    )
    descriptors = []
    for k in range(attention.shape[1]):
        weights = reference.softmax(attention[:, k])
        descriptors.append(sum(w * a for w, a in zip(weights, feature, strict=True)))
    norm = layer.norm
    gamma, beta, mean, variance = (
        np.asarray(w, np.float64)
        for w in (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
    )
    result = np.zeros_like(x)
    for i in range(len(x)):
        weights = reference.softmax(distribution[i])
        mixed = sum(w * d for w, d in zip(weights, descriptors, strict=True))
        y = conv(mixed, layer.output_conv)
        result[i] = (y - mean) / np.sqrt(variance + layer.epsilon) * gamma + beta + x[i]
    return result.reshape(image.shape)


@PRECISIONS
@SIZES
@pytest.mark.parametrize(
    "arguments",
    [{}, {"gather_filters": 5, "key_filters": 3, "filters": 8}, {"epsilon": 0.1}],
    ids=str,
)
def test_double_equals_the_reference(arguments, size, dtype, tolerance):
    layer = made(DoubleAttention, dtype=dtype, **arguments)
    x = a_map(*size, dtype=dtype)
    found = layer(x)
    assert found.dtype == dtype
    assert relative_error(found, np.stack([double(image, layer) for image in x])) < tolerance


def test_biases_without_effect_are_none():
    layer = made(DoubleAttention, channels=16)
    assert layer.feature.kernel.shape == layer.attention.kernel.shape == (1, 1, 16, 4)
    assert layer.distribution.bias.shape == (4,)
    assert [part.bias for part in (layer.feature, layer.attention, layer.output_conv)] == [None] * 3


# --- Both ----------------------------------------------------------------------------------------

BOTH = pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (CompactGeneralizedNonLocal, {"groups": 2}),
        (CompactGeneralizedNonLocal, {"groups": 2, "kernel": "rbf"}),
        (DoubleAttention, {}),
    ],
    ids=["dot", "rbf", "double"],
)


@BOTH
def test_a_fresh_module_is_the_identity(cls, arguments):
    x = a_map(5, 7)
    for training in (False, True):
        np.testing.assert_array_equal(cls(**arguments)(x, training=training), x)


@BOTH
@pytest.mark.parametrize("training", [False, True])
def test_commutes_with_permutations_of_the_positions(cls, arguments, training):
    layer = made(cls, **arguments)
    x = a_map(5, 7).numpy()
    order = np.random.default_rng(1).permutation(35)

    def permuted(t):
        return t.reshape(2, 35, 8)[:, order].reshape(2, 5, 7, 8)

    found = layer(permuted(x), training=training)
    expected = permuted(layer(x, training=training).numpy())
    assert relative_error(found, expected) < 1e-4
    assert relative_error(x, expected) > 0.1  # it is no identity that commutes


@BOTH
def test_dropout_leaves_out_whole_channels(cls, arguments):
    layer = made(cls, channels=64, dropout=0.5, **arguments)
    dropped = layer(a_map(4, 4, channels=64), training=True).numpy().reshape(2, 16, 64)
    kept = dropped != 0
    np.testing.assert_array_equal(kept.any(1), kept.all(1))
    assert 0.2 < kept.mean() < 0.8


def test_long_sums_do_not_overflow_in_half_precision():
    half, full = (
        made(CompactGeneralizedNonLocal, groups=2, dtype=dtype)
        for dtype in ("mixed_float16", "float32")
    )
    x = tf.abs(a_map(12, 12)) + 1
    for layer in (half, full):
        for part in (layer.theta, layer.phi, layer.g):
            part.kernel.assign(10 * tf.abs(part.kernel))
    scalars = tf.reduce_sum(tf.reshape(full.phi(x) * full.g(x), (2, 144, 2, 2)), axis=(1, 3))
    assert np.all(scalars > float(np.finfo("float16").max))
    assert relative_error(half(x), full(x)) < 0.01


# --- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (CompactGeneralizedNonLocal, {"kernel": "gauss"}, "dot, rbf.*gauss"),
        (CompactGeneralizedNonLocal, {"groups": 0}, "groups.*0"),
        (CompactGeneralizedNonLocal, {"order": 0}, "order.*0"),
        (CompactGeneralizedNonLocal, {"key_filters": 0}, "key_filters.*0"),
        (CompactGeneralizedNonLocal, {"dropout": 1}, "dropout.*1"),
        (DoubleAttention, {"gather_filters": 0}, "gather_filters.*0"),
        (DoubleAttention, {"key_filters": -2}, "key_filters.*-2"),
        (DoubleAttention, {"filters": 0}, "filters.*0"),
        (DoubleAttention, {"dropout": -0.1}, "dropout.*-0.1"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": 3}, "groups 3 do not divide 8 input channels"),
        ({"groups": 5}, "groups 5 do not divide 8 input channels"),
        ({"groups": 8}, "groups 8 do not divide 4 key_filters"),
        ({"groups": 2, "key_filters": 3}, "groups 2 do not divide 3 key_filters"),
    ],
    ids=str,
)
def test_groups_that_do_not_divide_the_channels_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CompactGeneralizedNonLocal(**arguments)(a_map(4, 4))


@pytest.mark.parametrize("cls", [CompactGeneralizedNonLocal, DoubleAttention])
def test_what_does_not_fit_the_residual_is_refused(cls):
    with pytest.raises(ValueError, match="8 channels.*got 5"):
        cls(filters=5)(a_map(4, 4))
    with pytest.raises(ValueError, match="feature map"):
        cls()(tf.zeros((2, 6, 8)))
