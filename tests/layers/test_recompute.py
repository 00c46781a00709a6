"""What `Recomputed` keeps for its gradients, and that it changes nothing else."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from isa_tf.layers import ConvNormAct, Recomputed


def chain(recomputed, /, dtype="float32", two_readers=True, convolve_again=False, **second):
    """A model of three convolutions in a row, in a `Recomputed` or one after the other."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 10, 3))
    x = ConvNormAct(6, 3, strides=2, padding="symmetric", name="first", dtype=dtype)(inputs)
    second = {"filters": None, "kernel_size": 3, "dtype": dtype, **second}
    last = {"activation": None} if convolve_again else {}
    convs = [
        ConvNormAct(8, dtype=dtype, name="widen"),
        ConvNormAct(name="second", **second),
        ConvNormAct(6, name="third", dtype=dtype, **last),
    ]
    y = x
    if recomputed:
        y = Recomputed(convs, convolve_again, dtype=dtype, name="convs")(y)
    else:
        for conv in convs:
            y = conv(y)
    if two_readers:  # of the map that the row reads
        y = keras.layers.Add(dtype=dtype)([x, y])
    return keras.Model(inputs, y)


def inputs():
    return tf.constant(np.random.default_rng(0).normal(size=(2, 12, 10, 3)), "float32")


def step_of(model, **options):
    """A step of training: moves the moving statistics and returns loss and gradients."""

    @tf.function(**options)
    def step(x):
        with tf.GradientTape() as tape:
            y = tf.cast(model(x, training=True), tf.float32)
            loss = tf.reduce_mean(tf.sin(3 * y) * y)
        return loss, tape.gradient(loss, [v.value for v in model.trainable_variables])

    return step


@pytest.mark.some(6)
@pytest.mark.parametrize("convolve_again", [False, True])
@pytest.mark.parametrize(
    ("second", "tolerance", "options"),
    [
        ({}, 1e-5, {}),
        ({}, 1e-5, {"jit_compile": True}),
        ({"activation": "relu6", "strides": 2, "padding": "symmetric", "filters": 5}, 1e-5, {}),
        ({"activation": None, "kernel_size": 5, "dilation_rate": 2}, 1e-5, {}),
        ({"activation": "silu", "filters": 5, "minimal_filtering": 4}, 1e-4, {}),
        ({"trainable": False}, 1e-5, {}),
        ({"synchronized": True}, 1e-5, {}),
        ({"dtype": "mixed_bfloat16"}, 3e-2, {}),
    ],
)
def test_recomputation_changes_no_gradient(second, tolerance, options, convolve_again):
    shared = {
        "dtype": second.get("dtype", "float32"),
        "two_readers": "strides" not in second,
        "convolve_again": convolve_again,
    }
    kept, remade = (chain(recomputed, **{**shared, **second}) for recomputed in (False, True))
    _, expected = step_of(kept, **options)(inputs())
    _, found = step_of(remade, **options)(inputs())
    assert len(found) == len(expected) == len(kept.trainable_variables)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())
    # Above all, the moving statistics have not moved twice.
    for a, b in zip(remade.weights, kept.weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6)


def kept_outputs(model, kinds):
    """How many outputs of such operations the forward pass of a step leaves to its gradients."""
    graph = step_of(model).get_concrete_function(inputs()).graph
    forward, stack = set(), [graph.outputs[0].op]
    while stack:
        op = stack.pop()
        if op.name not in forward:
            forward.add(op.name)
            stack += [tensor.op for tensor in op.inputs]
    needed, stack = set(), [tensor.op for tensor in graph.outputs[1:]]
    while stack:  # operations that nothing needs, such as a convolution's own result, never run
        op = stack.pop()
        if op.name not in needed:
            needed.add(op.name)
            stack += [] if op.name in forward else [tensor.op for tensor in op.inputs]
    backward = [op for op in graph.get_operations() if op.name in needed - forward]
    read = {tensor.ref() for op in backward for tensor in op.inputs}
    return sum(
        op.type in kinds and op.name in forward and op.outputs[0].ref() in read
        for op in graph.get_operations()
    )


@pytest.mark.parametrize(
    ("recomputed", "convolve_again", "activations", "convolutions"),
    [
        # Of the first layer, which is no part of the row, both are kept in any case.
        (False, False, 4, 4),
        (True, False, 2, 4),
        (False, True, 3, 4),
        (True, True, 1, 3),
    ],
)
def test_recomputed_tensors_are_not_kept(recomputed, convolve_again, activations, convolutions):
    model = chain(recomputed, two_readers=False, convolve_again=convolve_again)
    assert kept_outputs(model, {"Relu"}) == activations
    assert kept_outputs(model, {"Conv2D", "DepthwiseConv2dNative"}) == convolutions


def test_recomputation_without_a_graph():
    kept, remade = chain(False), chain(True)
    x = inputs()
    for training in (False, True):
        np.testing.assert_array_equal(kept(x, training=training), remade(x, training=training))


def test_it_is_made_of_convolutions():
    for wrong in ([], [keras.layers.ReLU()]):
        with pytest.raises(ValueError, match="is made of ConvNormActs, at least one, got"):
            Recomputed(wrong)
