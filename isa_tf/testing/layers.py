"""The batteries of a layer, and of a layer that is a context module."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from isa_tf.compat import flatten_layers
from isa_tf.layers import create_context
from isa_tf.layers.twin import TwinOptions, inference_twin
from isa_tf.models import Segmenter
from isa_tf.names import differences
from isa_tf.testing.battery import (
    Battery,
    call_layer,
    outputs_and_gradients,
    random_inputs,
    randomize,
)

MAP = (2, 10, 7, 6)


class LayerBattery(Battery):
    """What holds for every layer between feature maps.

    Shapes told and made, gradients, `get_config`, saving, half precision, sizes that are unknown
    when a graph is made, graph against eager, what training changes, and the twin for inference
    (`isa_tf.layers.twin`) of a layer that has one. `keras` is Keras's own battery of layers.

    Args:
        cls: class of the layer.
        arguments: dict of its arguments, among them none that draw at random (`dropout=0`); or a
            function of `dtype` that gives them, for arguments that are layers. Defaults to `None`,
            for none.
        shapes: shape of the input (B, H, W, C), or a list of them for a layer of several.
            Defaults to (2, 10, 7, 6).
        half_tolerance: float, by how much of the largest value outputs in half precision may
            differ. Defaults to 0.05.

    Example:

    >>> from isa_tf.testing import LayerBattery
    >>> LayerBattery(layers.ConvNormAct, {"filters": 5, "kernel_size": 3}).run("shapes", "config")

    In a project's tests, one line for all of it, or a test for each check:

    >>> def test_my_layer():
    ...     LayerBattery(layers.ConvNormAct, {"filters": 5}).run()
    """

    def __init__(
        self,
        cls: type[keras.layers.Layer],
        arguments: dict[str, Any] | Callable[..., dict[str, Any]] | None = None,
        shapes: Any = MAP,
        half_tolerance: float = 0.05,
    ) -> None:
        self.cls, self.arguments, self.shapes = cls, arguments or {}, shapes
        self.half_tolerance = half_tolerance
        self.subject = cls.__name__
        self.inputs = random_inputs(shapes)

    def applies(self, name: str) -> bool:
        if name == "twin":
            return hasattr(self.cls, "inference_twin")
        # Keras's battery makes several layers of one dict of arguments.
        return name != "keras" or not callable(self.arguments)

    def make(self, **more: Any) -> keras.layers.Layer:
        """A layer of these arguments and others."""
        arguments = self.arguments
        arguments = arguments(**more) if callable(arguments) else arguments
        return self.cls(**{**arguments, **more})

    def made(self, **more: Any) -> keras.layers.Layer:
        """A built layer, whose weights hide nothing."""
        layer = self.make(**more)
        layer.build(self.shapes)
        randomize(layer)
        return layer

    def call(
        self, layer: keras.layers.Layer, inputs: Any = None, training: bool = False
    ) -> tf.Tensor:
        """A layer's output for these inputs or others."""
        inputs = self.inputs if inputs is None else inputs
        return call_layer(layer, inputs, training)

    def functional(self, layer: keras.layers.Layer, unknown: bool) -> keras.Model:
        """A functional model of a layer alone, of maps of these sizes or of unknown ones."""

        def entry(shape):
            return keras.Input((None, None, shape[-1]) if unknown else shape[1:])

        inputs = _each(entry, self.shapes)
        return keras.Model(inputs, layer(inputs))

    def smaller(self) -> Any:
        """Inputs of another size."""
        return _each(lambda s: random_inputs((1, s[1] - 2, s[2] + 1, s[3]), seed=1), self.shapes)

    def check_shapes(self) -> None:
        """The shape that is promised is the one of a symbolic call and of a call."""
        layer = self.make()
        promised = tuple(layer.compute_output_shape(self.shapes))
        symbolic = self.make()(_each(lambda s: keras.KerasTensor(s), self.shapes))
        outputs = self.call(layer)
        for told, what in ((promised, "compute_output_shape"), (symbolic.shape, "a symbolic call")):
            self.expect(
                tuple(told) == tuple(outputs.shape),
                f"{what} promises {tuple(told)}, a call gives {tuple(outputs.shape)}",
            )
        for dtype in (outputs.dtype, symbolic.dtype):
            self.expect(dtype == "float32", f"gives {dtype} for float32")
        unknown = _each(lambda s: (None, None, None, s[-1]), self.shapes)
        channels = self.make().compute_output_shape(unknown)[-1]
        self.expect(
            channels == promised[-1],
            f"compute_output_shape promises {channels} channels of a map of unknown size, "
            f"{promised[-1]} of one that is known",
        )

    def check_gradients(self) -> None:
        """Every weight learns, in training and outside."""
        layer = self.made()
        if not layer.weights:
            with tf.GradientTape() as tape:
                tape.watch(self.inputs)
                loss = tf.reduce_sum(layer(self.inputs) ** 2)
            gradient = tape.gradient(loss, self.inputs)
            gradient = gradient[0] if isinstance(gradient, list) else gradient
            self.expect(gradient is not None and np.any(gradient), "no gradient of its input")
            return
        for training in (False, True):
            _, *gradients = outputs_and_gradients(layer, self.inputs, training)
            for variable, gradient in zip(layer.trainable_variables, gradients, strict=True):
                where = f"of {variable.path}, training={training}"
                self.expect(gradient is not None, f"no gradient {where}")
                self.expect(np.isfinite(gradient).all(), f"a gradient that is not finite {where}")
                self.expect(np.any(gradient), f"a gradient of nothing but zeros {where}")

    def check_config(self) -> None:
        """`get_config` makes the same layer again, by way of JSON."""
        layer = self.made()
        config = json.loads(json.dumps(layer.get_config()))
        given = () if callable(self.arguments) else self.arguments
        missing = sorted(set(given) - set(config))
        self.expect(not missing, f"get_config lacks {', '.join(missing)}")
        again = self.cls.from_config(config)
        other = differences(config, json.loads(json.dumps(again.get_config())))
        self.expect(not other, f"made of its config has another {', '.join(other)}")
        again.build(self.shapes)
        paths = [[v.path for v in each.variables] for each in (again, layer)]
        self.expect(paths[0] == paths[1], f"made of its config has variables {paths[0]}")
        again.set_weights(layer.get_weights())
        self.expect_equal(self.call(again), self.call(layer), "made of its config and weights")

    def check_saving(self) -> None:
        """A model of the layer is saved and loaded as a `.keras` file."""
        self._save(self.functional(self.made(), unknown=True), "saved and loaded")

    def _save(self, model, what):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.keras"
            model.save(path)
            loaded = keras.models.load_model(path)
        self.expect_equal(loaded(self.inputs), model(self.inputs), what)

    def check_mixed_bfloat16(self) -> None:
        """Computes in bfloat16 by the policy, over float32 weights."""
        self._check_policy("mixed_bfloat16")

    def check_mixed_float16(self) -> None:
        """Computes in float16 by the policy, over float32 weights."""
        self._check_policy("mixed_float16")

    def _check_policy(self, policy):
        layer = self.made(dtype=policy)
        outputs, half = self.call(layer), policy.removeprefix("mixed_")
        self.expect(layer.compute_dtype == half, f"takes no dtype={policy!r}")
        self.expect(outputs.dtype == half, f"gives {outputs.dtype.name} by {policy}")
        for variable in layer.trainable_variables:
            self.expect(variable.dtype == "float32", f"{variable.path} is {variable.dtype}")
        self.expect(np.isfinite(tf.cast(outputs, tf.float32)).all(), f"not finite by {policy}")
        expected = self.call(self.made())
        self.expect_close(outputs, expected, self.half_tolerance, f"by {policy}")
        told = layer.get_config()["dtype"]["config"]["name"]
        self.expect(told == policy, f"its config's dtype is {told}, not {policy}")
        symbolic = self.functional(self.make(dtype=policy), unknown=True).outputs[0]
        self.expect(symbolic.dtype == half, f"a symbolic call promises {symbolic.dtype}")
        if layer.trainable_variables:
            for gradient in outputs_and_gradients(layer, self.inputs, True)[1:]:
                self.expect(np.isfinite(gradient).all(), f"a gradient not finite by {policy}")

    def check_dynamic_shape(self) -> None:
        """One graph of maps of unknown size is for all sizes."""
        layer = self.made()
        model = self.functional(layer, unknown=True)
        spec = _each(lambda s: tf.TensorSpec((None, None, None, s[-1])), self.shapes)
        traced = tf.function(lambda x: self.call(layer, x), input_signature=[spec])
        for inputs in (self.inputs, self.smaller()):
            expected = self.call(layer, inputs)
            self.expect_close(model(inputs), expected, 1e-5, "a model of unknown sizes")
            self.expect_close(traced(inputs), expected, 1e-5, "a graph of unknown sizes")

    def check_graph(self) -> None:
        """A graph computes what eager execution does, output and gradients."""
        layer = self.made()
        if not layer.trainable_variables:
            graph = tf.function(lambda x: self.call(layer, x))
            self.expect_close(graph(self.inputs), self.call(layer), 1e-5, "in a graph")
            return
        eager = outputs_and_gradients(layer, self.inputs, False)
        traced = tf.function(outputs_and_gradients)(layer, self.inputs, False)
        # A bias that a softmax does not see has rounding errors for gradients.
        floor = 1e-4 * max(np.abs(gradient).max() for gradient in eager[1:])
        names = ["output", *(f"gradient of {v.path}" for v in layer.trainable_variables)]
        for name, found, expected in zip(names, traced, eager, strict=True):
            self.expect_close(found, expected, 1e-4, f"{name} in a graph", floor)

    def check_training_flag(self) -> None:
        """Statistics change in training alone; frozen, nothing does, and it is as in inference."""
        layer = self.made()
        states = layer.non_trainable_variables

        def changed(before):
            return [np.any(v.numpy() != old) for v, old in zip(states, before, strict=True)]

        def names(which):
            return ", ".join(v.path for v, one in zip(states, which, strict=True) if one)

        before = [v.numpy() for v in states]
        self.call(layer)
        which = changed(before)
        self.expect(not any(which), f"training=False changes {names(which)}")
        if not before:
            return
        self.call(layer, training=True)
        which = [not one for one in changed(before)]
        self.expect(not any(which), f"training=True does not change {names(which)}")
        layer.trainable = False
        states = layer.weights
        before = layer.get_weights()
        frozen = self.call(layer, training=True)
        which = changed(before)
        self.expect(not any(which), f"frozen, training=True changes {names(which)}")
        # In training minimal filtering rounds otherwise.
        tolerance = 1e-4 if getattr(layer, "filtered", False) else 1e-6
        expected = self.call(layer, training=False)
        self.expect_close(frozen, expected, tolerance, "frozen, training=True")

    def check_twin(self) -> None:
        """A twin computes the same, has weights of its own, and is saved like any layer."""
        layer = self.made()
        expected = self.call(layer)
        for options in (
            TwinOptions(),
            TwinOptions(minimal_filtering=1, jit_compile=False),
            TwinOptions(minimal_filtering=None),
        ):
            twin = inference_twin(layer, options)
            self.expect(twin.name == layer.name, f"its twin is called {twin.name}")
            same = twin.dtype_policy == layer.dtype_policy
            self.expect(same, f"its twin's dtype is {twin.dtype_policy.name}")
            self.expect_close(self.call(twin), expected, 1e-4, f"its twin by {options}")
            again = inference_twin(twin, TwinOptions(minimal_filtering=None, jit_compile=False))
            self.expect_close(self.call(again), expected, 1e-4, f"its twin's twin by {options}")
            if not any("BatchNorm" in type(part).__name__ for part in flatten_layers(twin)):
                found = self.call(twin, training=True)
                self.expect_close(found, expected, 1e-4, "its twin, training=True")
        shared = {id(v) for v in twin.variables} & {id(v) for v in layer.variables}
        self.expect(not shared, f"shares {len(shared)} variables with its twin")
        for variable in layer.variables:
            variable.assign(tf.zeros_like(variable))
        self.expect_close(self.call(twin), expected, 1e-4, "its twin, once it is changed itself,")
        self._save(self.functional(twin, unknown=True), "its twin, saved and loaded,")

    def check_keras(self) -> None:
        """`run_layer_test` of Keras: serialisation, build, symbolic call, training, precision."""
        # Keras's own tests: no part of what it promises, so it is imported here alone.
        from keras.src.testing import TestCase

        if callable(self.arguments):
            TestCase().run_class_serialization_test(self.make())
            return
        made = self.make()
        TestCase().run_layer_test(
            self.cls,
            self.arguments,
            input_shape=self.shapes,
            run_training_check=bool(made.weights or self.made().trainable_weights),
            supports_masking=made.supports_masking,
        )


class ContextBattery(LayerBattery):
    """A `LayerBattery` of a context module, and what else holds for every one.

    It keeps a map's height and width, knows the arguments that all of them share, begins as the
    identity where it is residual, and goes through a segmenter: by its name, where it has one.

    Args:
        module: name of a registered module, see `isa_tf.layers.register_context`, or its class.
        arguments: as of `LayerBattery`, but a dict. Defaults to `None`.
        **kwargs: of `LayerBattery`.

    Example:

    >>> from isa_tf.testing import ContextBattery
    >>> ContextBattery("isa", {"partition": 4}).run("size", "residual", "segmenter")
    """

    def __init__(
        self,
        module: str | type[keras.layers.Layer],
        arguments: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.module, self.options = module, arguments or {}
        if isinstance(module, str):
            cls = type(create_context(module, **(arguments or {})))
        else:
            cls = module
        super().__init__(cls, arguments, **kwargs)
        if isinstance(module, str):
            self.subject = f"{cls.__name__} ({module!r})"

    def applies(self, name: str) -> bool:
        if name == "residual":
            return self.make().residual or self.cls.both_forms
        return super().applies(name)

    def make(self, **more: Any) -> keras.layers.Layer:
        if isinstance(self.module, str):
            return create_context(self.module, **{**self.options, **more})
        return super().make(**more)

    def check_size(self) -> None:
        """A map of the same height and width, however small, of `filters` channels."""
        for size in ((10, 7), (1, 1), (3, 17)):
            shape = (1, *size, self.shapes[-1])
            found = tuple(self.call(self.make(), random_inputs(shape)).shape)
            filters = self.options.get("filters") or shape[-1]
            self.expect(
                found == (1, *size, filters),
                f"makes {found} of {shape}, which should be {(1, *size, filters)}",
            )

    def check_arguments(self) -> None:
        """Takes what all modules share (`ContextModule`), and keeps it in its config."""
        activation = keras.activations.get("leaky_relu")
        shared = {
            "dropout": 0.25,
            "activation": activation,
            "epsilon": 1e-3,
            "momentum": 0.75,
            "synchronized": True,
            "name": "context",
        }
        config = self.make(**shared).get_config()
        expected = shared | {"activation": keras.activations.serialize(activation)}
        other = [name for name, value in expected.items() if config.get(name) != value]
        self.expect(not other, f"does not keep {', '.join(other)}, which all modules have")

    def check_residual(self) -> None:
        """With `residual=True` a fresh module is the identity, and learns to be another."""
        module = self.make(
            residual=True, **({"filters": None} if "filters" in self.options else {})
        )
        for training in (False, True):
            found = self.call(module, training=training)
            self.expect_equal(found, self.inputs, f"fresh, residual, training={training}")
        target = tf.reverse(self.inputs, [0, 1])
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self.call(module, training=True) - target) ** 2)
        gradients = tape.gradient(loss, module.trainable_variables)
        learns = any(g is not None and np.any(g) for g in gradients)
        self.expect(learns, "residual, it stays the identity: no weight has a gradient")

    def check_dtype_map(self) -> None:
        """By a `DTypePolicyMap` it computes in float32 amid bfloat16, as it does alone."""
        policies = keras.dtype_policies.DTypePolicyMap("mixed_bfloat16")
        policies["context"] = policies["context/.*"] = "float32"
        plain = self.made(dtype="float32", name="context")
        config = json.loads(json.dumps(self.make(dtype=policies, name="context").get_config()))
        layer = self.cls.from_config(config)
        layer.build(self.shapes)
        layer.set_weights(plain.get_weights())
        for part in flatten_layers(layer):
            self.expect(part.compute_dtype == "float32", f"{part.path}: {part.compute_dtype}")
        found, expected = self.call(layer), self.call(plain)
        self.expect(found.dtype == tf.float32, f"gives {found.dtype.name} by a DTypePolicyMap")
        self.expect_close(found, expected, 1e-6, "by a DTypePolicyMap")

    def check_segmenter(self) -> None:
        """A `Segmenter` is made with it, of a config, and saved with it."""
        if isinstance(self.module, str):
            context, options = self.module, self.options
        else:
            context, options = self.make(name="context"), None
        model = Segmenter("tiny", context, 3, context_options=options, head_filters=self.shapes[-1])
        randomize(model)
        images = tf.constant(np.random.default_rng(0).uniform(0, 255, (1, 41, 58, 3)), "float32")
        logits = model(images)
        self.expect(np.isfinite(logits).all(), "logits of a segmenter that are not finite")
        with tempfile.TemporaryDirectory() as folder:
            model.save(Path(folder) / "model.keras")
            loaded = keras.models.load_model(Path(folder) / "model.keras")
        kind = type(loaded.context).__name__
        self.expect(kind == self.cls.__name__, f"a saved segmenter came back with a {kind}")
        self.expect_equal(loaded(images), logits, "a saved segmenter's logits")


def _each(function, shapes):
    return [function(s) for s in shapes] if isinstance(shapes, list) else function(shapes)
