"""`dilate`: the same weights on a denser grid, for every family of `keras.applications`.

The fast cases are small members; those whose functions take no sizes are made by what these
functions call. The published members themselves are slow cases.
"""

import dataclasses
import functools
import inspect
import re
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.applications.convnext import ConvNeXt
from keras.src.applications.densenet import DenseNet
from keras.src.applications.efficientnet import EfficientNet
from keras.src.applications.efficientnet_v2 import EfficientNetV2
from keras.src.applications.resnet import (
    ResNet,
    stack_residual_blocks_v1,
    stack_residual_blocks_v2,
)
from networks import image

from isa_tf import backbones
from isa_tf.backbones.dilate import FAMILIES, Dilated, DilatedPooling2D, StoredNormalization
from isa_tf.layers.normalization import FusedBatchNormalization
from isa_tf.models import ISANet
from isa_tf.testing import LayerBattery, relative_error

apps = keras.applications


def small_resnet(preact, **kwargs):
    stack = stack_residual_blocks_v2 if preact else stack_residual_blocks_v1

    def stages(x):
        for i, filters in enumerate((8, 12, 16, 24)):
            last = preact and i == 3
            x = stack(
                x, filters, 2, stride1=1 if last or not (preact or i) else 2, name=f"conv{i + 2}"
            )
        return x

    return ResNet(stages, preact, True, weights_name="none", **kwargs)


def same_offsets(size, removed):
    """EfficientNetV2: each strided convolution on an even map moves the grid."""
    offset = 0
    for i in range(removed):
        rate = 2**i
        maps = -(-size // (16 if removed == 1 else 8 * rate))
        offset += rate * (1 - maps % 2)
    return offset


@dataclasses.dataclass
class Case:
    make: object
    preprocess: object
    offsets: object  # at output stride 16 and 8, or a function of size and strides removed
    features: tuple = ()  # layers of the original, "c1" .. "c4"
    # A size that the strides don't divide, but with even maps of strides 8 and 16: DenseNet and
    # ConvNeXt crop odd ones.
    size: tuple = (161, 130)

    def offset(self, size, output_stride):
        removed = {32: 0, 16: 1, 8: 2}[output_stride]
        if callable(self.offsets):
            return self.offsets(size, removed)
        return (0, *self.offsets)[removed]


EFFICIENTNET = {"width_coefficient": 0.25, "depth_coefficient": 0.25, "default_size": 64}
CASES = {
    "resnet": Case(
        functools.partial(small_resnet, False),
        apps.resnet.preprocess_input,
        (0, 0),
        ("conv1_relu", "conv2_block2_out", "conv3_block2_out", "conv4_block2_out"),
    ),
    "resnet_v2": Case(
        functools.partial(small_resnet, True),
        apps.resnet_v2.preprocess_input,
        (0, 0),
        ("conv1_conv", "conv2_block1_out", "conv3_block1_out", "conv4_block1_out"),
    ),
    "mobilenet": Case(
        functools.partial(apps.MobileNet, alpha=0.25),
        apps.mobilenet.preprocess_input,
        (1, 3),
        ("conv_pw_1_relu", "conv_pw_3_relu", "conv_pw_5_relu", "conv_pw_11_relu"),
    ),
    "mobilenet_v2": Case(
        functools.partial(apps.MobileNetV2, alpha=0.35),
        apps.mobilenet_v2.preprocess_input,
        (1, 3),
        ("expanded_conv_project_BN", "block_2_add", "block_5_add", "block_12_add"),
    ),
    "mobilenet_v3": Case(
        functools.partial(apps.MobileNetV3Small, alpha=0.25),
        apps.mobilenet_v3.preprocess_input,
        (1, 3),
        (None, "expanded_conv_project_bn", "expanded_conv_2_add", "expanded_conv_7_add"),
    ),
    "efficientnet": Case(
        functools.partial(EfficientNet, **EFFICIENTNET),
        apps.efficientnet.preprocess_input,
        (1, 3),
        ("block1a_add", "block2a_project_bn", "block3a_project_bn", "block5a_project_bn"),
    ),
    "efficientnet_v2": Case(
        functools.partial(EfficientNetV2, **EFFICIENTNET, name="efficientnetv2-b0"),
        apps.efficientnet_v2.preprocess_input,
        same_offsets,
        ("block1a_add", "block2a_project_bn", "block3a_project_bn", "block5b_add"),
    ),
    "densenet": Case(
        functools.partial(DenseNet, [2, 2, 2, 2]),
        apps.densenet.preprocess_input,
        (0, 1),
        ("conv1_relu", "pool2_relu", "pool3_relu", "pool4_relu"),
    ),
    "convnext": Case(
        functools.partial(ConvNeXt, [1, 1, 2, 1], [8, 16, 24, 32]),
        apps.convnext.preprocess_input,
        (0, 1),
    ),
    # With 17 and 9 rows, where TensorFlow centres the pooling, and 16 and 8 columns.
    "xception": Case(apps.Xception, apps.xception.preprocess_input, (0, 0), size=(141, 130)),
}
PUBLISHED = {
    "ResNet50": "resnet",
    "ResNet50V2": "resnet_v2",
    "MobileNet": "mobilenet",
    "MobileNetV2": "mobilenet_v2",
    "MobileNetV3Large": "mobilenet_v3",
    "EfficientNetB0": "efficientnet",
    "EfficientNetV2B0": "efficientnet_v2",
    "DenseNet121": "densenet",
    "ConvNeXtTiny": "convnext",
}
SLOW = {
    name: dataclasses.replace(CASES[family], make=getattr(apps, name), features=())
    for name, family in PUBLISHED.items()
}
SLOW["MobileNetV3Large-minimalistic"] = dataclasses.replace(
    SLOW["MobileNetV3Large"], make=functools.partial(apps.MobileNetV3Large, minimalistic=True)
)
DIVIDED = (128, 160)


def make(case, **kwargs):
    kwargs = {"input_shape": (None, None, 3), **kwargs}
    model = case.make(include_top=False, weights=None, **kwargs)
    size = model.input_shape[1] or 128
    randomize(model, case.preprocess(image(size, size, seed=2)))
    return model


def randomize(model, pixels):
    """Random weights; statistics near those of an image, so that no map fades away."""
    rng = np.random.default_rng(1)
    for variable in model.variables:
        name, shape = variable.name, tuple(variable.shape)
        if not variable.dtype.startswith("float"):
            continue
        if name in ("gamma", "moving_variance", "variance"):
            value = rng.uniform(0.5, 1.5, shape)
        elif name in ("beta", "bias", "moving_mean", "mean"):
            value = rng.normal(0, 0.3, shape)
        else:
            depthwise = "depthwise" in variable.path and shape[-1] == 1
            value = rng.normal(0, np.prod(shape[: 2 if depthwise else -1]) ** -0.5, shape)
        variable.assign(value)
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(pixels, training=True)
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value
        mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
        norm.moving_mean.assign(mean + rng.normal(0, 0.3, mean.shape) * np.sqrt(variance))
        floor = 0.1 * np.mean(variance)  # lest rounding errors grow where hardly anything varies
        norm.moving_variance.assign(variance * rng.uniform(0.7, 1.4, mean.shape) + floor)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()


def slow_cases():
    return [pytest.param(case, id=name, marks=pytest.mark.slow) for name, case in SLOW.items()]


@pytest.fixture(
    scope="module",
    params=[*(pytest.param(case, id=name) for name, case in CASES.items()), *slow_cases()],
)
def networks(request):
    """A case, its original with random weights, and a function that dilates that one."""
    case = request.param
    original = make(case)
    dilated = functools.cache(functools.partial(backbones.dilate, original))
    return SimpleNamespace(case=case, original=original, dilated=dilated)


@pytest.fixture
def pinned(monkeypatch):
    """Squeeze-and-excitation reads the means that it read in the first network called."""
    means, pool = {}, keras.layers.GlobalAveragePooling2D.call
    monkeypatch.setattr(
        keras.layers.GlobalAveragePooling2D,
        "call",
        lambda layer, x: means.setdefault(layer.name, pool(layer, x)),
    )
    return means


def output_of(networks, pixels):
    return np.asarray(networks.original(networks.case.preprocess(pixels.copy())))


def variables(model, kind):
    """By the names of layer and variable, less the numbers that Keras gives what has no name."""
    return {
        (layer.name, i, re.sub(r"_?\d*$", "", v.name)): v.numpy()
        for layer in model.layers
        for i, v in enumerate(getattr(layer, kind))
    }


def assert_same_variables(model, expected, kind="weights"):
    found, expected = variables(model, kind), variables(expected, kind)
    assert set(found) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=str(key))


# === The same network ===


@pytest.mark.some(2)
def test_variables_are_carried_over(networks):
    for output_stride in (8, 32):
        assert_same_variables(networks.dilated(output_stride), networks.original, "variables")
    # A file of one output stride fits all others.
    fine, coarse = ([w.path for w in networks.dilated(n).weights] for n in (8, 32))
    assert [re.sub(r"_\d+$", "", p) for p in fine] == [re.sub(r"_\d+$", "", p) for p in coarse]


@pytest.mark.some(7)
@pytest.mark.parametrize("divided", [True, False])
def test_output_stride_32_is_the_original(networks, divided):
    pixels = image(*(DIVIDED if divided else networks.case.size))
    model = networks.dilated(32)
    maps = model(pixels)
    assert model.input_shape == (None, None, None, 3)
    assert list(maps) == list(model.feature_strides)
    assert relative_error(maps["c5"], output_of(networks, pixels)) < 1e-4
    for i, name in enumerate(networks.case.features, 1):
        if name is not None and divided:
            tensor = networks.original.get_layer(name).output
            feature = keras.Model(networks.original.input, tensor)
            expected = feature(networks.case.preprocess(pixels.copy()))
            assert relative_error(maps[f"c{i}"], expected) < 1e-4, name


@pytest.mark.some(8)
@pytest.mark.parametrize(("output_stride", "divided"), [(16, True), (8, True), (8, False)])
def test_denser_maps_hold_the_original(networks, output_stride, divided, pinned):
    case, step = networks.case, 32 // output_stride
    size = DIVIDED if divided else case.size
    pixels = image(*size)
    expected = output_of(networks, pixels)
    largest = np.abs(expected).max()
    model = networks.dilated(output_stride)
    maps = model(pixels)
    found = np.asarray(maps["c5"])
    predicted = tuple(case.offset(n, output_stride) for n in size)
    errors = {}
    for i in range(step):
        for j in range(step):
            sample = found[:, i::step, j::step]
            h, w = (
                min(a, b) - 1 for a, b in zip(sample.shape[1:3], expected.shape[1:3], strict=True)
            )
            difference = sample[:, 1:h, 1:w] - expected[:, 1:h, 1:w]
            errors[i, j] = np.abs(difference).max() / largest
    assert errors.pop(predicted) < 1e-4
    assert min(errors.values()) > 1e-3  # and nowhere else
    # The finer maps are untouched.
    coarse = networks.dilated(32)(pixels)
    for key, stride in model.feature_strides.items():
        assert stride == min(networks.dilated(32).feature_strides[key], output_stride)
        if stride == networks.dilated(32).feature_strides[key]:
            assert relative_error(maps[key], coarse[key]) < 1e-5
    last = {16: "c4", 8: "c3"}[output_stride]
    assert maps["c5"].shape[1:3] == maps[last].shape[1:3]


@pytest.mark.some(3)
def test_save_and_load(networks, tmp_path):
    model = networks.dilated(8)
    model.save(tmp_path / "model.keras")
    revived = keras.saving.load_model(tmp_path / "model.keras")
    assert type(revived) is Dilated
    assert revived.output_stride == 8
    assert revived.feature_strides == model.feature_strides
    assert_same_variables(revived, model)
    pixels = image(64, 80)
    maps = revived(pixels)
    for key, features in model(pixels).items():
        assert relative_error(maps[key], features) < 1e-6


# === Sizes, precision, training ===


def test_an_original_of_odd_size():
    """Built for 97 pixels, MobileNetV2 pads for 97, 49, 25, 13 and 7: symmetrically."""
    case = CASES["mobilenet_v2"]
    original = make(case, input_shape=(97, 97, 3))
    pixels = image(97, 97)
    expected = original(case.preprocess(pixels.copy()))
    found = backbones.dilate(original, 8)(pixels)["c5"][:, ::4, ::4]
    assert relative_error(found, expected) < 1e-4


def test_mixed_precision_and_synchronization():
    original = make(CASES["efficientnet"])
    model = backbones.dilate(original, 8, synchronized=True, dtype="mixed_bfloat16")
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert norms and all(norm.synchronized for norm in norms)
    assert all(isinstance(norm, FusedBatchNormalization) for norm in norms)
    for layer in model.layers:
        half = not isinstance(
            layer,
            (keras.layers.InputLayer, keras.layers.Rescaling, keras.layers.Normalization),
        )
        assert layer.compute_dtype == ("bfloat16" if half else "float32"), layer.name
    assert all(w.dtype == "float32" for w in model.trainable_weights)
    expected = backbones.dilate(original, 8)(image(64, 64))
    for key, features in model(image(64, 64)).items():
        assert features.dtype == tf.bfloat16
        difference = np.asarray(tf.cast(features, tf.float32)) - expected[key]
        assert np.abs(difference).mean() < 0.1 * np.abs(expected[key]).mean()
    revived = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
    assert revived.get_config() == model.get_config()
    assert revived.dtype_policy.name == "mixed_bfloat16"


def test_every_weight_learns():
    model = backbones.dilate(make(CASES["densenet"]), 8)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(image(64, 64), training=True)["c5"]))
    for weight, gradient in zip(
        model.trainable_weights, tape.gradient(loss, model.trainable_weights), strict=True
    ):
        assert gradient is not None and np.isfinite(gradient).all(), weight.path


def test_the_original_stays_as_it_is():
    original = make(CASES["mobilenet"])
    original.get_layer("conv1").trainable = False
    before = original(image(64, 64))
    model = backbones.dilate(original, 8, name="mine")
    assert model.name == "mine"
    assert not model.get_layer("conv1").trainable
    assert model.get_layer("conv_pw_1").trainable
    for variable in model.variables:
        variable.assign(tf.zeros_like(variable))
    np.testing.assert_array_equal(original(image(64, 64)), before)


def test_normalization_goes_by_its_variables():
    original = make(CASES["efficientnet"])
    model = backbones.dilate(original, 32)
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
    assert any(isinstance(layer, StoredNormalization) for layer in twin.layers)
    twin.set_weights(model.get_weights())
    assert relative_error(twin(image(64, 64))["c5"], model(image(64, 64))["c5"]) < 1e-6


# === Pooling ===

POOLINGS = {
    "max": {"mode": "max", "pool_size": 3, "dilation_rate": 2},
    "max-strides": {"mode": "max", "pool_size": 3, "dilation_rate": 2, "strides": 2},
    "average": {"mode": "average", "pool_size": 2, "dilation_rate": 2},
}


@pytest.mark.parametrize("arguments", POOLINGS.values(), ids=POOLINGS.keys())
def test_pooling_battery(arguments):
    battery = LayerBattery(DilatedPooling2D, arguments)
    battery.run(*(name for name in battery.list_checks() if name not in ("keras", "twin")))


@pytest.mark.parametrize("size", [(8, 9), (10, 11), (13, 6)], ids=str)
@pytest.mark.parametrize("rate", [1, 2])
def test_pooling_on_the_grid_of_a_strided_one(rate, size):
    x = tf.constant(np.random.default_rng(0).normal(-5, 1, (1, *size, 2)), tf.float32)
    pooled = DilatedPooling2D("max", 3, rate, strides=2)(x)
    expected = tf.nn.max_pool2d(x[:, ::rate, ::rate], 3, 2, "SAME")
    np.testing.assert_array_equal(pooled[:, :: 2 * rate, :: 2 * rate], expected)


@pytest.mark.parametrize("mode", ["max", "average"])
@pytest.mark.parametrize(("size", "rate"), [(3, 1), (3, 2), (2, 1), (2, 2), (1, 2)])
def test_pooling_is_centred_and_sees_no_padding(mode, size, rate):
    x = np.random.default_rng(0).normal(-5, 1, (1, 6, 5, 2)).astype("float32")
    before = rate * (size - 1) // 2
    padded = np.pad(x, ((0, 0), (before, 9), (before, 9), (0, 0)), constant_values=np.nan)
    reduce = {"max": np.nanmax, "average": np.nanmean}[mode]
    expected = np.empty_like(x)
    for i in range(6):
        for j in range(5):
            end = rate * (size - 1) + 1
            expected[:, i, j] = reduce(padded[:, i : i + end : rate, j : j + end : rate], (1, 2))
    np.testing.assert_allclose(DilatedPooling2D(mode, size, rate)(x), expected, rtol=1e-5)


def test_pooling_of_an_unknown_kind():
    with pytest.raises(ValueError, match='"max" or "average", got \'min\''):
        DilatedPooling2D("min", 2)


# === By name ===


def test_names():
    names = backbones.list_keras_names()
    assert len(names) == len(set(names)) == 34
    for family in FAMILIES:
        for name in family.names:
            assert f"keras:{name}" in names
            assert "include_top" in inspect.signature(getattr(apps, name)).parameters
    model = backbones.create("keras:MobileNetV2", alpha=0.35)
    assert (model.name, model.output_stride) == ("MobileNetV2", 32)
    assert model.output["c5"].shape == (None, None, None, 1280)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("keras:ResNet5O", "keras:ResNet50"),
        ("EfficientNetV2S", "keras:EfficientNetV2S"),
        ("vgg", "known: .*keras:ConvNeXtTiny"),
    ],
)
def test_unknown_names(name, nearest):
    with pytest.raises(ValueError, match=f"unknown backbone.*{nearest}"):
        backbones.create(name)


def test_weights_from_a_file(tmp_path):
    model = backbones.dilate(make(CASES["mobilenet"]), 32)
    model.save_weights(tmp_path / "own.weights.h5")
    original = make(CASES["mobilenet"])
    original.save(tmp_path / "keras.h5")
    for file in ("own.weights.h5", "keras.h5"):
        revived = backbones.create(
            "keras:MobileNet", output_stride=8, weights=tmp_path / file, alpha=0.25
        )
        assert_same_variables(revived, model)
    with pytest.raises(ValueError, match="only when told .imagenet."):
        backbones.create("keras:EfficientNetB0", weights=tmp_path / "keras.h5")


def test_imagenet_weights_come_from_keras(monkeypatch):
    asked = {}

    def download(**kwargs):
        asked.update(kwargs)
        raise Exception("URL fetch failure on https://example.org/weights.h5: None -- offline")

    monkeypatch.setattr(apps, "MobileNetV2", download)
    with pytest.raises(OSError, match=r"https://example\.org/weights\.h5.*\(~/\.keras\)"):
        backbones.create("keras:MobileNetV2", weights="imagenet")
    assert asked == {"include_top": False, "weights": "imagenet", "input_shape": (None, None, 3)}


def test_a_network_around_it(tmp_path):
    model = ISANet(
        "keras:MobileNet",
        num_classes=3,
        head_filters=16,
        context_options={"partition": 4},
        dtype="mixed_bfloat16",
        synchronized=True,
    )
    assert model.backbone.feature_strides["c5"] == 8
    assert model.backbone.dtype_policy.name == "mixed_bfloat16"
    model.save(tmp_path / "model.keras")
    revived = keras.saving.load_model(tmp_path / "model.keras")
    logits = model(image(65, 80))
    assert logits.shape == (1, 65, 80, 3)
    np.testing.assert_array_equal(revived(image(65, 80)), logits)


# === What it refuses ===


def chained():
    inputs = keras.Input((64, 64, 3))
    scaled = keras.layers.Rescaling(1 / 255)(inputs)
    return apps.MobileNet(include_top=False, weights=None, input_tensor=scaled)


def shallow():
    model = apps.MobileNetV2(include_top=False, weights=None)
    x = model.get_layer("block_16_project").output
    return keras.Model(model.input, keras.layers.Conv2D(8, 3, strides=2)(x))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: "ResNet50", "functional model.*got str"),
        (lambda: keras.Sequential([keras.layers.Conv2D(3, 1)]), "got Sequential"),
        (lambda: keras.Model(), "functional model.*got"),
        (lambda: backbones.create("resnet18"), "resnet18 is no model that dilate knows.*ResNet50"),
        (lambda: apps.VGG16(include_top=False, weights=None), "vgg16 is no model that dilate"),
        (lambda: apps.MobileNet(weights=None), "include_top=False"),
        (lambda: apps.MobileNet(weights=None, include_top=False, pooling="avg"), "pooling=None"),
        (
            lambda: apps.MobileNet(weights=None, include_top=False, input_shape=(64, 64, 1)),
            "not RGB",
        ),
        (
            lambda: apps.MobileNetV3Small(
                weights=None, include_top=False, include_preprocessing=False
            ),
            "include_preprocessing=True",
        ),
        (chained, "rescaling.* ahead of its first layer; build it without input_tensor"),
        (shallow, "ends at stride 64, not at 32"),
    ],
    ids=[
        "string",
        "sequential",
        "subclass",
        "own",
        "vgg",
        "top",
        "pooling",
        "grey",
        "preprocessing",
        "chained",
        "stride",
    ],
)
def test_wrong_models(model, message):
    with pytest.raises(ValueError, match=message):
        backbones.dilate(model())


@pytest.mark.parametrize("output_stride", [4, 64, "8", None])
def test_wrong_output_strides(output_stride):
    with pytest.raises(ValueError, match="output_stride must be 8, 16 or 32"):
        backbones.dilate(None, output_stride)
