import hashlib

import keras
import numpy as np
import one_of_several
import pytest
import tensorflow as tf
from processes import results, start

from isa_tf import training
from isa_tf.training import distribute, prepare, read_variable, write_variable


@pytest.fixture(scope="module")
def alone():
    """The training on one device."""
    return one_of_several.train(tf.distribute.get_strategy())


def check_same(result, alone):
    for name in ("history", "scores"):
        assert result[name].keys() == alone[name].keys()
        for key, value in alone[name].items():
            np.testing.assert_allclose(result[name][key], value, rtol=1e-5, err_msg=key)
    assert len(result["train_logs"]) == 3
    for ours, theirs in zip(result["train_logs"], alone["train_logs"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert result["last_test_logs"] == pytest.approx(alone["last_test_logs"], rel=1e-5)
    assert np.array_equal(result["confusions"], alone["confusions"])
    np.testing.assert_allclose(result["weights"], alone["weights"], rtol=1e-4, atol=1e-6)
    assert result["restored"]


def test_one_device_counts_every_pixel(alone):
    pixels = [sum(h * w for h, w in one_of_several.SIZES), 7 * 8 * 8]
    assert [np.sum(c) for c in alone["confusions"]] == pixels
    assert alone["restored"]


def test_two_replicas_are_as_one(alone, mirrored):
    check_same(one_of_several.train(mirrored), alone)


@pytest.mark.slow
def test_four_replicas_are_as_one(alone):
    (result,) = results(start(1, 4, "mirrored"))
    assert result["talk"]["replicas"] == 4 and result["talk"]["workers"] == 1
    check_same(result, alone)


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_workers_are_as_one(alone, devices):
    both = results(start(2, devices))
    for index, result in enumerate(both):
        talk = result["talk"]
        assert talk["workers"] == 2 and talk["replicas"] == 2 * devices
        assert talk["index"] == index and talk["chief"] == (index == 0)
        assert talk["over_workers"] == [2**60, 2**60 + 1]
        assert talk["any_of"] == [False, True, True, True]
        assert talk["agree"] == "last.keras"
        assert "0: 500, 1: 501" in talk["differ"]
        size = 8 * training.workers._GATHERED_WORDS + 13
        sent = [[b"", np.random.default_rng(1).bytes(size)], [b"ab", b"abab"], [b"", b""]]
        assert talk["gathered"] == [[hashlib.sha256(d).hexdigest() for d in all_] for all_ in sent]
        check_same(result, alone)
    assert both[0]["weights"] == both[1]["weights"]


def test_one_replica_is_left_as_it_is():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    before = set(vars(model))
    assert prepare(model) is model and set(vars(model)) == before
    contexts = []
    data = tf.data.Dataset.range(3)
    assert distribute(tf.distribute.get_strategy(), lambda c: contexts.append(c) or data) is data
    assert contexts == [None]


def test_cardinality_is_the_number_of_steps(mirrored):
    def make(n):
        return distribute(mirrored, lambda context: n)

    data = tf.data.Dataset.range(5)
    assert make(data).cardinality == 3
    assert make(data.repeat()).cardinality == tf.data.INFINITE_CARDINALITY
    unknown = data.filter(lambda n: True)
    assert make(unknown).cardinality == tf.data.UNKNOWN_CARDINALITY
    # Elements of a known shape too: TensorFlow alone leaves the fifth out.
    assert sum(len(mirrored.experimental_local_results(n)) for n in make(data)) == 6


def test_results_are_all_that_a_test_step_may_return(mirrored):
    class Model(keras.Model):
        def test_step(self, data):
            return {**super().test_step(data), "more": 0.0}

    with mirrored.scope():
        inputs = keras.Input((2,))
        model = prepare(Model(inputs, keras.layers.Dense(1)(inputs)))
        model.compile(loss="mse")
    data = tf.data.Dataset.from_tensors((tf.ones((1, 2)), tf.ones((1, 1))))
    with pytest.raises(ValueError, match="more"):
        model.evaluate(distribute(mirrored, lambda context: data), verbose=0)


def test_values_of_each_kind_of_variable(mirrored):
    with mirrored.scope():
        seed = keras.random.SeedGenerator(3)
        mean = keras.metrics.Mean()
        latest = tf.Variable(
            [0.0],
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.MEAN,
        )
    write_variable(seed.state, [2**40, 7])
    parts = mirrored.experimental_local_results(seed.state.value)
    assert [p.numpy().tolist() for p in parts] == [[2**40, 7]] * 2
    write_variable(mean.total, 3.0)
    assert [p.numpy() for p in mirrored.experimental_local_results(mean.total.value)] == [3.0, 0.0]
    assert read_variable(mean.total) == 3.0
    write_variable(latest, [5.0])
    assert [p.numpy() for p in mirrored.experimental_local_results(latest)] == [5.0, 5.0]
    assert read_variable(latest) == [5.0]
    with pytest.raises(ValueError, match=r"shape \(2,\), not \(3,\)"):
        write_variable(seed.state, [1, 2, 3])
