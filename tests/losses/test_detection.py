"""The five losses of Mask R-CNN against loops in float64; padding, and two replicas."""

import math

import detecting
import numpy as np
import tensorflow as tf

from isa_tf import losses

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def huber(error, beta):
    error = abs(float(error))
    return 0.5 * error**2 / beta if error < beta else error - 0.5 * beta


def boxes(rng, *shape):
    corner, side = rng.uniform(0, 50, (*shape, 2)), rng.uniform(5, 40, (*shape, 2))
    return np.concatenate([corner, corner + side], -1).astype("float32")


def proposal_case(seed=0):
    rng = np.random.default_rng(seed)
    valid = rng.uniform(size=(4, 9)) < 0.7
    return {
        "logits": rng.normal(0, 2, (4, 9)).astype("float32"),
        "codes": rng.normal(0, 0.5, (4, 9, 4)).astype("float32"),
        "boxes": boxes(rng, 4, 9),
        "references": boxes(rng, 4, 9),
        "positive": rng.uniform(size=(4, 9)) < 0.4,
        "valid": valid,
    }


def box_case(seed=1):
    rng = np.random.default_rng(seed)
    return {
        "logits": rng.normal(0, 2, (4, 9, 4)).astype("float32"),
        "codes": rng.normal(0, 3, (4, 9, 3, 4)).astype("float32"),
        "boxes": boxes(rng, 4, 9),
        "references": boxes(rng, 4, 9),
        "labels": rng.integers(0, 4, (4, 9)).astype("int32"),
        "valid": rng.uniform(size=(4, 9)) < 0.7,
    }


def mask_case(seed=2):
    rng = np.random.default_rng(seed)
    return {
        "logits": rng.normal(0, 2, (4, 5, 6, 6, 3)).astype("float32"),
        "masks": rng.uniform(size=(4, 5, 6, 6)).astype("float32"),
        "classes": rng.integers(0, 3, (4, 5)).astype("int32"),
        "valid": rng.uniform(size=(4, 5)) < 0.6,
    }


def entropy(logit, truth):
    p = detecting.sigmoid(logit)
    return -truth * math.log(p) - (1 - truth) * math.log(1 - p)


def test_proposal_losses_equal_loops():
    case, beta = proposal_case(), 1 / 9
    objectness = box = 0.0
    for at in zip(*np.nonzero(case["valid"]), strict=True):
        objectness += entropy(case["logits"][at], float(case["positive"][at]))
        if case["positive"][at]:
            code = detecting.encode(case["boxes"][at], case["references"][at].astype("float64"))
            box += sum(huber(a - b, beta) for a, b in zip(case["codes"][at], code, strict=True))
    count = case["valid"].sum()
    found = losses.proposal_losses(**case, beta=beta)
    np.testing.assert_allclose(found, [objectness / count, box / count], rtol=1e-5)


def test_box_losses_equal_loops():
    for beta in (1 / 9, 1.0):
        case = box_case()
        kind = box = 0.0
        for at in zip(*np.nonzero(case["valid"]), strict=True):
            label, logits = case["labels"][at], case["logits"][at].astype("float64")
            kind += math.log(np.exp(logits).sum()) - logits[label]
            if label:
                reference = case["references"][at].astype("float64")
                code = detecting.encode(case["boxes"][at], reference, WEIGHTS)
                own = case["codes"][at][label - 1]
                box += sum(huber(a - b, beta) for a, b in zip(own, code, strict=True))
        count = case["valid"].sum()
        found = losses.box_losses(**case, weights=WEIGHTS, beta=beta)
        np.testing.assert_allclose(found, [kind / count, box / count], rtol=1e-5)


def test_without_beta_errors_count_as_they_are():
    errors = tf.constant([-2.0, 0.0, 0.25])
    np.testing.assert_array_equal(losses.smooth_l1(errors, 0), [2, 0, 0.25])


def test_mask_loss_equals_loops():
    case = mask_case()
    values = []
    for b, i in zip(*np.nonzero(case["valid"]), strict=True):
        logits = case["logits"][b, i, :, :, case["classes"][b, i]]
        truth = case["masks"][b, i]
        values += [entropy(z, float(t)) for z, t in zip(logits.flat, truth.flat, strict=True)]
    np.testing.assert_allclose(losses.mask_loss(**case), np.mean(values), rtol=1e-5)


def test_what_is_padding_does_not_matter():
    for make, loss in (
        (proposal_case, losses.proposal_losses),
        (box_case, lambda **case: losses.box_losses(**case, weights=WEIGHTS)),
        (mask_case, losses.mask_loss),
    ):
        case = make()
        expected = np.array(loss(**case))
        out = ~case["valid"]
        for name, value in case.items():
            if value.dtype == np.float32:
                value[out] = np.nan if name in ("logits", "codes") else 0
            elif name in ("labels", "classes"):
                value[out] = 0
        np.testing.assert_allclose(np.array(loss(**case)), expected, rtol=1e-6)
        with tf.GradientTape() as tape:
            logits = tf.constant(case["logits"])
            tape.watch(logits)
            total = tf.reduce_sum(loss(**{**case, "logits": logits}))
        gradient = tape.gradient(total, logits).numpy()
        assert np.isfinite(gradient[case["valid"]]).all() and np.any(gradient[case["valid"]])
        case["valid"][:] = False
        np.testing.assert_array_equal(np.array(loss(**case)), 0 * expected)


def test_shares_of_replicas_add_up(mirrored):
    """Of two replicas, with unequal numbers of what counts."""
    for make, loss in (
        (proposal_case, losses.proposal_losses),
        (box_case, lambda **case: losses.box_losses(**case, weights=WEIGHTS)),
        (mask_case, losses.mask_loss),
    ):
        case = make()
        case["valid"][:2] &= np.arange(case["valid"].shape[1]) < 2
        expected = np.ravel(np.array(loss(**case)))
        halves = [
            {n: tf.constant(v[half]) for n, v in case.items()} for half in (slice(2), slice(2, 4))
        ]
        shares = _shares(mirrored, loss, halves)
        np.testing.assert_allclose(sum(shares), expected, rtol=1e-5)


def _shares(strategy, loss, halves):
    """What each replica makes of its part of a batch."""

    @tf.function
    def run():
        parts = {
            name: strategy.experimental_distribute_values_from_function(
                lambda context, name=name: halves[context.replica_id_in_sync_group][name]
            )
            for name in halves[0]
        }
        return strategy.run(lambda part: tf.stack(tf.nest.flatten(loss(**part))), (parts,))

    return [np.ravel(part.numpy()) for part in strategy.experimental_local_results(run())]
