"""Schedules by their closed form."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from isa_tf.schedules import PolyDecay, StepDecay


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
    for wrong in (-0.01, math.inf, math.nan):
        with pytest.raises(
            ValueError, match=f"base_lr must be finite and not negative, got {wrong}"
        ):
            PolyDecay(wrong, 100)
        for name in ("end_lr", "power"):
            with pytest.raises(ValueError, match=f"{name} must be finite and not negative"):
                PolyDecay(0.01, 100, **{name: wrong})


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"factor": 0.5},
        {"warmup_steps": 10, "warmup_factor": 0.25},
        {"warmup_steps": 30},  # still warming up where the rate falls
        {"boundaries": (), "warmup_steps": 3},
        {"boundaries": (1,)},
    ],
    ids=str,
)
def test_steps_closed_form(arguments):
    given = {"boundaries": (20, 90), "factor": 0.1, "warmup_steps": 0, "warmup_factor": 0.001}
    given |= arguments
    schedule = StepDecay(0.02, **given)
    for t in (0, 1, 5, 9, 10, 19, 20, 21, 89, 90, 10_000):
        expected = 0.02
        for boundary in given["boundaries"]:
            expected *= given["factor"] if t >= boundary else 1
        if t < given["warmup_steps"]:
            share = t / given["warmup_steps"]
            expected *= given["warmup_factor"] * (1 - share) + share
        np.testing.assert_allclose(schedule(t), expected, rtol=1e-5, atol=1e-9)
        traced = tf.function(schedule)(tf.constant(t, tf.int64))
        np.testing.assert_allclose(traced, expected, rtol=1e-5, atol=1e-9)


def test_steps_fall_at_the_very_step_however_many_there_are():
    boundary = 2**25 + 1  # which float32 does not tell from its neighbours
    schedule = StepDecay(1.0, (boundary,))
    found = [float(schedule(tf.constant(boundary + i, tf.int64))) for i in (-1, 0, 1)]
    np.testing.assert_allclose(found, [1.0, 0.1, 0.1], rtol=1e-6)


def test_steps_round_trip_and_refusals():
    schedule = StepDecay(0.02, (60, 80), 0.2, 5, 0.01)
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert twin.get_config() == schedule.get_config() and float(twin(7)) == float(schedule(7))
    for wrong, named in (
        ({"base_lr": -0.02}, "base_lr must be finite and not negative, got -0.02"),
        ({"base_lr": math.nan}, "base_lr"),
        ({"boundaries": (5, 5)}, "boundaries must be above 0 and rise"),
        ({"boundaries": (0,)}, "boundaries"),
        ({"factor": 0}, "factor"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"warmup_factor": 1.5}, "warmup_factor"),
    ):
        with pytest.raises(ValueError, match=named):
            StepDecay(**{"base_lr": 0.02, "boundaries": (5,), **wrong})
