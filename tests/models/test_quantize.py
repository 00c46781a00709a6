"""Keras's own `quantize`, which these models have not."""

import pytest
from exporting import make_model
from finding import make_detector

import isa_tf


@pytest.mark.parametrize("mode", ["int8", "float8"])
def test_the_error_says_what_there_is_instead(mode):
    model = make_model()
    before = [policy.name for policy in _policies(model)]
    with pytest.raises(ValueError, match="Keras quantises no convolutions; .*litert_int8"):
        model.quantize(mode)
    with pytest.raises(ValueError, match="Keras quantises no convolutions; .*litert_fp16"):
        make_detector().quantize(mode)
    assert [policy.name for policy in _policies(model)] == before


def test_what_it_names_is_to_be_had():
    assert {"litert_int8", "litert_fp16"} <= {*isa_tf.formats.list_names()}
    options = isa_tf.formats.create("litert_int8").options
    assert options == {"image_size": True, "calibration": True}


def _policies(model):
    return [layer.dtype_policy for layer in model._flatten_layers()]
