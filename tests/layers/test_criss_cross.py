"""Criss-cross attention against NumPy loops over positions, and who hears whom."""

import itertools

import numpy as np
import pytest
import reference
import tensorflow as tf

from isa_tf.layers.criss_cross import RecurrentCrissCrossAttention
from isa_tf.testing import outputs_and_gradients, randomize, relative_error


def a_map(height, width, channels=6, batch=2, seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    return tf.constant(rng.normal(size=(batch, height, width, channels)), dtype)


def made(channels=6, positive=False, **arguments):
    layer = RecurrentCrissCrossAttention(**arguments)
    layer.build((None, None, None, channels))
    randomize(layer, positive=positive)
    return layer


# --- The whole module in NumPy -------------------------------------------------------------------


def conv1x1(x, layer):
    return x @ np.asarray(layer.kernel, np.float64)[0, 0] + np.asarray(layer.bias, np.float64)


def one_pass(x, layer):
    query, key, value = (conv1x1(x, part) for part in (layer.query, layer.key, layer.value))
    height, width = x.shape[:2]
    y = np.zeros_like(x)
    for row, column in itertools.product(range(height), range(width)):
        heard = {(i, column) for i in range(height)} | {(row, j) for j in range(width)}
        assert len(heard) == height + width - 1
        weights = reference.softmax(np.array([query[row, column] @ key[p] for p in heard]))
        context = sum(w * value[p] for w, p in zip(weights, heard, strict=True))
        y[row, column] = float(layer.gamma) * context + x[row, column]
    return y


def fusion(x, brick):
    """Convolution by loops over the output and the kernel, normalisation, ReLU."""
    kernel = np.asarray(brick.conv.kernel, np.float64)
    size, margin = kernel.shape[0], kernel.shape[0] // 2
    padded = np.pad(x, [(margin, margin), (margin, margin), (0, 0)])
    y = np.zeros((*x.shape[:2], kernel.shape[-1]))
    for row, column in np.ndindex(*x.shape[:2]):
        for i, j in np.ndindex(size, size):
            y[row, column] += padded[row + i, column + j] @ kernel[i, j]
    norm = brick.norm
    gamma, beta, mean, variance = (
        np.asarray(w, np.float64)
        for w in (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
    )
    y = (y - mean) / np.sqrt(variance + reference.EPSILON) * gamma + beta
    return np.maximum(y, 0.0)


def expected(image, layer):
    image = np.asarray(image, np.float64)
    x = image
    for _ in range(layer.recurrence):
        x = one_pass(x, layer)
    return fusion(np.concatenate([image, x], axis=-1), layer.fusion) if layer.fuse else x


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("size", [(5, 7), (1, 4), (3, 1), (6, 6)], ids=str)
@pytest.mark.parametrize(
    "arguments",
    [
        {"fuse": False, "recurrence": 1},
        {"fuse": False, "filters": 6, "key_filters": 4},
        {"fuse": False, "recurrence": 3},
        {"filters": 5, "key_filters": 2},
        {"fusion_kernel_size": 1},
    ],
    ids=str,
)
def test_equals_the_reference(arguments, size, dtype, tolerance):
    layer = made(dtype=dtype, **arguments)
    x = a_map(*size, dtype=dtype)
    found = layer(x)
    assert found.dtype == dtype
    assert relative_error(found, np.stack([expected(image, layer) for image in x])) < tolerance


def test_default_widths():
    layer = made(channels=16)
    assert layer.query.kernel.shape == layer.key.kernel.shape == (1, 1, 16, 2)
    assert layer.value.kernel.shape == (1, 1, 16, 16)
    assert layer.fusion.conv.kernel.shape == (3, 3, 32, 16)
    assert layer.gamma.shape == ()
    assert len(made(recurrence=5).weights) == len(made(recurrence=1).weights)


# --- What it means -------------------------------------------------------------------------------


def test_a_fresh_attention_is_the_identity():
    layer = RecurrentCrissCrossAttention(fuse=False)
    x = a_map(5, 7)
    for training in (False, True):
        np.testing.assert_array_equal(layer(x, training=training), x)


def links(layer, height, width):
    """(N, N): how much the output at position i changes with the input at position j.

    One batch of N equal maps, of which map i is asked for its position i: one backward pass.
    """
    n = height * width
    x = tf.repeat(tf.random.uniform((1, height, width, 2), 0.5, 1.5), n, axis=0)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(layer(x, training=False), -1)
        loss = tf.reduce_sum(tf.linalg.diag_part(tf.reshape(y, (n, n))))
    return tf.reduce_sum(tf.abs(tape.gradient(loss, x)), -1).numpy().reshape(n, n)


@pytest.mark.parametrize("size", [(5, 7), (1, 4), (6, 6)], ids=str)
def test_one_pass_hears_exactly_the_cross(size):
    found = links(made(2, positive=True, fuse=False, recurrence=1), *size) > 0
    row, column = np.divmod(np.arange(size[0] * size[1]), size[1])
    cross = (row[:, None] == row) | (column[:, None] == column)
    np.testing.assert_array_equal(found, cross)


@pytest.mark.parametrize("size", [(5, 7), (1, 4), (6, 6)], ids=str)
def test_two_passes_hear_every_position(size):
    found = links(made(2, positive=True, fuse=False), *size)
    assert np.all(found > 0), f"{np.mean(found == 0):.1%} of the links are missing"


def test_commutes_with_permutations_of_rows_and_columns_and_with_transposition():
    layer = made(fuse=False)
    x = a_map(5, 7)
    y = layer(x).numpy()
    rng = np.random.default_rng(1)
    rows, columns = rng.permutation(5), rng.permutation(7)
    assert (
        relative_error(layer(x.numpy()[:, rows][:, :, columns]), y[:, rows][:, :, columns]) < 1e-5
    )
    assert relative_error(layer(x.numpy().swapaxes(1, 2)), y.swapaxes(1, 2)) < 1e-5


def test_no_affinity_of_all_positions_is_formed():
    """The largest tensor of a step and its gradients holds N (H + W) numbers, not N N."""
    layer = made(channels=4, fuse=False)
    step = tf.function(lambda x: outputs_and_gradients(layer, x, True))
    graph = step.get_concrete_function(tf.TensorSpec((1, 12, 16, 4))).graph
    sizes = [t.shape.num_elements() for op in graph.get_operations() for t in op.outputs]
    assert None not in sizes
    assert max(sizes) == 12 * 16 * (12 + 16)


def test_large_affinities_do_not_overflow_in_half_precision():
    layer = made(dtype="mixed_float16", fuse=False, recurrence=1, key_filters=4)
    for part in (layer.query, layer.key):
        part.kernel.assign(part.kernel * 200)
    x = a_map(5, 7)
    query, key = (conv1x1(x.numpy().astype("float64"), part) for part in (layer.query, layer.key))
    assert np.abs((query * key).sum(-1)).max() > np.finfo("float16").max
    assert np.isfinite(layer(x)).all()


def test_dropout_leaves_out_whole_channels():
    layer = made(channels=64, dropout=0.5, fuse=False)
    dropped = layer(a_map(4, 4, channels=64), training=True).numpy().reshape(2, 16, 64)
    kept = dropped != 0
    np.testing.assert_array_equal(kept.any(1), kept.all(1))
    assert 0.2 < kept.mean() < 0.8


# --- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recurrence": 0}, "recurrence.*0"),
        ({"recurrence": None}, "recurrence.*None"),
        ({"key_filters": 0}, "key_filters.*0"),
        ({"filters": -1}, "filters.*-1"),
        ({"fusion_kernel_size": 2}, "fusion_kernel_size.*2"),
        ({"fusion_kernel_size": -1}, "fusion_kernel_size.*-1"),
        ({"dropout": 1}, "dropout.*1"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RecurrentCrissCrossAttention(**arguments)


def test_other_filters_without_fusion_are_refused():
    with pytest.raises(ValueError, match="6 channels.*got 5"):
        RecurrentCrissCrossAttention(fuse=False, filters=5)(a_map(4, 4))


def test_what_is_no_map_is_refused():
    with pytest.raises(ValueError, match="feature map"):
        RecurrentCrissCrossAttention()(tf.zeros((2, 6, 8)))
