"""The twin of a network: it computes the same, and is a model like any."""

import keras
import numpy as np
import pytest
from exporting import assert_agree, expected, random_images
from exporting import make_model as make_mixed

import isa_tf
from isa_tf import backbones, inference, layers, testing
from isa_tf.inference import FusedModel, Predictor
from isa_tf.models import Segmenter


def make_model(**kwargs):
    keras.utils.set_random_seed(1)
    return Segmenter("tiny", None, 7, head_filters=8, head_kernel_size=1, **kwargs)


FUSED = {
    "tiny": {"backbone": "tiny"},
    # 64 channels and more go by Winograd's filtering.
    "dilated resnet": {"backbone": "resnet18", "head_filters": 64, "head_kernel_size": 3},
    "recomputed resnet": {"context": "ppm", "head_filters": 16},
    "keras": {"context": "rcca", "head_filters": 16},
    "hrnet": {"head_filters": 16},
    "depthwise": {"backbone": "efficientnet_lite0", "head_filters": 16},
    "decoder": {
        "backbone": "resnet18",
        "context": "self_attention",
        "head_filters": 16,
        "decoder_levels": ("c2",),
        "decoder_filters": 8,
        "activation": "leaky_relu",
    },
    "multi-partition": {
        "backbone": "tiny",
        "head_filters": 16,
        "context": layers.InterlacedSparseAttention([2, (3, 4)], order="short_long", depth=2),
    },
}


@pytest.mark.some("tiny", "keras", "decoder")
@pytest.mark.parametrize(("name", "arguments"), FUSED.items(), ids=FUSED.keys())
def test_fuse_keeps_the_outputs(name, arguments):
    made = {
        "recomputed resnet": lambda: backbones.create("resnet18", 8, recompute=True, filters=8),
        "hrnet": lambda: backbones.HRNet(4, modules=(1, 1, 1), blocks=1, filters=8),
        "keras": lambda: backbones.create("keras:MobileNetV2", 16, alpha=0.35),
    }
    if name in made:
        arguments = {"backbone": made[name](), **arguments}
    model = Segmenter(num_classes=7, auxiliary_level="c1", **arguments)
    testing.randomize(model)
    before = [weight.copy() for weight in model.get_weights()]
    fused = inference.fuse(model)
    for size in [(64, 64), (41, 70)]:
        image = np.random.default_rng(0).uniform(0, 255, (2, *size, 3)).astype("float32")
        expected = model(image).numpy()
        assert np.ptp(expected) > 0
        for copy in (fused, inference.fuse(model, minimal_filtering=None, jit_compile=False)):
            error = np.abs(copy(image) - expected).max() / np.abs(expected).max()
            # The operations are others, not only their order.
            assert 0 < error < 1e-5
    for weight, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, kept)


@pytest.mark.some("bfloat16")
@pytest.mark.parametrize("products", ["float32", "bfloat16"])
def test_fuse_of_mixed_precision(products):
    """With the products that are quick on one processor, and those that are on another."""
    arguments = {"head_filters": 64, "head_kernel_size": 3, "num_classes": 7}
    model = Segmenter("resnet18", dtype="mixed_bfloat16", **arguments)
    testing.randomize(model)
    exact = Segmenter("resnet18", **arguments)
    exact.set_weights(model.get_weights())
    image = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype("float32")
    expected = exact(image).numpy()
    fused = inference.fuse(model, product_dtype=products)
    errors = [np.abs(m(image) - expected).max() for m in (fused, model)]
    assert errors[0] < 1.5 * errors[1] < 0.2 * np.ptp(expected)
    convolutions = [c for c in fused._flatten_layers() if isinstance(c, layers.ConvBiasAct)]
    assert {c.product_dtype for c in convolutions} == {products}
    assert {c.compute_dtype for c in convolutions} == {"bfloat16"}
    assert {v.dtype for c in convolutions for v in c.variables} == {"float32"}


def test_nothing_is_decided_by_a_stopwatch(monkeypatch):
    monkeypatch.setattr(isa_tf.runtime, "_seconds", lambda x: pytest.fail("timed"))
    inference.fuse(make_model(dtype="mixed_bfloat16"))(np.zeros((1, 32, 32, 3), "float32"))


def test_fused_model_is_for_inference():
    model = make_model()
    fused = inference.fuse(model)
    image = np.zeros((1, 32, 32, 3), "uint8")
    expected = fused(image).numpy()
    # What is done to the model afterwards does not reach the twin.
    model.set_weights([0 * weight for weight in model.get_weights()])
    np.testing.assert_array_equal(fused(image), expected)
    assert not fused.trainable_variables
    np.testing.assert_array_equal(
        Predictor.from_model(fused)(image)[0], np.argmax(expected, axis=-1)
    )


# Fewer channels than would gain by it, so that all ways of a convolution are gone through.
OPTIONS = {"minimal_filtering": 8}


@pytest.fixture(scope="module")
def pair():
    """A model whose classes are well mixed, and its twin."""
    model = make_mixed(auxiliary_level="c1", protocol={"flip": True})
    fused = inference.fuse(model, **OPTIONS)
    assert any(getattr(layer, "filtered", False) for layer in fused._flatten_layers())
    return model, fused


def test_it_knows_what_its_model_knows(pair, tmp_path):
    model, fused = pair
    for twin in (fused, isa_tf.formats.load_model(isa_tf.export(fused, tmp_path / "f.keras"))):
        assert isinstance(twin, FusedModel)
        assert inference.contract_of(twin) == inference.contract_of(model)


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("fused.keras", {}),
        ("fused", {}),
        ("fused", {"jit_compile": True}),
        ("fused.tflite", {"image_size": (48, 64)}),
    ],
)
def test_every_format_takes_it(pair, tmp_path, path, options):
    """And gives what the model that it is the twin of gives."""
    model, fused = pair
    images = random_images(1, 48, 64)
    predictor = isa_tf.load_predictor(isa_tf.export(fused, tmp_path / path, **options), protocol={})
    assert_agree(predictor(images), expected(model, images), rtol=1e-3)
    assert predictor.class_names == model.class_names and predictor.palette == model.palette


def test_a_saved_file_gives_the_same_and_makes_another_twin(pair, tmp_path):
    model, fused = pair
    fused.save(tmp_path / "fused.keras")
    loaded = keras.models.load_model(tmp_path / "fused.keras")
    image = random_images(1, 41, 70).astype("float32")
    np.testing.assert_array_equal(loaded(image), fused(image))
    assert [w.shape for w in loaded.get_weights()] == [w.shape for w in fused.get_weights()]
    plain = inference.fuse(loaded, minimal_filtering=None, jit_compile=False)
    assert not any(getattr(layer, "filtered", False) for layer in plain._flatten_layers())
    logits = model(image).numpy()
    assert np.abs(plain(image) - logits).max() < 1e-4 * np.abs(logits).max()


def test_what_cannot_be_fused():
    with pytest.raises(ValueError, match="is not built"):
        inference.fuse(keras.Sequential([keras.layers.Conv2D(2, 1)]))
    with pytest.raises(ValueError, match="minimal_filtering must be at least 1 or None, got 0"):
        inference.fuse(make_model(), minimal_filtering=0)
    with pytest.raises(ValueError, match="product_dtype must be a float's, got 'int8'"):
        inference.fuse(make_model(), product_dtype="int8")

    class Subclassed(keras.Model):
        def call(self, inputs):
            return inputs

    model = Subclassed()
    model(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="no functional model"):
        inference.fuse(model)
