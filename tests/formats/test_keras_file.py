"""`.keras` files: without optimizers, of half the size, and the traps among them."""

import io
import json
import os
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest
from exporting import make_model, random_images

import isa_tf
from isa_tf.formats import load_model
from isa_tf.models import Segmenter


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def weights_of(path):
    """The arrays in a file by their paths."""
    found = {}
    with h5py.File(io.BytesIO(members(path)["model.weights.h5"])) as file:
        file.visititems(
            lambda name, item: (
                found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
        )
    return found


def test_keras_reads_what_was_exported(exported):
    model, paths = exported
    images = random_images(1, 40, 44).astype("float32")
    again = load_model(paths["keras"])
    np.testing.assert_allclose(again(images), model(images), rtol=1e-4, atol=1e-4)


def test_the_optimizer_stays_behind(tmp_path):
    model = make_model()
    metrics = [isa_tf.metrics.MeanIoU(7)]
    model.compile("adam", isa_tf.losses.PixelCrossEntropy(), metrics=metrics, jit_compile=False)
    images = random_images(2, 32, 32)
    model.fit(images.astype("float32"), np.zeros((2, 32, 32), "int32"), verbose=0)
    model.save(tmp_path / "whole.keras")
    path = isa_tf.export(model, tmp_path / "new" / "model.keras")
    assert "compile_config" in json.loads(members(tmp_path / "whole.keras")["config.json"])
    assert "compile_config" not in json.loads(members(path)["config.json"])
    whole, kept = weights_of(tmp_path / "whole.keras"), weights_of(path)
    assert any(name.startswith("optimizer") for name in whole)
    assert len(kept) == len(model.weights)
    assert all(np.array_equal(kept[name], whole[name]) for name in kept)
    assert model.compiled and model.optimizer.iterations == 1  # the model goes on as it was
    loaded = load_model(path)
    assert not loaded.compiled
    np.testing.assert_array_equal(
        loaded.predict(images, verbose=0), model.predict(images, verbose=0)
    )


def make_sure():
    """A model that has learned to tell three colours apart, and images of them."""
    rng = np.random.default_rng(0)
    label = np.kron(rng.integers(0, 3, (2, 6, 8)), np.ones((1, 12, 12), int))
    images = np.array([[220, 60, 40], [40, 210, 70], [60, 80, 200]])[label]
    images = np.uint8(images + rng.integers(-30, 31, images.shape))
    model = Segmenter("tiny", None, 3, head_filters=16, head_kernel_size=1)
    model.compile("adam", isa_tf.losses.PixelCrossEntropy())
    model.fit(images.astype("float32"), label, epochs=60, verbose=0)
    return model, images


def test_half_the_size(tmp_path):
    model, images = make_sure()
    whole = isa_tf.export(model, tmp_path / "whole.keras")
    half = isa_tf.export(model, tmp_path / "half.keras", weights_dtype="float16")
    before, after = weights_of(whole), weights_of(half)
    assert before.keys() == after.keys()
    assert {values.dtype.name for values in after.values()} == {"float16"}
    assert sum(v.nbytes for v in after.values()) * 2 == sum(v.nbytes for v in before.values())
    for ours, theirs in zip(model.weights, load_model(half).weights, strict=True):
        assert theirs.dtype == ours.dtype == "float32"
        np.testing.assert_allclose(theirs.numpy(), ours.numpy(), rtol=2**-11, atol=1e-7)
    found = isa_tf.formats.find(half).verify(half, model, images)
    assert found.agreement >= 0.999 and found.kinds == 3
    assert 0 < found.score_difference < 0.05


def test_what_float16_cannot_hold_is_kept_as_it_is(tmp_path):
    model = make_model()
    variance = next(w for w in model.weights if w.name == "moving_variance")
    values = np.linspace(1, 1e6, variance.shape[0])
    variance.assign(values)
    path = isa_tf.export(model, tmp_path / "half.keras", weights_dtype="float16")
    again = next(w for w in load_model(path).weights if w.path == variance.path)
    np.testing.assert_array_equal(again.numpy(), variance.numpy())
    assert sorted({v.dtype.name for v in weights_of(path).values()}) == ["float16", "float32"]


def test_half_precision_stays_what_it_is(tmp_path):
    model = make_model(dtype="bfloat16")
    path = isa_tf.export(model, tmp_path / "half.keras", weights_dtype="float16")
    for ours, theirs in zip(model.weights, load_model(path).weights, strict=True):
        assert theirs.dtype == ours.dtype
        np.testing.assert_array_equal(np.float32(theirs.numpy()), np.float32(ours.numpy()))


@pytest.mark.parametrize("older", [True, False])
def test_an_export_that_fails_leaves_what_was_there(tmp_path, monkeypatch, older):
    path = tmp_path / "model.keras"
    if older:
        isa_tf.export(make_model(), path)
    before = path.read_bytes() if older else None
    for dtype in ("int8", None, np.float16):
        with pytest.raises(ValueError, match='weights_dtype is "float32" or "float16", got'):
            isa_tf.export(make_model(), path, weights_dtype=dtype)

    def fail(*args, **kwargs):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr("isa_tf.formats.keras_file._copy", fail)
    with pytest.raises(RuntimeError, match="the disk is full"):
        isa_tf.export(make_model(), path, weights_dtype="float16")
    assert os.listdir(tmp_path) == ["model.keras"] * older
    assert not older or path.read_bytes() == before


# === Traps ===


def replaced(path, change):
    """A file whose weights have been changed by a function of the HDF5 file."""
    content = members(path)
    weights = io.BytesIO(content["model.weights.h5"])
    with h5py.File(weights, "a") as file:
        change(file)
    content["model.weights.h5"] = weights.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for name, each in content.items():
            archive.writestr(name, each)
    return path


def squeezed(file):
    """200 MB of zeros that take some hundred KB."""
    place = file["layers/conv2d/vars"]
    del place["0"]
    data = place.create_dataset("0", (200, 2**18), "float32", chunks=(1, 2**18), compression="gzip")
    for row in range(200):
        data[row] = 0


def unwritten(file):
    """2 GB that were declared and never written."""
    place = file["layers/conv2d/vars"]
    del place["0"]
    place.create_dataset("0", (2**29,), "float32", chunks=(2**20,))


@pytest.mark.parametrize("change", [squeezed, unwritten])
def test_weights_that_inflate_are_refused_before_they_do(tmp_path, change):
    path = isa_tf.export(make_model(), tmp_path / "bomb.keras")
    load_model(path)  # what is loaded once is not counted below
    assert replaced(path, change).stat().st_size < 2**21
    for load in (load_model, isa_tf.load_predictor):
        tracemalloc.start()
        try:
            with pytest.raises(ValueError, match=r"bomb.keras: .*weights of .* would inflate to"):
                load(path)
            assert tracemalloc.get_traced_memory()[1] < 2**24
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("name", ["config.json", "model.weights.npz"])
def test_an_archive_that_inflates_is_refused_before_it_does(tmp_path, name):
    content = members(isa_tf.export(make_model(), tmp_path / "bomb.keras"))
    del content["model.weights.h5"]
    if name == "model.weights.npz":
        inner = io.BytesIO()
        np.savez_compressed(inner, a=np.zeros((200, 2**18), "float32"))
        content[name] = inner.getvalue()
    else:
        content[name] = bytes(200 * 2**20)
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        for each, data in content.items():
            archive.writestr(each, data)
    del content
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"bomb.keras: .* would inflate to 2\d\d,\d+,\d+"):
            load_model(tmp_path / "bomb.keras")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
