"""Prediction in pieces against what the logits of whole images give."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from viewing import make_conv, make_model, photos, run_of

from isa_tf.inference import (
    Network,
    Predictor,
    Protocol,
    classify,
    classify_in_pieces,
    fits_at_once,
    fuse,
    pieces,
    slide_tiles,
    view_logits,
    vote,
)
from isa_tf.layers import ResizeLike

ROOT = Path(__file__).parents[2]
SLIDE = {"mode": "slide", "crop_size": (7, 9), "stride": (5, 4)}
ALL = {"scales": (0.5, 1.0, 1.75), "flip": True, "flip_pairs": ((0, 2),)}
RANDOM = np.random.default_rng(6).normal(size=(5, 5, 3, 4)).astype("float32") / 64


def small_run(images):
    """Logits of a third of the image's size, whose border shows."""
    return tf.nn.conv2d(tf.cast(images, tf.float32), RANDOM, strides=3, padding="SAME")


def network_of(resizing):
    """A network that ends in resizing, or one that does not."""
    if resizing is None:
        return Network(lambda x: tf.nn.conv2d(tf.cast(x, tf.float32), RANDOM, 1, "SAME"), 4)

    def run(images):
        return ResizeLike(resizing)([small_run(images), images])

    return Network(run, 4, small_run, resizing)


def limit(monkeypatch, piece, vote):
    for name, value in zip(("AT_ONCE", "PIECE", "VOTE"), (0, piece, vote), strict=True):
        monkeypatch.setattr(pieces, f"{name}_BYTES", value)


PADDED = {"pad_size": (13, 19), "flip": True}
EXACT = {"exact_size": (13, 9), "size_divisor": 5, "scales": (1.0, 1.3), "flip": True}
FITTED = {"fit_size": (22, 16), "flip": True}
SOME, LINES, ONE = (2000, 6000), (1, 1), (2**25, 2**30)  # bytes of a piece, and of a band


@pytest.mark.parametrize(
    ("limits", "resizing", "mode", "size", "more"),
    [
        (SOME, None, {}, (11, 14), {}),
        (SOME, None, {}, (11, 14), ALL),
        (SOME, None, SLIDE, (15, 8), {"scales": 0.6}),
        (SOME, None, SLIDE, (11, 14), ALL),
        (SOME, "half_pixel", {}, (11, 14), {"scales": 0.6}),
        (SOME, "half_pixel", {}, (15, 8), ALL),
        (SOME, "half_pixel", {}, (11, 14), PADDED),
        (SOME, "align_corners", {}, (11, 14), FITTED),
        (SOME, "align_corners", {}, (15, 8), ALL),
        (SOME, "half_pixel", SLIDE, (11, 14), {}),
        (SOME, "half_pixel", SLIDE, (15, 8), PADDED),
        (SOME, "align_corners", SLIDE, (15, 8), FITTED),
        (LINES, "half_pixel", {}, (11, 14), PADDED),
        (SOME, "half_pixel", {}, (11, 14), EXACT),
        (SOME, "align_corners", {}, (15, 8), EXACT),
        (LINES, None, {}, (11, 14), EXACT),
        (SOME, "half_pixel", {}, (11, 14), {"size_divisor": 8}),
        (LINES, None, SLIDE, (9, 6), {**ALL, "scales": (0.5, 1.2)}),
        (ONE, "half_pixel", {}, (15, 8), ALL),
        (ONE, "half_pixel", SLIDE, (11, 14), ALL),
        (SOME, "asymmetric", {}, (11, 14), ALL),
        (SOME, "asymmetric", SLIDE, (15, 8), ALL),
    ],
)
def test_pieces_give_what_whole_logits_do(monkeypatch, limits, resizing, mode, size, more):
    limit(monkeypatch, *limits)
    network, images = network_of(resizing), photos(2, *size)
    coordinates, protocol = resizing or "half_pixel", Protocol(**mode, **more)
    views = list(view_logits(network.run, images, protocol, coordinates))
    expected = classify(views[0]) if len(views) == 1 else vote(views)
    class_id, score = classify_in_pieces(network, images, protocol, coordinates)
    assert class_id.dtype == np.uint8 and score.dtype == np.float32
    np.testing.assert_allclose(score, expected[1], rtol=1e-5)
    assert (class_id == expected[0].numpy()).mean() > 0.995  # two classes may be as probable


def test_bands_hold_what_they_may_and_see_whole_views_once(monkeypatch):
    limit(monkeypatch, 1000, 4000)
    held, seen, zeros = [], [], np.zeros

    def counted(shape, dtype):
        made = zeros(shape, dtype)
        held.extend([made.nbytes] if made.ndim == 4 else [])
        return made

    def small(images):
        seen.append(images.shape)
        return small_run(images)

    network = network_of("half_pixel")._replace(run=None, run_small=small)
    monkeypatch.setattr(np, "zeros", counted)
    classify_in_pieces(network, photos(1, 40, 30), Protocol(scales=(0.5, 1.0), flip=True))
    assert len(held) == 5 and max(held) <= 4000
    assert sum(held) == 40 * 30 * 4 * 4
    assert seen == 2 * [(1, 20, 15, 3)] + 2 * [(1, 40, 30, 3)]


def test_windows_that_do_not_reach_into_a_band_are_not_seen():
    images, seen = photos(1, 60, 20), []

    def run(windows):
        seen.append(windows.shape[0])
        return tf.cast(windows, tf.float32)

    tiles = list(slide_tiles(run, images, (10, 10), (8, 10), within=(26, 34)))
    assert sum(seen) == 2 * 2  # two rows: what begins at 16 ends before 26
    covered = np.zeros((60, 20), int)
    for top, left, logits in tiles:
        place = np.s_[top : top + logits.shape[1], left : left + logits.shape[2]]
        covered[place] += 1
        np.testing.assert_allclose(logits[0], images[0][place], rtol=1e-6)
    assert (covered[26:34] == 1).all() and covered.sum() == 8 * 20


@pytest.mark.parametrize("kind", ["auxiliary", "fused", "conv"])
def test_networks_that_end_in_resizing_are_known(monkeypatch, kind):
    """Its large logits are never made; by the predictor, with the weights that it has now."""
    if kind == "conv":
        model = make_conv()
    else:
        model = make_model(auxiliary_level="c3") if kind == "auxiliary" else fuse(make_model())
    images = photos(1, 21, 34)
    protocol = Protocol(scales=(1.0, 1.5), flip=True)
    predictor = Predictor.from_model(model, protocol)
    expected = predictor(images)
    networks, ours = [], pieces.classify_in_pieces
    monkeypatch.setattr(pieces, "AT_ONCE_BYTES", 0)
    monkeypatch.setattr(
        "isa_tf.inference.predictor.classify_in_pieces",
        lambda network, *args: networks.append(network) or ours(network, *args),
    )
    found = predictor(images)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4)
    assert (found[0] == expected[0]).mean() > 0.995
    (network,) = networks
    assert (network.run_small is None) == (kind == "conv")
    if kind == "auxiliary":
        assert network.run_small(images).shape == (1, 3, 5, 7)
        model.set_weights([weight[..., ::-1] for weight in model.get_weights()])
        assert (predictor(images)[0] != found[0]).any()


_MEMORY = """
import numpy as np
from isa_tf.inference import Predictor, Protocol, pieces
from tools.bench.memory import most
from tools.bench_slide import make_model

pieces.AT_ONCE_BYTES, pieces.PIECE_BYTES, pieces.VOTE_BYTES = 0, 2**22, 2**25
model, rng, peaks = make_model(150), np.random.default_rng(0), []
for protocol, *sizes in (
    (Protocol(scales=(0.5, 1.0), flip=True), (192, 192), (192, 2048)),
    (Protocol("slide", 96, 64), (192, 192), (192, 2048), (2048, 192)),
    (Protocol("slide", 96, 64, scales=(0.5, 1.0), flip=True), (192, 192), (2048, 192)),
):
    predictor = Predictor.from_model(model, protocol)
    peaks.append([])
    for size in sizes:
        predictor(rng.integers(0, 256, (1, *size, 3), np.uint8))
        peaks[-1].append(most())
print(peaks)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_longer_side():
    """In a process of its own: the most memory that one has had is never taken back."""
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    whole = 2048 * 192 * 150 * 4  # 236 MB
    for first, *longer in json.loads(done.stdout):
        assert max(longer) - first < 0.3 * whole


def test_what_fits_at_once():
    images = np.zeros((1, 1024, 2048, 3), np.uint8)
    assert fits_at_once(images, Protocol(), 19) and not fits_at_once(images, Protocol(), 150)
    assert not fits_at_once(images, Protocol(scales=(1, 1.5)), 19)
    assert not fits_at_once(images, Protocol(scales=0.5), 64)  # which end at full size
    assert not fits_at_once(images[:, :8, :8], Protocol(pad_size=(4096, 4096)), 19)
    assert not fits_at_once(images[:, :8, :8], Protocol(fit_size=(4096, 4096)), 19)
    assert fits_at_once(images[:, :8, :8], Protocol(), 19)


@pytest.mark.parametrize("mode", [{}, SLIDE], ids=["whole", "slide"])
def test_images_of_all_sizes_are_one_trace(monkeypatch, mode):
    calls = []

    class Counting(keras.layers.Layer):
        def call(self, x):
            calls.append(x.shape)
            return x

    model = make_conv()
    counted = Counting()(model.outputs[0])
    model = keras.Model(model.inputs, ResizeLike()([counted, model.inputs[0]]))
    calls.clear()
    predictor = Predictor.from_model(model, Protocol(**mode, scales=(0.5, 1), flip=True))
    rng = np.random.default_rng(0)
    for size in rng.integers(4, 24, (30, 2)):
        predictor(photos(1, *size))
    assert len(calls) == 1
    monkeypatch.setattr(pieces, "AT_ONCE_BYTES", 0)
    for size in rng.integers(4, 24, (10, 2)):
        predictor(photos(1, *size))
    assert len(calls) == (1 if mode else 2)  # of whole views, one more: of the small logits


def test_pairs_of_classes_that_are_not_there():
    network = network_of(None)
    with pytest.raises(ValueError, match=r"flip_pairs has \(1, 4\), classes are 0 to 3"):
        protocol = Protocol(flip=True, flip_pairs=((1, 4),))
        classify_in_pieces(network, photos(1, 8, 8), protocol)


def test_run_of_a_model_is_a_network():
    images, model = photos(1, 6, 9), make_conv()
    class_id, _ = classify_in_pieces(Network(run_of(model), 4), images, Protocol())
    np.testing.assert_array_equal(class_id, np.argmax(run_of(model)(images), -1))
