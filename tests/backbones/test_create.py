"""Backbones of others join by name, and files of weights that are traps are refused."""

import tracemalloc
import zipfile

import numpy as np
import pytest

from isa_tf import backbones


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(backbones._BACKBONES, "_entries", dict(backbones._BACKBONES._entries))


def test_a_backbone_of_ones_own():
    known = backbones.list_names()
    asked = {}

    @backbones.register("mine")
    def mine(**arguments):
        asked.update(arguments)
        return backbones.TinyNet(**arguments)

    assert backbones.list_names() == [*known, "mine"]
    assert "mine" not in backbones.list_keras_names()
    model = backbones.create("mine", output_stride=8, dtype="mixed_bfloat16")
    assert model.feature_strides == {"c1": 2, "c2": 4, "c3": 8}
    wanted = {"name": "mine", "weights": None, "output_stride": 8, "dtype": "mixed_bfloat16"}
    assert asked == wanted
    with pytest.raises(ValueError, match="unknown backbone 'mime'; did you mean \"mine\""):
        backbones.create("mime")
    with pytest.raises(ValueError, match="there is a backbone 'resnet18' already"):
        backbones.register("resnet18", mine)
    assert backbones.create("resnet18").depth == 18


def test_keras_names_are_listed_apart():
    names = backbones.list_keras_names()
    assert names and all(name.startswith("keras:") for name in names)
    assert not set(names) & set(backbones.list_names())
    with pytest.raises(ValueError, match='did you mean "keras:MobileNetV2"'):
        backbones.create("keras:MobilNetV2")


def test_a_keras_file_that_inflates_too_far(tmp_path):
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("model.weights.h5", "w") as member:
            for _ in range(16):
                member.write(bytes(1 << 24))
    model = backbones.create("resnet18", filters=4)
    before = model.get_weights()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"bomb\.keras: .* would inflate to 268,435,456"):
            model.load_file(path, convert=None)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_keras_file_that_is_none(tmp_path):
    path = tmp_path / "text.keras"
    path.write_text("no archive")
    with pytest.raises(ValueError, match=r"text\.keras: File is not a zip file"):
        backbones.create("resnet18", weights=path)
