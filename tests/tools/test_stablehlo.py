"""Programs that TensorFlow lowers, done by JAX: the same numbers."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from isa_tf import losses, models, ops, training
from tools.stablehlo import lower

BATCH, SIZE, CLASSES = 2, (32, 48), 3
RATE = 0.01
IMAGES = tf.TensorSpec((BATCH, *SIZE, 3), tf.uint8)
LABELS = tf.TensorSpec((BATCH, *SIZE), tf.uint8)


@pytest.fixture
def load():
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    from tools.stablehlo import load

    yield load
    jax.config.update("jax_enable_x64", False)


def make_model(steps=10, dtype="float32", **options):
    keras.utils.set_random_seed(0)
    options = {"head_filters": 8, "context": None, "dropout": 0.5, "dtype": dtype, **options}
    model = models.Segmenter("tiny", num_classes=CLASSES, **options)
    optimizer = training.make_optimizer("adamw", RATE, steps, weight_decay=0.1, ema=0.5)
    model.compile(optimizer, losses.PixelCrossEntropy())
    return model


def make_batch(seed):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (BATCH, *SIZE, 3), np.uint8)
    return images, random.integers(0, CLASSES, (BATCH, *SIZE), np.uint8)


@pytest.mark.some(1)
@pytest.mark.parametrize(
    "dtype, tolerance, moved", [("float32", 1e-4, RATE), ("mixed_bfloat16", 3e-2, 3 * RATE)]
)
def test_a_training_is_the_same_in_jax(load, tmp_path, dtype, tolerance, moved):
    import jax

    model = make_model(dtype=dtype)
    step = lower.TrainingStep(model)
    step.write(tmp_path / "step", IMAGES, LABELS)
    state = list(step.values().values())
    run = jax.jit(load.step_function(load.Program(tmp_path / "step")))
    for number in range(3):
        images, labels = make_batch(number)
        state, loss = run(state, images, labels)
        ours = model.train_on_batch(images, labels)
        assert float(loss) == pytest.approx(float(ours), rel=tolerance)
    # Adam takes whole steps in the direction of gradients that are next to nothing.
    for name, value, theirs in zip(step.names, step.values().values(), state, strict=True):
        if "iteration" in name or "generator" in name:
            np.testing.assert_array_equal(value, theirs, name)
        else:
            assert np.abs(value - np.asarray(theirs)).mean() < (
                RATE if dtype == "float32" else 3 * RATE
            ), name


def test_steps_are_as_many_as_is_told(load, tmp_path):
    import jax

    model = make_model(steps=10)
    step = lower.TrainingStep(model, steps=True)
    step.write(tmp_path / "step", IMAGES, LABELS)
    run = jax.jit(load.step_function(load.Program(tmp_path / "step")))
    iteration = step.names.index(next(n for n in step.names if n.endswith("iteration")))
    state = list(step.values().values())
    state[iteration] = np.array(9)  # the last step of ten: of the rate hardly anything is left

    def moved(steps):
        after, _ = run(state, np.float32(steps), *make_batch(0))
        kernel = step.names.index("head/conv/kernel")
        return np.abs(np.asarray(after[kernel]) - state[kernel]).max()

    assert moved(1000) > 5 * moved(10) > 0
    assert model.optimizer._learning_rate.steps == 10  # as it was before


def test_inputs_and_outputs_are_told(tmp_path):
    spec = tf.TensorSpec((2, 3), tf.float16)
    lower.write(tmp_path / "x.twice", lambda x: [2 * x, tf.shape(x)], {"x": spec}, ["y", "size"])
    told = json.loads((tmp_path / "x.twice.json").read_text())
    assert told["inputs"] == [{"name": "x", "shape": [2, 3], "dtype": "float16"}]
    assert told["outputs"] == [
        {"name": "y", "shape": [2, 3], "dtype": "float16"},
        {"name": "size", "shape": [2], "dtype": "int32"},
    ]


def test_outputs_without_a_name_are_refused(tmp_path):
    spec = tf.TensorSpec((2,), tf.float32)
    with pytest.raises(ValueError, match="2 outputs, got 1 names"):
        lower.write(tmp_path / "program", lambda x: [x, x], {"x": spec}, ["y"])
    assert not list(tmp_path.iterdir())


def test_variables_of_one_path_have_names_of_their_own():
    class Two:
        variables = [keras.Variable(0.0, name="same"), keras.Variable(1.0, name="same")]
        trainable_variables = variables

        class optimizer:
            built, variables = True, [keras.Variable(2.0, name="other")]

    step = lower.TrainingStep(Two)
    assert step.names == ["same#1", "same#2", "other"]
    assert step.values() == {"same#1": 0.0, "same#2": 1.0, "other": 2.0}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_gradient_of_a_resizing_is_valid(tmp_path, dtype):
    """XLA gives that of TensorFlow's operation as float32, whatever the image is."""

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(tf.nn.relu(ops.resize_bilinear(tf.nn.relu(x), (4, 6))))
        return [tape.gradient(y, x)]

    spec = tf.TensorSpec((1, 1, 1, 2), dtype)
    lower.write(tmp_path / "gradient", gradient, {"x": spec}, ["gradient"])
    assert json.loads((tmp_path / "gradient.json").read_text())["outputs"][0]["dtype"] == dtype


def test_what_is_no_valid_program_is_refused(tmp_path):
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(
                tf.raw_ops.ResizeBilinear(
                    images=tf.nn.relu(x), size=(4, 6), half_pixel_centers=True
                )
            )
        return [tape.gradient(y, x)]

    spec = tf.TensorSpec((1, 1, 1, 2), tf.bfloat16)
    with pytest.raises(ValueError, match="no valid StableHLO"):
        lower.write(tmp_path / "gradient", gradient, {"x": spec}, ["gradient"])
    assert not list(tmp_path.iterdir())
