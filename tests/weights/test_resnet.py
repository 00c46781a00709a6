"""ResNets from the checkpoints of others: every tensor in its place, or an error."""

import types

import numpy as np
import pytest

from isa_tf.backbones import ResNet
from isa_tf.models import from_checkpoint
from isa_tf.models.convert import find_source
from isa_tf.weights import cache, published
from isa_tf.weights import resnet as weights_lib

STYLES = {
    "torchvision": {"stem": "v1"},
    "openmmlab": {"stem": "v1c"},
    "timm-c": {"stem": "v1c"},
    "timm-s": {"stem": "deep"},
    "timm-d": {"stem": "v1c", "shortcut": "vd"},
    "official": {"stem": "deep"},
    "official-imagenet": {"stem": "deep"},
}
STEM_NAMES = {
    "torchvision": [("conv1", "bn1")],
    "openmmlab": [("stem.0", "stem.1"), ("stem.3", "stem.4"), ("stem.6", "stem.7")],
    "timm": [("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1")],
    "official": [(f"resinit.conv{i}", f"resinit.bn{i}") for i in (1, 2, 3)],
    "official-imagenet": [(f"conv{i}", f"bn{i}") for i in (1, 2, 3)],
}


def names(model, style):
    """For each layer with weights of a `ResNet`, the convolution's and the norm's name."""
    stem = STEM_NAMES.get(style) or STEM_NAMES[style.split("-")[0]]
    found = {f"stem_conv{i + 1}": pair for i, pair in enumerate(stem)}
    shift = int(style == "timm-d")  # the average pooling comes first
    for layer in model.layers:
        if layer.name in found or not layer.weights:
            continue
        stage, block, part = layer.name.split("_")
        prefix = f"layer{stage[5:]}.{int(block[5:]) - 1}"
        if part == "shortcut":
            pair = (f"{prefix}.downsample.{shift}", f"{prefix}.downsample.{shift + 1}")
        else:
            pair = (f"{prefix}.{part}", f"{prefix}.bn{part[4:]}")
        found[layer.name] = pair
    return found


def checkpoint(model, style, seed=0):
    rng = np.random.default_rng(seed)
    tensors = {"fc.weight": np.zeros((10, 4), "float32"), "fc.bias": np.zeros(10, "float32")}
    for layer, (conv, norm) in names(model, style).items():
        layer = model.get_layer(layer)
        h, w, inputs, outputs = layer.conv.kernel.shape
        tensors[f"{conv}.weight"] = rng.normal(size=(outputs, inputs, h, w)).astype("float32")
        for part in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{norm}.{part}"] = rng.uniform(0.1, 1, outputs).astype("float32")
        tensors[f"{norm}.num_batches_tracked"] = np.int64(7)
    return tensors


@pytest.mark.some(7)
@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("style", STYLES)
def test_every_tensor_has_its_place(style, depth):
    model = ResNet(depth, filters=4, **STYLES[style])
    tensors = checkpoint(model, style)
    assert weights_lib.arguments(tensors, "file") == {
        "depth": depth,
        "stem": "v1",
        "shortcut": "conv",
        "filters": 4,
        **STYLES[style],
    }
    report = weights_lib.load(model, tensors, "file")
    assert report == (["fc.bias", "fc.weight"], [])
    for name, (conv, norm) in names(model, style).items():
        layer = model.get_layer(name)
        expected = np.moveaxis(tensors[f"{conv}.weight"], (0, 1), (3, 2))
        np.testing.assert_array_equal(layer.conv.kernel, expected)
        for part, variable in (
            ("weight", layer.norm.gamma),
            ("bias", layer.norm.beta),
            ("running_mean", layer.norm.moving_mean),
            ("running_var", layer.norm.moving_variance),
        ):
            np.testing.assert_array_equal(variable, tensors[f"{norm}.{part}"])


def test_with_context_modules_inside(tmp_path):
    """The tensors go where they go without them, and what these have of their own stays."""
    plain = ResNet(18, filters=4)
    tensors = checkpoint(plain, "torchvision")
    weights_lib.load(plain, tensors, "file")
    path = tmp_path / "weights.npz"
    np.savez(path, **tensors)
    modules = {"c3": "isa", "c4": {"name": "nonlocal", "sub_sample": "before"}}
    hooked = ResNet(18, filters=4, recompute=True, context_at=modules, weights=path)
    x = np.random.default_rng(0).uniform(0, 255, (1, 33, 40, 3)).astype("float32")
    for level, expected in plain(x).items():
        np.testing.assert_array_equal(hooked(x)[level], expected)
    # A file that lacks something changes nothing, in the modules neither.
    inside = hooked.context_layers().values()
    own = sorted(v.path for module in inside for v in module.weights)
    before = hooked.get_weights()
    less = {name: t for name, t in tensors.items() if name != "layer3.1.bn2.weight"}
    with pytest.raises(ValueError, match=r"layer3\.1\.bn2\.weight, for .*, is missing"):
        weights_lib.load(hooked, less, "file")
    for now, then in zip(hooked.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert weights_lib.load(hooked, tensors, "file").kept == own


@pytest.mark.parametrize(
    ("style", "source"),
    [("torchvision", "torchvision"), ("openmmlab", "openmmlab"), ("timm-d", "timm")],
)
def test_a_file_becomes_a_backbone(style, source, tmp_path):
    reference = ResNet(18, filters=4, **STYLES[style])
    tensors = checkpoint(reference, style)
    path = tmp_path / "weights.npz"
    np.savez(path, **{f"backbone.{name}": t for name, t in tensors.items() if "fc" not in name})
    weights_lib.load(reference, tensors, path)
    model, found, report = from_checkpoint(path, backbone={"output_stride": 8})
    assert (found, report) == (source, ([], []))
    assert model.feature_strides["c5"] == 8
    for a, b in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    again = ResNet(18, filters=4, weights=path, **STYLES[style])
    for a, b in zip(again.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for arguments in ({"num_classes": 3}, {"coordinates": "half_pixel"}):
        with pytest.raises(ValueError, match=f"a backbone, of {source}, has no"):
            from_checkpoint(path, **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer2.0.bn1.bias": None}, r"layer2\.0\.bn1\.bias, for .*stage2_block1_conv1.*missing"),
        ({"layer4.1.conv2.weight": np.zeros((3, 3))}, r"of shape \(3, 3\) doesn't fit .*stage4"),
        ({"layer4.1.se.weight": np.zeros(3)}, r"no place for layer4\.1\.se\.weight"),
        ({"layer4.2.conv1.weight": np.zeros((32, 32, 3, 3))}, r"\(2, 2, 2, 3\) blocks"),
        ({"conv1.weight": None}, "no stem"),
        ({"conv1.weight": np.zeros((6, 3, 7, 7))}, r"a stem of \(6,\) filters"),
    ],
)
def test_all_or_nothing(change, message):
    model = ResNet(18, filters=4)
    before = model.get_weights()
    tensors = {**checkpoint(model, "torchvision"), **change}
    tensors = {name: t for name, t in tensors.items() if t is not None}
    with pytest.raises(ValueError, match=message):
        weights_lib.load(model, tensors, "file.pth")
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("length", [1, 3])
def test_bias_of_a_convolution_before_a_norm(length):
    model = ResNet(18, filters=4)
    tensors = checkpoint(model, "torchvision")
    bias = np.linspace(1, 2, 4).astype("float32")
    weights_lib.load(model, {**tensors, "conv1.bias": bias}, "file.pth")
    np.testing.assert_array_equal(
        model.get_layer("stem_conv1").norm.moving_mean, tensors["bn1.running_mean"] - bias
    )
    with pytest.raises(ValueError, match=rf"conv1\.bias of shape \({length},\) doesn't fit .*stem"):
        weights_lib.load(model, {**tensors, "conv1.bias": bias[:length]}, "file.pth")


RESNETS = [entry.name for entry in published.list_published(*weights_lib.SOURCES)]


@pytest.mark.parametrize("name", RESNETS)
def test_published_weights_fit_the_network_they_are_listed_for(name, tmp_path, monkeypatch):
    entry = published.PUBLISHED[name]
    network = entry.network
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    asked = []

    def get_file(file_name, url, **arguments):
        asked.append((file_name, url))
        raise OSError("offline")

    monkeypatch.setattr(cache.keras.utils, "get_file", get_file)
    model = types.SimpleNamespace(**network, filters=64)  # all that is asked of one
    with pytest.raises(OSError, match=f"put the file at .*{entry.file_name} by hand"):
        weights_lib.find(model, name)
    ((file_name, url),) = asked
    assert file_name.endswith(entry.file_name) and url == entry.url
    assert f"resnet{network['depth']}" in file_name
    assert file_name.rsplit(".", 1)[1] in ("pth", "safetensors")
    # The name that "imagenet" stands for is the first that fits.
    first = next(e for e in published.list_published() if e.network == network)
    assert name == first.name or name.startswith("timm/")
    with pytest.raises(OSError, match="cannot fetch"):
        weights_lib.find(model, "imagenet")
    assert asked[-1][1] == first.url
    assert not list((tmp_path / "isa_tf").iterdir())


def test_another_network():
    tensors = checkpoint(ResNet(18, filters=4), "torchvision")
    for model, message in (
        (ResNet(34, filters=4), "a ResNet with depth 18; resnet34 has 34"),
        (ResNet(18, stem="v1c", filters=4), "with stem 'v1'; resnet18 has 'v1c'"),
    ):
        with pytest.raises(ValueError, match=message):
            weights_lib.load(model, tensors, "file.pth")
    with pytest.raises(ValueError, match="names of its tensors .*no source that is known"):
        find_source({"blocks.0.attn.qkv.weight": np.zeros((3, 3))}, "file.pth")
