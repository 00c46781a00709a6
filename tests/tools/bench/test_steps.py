"""The step that is timed is the one that a training runs."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from experiments import setup
from experiments.configs import default
from experiments.tasks import segmentation
from isa_tf import training
from tools.bench import detector, segmenters, steps

CASE = {
    "module": "isa:partition=2",
    "backbone": "tiny",
    "output_stride": 4,
    "num_classes": 3,
    "dtype": "float32",
    "minimal_filtering": None,
}


def batch():
    rng = np.random.default_rng(0)
    image = tf.constant(rng.integers(0, 256, (2, 32, 48, 3)).astype("float32"))
    return image, tf.constant(rng.integers(0, 3, (2, 32, 48)).astype("uint8"))


def made():
    keras.utils.set_random_seed(0)
    return segmenters.make_model(CASE)


def test_weights_are_those_that_a_run_leaves(tmp_path):
    """Two steps of it, and two of `training.Run` by the same config, bit for bit."""
    timed = made()
    step = steps.of_segmenter(timed, (32, 48), 2)
    logs = [step(*batch()) for _ in range(2)]
    assert {"loss", "miou"} <= logs[0].keys() and float(logs[1]["loss"]) > 0

    config, shipped = default.get_config(), made()
    config.train.pictures = 0
    dataset = steps.nothing(3)
    segmentation.compile_model(shipped, config, dataset)

    def data(*_):
        repeated = tf.data.Dataset.from_tensors(batch()).repeat()
        return repeated.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))

    with training.Run(tmp_path / "run") as run:
        run.fit(
            shipped,
            data,
            lambda *_: tf.data.Dataset.from_tensors(batch()),
            steps=2,
            validate_every=2,
            monitor="miou",
            verbose=0,
        )
    begun = made()
    for first, one, other in zip(begun.weights, timed.weights, shipped.weights, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=one.path)
        if one.trainable and "kernel" in one.path:
            assert np.any(one != first), one.path
    assert int(timed.optimizer.iterations) == 2
    assert type(timed.optimizer) is type(setup.make_optimizer(config))
    assert timed.optimizer.l2 == config.train.weight_decay > 0


@pytest.mark.slow
def test_of_a_detector_too():
    network = detector.make_model("resnet18")
    inputs = tf.nest.map_structure(
        tf.constant, detector.inputs_of("whole", (64, 96), network, training=True)
    )
    truth = tf.nest.map_structure(tf.constant, detector.truth((64, 96), number=3))
    specs = tuple(tf.nest.map_structure(tf.type_spec_from_value, x) for x in (inputs, truth))
    step = steps.of_detector(network, specs)
    logs = step(inputs, truth)
    assert np.isfinite(float(logs["loss"])) and len(logs) > 3
    assert int(network.optimizer.iterations) == 1
    assert network.optimizer.l2 == pytest.approx(1e-4)
