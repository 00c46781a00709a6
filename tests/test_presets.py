"""Presets: folders and names, versions, what is refused, and that nothing is half written."""

import json
import shutil

import keras
import numpy as np
import pytest

import isa_tf
from isa_tf import backbones, presets
from isa_tf.backbones import Backbone, ResNet, TinyNet
from isa_tf.models import MaskRCNN, Segmenter, from_preset
from isa_tf.testing import randomize

NAMES = ("sky", "tree", "road")


def make(**arguments):
    keras.utils.set_random_seed(3)
    model = Segmenter(
        "tiny",
        "pointwise",
        head_filters=8,
        **{"num_classes": 3, "class_names": NAMES, **arguments},
    )
    randomize(model)
    return model


def same(found, expected):
    for a, b in zip(found.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    return True


@pytest.fixture(scope="module")
def model():
    return make(auxiliary_level="c1", auxiliary_filters=4, protocol={"flip": True})


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("presets") / "coast"
    model.compile("sgd", "mse")
    model.save_to_preset(folder)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """A copy of a segmenter's preset, to be damaged."""
    shutil.copytree(written, tmp_path / "coast")
    return tmp_path / "coast"


def test_a_folder(folder, model):
    assert sorted(path.name for path in folder.iterdir()) == sorted(presets.FILES)
    told = json.loads((folder / "metadata.json").read_text())
    assert told["isa_tf_version"] == isa_tf.__version__
    assert told["parameter_count"] == model.count_params()
    config = json.loads((folder / "config.json").read_text())
    assert config["registered_name"] == "isa_tf>Segmenter" and "compile_config" not in config
    for load in (Segmenter.from_preset, from_preset, presets.load):
        loaded = load(folder)
        assert type(loaded) is Segmenter and same(loaded, model) and not loaded.compiled
        assert loaded.class_names == NAMES and loaded.protocol == {"flip": True}
    fresh = Segmenter.from_preset(str(folder), load_weights=False)
    kernels = (m.get_layer("head").conv.kernel for m in (fresh, model))
    assert np.any(np.subtract(*map(np.asarray, kernels)))


def test_other_arguments(folder, model):
    loaded = Segmenter.from_preset(folder, dropout=0.3, dtype="mixed_bfloat16", synchronized=True)
    assert loaded.dropout == 0.3 and same(loaded, model)
    for part in (loaded.get_layer("head"), loaded.context.outer, loaded.backbone.layers[-1]):
        assert part.compute_dtype == "bfloat16" and part.synchronized
    without = Segmenter.from_preset(folder, auxiliary_level=None)
    assert same(without.get_layer("head"), model.get_layer("head"))
    inside = Segmenter.from_preset(folder, backbone={"name": "other"})
    assert inside.backbone.name == "other" and same(inside, model)
    mixed = Segmenter.from_preset(folder, dtype="mixed_bfloat16", backbone={"dtype": "float32"})
    found = (mixed.get_layer("head"), mixed.backbone.get_layer("conv1"))
    assert [layer.compute_dtype for layer in found] == ["bfloat16", "float32"]
    with pytest.raises(ValueError, match='unknown argument of Segmenter .*mean "dropout"'):
        Segmenter.from_preset(folder, droput=0.3)
    with pytest.raises(ValueError, match="weights do not fit .*head, "):
        Segmenter.from_preset(folder, head_filters=16)
    assert Segmenter.from_preset(folder, False, head_filters=16).head_filters == 16


def test_other_classes(folder, model):
    loaded = Segmenter.from_preset(folder, num_classes=5, class_names=list("abcde"))
    assert loaded.num_classes == 5 and loaded.class_names == tuple("abcde")
    for layer in loaded.layers:
        if not layer.name.endswith("_classifier"):
            assert same(layer, model.get_layer(layer.name))
    assert from_preset(folder, num_classes=3).class_names == NAMES  # the preset's own
    assert same(from_preset(folder, 3), model)
    with pytest.raises(ValueError, match="class_names has 2 entries for 5 classes"):
        from_preset(folder, 5, class_names=["a", "b"])


def test_a_backbone_of_a_trained_segmenter_goes_into_another(folder, model):
    backbone = Backbone.from_preset(folder)
    assert type(backbone) is TinyNet and same(backbone, model.backbone)
    other = Segmenter(backbone, "none", num_classes=9, head_filters=4)
    assert other(np.zeros((1, 16, 16, 3), "float32")).shape[-1] == 9
    part = TinyNet.from_preset(folder, last_level="c1", dtype="mixed_bfloat16")
    assert list(part.feature_strides) == ["c1"] and part.layers[-1].compute_dtype == "bfloat16"
    assert same(part.get_layer("conv1"), model.backbone.get_layer("conv1"))
    backbone.save_to_preset(folder.with_name("alone"))
    assert same(from_preset(folder.with_name("alone")), backbone)


def test_a_part_of_a_backbones_preset(tmp_path):
    whole = backbones.create("resnet18", filters=4)
    randomize(whole)
    whole.save_to_preset(tmp_path / "whole")
    part = ResNet.from_preset(tmp_path / "whole", last_level="c3", context_at={"c2": "isa"})
    assert list(part.feature_strides) == ["c1", "c2", "c3"]
    name = "stage2_block1_conv1"
    assert same(part.get_layer(name), whole.get_layer(name))


def test_a_network_of_keras_keeps_its_precision(tmp_path):
    backbones.create("keras:MobileNetV2", alpha=0.35, last_level="c1").save_to_preset(
        tmp_path / "k"
    )
    with pytest.raises(ValueError, match="a network of Keras's keeps the dtype that it was saved"):
        Backbone.from_preset(tmp_path / "k", dtype="mixed_bfloat16")


@pytest.mark.slow
def test_a_detector(tmp_path):
    backbone = backbones.create("resnet18", filters=4)
    model = MaskRCNN(backbone, 3, filters=8, box_units=(8,), mask_convs=1, category_ids=(7, 8, 9))
    randomize(model)
    model.save_to_preset(tmp_path / "kept")
    assert same(ResNet.from_preset(tmp_path / "kept"), model.backbone)
    kept = {"max_detections": 4, "num_classes": 5, "category_ids": range(5)}
    other = MaskRCNN.from_preset(tmp_path / "kept", **kept)
    assert other.max_detections == 4 and other.anchor_sizes == model.anchor_sizes
    assert other.category_ids == (0, 1, 2, 3, 4)
    assert other.get_layer("box_head").output_shape == [(None, 6), (None, 20)]
    assert other.get_layer("mask_head").output_shape[-1] == 5
    for head, layer in (("box_head", "dense1"), ("mask_head", "upsample")):
        assert same(other.get_layer(head).get_layer(layer), model.get_layer(head).get_layer(layer))
    assert same(other.get_layer("rpn_head"), model.get_layer("rpn_head"))


# === Versions and names ===


def test_versions_of_a_folder(tmp_path):
    for version, classes in ((9, 3), (10, 4)):
        make(num_classes=classes, class_names=None).save_to_preset(tmp_path / f"coast/{version}")
    folder = tmp_path / "coast"
    for handle, classes in ((folder, 4), (f"{folder}/9", 3)):
        assert Segmenter.from_preset(handle).num_classes == classes
    for handle in (folder / "2", f"{folder}/2"):
        with pytest.raises(ValueError, match="coast: a preset has no version 2; there is 9, 10"):
            from_preset(handle)
    with pytest.raises(ValueError, match="versions inside; the next is .*11; nothing was written"):
        make().save_to_preset(folder)


def test_names_with_versions(folder, tmp_path, model):
    make(num_classes=7, class_names=None).save_to_preset(tmp_path / "second")
    presets.register("coast", folder)
    presets.register("coast", tmp_path / "second", 2, told="of two summers")
    for handle, classes in (("coast", 7), ("coast/2", 7), ("coast/1", 3)):
        assert from_preset(handle).num_classes == classes
    assert Segmenter.presets["coast"] == "of two summers" and "coast" not in Backbone.presets
    assert "coast" in presets.list_names() and "coast" not in MaskRCNN.presets
    assert same(TinyNet.from_preset("coast/1"), model.backbone)
    with pytest.raises(ValueError, match="preset 'coast' has no version 3; there is 1, 2"):
        from_preset("coast/3")
    with pytest.raises(ValueError, match="there is a preset 'coast/2' already"):
        presets.register("coast", make, 2, kind=Segmenter)
    for version in (0, True, "1"):
        with pytest.raises(ValueError, match="version of a preset is an int from 1 on"):
            presets.register("coast", folder, version)
    with pytest.raises(ValueError, match="registered with the kind that it makes"):
        presets.register("made", make)


def test_a_name_of_a_folder_of_versions(tmp_path):
    for version in (1, 2):
        TinyNet(output_stride=4 * version).save_to_preset(tmp_path / "lots" / str(version))
    presets.register("lots", tmp_path / "lots")
    presets.register("gone", tmp_path / "gone")
    assert presets.load("lots").output_stride == 8
    assert "lots" in presets.list_names(TinyNet) and "lots" not in presets.list_names(Segmenter)
    assert "gone" in presets.list_names() and "gone" not in presets.list_names(TinyNet)


def test_a_name_of_a_function():
    def made(load_weights, **arguments):
        return make(**arguments)

    presets.register("made", made, kind=Segmenter)
    assert Segmenter.from_preset("made/1", dropout=0.4).dropout == 0.4
    with pytest.raises(ValueError, match="made: a preset of Segmenter, not of MaskRCNN"):
        MaskRCNN.from_preset("made")


def test_published_backbones():
    names = presets.list_names(Backbone)
    assert {*backbones.list_weights()} < {*names}
    assert "timm/resnet50d.gluon_in1k" in ResNet.presets
    assert "timm/resnet50d.gluon_in1k" not in backbones.HRNet.presets
    bare = ResNet.from_preset("timm/resnet50d.gluon_in1k/1", False, filters=4, last_level="c2")
    assert (bare.depth, bare.shortcut, bare.name) == (50, "vd", "resnet50")
    made = Backbone.from_preset("efficientnet_lite0", last_level="c2")
    assert np.any(made.get_layer("stem").norm.moving_mean)  # which begins as zeros


def test_unknown_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match='unknown preset .*did you mean "isanet_r50.*nor is there such a folder'
    ):
        from_preset("isanet_r50-d8_4xb2-80k_cityscapes-769x768")
    with pytest.raises(ValueError, match="'efficientnet_lite0' has no version 4; there is 1"):
        from_preset("efficientnet_lite0/4")
    with pytest.raises(FileNotFoundError, match="nothing: no such folder"):
        from_preset(tmp_path / "nothing")
    # A name counts before a folder; a path is a folder in any case.
    make().backbone.save_to_preset("efficientnet_lite0")
    assert type(presets.load("./efficientnet_lite0")) is TinyNet
    assert isinstance(presets.find("efficientnet_lite0"), presets.Named)


# === What is refused ===


def damage(folder, name, **changes):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut_weights(folder):
    path = folder / "model.weights.h5"
    path.write_bytes(path.read_bytes()[:-100])


def change_weights(folder):
    path = folder / "model.weights.h5"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def become_sequential(folder):
    config = keras.saving.serialize_keras_object(keras.Sequential([keras.Input((2,))]))
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("harm", "error", "message"),
    [
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "no config.json; a preset has"),
        (lambda f: (f / "metadata.json").unlink(), FileNotFoundError, "no metadata.json"),
        (lambda f: (f / "model.weights.h5").unlink(), FileNotFoundError, "no model.weights.h5"),
        (lambda f: (f / "config.json").write_text('{"mod'), ValueError, "config.json: no JSON"),
        (lambda f: (f / "config.json").write_text("{}"), ValueError, "no config of a model"),
        (lambda f: (f / "metadata.json").write_text("[]"), ValueError, "metadata.json: no JSON"),
        (lambda f: (f / "metadata.json").write_text("{}"), ValueError, "no preset of isa_tf"),
        (lambda f: damage(f, "config.json", config={"name": 7}), ValueError, "cannot be made"),
        (become_sequential, ValueError, "no preset of isa_tf, but of Sequential"),
        (
            lambda f: damage(f, "metadata.json", format=2, isa_tf_version="9.1"),
            ValueError,
            "of format 2, written by isa_tf 9.1; this one, .*, reads formats up to 1",
        ),
        (
            lambda f: damage(f, "config.json", registered_name="x>No", class_name="No", module="x"),
            ValueError,
            "coast: No cannot be made",
        ),
        (cut_weights, ValueError, "not the file that was saved, or not the whole of it: .* for"),
        (change_weights, ValueError, "its bytes have another sum"),
    ],
)
def test_damaged_folders(folder, harm, error, message):
    harm(folder)
    before = sorted((path.name, path.read_bytes()) for path in folder.iterdir())
    with pytest.raises(error, match=message):
        Segmenter.from_preset(folder)
    assert sorted((path.name, path.read_bytes()) for path in folder.iterdir()) == before


def test_without_weights_those_are_not_asked_for(folder):
    (folder / "model.weights.h5").unlink()
    assert Segmenter.from_preset(folder, load_weights=False).num_classes == 3


def test_another_kind_of_model(folder, tmp_path, model):
    with pytest.raises(ValueError, match="a preset of Segmenter, not of MaskRCNN; .*from_preset"):
        MaskRCNN.from_preset(folder)
    with pytest.raises(ValueError, match="a preset of TinyNet, not of ResNet"):
        ResNet.from_preset(folder)
    model.backbone.save_to_preset(tmp_path / "alone")
    with pytest.raises(ValueError, match="a preset of TinyNet, not of Segmenter"):
        Segmenter.from_preset(tmp_path / "alone")
    with pytest.raises(ValueError, match="unknown argument of TinyNet 'num_classes'"):
        from_preset(tmp_path / "alone", num_classes=3)
    model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="model.keras: a file; isa_tf.models.load reads it"):
        from_preset(tmp_path / "model.keras")


# === Saving ===


class Unsaved(keras.layers.Layer):
    """A layer whose config lacks what it is made of."""

    def __init__(self, scale, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def call(self, inputs):
        return inputs * self.scale


def test_what_does_not_come_back_is_not_kept(folder, monkeypatch):
    before = sorted((path.name, path.read_bytes()) for path in folder.iterdir())
    broken = Segmenter("tiny", Unsaved(2.0), num_classes=2, head_filters=4)
    with pytest.raises(ValueError, match="cannot be loaded of what was written.*is as it was"):
        broken.save_to_preset(folder)
    rounded = make(class_names=None)
    write = rounded.save_weights

    def lossy(path):
        kernel = rounded.get_layer("head").conv.kernel
        kept = kernel.numpy()
        kernel.assign(kept.astype("float16"))
        write(path)
        kernel.assign(kept)

    monkeypatch.setattr(rounded, "save_weights", lossy)
    with pytest.raises(ValueError, match="comes back with other weights; what was there"):
        rounded.save_to_preset(folder)
    assert sorted((path.name, path.read_bytes()) for path in folder.iterdir()) == before
    assert [path.name for path in folder.parent.iterdir()] == ["coast"]


def test_where_a_preset_may_be_written(folder, tmp_path, model):
    other = make(num_classes=5, class_names=None)
    other.save_to_preset(folder)  # in place of the older one
    assert from_preset(folder).num_classes == 5
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("whole")
    with pytest.raises(ValueError, match=r"there is thesis.txt, .*nothing was written"):
        other.save_to_preset(tmp_path / "full")
    assert (tmp_path / "full/thesis.txt").read_text() == "whole"
    with pytest.raises(ValueError, match="there is a file; nothing was written"):
        other.save_to_preset(tmp_path / "full/thesis.txt")
    (tmp_path / "empty").mkdir()
    other.backbone.save_to_preset(tmp_path / "empty")
    with pytest.raises(ValueError, match="saved with its model, `head.segmenter`"):
        other.head().save_to_preset(tmp_path / "head")
    with pytest.raises(ValueError, match="not of Sequential; isa_tf.files.save_model keeps any"):
        presets.save(keras.Sequential([keras.layers.Dense(1)]), tmp_path / "dense")
    assert not (tmp_path / "head").exists() and not (tmp_path / "dense").exists()


def test_weights_that_are_not_numbers_come_back_too(tmp_path):
    model = backbones.create("tiny")
    model.get_layer("conv1").norm.beta.assign(np.full(16, np.nan))
    model.save_to_preset(tmp_path / "nan")
    assert np.isnan(TinyNet.from_preset(tmp_path / "nan").get_layer("conv1").norm.beta).all()
