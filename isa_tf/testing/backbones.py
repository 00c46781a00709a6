"""The battery of a backbone."""

import inspect
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from isa_tf import backbones
from isa_tf.models import Segmenter
from isa_tf.testing.battery import Battery, randomize

SIZES = ((64, 64), (65, 43))


class BackboneBattery(Battery):
    """What holds for every backbone: an image in, a dict of maps of the strides it tells out.

    Strides and channels at any size, the config, saving, files of weights, half precision, raw
    pixels of any dtype, gradients, and a segmenter over it.

    Args:
        backbone: name of a registered backbone, see `isa_tf.backbones.register`; or a class or
            function that makes one.
        arguments: dict of its arguments. Defaults to `None`, for none.
        half_tolerance: float, by how much of their mean magnitude maps in bfloat16 may differ on
            average. Defaults to 0.03.

    Example:

    >>> from isa_tf.testing import BackboneBattery
    >>> BackboneBattery("tiny", {"output_stride": 8}).run("strides", "config")
    """

    def __init__(
        self,
        backbone: str | Callable[..., keras.Model],
        arguments: dict[str, Any] | None = None,
        half_tolerance: float = 0.03,
    ) -> None:
        self.backbone, self.arguments = backbone, arguments or {}
        self.half_tolerance = half_tolerance
        self.subject = backbone if isinstance(backbone, str) else backbone.__name__

    def make(self, **more: Any) -> keras.Model:
        """A backbone of these arguments and others."""
        if isinstance(self.backbone, str):
            return backbones.create(self.backbone, **{**self.arguments, **more})
        return self.backbone(**{**self.arguments, **more})

    def made(self, **more: Any) -> keras.Model:
        """A backbone whose weights hide nothing."""
        model = self.make(**more)
        randomize(model)
        return model

    def check_strides(self) -> None:
        """Every map has the size that its stride says, at any size of the image."""
        model = self.make()
        is_one = isinstance(model, backbones.Backbone)
        self.expect(is_one, f"is a {type(model).__name__}, which is no isa_tf.backbones.Backbone")
        shape = model.input_shape
        any_size = tuple(shape) == (None, None, None, 3)
        self.expect(any_size, f"takes images {shape}, not of any size, (None, None, None, 3)")
        for size in SIZES:
            maps = model(image(*size))
            self.expect(
                list(maps) == list(model.feature_strides),
                f"gives the maps {list(maps)}, and strides of {list(model.feature_strides)}",
            )
            for level, features in maps.items():
                stride = model.feature_strides[level]
                channels = model.output[level].shape[-1]
                expected = (1, *(-(-n // stride) for n in size), channels)
                self.expect(
                    tuple(features.shape) == expected,
                    f"of images of {size[0]}x{size[1]}, {level!r} is {tuple(features.shape)}; by "
                    f"its stride of {stride} it should be {expected}",
                )
        level = model.head_level
        known = level in model.feature_strides
        self.expect(known, f"its head_level {level!r} is no map of {list(model.feature_strides)}")
        wanted = self.arguments.get("output_stride")
        if wanted is not None:
            stride = model.feature_strides[level]
            self.expect(
                stride == wanted, f"asked for output stride {wanted}, {level!r} has {stride}"
            )

    def check_config(self) -> None:
        """`get_config` makes the same network again."""
        model = self.make(**self._options(dtype="mixed_bfloat16", synchronized=True))
        config = keras.saving.serialize_keras_object(model)
        again = keras.saving.deserialize_keras_object(config)
        kinds = type(again).__name__, type(model).__name__
        self.expect(type(again) is type(model), f"comes back as {kinds[0]}, not as {kinds[1]}")
        lost = [
            name
            for name, value in again.get_config().items()
            if model.get_config().get(name) != value
        ]
        self.expect(not lost, f"made of its config has another {', '.join(lost)}")
        for what in ("feature_strides", "head_level"):
            found, expected = getattr(again, what), getattr(model, what)
            self.expect(found == expected, f"made of its config has {what} {found}, not {expected}")
        self.expect(
            again.dtype_policy.name == model.dtype_policy.name,
            f"made of its config computes by {again.dtype_policy.name}, not by "
            f"{model.dtype_policy.name}",
        )
        paths = [[w.path for w in each.weights] for each in (again, model)]
        self.expect(paths[0] == paths[1], f"made of its config has weights {paths[0]}")
        shapes = [[tuple(w.shape) for w in each.weights] for each in (again, model)]
        self.expect(shapes[0] == shapes[1], f"made of its config has shapes {shapes[0]}")

    def check_saving(self) -> None:
        """The network is saved and loaded as a `.keras` file."""
        model, pixels = self.made(), image(33, 40)
        with tempfile.TemporaryDirectory() as folder:
            model.save(Path(folder) / "model.keras")
            loaded = keras.saving.load_model(Path(folder) / "model.keras")
        self.expect(type(loaded) is type(model), f"a file comes back as {type(loaded).__name__}")
        expected = model(pixels)
        for level, features in loaded(pixels).items():
            self.expect_close(features, expected[level], 1e-5, f"of a file, {level!r}")

    def check_weights_file(self) -> None:
        """`weights` takes a file of such a network's weights, and leaves no trace of its path."""
        model = self.made()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.weights.h5"
            model.save_weights(path)
            again = self.make(weights=path)
        for a, b in zip(again.weights, model.weights, strict=True):
            self.expect(a.path == b.path, f"has a weight {a.path} where {b.path} was saved")
            self.expect_equal(a, b, f"{b.path} of a file")
        kept = again.get_config().get("weights")
        self.expect(kept is None, f"its config keeps the path of the file, {kept}")

    def check_presets(self) -> None:
        """A preset gives the same network, to the bit."""
        self.expect_preset(self.made())

    def check_summary(self) -> None:
        """`summary` names its layers, and tells a shape of each."""
        model = self.make()
        self.expect_summary(model, [layer.name for layer in model.layers])

    def check_dtype_map(self) -> None:
        """A `DTypePolicyMap` tells each layer, by its path, what to compute in."""
        first = self.make().layers[2:]
        first = next((layer for layer in first if layer.weights), None)
        if first is None:
            return
        policies = keras.dtype_policies.DTypePolicyMap("mixed_bfloat16")
        policies[first.path] = policies[f"{first.path}/.*"] = "float32"
        model = self.make(dtype=policies)
        config = keras.saving.serialize_keras_object(model)
        for each in (model, keras.saving.deserialize_keras_object(config)):
            for layer in each.layers:
                if layer.weights:
                    found, expected = layer.compute_dtype, policies[layer.path].compute_dtype
                    told = f"{layer.path} computes in {found}; by the map it is {expected}"
                    self.expect(found == expected, told)
            for level, features in each(image(33, 40)).items():
                self.expect(np.isfinite(np.asarray(features, "float32")).all(), f"{level!r}")

    def check_mixed_precision(self) -> None:
        """Computes in bfloat16 by the policy, over float32 weights, and nearly the same."""
        model = self.make(dtype="mixed_bfloat16")
        for weight in model.weights:
            self.expect(weight.dtype == "float32", f"{weight.path} is {weight.dtype}")
        full = self.make()
        full.set_weights(model.get_weights())
        expected = full(image(64, 64))
        for level, features in model(image(64, 64)).items():
            told = f"{level!r} by mixed_bfloat16"
            self.expect(features.dtype == tf.bfloat16, f"{told} is {features.dtype.name}")
            self.expect(expected[level].dtype == tf.float32, f"{level!r} is no float32")
            difference = np.abs(np.asarray(features, "float32") - expected[level]).mean()
            most = self.half_tolerance * np.abs(expected[level]).mean()
            self.expect(difference <= most, f"{told} differs by {difference:.2g} on average")

    def check_gradients(self) -> None:
        """Every weight learns of its last map."""
        model = self.make()
        last = list(model.feature_strides)[-1]
        with tf.GradientTape() as tape:
            maps = model(image(64, 64, batch=2), training=True)
            loss = tf.reduce_mean(tf.square(maps[last]))
        gradients = tape.gradient(loss, model.trainable_weights)
        for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
            self.expect(gradient is not None, f"no gradient of {weight.path} by {last!r}")
            finite = np.isfinite(gradient).all()
            self.expect(finite, f"a gradient of {weight.path} that is not finite")

    def check_pixels(self) -> None:
        """Pixels are RGB 0..255 of any dtype."""
        model, pixels = self.make(), image(16, 16).astype("uint8")
        expected = model(pixels.astype("float32"))
        for level, features in model(pixels).items():
            self.expect_equal(features, expected[level], f"{level!r} of uint8 pixels")

    def check_segmenter(self) -> None:
        """A `Segmenter` stands on it, by its name where it has one."""
        if isinstance(self.backbone, str):
            arguments = dict(self.arguments)
            if set(arguments) <= {"output_stride"}:
                self._segment(Segmenter(self.backbone, "isa", 3, head_filters=8, **arguments))
        self._segment(Segmenter(self.make(), "isa", 3, head_filters=8))

    def _segment(self, model):
        logits = model(image(41, 58))
        shape = tuple(logits.shape)
        self.expect(shape == (1, 41, 58, 3), f"a segmenter over it makes {shape} of 41x58 pixels")
        self.expect(np.isfinite(logits).all(), "a segmenter over it makes what is not finite")

    def _options(self, **options):
        """Those of some options that a class or function takes; a registered name takes all."""
        if isinstance(self.backbone, str):
            return options
        known = inspect.signature(self.backbone).parameters
        if any(p.kind is p.VAR_KEYWORD for p in known.values()):
            return options
        return {name: value for name, value in options.items() if name in known}


def image(height: int, width: int, batch: int = 1) -> np.ndarray:
    """Random pixels, float32 (B, height, width, 3)."""
    rng = np.random.default_rng(0)
    return rng.uniform(0, 255, (batch, height, width, 3)).astype("float32")
