"""Schedules by their closed form."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from isa_tf.schedules import PolyDecay


def poly(t, base, steps, power=0.9, end=0.0, warmup=0):
    lr = (base - end) * (1 - min(t, steps) / steps) ** power + end
    return lr * min((t + 1) / warmup, 1) if warmup else lr


@pytest.mark.parametrize(
    "arguments",
    [{}, {"power": 2.0}, {"end_lr": 1e-4}, {"warmup_steps": 10, "end_lr": 1e-3}],
    ids=str,
)
def test_poly_closed_form(arguments):
    schedule = PolyDecay(0.01, steps=100, **arguments)
    renamed = {k.removesuffix("_lr").removesuffix("_steps"): v for k, v in arguments.items()}
    for t in (0, 1, 5, 9, 10, 50, 99, 100, 1000):
        expected = poly(t, 0.01, 100, **renamed)
        np.testing.assert_allclose(schedule(t), expected, rtol=1e-5, atol=1e-9)
        traced = tf.function(schedule)(tf.constant(t, tf.int64))
        np.testing.assert_allclose(traced, expected, rtol=1e-5, atol=1e-9)


def test_poly_round_trip_and_refusals():
    schedule = PolyDecay(0.01, 100, 0.8, 1e-4, 5)
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert twin.get_config() == schedule.get_config() and float(twin(7)) == float(schedule(7))
    with pytest.raises(ValueError, match="steps"):
        PolyDecay(0.01, 0)
    with pytest.raises(ValueError, match="warmup_steps"):
        PolyDecay(0.01, 100, warmup_steps=-1)
