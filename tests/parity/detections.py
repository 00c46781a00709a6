"""What the comparisons of detectors share."""

import numpy as np
import tensorflow as tf
import torchvision_reference as reference


def few():
    """What `reference.FEW` comes to here."""
    pairs = {
        f"proposals_{when}": tuple(
            reference.FEW[f"rpn_{kind}_nms_top_n_{mode}"] for mode in ("train", "test")
        )
        for when, kind in (("before", "pre"), ("after", "post"))
    }
    return {**pairs, "box_samples": reference.FEW["box_batch_size_per_image"]}


def inputs(found):
    return {name: tf.constant(found[name]) for name in ("image", "size")}


def assert_same_detections(found, expected):
    """The same detections in the same order but for ties, at most 1e-4 of score apart."""
    for i, theirs in enumerate(expected["boxes"]):
        number = int(found["valid"][i].numpy().sum())
        assert number == len(theirs) > 20
        scores = expected["scores"][i]
        np.testing.assert_allclose(found["scores"][i, :number], scores, rtol=0, atol=1e-4)
        places = set(range(number))
        for k in range(number):
            tied = np.flatnonzero(np.abs(scores - scores[k]) <= 1e-4)
            same = [
                j
                for j in tied
                if j in places
                and found["classes"][i, k] + 1 == expected["labels"][i][j]
                and np.abs(found["boxes"][i, k] - theirs[j]).max() <= 0.05
                and np.abs(found["masks"][i, k] - expected["masks"][i][j]).max() <= 1e-3
            ]
            assert same, f"image {i}: detection {k} is none of theirs"
            places.remove(same[0])
        assert len(set(expected["labels"][i])) > 2  # one class would prove little
        assert np.ptp(expected["masks"][i]) > 0.9
