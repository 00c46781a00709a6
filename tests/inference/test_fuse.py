import batteries
import keras
import numpy as np
import pytest

from isa_tf import inference, layers, ops
from isa_tf.inference import Predictor
from isa_tf.models import Segmenter


def make_model(**kwargs):
    keras.utils.set_random_seed(1)
    return Segmenter("tiny", None, 7, head_filters=8, head_kernel_size=1, **kwargs)


FUSED = {
    "tiny": {"backbone": "tiny"},
    # 64 channels and more go by Winograd's filtering.
    "dilated resnet": {"backbone": "resnet18", "head_filters": 64, "head_kernel_size": 3},
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


@pytest.mark.parametrize("arguments", FUSED.values(), ids=FUSED.keys())
def test_fuse_keeps_the_outputs(arguments):
    model = Segmenter(num_classes=7, **arguments)
    batteries.randomize(model)
    before = [weight.copy() for weight in model.get_weights()]
    fused = inference.fuse(model)
    for size in [(64, 64), (41, 70)]:
        image = np.random.default_rng(0).uniform(0, 255, (2, *size, 3)).astype("float32")
        expected = model(image).numpy()
        assert np.ptp(expected) > 0
        for copy in (fused, inference.fuse(model, winograd=False)):
            error = np.abs(copy(image) - expected).max() / np.abs(expected).max()
            # The operations are others, not only their order.
            assert 0 < error < 1e-5
    for weight, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, kept)


@pytest.mark.parametrize("products", ["float32", "bfloat16"])
def test_fuse_of_mixed_precision(monkeypatch, products):
    """On processors that multiply in bfloat16, and on those that do not."""
    monkeypatch.setattr(ops, "product_dtype", lambda dtype: products)
    arguments = {"head_filters": 64, "head_kernel_size": 3, "num_classes": 7}
    model = Segmenter("resnet18", dtype="mixed_bfloat16", **arguments)
    batteries.randomize(model)
    exact = Segmenter("resnet18", **arguments)
    exact.set_weights(model.get_weights())
    image = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype("float32")
    expected = exact(image).numpy()
    fused = inference.fuse(model)
    errors = [np.abs(m(image) - expected).max() for m in (fused, model)]
    assert errors[0] < 1.5 * errors[1] < 0.2 * np.ptp(expected)
    convolutions = [layer.fused for layer in fused._flatten_layers() if hasattr(layer, "fused")]
    # Minimal filtering is float32 everywhere.
    assert {c.kernel.dtype.name for c in convolutions if c.winograd} == {"float32"}
    assert {c.kernel.dtype.name for c in convolutions if not c.winograd} == {products}


def test_fused_model_is_for_inference():
    model = make_model()
    fused = inference.fuse(model)
    image = np.zeros((1, 32, 32, 3), "uint8")
    expected = fused(image).numpy()
    # What is done to the model afterwards does not reach the copy.
    model.set_weights([0 * weight for weight in model.get_weights()])
    np.testing.assert_array_equal(fused(image), expected)
    assert not fused.trainable_variables
    np.testing.assert_array_equal(
        Predictor.from_model(fused)(image)[0], np.argmax(expected, axis=-1)
    )


def test_only_a_built_model_can_be_fused():
    with pytest.raises(ValueError, match="is not built"):
        inference.fuse(keras.Sequential([keras.layers.Conv2D(2, 1)]))
