"""Tests that every layer, or every model, is put through."""

import json

import keras
import numpy as np
import tensorflow as tf

from isa_tf.layers import ConvBiasAct
from isa_tf.layers.twin import TwinOptions, inference_twin


def relative_error(found, expected, floor=1e-30):
    """Largest difference relative to the largest expected magnitude, or to `floor` if larger."""
    found, expected = (np.asarray(tf.cast(t, tf.float64)) for t in (found, expected))
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return np.abs(found - expected).max() / max(np.abs(expected).max(), floor)


def randomize(layer, seed=0, positive=False):
    """Weights and moving statistics that hide nothing behind an identity or a dead ReLU.

    `positive` makes all weights positive, so that on positive maps every ReLU is open.
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
    for part in layer._flatten_layers():
        if getattr(part, "filtered", False) and isinstance(part, ConvBiasAct):
            part.take(*part.plain_weights())  # of a kernel that there is


def random_inputs(shapes, dtype="float32", seed=0):
    """One tensor for a shape, a list for a list of shapes."""
    rng = np.random.default_rng(seed)
    if isinstance(shapes, list):
        return [tf.constant(rng.normal(size=s), dtype) for s in shapes]
    return tf.constant(rng.normal(size=shapes), dtype)


def _each(function, shapes):
    return [function(s) for s in shapes] if isinstance(shapes, list) else function(shapes)


def outputs_and_gradients(layer, inputs, training):
    with tf.GradientTape() as tape:
        outputs = layer(inputs, training=training)
        loss = tf.reduce_mean(tf.cast(outputs, tf.float32) ** 2)
    return [outputs, *tape.gradient(loss, layer.trainable_variables)]


class LayerBattery:
    """What holds for every layer; a layer's case is (class, arguments, input shapes)."""

    def __init__(self, cls, arguments, shapes):
        self.cls, self.arguments, self.shapes = cls, arguments, shapes
        self.inputs = random_inputs(shapes)

    def make(self, **more):
        # Layers of which a layer is made are made anew each time, with the same dtype.
        arguments = {k: v(**more) if k == "convs" else v for k, v in self.arguments.items()}
        return self.cls(**arguments, **more)

    def made(self, **more):
        layer = self.make(**more)
        layer.build(self.shapes)
        randomize(layer)
        return layer

    def call(self, layer, inputs=None, training=False):
        inputs = self.inputs if inputs is None else inputs
        try:
            return layer(inputs, training=training)
        except TypeError:  # a layer that knows no training
            return layer(inputs)

    def functional(self, layer, unknown):
        """A functional model of this layer alone."""

        def entry(shape):
            return keras.Input((None, None, shape[-1]) if unknown else shape[1:])

        inputs = _each(entry, self.shapes)
        return keras.Model(inputs, layer(inputs))

    def check_shapes(self):
        layer = self.make()
        promised = layer.compute_output_shape(self.shapes)
        specs = _each(lambda s: keras.KerasTensor(s), self.shapes)
        symbolic = self.make()(specs)
        outputs = self.call(layer)
        assert tuple(outputs.shape) == tuple(promised) == tuple(symbolic.shape)
        assert outputs.dtype == symbolic.dtype == "float32"
        unknown = _each(lambda s: (None, None, None, s[-1]), self.shapes)
        assert self.make().compute_output_shape(unknown)[-1] == promised[-1]

    def check_gradients(self):
        layer = self.made()
        if not layer.weights:
            with tf.GradientTape() as tape:
                tape.watch(self.inputs)
                loss = tf.reduce_sum(layer(self.inputs) ** 2)
            gradient = tape.gradient(loss, self.inputs)
            gradient = gradient[0] if isinstance(gradient, list) else gradient
            assert np.any(gradient.numpy())
            return
        for training in (False, True):
            _, *gradients = outputs_and_gradients(layer, self.inputs, training)
            for variable, gradient in zip(layer.trainable_variables, gradients, strict=True):
                assert gradient is not None, variable.path
                assert np.isfinite(gradient).all() and np.any(gradient), variable.path

    def check_config(self):
        layer = self.made()
        config = json.loads(json.dumps(layer.get_config()))
        twin = self.cls.from_config(config)
        assert json.loads(json.dumps(twin.get_config())) == config
        twin.build(self.shapes)
        assert [v.path for v in twin.variables] == [v.path for v in layer.variables]
        twin.set_weights(layer.get_weights())
        np.testing.assert_array_equal(self.call(layer), self.call(twin))

    def check_saving(self, path):
        model = self.functional(self.made(), unknown=True)
        model.save(path)
        loaded = keras.models.load_model(path)
        np.testing.assert_array_equal(model(self.inputs), loaded(self.inputs))

    def check_mixed_precision(self, policy):
        layer = self.made(dtype=policy)
        outputs = self.call(layer)
        assert outputs.dtype == layer.compute_dtype == policy.removeprefix("mixed_")
        assert all(v.dtype == "float32" for v in layer.trainable_variables)
        assert np.isfinite(tf.cast(outputs, tf.float32)).all()
        assert relative_error(outputs, self.call(self.made())) < 0.05
        assert layer.get_config()["dtype"]["config"]["name"] == policy
        symbolic = self.functional(self.make(dtype=policy), unknown=True).outputs[0]
        assert symbolic.dtype == outputs.dtype
        if layer.trainable_variables:
            gradients = outputs_and_gradients(layer, self.inputs, True)[1:]
            assert all(np.isfinite(gradient).all() for gradient in gradients)

    def check_dynamic_shape(self):
        layer = self.made()
        model = self.functional(layer, unknown=True)
        spec = _each(lambda s: tf.TensorSpec((None, None, None, s[-1])), self.shapes)
        traced = tf.function(lambda x: self.call(layer, x), input_signature=[spec])
        for inputs in (self.inputs, self.smaller()):
            expected = self.call(layer, inputs)
            assert relative_error(model(inputs), expected) < 1e-5
            assert relative_error(traced(inputs), expected) < 1e-5

    def smaller(self):
        """Inputs of another size."""
        return _each(lambda s: random_inputs((1, s[1] - 2, s[2] + 1, s[3]), seed=1), self.shapes)

    def check_graph(self):
        layer = self.made()
        if not layer.trainable_variables:
            graph = tf.function(lambda x: self.call(layer, x))
            assert relative_error(graph(self.inputs), self.call(layer)) < 1e-5
            return
        eager = outputs_and_gradients(layer, self.inputs, False)
        traced = tf.function(outputs_and_gradients)(layer, self.inputs, False)
        # A bias that a softmax does not see has rounding errors for gradients.
        floor = 1e-4 * max(np.abs(gradient).max() for gradient in eager[1:])
        for found, expected in zip(traced, eager, strict=True):
            assert relative_error(found, expected, floor) < 1e-4

    def check_training_flag(self):
        layer = self.made()
        before = [v.numpy() for v in layer.non_trainable_variables]

        def changed(now):
            return [np.any(a != b) for a, b in zip(now, before, strict=True)]

        self.call(layer)
        assert not any(changed(v.numpy() for v in layer.non_trainable_variables))
        if not before:
            return
        layer(self.inputs, training=True)
        assert all(changed(v.numpy() for v in layer.non_trainable_variables))
        layer.trainable = False
        before = layer.get_weights()
        frozen = layer(self.inputs, training=True)
        assert not any(changed(layer.get_weights()))
        # In training minimal filtering rounds otherwise.
        tolerance = 1e-4 if getattr(layer, "filtered", False) else 1e-6
        assert relative_error(frozen, layer(self.inputs, training=False)) < tolerance

    def check_twin(self, path):
        """A twin computes the same, has weights of its own, and is saved like any layer."""
        layer = self.made()
        expected = self.call(layer)
        for options in (
            TwinOptions(),
            TwinOptions(minimal_filtering=1, jit_compile=False),
            TwinOptions(minimal_filtering=None),
        ):
            twin = inference_twin(layer, options)
            assert twin.name == layer.name and twin.dtype_policy == layer.dtype_policy
            assert relative_error(self.call(twin), expected) < 1e-4
            again = inference_twin(twin, TwinOptions(minimal_filtering=None, jit_compile=False))
            assert relative_error(self.call(again), expected) < 1e-4
            if not any("BatchNorm" in type(part).__name__ for part in twin._flatten_layers()):
                assert relative_error(twin(self.inputs, training=True), expected) < 1e-4
        assert not {id(v) for v in twin.variables} & {id(v) for v in layer.variables}
        for variable in layer.variables:
            variable.assign(tf.zeros_like(variable))
        assert relative_error(self.call(twin), expected) < 1e-4
        model = self.functional(twin, unknown=True)
        model.save(path)
        loaded = keras.models.load_model(path)
        np.testing.assert_array_equal(model(self.inputs), loaded(self.inputs))
