"""Sources of weights: those of others join by name."""

import types

import keras
import numpy as np
import pytest

from isa_tf.backbones import EfficientNetLite, ResNet
from isa_tf.layers import ConvNormAct
from isa_tf.models import from_checkpoint
from isa_tf.weights import CheckpointError, list_sources, register, sources
from isa_tf.weights.transfer import Report, conv_layers


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    """The package's own alone; what a test registers is gone after it."""
    own = {name: sources.SOURCES[name] for name in ("mmseg", "openseg", "paddleseg")}
    monkeypatch.setattr(sources.SOURCES, "_entries", own)


def mine(mark="mine.weight", **settings):
    """A source of narrow networks, whose files hold the classifier's kernel alone."""

    def arguments(tensors, path):
        return {
            "backbone": {"depth": 18, "filters": 4, "output_stride": 16},
            "context_options": {"key_filters": 4},
            "num_classes": tensors[mark].shape[-1],
            "head_filters": 8,
            "auxiliary_level": None,
        }

    def load(model, tensors, path, optional=()):
        layer = model.get_layer("logits_classifier")
        if optional:
            return Report([mark], [layer.kernel.path])
        layer.kernel.assign(tensors[mark])
        return Report([], [])

    return types.SimpleNamespace(
        is_source=lambda tensors: mark in tensors,
        arguments=arguments,
        load=load,
        SETTINGS=settings,
    )


def save(path, **tensors):
    np.savez(path, **tensors)
    return path


def test_a_source_of_ones_own(tmp_path):
    kernel = np.arange(24, dtype="float32").reshape(1, 1, 8, 3)
    path = save(tmp_path / "file.npz", **{"mine.weight": kernel})
    with pytest.raises(ValueError, match="those of no source that is known"):
        from_checkpoint(path)
    source = mine(
        coordinates="align_corners",
        context_options={"dropout": 0.25},
        backbone={"mean": (1.0, 2.0, 3.0)},
    )
    assert register("mine", source) is source
    assert list_sources() == ["mmseg", "openseg", "paddleseg", "mine"]

    model, found, report = from_checkpoint(path)
    assert (found, report) == ("mine", ([], []))
    np.testing.assert_array_equal(model.get_layer("logits_classifier").kernel, kernel)
    # What the tensors tell, and what the source adds to it, in one dict each.
    assert (model.backbone.filters, model.backbone.mean) == (4, (1, 2, 3))
    assert (model.context.key_filters, model.context.dropout) == (4, 0.25)
    assert model.coordinates == "align_corners" and not model.context.mask_padding

    # What is given adds to both once more.
    model, _, report = from_checkpoint(
        path,
        source="mine",
        num_classes=5,
        coordinates="half_pixel",
        context_options={"dropout": 0.5, "partition": 4, "mask_padding": True},
        backbone={"output_stride": 8},
    )
    assert model.num_classes == 5 and report.left_over == ["mine.weight"]
    assert model.coordinates == "half_pixel"
    context = model.context
    assert (context.key_filters, context.dropout, context.partitions) == (4, 0.5, [(4, 4)])
    assert context.mask_padding and model.backbone.mean == (1, 2, 3)
    assert model.backbone.output_stride == 8


def test_the_last_source_is_asked_first():
    register("one", mine())
    assert sources.find_source({"mine.weight": 0}) == "one"
    register("other", mine())
    assert sources.find_source({"mine.weight": 0}) == "other"
    assert sources.find_source({"nobodys.weight": 0}) is None
    with pytest.raises(ValueError, match="there is a source 'mmseg' already"):
        register("mmseg", mine())
    assert sources.SOURCES["mmseg"].__name__ == "isa_tf.weights.mmseg"


def test_a_source_of_ones_own_may_refuse(tmp_path):
    @register("strict")
    class Strict:
        SETTINGS = {}

        def is_source(tensors):
            return True

        def arguments(tensors, path):
            raise CheckpointError(path, "not today")

    path = save(tmp_path / "file.npz", a=np.zeros(3))
    with pytest.raises(CheckpointError, match=r"file\.npz: not today"):
        from_checkpoint(path)


# === Layers by their names ===


class Wrapper(keras.layers.Layer):
    """Holds layers, some of them twice, in another order than they run in."""

    def __init__(self, layers):
        super().__init__()
        self.held = layers[::-1]
        self.first = layers[0]

    def call(self, x):
        for layer in self.held[::-1]:
            x = layer(x)
        return x


def test_layers_within_layers():
    inputs = keras.Input((8, 8, 3))
    layers = [ConvNormAct(2, name=f"conv{i}") for i in range(4)]
    x = Wrapper(layers[1:3])(layers[0](inputs))
    x = layers[1](keras.layers.Conv2D(2, 1)(x))
    model = keras.Model(inputs, layers[3](x))
    found = conv_layers(model)
    assert {layer.name for layer in found} == {"conv0", "conv1", "conv2", "conv3"}
    assert len(found) == 4


@pytest.mark.parametrize("make", [lambda: ResNet(18, filters=4), lambda: EfficientNetLite(0)])
def test_the_order_of_layers_tells_nothing(make, monkeypatch):
    """A name map goes by names: EfficientNet's numbers of blocks too."""
    from isa_tf.weights import efficientnet_lite, resnet

    model = make()
    module = resnet if isinstance(model, ResNet) else efficientnet_lite
    asked = {}

    class Transfer(module.Transfer):
        def conv_norm(self, layer, conv, norm, **arguments):
            asked.setdefault(order, {})[layer.name] = (conv, norm)

        def finish(self, model, left_over):
            pass

    monkeypatch.setattr(module, "Transfer", Transfer)
    monkeypatch.setattr(resnet, "arguments", lambda *arguments: {})
    tensors = {"conv1.weight": np.zeros((4, 3, 7, 7))}
    for order in (1, -1):
        layers = conv_layers(model)[::order]
        monkeypatch.setattr(module, "conv_layers", lambda model, layers=layers: layers)
        module.load(model, tensors, "file.pth")
    assert asked[1] == asked[-1] and len(asked[1]) == len(layers)
