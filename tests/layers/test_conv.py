"""What `ConvNormAct` does around a library's faults."""

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
