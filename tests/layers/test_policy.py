"""Policies by path (`keras.dtype_policies.DTypePolicyMap`), and those that are refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.dtype_policies import DTypePolicyMap

from isa_tf import backbones, formats, layers
from isa_tf.compat import flatten_layers
from isa_tf.formats.serving import float32_clone
from isa_tf.inference import fuse
from isa_tf.layers import create_context
from isa_tf.models import MaskRCNN, Segmenter
from isa_tf.testing import ContextBattery, randomize

MODULES = {
    "isa": {"partition": 4},
    "self_attention": {},
    "nonlocal": {},
    "rcca": {},
    "ppm": {"pool_sizes": (1, 2)},
    "aspp": {"dilation_rates": (1, 2), "branch_filters": 8},
    "cgnl": {"groups": 2},
    "a2": {},
    "pointwise": {},
}
FORMS = {
    **MODULES,
    "isa residual": {"partition": 4, "residual": True},
    "isa levels": {"partition": 2, "levels": 3},
    "isa shared": {"partition": 4, "share_projections": True, "position_bias": True},
    "rcca bare": {"fuse": False},
    "ppm residual": {"residual": True},
}


def map_of(default, **others):
    policies = DTypePolicyMap(default)
    for path, policy in others.items():
        policies[path] = policy
    return policies


@pytest.mark.parametrize("name", MODULES)
def test_a_module_in_another_precision_than_all_else(name):
    ContextBattery(name, MODULES[name], shapes=(1, 10, 7, 8)).run("dtype_map")


@pytest.mark.some(8)
@pytest.mark.parametrize(
    ("form", "key"),
    [
        *((form, "context/.*") for form in FORMS),
        *((form, "context") for form in ("isa", "nonlocal", "ppm residual", "aspp", "a2")),
        ("isa", ".*/[^/]*"),
    ],
)
def test_parts_of_a_module_in_another_precision(form, key):
    """What layers inside give is joined in the dtype of the module, in training too."""
    x = np.random.default_rng(0).normal(size=(1, 6, 5, 8)).astype("float32")
    name, options = form.split(" ")[0], FORMS[form]
    plain = create_context(name, name="context", **options)
    plain.build(x.shape)
    randomize(plain)
    expected = plain(x)
    half, full = "mixed_bfloat16", "float32"
    default, other = (half, full) if key == "context/.*" else (full, half)
    policies = map_of(default, **{key: other})
    layer = create_context(name, name="context", dtype=policies, **options)
    layer.build(x.shape)
    layer.set_weights(plain.get_weights())
    assert {part.compute_dtype for part in flatten_layers(layer)} == {"float32", "bfloat16"}
    found = layer(x)
    assert found.dtype == layer(x, training=True).dtype == policies["context"].compute_dtype
    difference = np.abs(tf.cast(found, "float32") - expected).mean()
    assert difference < 0.05 * np.abs(expected).mean()


@pytest.fixture(scope="module")
def mixed():
    """A segmenter in bfloat16 whose attention computes in float32, and images."""
    policies = map_of("mixed_bfloat16", **{"context": "float32", "context/.*": "float32"})
    keras.utils.set_random_seed(0)
    model = Segmenter(
        "tiny", num_classes=3, head_filters=8, context_options={"partition": 4}, dtype=policies
    )
    randomize(model)
    images = np.random.default_rng(0).uniform(0, 255, (1, 24, 40, 3)).astype("float32")
    return model, images


def check_mixed(model):
    found = {layer.path: layer.compute_dtype for layer in flatten_layers(model) if layer.weights}
    inside = {path: dtype for path, dtype in found.items() if str(path).startswith("context")}
    assert set(inside.values()) == {"float32"} and "context/fusion" in inside
    assert found["head"] == found["conv1"] == found["logits_classifier"] == "bfloat16"


def test_a_segmenter_whose_attention_is_in_float32(mixed, tmp_path):
    model, images = mixed
    check_mixed(model)
    logits = model(images)
    assert logits.dtype == tf.float32 and {w.dtype for w in model.weights} == {"float32"}
    model.save(tmp_path / "model.keras")
    model.save_to_preset(tmp_path / "preset")
    for load, path in (
        (keras.models.load_model, "model.keras"),
        (formats.load_model, "model.keras"),
        (Segmenter.from_preset, "preset"),
    ):
        loaded = load(tmp_path / path)
        check_mixed(loaded)
        np.testing.assert_array_equal(loaded(images), logits)
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    assert np.isfinite(model.evaluate(images, np.zeros((1, 24, 40)), verbose=0))


def test_its_twin_and_its_clone(mixed):
    model, images = mixed
    logits = model(images).numpy()
    twin = fuse(model)
    check_mixed(twin)
    assert np.abs(twin(images) - logits).max() < 0.1 * np.abs(logits).max()
    clone = float32_clone(model)
    assert {layer.compute_dtype for layer in flatten_layers(clone)} == {"float32"}
    assert np.abs(clone(images) - logits).max() < 0.1 * np.abs(logits).max()
    # What computes in half precision inside a map alone is found as well.
    inner = Segmenter(
        "tiny",
        num_classes=2,
        head_filters=8,
        dtype=map_of("float32", **{"context/.*": "mixed_bfloat16"}),
    )
    clone = float32_clone(inner)
    assert clone is not inner
    assert {layer.compute_dtype for layer in flatten_layers(clone)} == {"float32"}


@pytest.mark.parametrize("policy", ["int8_from_float32", "float8_from_mixed_bfloat16"])
def test_what_quantises_is_refused(policy):
    for make in (
        lambda dtype: layers.ConvNormAct(4, dtype=dtype),
        lambda dtype: layers.InterlacedSparseAttention(dtype=dtype),
        lambda dtype: backbones.create("tiny", dtype=dtype),
        lambda dtype: Segmenter("tiny", num_classes=2, head_filters=4, dtype=dtype),
        lambda dtype: MaskRCNN(backbones.create("resnet18", filters=4), dtype=dtype),
    ):
        with pytest.raises(ValueError, match=f"the policy '{policy}' quantises, .*litert_int8"):
            make(policy)
        inside = map_of("float32", **{"head/.*": policy})
        with pytest.raises(ValueError, match=f"policy '{policy}' of 'head/.\\*' quantises"):
            make(inside)


def test_a_map_needs_a_default():
    """Keras would save such a map without its policies."""
    policies = map_of(None, head="float32")
    with pytest.raises(ValueError, match="a DTypePolicyMap needs its default_policy"):
        Segmenter("tiny", num_classes=2, head_filters=4, dtype=policies)
