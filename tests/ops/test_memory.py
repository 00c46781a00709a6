"""Affinities that do not fit are refused before they are allocated."""

import re

import pytest
import tensorflow as tf

from isa_tf import ops
from isa_tf.layers import InterlacedSparseAttention, NonLocal2D, SelfAttention2D


@pytest.fixture
def little_memory(monkeypatch):
    if tf.config.list_logical_devices("GPU"):
        pytest.skip("with a GPU, TensorFlow refuses by itself")
    monkeypatch.setattr(ops.memory, "free_memory", lambda: 2 * 10**9)


def test_free_memory():
    free = ops.free_memory()
    if free is None:
        pytest.skip("this system does not tell")
    assert 2**20 < free < 2**50


@pytest.mark.parametrize("layer", [SelfAttention2D, NonLocal2D])
def test_dense_attention_too_large(little_memory, layer):
    layer = layer(key_filters=2)
    message = "1x1x16384x16384 float32, takes 1.1 GB, and its softmax two of that size; 2.0 GB"
    with pytest.raises(ValueError, match=re.escape(message)):
        layer(tf.zeros((1, 128, 128, 2)))
    assert layer(tf.zeros((1, 16, 16, 2))).shape == (1, 16, 16, 2)  # and nothing is lost


def test_in_a_graph_the_call_is_refused_and_not_the_trace(little_memory):
    layer = SelfAttention2D(key_filters=2)
    layer.build((None, None, None, 2))
    function = tf.function(lambda x: layer(x), input_signature=[tf.TensorSpec((None, 128, 128, 2))])
    traced = function.get_concrete_function()
    with pytest.raises(tf.errors.InvalidArgumentError, match="takes 1.1 GB"):
        traced(tf.zeros((1, 128, 128, 2)))


def test_interlaced_attention_of_the_same_map_fits(little_memory):
    layer = InterlacedSparseAttention(partition=8, key_filters=2)
    assert layer(tf.zeros((1, 128, 128, 2))).shape[1:3] == (128, 128)
