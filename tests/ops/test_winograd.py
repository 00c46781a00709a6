import numpy as np
import pytest
import tensorflow as tf

from isa_tf import ops


def slow_conv(x, kernel, rate):
    """Zero-padded 3x3 convolution in float64, position by position."""
    batch, height, width, _ = x.shape
    y = np.zeros((batch, height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            for a in range(3):
                for b in range(3):
                    r, c = i + (a - 1) * rate, j + (b - 1) * rate
                    if 0 <= r < height and 0 <= c < width:
                        y[:, i, j] += x[:, r, c].astype("float64") @ kernel[a, b]
    return y


def make(size, channels=5, filters=3, batch=2):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, *size, channels)).astype("float32")
    return x, rng.normal(size=(3, 3, channels, filters)).astype("float32")


@pytest.mark.some(10)
@pytest.mark.parametrize("rate", [1, 2, 4])
@pytest.mark.parametrize("size", [(8, 8), (7, 13), (1, 3), (18, 5)])
@pytest.mark.parametrize("jit_compile", [True, False])
def test_equals_the_plain_sum(size, rate, jit_compile):
    x, kernel = make(size)
    bias = np.array([0.3, -1.0, 0.0], "float32")
    found = ops.winograd_conv(x, ops.winograd_kernel(kernel), bias, tf.nn.relu, rate, jit_compile)
    expected = np.maximum(slow_conv(x, kernel, rate) + bias, 0)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("jit_compile", [True, False])
def test_unknown_sizes_in_a_graph(jit_compile):
    _, kernel = make((8, 8))
    transformed = tf.constant(ops.winograd_kernel(kernel))

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 5))])
    def function(x):
        return ops.winograd_conv(x, transformed, tf.zeros(3), tf.identity, 2, jit_compile)

    for size in [(8, 8), (11, 6)]:
        x, _ = make(size)
        expected = slow_conv(x, kernel, 2)
        np.testing.assert_allclose(function(x), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("jit_compile", [True, False])
def test_half_precision_comes_back_as_it_came(jit_compile):
    x, kernel = make((9, 9))
    transformed, half = ops.winograd_kernel(kernel), tf.cast(x, tf.bfloat16)
    found = ops.winograd_conv(half, transformed, tf.zeros(3), tf.identity, 1, jit_compile)
    assert found.dtype == tf.bfloat16
    expected = slow_conv(x, kernel, 1)
    assert np.abs(tf.cast(found, tf.float32) - expected).max() < 0.02 * np.abs(expected).max()


def test_another_kernel_is_refused():
    with pytest.raises(ValueError, match=r"3x3, got shape \(5, 5, 2, 2\)"):
        ops.winograd_kernel(np.zeros((5, 5, 2, 2)))


@pytest.mark.some(4)
@pytest.mark.parametrize("rate", [1, 4])
@pytest.mark.parametrize("size", [(8, 8), (7, 13)])
@pytest.mark.parametrize(("in_graph", "portion"), [(False, 512), (True, 512), (True, 2)])
def test_gradients_are_those_of_the_plain_convolution(size, rate, in_graph, portion, monkeypatch):
    monkeypatch.setattr(ops.winograd, "_GRADIENT_CHANNELS", portion)  # the last one may be smaller
    x, kernel = map(tf.constant, make(size))
    weights = tf.random.stateless_normal((2, *size, 3), (0, 1))

    def run(function):
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            y = function(x, kernel)
            loss = tf.reduce_sum(y * weights) + tf.reduce_sum(y**2)
        return [y, *tape.gradient(loss, [x, kernel])]

    def filtered(x, kernel):
        return ops.trainable_winograd_conv(x, kernel, rate)

    found = run(tf.function(filtered) if in_graph else filtered)
    expected = run(lambda x, k: tf.nn.convolution(x, k, 1, "SAME", dilations=rate))
    np.testing.assert_allclose(expected[0], slow_conv(x.numpy(), kernel.numpy(), rate), atol=1e-4)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())
