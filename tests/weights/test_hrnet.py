"""HRNets from the checkpoints of others: every tensor in its place, or an error."""

import types

import numpy as np
import pytest

from isa_tf.backbones import HRNet
from isa_tf.models import from_checkpoint
from isa_tf.weights import cache, published
from isa_tf.weights import hrnet as weights_lib

TINY = {"modules": (1, 2, 1), "blocks": 2, "filters": 3}


def shapes():
    """The tensors of `HRNet(2, **TINY)` by the names of its authors, written down for the test."""
    found = {}

    def conv(name, inputs, outputs, kernel, norm=None):
        place, _, last = name.rpartition(".")
        norm = norm or f"{place}.{int(last) + 1}"
        found[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"{norm}.{part}"] = (outputs,)

    conv("conv1", 3, 3, 3, "bn1")
    conv("conv2", 3, 3, 3, "bn2")
    for b, inputs in enumerate((3, 12)):
        conv(f"layer1.{b}.conv1", inputs, 3, 1, f"layer1.{b}.bn1")
        conv(f"layer1.{b}.conv2", 3, 3, 3, f"layer1.{b}.bn2")
        conv(f"layer1.{b}.conv3", 3, 12, 1, f"layer1.{b}.bn3")
    conv("layer1.0.downsample.0", 3, 12, 1)
    conv("transition1.0.0", 12, 2, 3)
    conv("transition1.1.0.0", 12, 4, 3)
    conv("transition2.2.0.0", 4, 8, 3)
    conv("transition3.3.0.0", 8, 16, 3)
    for stage, modules in ((2, 1), (3, 2), (4, 1)):
        for m in range(modules):
            place = f"stage{stage}.{m}"
            for i in range(stage):
                width = 2 << i
                for b in range(2):
                    block = f"{place}.branches.{i}.{b}"
                    for c in (1, 2):
                        conv(f"{block}.conv{c}", width, width, 3, f"{block}.bn{c}")
                for j in range(stage):
                    fuse = f"{place}.fuse_layers.{i}.{j}"
                    if j > i:
                        conv(f"{fuse}.0", 2 << j, width, 1)
                    for k in range(i - j):
                        conv(f"{fuse}.{k}.0", 2 << j, width if k == i - j - 1 else 2 << j, 3)
    return found


@pytest.fixture(scope="module")
def tensors():
    rng = np.random.default_rng(0)
    return {name: rng.uniform(0.1, 1, shape).astype("float32") for name, shape in shapes().items()}


@pytest.fixture(scope="module")
def model():
    return HRNet(2, **TINY)


CLASSIFIER = {name: np.zeros(2, "float32") for name in ("classifier.bias", "final_layer.1.bias")}


def test_every_tensor_has_its_place(tensors, tmp_path):
    path = tmp_path / "hrnet.npz"
    np.savez(path, **tensors, **CLASSIFIER)
    model, source, report = from_checkpoint(path, backbone={"coordinates": "align_corners"})
    assert source == "hrnet" and report == (sorted(CLASSIFIER), [])
    assert isinstance(model, HRNet) and model.coordinates == "align_corners"
    assert (model.width, model.modules, model.blocks, model.filters) == (2, (1, 2, 1), 2, 3)
    taken = set()
    for layer in weights_lib.conv_layers(model):
        conv, norm = weights_lib.names_of(layer.name)
        expected = np.moveaxis(tensors[f"{conv}.weight"], (0, 1), (3, 2))
        np.testing.assert_array_equal(layer.conv.kernel, expected)
        np.testing.assert_array_equal(layer.norm.moving_variance, tensors[f"{norm}.running_var"])
        taken |= {conv, norm}
    assert taken == {name.rpartition(".")[0] for name in tensors}
    with pytest.raises(ValueError, match="a backbone, of hrnet, has no num_classes"):
        from_checkpoint(path, num_classes=3)


@pytest.mark.parametrize("prefix", ["backbone.", "module.backbone."])
def test_of_a_segmenter(prefix, tensors, model):
    named = {f"{prefix}{name}": t for name, t in tensors.items()} | {"head.weight": np.zeros(2)}
    assert weights_lib.find_source(named) == "hrnet"
    assert weights_lib.load(model, named, "file.pth") == ([], [])
    stem = model.get_layer("stem_conv1").conv.kernel
    np.testing.assert_array_equal(stem, np.moveaxis(tensors["conv1.weight"], (0, 1), (3, 2)))


def test_with_a_context_module_inside(tensors, model):
    """The tensors go where they go without it, and what it has of its own stays."""
    hooked = HRNet(2, **TINY, context_at={"c3": "isa"})
    (module,) = hooked.context_layers().values()
    before = module.get_weights()
    report = weights_lib.load(hooked, tensors, "file.pth")
    assert report == ([], sorted(v.path for v in module.weights))
    weights_lib.load(model, tensors, "file.pth")
    for layer in model.layers:
        for ours, theirs in zip(
            hooked.get_layer(layer.name).get_weights(), layer.get_weights(), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
    for now, then in zip(module.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage3.1.fuse_layers.2.0.0.1.bias": None}, r"fuse_layers\.2\.0\.0\.1\.bias, for .* mis"),
        ({"transition3.3.0.0.weight": np.zeros((3, 3))}, r"\(3, 3\) doesn't fit .*transition3_bra"),
        ({"stage4.0.gate.weight": np.zeros(3)}, r"no place for stage4\.0\.gate\.weight"),
        ({"stage4.0.branches.3.2.conv1.weight": np.zeros(3)}, r"and \[2, 3\] blocks in their br"),
        ({"stage2.0.branches.0.0.conv1.weight": None}, r"no weights of an HRNetV2.*is missing"),
        ({"stage3.2.branches.0.0.conv1.weight": np.zeros(3)}, r"and \[1, 2\] blocks"),
    ],
)
def test_all_or_nothing(change, message, tensors, model):
    before = model.get_weights()
    changed = {name: t for name, t in {**tensors, **change}.items() if t is not None}
    with pytest.raises(ValueError, match=message):
        weights_lib.load(model, changed, "file.pth")
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_network(tensors, model):
    other = types.SimpleNamespace(name="mine", **{**TINY, "width": 4})
    with pytest.raises(ValueError, match="an HRNet with width 2; mine has 4"):
        weights_lib.load(other, tensors, "file.pth")
    with pytest.raises(ValueError, match='did you mean "open-mmlab://msra/hrnetv2_w18"'):
        HRNet(2, **TINY, weights="open-mmlab://msra/hrnet_w18")
    with pytest.raises(ValueError, match=r"none are known for hrnet_w2 \(width 2, modules"):
        HRNet(2, **TINY, weights="imagenet")


PUBLISHED = [entry.name for entry in published.list_published("hrnet")]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_are_asked_for_by_name(name, tmp_path, monkeypatch):
    entry = published.PUBLISHED[name]
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    asked = []

    def get_file(file_name, url, **arguments):
        asked.append(url)
        raise OSError("offline")

    monkeypatch.setattr(cache.keras.utils, "get_file", get_file)
    usual = types.SimpleNamespace(modules=(1, 4, 3), blocks=4, filters=64, **entry.network)
    for weights in (name, "imagenet"):
        with pytest.raises(OSError, match="put the file at .*hrnet.* by hand"):
            weights_lib.find(usual, weights)
    assert asked[0] == entry.url and f"_w{entry.network['width']}" in entry.url
    # "imagenet" stands for those whose sum is known.
    assert asked[1].startswith("https://download.openmmlab.com/") and name.startswith(
        ("timm/", "open-mmlab://msra/hrnetv2_w")
    )
    assert not list((tmp_path / "isa_tf").iterdir())
