"""CoupledSGD by PyTorch's formula; the whole gradient, over replicas and over time."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from isa_tf.schedules import PolyDecay
from isa_tf.training import CoupledSGD, LossScale, averaging_optimizer, make_optimizer

START = np.array([1.0, -2.0, 3.0])
TARGET = np.array([0.5, 0.5, -1.0])


def torch_sgd(steps, rate, momentum, decay):
    """d = g + decay w; buffer = momentum buffer + d; w -= lr buffer."""
    w, buffer = START.copy(), None
    for t in range(steps):
        d = 2 * (w - TARGET) + decay * w
        buffer = d if buffer is None else momentum * buffer + d
        w = w - (rate(t) if callable(rate) else rate) * buffer
    return w


def descend(optimizer, steps, variable=None):
    variable = keras.Variable(START.astype("float32")) if variable is None else variable
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((variable.value - TARGET) ** 2)
        optimizer.apply([tape.gradient(loss, variable.value)], [variable])
    return variable


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_coupled_sgd_is_pytorchs(momentum, decay):
    found = descend(CoupledSGD(0.02, momentum=momentum, l2=decay), 8)
    np.testing.assert_allclose(found, torch_sgd(8, 0.02, momentum, decay), rtol=1e-5)


def test_coupled_sgd_is_pytorchs_under_a_falling_rate():
    schedule = PolyDecay(0.05, 20)
    found = descend(CoupledSGD(schedule, momentum=0.9, l2=0.1), 18)
    expected = torch_sgd(18, lambda t: 0.05 * (1 - t / 20) ** 0.9, 0.9, 0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_coupled_sgd_with_nesterov():
    w, buffer = START.copy(), np.zeros(3)
    for _ in range(8):
        d = 2 * (w - TARGET) + 0.1 * w
        buffer = 0.9 * buffer + d
        w = w - 0.02 * (d + 0.9 * buffer)
    found = descend(CoupledSGD(0.02, momentum=0.9, nesterov=True, l2=0.1), 8)
    np.testing.assert_allclose(found, w, rtol=1e-5)


def test_coupled_sgd_in_a_graph():
    optimizer = CoupledSGD(0.02, momentum=0.9, l2=0.1)
    variable = keras.Variable(START.astype("float32"))
    optimizer.build([variable])
    step = tf.function(lambda: descend(optimizer, 1, variable).value)
    for _ in range(8):
        step()
    np.testing.assert_allclose(variable, torch_sgd(8, 0.02, 0.9, 0.1), rtol=1e-5)


def test_decay_differs_from_keras_own():
    coupled = descend(CoupledSGD(0.02, momentum=0.9, l2=0.1), 8)
    decoupled = descend(keras.optimizers.SGD(0.02, momentum=0.9, weight_decay=0.1), 8)
    assert np.abs(coupled.numpy() - decoupled.numpy()).max() > 1e-2


def test_excluded_variables_do_not_decay():
    optimizer = CoupledSGD(0.02, momentum=0.9, l2=0.1)
    variable = keras.Variable(START.astype("float32"), name="gamma")
    optimizer.exclude_from_weight_decay(var_names=["gamma"])
    descend(optimizer, 8, variable)
    np.testing.assert_allclose(variable, torch_sgd(8, 0.02, 0.9, 0.0), rtol=1e-5)


def test_coupled_sgd_goes_on_after_saving(tmp_path):
    def model():
        inputs = keras.Input((3,))
        made = keras.Model(inputs, keras.layers.Dense(1, use_bias=False, name="out")(inputs))
        rate = PolyDecay(0.02, 100)
        made.compile(CoupledSGD(rate, momentum=0.9, l2=0.1), loss="mse")
        return made

    x, y = np.eye(3, dtype="float32"), np.ones((3, 1), "float32")
    first = model()
    first.fit(x, y, epochs=3, verbose=0)
    first.save(tmp_path / "model.keras")
    second = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(second.optimizer, CoupledSGD) and second.optimizer.l2 == 0.1
    assert isinstance(second.optimizer._learning_rate, PolyDecay)
    for each in (first, second):
        each.fit(x, y, epochs=3, verbose=0)
    np.testing.assert_array_equal(first.get_weights()[0], second.get_weights()[0])


def test_coupled_sgd_config():
    optimizer = CoupledSGD(PolyDecay(0.01, 10), l2=5e-4, momentum=0.9, clipnorm=1.0)
    twin = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(twin, CoupledSGD) and twin.get_config() == optimizer.get_config()


# === The whole gradient ===


def deal(strategy, values):
    parts = np.split(values, strategy.num_replicas_in_sync)
    return strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(parts[context.replica_id_in_sync_group])
    )


def losses_of(x, variables, factor=1.0):
    return factor * sum(tf.reduce_sum((k * v - x) ** 2) for k, v in enumerate(variables, 1))


def run_steps(strategy, make, batches, factor=1.0):
    """(variables, norm of the gradient after each batch, optimizer).

    Each replica has the gradient of its own part of a batch; the optimizer is built by the first.
    """
    with strategy.scope():
        optimizer = make()
        variables = [keras.Variable(START, dtype="float32", name=n) for n in ("kernel", "bias")]
    traces = []

    def step(x):
        traces.append(1)
        values = [v.value for v in variables]
        with tf.GradientTape() as tape:
            loss = optimizer.scale_loss(losses_of(x, values, factor))
        optimizer.apply(tape.gradient(loss, values), variables)

    function = tf.function(lambda x: strategy.run(step, (x,)))
    norms = []
    for x in batches:
        function(deal(strategy, x.astype("float32")))
        norms.append(float(optimizer.gradient_norm.numpy()))
    assert len(traces) == strategy.num_replicas_in_sync  # not once more to make variables
    for variable in (*variables, *optimizer.variables, optimizer.gradient_norm):
        first, *rest = strategy.experimental_local_results(variable.value)
        for other in rest:
            np.testing.assert_array_equal(first, other, err_msg=variable.path)
    return [v.numpy() for v in variables], norms, optimizer


def slowly(
    batches, name, rate, weight_decay=0.0, clip_norm=None, ema=0.0, decay_spares=None, rates=None
):
    """The same in float64, without TensorFlow: (variables, norms, averages)."""
    w = np.stack([START, START])
    first, second, norms, average = np.zeros_like(w), np.zeros_like(w), [], None
    spares = (() if name == "sgd" else ("bias",)) if decay_spares is None else decay_spares
    decay = np.array([[weight_decay], [0.0 if "bias" in spares else weight_decay]])
    factor = np.array([[(rates or {}).get(each, 1.0)] for each in ("kernel", "bias")])
    for t, x in enumerate(batches):
        g = np.stack([(2 * k * (k * w[k - 1] - x)).sum(0) for k in (1, 2)])
        norms.append(np.sqrt((g**2).sum()))
        if clip_norm is not None and norms[-1] > clip_norm:
            g *= clip_norm / norms[-1]
        if name == "sgd":
            first = 0.9 * first + g + decay * w
            w = w - rate(t) * factor * first
        else:
            w = w - rate(t) * factor * decay * w
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
            corrected = np.sqrt(1 - 0.999 ** (t + 1)) / (1 - 0.9 ** (t + 1))
            w = w - rate(t) * factor * corrected * first / (np.sqrt(second) + 1e-7)
        average = w if average is None else ema * average + (1 - ema) * w
    return w, norms, average


RECIPES = {
    "sgd": {"name": "sgd", "weight_decay": 0.1},
    "adamw": {"name": "adamw", "weight_decay": 0.1},
    "clipped": {"name": "sgd", "clip_norm": 100.0},
    "averaged": {"name": "sgd", "clip_norm": 120.0, "ema": 0.5},
}


@pytest.mark.some(16)
@pytest.mark.parametrize("loss_scale", [False, True], ids=["", "loss_scale"])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_a_batch_dealt_out_makes_the_same_step(recipe, replicas, accumulate, loss_scale, mirrored):
    """Over replicas, over time, or over both: weights, averages and norms are the batch's."""
    steps = 4
    whole = np.random.default_rng(0).normal(0, 1, (steps, 6, 3))
    parts = [part for x in whole for part in np.split(x, accumulate)]
    found, norms, optimizer = run_steps(
        mirrored if replicas == 2 else tf.distribute.get_strategy(),
        lambda: make_optimizer(
            learning_rate=0.02, steps=5, **recipe, accumulate=accumulate, loss_scale=loss_scale
        ),
        parts,
        factor=accumulate,  # what is accumulated is a mean, these losses are sums
    )
    rate = lambda t: 0.02 * (1 - t / 5) ** 0.9  # noqa: E731
    expected, as_expected, average = slowly(whole, rate=rate, **recipe)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(norms[accumulate - 1 :: accumulate], as_expected, rtol=1e-4)
    if "clip_norm" in recipe:
        assert min(as_expected) < recipe["clip_norm"] < max(as_expected)
    assert int(optimizer.iterations.numpy()) == steps
    np.testing.assert_allclose(optimizer.learning_rate, rate(steps), rtol=1e-5)
    averaging = averaging_optimizer(optimizer)
    assert (averaging is not None) == ("ema" in recipe)
    if averaging is not None:
        averages = [v.numpy() for v in averaging._model_variables_moving_average]
        np.testing.assert_allclose(averages, average, rtol=1e-4)


@pytest.mark.parametrize("replicas, accumulate, loss_scale", [(1, 1, False), (2, 3, True)])
@pytest.mark.parametrize("spares", [(), ("norm", "bias")], ids=["none_spared", "bias_spared"])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_rates_and_what_decay_spares(name, spares, replicas, accumulate, loss_scale, mirrored):
    steps = 3
    recipe = {"name": name, "weight_decay": 0.1, "decay_spares": spares, "rates": {"bias": 4.0}}
    recipe |= {"ema": 0.5, "clip_norm": 100.0}
    whole = np.random.default_rng(0).normal(0, 1, (steps, 6, 3))
    found, norms, optimizer = run_steps(
        mirrored if replicas == 2 else tf.distribute.get_strategy(),
        lambda: make_optimizer(
            learning_rate=0.005, steps=5, **recipe, accumulate=accumulate, loss_scale=loss_scale
        ),
        [part for x in whole for part in np.split(x, accumulate)],
        factor=accumulate,
    )
    expected, as_expected, average = slowly(
        whole, rate=lambda t: 0.005 * (1 - t / 5) ** 0.9, **recipe
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    averages = [v.numpy() for v in averaging_optimizer(optimizer)._model_variables_moving_average]
    np.testing.assert_allclose(averages, average, rtol=1e-4)
    np.testing.assert_allclose(norms[accumulate - 1 :: accumulate], as_expected, rtol=1e-4)


def test_the_longest_beginning_of_a_path_counts():
    with keras.name_scope("head"):
        variables = [keras.Variable([1.0], name="kernel"), keras.Variable([1.0], name="bias")]
    variables.append(keras.Variable([1.0], name="header"))
    optimizer = CoupledSGD(0.1, rates={"head": 2.0, "head/bias": 0.0})
    optimizer.apply([tf.constant([1.0])] * 3, variables)
    np.testing.assert_allclose([float(v[0]) for v in variables], [0.8, 1.0, 0.9])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_rates_and_what_decay_spares_are_kept_in_the_config(name):
    optimizer = make_optimizer(
        name, 0.1, 10, weight_decay=0.1, decay_spares=["bias"], rates={"head": 10}
    )
    twin = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert twin.get_config() == optimizer.get_config() and twin.rates == {"head": 10.0}
    for variable, decays in (("kernel", True), ("gamma", True), ("bias", False)):
        assert twin._use_weight_decay(keras.Variable(START, name=variable)) is decays
    old = {k: v for k, v in optimizer.get_config().items() if k not in ("spared", "rates")}
    assert type(optimizer).from_config(old).spared == type(optimizer).spares


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("replica", [0, 1])
def test_what_overflows_in_any_replica_leaves_the_step_out(replica, accumulate, mirrored):
    def make():
        inner = CoupledSGD(
            0.02, momentum=0.9, gradient_accumulation_steps=accumulate if accumulate > 1 else None
        )
        return LossScale(inner, initial_scale=1024.0, dynamic_growth_steps=3)

    good = np.ones((2, 3))
    bad = good.copy()
    bad[replica, 1] = np.nan
    variables, norms, optimizer = run_steps(mirrored, make, [bad, bad])
    np.testing.assert_array_equal(variables, [START, START])
    assert float(optimizer.dynamic_scale.numpy()) == 256.0 and norms == [np.inf, np.inf]
    assert int(optimizer.iterations.numpy()) == 0
    mixed, norms, optimizer = run_steps(mirrored, make, [good, bad, good, good, good])
    assert np.isinf(norms[1]) and np.isfinite(norms[2:]).all()
    assert float(optimizer.dynamic_scale.numpy()) == 1024.0  # halved, then doubled
    expected, *_ = run_steps(tf.distribute.get_strategy(), make, [good] * 4)
    np.testing.assert_allclose(mixed, expected, rtol=1e-5)


def test_loss_scale_config_and_files(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    optimizer = make_optimizer("adamw", 0.1, 10, ema=0.5, accumulate=2, loss_scale=True)
    model.compile(optimizer, "mse", jit_compile=False)
    x, y = np.eye(3, dtype="float32"), np.ones((3, 1), "float32")
    model.fit(x, y, epochs=5, batch_size=1, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, LossScale)
    assert loaded.optimizer.get_config() == optimizer.get_config()
    for a, b in zip(loaded.optimizer.variables, optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    for each in (model, loaded):
        each.fit(x, y, epochs=5, batch_size=1, verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], loaded.get_weights()[0])
    with pytest.raises(TypeError, match="WholeGradient"):
        LossScale(keras.optimizers.SGD(0.1))


def test_the_norm_is_no_variable_of_the_files():
    optimizer, plain = CoupledSGD(0.1, momentum=0.9), keras.optimizers.SGD(0.1, momentum=0.9)
    for each in (optimizer, plain):
        each.build([keras.Variable(START, name="w")])
    paths = [[v.path.split("/", 1)[1] for v in each.variables] for each in (optimizer, plain)]
    assert paths[0] == paths[1]


def test_adamw_knows_what_decays_after_saving():
    optimizer = make_optimizer("adamw", 0.1, 10, weight_decay=0.1)
    twin = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    for name, decays in (("kernel", True), ("gamma", False), ("beta", False), ("bias", False)):
        assert twin._use_weight_decay(keras.Variable(START, name=name)) is decays


def test_missing_gradients_are_told():
    for optimizer in (CoupledSGD(0.1), LossScale(CoupledSGD(0.1))):
        there, missing = keras.Variable(START), keras.Variable(START, name="missing")
        with pytest.warns(UserWarning, match="missing"):
            optimizer.apply([tf.constant(START, there.dtype), None], [there, missing])
        assert np.any(there.numpy() != missing.numpy())
        np.testing.assert_array_equal(missing, START)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="accumulate must be at least 1"):
        make_optimizer("sgd", 0.1, 10, accumulate=0)
    for name in ("sgd", "adamw"):
        for wrong in (-1e-4, float("inf"), float("nan")):
            with pytest.raises(ValueError, match="weight_decay must be finite and not negative"):
                make_optimizer(name, 0.1, 10, weight_decay=wrong)
            with pytest.raises(ValueError, match="learning_rate must be finite and not negative"):
                make_optimizer(name, wrong, 10)
            with pytest.raises(ValueError, match="end_learning_rate must be finite"):
                make_optimizer(name, 0.1, 10, end_learning_rate=wrong)
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="clip_norm must be above 0"):
            make_optimizer("sgd", 0.1, 10, clip_norm=wrong)
    with pytest.raises(ValueError, match='"sgd" or "adamw"'):
        make_optimizer("lamb", 0.1, 10)
    with pytest.raises(ValueError, match=r"spares norm and bias or neither, got \['biases'\]"):
        make_optimizer("sgd", 0.1, 10, decay_spares=["biases"])
    with pytest.raises(ValueError, match="rates must not be negative"):
        make_optimizer("sgd", 0.1, 10, rates={"head": -1.0})
    with pytest.raises(ValueError, match="'head', with which no variable's path begins"):
        CoupledSGD(0.1, rates={"head": 2.0}).build([keras.Variable(START, name="header")])


def early(strategy, optimizer_type):
    """What an optimizer multiplies before all gradients are there, and its count of edges."""
    with strategy.scope():
        optimizer = optimizer_type(0.05, momentum=0.9, weight_decay=1e-2)
        variables = [keras.Variable(np.ones((4, 4)), dtype="float32") for _ in range(12)]
        optimizer.build(variables)

    def step(x):
        with tf.GradientTape() as tape:
            y = x
            for variable in variables:
                y = tf.tanh(y @ variable)
            loss = tf.reduce_sum(y)
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)

    function = tf.function(lambda x: strategy.run(step, (x,)))
    graph = function.get_concrete_function(tf.ones((2, 4))).graph
    operations = graph.get_operations()
    last = [op for op in operations if op.type == "TanhGrad"][-1]  # of the first variable
    edges = sum(len(op.control_inputs) for op in operations)
    mine = [op for op in operations if "Mul" in op.type and optimizer.name in op.name]
    assert len(mine) >= 24
    return [op.name for op in mine if not waits_for(op, last)], edges / len(operations)


def waits_for(op, other):
    seen, left = set(), [op]
    while left:
        op = left.pop()
        if op is other:
            return True
        for before in (*op.control_inputs, *(t.op for t in op.inputs)):
            if before not in seen:
                seen.add(before)
                left.append(before)
    return False


def test_nothing_is_done_before_all_gradients_are_there(mirrored):
    """Else a graph holds every weight and momentum twice through the step."""
    for strategy in (tf.distribute.get_strategy(), mirrored):
        found, edges = early(strategy, CoupledSGD)
        # One node collects them: not an edge from each gradient to each operation.
        assert found == [] and edges < 3
    assert early(tf.distribute.get_strategy(), keras.optimizers.SGD)[0]


def test_the_rate_falls_at_steps():
    optimizer = make_optimizer(
        "sgd",
        0.5,
        steps=10,
        momentum=0.0,
        schedule="step",
        boundaries=(2, 3),
        factor=0.5,
        warmup_steps=1,
        warmup_factor=0.2,
    )
    variable, taken = keras.Variable([0.0]), []
    for _ in range(5):
        before = float(variable.numpy()[0])
        optimizer.apply([tf.constant([1.0])], [variable])
        taken.append(before - float(variable.numpy()[0]))
    np.testing.assert_allclose(taken, [0.1, 0.5, 0.25, 0.125, 0.125], rtol=1e-5)
    twin = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert twin._learning_rate.get_config() == optimizer._learning_rate.get_config()
    with pytest.raises(ValueError, match="unknown schedule .stairs.; .*known: poly, step"):
        make_optimizer("sgd", 0.1, 10, schedule="stairs")
    with pytest.raises(ValueError, match="boundaries must be above 0 and rise"):
        make_optimizer("sgd", 0.1, 10, schedule="step", boundaries=(3, 2))
