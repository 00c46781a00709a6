"""Context modules inside a backbone: they disturb nothing, learn, and are kept with it."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from isa_tf.backbones import HRNet, ResNet, create
from isa_tf.inference import fuse
from isa_tf.layers import ConvNormAct, InterlacedSparseAttention, NonLocal2D
from isa_tf.models import Segmenter, load

AUTHORS = {"name": "nonlocal", "sub_sample": "before", "use_scale": True}
# A network, its arguments, and modules inside.
NETWORKS = {
    "resnet": (
        ResNet,
        {"depth": 18, "filters": 4, "output_stride": 8},
        {"c3": "isa", "c4": AUTHORS},
    ),
    "recomputed": (
        ResNet,
        {"depth": 18, "filters": 4, "output_stride": 16, "recompute": True},
        {"c2": {"name": "rcca", "fuse": False}, "c5": "rcca"},
    ),
    "hrnet": (
        HRNet,
        {"width": 4, "modules": (1, 1, 1), "blocks": 1, "filters": 4},
        {"c4": AUTHORS, "c2": {"name": "isa", "partition": [4]}},
    ),
}
HEAD = {"num_classes": 3, "head_filters": 8, "dropout": 0.0, "context": None}


def image(batch=2):
    rng = np.random.default_rng(0)
    return rng.uniform(0, 255, (batch, 48, 65, 3)).astype("float32")


def randomize(model):
    """Normalisations that hide nothing; those that end a context module stay at zero."""
    rng = np.random.default_rng(1)
    for layer in model._flatten_layers():
        if isinstance(layer, ConvNormAct) and np.any(layer.norm.gamma):
            layer.norm.gamma.assign(rng.uniform(0.3, 1.0, layer.norm.gamma.shape))
            layer.norm.beta.assign(rng.normal(0, 0.3, layer.norm.beta.shape))


def give(plain, hooked):
    """The weights of a network without modules inside, to one with some, by name."""
    for layer in plain.layers:
        hooked.get_layer(layer.name).set_weights(layer.get_weights())


def zeros(backbone):
    """Variables that begin at zero and are what lets a module through."""
    modules = backbone.context_layers().values()
    found = [v for module in modules for v in module.trainable_variables if v.name == "gamma"]
    return [v for v in found if not np.any(v)]


def networks(name):
    """(without, with) modules inside, with the same weights."""
    cls, arguments, context_at = NETWORKS[name]
    plain, hooked = cls(**arguments), cls(**arguments, context_at=context_at)
    randomize(plain)
    give(plain, hooked)
    assert set(hooked.context_layers()) == set(context_at)
    assert len(zeros(hooked)) == len(context_at)
    return plain, hooked


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


# --- Nothing is disturbed, and it learns ---------------------------------------------------------


@pytest.mark.some(2)
@pytest.mark.parametrize("name", NETWORKS)
def test_fresh_modules_change_no_bit(name):
    plain, hooked = networks(name)
    for training in (False, True, False):  # the last with the statistics of the second
        assert_same(hooked(image(), training=training), plain(image(), training=training))


def test_in_half_precision():
    cls, arguments, context_at = NETWORKS["resnet"]
    plain, hooked = (
        cls(**arguments, context_at=modules, dtype="mixed_bfloat16")
        for modules in (None, context_at)
    )
    give(plain, hooked)
    found, expected = hooked(image(), training=True), plain(image(), training=True)
    assert found["c5"].dtype == hooked.context_layers()["c4"].compute_dtype == "bfloat16"
    assert_same(*({k: tf.cast(v, "float32") for k, v in m.items()} for m in (found, expected)))


@pytest.mark.some(1)
@pytest.mark.parametrize("name", ["resnet", "hrnet"])
def test_a_segmenter_is_undisturbed_and_then_learns(name):
    plain, hooked = (Segmenter(b, auxiliary_level="c4", **HEAD) for b in networks(name))
    for ours, theirs in zip(hooked.layers, plain.layers, strict=True):
        if theirs.name != plain.backbone.name:
            ours.set_weights(theirs.get_weights())
    x, labels = image(1), np.random.default_rng(2).integers(0, 3, (1, 48, 65))
    np.testing.assert_array_equal(hooked(x), plain(x))
    assert_same(hooked(x, training=True), plain(x, training=True))

    modules = hooked.backbone.context_layers()
    inner = [v for m in modules.values() for v in m.trainable_variables if len(v.shape) == 4]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def gradients(variables):
        with tf.GradientTape() as tape:
            value = sum(loss(labels, logits) for logits in hooked(x, training=True).values())
        return tape.gradient(value, variables)

    closed = zeros(hooked.backbone)
    assert closed and not any(np.any(gradient) for gradient in gradients(inner))
    step = gradients(hooked.trainable_variables)
    keras.optimizers.SGD(1.0).apply(step, hooked.trainable_variables)
    assert all(np.all(gamma.numpy() != 0) for gamma in closed)
    assert all(np.any(gradient) for gradient in gradients(inner))
    learnt = hooked(x, training=True)["logits"].numpy()
    for gamma in closed:
        gamma.assign(tf.zeros_like(gamma))
    assert np.abs(hooked(x, training=True)["logits"] - learnt).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("resnet", {"c4": ("stage3_context", "stage3_block2")}),
        (
            "hrnet",
            {
                "c2": ("stage4_module1_branch1_context", "stage4_module1_branch1_block1"),
                "c4": ("stage4_module1_branch3_context", "stage4_module1_branch3_block1"),
            },
        ),
    ],
)
def test_the_last_block_reads_what_the_module_makes(name, places):
    _, model = networks(name)
    for gamma in zeros(model):
        gamma.assign(tf.ones_like(gamma))
    for level, (place, block) in places.items():
        layer = model.get_layer(place)
        assert layer is model.context_layers()[level]
        ends = [layer.input, layer.output, model.get_layer(f"{block}_relu").output]
        before, x, after = keras.Model(model.input, ends)(image(1))
        assert np.abs(x - before).max() > 1e-5
        y = model.get_layer(f"{block}_conv2")(model.get_layer(f"{block}_conv1")(x))
        np.testing.assert_allclose(after, tf.nn.relu(x + y), atol=1e-4)


def test_the_twin_of_a_network_with_modules_inside():
    model = Segmenter(networks("resnet")[1], **HEAD)
    for gamma in zeros(model.backbone):
        gamma.assign(tf.ones_like(gamma))
    expected = model(image())
    fused = fuse(model, jit_compile=False, minimal_filtering=None)
    assert not any("BatchNorm" in type(part).__name__ for part in fused._flatten_layers())
    np.testing.assert_allclose(fused(image()), expected, atol=1e-4 * np.abs(expected).max())


# --- How modules are given, and kept -------------------------------------------------------------


def wide(**arguments):
    """What makes a layer of keyword arguments."""
    return NonLocal2D(key_filters=5, **arguments)


def test_every_way_to_give_a_module_is_kept_as_a_layer(tmp_path):
    layer = InterlacedSparseAttention(partition=4, residual=True, name="mine")
    given = {"c2": "isa", "c3": wide, "c4": layer, "c5": {"name": "isa", "key_filters": 2}}
    backbone = ResNet(18, filters=8, context_at=given, synchronized=True)
    modules = backbone.context_layers()
    assert modules["c4"] is layer and modules["c3"].key_filters == 5
    assert modules["c5"].key_filters == 2 and modules["c2"].synchronized
    assert [m.name for m in modules.values()][:2] == ["stage1_context", "stage2_context"]

    config = json.loads(json.dumps(backbone.get_config()))
    again = ResNet.from_config(config)
    assert json.loads(json.dumps(again.get_config())) == config
    assert again.context_layers()["c4"] is not layer
    assert [v.path for v in again.weights] == [v.path for v in backbone.weights]

    model = Segmenter(backbone, **HEAD)
    for gamma in zeros(backbone):
        gamma.assign(tf.ones_like(gamma))
    model.save(tmp_path / "model.keras")
    loaded = load(tmp_path / "model.keras")
    assert list(loaded.backbone.context_layers()) == ["c2", "c3", "c4", "c5"]
    np.testing.assert_array_equal(loaded(image(1)), model(image(1)))


@pytest.mark.parametrize("module", [None, "none"])
def test_no_module(module):
    backbone = ResNet(18, filters=4, context_at={"c4": module})
    assert backbone.context_layers() == {} == backbone.get_config()["context_at"]
    names = [layer.name for layer in backbone.layers]
    assert names == [layer.name for layer in ResNet(18, filters=4).layers]


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_a_file_of_the_network_without_modules(suffix, tmp_path):
    plain, hooked = networks("resnet")
    path = tmp_path / f"plain{suffix}"
    (plain.save if suffix == ".keras" else plain.save_weights)(path)
    before = [module.get_weights() for module in hooked.context_layers().values()]
    plain.set_weights([w + 1 for w in plain.get_weights()])
    give(plain, hooked)
    hooked.load_file(path, None)
    plain.load_weights(path)
    assert_same(hooked(image(1)), plain(image(1)))
    for then, module in zip(before, hooked.context_layers().values(), strict=True):
        for a, b in zip(then, module.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_file_of_a_network_with_modules(tmp_path):
    _, hooked = networks("resnet")
    for gamma in zeros(hooked):
        gamma.assign(tf.ones_like(gamma))
    path = tmp_path / "hooked.weights.h5"
    hooked.save_weights(path)
    cls, arguments, context_at = NETWORKS["resnet"]
    made = cls(**arguments, context_at=context_at, weights=path)
    for ours, theirs in zip(made.get_weights(), hooked.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # Of one with another module inside: nothing is dropped in silence.
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="stage3_context"):
        cls(**arguments, context_at={"c4": "rcca"}, weights=path)


# --- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["resnet", "hrnet"])
@pytest.mark.parametrize(
    ("context_at", "message"),
    [
        ({"c44": "isa"}, "unknown stage of context_at 'c44'; did you mean \"c4\""),
        ({"c1": "isa"}, "unknown stage of context_at 'c1'.*known: c2, c3, c4, c5"),
        ({"concatenated": "isa"}, "unknown stage of context_at 'concatenated'"),
        ("c2", "must be a dict from stages to modules, got 'c2'"),
    ],
)
def test_wrong_stages_are_refused(network, context_at, message):
    cls, arguments, _ = NETWORKS[network]
    with pytest.raises(ValueError, match=message):
        cls(**arguments, context_at=context_at)


@pytest.mark.parametrize(
    ("context_at", "message"),
    [
        ({"c2": "nonlocl"}, "unknown context module 'nonlocl'; did you mean \"nonlocal\""),
        ({"c2": {"name": "isaa"}}, 'did you mean "isa"'),
        ({"c2": {"name": "isa", "partitions": 4}}, "partitions"),
        ({"c2": {"partition": 4}}, r"context_at\['c2'\] must be a module's name, a dict"),
        ({"c2": 4}, r"context_at\['c2'\] must be .* got 4"),
        ({"c2": lambda **arguments: "isa"}, r"context_at\['c2'\] must be"),
        ({"c2": {"name": "isa", "residual": False}}, "context does not add to its input"),
        ({"c2": keras.layers.Conv2D(3, 1)}, "makes .*3.* the block after it needs the same"),
        ({"c2": {"name": "isa", "filters": 7}}, "filters must be None or"),
    ],
)
def test_wrong_modules_are_refused(context_at, message):
    with pytest.raises(ValueError, match=message):
        ResNet(18, filters=4, context_at=context_at)


@pytest.mark.parametrize("name", ["tiny", "efficientnet_lite0", "keras:MobileNetV2"])
def test_networks_that_have_no_place_for_modules(name):
    with pytest.raises(ValueError, match="no place for context modules inside; ResNet and HRNet"):
        create(name, context_at={"c4": "isa"})
