"""HRNet: one map of four scales, the published counts of parameters, what it is made with."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import image

from isa_tf.backbones import HRNet, create, output_strides
from isa_tf.models import Segmenter
from isa_tf.testing import randomize, relative_error

TINY = {"modules": (1, 2, 1), "blocks": 1, "filters": 4}


@functools.cache
def made(**arguments):
    model = HRNet(2, **TINY, **arguments)
    randomize(model)
    return model


def resized(x, size, align_corners=False):
    """Bilinearly, row by row and column by column, from the definition."""
    for axis, wanted in zip((1, 2), size, strict=True):
        length = x.shape[axis]
        if align_corners:
            at = np.arange(wanted) * ((length - 1) / max(wanted - 1, 1))
        else:
            at = np.maximum((np.arange(wanted) + 0.5) * (length / wanted) - 0.5, 0)
        low = np.minimum(at.astype(int), length - 1)
        high = np.minimum(low + 1, length - 1)
        share = (at - low).reshape([-1 if i == axis else 1 for i in range(4)])
        x = x.take(low, axis) * (1 - share) + x.take(high, axis) * share
    return x


@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners"])
def test_a_head_reads_the_four_scales_as_one_map(coordinates):
    model = made(coordinates=coordinates)
    assert model.head_level == "concatenated" and model.feature_strides["concatenated"] == 4
    maps = {name: x.numpy() for name, x in model(image(75, 43)).items()}
    scales = [maps[f"c{i}"] for i in (2, 3, 4, 5)]
    assert [x.shape for x in scales] == [
        (1, 19, 11, 2),
        (1, 10, 6, 4),
        (1, 5, 3, 8),
        (1, 3, 2, 16),
    ]
    whole = [resized(x, (19, 11), coordinates == "align_corners") for x in scales]
    assert relative_error(maps["concatenated"], np.concatenate(whole, -1)) < 1e-5


def test_every_scale_hears_of_every_other():
    """A module's sum, by hand: of the first stage that has two scales."""
    model = made(coordinates="half_pixel")
    name = "stage2_module1"
    blocks = [model.get_layer(f"{name}_branch{i}_block1_relu").output for i in (1, 2)]
    sums = [model.get_layer(f"{name}_fuse{i}_relu").output for i in (1, 2)]
    fine, coarse, *found = keras.Model(model.input, blocks + sums)(image(44, 36))
    up = model.get_layer(f"{name}_fuse1_from2")(coarse).numpy()
    down = model.get_layer(f"{name}_fuse2_from1_conv1")(fine)
    assert (up < 0).any()  # no activation before the sum
    assert relative_error(found[0], np.maximum(fine + resized(up, (11, 9)), 0)) < 1e-5
    assert relative_error(found[1], np.maximum(coarse + down, 0)) < 1e-5


def test_the_ways_of_resizing_differ_where_sizes_are_odd_alone():
    models = [made(coordinates="half_pixel"), made(fuse_by="factor")]
    found = [model(image(64, 96))["concatenated"] for model in models]
    assert relative_error(*found) < 1e-6
    found = [model(image(75, 43))["concatenated"] for model in models]
    assert relative_error(*found) > 1e-4


def test_parameter_counts():
    """timm's, of the part before its classifier; with the head of HRNet's authors 9.6 M."""
    model = create("hrnet_w18")
    assert model.output["concatenated"].shape[-1] == 270
    assert sum(np.prod(w.shape) for w in model.trainable_weights) == 9_562_260


def test_it_has_one_output_stride():
    assert output_strides("hrnet_w32") == (4,)
    with pytest.raises(ValueError, match="output_stride must be 4, got 8"):
        create("hrnet_w32", output_stride=8)
    with pytest.raises(ValueError, match="output_stride must be 4, got 16"):
        Segmenter("hrnet_w32", output_stride=16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width must be an int of at least 1, got 0"),
        ({"width": 18.0}, "width must be an int of at least 1, got 18.0"),
        ({"blocks": True}, "blocks must be an int of at least 1, got True"),
        ({"filters": 0}, "filters must be an int"),
        ({"modules": (1, 4)}, r"modules must be three ints, of stages 2, 3 and 4, got \(1, 4\)"),
        ({"modules": (1, 0, 3)}, r"modules\[1\] must be an int of at least 1, got 0"),
        ({"coordinates": "corners"}, "coordinates must be one of half_pixel"),
        ({"fuse_by": "sum"}, r"fuse_by must be one of \['size', 'factor'\], got 'sum'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        HRNet(**arguments)


def test_recomputing_changes_no_gradient():
    found = []
    for recompute in (False, True):
        model = made(recompute=recompute)
        named = {v.path.split("_recomputed/")[-1]: v for v in model.trainable_variables}
        rng = np.random.default_rng(0)
        for name in sorted(named):
            named[name].assign(rng.normal(0.3, 0.3, named[name].shape))
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(image(40, 33, 2), training=True)["concatenated"] ** 2)
        gradients = tape.gradient(loss, [named[name] for name in sorted(named)])
        found.append((sorted(named), loss, gradients))
    (names, loss, plain), (others, again, recomputed) = found
    assert [n.split("/")[-3:] for n in names] == [n.split("/")[-3:] for n in others]
    np.testing.assert_allclose(again, loss, rtol=1e-5)
    scale = max(np.abs(g).max() for g in plain)
    for a, b in zip(plain, recomputed, strict=True):
        assert np.abs(a - b).max() < 1e-4 * scale
