"""Published models by name: fetched from a server in the test, checked, converted once."""

import dataclasses
import functools
import hashlib
import http.server
import threading

import keras
import numpy as np
import pytest
from golden import MASK_RCNN, MASK_RCNN_FEW, checkpoint_arrays

import isa_tf
from isa_tf.backbones import ResNet
from isa_tf.cost import count_flops
from isa_tf.models import ISANet, MaskRCNN, Segmenter, convert, from_preset, list_presets, presets

NAME = "isanet_r50-d8_4xb2-80k_cityscapes-769x769"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """A web server over a folder: (folder, address, list of requests)."""
    folder, requests = tmp_path / "published", []
    folder.mkdir()

    class Handler(Quiet):
        def do_GET(self):
            requests.append(self.path)
            super().do_GET()

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}", requests
        running.shutdown()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "isa_tf"


def publish(server, monkeypatch, content=None, digits=None, name=NAME):
    """Puts a file on the server and changes the preset's address to it."""
    folder, address, _ = server
    path = folder / "content"
    if content is None:
        with open(path, "wb") as file:
            np.savez(file, **checkpoint_arrays())
        content = path.read_bytes()
    digits = digits or hashlib.sha256(content).hexdigest()[:8]
    (folder / f"isanet_made_here-{digits}.pth").write_bytes(content)
    url = f"{address}/isanet_made_here-{digits}.pth"
    known = {"address": url, "file_name": url.rsplit("/", 1)[1], "sha256": digits}
    changed = [
        dataclasses.replace(p, **known) if p.name == name else p for p in presets.list_presets()
    ]
    monkeypatch.setattr(presets, "_PRESETS", changed)
    # The golden model has 5 classes.
    monkeypatch.setitem(presets._LABELS, "Cityscapes", small_labels())
    return url


def small_labels():
    labels = presets._LABELS["Cityscapes"]
    return labels._replace(class_names=labels.class_names[:5], palette=labels.palette[:5])


def test_fetched_converted_and_kept(server, monkeypatch, home, capsys):
    url = publish(server, monkeypatch)
    model = from_preset(NAME)
    assert isinstance(model, Segmenter)
    assert model.class_names[0] == "road" and model.palette[0] == (128, 64, 128)
    assert model.coordinates == "align_corners" and not model.context.attentions[0].mask_padding
    assert model.protocol["mode"] == "slide" and model.protocol["fit_size"] == (2049, 1025)
    assert "Downloading" in capsys.readouterr().out
    file = home / url.rsplit("/", 1)[1]
    converted = home / f"{file.stem}.{isa_tf.__version__}.float32.keras"
    assert sorted(home.iterdir()) == sorted([file, converted])

    # The converted file is all that is needed from now on.
    file.unlink()
    again = from_preset(NAME)
    assert len(server[2]) == 1 and not file.exists()
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.class_names == model.class_names
    assert keras.models.load_model(converted).coordinates == "align_corners"


def test_other_classes(server, monkeypatch, home):
    publish(server, monkeypatch)
    model = from_preset(NAME, num_classes=3, dropout=0.5)
    assert model.num_classes == 3 and model.class_names is None and model.dropout == 0.5
    published = from_preset(NAME)
    head = [m.get_layer("head").get_weights() for m in (model, published)]
    for a, b in zip(*head, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(server[2]) == 1


def test_by_its_class_and_version(server, monkeypatch):
    publish(server, monkeypatch)
    model = Segmenter.from_preset(f"{NAME}/1")
    assert model.class_names[0] == "road"
    backbone = ResNet.from_preset(NAME, last_level="c2")
    conv = "stage1_block1_conv1"
    weights = (m.get_layer(conv).get_weights() for m in (backbone, model.backbone))
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)
    bare = from_preset(NAME, load_weights=False)
    kernels = [np.asarray(m.get_layer("head").conv.kernel) for m in (bare, model)]
    assert kernels[0].shape == kernels[1].shape and np.any(kernels[0] != kernels[1])
    assert len(server[2]) == 1
    with pytest.raises(ValueError, match=f"preset '{NAME}' has no version 2; there is 1"):
        from_preset(f"{NAME}/2")
    with pytest.raises(ValueError, match="a preset of Segmenter, not of MaskRCNN"):
        MaskRCNN.from_preset(NAME)


def test_nothing_is_kept_of_a_map_of_policies(server, monkeypatch, home):
    """Maps have names that do not tell them apart."""
    publish(server, monkeypatch)
    before = keras.config.dtype_policy()
    policies = keras.dtype_policies.DTypePolicyMap("float32", {"head": before})
    keras.config.set_dtype_policy(policies)
    try:
        from_preset(NAME)
    finally:
        keras.config.set_dtype_policy(before)
    assert not list(home.glob("*.keras"))


def test_a_file_carried_by_hand(home, monkeypatch, server):
    url = publish(server, monkeypatch)
    home.mkdir(parents=True)
    (server[0] / url.rsplit("/", 1)[1]).rename(home / url.rsplit("/", 1)[1])
    assert from_preset(NAME).num_classes == 5
    assert server[2] == []


def test_no_network(monkeypatch, server, home):
    url = publish(server, monkeypatch)
    (server[0] / url.rsplit("/", 1)[1]).unlink()
    with pytest.raises(OSError, match="cannot fetch http://127.*put the file at"):
        from_preset(NAME)
    assert not list(home.iterdir())


@pytest.mark.parametrize(
    ("content", "digits", "message"),
    [
        (b"<!DOCTYPE html><p>moved", None, r"a web page \(HTML\)"),
        (b"PK\x03\x04 and something else", "0123abcd", "sha256 begins with .* with 0123abcd"),
    ],
    ids=["html", "digits"],
)
def test_a_wrong_file(server, monkeypatch, home, content, digits, message):
    publish(server, monkeypatch, content, digits)
    with pytest.raises(ValueError, match=message):
        from_preset(NAME)
    assert not list(home.iterdir())


def test_a_published_file_that_cannot_be_read(server, monkeypatch, home):
    url = publish(server, monkeypatch, b"PK\x03\x04 and something else")
    with pytest.raises(ValueError, match="made_here.*pth"):
        from_preset(NAME)
    assert [path.name for path in home.iterdir()] == [url.rsplit("/", 1)[1]]


def test_what_is_kept_is_of_one_policy_and_version(server, monkeypatch, home):
    """A process that computes in bfloat16 leaves nothing that others would be given."""
    publish(server, monkeypatch)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        assert from_preset(NAME).get_layer("head").compute_dtype == "bfloat16"
    finally:
        keras.config.set_dtype_policy(before)
    for _ in range(2):  # converted, then kept
        assert from_preset(NAME).get_layer("head").compute_dtype == "float32"
    kept = sorted(path.name.split(".", 1)[1] for path in home.glob("*.keras"))
    version = isa_tf.__version__
    assert kept == [f"{version}.float32.keras", f"{version}.mixed_bfloat16.keras"]
    monkeypatch.setattr(presets, "__version__", "9.9")
    from_preset(NAME)
    assert len(list(home.glob("*.9.9.float32.keras"))) == 1
    assert len(server[2]) == 1


def test_names():
    listed = list_presets()
    names = [preset.name for preset in listed]
    assert len(set(names)) == len(names) >= 16
    for preset in listed:
        assert presets.find_preset(preset.stem) is preset
        assert len(preset.labels.class_names) == len(preset.labels.palette)
    with pytest.raises(
        ValueError, match="did you mean .*isanet_r50-d8_4xb2-80k_cityscapes-769x769"
    ):
        from_preset("isanet_r50-d8_4xb2-80k_cityscapes_769x769")


def test_mmseg_presets_are_those_of_its_metafile():
    """The table of the reference: number, scores and addresses follow its metafile's pattern."""
    listed = [preset for preset in list_presets() if preset.source == "mmseg"]
    assert len(listed) == 16
    best = {(p.backbone, p.dataset, p.crop_size, p.schedule): p for p in listed}
    preset = best["R-101-D8", "Cityscapes", (769, 769), "80k"]
    assert (preset.miou, preset.miou_ms_flip) == (80.61, 81.59)
    assert preset.sha256 == "24f71dfa"
    assert preset.url == (
        "https://download.openmmlab.com/mmsegmentation/v0.5/isanet/"
        "isanet_r101-d8_769x769_80k_cityscapes/"
        "isanet_r101-d8_769x769_80k_cityscapes_20210903_111319-24f71dfa.pth"
    )
    assert sum(p.arguments.get("coordinates") == "align_corners" for p in listed) == 4


def test_coco_from_torchvisions_labels(monkeypatch):
    """Of 90 labels the 80 that stand for something are kept, each with what is its own."""
    preset = presets.find_preset("maskrcnn_resnet50_fpn")
    assert preset.arguments == {"backbone": {"epsilon": 0.0}}
    arrays, rng = checkpoint_arrays(MASK_RCNN), np.random.default_rng(0)
    for layer, rows in (("cls_score", 91), ("bbox_pred", 364)):
        for part, shape in (("weight", (rows, 16)), ("bias", (rows,))):
            name = f"roi_heads.box_predictor.{layer}.{part}"
            arrays[name] = rng.normal(size=shape).astype("float32")
    for part, shape in (("weight", (91, 8, 1, 1)), ("bias", (91,))):
        name = f"roi_heads.mask_predictor.mask_fcn_logits.{part}"
        arrays[name] = rng.normal(size=shape).astype("float32")
    monkeypatch.setattr(convert, "read_checkpoint", lambda path: arrays)
    model = presets.convert_published(preset, "file.pth", **MASK_RCNN_FEW).model
    assert (model.num_classes, model.class_names[11]) == (80, "stop sign")
    assert (model.category_ids[11], model.category_ids[-1]) == (13, 90)
    assert model.backbone.epsilon == 0 and model.protocol is None
    x = rng.normal(size=(3, 7, 7, 8)).astype("float32")
    logits, codes = model.get_layer("box_head")(x)
    whole = convert.from_checkpoint("file.pth", **MASK_RCNN_FEW).model
    all_logits, all_codes = whole.get_layer("box_head")(x)
    ids = np.array(model.category_ids)
    np.testing.assert_array_equal(logits, all_logits.numpy()[:, np.r_[0, ids]])
    all_codes = all_codes.numpy().reshape(3, 90, 4)[:, ids - 1]
    np.testing.assert_array_equal(codes, all_codes.reshape(3, -1))
    x = rng.normal(size=(1, 14, 14, 8)).astype("float32")
    masks = whole.get_layer("mask_head")(x).numpy()[..., ids - 1]
    np.testing.assert_array_equal(model.get_layer("mask_head")(x), masks)
    # For classes of one's own there is nothing to keep.
    other = presets.convert_published(preset, "file.pth", 3, **MASK_RCNN_FEW).model
    assert other.num_classes == 3 and other.category_ids is None


def test_presets_by_task():
    detectors = list_presets("instance_segmentation")
    assert len(detectors) == 9 and all(p.box_ap > p.mask_ap for p in detectors)
    assert all(p.parameters > 40 and p.gflops > 400 for p in detectors)
    assert len(list_presets()) == len(detectors) + len(list_presets("segmentation"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [NAME, "isanet_resnet50_os8_voc12aug_512x512_40k"])
def test_costs_are_those_of_the_network(name):
    preset = presets.find_preset(name)
    vd = {"shortcut": "vd", "contract_dilation": False} if preset.source == "paddleseg" else {}
    backbone = ResNet(preset.depth, 8, stem="v1c", **vd)
    model = ISANet(
        backbone, len(preset.labels.class_names), context_options={"mask_padding": False}
    )
    trained = sum(np.prod(v.shape) for v in model.trainable_weights)
    assert preset.parameters == round(trained / 1e6, 1)
    assert preset.gflops == round(count_flops(model, preset.crop_size) / 1e9)
