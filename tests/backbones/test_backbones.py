"""What holds for every backbone: strides, unknown sizes, configs, precision, names."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from isa_tf import backbones
from isa_tf.layers.conv import ConvNormAct
from isa_tf.testing import BackboneBattery, randomize
from isa_tf.testing.backbones import image

# Every kind once, no deeper than it must be.
CASES = [
    ("resnet18", {}),
    ("resnet18", {"output_stride": 8, "contract_dilation": False}),
    ("resnet18_deep", {"output_stride": 16}),
    ("resnet18_vd", {"output_stride": 8}),
    ("resnet50_v1c", {"output_stride": 8}),
    ("efficientnet_lite0", {}),
    ("efficientnet_lite0", {"output_stride": 8, "drop_path_rate": 0.2}),
    ("hrnet_w18", {"output_stride": 4, "modules": (1, 1, 1), "blocks": 1, "filters": 4}),
    ("efficientnet_lite0", {"output_stride": 8, "last_level": "c4"}),
    ("tiny", {"output_stride": 4}),
    ("tiny", {"output_stride": 8, "widths": (4, 8, 12)}),
]
IDS = [
    "-".join([name, str(arguments.get("output_stride", 32)), arguments.get("last_level", "")])
    for name, arguments in CASES
]
cases = pytest.mark.parametrize(("name", "arguments"), CASES, ids=IDS)


EVERY = ("strides", "config")
# Presets, summaries and dtype maps are the same whatever the depth.
SHALLOW = [
    ("tiny", {"output_stride": 8}),
    ("resnet18", {"last_level": "c3", "filters": 8, "context_at": {"c2": "isa"}}),
    pytest.param("efficientnet_lite0", {"last_level": "c2"}, marks=pytest.mark.slow),
    pytest.param(
        "hrnet_w18", {"modules": (1, 1, 1), "blocks": 1, "filters": 4}, marks=pytest.mark.slow
    ),
    pytest.param("keras:MobileNetV2", {"alpha": 0.35}, marks=pytest.mark.slow),
]
OF_SHALLOW = ("presets", "summary", "dtype_map")
# One of each kind for what takes longer.
FEW = ["resnet18", "efficientnet_lite0", "tiny"]


@pytest.mark.some(11)
@cases
@pytest.mark.parametrize("check", EVERY)
def test_strides_and_config(name, arguments, check):
    BackboneBattery(name, arguments).run(check)


@pytest.mark.some(9)
@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize(
    "check", [c for c in BackboneBattery.list_checks() if c not in EVERY + OF_SHALLOW]
)
def test_battery(name, check):
    BackboneBattery(name, {"output_stride": 8}).run(check)


@pytest.mark.parametrize(("name", "arguments"), SHALLOW)
def test_conventions_of_keras(name, arguments):
    BackboneBattery(name, arguments).run(*OF_SHALLOW)


@pytest.mark.some(4)
@cases
def test_replicas_share_statistics_of_what_was_revived(name, arguments):
    model = backbones.create(name, dtype="mixed_bfloat16", synchronized=True, **arguments)
    revived = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
    assert revived.dtype_policy.name == "mixed_bfloat16"
    assert revived.get_layer("normalize").compute_dtype == "float32"
    for layer in revived.layers:
        if isinstance(layer, ConvNormAct):
            assert layer.synchronized and layer.norm.synchronized


HRNET = {"modules": (1, 1, 1), "blocks": 1, "filters": 4}


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("name", "level", "arguments"),
    [
        ("resnet18_vd", "c3", {"output_stride": 8}),
        ("efficientnet_lite0", "c4", {"output_stride": 8}),
        ("hrnet_w18", "c3", HRNET),
        ("tiny", "c1", {}),
        ("keras:MobileNetV2", "c3", {"output_stride": 16, "alpha": 0.35}),
    ],
)
def test_without_what_lies_behind_a_level(name, level, arguments, tmp_path):
    whole = backbones.create(name, **arguments)
    randomize(whole)
    levels = list(whole.feature_strides)
    whole.save_weights(tmp_path / "whole.weights.h5")
    arguments = {**arguments, "last_level": level}
    part = backbones.create(name, weights=tmp_path / "whole.weights.h5", **arguments)
    assert list(part.feature_strides) == levels[: levels.index(level) + 1]
    assert part.head_level == level and part.count_params() < whole.count_params()
    expected = whole(image(48, 65))
    for key, features in part(image(48, 65)).items():
        np.testing.assert_array_equal(features, expected[key])
    part.save_weights(tmp_path / "part.weights.h5")
    again = backbones.create(name, weights=tmp_path / "part.weights.h5", **arguments)
    for a, b in zip(part.weights, again.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_published_weights_of_a_part(tmp_path):
    whole, part = (
        backbones.create("efficientnet_lite0", weights="imagenet", last_level=level)
        for level in (None, "c3")
    )
    theirs = {w.path: w for w in whole.weights}
    for weight in part.weights:
        np.testing.assert_array_equal(weight, theirs[weight.path])
    with pytest.raises(ValueError, match="[Ll]ayer"):  # a part's weights make no whole
        part.save_weights(path := tmp_path / "part.weights.h5")
        backbones.create("efficientnet_lite0", weights=path)


def test_a_level_that_is_none():
    with pytest.raises(ValueError, match="last_level must be one of c1, c2, c3, c4, c5.*'c6'"):
        backbones.create("resnet18", last_level="c6")
    with pytest.raises(ValueError, match="context_at c4 lies behind c3"):
        backbones.create("resnet18", last_level="c3", context_at={"c4": "isa"})


def test_efficientnet_lite_from_a_keras_file(tmp_path):
    model = backbones.create("efficientnet_lite0")
    randomize(model)
    model.save(tmp_path / "model.keras")
    revived = backbones.create(
        "efficientnet_lite0", output_stride=16, weights=str(tmp_path / "model.keras")
    )
    for a, b in zip(model.weights, revived.weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("resnet18", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
        ("efficientnet_lite0", 127, 128),
        ("tiny", 127.5, 127.5),
    ],
)
def test_normalization(name, mean, std):
    layer = backbones.create(name).get_layer("normalize")
    expected = (image(4, 4) - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(layer(image(4, 4)), expected, atol=1e-6)


# === Names ===


def test_names():
    names = backbones.list_names()
    assert len(names) == len(set(names)) >= 29  # others may have been registered
    vd = backbones.create("resnet34_vd", output_stride=16)
    assert (vd.name, vd.depth, vd.stem, vd.shortcut) == ("resnet34_vd", 34, "v1c", "vd")
    assert backbones.create("resnet18").output_stride == 32
    assert backbones.create("efficientnet_lite3").variant == 3


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet5O", "resnet50"),
        ("efficientnetlite0", "efficientnet_lite0"),
        ("Tiny", "tiny"),
        ("zzz", "known: .*resnet18"),
        (None, "known: "),
    ],
)
def test_unknown_names(name, nearest):
    with pytest.raises(ValueError, match=f"unknown backbone.*{nearest}"):
        backbones.create(name)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet18", {"output_stride": 4}, "output_stride must be 8, 16 or 32, got 4"),
        ("resnet18", {"stem": "v2"}, "stem must be one of"),
        ("resnet18", {"shortcut": "pool"}, "shortcut must be one of"),
        ("resnet18_vd", {"weights": "imagenet"}, "none are known for resnet18_vd"),
        ("resnet18", {"filters": 7}, "filters must be an even int above 0, got 7"),
        ("resnet18", {"filters": 1.5}, "filters must be an even int above 0, got 1.5"),
        ("resnet18", {"filters": True}, "filters must be an even int above 0, got True"),
        ("resnet18", {"weights": "noisy_student"}, "weights must be"),
        (
            "resnet50_v1c",
            {"weights": "open-mmlab://resnet50_v1"},
            'did you mean "open-mmlab://resnet50_v1c',
        ),
        ("resnet50", {"weights": "timm/vit"}, "unknown weights 'timm/vit'"),
        ("efficientnet_lite0", {"output_stride": "8"}, "output_stride must be"),
        ("efficientnet_lite0", {"weights": "noisy_student"}, "weights must be"),
        ("efficientnet_lite0", {"drop_path_rate": 1.0}, "drop_path_rate must be"),
        ("efficientnet_lite3", {"weights": "imagenet"}, "0, 1 and 2, not for 3"),
        ("tiny", {"output_stride": 32}, "output_stride must be 4 or 8"),
        ("tiny", {"widths": (8, 8)}, "widths must be three"),
    ],
)
def test_wrong_arguments(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        backbones.create(name, **arguments)


def test_wrong_depth_and_variant():
    with pytest.raises(ValueError, match="depth must be one of"):
        backbones.ResNet(42)
    with pytest.raises(ValueError, match="variant must be 0..4"):
        backbones.EfficientNetLite(5)


def test_feature_maps_without_strides():
    inputs = keras.Input((None, None, 3))
    with pytest.raises(ValueError, match="feature_maps has"):
        backbones.Backbone(inputs, {"c1": inputs}, {"c2": 2})


# === Tiny ===


@pytest.mark.parametrize(("output_stride", "extent"), [(4, 15), (8, 31)])
def test_receptive_field_is_what_a_position_sees(output_stride, extent):
    model = backbones.create("tiny", output_stride=output_stride)
    assert model.receptive_field() == extent
    for layer in model.layers:
        if isinstance(layer, ConvNormAct):  # positive all the way: no ReLU hides a path
            layer.conv.kernel.assign(np.ones(layer.conv.kernel.shape))
    inputs = tf.fill((1, 96, 96, 3), 255.0)
    middle = 48 // output_stride
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        maps = model(inputs)
        seen = tf.reduce_sum(maps[list(maps)[-1]][:, middle, middle])
    gradient = tape.gradient(seen, inputs)[0, ..., 0]
    for axis in (0, 1):
        assert np.count_nonzero(np.any(gradient, axis=axis)) == extent
