"""Writes functions and training steps as StableHLO programs, for `tools.stablehlo.load`.

A program is two files: NAME.stablehlo, a portable artifact, and NAME.json, which names its inputs
and outputs. A training step takes its whole state as inputs and gives it back: weights, the
optimizer's variables and the state of random generators, none of which is left inside.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

_DTYPES = {
    **{"f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "i1": "bool"},
    **{f"i{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"ui{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}


def write(
    path: str | Path,
    function: Callable[..., Sequence[tf.Tensor]],
    inputs: Mapping[str, tf.TensorSpec],
    outputs: Sequence[str],
) -> None:
    """Writes a function as a program.

    Args:
        path: of the two files, without an ending.
        function: of as many tensors as there are inputs, that gives a list of tensors. It may read
            and write variables: what they hold when it is called elsewhere is not told, so it has
            to set those that count from its inputs.
        inputs: dict from names to `tf.TensorSpec`, of shapes that are known.
        outputs: names, one for each tensor that the function gives.

    Raises:
        ValueError: where XLA cannot compile the function, or outputs are not as many as names.

    Example:

    >>> spec = tf.TensorSpec((2, 3), tf.float32)
    >>> write("twice", lambda x: [2.0 * x], {"x": spec}, ["doubled"])
    """
    path = Path(path)
    compiled = tf.function(function, jit_compile=True, autograph=False)
    specs = list(inputs.values())
    found = len(compiled.get_concrete_function(*specs).structured_outputs)
    if found != len(outputs):
        raise ValueError(f"{path}: there are {found} outputs, got {len(outputs)} names")

    def lowered(stage):
        return compiled.experimental_get_compiler_ir(*specs)(stage=stage, platform_name="CPU")

    text = lowered("stablehlo")
    takes, gives = _signature(text)
    about = {
        "inputs": [
            {"name": name, **kind} for name, kind in zip(inputs, takes[: len(inputs)], strict=True)
        ],
        # The variables that the function has set itself: what they held before is not read.
        "unread": takes[len(inputs) :],
        "outputs": [
            {"name": name, **kind}
            for name, kind in zip(outputs, gives[: len(outputs)], strict=True)
        ],
        "unused": gives[len(outputs) :],
        # What may be computed otherwise elsewhere, or not at all.
        "custom_calls": sorted({*re.findall(r"custom_call\s*@(\w+)", text)}),
        "precisions": sorted({*re.findall(r"\b(DEFAULT|HIGH|HIGHEST)\b", text)}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name may have a point in it, so that nothing is a suffix to be replaced.
    Path(f"{path}.stablehlo").write_bytes(lowered("stablehlo_serialized"))
    Path(f"{path}.json").write_text(json.dumps(about) + "\n")


def _signature(text):
    """(inputs, outputs) of the main function of a module's text, dicts of shape and dtype."""
    if "@main(" not in text:  # which is how MLIR prints what it finds fault with
        raise ValueError("XLA's program is no valid StableHLO; jaxlib's parser says where")
    begin = text.index("@main(")
    arrow = text.index("->", begin)
    return _kinds(text[begin:arrow]), _kinds(text[arrow : text.index("{\n", arrow)])


def _kinds(text):
    kinds = []
    for kind in re.findall(r"tensor<([^>]*)>", text):
        *shape, dtype = kind.split("x")
        kinds.append({"shape": [int(side) for side in shape], "dtype": _DTYPES[dtype]})
    return kinds


def with_state(
    variables: Sequence[keras.Variable], function: Callable[..., Sequence[tf.Tensor]]
) -> Callable[..., Sequence[tf.Tensor]]:
    """A function of what variables hold and of further tensors, for `write`.

    Args:
        variables: those that `function` reads.
        function: of the further tensors.

    Example:

    >>> layer = keras.layers.Dense(2)
    >>> layer.build((1, 3))
    >>> program = with_state(layer.variables, lambda x: [layer(x)])
    >>> program(tf.ones((3, 2)), tf.zeros((2,)), tf.ones((1, 3)))[0].numpy()
    array([[3., 3.]], dtype=float32)
    """

    def program(*arguments):
        for variable, value in zip(variables, arguments, strict=False):
            variable.assign(tf.cast(value, variable.dtype))
        return function(*arguments[len(variables) :])

    return program


class TrainingStep:
    """A compiled model's training step, as `write` takes it.

    Args:
        model: compiled `keras.Model`. Its metrics are left out.
        steps: `True` for a further input "steps", the length of the training that a poly schedule
            falls over, in place of the schedule's own. Defaults to `False`.

    Attributes:
        variables: list of all that is the state, in the order of the program's inputs.

    Example:

    >>> step = TrainingStep(model)
    >>> step.write("runs/step", tf.TensorSpec((2, 64, 64, 3)), tf.TensorSpec((2, 64, 64), tf.uint8))
    """

    def __init__(self, model: keras.Model, steps: bool = False) -> None:
        self.model, self.steps = model, steps
        optimizer = model.optimizer
        if not optimizer.built:
            optimizer.build(model.trainable_variables)
        found = {id(v): v for v in (*model.variables, *optimizer.variables)}
        self.variables = list(found.values())

    @property
    def names(self) -> list[str]:
        """A name of every variable of the state: its path, numbered where two are alike."""
        paths = [v.path for v in self.variables]
        return [
            path if paths.count(path) == 1 else f"{path}#{paths[: i + 1].count(path)}"
            for i, path in enumerate(paths)
        ]

    def values(self) -> dict[str, np.ndarray]:
        """The state as it is now."""
        return {
            name: keras.ops.convert_to_numpy(v)
            for name, v in zip(self.names, self.variables, strict=True)
        }

    def write(
        self,
        path: str | Path,
        images: tf.TensorSpec | Mapping[str, tf.TensorSpec],
        labels: tf.TensorSpec,
        prepare: Callable[..., Any] | None = None,
    ) -> None:
        """Writes the program: of state, images and labels it makes the next state and "loss".

        Args:
            path: see `write`.
            images: `tf.TensorSpec` of what the model reads, or a dict of them by name.
            labels: `tf.TensorSpec`.
            prepare: function of `images` that gives what the model is called with. Defaults to
                `None`, for the images themselves.
        """
        many = isinstance(images, Mapping)
        parts = dict(images) if many else {"images": images}
        states = {
            name: tf.TensorSpec(v.shape, v.dtype)
            for name, v in zip(self.names, self.variables, strict=True)
        }
        lengths = {"steps": tf.TensorSpec((), tf.float32)} if self.steps else {}
        model, optimizer = self.model, self.model.optimizer

        def step(*rest):
            rest = list(rest)
            schedule = optimizer._learning_rate
            own = getattr(schedule, "steps", None)
            if self.steps:
                schedule.steps = rest.pop(0)
            try:
                *read, y = rest
                x = dict(zip(parts, read, strict=True)) if many else read[0]
                x = x if prepare is None else prepare(x)
                with tf.GradientTape() as tape:
                    loss = model.compute_loss(x, y, model(x, training=True))
                gradients = tape.gradient(loss, model.trainable_variables)
                optimizer.apply(gradients, model.trainable_variables)
            finally:
                if self.steps:
                    schedule.steps = own
            return [*(tf.convert_to_tensor(v) for v in self.variables), loss]

        inputs = {**states, **lengths, **parts, "labels": labels}
        write(path, with_state(self.variables, step), inputs, [*states, "loss"])
