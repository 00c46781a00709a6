"""CoupledSGD by PyTorch's formula."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from isa_tf.schedules import PolyDecay
from isa_tf.training import CoupledSGD

START = np.array([1.0, -2.0, 3.0])
TARGET = np.array([0.5, 0.5, -1.0])


def torch_sgd(steps, rate, momentum, decay):
    """d = g + decay w; buffer = momentum buffer + d; w -= lr buffer."""
    w, buffer = START.copy(), None
    for t in range(steps):
        d = 2 * (w - TARGET) + decay * w
        buffer = d if buffer is None else momentum * buffer + d
        w = w - (rate(t) if callable(rate) else rate) * buffer
    return w


def descend(optimizer, steps, variable=None):
    variable = keras.Variable(START.astype("float32")) if variable is None else variable
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((variable.value - TARGET) ** 2)
        optimizer.apply([tape.gradient(loss, variable.value)], [variable])
    return variable


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_coupled_sgd_is_pytorchs(momentum, decay):
    found = descend(CoupledSGD(0.02, momentum=momentum, l2=decay), 8)
    np.testing.assert_allclose(found, torch_sgd(8, 0.02, momentum, decay), rtol=1e-5)


def test_coupled_sgd_is_pytorchs_under_a_falling_rate():
    schedule = PolyDecay(0.05, 20)
    found = descend(CoupledSGD(schedule, momentum=0.9, l2=0.1), 18)
    expected = torch_sgd(18, lambda t: 0.05 * (1 - t / 20) ** 0.9, 0.9, 0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_coupled_sgd_with_nesterov():
    w, buffer = START.copy(), np.zeros(3)
    for _ in range(8):
        d = 2 * (w - TARGET) + 0.1 * w
        buffer = 0.9 * buffer + d
        w = w - 0.02 * (d + 0.9 * buffer)
    found = descend(CoupledSGD(0.02, momentum=0.9, nesterov=True, l2=0.1), 8)
    np.testing.assert_allclose(found, w, rtol=1e-5)


def test_coupled_sgd_in_a_graph():
    optimizer = CoupledSGD(0.02, momentum=0.9, l2=0.1)
    variable = keras.Variable(START.astype("float32"))
    optimizer.build([variable])
    step = tf.function(lambda: descend(optimizer, 1, variable).value)
    for _ in range(8):
        step()
    np.testing.assert_allclose(variable, torch_sgd(8, 0.02, 0.9, 0.1), rtol=1e-5)


def test_decay_differs_from_keras_own():
    coupled = descend(CoupledSGD(0.02, momentum=0.9, l2=0.1), 8)
    decoupled = descend(keras.optimizers.SGD(0.02, momentum=0.9, weight_decay=0.1), 8)
    assert np.abs(coupled.numpy() - decoupled.numpy()).max() > 1e-2


def test_excluded_variables_do_not_decay():
    optimizer = CoupledSGD(0.02, momentum=0.9, l2=0.1)
    variable = keras.Variable(START.astype("float32"), name="gamma")
    optimizer.exclude_from_weight_decay(var_names=["gamma"])
    descend(optimizer, 8, variable)
    np.testing.assert_allclose(variable, torch_sgd(8, 0.02, 0.9, 0.0), rtol=1e-5)


def test_coupled_sgd_goes_on_after_saving(tmp_path):
    def model():
        inputs = keras.Input((3,))
        made = keras.Model(inputs, keras.layers.Dense(1, use_bias=False, name="out")(inputs))
        rate = PolyDecay(0.02, 100)
        made.compile(CoupledSGD(rate, momentum=0.9, l2=0.1), loss="mse")
        return made

    x, y = np.eye(3, dtype="float32"), np.ones((3, 1), "float32")
    first = model()
    first.fit(x, y, epochs=3, verbose=0)
    first.save(tmp_path / "model.keras")
    second = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(second.optimizer, CoupledSGD) and second.optimizer.l2 == 0.1
    assert isinstance(second.optimizer._learning_rate, PolyDecay)
    for each in (first, second):
        each.fit(x, y, epochs=3, verbose=0)
    np.testing.assert_array_equal(first.get_weights()[0], second.get_weights()[0])


def test_coupled_sgd_config():
    optimizer = CoupledSGD(PolyDecay(0.01, 10), l2=5e-4, momentum=0.9, clipnorm=1.0)
    twin = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(twin, CoupledSGD) and twin.get_config() == optimizer.get_config()
