"""Context modules by name."""

import pytest
import tensorflow as tf

from isa_tf.layers import InterlacedSparseAttention, create_context, list_contexts


def test_every_name_makes_a_module_of_the_same_size():
    x = tf.random.normal((1, 7, 9, 16))
    for name in list_contexts():
        module = create_context(name, name="context", dtype="float32")
        if name == "none":
            assert module is None
        else:
            assert module.name == "context"
            assert module(x).shape == x.shape, name


def test_arguments_reach_the_module():
    module = create_context("isa", partition=(4, 2), order="short", synchronized=True)
    assert isinstance(module, InterlacedSparseAttention)
    assert module.partitions == [(4, 2)] and module.order == "short" and module.synchronized


def test_plus_is_isa_with_a_bias_by_position():
    plus = create_context("isa_plus", partition=4)
    assert type(plus) is InterlacedSparseAttention
    own, usual = plus.get_config(), create_context("isa", partition=4).get_config()
    changed = {name for name in own if own[name] != usual[name]} - {"name"}
    assert changed == {"position_bias"} and plus.position_bias
    assert not create_context("isa_plus", position_bias=False).position_bias


def test_self_attention_is_one_group_whatever_the_partition():
    module = create_context("self_attention", partition=8)
    _, affinities = module(tf.random.normal((2, 5, 7, 4)), return_affinity=True)
    assert [tuple(a.shape) for a in affinities] == [(2, 1, 35, 35)]


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match='did you mean "self_attention"'):
        create_context("self_atention")
    with pytest.raises(ValueError, match="known: none, isa"):
        create_context("xyz")
    with pytest.raises(ValueError, match="None"):
        create_context(None)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="partition"):
        create_context("isa", partition=0)
    with pytest.raises(ValueError, match="blocks"):
        create_context("isa", blocks=3)
