"""Averaged weights and the statistics that go with them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from isa_tf import training
from isa_tf.layers import ConvNormAct

# Of `fit`: Keras warns where it is to shuffle what it cannot.
QUIET = {"shuffle": False, "verbose": 0}


def make_model(synchronized=False):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, None, 3))
    x = ConvNormAct(4, 3, momentum=0.9, synchronized=synchronized, name="first")(inputs)
    x = keras.layers.Dropout(0.5)(x)
    outputs = ConvNormAct(2, momentum=0.99, activation=None, name="second")(x)
    return keras.Model(inputs, outputs)


def make_batches(count, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(2.0, 3.0, (count, 4, 6, 5, 3)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((images, np.zeros((count, 4, 6, 5), "uint8")))


def test_statistics_are_the_mean_over_batches():
    model, batches = make_model(), make_batches(3)
    first = model.get_layer("first")
    maps = [np.asarray(first.conv(image), np.float64) for image, _ in batches]
    before = [v.numpy() for v in model.trainable_variables]
    training.estimate_statistics(model, batches)
    mean = np.mean([x.mean(axis=(0, 1, 2)) for x in maps], axis=0)
    variance = np.mean([x.var(axis=(0, 1, 2), ddof=1) for x in maps], axis=0)
    np.testing.assert_allclose(first.norm.moving_mean.numpy(), mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(first.norm.moving_variance.numpy(), variance, rtol=1e-4)
    for variable, value in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_what_statistics_were_there_has_no_effect():
    results = []
    for value in (0.0, 7.0):
        model = make_model()
        model.get_layer("second").norm.moving_mean.assign([value, value])
        state = [v.numpy() for v in model.non_trainable_variables if "seed" in v.path]
        training.estimate_statistics(model, make_batches(2))
        after = [v.numpy() for v in model.non_trainable_variables if "seed" in v.path]
        np.testing.assert_array_equal(state, after)  # dropout goes on where it was
        results.append(model.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_frozen_normalisations_and_no_batches():
    model = make_model()
    model.get_layer("first").trainable = False
    training.estimate_statistics(model, make_batches(2))
    assert not model.get_layer("first").norm.moving_mean.numpy().any()
    assert model.get_layer("second").norm.moving_mean.numpy().any()
    with pytest.raises(ValueError, match="no batch"):
        training.estimate_statistics(model, make_batches(2).take(0))
    training.estimate_statistics(keras.Sequential([keras.layers.Conv2D(2, 1)]), make_batches(0))


@pytest.mark.parametrize("synchronized", [False, True])
def test_under_replicas(synchronized, mirrored):
    expected = make_model()
    training.estimate_statistics(expected, make_batches(2))
    with mirrored.scope():
        model = make_model(synchronized)
        training.estimate_statistics(model, make_batches(2))
    for a, b in zip(model.get_weights()[:5], expected.get_weights()[:5], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_of_batches_that_are_dealt_out(mirrored):
    expected = make_model()
    training.estimate_statistics(expected, make_batches(2))
    with mirrored.scope():
        model = make_model(synchronized=True)
    training.estimate_statistics(model, mirrored.experimental_distribute_dataset(make_batches(2)))
    found, norm = (m.get_layer("first").norm for m in (model, expected))
    np.testing.assert_allclose(found.moving_mean, norm.moving_mean, rtol=1e-4)
    np.testing.assert_allclose(found.moving_variance, norm.moving_variance, rtol=1e-4)


def test_batches_are_those_of_fit():
    results = []
    for as_batch in (lambda x, y: (x, y), lambda x, y: (x, y, x[:, 0, 0, 0]), lambda x, y: x):
        model = make_model()
        training.estimate_statistics(model, make_batches(2).map(as_batch))
        results.append(model.get_layer("second").norm.moving_variance.numpy())
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])


def test_validation_sees_the_average_with_its_own_statistics():
    model, batches = make_model(), make_batches(4)
    optimizer = training.CoupledSGD(0.5, use_ema=True, ema_momentum=0.5)
    model.compile(optimizer, lambda y, p: keras.ops.mean(p**2), jit_compile=False)
    seen = {}

    class Look(keras.callbacks.Callback):
        def on_test_end(self, logs=None):
            seen["during"] = model.get_weights()

        def on_epoch_end(self, epoch, logs=None):
            seen["after"] = [v.numpy() for v in model.non_trainable_variables]
            seen["weights"] = [v.numpy() for v in model.trainable_variables]

        def on_train_batch_end(self, batch, logs=None):
            seen["before"] = [v.numpy() for v in model.non_trainable_variables]

    swap = training.SwapAveragedWeights(make_batches(2, seed=1))
    model.fit(batches, validation_data=batches.take(1), callbacks=[Look(), swap], **QUIET)
    for a, b in zip(seen["after"], seen["before"], strict=True):
        np.testing.assert_array_equal(a, b)
    expected = make_model()
    for variable, value in zip(expected.non_trainable_variables, seen["after"], strict=True):
        variable.assign(value)  # the state of dropout is among them
    for variable, average in zip(
        expected.trainable_variables, optimizer._model_variables_moving_average, strict=True
    ):
        variable.assign(average)
    training.estimate_statistics(expected, make_batches(2, seed=1))
    for variable, value in zip(expected.weights, seen["during"], strict=True):
        np.testing.assert_allclose(variable, value, rtol=1e-4, atol=1e-5)
    # Keras would end `fit` with the averages in the model; training goes on from the weights.
    for variable, value in zip(model.trainable_variables, seen["weights"], strict=True):
        np.testing.assert_array_equal(variable, value)
        assert np.any(value)


@pytest.mark.some(2)
@pytest.mark.parametrize("loss_scale", [False, True], ids=["", "loss_scale"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_after_validation_all_is_as_it_was_to_the_bit(replicas, loss_scale, mirrored):
    strategy = mirrored if replicas == 2 else tf.distribute.get_strategy()
    with strategy.scope():
        model = make_model(synchronized=True)
        optimizer = training.make_optimizer("sgd", 0.37, 100, ema=0.9, loss_scale=loss_scale)
        model.compile(optimizer, lambda y, p: keras.ops.mean(p**2), jit_compile=False)
    averages = training.averaging_optimizer(optimizer)

    def state():
        variables = [*model.variables, *optimizer.variables]
        metrics = {id(v) for v in model.metrics_variables}
        values = [strategy.experimental_local_results(v.value) for v in variables]
        return [
            [x.numpy() for x in value]
            for v, value in zip(variables, values, strict=True)
            if id(v) not in metrics
        ]

    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.before = state()

        def on_test_batch_end(self, batch, logs=None):
            kept = averages._model_variables_moving_average
            pairs = zip(model.trainable_variables, kept, strict=True)
            seen.append(all(np.array_equal(v.numpy(), a.numpy()) for v, a in pairs))
            seen.append(np.any(model.trainable_variables[0].numpy() != self.before[0][0]))

        def on_epoch_end(self, epoch, logs=None):
            for before, after in zip(self.before, state(), strict=True):
                np.testing.assert_array_equal(before, after)

    look, swap = Look(), training.SwapAveragedWeights(make_batches(2, seed=1))
    batches = make_batches(5).map(lambda x, y: (x, y, tf.ones((4,))))
    model.fit(batches, validation_data=batches.take(1), epochs=2, callbacks=[look, swap], **QUIET)
    assert seen == [True] * 4
    for before, after in zip(look.before, state(), strict=True):  # nor at the end of `fit`
        np.testing.assert_array_equal(before, after)


def test_there_must_be_averages():
    model = make_model()
    model.compile(training.CoupledSGD(0.1), lambda y, p: keras.ops.mean(p**2), jit_compile=False)
    with pytest.raises(ValueError, match="no averages"):
        model.fit(
            make_batches(1),
            validation_data=make_batches(1),
            callbacks=[training.SwapAveragedWeights(make_batches(1))],
            **QUIET,
        )
