"""A model of one's own, loaded for its classes and for others."""

import warnings

import keras
import numpy as np
import pytest

from isa_tf import models
from isa_tf.testing import randomize

NAMES = ("sky", "tree", "road")


@pytest.fixture
def kept(tmp_path):
    model = models.Segmenter(
        "tiny",
        num_classes=3,
        head_filters=8,
        auxiliary_level="c1",
        auxiliary_filters=4,
        class_names=NAMES,
        protocol={"flip": True, "flip_pairs": ((1, 2),)},
    )
    randomize(model)
    model.compile("sgd", "mse")
    model.save(tmp_path / "kept.keras")
    return model, tmp_path / "kept.keras"


def test_as_it_was(kept):
    model, path = kept
    loaded = models.load(path)
    assert loaded.class_names == NAMES and not loaded.compiled
    for ours, theirs in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_for_other_classes_only_the_classifiers_are_new(kept):
    model, path = kept
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of weights that Keras could not place
        loaded = models.load(path, num_classes=7, class_names=list("abcdefg"))
    assert loaded.num_classes == 7 and loaded.class_names == tuple("abcdefg")
    assert loaded.protocol == {"flip": True}
    new = []
    for ours, theirs in zip(loaded.layers, model.layers, strict=True):
        for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
            if a.shape != b.shape or (a != b).any():
                new.append(ours.name)
    assert set(new) == {"logits_classifier", "auxiliary_logits_classifier"}
    assert loaded(np.zeros((1, 32, 32, 3), "float32")).shape == (1, 32, 32, 7)


def test_as_many_other_classes_are_other_classes(kept):
    model, path = kept
    loaded = models.load(path, num_classes=3)
    assert loaded.class_names is None
    ours, theirs = (m.get_layer("logits_classifier").kernel for m in (loaded, model))
    assert np.abs(np.asarray(ours) - np.asarray(theirs)).max() > 0


def test_what_cannot_be_loaded(kept, tmp_path):
    _, path = kept
    with pytest.raises(ValueError, match="class_names has 2 entries for 7 classes"):
        models.load(path, 7, class_names=["a", "b"])
    with pytest.raises(ValueError, match="go with num_classes"):
        models.load(path, class_names=NAMES)
    with pytest.raises(FileNotFoundError, match="none.keras"):
        models.load(tmp_path / "none.keras")
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(tmp_path / "other.keras")
    with pytest.raises(ValueError, match="a Segmenter or a MaskRCNN has classifiers"):
        models.load(tmp_path / "other.keras", 7)
