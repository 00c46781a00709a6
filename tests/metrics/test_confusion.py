"""MeanIoU and scores against loops over pixels."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from isa_tf.metrics import MeanIoU, boundary_band, class_scores, scores

CLASSES = 5


def batches(absent=(), count=3):
    """(labels, predicted classes); `absent` classes occur in neither."""
    rng = np.random.default_rng(0)
    present = [c for c in range(CLASSES) if c not in absent]
    for _ in range(count):
        labels = rng.choice([*present, 255], (2, 6, 7))
        yield labels, rng.choice(present, (2, 6, 7))


def confusion_by_loops(pairs):
    matrix = np.zeros((CLASSES, CLASSES), np.int64)
    for labels, predicted in pairs:
        for label, guess in zip(labels.ravel(), predicted.ravel(), strict=True):
            if label != 255:
                matrix[label, guess] += 1
    return matrix


def miou_by_loops(matrix, class_ids=None):
    ious = []
    for c in range(CLASSES) if class_ids is None else class_ids:
        union = matrix[c].sum() + matrix[:, c].sum() - matrix[c, c]
        if union:
            ious.append(matrix[c, c] / union)
    return np.mean(ious)


@pytest.mark.parametrize("absent", [(), (3,), (0, 4)], ids=str)
@pytest.mark.parametrize("as_logits", [False, True])
def test_equals_loops_and_keras(absent, as_logits):
    metric = MeanIoU(CLASSES)
    keras_metric = keras.metrics.MeanIoU(CLASSES, ignore_class=255)
    for labels, predicted in batches(absent):
        given = np.eye(CLASSES, dtype="float32")[predicted] if as_logits else predicted
        metric.update_state(labels.astype("uint8"), given)
        keras_metric.update_state(labels, predicted)
    matrix = confusion_by_loops(batches(absent))
    np.testing.assert_array_equal(metric.confusion, matrix)
    np.testing.assert_allclose(metric.result(), miou_by_loops(matrix), rtol=1e-6)
    np.testing.assert_allclose(metric.result(), keras_metric.result(), rtol=1e-6)
    metric.reset_state()
    assert float(metric.result()) == 0 and not np.any(metric.confusion.numpy())


def test_class_ids_choose_the_classes_of_the_mean():
    metric = MeanIoU(CLASSES, class_ids=(1, 3, 4))
    for labels, predicted in batches(absent=(3,)):
        metric.update_state(labels, predicted)
    matrix = confusion_by_loops(batches(absent=(3,)))
    np.testing.assert_allclose(metric.result(), miou_by_loops(matrix, (1, 4)), rtol=1e-6)


def test_an_unpredicted_class_counts_as_zero():
    metric = MeanIoU(3)
    metric.update_state([[[0, 1]]], [[[0, 2]]])
    np.testing.assert_allclose(metric.result(), 1 / 3)


def test_counts_beyond_float32():
    metric = MeanIoU(2)
    many = np.array([[2**24, 0], [2**25, 2**24]], np.int64)
    metric.confusion.assign(many)
    for _ in range(5):
        metric.update_state([[[0]]], [[[0]]])
    assert int(metric.confusion[0, 0]) == 2**24 + 5
    metric.confusion.assign(many * 2**20)
    np.testing.assert_allclose(metric.result(), (1 / 3 + 1 / 3) / 2, rtol=1e-6)


@pytest.mark.parametrize("label", [CLASSES, 200, -1])
def test_labels_and_predictions_out_of_range_are_refused(label):
    for labels, predicted, name in (
        ([[[label]]], [[[0]]], "label"),
        ([[[0]]], [[[label]]], "prediction"),
    ):
        metric = MeanIoU(CLASSES)
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"{name} outside 0..4"):
            metric.update_state(labels, predicted)
        assert not np.any(metric.confusion.numpy())


@pytest.mark.parametrize("jit_compile", [False, True])
def test_graph_and_xla_agree(jit_compile):
    metric = MeanIoU(CLASSES)
    update = tf.function(metric.update_state, jit_compile=jit_compile)
    for labels, predicted in batches():
        update(tf.constant(labels), tf.one_hot(predicted, CLASSES))
    np.testing.assert_array_equal(metric.confusion, confusion_by_loops(batches()))


def test_replicas_add_up(mirrored):
    with mirrored.scope():
        metric = MeanIoU(CLASSES)

    def part(values):
        parts = np.split(values, 2)
        return mirrored.experimental_distribute_values_from_function(
            lambda context: tf.constant(parts[context.replica_id_in_sync_group])
        )

    update = tf.function(lambda *parts: mirrored.run(metric.update_state, parts))
    for labels, predicted in batches():
        update(part(labels), part(predicted))
    matrix = confusion_by_loops(batches())
    np.testing.assert_array_equal(metric.confusion, matrix)
    np.testing.assert_allclose(metric.result(), miou_by_loops(matrix), rtol=1e-6)


@pytest.mark.parametrize("per", ["image", "pixel"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_weights_count_a_pixel_so_often(per, jit_compile):
    metric, repeated = MeanIoU(CLASSES), MeanIoU(CLASSES)
    update = tf.function(metric.update_state, jit_compile=jit_compile)
    rng = np.random.default_rng(7)
    for labels, predicted in batches():
        weights = rng.integers(0, 4, labels.shape if per == "pixel" else len(labels))
        update(tf.constant(labels), tf.constant(predicted), tf.constant(weights / 8))
        each = np.broadcast_to(weights if per == "pixel" else weights[:, None, None], labels.shape)
        repeated.update_state(
            np.repeat(labels.ravel(), each.ravel()), np.repeat(predicted.ravel(), each.ravel())
        )
    np.testing.assert_array_equal(8 * metric.confusion.numpy(), repeated.confusion)
    np.testing.assert_allclose(metric.result(), repeated.result(), rtol=1e-6)
    found, expected = (scores(m.confusion.numpy()) for m in (metric, repeated))
    np.testing.assert_allclose(found["miou"], expected["miou"])
    np.testing.assert_allclose(found["pixel_accuracy"], expected["pixel_accuracy"])


def test_counts_are_exact():
    metric = MeanIoU(2)
    metric.confusion.assign([[2.0**53 - 2, 0], [0, 0]])
    metric.update_state([[[0]]], [[[0]]])
    found = scores(metric.confusion.numpy())["confusion_matrix"]
    assert found == [[2**53 - 1, 0], [0, 0]] and isinstance(found[0][0], int)


def test_config_round_trip():
    metric = MeanIoU(CLASSES, ignore_label=7, class_ids=[1, 2], name="iou", dtype="float32")
    twin = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert isinstance(twin, MeanIoU) and twin.get_config() == metric.get_config()


def test_scores():
    matrix = confusion_by_loops(batches(absent=(3,)))
    names = ["a", "b", "c", "d", "e"]
    found = scores(matrix, names)
    assert found["classes_counted"] == 4 and found["iou"]["d"] is None
    np.testing.assert_allclose(found["miou"], miou_by_loops(matrix))
    accuracies = [matrix[c, c] / matrix[c].sum() for c in (0, 1, 2, 4)]
    np.testing.assert_allclose(found["mean_accuracy"], np.mean(accuracies))
    np.testing.assert_allclose(found["pixel_accuracy"], np.trace(matrix) / matrix.sum())
    for c in (0, 1, 2, 4):
        union = matrix[c].sum() + matrix[:, c].sum() - matrix[c, c]
        np.testing.assert_allclose(found["iou"][names[c]], matrix[c, c] / union)
    assert found["confusion_matrix"] == matrix.tolist()
    chosen = scores(matrix, class_ids=(1, 3))
    assert chosen["classes_counted"] == 1
    np.testing.assert_allclose(chosen["miou"], found["iou"]["b"])
    np.testing.assert_allclose(chosen["pixel_accuracy"], found["pixel_accuracy"])


def test_the_table_of_classes_equals_loops_over_pixels():
    pairs = list(batches(absent=(3,)))
    table = class_scores(confusion_by_loops(pairs), "abcde")
    assert scores(confusion_by_loops(pairs), "abcde")["classes"] == table
    labels, predicted = (np.concatenate([p[i].ravel() for p in pairs]) for i in (0, 1))
    predicted, labels = predicted[labels != 255], labels[labels != 255]
    for c, name in enumerate("abcde"):
        is_c, said_c = labels == c, predicted == c
        both = (is_c & said_c).sum()
        expected = {
            "pixels": is_c.sum(),
            "iou": both / (is_c | said_c).sum() if (is_c | said_c).any() else None,
            "accuracy": both / is_c.sum() if is_c.any() else None,
            "precision": both / said_c.sum() if said_c.any() else None,
            "recall": both / is_c.sum() if is_c.any() else None,
            "f1": 2 * both / (is_c.sum() + said_c.sum()) if (is_c | said_c).any() else None,
        }
        assert table[name] == pytest.approx(expected)
        if c != 3:
            p, r = expected["precision"], expected["recall"]
            assert table[name]["f1"] == pytest.approx(2 * p * r / (p + r))
    assert set(table["d"].values()) == {0, None}
    # A class that is only said has a precision, and no accuracy.
    only_said = class_scores([[1, 1], [0, 0]])["1"]
    assert only_said["precision"] == only_said["iou"] == 0 and only_said["accuracy"] is None


# === The band around boundaries ===


def band_by_loops(label, width):
    """Whether any pixel of another label is near, for each."""
    band = np.zeros(label.shape, bool)
    for y, x in np.ndindex(label.shape):
        rows = label[max(y - width, 0) : y + width + 1]
        band[y, x] = any(
            other != label[y, x] for other in rows[:, max(x - width, 0) : x + width + 1].flat
        )
    return band


@pytest.mark.parametrize("size", [(9, 17), (1, 12), (12, 1), (2, 3), (1, 1)], ids=str)
def test_band_equals_loops(size):
    rng = np.random.default_rng(1)
    # Blocks with ignored pixels between: boundaries, corners, thin lines, the image's border.
    labels = np.stack([rng.choice([0, 3, 255], size, p=[0.9, 0.05, 0.05]) for _ in range(3)])
    labels[1] = np.indices(size).sum(0) > 9
    labels[2] = 7
    for width in (0, 1, 3, 20):
        found = boundary_band(labels.astype("uint8"), width)
        for band, label in zip(found, labels, strict=True):
            np.testing.assert_array_equal(band, band_by_loops(label, width))
        assert not found[2].any()
    with pytest.raises(ValueError, match="at least 0 pixels, got -1"):
        boundary_band(labels, -1)


def test_band_around_what_is_ignored():
    line = np.uint8([[1] * 6 + [255] + [1] * 6])
    np.testing.assert_array_equal(np.flatnonzero(boundary_band(line)), range(3, 10))


def test_scores_of_nothing():
    found = scores(np.zeros((2, 2)))
    assert found["miou"] is found["mean_accuracy"] is found["pixel_accuracy"] is None
    assert found["classes_counted"] == 0


def test_scores_refuse_what_is_no_confusion_matrix():
    with pytest.raises(ValueError, match="square"):
        scores(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="1 class_names for 2 classes"):
        scores(np.zeros((2, 2)), ["a"])
