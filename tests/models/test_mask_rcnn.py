"""Mask R-CNN: what it promises of shapes, configs, padding, contexts, devices and training."""

import detecting
import keras
import numpy as np
import pytest
import tensorflow as tf
from detecting import batch, images, narrow

from isa_tf import backbones, layers, training
from isa_tf.inference.fuse import FusedModel, _graph_twin
from isa_tf.layers.twin import TwinOptions
from isa_tf.models import MaskRCNN

CONTEXTS = ("nonlocal", "isa", "self_attention", "rcca")


@pytest.fixture(scope="module")
def model():
    return narrow("isa")


def assert_equal(found, expected, tolerance=0.0):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=tolerance, err_msg=name)


def test_outputs(model):
    found = model(images())
    count = detecting.NARROW["max_detections"]
    shapes = {name: (tuple(v.shape), v.dtype.name) for name, v in found.items()}
    assert shapes == {
        "boxes": ((2, count, 4), "float32"),
        "scores": ((2, count), "float32"),
        "classes": ((2, count), "int32"),
        "valid": ((2, count), "bool"),
        "masks": ((2, count, 28, 28), "float32"),
    }
    assert found["valid"].numpy().any() and len(np.unique(found["classes"])) > 1
    scores = found["scores"].numpy()
    assert (np.diff(scores) <= 0).all() and (scores[found["valid"]] > 0.05).all()
    boxes = found["boxes"].numpy()[found["valid"]]
    assert (boxes >= 0).all() and (boxes <= [128, 96, 128, 96]).all()
    masks = found["masks"].numpy()[found["valid"]]
    assert (masks > 0).all() and (masks < 1).all() and masks.std() > 0.01


def test_images_alone_are_not_padded(model):
    x = images()
    whole = {"image": x, "size": np.int32([[96, 128]] * 2)}
    assert_equal(model(x), model(whole))
    assert_equal(model.predict(x, verbose=0), model.predict(whole, verbose=0))


def test_padding_changes_nothing_whatever_its_color(model):
    x, _ = batch()
    found = model(x)
    painted = x["image"].numpy()
    painted[1, 86:], painted[1, :, 108:] = 255, 0
    assert_equal(model({**x, "image": tf.constant(painted)}), found)
    size = found["boxes"].numpy()[1][found["valid"][1]]
    assert size[:, 2].max() <= 108 and size[:, 3].max() <= 86


def test_one_graph_for_all_sizes(model):
    spec = {
        "image": tf.TensorSpec((None, None, None, 3)),
        "size": tf.TensorSpec((None, 2), "int32"),
    }
    graph = tf.function(lambda x: model(x), input_signature=[spec])
    for size in ((96, 128), (64, 64), (75, 101)):  # the last is no multiple of any stride
        x = images(1, size)
        found = graph({"image": x, "size": tf.constant([size])})
        assert_equal(found, model(x), 1e-3)


@pytest.mark.some(2)
@pytest.mark.parametrize("context", CONTEXTS)
def test_a_fresh_context_changes_no_bit(context):
    options = {"partition": 4} if context == "isa" else {}
    with_context = narrow({"name": context, **options})
    plain = narrow()
    inside = with_context.backbone.context_layers()["c4"]
    assert inside.weights
    for layer in plain.backbone.layers:
        with_context.backbone.get_layer(layer.name).set_weights(layer.get_weights())
    for name in ("pyramid", "rpn_head", "box_head", "mask_head"):
        with_context.get_layer(name).set_weights(plain.get_layer(name).get_weights())
    assert_equal(with_context(images()), plain(images()))


def test_config_and_file(model, tmp_path):
    model.compile(keras.optimizers.SGD(0.01))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.compiled and [m.name for m in loaded.loss_parts] == [
        m.name for m in model.loss_parts
    ]
    assert_equal(loaded(images()), model(images()))
    names = {"class_names": ["a", "b", "c"], "category_ids": [1, 5, 9], "palette": [(1, 2, 3)] * 3}
    told = MaskRCNN(model.backbone, **detecting.NARROW, **names, protocol={"short_side": 64})
    again = MaskRCNN.from_config(told.get_config())
    assert again.get_config() == told.get_config()
    assert again.category_ids == (1, 5, 9) and again.protocol == {"short_side": 64}


def test_twin_for_inference(model):
    found = model(images())
    graph = _graph_twin(model, TwinOptions(minimal_filtering=4))
    twin = FusedModel(graph.input, graph.output)
    assert not any(isinstance(layer, layers.ConvNormAct) for layer in twin._flatten_layers())
    x = {"image": images(), "size": np.int32([[96, 128]] * 2)}
    assert_equal(twin(x), found, 5e-3)


def losses_of(model, x, y):
    seen = model._run_trunk(x, training=False)
    return model.compute_losses(x, y, seen, training=False)


def test_losses_compiled_equal_eager(model):
    x, y = batch()
    eager = losses_of(model, x, y)
    assert all(float(value) > 1e-3 for value in eager.values())
    compiled = tf.function(losses_of, jit_compile=True)(model, x, y)
    for name, value in eager.items():
        np.testing.assert_allclose(compiled[name], value, rtol=1e-5, err_msg=name)


def test_empty_and_crowded_images_have_finite_losses(model):
    x, y = batch()
    for name, value in (("valid", False), ("crowd", True)):
        told = {**y, name: tf.fill(y[name].shape, value)}
        found = losses_of(model, x, told)
        assert all(np.isfinite(value) for value in found.values())
        assert float(found["mask"]) == float(found["box"]) == 0.0
    # Padding's numbers do not matter.
    odd = {n: tf.where(y["valid"][..., None], v, 7) if n == "boxes" else v for n, v in y.items()}
    for name, value in losses_of(model, x, y).items():
        np.testing.assert_allclose(losses_of(model, x, odd)[name], value, rtol=1e-6)


@pytest.mark.slow
def test_a_loop_of_ones_own_needs_no_compile():
    model, (x, y) = narrow(), batch()
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x, training=True))
    gradients = tape.gradient(loss, model.trainable_variables)
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in gradients if g is not None)
    model.compile(keras.optimizers.SGD(0.01))
    assert [metric.name for metric in model.metrics][:1] == ["loss"]
    assert {metric.name for metric in model.metrics} >= {"rpn_box", "box_class", "mask"}


@pytest.mark.slow
def test_frozen_parts_do_not_learn():
    model = narrow("isa", seed=2)
    config = {**model.get_config(), "freeze_at": "c2", "freeze_norm": True}
    model = MaskRCNN.from_config(config)
    model.compile(keras.optimizers.SGD(1e-3))
    before = {v.path: v.numpy() for v in model.backbone.variables}
    model.train_on_batch(*batch())
    changed = {v.path for v in model.backbone.variables if np.any(v.numpy() != before[v.path])}
    assert changed
    learning = ("conv/kernel", "stage3_context")
    for path in before:
        early = "stem" in path or "stage1" in path
        is_context = "stage3_context" in path
        if early or (not is_context and "/norm/" in path):
            assert path not in changed, path
        elif learning[0] in path and not is_context:
            assert path in changed, path
    # The branch begins at zero: what reads it out learns first.
    assert any("stage3_context" in path for path in changed)


def test_a_frozen_model_comes_back_frozen():
    """Else the statistics of its normalisations would move in training."""
    model = narrow(normalized_heads=True)
    model.trainable = False
    for again in (MaskRCNN.from_config(model.get_config()), narrow(trainable=False)):
        layers_of = again._flatten_layers(include_self=False)
        assert not [layer.path for layer in layers_of if layer.trainable and layer.weights]
        again.trainable = True
        assert again.trainable_variables


@pytest.mark.slow
def test_it_learns():
    model = narrow("isa", seed=1, score_threshold=0.3)
    model.compile(keras.optimizers.Adam(2e-3))
    x, y = batch()
    data = tf.data.Dataset.from_tensors((x, y)).repeat()
    history = model.fit(data, steps_per_epoch=15, epochs=2, shuffle=False, verbose=0).history
    assert set(history) == {"loss", "rpn_objectness", "rpn_box", "box_class", "box", "mask"}
    parts = sum(history[name][-1] for name in history if name != "loss")
    np.testing.assert_allclose(history["loss"][-1], parts, rtol=1e-4)
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    scores = model.evaluate(data.take(1), verbose=0, return_dict=True)
    assert set(scores) == set(history) and np.isfinite(list(scores.values())).all()


@pytest.mark.slow
def test_two_replicas_train_as_one(mirrored):
    def train(strategy):
        with strategy.scope():
            model = narrow("isa", seed=3, synchronized=True, backbone={"synchronized": True})
            model.compile(training.make_optimizer("sgd", 1e-3, 10))
        training.replicas.prepare(model)
        x, y = batch(4)
        whole = tf.data.Dataset.from_tensor_slices((x, y))

        def make(context):
            replicas = 1 if context is None else context.num_replicas_in_sync
            return whole.repeat().batch(4 // replicas, drop_remainder=True)

        data = training.replicas.distribute(strategy, make)
        history = model.fit(data, steps_per_epoch=1, verbose=0, shuffle=False).history
        return history, [training.replicas.read_variable(v) for v in model.weights]

    one, weights = train(tf.distribute.get_strategy())
    two, others = train(mirrored)
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-5, err_msg=name)
    for a, b in zip(weights, others, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-4)


def test_mixed_precision():
    model = narrow(backbone={"dtype": "mixed_bfloat16"}, dtype="mixed_bfloat16")
    found = model(images())
    assert {found[name].dtype.name for name in ("boxes", "scores", "masks")} == {"float32"}
    model.compile(keras.optimizers.SGD(1e-3))
    logs = model.train_on_batch(*batch(), return_dict=True)
    assert np.isfinite(list(logs.values())).all()


def test_what_is_wrong_is_told():
    backbone = backbones.create("resnet18", filters=4)
    with pytest.raises(ValueError, match="class_names has 2 entries for 3 classes"):
        MaskRCNN(backbone, 3, class_names=["a", "b"])
    with pytest.raises(ValueError, match="a pyramid is made of maps of strides"):
        MaskRCNN(backbones.create("tiny"), 3)
    with pytest.raises(ValueError, match="a pyramid is made of maps of strides"):
        MaskRCNN(backbones.create("resnet18", output_stride=8), 3)
    with pytest.raises(ValueError, match="has no map 'c7'"):
        MaskRCNN(backbone, 3, freeze_at="c7")
    with pytest.raises(ValueError, match="anchor_sizes must be five"):
        MaskRCNN(backbone, 3, anchor_sizes=(32, 64))
    with pytest.raises(ValueError, match="rpn_samples must be at least 2, .* got 1"):
        MaskRCNN(backbone, 3, rpn_samples=1)
    with pytest.raises(ValueError, match="box_samples must be at least 4, .* got 3"):
        MaskRCNN(backbone, 3, box_samples=3)
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        MaskRCNN(backbone, 0)
    x, y = batch()
    model = narrow()
    with pytest.raises(ValueError, match="cannot weigh"):
        model.compute_loss(x, y, model(x, training=True), sample_weight=tf.ones(2))
    model.compile("sgd", run_eagerly=True)
    with pytest.raises(ValueError, match="cannot weigh"):
        model.test_on_batch(x, y, tf.ones(2))
