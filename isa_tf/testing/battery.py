"""What every battery is, and what batteries compare by."""

import inspect
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from isa_tf.compat import flatten_layers
from isa_tf.layers import ConvBiasAct
from isa_tf.names import differences


class Battery:
    """Checks that whoever is of a kind is put through: a layer, a backbone, a data set, ...

    Each method `check_*` is one check. It raises `AssertionError`, whose message begins with the
    subject's name and says what is not as it should be.

    Attributes:
        subject: str, what is checked, for messages.

    Example:

    >>> class Even(Battery):
    ...     def __init__(self, number):
    ...         self.subject, self.number = f"{number}", number
    ...     def check_halves(self):
    ...         self.expect(self.number % 2 == 0, "there is no half of it")
    >>> Even(4).run()
    >>> Even(5).run()
    Traceback (most recent call last):
    AssertionError: 5: there is no half of it
    """

    subject = ""

    @classmethod
    def list_checks(cls) -> list[str]:
        """The names that `run` takes, in the order in which it runs them.

        >>> Battery.list_checks()
        []
        """
        found = {}
        for base in reversed(cls.__mro__):
            found.update(dict.fromkeys(name for name in vars(base) if name.startswith("check_")))
        return [name.removeprefix("check_") for name in found if getattr(cls, name) is not None]

    def applies(self, name: str) -> bool:
        """Whether a check is for this subject; `run` leaves out what is not."""
        return True

    def run(self, *names: str) -> None:
        """Runs checks.

        Args:
            *names: str, of `list_checks()`. Defaults to all of them that apply.

        Raises:
            AssertionError: from the first check that finds something.
        """
        for name in names or self.list_checks():
            if self.applies(name):
                getattr(self, f"check_{name}")()

    def expect(self, holds: Any, message: str) -> None:
        """Raises AssertionError with the subject and a message unless something holds."""
        if not holds:
            raise AssertionError(f"{self.subject}: {message}")

    def expect_preset(self, model: Any) -> Any:
        """Saves a model to a preset; raises unless the same one comes back, which is returned."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kept"
            model.save_to_preset(path)
            loaded = type(model).from_preset(path)
        of_json = [json.loads(json.dumps(m.get_config())) for m in (model, loaded)]
        other = differences(*of_json)
        self.expect(not other, f"a preset's config has another {', '.join(other)}")
        for a, b in zip(loaded.weights, model.weights, strict=True):
            self.expect_equal(a, b, f"{b.path} of a preset")
        return loaded

    def expect_summary(self, model: Any, names: Sequence[str]) -> None:
        """Raises unless `summary(expand_nested=True)` names layers, all with a shape."""
        lines: list[str] = []
        model.summary(150, expand_nested=True, print_fn=lambda text, **_: lines.append(text))
        text = "\n".join(lines)
        rows = [line for line in text.splitlines() if line.startswith(("│", "|"))]
        told = [line for line in rows if re.match(r"\W*\w\S* \(\w+\)", line)]
        self.expect(told, f"its summary has no layers:\n{text}")
        shapeless = [line for line in told if "?" in line or "(" not in line.split("│")[2]]
        self.expect(not shapeless, f"its summary tells no shape of {' '.join(shapeless[:1])}")
        missing = [name for name in names if not re.search(rf"\W{re.escape(name)} ", text)]
        self.expect(not missing, f"its summary does not name {', '.join(missing)}")

    def expect_close(
        self, found: Any, expected: Any, tolerance: float, what: str, floor: float = 1e-30
    ) -> None:
        """Raises unless `relative_error` of two tensors is below a tolerance."""
        shapes = tuple(found.shape), tuple(expected.shape)
        self.expect(shapes[0] == shapes[1], f"{what}: {shapes[0]}, which should be {shapes[1]}")
        error = relative_error(found, expected, floor)
        self.expect(
            error < tolerance, f"{what}: differs by {error:.2g} of the largest, over {tolerance:g}"
        )

    def expect_equal(self, found: Any, expected: Any, what: str) -> None:
        """Raises unless two arrays are the same, bit for bit."""
        found, expected = np.asarray(found), np.asarray(expected)
        shapes = found.shape, expected.shape
        self.expect(shapes[0] == shapes[1], f"{what}: {shapes[0]}, which should be {shapes[1]}")
        same = found == expected
        self.expect(np.all(same), f"{what}: {np.mean(~same):.1%} of the values differ")


def relative_error(found: Any, expected: Any, floor: float = 1e-30) -> float:
    """Largest difference relative to the largest expected magnitude, or to `floor` if larger.

    >>> float(relative_error(np.array([1.0, 4.0]), np.array([1.5, 4.0])))
    0.125
    """
    found, expected = (np.asarray(tf.cast(t, tf.float64)) for t in (found, expected))
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return np.abs(found - expected).max() / max(np.abs(expected).max(), floor)


def randomize(layer: keras.layers.Layer, seed: int = 0, positive: bool = False) -> None:
    """Weights and moving statistics that hide nothing behind an identity or a dead ReLU.

    Args:
        layer: built `keras.layers.Layer` or `keras.Model`.
        seed: int. Defaults to 0.
        positive: bool, whether to make all weights positive, so that on positive maps every ReLU
            is open. Defaults to `False`.

    Example:

    >>> norm = keras.layers.BatchNormalization()
    >>> norm.build((None, None, None, 3))
    >>> randomize(norm)
    >>> bool(np.any(norm.gamma == 1))
    False
    """
    rng = np.random.default_rng(seed)
    for variable in layer.variables:
        if not variable.dtype.startswith("float"):
            continue
        name, shape = variable.name, variable.shape
        if name == "gamma":
            value = rng.uniform(0.5, 1.5, shape)
        elif name in ("beta", "bias"):
            value = rng.uniform(0.1, 0.5, shape)
        elif name == "moving_mean":
            value = np.zeros(shape) if positive else rng.normal(0, 0.2, shape)
        elif name == "moving_variance":
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.normal(0, 1, shape) * np.prod(shape[:-1]) ** -0.5
            value = np.abs(value) + 0.05 if positive else value
        variable.assign(value)
    for part in flatten_layers(layer):
        if getattr(part, "filtered", False) and isinstance(part, ConvBiasAct):
            part.take(*part.plain_weights())  # of a kernel that there is


def random_inputs(shapes: Any, dtype: str = "float32", seed: int = 0) -> Any:
    """One tensor for a shape, a list for a list of shapes.

    >>> random_inputs((1, 4, 4, 2)).shape
    TensorShape([1, 4, 4, 2])
    """
    rng = np.random.default_rng(seed)
    if isinstance(shapes, list):
        return [tf.constant(rng.normal(size=s), dtype) for s in shapes]
    return tf.constant(rng.normal(size=shapes), dtype)


def call_layer(layer: keras.layers.Layer, inputs: Any, training: bool = False) -> Any:
    """A layer's output, of a layer that knows of training or one that does not.

    >>> call_layer(keras.layers.Flatten(), tf.ones((1, 2, 2))).shape
    TensorShape([1, 4])
    """
    known = inspect.signature(layer.call).parameters.values()
    if any(p.name == "training" or p.kind is p.VAR_KEYWORD for p in known):
        return layer(inputs, training=training)
    return layer(inputs)


def outputs_and_gradients(layer: keras.layers.Layer, inputs: Any, training: bool) -> list[Any]:
    """A layer's output, and the gradients of its mean square by the layer's variables.

    >>> _, kernel, bias = outputs_and_gradients(keras.layers.Dense(2), tf.ones((1, 3)), False)
    >>> kernel.shape
    TensorShape([3, 2])
    """
    with tf.GradientTape() as tape:
        outputs = call_layer(layer, inputs, training)
        loss = tf.reduce_mean(tf.cast(outputs, tf.float32) ** 2)
    return [outputs, *tape.gradient(loss, layer.trainable_variables)]
