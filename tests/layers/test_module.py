"""What all context modules share: the residual form, which begins as the identity and learns."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from isa_tf.cost import flops_by_kind
from isa_tf.layers import (
    ContextModule,
    InterlacedSparseAttention,
    NonLocal2D,
    RecurrentCrissCrossAttention,
    SelfAttention2D,
    create_context,
)
from isa_tf.testing import randomize

OPTIONS = {
    "isa": {"partition": 4},
    "isa_plus": {"partition": 4},
    "self_attention": {},
    "nonlocal": {"sub_sample": "before", "use_scale": True},
    "rcca": {},
    "ppm": {"pool_sizes": (1, 2)},
    "aspp": {"dilation_rates": (1, 2), "branch_filters": 8},
    "cgnl": {"groups": 2, "epsilon": 0.1},  # above what phi and g change in its groups
    "a2": {},
}


def a_map(dtype="float32"):
    rng = np.random.default_rng(0)
    return tf.cast(rng.normal(size=(2, 6, 5, 8)), dtype)


def scales(module):
    """Those of the normalisation that ends a module."""
    last = [v for v in module.trainable_variables if v.name == "gamma" and v.shape == (8,)]
    return last[-1]


@pytest.mark.parametrize("name", OPTIONS)
def test_fresh_it_is_the_identity_and_then_learns(name):
    module = create_context(name, residual=True, **OPTIONS[name])
    x, target = a_map(), tf.reverse(a_map(), [0, 1])

    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((module(x, training=True) - target) ** 2)
        return tape.gradient(loss, module.trainable_variables)

    for training in (False, True):
        np.testing.assert_array_equal(module(x, training=training), x)
    optimizer = keras.optimizers.SGD(10.0)
    optimizer.apply_gradients(zip(gradients(), module.trainable_variables, strict=True))
    assert np.all(scales(module).numpy() != 0)
    assert np.abs(module(x, training=True) - x).max() > 1e-3
    for variable, gradient in zip(module.trainable_variables, gradients(), strict=True):
        if len(variable.shape) == 4:
            assert np.any(gradient.numpy() != 0), variable.path


@pytest.mark.parametrize("name", ["isa", "rcca", "nonlocal"])
def test_fresh_in_half_precision(name):
    x = a_map("bfloat16")
    module = create_context(name, residual=True, dtype="mixed_bfloat16", **OPTIONS[name])
    outputs = module(x, training=True)
    assert outputs.dtype == "bfloat16"
    np.testing.assert_array_equal(tf.cast(outputs, "float32"), tf.cast(x, "float32"))


@pytest.mark.parametrize("name", ["isa", "rcca"])
def test_what_is_added_has_both_signs_and_costs_the_same(name):
    module, plain = (create_context(name, residual=r, **OPTIONS[name]) for r in (True, False))
    module.build((None, None, None, 8))
    randomize(module)
    added = module(a_map()) - a_map()
    assert added.numpy().min() < -0.1 and added.numpy().max() > 0.1
    assert plain(a_map()).numpy().min() == 0  # a ReLU's
    shape = (1, 6, 5, 8)
    assert flops_by_kind(module, shape) == flops_by_kind(plain, shape)


class Mean(ContextModule):
    def call(self, inputs, training=None):
        return inputs - tf.reduce_mean(inputs, axis=(1, 2), keepdims=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mean(residual=True), "Mean has no residual form"),
        (lambda: SelfAttention2D(residual=True), "has no residual form"),
        (lambda: NonLocal2D(residual=False), "NonLocal2D always adds to its input"),
        (lambda: InterlacedSparseAttention(residual=True, fuse=False), "needs fuse=True"),
        (lambda: RecurrentCrissCrossAttention(fuse=False, residual=False), "without fusion"),
        (
            lambda: InterlacedSparseAttention(residual=True, filters=5)(a_map()),
            "8 channels; filters must be None or 8, got 5",
        ),
    ],
)
def test_forms_that_there_are_not(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_without_the_argument_a_module_is_as_it_is_by_itself():
    assert not InterlacedSparseAttention().residual and NonLocal2D().residual
    assert not RecurrentCrissCrossAttention().residual
    assert RecurrentCrissCrossAttention(fuse=False).residual
