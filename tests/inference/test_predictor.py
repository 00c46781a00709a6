"""From images to class ids, by every protocol, and the confusion matrix."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from viewing import (
    bilinear,
    make_conv,
    make_model,
    photos,
    run_of,
    slide_reference,
    softmax,
)

from isa_tf import metrics
from isa_tf.data import SyntheticDataset, eval_pipeline
from isa_tf.inference import Predictor, Protocol, confusion_matrix, resize_image, view_logits

FLIP = Protocol(flip=True)
SLIDE = {"mode": "slide", "crop_size": (7, 9), "stride": (5, 4)}


def echo(images):
    """A stand-in for a model: the red channel is the class."""
    return images[..., 0], images[..., 1] / 255


# === Predictor ===


def test_of_a_model_that_is_being_trained():
    model = make_model()
    predictor = Predictor.from_model(model)
    images = np.random.default_rng(0).integers(0, 256, (1, 33, 21, 3), np.uint8)
    before = predictor(images)[0]
    model.set_weights([weight[..., ::-1] for weight in model.get_weights()])
    after = predictor(images)[0]
    assert (before != after).any()
    np.testing.assert_array_equal(after, np.argmax(model(images), axis=-1))


def test_score_is_the_probability_of_the_class():
    predictor = Predictor.from_model(make_model())
    class_id, score = predictor(np.full((2, 16, 16, 3), 200, np.uint8))
    assert class_id.dtype == np.uint8 and score.dtype == np.float32
    assert (score >= 1 / 7 - 1e-6).all() and (score <= 1).all()


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((1, 8, 8, 4), np.uint8),
        np.zeros((1, 8, 8, 3), np.float32),
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((1, 8, 0, 3), np.uint8),
    ],
)
def test_wrong_images(images):
    for size in (None, (8, 8)):
        with pytest.raises(ValueError, match=r"uint8 \(B, H, W, 3\).*got"):
            Predictor(echo, image_size=size)(images)


def test_another_size_is_resized_and_back():
    seen = []

    def run(images):
        seen.append(images.shape)
        return echo(images)

    images = np.zeros((2, 16, 24, 3), np.uint8)
    images[:, :, 12:, 0] = 6
    images[:, 8:, :, 1] = 255
    class_id, score = Predictor(run, image_size=(32, 48))(images)
    assert seen == [(2, 32, 48, 3)]
    assert class_id.shape == score.shape == (2, 16, 24)
    # Far from the edges the result is that of the image as it is.
    np.testing.assert_array_equal(class_id[:, :, :11], 0)
    np.testing.assert_array_equal(class_id[:, :, 13:], 6)
    np.testing.assert_array_equal(score[:, 9:], 1)
    class_id, _ = Predictor(run, image_size=(16, 24))(images)
    np.testing.assert_array_equal(class_id, images[..., 0])


def test_one_image_a_list_and_a_batch_give_the_same():
    model = make_model()
    for protocol in (Protocol(), Protocol("slide", 24, 16), FLIP):
        predictor = Predictor.from_model(model, protocol)
        images = [photos(33, 40), photos(50, 21), photos(33, 40)[::-1]]
        class_ids, scores = predictor(images)
        assert isinstance(class_ids, list) and isinstance(scores, list)
        for image, class_id, score in zip(images, class_ids, scores, strict=True):
            assert class_id.shape == score.shape == image.shape[:2]
            for one, of_batch in zip(predictor(image), predictor(image[None]), strict=True):
                assert one.shape == image.shape[:2] and of_batch.shape == (1, *image.shape[:2])
                np.testing.assert_array_equal(one, of_batch[0])
            np.testing.assert_array_equal(class_id, predictor(image)[0])
            np.testing.assert_array_equal(score, predictor(image)[1])
        batch = predictor(np.stack(images[::2]))
        np.testing.assert_array_equal(batch[0], class_ids[::2])
        np.testing.assert_allclose(batch[1], scores[::2], rtol=1e-5)
    assert predictor([]) == ([], [])
    with pytest.raises(ValueError, match=r"got float32 \(8, 8, 3\)"):
        predictor([images[0], np.zeros((8, 8, 3), np.float32)])


def counting(classes):
    """A model whose class is the red channel plus 200: of 0, 1, 99 it makes 200, 201, 299."""
    image = keras.Input((None, None, 3))
    conv = keras.layers.Conv2D(classes, 1)
    model = keras.Model(image, conv(image))
    # -(x - c)^2 without x^2, which is the same for all.
    c = np.arange(classes) - 200.0
    kernel = np.zeros((1, 1, 3, classes))
    kernel[0, 0, 0] = 2 * c
    conv.set_weights([kernel, -(c**2)])
    return model


@pytest.mark.parametrize("classes", [256, 300])
def test_ids_above_255(classes):
    images = np.zeros((1, 4, 6, 3), np.uint8)
    images[0, :, :, 0] = np.arange(24).reshape(4, 6) * (classes - 201) // 23
    expected = images[..., 0].astype(int) + 200
    assert expected.max() == classes - 1
    protocols = (Protocol(), FLIP, Protocol("slide", (3, 4), (2, 2)), Protocol(pad_size=9))
    for protocol in protocols:
        class_id, _ = Predictor.from_model(counting(classes), protocol)(images)
        np.testing.assert_array_equal(class_id, expected)
        assert class_id.dtype == (np.uint8 if classes == 256 else np.int32)

    # Where nothing but `run` is known, and through the resizing of results.
    wide = Predictor(
        lambda x: (x[..., 0].astype(np.int64) + 200, x[..., 0] / 255), image_size=(8, 12)
    )
    class_id, _ = wide(images)
    assert class_id.dtype == np.int32 and class_id.max() == classes - 1
    known = Predictor(echo, num_classes=300)
    assert known(images)[0].dtype == np.int32


@pytest.mark.parametrize(
    "protocol",
    [
        Protocol(**SLIDE),
        Protocol(**SLIDE, pad_size=(5, 5)),
        Protocol(**SLIDE, fit_size=(23, 17)),
        Protocol(**SLIDE, pad_size=(40, 30)),
        Protocol(**SLIDE, fit_size=(46, 34)),
        Protocol(**SLIDE, scales=0.5),
    ],
)
def test_a_slide_in_pieces_or_whole_is_the_same(monkeypatch, protocol):
    monkeypatch.setattr("isa_tf.inference.pieces.AT_ONCE_BYTES", 0)
    model, images = make_conv(), photos(2, 17, 23)
    class_id, score = Predictor.from_model(model, protocol)(images)
    (logits,) = view_logits(run_of(model), images, protocol)
    np.testing.assert_array_equal(class_id, np.argmax(logits, -1))
    np.testing.assert_allclose(score, softmax(np.asarray(logits)).max(-1), rtol=1e-5)


# === Protocols ===


def test_protocols_that_a_model_cannot_follow():
    with pytest.raises(ValueError, match=r"flip_pairs has \(6, 7\), classes are 0 to 6"):
        Predictor.from_model(make_model(), Protocol(flip=True, flip_pairs=((6, 7),)))
    with pytest.raises(ValueError, match=r"flip_pairs has \(1, 4\), classes are 0 to 3"):
        conv = Predictor.from_model(make_conv(), Protocol(flip=True, flip_pairs=((1, 4),)))
        conv(np.zeros((1, 8, 8, 3), np.uint8))


def test_one_view_is_the_whole_image():
    model, images = make_model(), photos(2, 33, 21)
    whole = Predictor.from_model(model)
    assert whole.protocol == Protocol()
    logits = model(images)
    for protocol in (
        Protocol(),
        Protocol(scales=(1,)),
        {"mode": "slide", **dict.fromkeys(("crop_size", "stride"), 64)},
    ):
        class_id, score = Predictor.from_model(model, protocol)(images)
        np.testing.assert_array_equal(class_id, whole(images)[0])
        np.testing.assert_array_equal(score, whole(images)[1])
        np.testing.assert_array_equal(class_id, np.argmax(logits, -1))
        np.testing.assert_allclose(score, softmax(logits.numpy()).max(-1), rtol=1e-5)


def test_mirror_of_a_symmetric_model():
    images = photos(1, 12, 15)
    for symmetric in (True, False):
        model = make_conv(symmetric=symmetric)
        one, both = run_of(model)(images), list(view_logits(run_of(model), images, FLIP))
        np.testing.assert_allclose(both[0], one, atol=1e-5)
        assert (np.abs(both[1] - one).max() < 1e-4) == symmetric
        class_id, score = Predictor.from_model(model, FLIP)(images)
        probabilities = np.mean([softmax(np.asarray(view)) for view in both], axis=0)
        np.testing.assert_array_equal(class_id, probabilities.argmax(-1))
        np.testing.assert_allclose(score, probabilities.max(-1), rtol=1e-5)


class Sides(keras.layers.Layer):
    """Logits: how far left a pixel lies, how far right, and a constant."""

    def call(self, image):
        right = tf.linspace(-1.0, 1.0, tf.shape(image)[2])[None, None, :] + 0 * image[..., 0]
        return tf.stack([-right, right, 0 * right - 9], axis=-1)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:3], 3)


def test_pairs_change_places_in_the_mirror():
    image = keras.Input((None, None, 3))
    model = keras.Model(image, Sides()(image))
    images = photos(1, 3, 8)
    sides = np.broadcast_to([0, 0, 0, 0, 1, 1, 1, 1], (1, 3, 8))
    whole = Predictor.from_model(model)(images)
    np.testing.assert_array_equal(whole[0], sides)
    swapped = Predictor.from_model(model, Protocol(flip=True, flip_pairs=((1, 0),)))(images)
    np.testing.assert_array_equal(swapped[0], sides)
    np.testing.assert_allclose(swapped[1], whole[1], rtol=1e-6)
    # Without the pairs, left and right outweigh each other.
    np.testing.assert_allclose(Predictor.from_model(model, FLIP)(images)[1], 0.5, atol=1e-3)
    assert Protocol(flip_pairs=((14, 15), (1, 0))).mirrored_classes(16) == [
        *(1, 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 14)
    ]


@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners", "asymmetric"])
@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_scales_and_mirror_together(mode, coordinates):
    model, images = make_conv(), photos(2, 13, 22)
    model.coordinates = coordinates
    run = run_of(model)
    windows = {} if mode == "whole" else {"crop_size": (8, 10), "stride": (6, 7)}
    protocol = Protocol(mode, scales=(0.5, 1.0, 1.75), flip=True, **windows)
    total = 0
    for size in ((7, 11), (13, 22), (23, 39)):
        resized = resize_image(images, size).numpy()
        for step in (1, -1):
            view = resized[:, :, ::step]
            logits = run(view) if mode == "whole" else slide_reference(run, view, *windows.values())
            logits = bilinear(np.asarray(logits)[:, :, ::step], (13, 22), coordinates)
            total = total + softmax(logits) / 6
    class_id, score = Predictor.from_model(model, protocol)(images)
    np.testing.assert_allclose(score, total.max(-1), atol=1e-5)
    margin = np.diff(np.sort(total, axis=-1)[..., -2:])[..., 0]
    np.testing.assert_array_equal(class_id[margin > 1e-4], total.argmax(-1)[margin > 1e-4])
    assert (margin > 1e-4).mean() > 0.99


def test_protocol_of_the_model():
    model, images = make_conv(), photos(1, 9, 11)
    for own in (FLIP, FLIP.to_dict()):
        model.protocol = own
        predictor = Predictor.from_model(model)
        assert predictor.protocol == FLIP
        expected = Predictor.from_model(make_conv(), FLIP)(images)
        np.testing.assert_array_equal(predictor(images)[1], expected[1])
    assert Predictor.from_model(model, Protocol()).protocol == Protocol()


def test_one_trace_for_all_views():
    calls = []

    class Counting(keras.layers.Layer):
        def call(self, x):
            calls.append(x.shape)
            return x

    model = make_conv()
    model = keras.Model(model.inputs, Counting()(model.outputs[0]))
    calls.clear()
    predictor = Predictor.from_model(model, Protocol(scales=(0.5, 1, 1.5), flip=True, **SLIDE))
    for size in ((20, 30), (6, 8), (13, 9)):
        predictor(photos(2, *size))
    assert len(calls) == 1


def test_a_model_of_one_size():
    model, images = make_conv(size=(8, 10)), photos(1, 13, 22)
    sliding = Predictor.from_model(model, Protocol("slide", (8, 10), (6, 7)))
    free = Predictor.from_model(make_conv(), sliding.protocol)
    assert sliding.image_size is None
    np.testing.assert_array_equal(sliding(images)[0], free(images)[0])
    with pytest.raises(ValueError, match=r"a window of \(8, 9\), as small as the image"):
        sliding(images[:, :, :9])
    flipping = Predictor.from_model(model, FLIP)
    assert flipping.image_size == (8, 10)
    assert flipping(images)[0].shape == (1, 13, 22)
    for wrong in (
        Protocol(**SLIDE),
        Protocol(scales=(0.5,)),
        Protocol(fit_size=10),
        Protocol(pad_size=9),
    ):
        with pytest.raises(ValueError, match="takes images of 8x10 alone"):
            Predictor.from_model(model, wrong)


# === confusion_matrix ===


def test_who_listens_hears_each_batch_once_it_is_counted():
    heard, given = [], []
    sound = np.zeros((2, 4, 5), np.uint8)
    images = np.zeros((2, 4, 5, 3), np.uint8)

    def batches():
        for label in (sound, sound + 1, sound + 9):
            assert len(heard) == len(given)  # not before it has been used
            given.append({"image": images, "label": label, "more": len(given)})
            yield given[-1]

    with pytest.raises(ValueError, match="batch 2: label 9"):
        confusion_matrix(echo, batches(), 3, hear=lambda *pair: heard.append(pair))
    assert [batch["more"] for batch, _ in heard] == [0, 1]  # none with a fault
    for batch, predicted in heard:
        np.testing.assert_array_equal(predicted, echo(batch["image"])[0])


def test_counts():
    images = np.zeros((1, 2, 3, 3), np.uint8)
    images[0, :, :, 0] = [[0, 1, 2], [2, 2, 1]]
    labels = np.array([[[0, 1, 1], [2, 255, 0]]], np.uint8)
    matrix = confusion_matrix(echo, [(images, labels), {"image": images, "label": labels}], 3)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[2, 2, 0], [0, 2, 2], [0, 0, 2]]
    # The label of ignored pixels may be any.
    signed = np.where(labels == 255, -1, labels.astype(int))
    matrix = confusion_matrix(echo, [(images, signed)], 3, ignore_label=-1)
    assert matrix.sum() == 5


def test_with_and_without_the_boundaries_in_one_pass():
    rng, calls = np.random.default_rng(2), []
    labels = rng.choice([0, 1, 2, 255], (3, 2, 3, 4), p=[0.3, 0.3, 0.3, 0.1]).astype(np.uint8)
    labels = labels.repeat(9, axis=2).repeat(9, axis=3)  # blocks, which have an inside
    images = rng.integers(0, 3, (*labels.shape, 3), np.uint8)

    def predict(batch):
        calls.append(len(batch))
        return echo(batch)

    usual, inside = confusion_matrix(predict, zip(images, labels, strict=True), 3, band=3)
    assert calls == [2, 2, 2]
    np.testing.assert_array_equal(
        usual, confusion_matrix(echo, zip(images, labels, strict=True), 3)
    )
    without = np.where(metrics.boundary_band(labels), 255, labels)
    np.testing.assert_array_equal(
        inside, confusion_matrix(echo, zip(images, without, strict=True), 3)
    )
    assert 0 < inside.sum() < usual.sum()
    with pytest.raises(ValueError, match="at least 0 pixels"):
        confusion_matrix(echo, zip(images, labels, strict=True), 3, band=-1)


def test_of_a_pipeline_and_the_metric_agree():
    data = SyntheticDataset((80, 128), {"val": 3}, min_distance=16)
    model = make_model()
    batches = eval_pipeline(data, "val", batch_size=2)
    matrix = confusion_matrix(Predictor.from_model(model), batches, 7)
    metric = metrics.MeanIoU(7)
    for image, label in batches:
        metric.update_state(label, model(tf.cast(image, tf.float32)))
    assert matrix.sum() == 3 * 80 * 128
    np.testing.assert_array_equal(matrix, metric.confusion)
    assert metrics.scores(matrix)["miou"] == pytest.approx(float(metric.result()), abs=1e-6)


def test_out_of_range():
    images, labels = np.zeros((1, 2, 2, 3), np.uint8), np.zeros((1, 2, 2), np.int32)
    sound = (images, labels)
    for value in (3, -1, 254):
        wrong = np.array([[[0, value], [255, value]]])
        with pytest.raises(ValueError, match=f"batch 1: label {value} in 2 pixels"):
            confusion_matrix(echo, [sound, (images, wrong)], 3)
    with pytest.raises(ValueError, match="batch 0: prediction 9 in 4 pixels"):
        confusion_matrix(echo, [(images + np.uint8(9), labels)], 3)
    with pytest.raises(ValueError, match=r"batch 0: labels \(1, 2, 1\) for images"):
        confusion_matrix(echo, [(images, labels[:, :, :1])], 3)
