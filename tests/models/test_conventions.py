"""What Keras users try: weights of classes and samples, `keras.distribution`, `summary`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from finding import make_detector

from isa_tf.losses import PixelCrossEntropy
from isa_tf.models import Segmenter
from isa_tf.testing.battery import Battery


def make(**arguments):
    keras.utils.set_random_seed(0)
    return Segmenter(
        "tiny", "pointwise", **{"num_classes": 3, "head_filters": 8, "dropout": 0.0, **arguments}
    )


def data(batch=4, size=16):
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (batch, size, size, 3)).astype("float32")
    labels = rng.integers(0, 3, (batch, size, size)).astype("uint8")
    labels[:, 0] = 255
    return images, labels


def costs(logits, labels):
    """The cross-entropy of each pixel, and whether it counts; NumPy."""
    logits = np.asarray(logits, "float64")
    logits -= logits.max(-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    valid = labels != 255
    chosen = np.take_along_axis(log_p, np.where(valid, labels, 0)[..., None].astype(int), -1)
    return -chosen[..., 0] * valid, valid


# === Weights ===


def test_class_weight_is_refused_and_the_loss_has_what_is_asked_for():
    model = make()
    images, labels = data()
    model.compile("sgd", PixelCrossEntropy(), jit_compile=False)
    given = {0: 1.0, 2: 5.0}
    named = r"class_weights, such as .*PixelCrossEntropy\(class_weights=\[1.0, 1.0, 5.0\]\)"
    with pytest.raises(ValueError, match=named):
        model.fit(images, labels, class_weight=given)
    dataset = tf.data.Dataset.from_tensors((images, labels))
    with pytest.raises(ValueError, match=named):
        model.fit(dataset, class_weight=given)
    with pytest.raises(ValueError, match=named):
        model.train_on_batch(images, labels, class_weight=given)
    many = dict.fromkeys(range(19), 2.0)
    with pytest.raises(ValueError, match=r"class_weights=\[...\]"):
        model.fit(images, labels, class_weight=many)
    detector = make_detector(False)
    detector.compile("sgd")
    with pytest.raises(ValueError, match="classes of instances cannot be weighed"):
        detector.fit(tf.zeros((1, 64, 64, 3)), class_weight=given)
    with pytest.raises(ValueError, match="classes of instances cannot be weighed"):
        detector.train_on_batch(tf.zeros((1, 64, 64, 3)), class_weight=given)

    # What the error names is the weighted mean.
    weights = np.array([1.0, 1.0, 5.0])
    model.compile("sgd", PixelCrossEntropy(class_weights=weights.tolist()), jit_compile=False)
    found = model.evaluate(images, labels, verbose=0)
    each, valid = costs(model(images), labels)
    of_pixels = weights[np.where(valid, labels, 0)] * valid
    np.testing.assert_allclose(found, (each * of_pixels).sum() / of_pixels.sum(), rtol=1e-5)


@pytest.mark.parametrize("shape", ["images", "pixels"])
def test_sample_weight_in_fit(shape):
    model = make()
    images, labels = data()
    rng = np.random.default_rng(1)
    weights = rng.uniform(0, 2, labels.shape[: 1 if shape == "images" else 3]).astype("float32")
    # So slow that the loss of the step is that of the model as it was.
    model.compile(keras.optimizers.SGD(1e-9), PixelCrossEntropy(), jit_compile=False)
    logits = model(images, training=True)
    fit = model.fit(images, labels, 4, sample_weight=weights, shuffle=False, verbose=0)
    each, valid = costs(logits, labels)
    of_pixels = weights[:, None, None] if shape == "images" else weights
    expected = (each * of_pixels).sum() / valid.sum()
    np.testing.assert_allclose(fit.history["loss"], [expected], rtol=1e-4)


# === keras.distribution ===


def test_keras_distribution_distributes_nothing_on_tensorflow():
    """As docs/keras.md says: Keras takes a distribution here, and goes on on one device."""
    mesh = keras.distribution.DeviceMesh((1, 2), ("batch", "model"), ["cpu:0", "cpu:1"])
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*kernel"] = (None, None, None, "model")
    images, labels = data()
    seen = []
    for distribution in (
        None,
        keras.distribution.DataParallel(devices=["cpu:0", "cpu:1"]),
        keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch"),
    ):
        keras.distribution.set_distribution(distribution)
        try:
            model = make()
            model.compile("sgd", PixelCrossEntropy(), jit_compile=False)
            fit = model.fit(images, labels, 4, shuffle=False, verbose=0)
        finally:
            keras.distribution.set_distribution(None)
        devices = {weight.value.device for weight in model.weights}
        seen.append((fit.history["loss"], devices))
    assert seen[0] == seen[1] == seen[2] and len(seen[0][1]) == 1


# === summary ===


def test_a_detectors_summary_tells_names_and_shapes():
    model = make_detector(False)
    battery = Battery()
    battery.subject = "detector"
    inside = [
        layer.name for head in ("rpn_head", "box_head") for layer in model.get_layer(head).layers
    ]
    battery.expect_summary(model, [*(layer.name for layer in model.layers), *inside])
    with pytest.raises(AssertionError, match="detector: its summary does not name nothing_such"):
        battery.expect_summary(model, ["nothing_such"])


def test_a_layer_without_a_shape_is_found():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2, name="told")(inputs))
    late = keras.Sequential([keras.layers.Dense(2, name="late")], name="outer")
    battery = Battery()
    battery.expect_summary(model, ["told"])
    with pytest.raises(AssertionError, match="tells no shape of"):
        battery.expect_summary(late, [])
