import json
import sys
import zipfile

import batteries
import keras
import numpy as np
import pytest
import tensorflow as tf

from isa_tf import inference, layers, metrics, ops
from isa_tf.data import SyntheticDataset, eval_pipeline
from isa_tf.export import export_litert, export_saved_model
from isa_tf.inference import (
    Predictor,
    Protocol,
    confusion_matrix,
    load_model,
    load_predictor,
    resize_image,
    resize_logits,
    slide,
    view_logits,
    view_size,
    vote,
    window_starts,
)
from isa_tf.models import Segmenter


def make_model(**kwargs):
    keras.utils.set_random_seed(1)
    return Segmenter("tiny", None, 7, head_filters=8, head_kernel_size=1, **kwargs)


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
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((1, 8, 8, 4), np.uint8),
        np.zeros((1, 8, 8, 3), np.float32),
    ],
)
def test_wrong_images(images):
    with pytest.raises(ValueError, match=r"uint8 \(B, H, W, 3\).*Received"):
        Predictor(echo)(images)


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


def test_litert_of_another_size(tmp_path):
    pytest.importorskip("ai_edge_litert")
    model = make_model()
    path = export_litert(model, tmp_path / "model.tflite", (32, 48))
    predictor = load_predictor(path, num_threads=1)
    assert predictor.image_size == (32, 48)
    flat = np.full((1, 50, 70, 3), (200, 30, 90), np.uint8)
    class_id, score = predictor(flat)
    assert class_id.shape == score.shape == (1, 50, 70)
    inner = np.s_[:, 20:30, 30:40]
    truth = Predictor.from_model(model)(flat)
    np.testing.assert_array_equal(class_id[inner], truth[0][inner])
    assert predictor.protocol == Protocol()
    with pytest.raises(ValueError, match="model.tflite: an exported model sees whole images alone"):
        load_predictor(path, protocol={"flip": True})


# === Protocol ===


SLIDE = {"mode": "slide", "crop_size": (7, 9), "stride": (5, 4)}


@pytest.mark.parametrize(
    "values",
    [
        {},
        SLIDE,
        {"mode": "slide", "crop_size": 769, "stride": (513,), "scales": 0.5},
        {"scales": [0.1, 1, 1.75], "flip": True, "flip_pairs": [[14, 15], [16, 17]]},
        {"fit_size": [2048, 512]},
        {"pad_size": [1025, 2049]},
    ],
)
def test_protocol_round_trip(values):
    protocol = Protocol(**values)
    written = json.loads(json.dumps(protocol.to_dict()))
    assert written == protocol.to_dict()
    assert Protocol.from_dict(written) == Protocol.from_dict(values) == protocol
    assert hash(Protocol.from_dict(written)) == hash(protocol)


def test_protocol_spellings():
    protocol = Protocol("slide", crop_size=769, stride=[513], scales=2)
    assert protocol == Protocol("slide", (769, 769), (513, 513), (2.0,))
    assert Protocol(scales=(0.5, 1), flip=True).num_views() == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "sliding"}, 'mode must be "whole" or "slide", got \'sliding\''),
        ({"mode": "slide"}, "needs a crop_size and a stride"),
        ({"mode": "slide", "crop_size": 8}, "needs a crop_size and a stride"),
        ({"crop_size": 8, "stride": 4}, 'of mode "slide" alone'),
        ({**SLIDE, "stride": (5, 10)}, "skips pixels"),
        ({**SLIDE, "crop_size": (7, 0)}, "crop_size must be an int above 0 or two"),
        ({**SLIDE, "stride": (1, 2, 3)}, "stride must be"),
        ({"fit_size": 512.5}, "fit_size must be"),
        ({"fit_size": "512"}, "fit_size must be"),
        ({"pad_size": (512, 0)}, "pad_size must be"),
        ({"pad_size": 512, "fit_size": 512}, "fit_size and pad_size exclude each other"),
        ({"scales": ()}, "scales must be numbers above 0, at least one"),
        ({"scales": (1.0, 0.0)}, "scales must be"),
        ({"scales": (float("nan"),)}, "scales must be"),
        ({"scales": ("abc",)}, "scales must be.*abc"),
        ({"flip": 1}, "flip must be True or False"),
        ({"flip_pairs": (14, 15)}, "flip_pairs must be pairs"),
        ({"flip_pairs": ((14, 15, 16),)}, "flip_pairs must be pairs"),
        ({"flip_pairs": ((14, 15), (15, 16))}, "no id twice"),
        ({"flip_pairs": ((-1, 0),)}, "flip_pairs must be"),
        ({"crop_sise": 8}, "'crop_sise'; did you mean .crop_size"),
    ],
)
def test_wrong_protocols(values, message):
    with pytest.raises(ValueError, match=message):
        Protocol.from_dict(values)


def test_protocols_that_a_model_cannot_follow():
    with pytest.raises(ValueError, match=r"flip_pairs has \(6, 7\), classes are 0 to 6"):
        Predictor.from_model(make_model(), Protocol(flip=True, flip_pairs=((6, 7),)))
    with pytest.raises(ValueError, match=r"flip_pairs has \(1, 4\), classes are 0 to 3"):
        conv = Predictor.from_model(make_conv(), Protocol(flip=True, flip_pairs=((1, 4),)))
        conv(np.zeros((1, 8, 8, 3), np.uint8))


# === Views ===


def make_conv(kernel_size=3, size=(None, None), symmetric=False):
    """A convolution padded with zeros: what a window's border shows depends on the window."""
    image = keras.Input((*size, 3))
    x = keras.layers.Rescaling(1 / 64)(image)
    conv = keras.layers.Conv2D(4, kernel_size, padding="same", kernel_initializer="random_normal")
    model = keras.Model(image, conv(x))
    rng = np.random.default_rng(5)
    kernel = rng.normal(size=conv.kernel.shape)
    if symmetric:
        kernel += kernel[:, ::-1]
    conv.set_weights([kernel, rng.normal(size=4)])
    return model


def photos(*shape):
    return np.random.default_rng(3).integers(0, 256, (*shape, 3), np.uint8)


def run_of(model):
    return lambda images: model(tf.cast(images, tf.float32))


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def bilinear(x, size, coordinates="half_pixel"):
    """Bilinear resizing of (B, H, W, C) in NumPy, one side after the other, in float64."""
    x = np.asarray(x, np.float64)
    for axis, new in zip((1, 2), size, strict=True):
        old = x.shape[axis]
        at = {
            "half_pixel": (np.arange(new) + 0.5) * old / new - 0.5,
            "align_corners": np.arange(new) * (old - 1) / max(new - 1, 1),
            "asymmetric": np.arange(new) * old / new,
        }[coordinates]
        at = np.clip(at, 0, old - 1)
        low = np.floor(at).astype(int)
        share = (at - low).reshape([-1 if i == axis else 1 for i in range(4)])
        high = np.minimum(low + 1, old - 1)
        x = np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share
    return x


def windows(length, crop, stride):
    """(begin, end) of the windows along one side, found by walking."""
    found, position = [], 0
    while True:
        end = min(position + crop, length)
        found.append((max(end - crop, 0), end))
        if end == length:
            return found
        position += stride


def slide_reference(run, images, crop, stride):
    """Window after window, each pixel's logits summed and counted."""
    total, count = 0, np.zeros(images.shape[1:3])
    for top, bottom in windows(images.shape[1], crop[0], stride[0]):
        for left, right in windows(images.shape[2], crop[1], stride[1]):
            logits = np.asarray(run(images[:, top:bottom, left:right]), np.float64)
            if np.isscalar(total):
                total = np.zeros((*images.shape[:3], logits.shape[-1]))
            total[:, top:bottom, left:right] += logits
            count[top:bottom, left:right] += 1
    assert count.all()
    return total / count[:, :, None]


@pytest.mark.parametrize("crop, stride", [(1, 1), (4, 1), (4, 3), (4, 4), (9, 2), (769, 513)])
def test_window_starts(crop, stride):
    for length in (1, 3, 4, 5, 8, 9, 10, 12, 513, 769, 770, 1024, 1282, 1283):
        expected = [begin for begin, _ in windows(length, crop, stride)]
        assert window_starts(length, crop, stride) == expected


@pytest.mark.parametrize(
    ("size", "crop", "stride"),
    [
        ((17, 23), (7, 9), (5, 4)),
        ((14, 18), (7, 9), (7, 9)),  # without overlap
        ((7, 9), (7, 9), (5, 4)),  # one window
        ((5, 30), (7, 9), (5, 4)),  # lower than a window
        ((5, 6), (7, 9), (5, 4)),  # smaller than a window
        ((12, 10), (7, 9), (1, 1)),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_slide_is_the_mean_of_its_windows(size, crop, stride, batch):
    run, images = run_of(make_conv()), photos(batch, *size)
    logits = slide(run, images, crop, stride)
    expected = slide_reference(run, images, crop, stride)
    assert logits.shape == (batch, *size, 4)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    predictor = Predictor.from_model(make_conv(), Protocol("slide", crop, stride))
    class_id, score = predictor(images)
    np.testing.assert_array_equal(class_id, np.argmax(logits, -1))
    np.testing.assert_allclose(score, softmax(expected).max(-1), rtol=1e-5)
    if size == (17, 23):  # the windows' borders are seen
        assert np.abs(logits - run(images)).max() > 0.1


def test_slide_averages_logits_and_views_average_softmax():
    # Sure of class 0, sure of class 2; class 1 is second to both.
    a, b = np.float32([9.5, 5, 0]), np.float32([0, 5, 9])

    def run(images):
        return np.where(np.asarray(images)[:, :1, :1, :1] == 0, a, b) + np.zeros((1, 1, 4, 1))

    images = np.zeros((1, 1, 6, 3), np.uint8)
    images[:, :, 2:] = 1  # what the second window begins with
    logits = slide(run, images, (1, 4), (1, 2))
    assert np.argmax(logits, -1).tolist() == [[[0, 0, 1, 1, 2, 2]]]
    class_id, score = vote(np.float32(view)[None, None, None] for view in (a, b))
    assert class_id.numpy().item() == 0
    expected = (softmax(a) + softmax(b)) / 2
    np.testing.assert_allclose(score.numpy().item(), expected.max(), rtol=1e-6)


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


FLIP = Protocol(flip=True)


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


# === Sizes ===


@pytest.mark.parametrize(
    ("size", "scale", "fit_size", "expected"),
    [
        ((1024, 2048), 1.0, None, (1024, 2048)),
        ((97, 161), 0.5, None, (49, 81)),
        ((97, 161), 1.75, None, (170, 282)),
        ((602, 99), 0.75, None, (450, 74)),  # of 451.5 x 74.25; 74 columns are fewer than 3/4
        ((1, 2), 0.25, None, (1, 1)),
        ((1024, 2048), 1.0, (2049, 1025), (1025, 2049)),
        ((480, 640), 1.0, (2048, 512), (512, 683)),
        ((640, 480), 1.0, (512, 2048), (683, 512)),
        ((100, 1000), 1.0, (2048, 512), (205, 2048)),
        ((480, 640), 0.75, (2048, 513), (384, 512)),
    ],
)
def test_view_size(size, scale, fit_size, expected):
    assert view_size(size, scale, fit_size) == expected


@pytest.mark.parametrize("size", [(20, 31), (7, 11), (13, 44), (1, 1), (50, 3)])
def test_resize_image_is_bilinear_and_rounded(size):
    images = photos(2, 13, 22)
    resized = resize_image(images, size).numpy()
    assert resized.dtype == np.uint8 and resized.shape == (2, *size, 3)
    exact = bilinear(images, size)
    assert np.abs(resized - exact).max() <= 0.5 + 1e-4
    np.testing.assert_array_equal(resize_image(images, (13, 22)), images)


@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners", "asymmetric"])
def test_resize_logits(coordinates):
    logits = np.random.default_rng(0).normal(size=(2, 9, 14, 5)).astype(np.float32)
    for size in ((17, 27), (5, 20), (1, 1), (9, 14)):
        resized = resize_logits(logits, size, coordinates)
        np.testing.assert_allclose(resized, bilinear(logits, size, coordinates), atol=1e-5)
    with pytest.raises(ValueError, match="coordinates must be one of half_pixel, .*got 'corners'"):
        resize_logits(logits, (9, 14), "corners")


def test_fitted_views_come_back_at_the_image_s_size():
    images = photos(1, 12, 30)
    seen = []

    def run(view):
        seen.append(tuple(view.shape[1:3]))
        return tf.cast(view, tf.float32)

    protocol = Protocol(fit_size=(20, 10), scales=(1.0, 0.5))
    shapes = {tuple(logits.shape) for logits in view_logits(run, images, protocol)}
    assert seen == [(8, 20), (4, 10)] and shapes == {(1, 12, 30, 3)}


@pytest.mark.parametrize("size", [(12, 30), (40, 10), (32, 24), (40, 50)])
def test_small_images_are_padded(size):
    images = photos(2, *size)
    whole = np.full((2, max(size[0], 32), max(size[1], 24), 3), 128, "uint8")
    whole[:, : size[0], : size[1]] = images
    seen = []

    def run(view):
        seen.append(view.numpy())
        return tf.cumsum(tf.cumsum(tf.cast(view, tf.float32), 1, reverse=True), 2, reverse=True)

    protocol = Protocol(pad_size=(32, 24), flip=True)
    plain, mirrored = view_logits(run, images, protocol)
    np.testing.assert_array_equal(seen[0], whole)
    np.testing.assert_array_equal(seen[1], whole[:, :, ::-1])
    expected = [run(tf.constant(whole)), run(tf.constant(whole[:, :, ::-1]))[:, :, ::-1]]
    for found, wanted in zip((plain, mirrored), expected, strict=True):
        np.testing.assert_array_equal(found, wanted[:, : size[0], : size[1]])


# === load_predictor ===


def test_protocol_of_a_file(tmp_path):
    make_model().save(tmp_path / "model.keras")
    images = photos(1, 20, 24)
    loaded = load_predictor(tmp_path / "model.keras", protocol=FLIP.to_dict())
    assert loaded.protocol == FLIP
    expected = Predictor.from_model(make_model(), FLIP)(images)
    np.testing.assert_array_equal(loaded(images)[1], expected[1])
    assert load_predictor(tmp_path / "model.keras").protocol == Protocol()
    with pytest.raises(ValueError, match=r"model.keras: flip_pairs has \(7, 8\)"):
        load_predictor(tmp_path / "model.keras", protocol=Protocol(flip_pairs=((7, 8),)))


def test_nothing_there(tmp_path):
    for name in ("no.keras", "no.tflite", "no"):
        with pytest.raises(FileNotFoundError, match=name):
            load_predictor(tmp_path / name)


def test_unusable_files(tmp_path):
    pytest.importorskip("ai_edge_litert")
    (tmp_path / "model.h5").write_bytes(b"x")
    (tmp_path / "text.keras").write_bytes(b"not a zip")
    (tmp_path / "text.tflite").write_bytes(b"not a flatbuffer")
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("a.txt", "a")
    whole = tmp_path / "whole.keras"
    make_model().save(whole)
    (tmp_path / "cut.keras").write_bytes(whole.read_bytes()[:-500])
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "saved_model.pb").write_bytes(b"xx")
    foreign = tf.Module()
    foreign.f = tf.function(lambda x: x, input_signature=[tf.TensorSpec((1,))])
    tf.saved_model.save(foreign, str(tmp_path / "foreign"))
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [foreign.f.get_concrete_function()], foreign
    )
    (tmp_path / "foreign.tflite").write_bytes(converter.convert())
    for name, message in (
        ("model.h5", "not a model; known are"),
        ("text.keras", "not a Keras model"),
        ("other.keras", "cannot be read as a Keras model"),
        ("cut.keras", "not a Keras model, or not the whole"),
        ("text.tflite", "cannot be read as a LiteRT model"),
        ("foreign.tflite", "not a LiteRT model of isa_tf"),
        ("empty", "no SavedModel"),
        ("broken", "cannot be read as a SavedModel"),
        ("foreign", "not a SavedModel of isa_tf"),
    ):
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            load_predictor(tmp_path / name)
    with pytest.raises(ValueError, match="not a Keras model"):
        load_model(tmp_path / "text.keras")


def test_damaged_metadata(tmp_path):
    path = export_saved_model(make_model(), tmp_path / "saved")
    file = path / inference.ASSETS / inference.METADATA_FILE
    for text in ("{", "[]", "{}"):
        file.write_text(text)
        with pytest.raises(ValueError, match="saved: damaged isa_tf.json"):
            load_predictor(path)
    file.unlink()  # the model runs without it
    assert load_predictor(path, protocol=Protocol()).num_classes is None
    with pytest.raises(ValueError, match="saved: an exported model sees whole images alone"):
        load_predictor(path, protocol=Protocol(scales=(0.5, 1)))


def test_without_litert(tmp_path, monkeypatch):
    (tmp_path / "model.tflite").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(ImportError, match=r"pip install isa_tf\[litert\]"):
        load_predictor(tmp_path / "model.tflite")


# === confusion_matrix ===


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


# === fuse ===

FUSED = {
    "tiny": {"backbone": "tiny"},
    # 64 channels and more go by Winograd's filtering.
    "dilated resnet": {"backbone": "resnet18", "head_filters": 64, "head_kernel_size": 3},
    "depthwise": {"backbone": "efficientnet_lite0", "head_filters": 16},
    "decoder": {
        "backbone": "resnet18",
        "context": "self_attention",
        "head_filters": 16,
        "decoder_levels": ("c2",),
        "decoder_filters": 8,
        "activation": "leaky_relu",
    },
    "multi-partition": {
        "backbone": "tiny",
        "head_filters": 16,
        "context": layers.InterlacedSparseAttention([2, (3, 4)], order="short_long", depth=2),
    },
}


@pytest.mark.parametrize("arguments", FUSED.values(), ids=FUSED.keys())
def test_fuse_keeps_the_outputs(arguments):
    model = Segmenter(num_classes=7, **arguments)
    batteries.randomize(model)
    before = [weight.copy() for weight in model.get_weights()]
    fused = inference.fuse(model)
    for size in [(64, 64), (41, 70)]:
        image = np.random.default_rng(0).uniform(0, 255, (2, *size, 3)).astype("float32")
        expected = model(image).numpy()
        assert np.ptp(expected) > 0
        for copy in (fused, inference.fuse(model, winograd=False)):
            error = np.abs(copy(image) - expected).max() / np.abs(expected).max()
            # The operations are others, not only their order.
            assert 0 < error < 1e-5
    for weight, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, kept)


@pytest.mark.parametrize("products", ["float32", "bfloat16"])
def test_fuse_of_mixed_precision(monkeypatch, products):
    """On processors that multiply in bfloat16, and on those that do not."""
    monkeypatch.setattr(ops, "product_dtype", lambda dtype: products)
    arguments = {"head_filters": 64, "head_kernel_size": 3, "num_classes": 7}
    model = Segmenter("resnet18", dtype="mixed_bfloat16", **arguments)
    batteries.randomize(model)
    exact = Segmenter("resnet18", **arguments)
    exact.set_weights(model.get_weights())
    image = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype("float32")
    expected = exact(image).numpy()
    fused = inference.fuse(model)
    errors = [np.abs(m(image) - expected).max() for m in (fused, model)]
    assert errors[0] < 1.5 * errors[1] < 0.2 * np.ptp(expected)
    convolutions = [layer.fused for layer in fused._flatten_layers() if hasattr(layer, "fused")]
    # Minimal filtering is float32 everywhere.
    assert {c.kernel.dtype.name for c in convolutions if c.winograd} == {"float32"}
    assert {c.kernel.dtype.name for c in convolutions if not c.winograd} == {products}


def test_fused_model_is_for_inference():
    model = make_model()
    fused = inference.fuse(model)
    image = np.zeros((1, 32, 32, 3), "uint8")
    expected = fused(image).numpy()
    # What is done to the model afterwards does not reach the copy.
    model.set_weights([0 * weight for weight in model.get_weights()])
    np.testing.assert_array_equal(fused(image), expected)
    assert not fused.trainable_variables
    np.testing.assert_array_equal(
        Predictor.from_model(fused)(image)[0], np.argmax(expected, axis=-1)
    )


def test_only_a_built_model_can_be_fused():
    with pytest.raises(ValueError, match="is not built"):
        inference.fuse(keras.Sequential([keras.layers.Conv2D(2, 1)]))
