"""Losses by name, as a config has them."""

import numpy as np
import pytest

from isa_tf import losses


def test_every_name_makes_a_loss_with_the_shared_arguments():
    for name in losses.list_names():
        loss = losses.create(name, ignore_label=7, class_weights=(1.0, 2.0), average="all")
        assert loss.ignore_label == 7
        over_pixels = isinstance(loss, losses.PixelLoss)
        assert loss.class_weights == ((1.0, 2.0) if over_pixels else None)
        assert not over_pixels or loss.average == "all"


def test_a_weighted_sum_by_name():
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 3, (1, 4, 4)), rng.normal(size=(1, 4, 4, 3)).astype("float32")
    loss = losses.combine(
        {"focal": 2.0, "dice": 0.5, "lovasz": 0.0}, {"focal": {"gamma": 1.0}}, average="all"
    )
    expected = 2 * losses.FocalLoss(gamma=1.0, average="all")(labels, logits)
    expected += 0.5 * losses.DiceLoss()(labels, logits)
    np.testing.assert_allclose(loss(labels, logits), expected, rtol=1e-6)


def test_one_loss_stays_itself():
    loss = losses.combine({"cross_entropy": 1.0}, class_weights=(1.0, 3.0))
    assert type(loss) is losses.PixelCrossEntropy and loss.class_weights == (1.0, 3.0)


@pytest.mark.parametrize(
    "weights, options, message",
    [
        ({}, {}, "needs a loss; known: cross_entropy"),
        ({"dice": 0.0}, {}, "needs a loss"),
        ({"dise": 1.0}, {}, "unknown loss 'dise'; did you mean \"dice\""),
        ({"dice": 1.0}, {"ohem": {}}, "losses that are not there: ohem"),
        ({"ohem": 1.0}, {"ohem": {"treshold": 0.5}}, "loss 'ohem': .*treshold"),
    ],
)
def test_what_is_no_sum_is_refused(weights, options, message):
    with pytest.raises(ValueError, match=message):
        losses.combine(weights, options)


def test_options_of_a_loss_come_before_what_all_share():
    """So the losses of overlap, which take none of the shared ones, are given class weights."""
    options = {name: {"class_weights": (1.0, 2.0)} for name in ("cross_entropy", "dice")}
    weights = {"cross_entropy": 1.0, "dice": 0.5, "focal": 1.0}
    shared = {"ignore_label": 255, "class_weights": (3.0, 1.0), "average": "valid"}
    found = [loss.class_weights for loss in losses.combine(weights, options, **shared).losses]
    assert found == [(1.0, 2.0), (1.0, 2.0), (3.0, 1.0)]
    one = losses.combine({"dice": 1.0}, {"dice": options["dice"]}, class_weights=None)
    assert one.class_weights == (1.0, 2.0)
