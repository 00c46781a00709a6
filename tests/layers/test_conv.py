"""What `ConvNormAct(recompute=...)` keeps for its gradients, and that it changes nothing else."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from isa_tf.layers import ConvNormAct


def chain(recompute, /, dtype="float32", two_readers=True, **second):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 10, 3))
    arguments = {"recompute": recompute, "dtype": dtype}
    x = ConvNormAct(6, 3, strides=2, padding="symmetric", name="first", **arguments)(inputs)
    second = {"filters": None, "kernel_size": 3, **arguments, **second}
    y = ConvNormAct(name="second", **second)(x)
    third = {"recompute": "convolution"} if recompute else {}
    y = ConvNormAct(6, activation=None, name="third", dtype=dtype, **third)(y)
    if two_readers:  # of which one is no ConvNormAct
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


@pytest.mark.parametrize(
    ("second", "tolerance", "options"),
    [
        ({}, 1e-5, {}),
        ({}, 1e-5, {"jit_compile": True}),
        ({"activation": "relu6", "strides": 2, "padding": "symmetric", "filters": 5}, 1e-5, {}),
        ({"activation": None, "kernel_size": 5, "dilation_rate": 2}, 1e-5, {}),
        ({"recompute": "convolution"}, 1e-5, {}),
        ({"recompute": "convolution", "filters": 5, "strides": 2}, 1e-5, {"jit_compile": True}),
        ({"recompute": "convolution", "trainable": False}, 1e-5, {}),
        ({"recompute": "convolution", "dtype": "mixed_bfloat16"}, 3e-2, {}),
        ({"trainable": False}, 1e-5, {}),
        ({"synchronized": True}, 1e-5, {}),
        ({"dtype": "mixed_bfloat16"}, 3e-2, {}),
    ],
)
def test_recomputation_changes_no_gradient(second, tolerance, options):
    dtype = second.get("dtype", "float32")
    readers = {"two_readers": "strides" not in second}
    plain = {key: value for key, value in second.items() if key != "recompute"}
    kept = chain(None, **{"dtype": dtype, **readers, **plain})
    remade = chain("activation", **{"dtype": dtype, **readers, **second})
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
    backward = [op for op in graph.get_operations() if op.name not in forward]
    read = {tensor.ref() for op in backward for tensor in op.inputs}
    return sum(
        op.type in kinds and op.name in forward and op.outputs[0].ref() in read
        for op in graph.get_operations()
    )


@pytest.mark.parametrize(
    ("recompute", "second", "activations", "convolutions"),
    [
        (None, None, 2, 3),
        ("activation", "activation", 0, 2),  # the third's is not kept in either
        ("activation", "convolution", 1, 1),
    ],
)
def test_recomputed_tensors_are_not_kept(recompute, second, activations, convolutions):
    model = chain(recompute, two_readers=False, **({"recompute": second} if second else {}))
    assert kept_outputs(model, {"Relu"}) == activations
    assert kept_outputs(model, {"Conv2D", "DepthwiseConv2dNative"}) == convolutions


def test_recomputation_without_a_graph():
    kept, remade = chain(None), chain("activation")
    x = inputs()
    for training in (False, True):
        np.testing.assert_array_equal(kept(x, training=training), remade(x, training=training))


def test_recompute_is_saved(tmp_path):
    model = chain("activation")
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.get_layer("first").recompute == "activation"
    assert again.get_layer("third").recompute == "convolution"


def test_unknown_recomputation_is_refused():
    with pytest.raises(ValueError, match="recompute must be one of .*'convolution'.* got 'all'"):
        ConvNormAct(4, recompute="all")
