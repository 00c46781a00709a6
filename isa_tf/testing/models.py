"""The battery of a segmentation model, and small models for tests."""

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from isa_tf.compat import flatten_layers
from isa_tf.hints import DType, Levels, Partition
from isa_tf.inference import contract_of
from isa_tf.layers import InterlacedSparseAttention
from isa_tf.layers.position import PositionBias
from isa_tf.losses import PixelCrossEntropy
from isa_tf.models import Segmenter
from isa_tf.names import differences
from isa_tf.presets import PresetModel
from isa_tf.testing.battery import Battery, randomize

NAMES = ("void", "sky", "tree", "road", "wall", "sign", "Bäume")
PALETTE = tuple((i, 2 * i, 255 - i) for i in range(7))
SIZES = ((1, 65, 97), (3, 3, 5), (1, 1, 1))


class ModelBattery(Battery):
    """What holds for every segmentation model: logits of the image's size, config, files, `fit`.

    Args:
        make: function without arguments that gives a `keras.Model` from images (B, H, W, 3), RGB
            0..255, of any size, to logits (B, H, W, classes); the same one each time, but for its
            weights. Of a class without arguments, the class.

    Example:

    >>> from isa_tf.testing import ModelBattery
    >>> make = lambda: isa_tf.models.Segmenter("tiny", num_classes=3, head_filters=8)
    >>> ModelBattery(make).run("sizes", "config")
    """

    def __init__(self, make: Callable[[], keras.Model]) -> None:
        self.make = make
        self.subject = "model"

    def made(self) -> keras.Model:
        """A model whose weights hide nothing."""
        model = self.make()
        self.subject = model.name
        randomize(model)
        return model

    def check_sizes(self) -> None:
        """Finite float32 logits of the image's own size, that say something, at any size."""
        model = self.made()
        num_classes = contract_of(model).check(model).num_classes
        for size in SIZES:
            logits = model(pixels(*size))
            shape, expected = tuple(logits.shape), (*size, num_classes)
            self.expect(shape == expected, f"makes {shape} of {size}, not {expected}")
            self.expect(logits.dtype == tf.float32, f"its logits are {logits.dtype.name}")
            self.expect(np.isfinite(logits).all(), f"logits of {size} are not finite")
        logits = model(pixels(*SIZES[0]))
        self.expect(np.std(logits) > 0, "its logits are all the same")
        told = model.predict(pixels(*SIZES[0]), verbose=0)
        self.expect(told.shape == logits.shape, f"`predict` gives {told.shape}")

    def check_config(self) -> None:
        """`get_config` makes the same model again, by way of JSON."""
        model = self.made()
        config = json.loads(json.dumps(model.get_config()))
        again = type(model).from_config(config)
        other = differences(config, json.loads(json.dumps(again.get_config())))
        self.expect(not other, f"made of its config has another {', '.join(other)}")
        for each in (again, model):
            each(pixels(*SIZES[0]))  # one that is no functional model has its weights by then
        shapes = [[tuple(w.shape) for w in each.weights] for each in (again, model)]
        self.expect(shapes[0] == shapes[1], f"made of its config has weights {shapes[0]}")
        again.set_weights(model.get_weights())
        x = pixels(*SIZES[0])
        self.expect_equal(again(x), model(x), "logits of one made of its config and weights")

    def check_saving(self) -> None:
        """A `.keras` file gives the same model: its class, logits, classes and colours."""
        model, x = self.made(), pixels(*SIZES[0])
        with tempfile.TemporaryDirectory() as folder:
            model.save(Path(folder) / "model.keras")
            loaded = keras.models.load_model(Path(folder) / "model.keras")
        self.expect(type(loaded) is type(model), f"a file comes back as {type(loaded).__name__}")
        self.expect_equal(loaded(x), model(x), "logits of a file")
        other = differences(contract_of(model).to_dict(), contract_of(loaded).to_dict())
        self.expect(not other, f"a file tells another {', '.join(other)}")
        other = differences(*(json.loads(json.dumps(m.get_config())) for m in (model, loaded)))
        self.expect(not other, f"a file's config has another {', '.join(other)}")

    def check_presets(self) -> None:
        """A preset gives the same model; of models that have none nothing is asked."""
        model, x = self.made(), pixels(*SIZES[0])
        if isinstance(model, PresetModel):
            loaded = self.expect_preset(model)
            self.expect_equal(loaded(x), model(x), "logits of a preset")
            other = differences(contract_of(model).to_dict(), contract_of(loaded).to_dict())
            self.expect(not other, f"a preset tells another {', '.join(other)}")

    def check_summary(self) -> None:
        """`summary` names its layers, and tells a shape of each."""
        model = self.made()
        model(pixels(*SIZES[0]))
        self.expect_summary(model, [layer.name for layer in model.layers])

    def check_fit(self) -> None:
        """Every weight has a gradient in training, and `fit` lowers the loss."""
        model = self.make()
        num_classes = contract_of(model).check(model).num_classes
        assert num_classes is not None  # `check` tells it
        x = pixels(4, 4, 4).repeat(8, 1).repeat(8, 2)
        edges = np.quantile(x.mean(-1), np.linspace(0, 1, num_classes + 1)[1:-1])
        y = np.digitize(x.mean(-1), edges).astype("uint8")
        loss = PixelCrossEntropy()
        model.compile(keras.optimizers.Adam(3e-3), loss, jit_compile=False)
        with tf.GradientTape() as tape:
            value = model.compute_loss(x, y, model(x, training=True))
        gradients = tape.gradient(value, model.trainable_variables)
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
            self.expect(gradient is not None, f"no gradient of {variable.path} in training")
            finite = np.isfinite(gradient).all()
            self.expect(finite, f"a gradient of {variable.path} that is not finite")
        seen = model.fit(x, y, epochs=12, verbose=0).history["loss"]
        self.expect(np.isfinite(seen).all(), f"`fit` gives losses of {seen}")
        self.expect(
            min(seen[-3:]) < seen[0], f"`fit` lowers no loss: {seen[0]:.3f}, {seen[-1]:.3f}"
        )


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    """Random pixels, float32 (B, H, W, 3)."""
    return np.random.default_rng(seed).uniform(0, 255, (*shape, 3)).astype("float32")


# === Small models ===


def blotches(batch: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Images with something to see in them: uint8 (batch, height, width, 3), smooth blotches.

    >>> blotches(1, 20, 30).shape
    (1, 20, 30, 3)
    """
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (batch, 7, 9, 3), np.uint8)
    resized = (Image.fromarray(c).resize((width, height), Image.Resampling.BICUBIC) for c in coarse)
    return np.stack([np.asarray(image) for image in resized])


def small_segmenter(
    partition: Partition = 8,
    names: Sequence[str] | None = NAMES,
    dtype: DType = None,
    jit_compile: bool = False,
    backbone: str = "tiny",
    levels: Levels = 2,
    share_projections: bool = False,
    position_bias: bool = False,
    num_heads: int = 1,
    **kwargs: Any,
) -> Segmenter:
    """A small segmenter with random weights and statistics, whose seven classes are well mixed.

    Args:
        partition: of its `InterlacedSparseAttention`. Defaults to 8.
        names: of the classes, or `None` for neither names nor colours. Defaults to seven.
        dtype: see `Segmenter`. Defaults to `None`.
        jit_compile: of the attention. Defaults to `False`.
        backbone: see `Segmenter`. Defaults to "tiny".
        levels: of the attention. Defaults to 2.
        share_projections: of the attention. Defaults to `False`.
        position_bias: of the attention. Defaults to `False`.
        num_heads: of the attention. Defaults to 1.
        **kwargs: of `Segmenter`.

    Example:

    >>> len(np.unique(np.argmax(small_segmenter()(blotches(2, 64, 64, seed=9)), -1)))
    7
    """
    keras.utils.set_random_seed(3)
    context = InterlacedSparseAttention(
        partition,
        key_filters=8,
        jit_compile=jit_compile,
        dtype=dtype,
        name="context",
        levels=levels,
        share_projections=share_projections,
        position_bias=position_bias,
        num_heads=num_heads,
    )
    model = Segmenter(
        backbone,
        context,
        num_classes=7,
        head_filters=16,
        head_kernel_size=1,
        output_stride=4,
        class_names=names,
        palette=None if names is None else PALETTE,
        dtype=dtype,
        **kwargs,
    )
    rng = np.random.default_rng(0)
    for layer in flatten_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            n = layer.gamma.shape[0]
            layer.gamma.assign(rng.uniform(0.5, 1.5, n))
            layer.beta.assign(rng.normal(0, 0.5, n))
            layer.moving_mean.assign(rng.normal(0, 0.5, n))
            layer.moving_variance.assign(rng.uniform(0.5, 1.5, n))
        elif isinstance(layer, PositionBias):  # which begins at zero
            layer.outer.assign(rng.normal(0, 1, layer.outer.shape))
    # Every class wins somewhere: their mean logits are made equal.
    logits = model(blotches(2, 64, 64, seed=9).astype("float32"))
    classifier = model.get_layer("logits_classifier")
    classifier.bias.assign(-np.asarray(logits).mean((0, 1, 2)))
    return model


def trained_segmenter(size: tuple[int, int] = (66, 74), **kwargs: Any) -> Segmenter:
    """A `small_segmenter` that has learnt to tell six colours.

    A network of noise decides by differences that 8 bits do not hold; a trained one does not.

    Args:
        size: (height, width) of the images that it learns from. Defaults to (66, 74), which makes
            maps that no partition divides.
        **kwargs: of `small_segmenter`.
    """
    model = small_segmenter(**kwargs)
    images = blotches(16, *size, seed=1)
    label = 2 * images.argmax(-1) + (images.max(-1) > 140)
    model.compile(keras.optimizers.Adam(3e-3), PixelCrossEntropy(), jit_compile=False)
    model.fit(images.astype("float32"), label.astype("uint8"), 4, 25, verbose=0)
    return model


def decisions_of(model: keras.Model, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class ids and scores that a model's logits are worth, in float64.

    >>> class_id, score = decisions_of(model, images)
    >>> class_id.shape == score.shape == images.shape[:3]
    True
    """
    logits = np.asarray(model(images.astype("float32"), training=False), np.float64)
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    return logits.argmax(-1), (probabilities / probabilities.sum(-1, keepdims=True)).max(-1)
