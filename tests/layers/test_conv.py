"""What `ConvNormAct` does around a library's faults and slow ways."""

import numpy as np
import pytest
import tensorflow as tf

from isa_tf.layers import ConvNormAct
from isa_tf.testing import randomize


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("reads", "strided"), [(8, False), (15, False), (16, True)])
def test_a_narrow_kernel_of_one_has_no_strides(reads, strided, training):
    """In the graph; oneDNN would write past its memory, which mostly goes unseen."""
    layer = ConvNormAct(6, strides=2)
    layer.build((None, None, None, reads))

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            y = tf.reduce_sum(layer(x, training=training) ** 2)
        return tape.gradient(y, layer.conv.kernel)

    graph = step.get_concrete_function(tf.TensorSpec((2, 5, 7, reads))).graph
    found = {
        tuple(op.get_attr("strides"))
        for op in graph.get_operations()
        if op.type in ("Conv2D", "Conv2DBackpropFilter")
    }
    assert found == {(1, 2, 2, 1) if strided else (1, 1, 1, 1)}


def test_what_it_computes_is_the_same():
    layer = ConvNormAct(6, strides=2, activation=None)
    layer.build((None, None, None, 8))
    randomize(layer)
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 8))
    kernel, bias = layer.folded()
    expected = x[:, ::2, ::2] @ kernel[0, 0] + bias
    np.testing.assert_allclose(layer(x.astype("float32")), expected, atol=1e-5)
    assert layer.compute_output_shape((2, 5, 7, 8)) == expected.shape


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize(("dtype", "is_product"), [("bfloat16", True), ("float32", False)])
def test_a_kernel_of_one_is_a_product_in_bfloat16(dtype, is_product, strides):
    """In training, where a convolution's own gradient takes two to three times as long."""
    layer = ConvNormAct(6, strides=strides, dtype=f"mixed_{dtype}" if is_product else dtype)
    layer.build((None, None, None, 8))
    kernel = layer.conv.kernel

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer.convolve(x, tf.convert_to_tensor(kernel))
        return y, *tape.gradient(y, [x, kernel.value], y)

    spec = tf.TensorSpec((None, 5, None, 8), dtype)
    step = step.get_concrete_function(spec)
    kinds = {op.type for op in step.graph.get_operations()}
    assert ("MatMul" in kinds) == is_product
    assert ("Conv2DBackpropFilter" in kinds) == (not is_product)
    x = tf.cast(np.random.default_rng(0).normal(size=(2, 5, 7, 8)), dtype)
    y, of_x, of_kernel = (np.asarray(tf.cast(v, tf.float64)) for v in step(x))
    exact = np.asarray(tf.cast(x, tf.float64))[:, ::strides, ::strides]
    weights = np.asarray(tf.cast(tf.cast(kernel, dtype), tf.float64))[0, 0]
    tolerance = 2e-2 if is_product else 1e-5
    np.testing.assert_allclose(y, exact @ weights, atol=tolerance)
    expected = np.zeros((2, 5, 7, 8))
    expected[:, ::strides, ::strides] = y @ weights.T
    np.testing.assert_allclose(of_x, expected, atol=tolerance)
    expected = np.einsum("bhwc,bhwf->cf", exact, y)[None, None]
    np.testing.assert_allclose(of_kernel, expected, rtol=tolerance, atol=tolerance)
    assert step.structured_outputs[0].shape[1:] == ((5, None, 6) if strides == 1 else (3, None, 6))
