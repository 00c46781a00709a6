"""A run: resumed bit for bit, whatever stopped it; nothing that is wrong is kept."""

import contextlib
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from isa_tf import layers, training
from isa_tf.data.pipeline import finish
from isa_tf.files import lock
from isa_tf.losses import PixelCrossEntropy
from isa_tf.metrics import MeanIoU

STEPS, EVERY = 12, 5
TIMES = ("seconds", "images_per_second", "step_seconds", "waiting", "memory_gib")


def make_model(name="sgd", dtype=None, dropout=0.1, **options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, None, 3))
    x = layers.ConvNormAct(6, 3, dtype=dtype, name="first")(inputs)
    x = keras.layers.SpatialDropout2D(dropout, dtype=dtype, name="dropout")(x)
    x = keras.layers.Conv2D(3, 1, dtype="float32", name="second")(x)
    model = keras.Model(inputs, x)
    optimizer = training.make_optimizer(
        name, 0.05, STEPS, weight_decay=1e-3, loss_scale=dtype == "mixed_float16", **options
    )
    model.compile(optimizer, PixelCrossEntropy(), metrics=[MeanIoU(3)], jit_compile=False)
    return model


def make_train_data(step, context=None, bad=None):
    """Batches that are a function of the step; that of step `bad` holds an infinite pixel."""
    parts, part, rows = 1, 0, 4
    if context is not None:
        parts, part = context.num_input_pipelines, context.input_pipeline_id
        rows = 4 // context.num_replicas_in_sync

    def make(i):
        image = tf.random.stateless_uniform((4, 6, 6, 3), (7, i))
        label = tf.where(image[..., 0] > 0.9, 255, tf.cast(image[..., 1] * 3, tf.int32))
        if bad is not None:  # in a channel that the labels are not made of
            image *= tf.where(i == bad, [1.0, 1.0, np.inf], [1.0, 1.0, 1.0])
        share = 4 // parts
        image, label = image[part * share :][:share], label[part * share :][:share]
        return tf.data.Dataset.from_tensor_slices((image, label)).batch(rows, drop_remainder=True)

    return finish(tf.data.Dataset.counter(step).flat_map(make))


def make_val_data(context=None):
    data = make_train_data(1000).take(2).unbatch()
    if context is not None:
        data = data.shard(context.num_input_pipelines, context.input_pipeline_id)
    return finish(data.batch(1))


class At(keras.callbacks.Callback):
    """Does something at the end of a step, counted from where the training goes on."""

    def __init__(self, step, act):
        super().__init__()
        self.step, self.act, self.seen = step, act, 0

    def on_train_batch_end(self, batch, logs=None):
        self.seen += 1
        if self.seen == self.step:
            self.act()


def fit(workdir, model, strategy=None, bad=None, config=None, **kwargs):
    options = {"steps": STEPS, "validate_every": EVERY, "monitor": "miou", "verbose": 0}
    with training.Run(workdir, config, strategy=strategy) as run:
        return run.fit(
            model,
            lambda step, context: make_train_data(step, context, bad),
            make_val_data,
            **{**options, "checkpoint_every": 2, "ema_batches": 2, **kwargs},
        )


def state(workdir):
    """(arrays, rows without times, best without the file's digest, weights of the best)."""
    checkpoints = training.Checkpoints(workdir / training.CHECKPOINTS)
    facts, arrays = checkpoints.read(checkpoints.paths()[0])
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in facts["rows"]]
    assert [row["step"] for row in training.read_log(workdir / training.LOG)] == [
        row["step"] for row in rows
    ]
    best = keras.models.load_model(workdir / training.BEST).get_weights()
    return arrays, rows, training.best_score(workdir), best


def assert_same(one, other):
    for a, b in zip(state(one), state(other), strict=True):
        if isinstance(a, dict) and isinstance(next(iter(a.values())), np.ndarray):
            assert a.keys() == b.keys()
            for name in a:
                np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        elif isinstance(a, list) and isinstance(a[0], np.ndarray):
            for x, y in zip(a, b, strict=True):
                np.testing.assert_array_equal(x, y)
        else:
            assert a == b


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "tensorboard" not in path.parts
    }


def stop(number=signal.SIGTERM):
    return lambda: os.kill(os.getpid(), number)


# === Going on ===

CASES = {
    "sgd": {},
    "sgd and averages": {"ema": 0.8},
    "adamw": {"name": "adamw", "clip_norm": 1.0},
    "float16 and averages": {"dtype": "mixed_float16", "ema": 0.8},
    "accumulated": {"accumulate": 3, "ema": 0.8},
}


@pytest.mark.some("sgd", "adamw", "float16 and averages")
@pytest.mark.parametrize("case", CASES)
def test_interrupted_and_resumed_is_undisturbed(tmp_path, case):
    options = CASES[case]
    fit(tmp_path / "straight", make_model(**options))
    # In the middle of an epoch, at its end, and at once after resuming.
    for step in (3, 2, 1):
        with pytest.raises(training.Interrupted, match="the same command goes on") as stopped:
            fit(tmp_path / "parts", make_model(**options), callbacks=[At(step, stop())])
        assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert fit(tmp_path / "parts", make_model(**options)) is not None
    assert_same(tmp_path / "straight", tmp_path / "parts")
    # Once done, nothing is trained again.
    before = contents(tmp_path / "parts")
    fit(tmp_path / "parts", make_model(**options), callbacks=[At(1, lambda: 1 / 0)])
    assert contents(tmp_path / "parts") == before


def test_dropout_goes_on_where_it_was(tmp_path):
    """The test above can fail: without the generators' state it does."""
    fit(tmp_path / "straight", make_model(dropout=0.5))
    arrays = state(tmp_path / "straight")[0]
    model = make_model(dropout=0.5)
    seeds = [i for i, v in enumerate(model.variables) if "seed" in v.path]
    assert seeds
    begun = training.read_variable(model.variables[seeds[0]])
    assert not np.array_equal(arrays[f"model/{seeds[0]:05d}"], begun)


@pytest.mark.some(1)
@pytest.mark.parametrize("averaged", [False, True])
def test_stopped_in_validation(tmp_path, averaged):
    options = {"ema": 0.8} if averaged else {}
    fit(tmp_path / "straight", make_model(**options))

    calls = []

    def data(context):
        def note(image, label):
            calls.append(1)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return image

        def map_(image, label):
            image = tf.ensure_shape(
                tf.numpy_function(note, (image, label), tf.float32), image.shape
            )
            return image, label

        return make_val_data(context).map(map_)

    with training.Run(tmp_path / "parts") as run, pytest.raises(training.Interrupted) as stopped:
        run.fit(
            make_model(**options),
            make_train_data,
            data,
            **{"steps": STEPS, "validate_every": EVERY, "checkpoint_every": 2, "ema_batches": 2},
            monitor="miou",
            verbose=0,
        )
    assert stopped.value.step == EVERY and stopped.value.exit_code == 128 + signal.SIGTERM
    assert not (tmp_path / "parts" / training.LOG).exists()
    fit(tmp_path / "parts", make_model(**options))
    assert_same(tmp_path / "straight", tmp_path / "parts")


def test_a_signal_that_another_worker_was_told_of_is_no_second_one(tmp_path, monkeypatch):
    """A scheduler tells all of them, some a moment later, as they are keeping the state."""
    with training.Run(tmp_path) as run:
        monkeypatch.setattr(training.run.workers, "any_of", lambda strategy, flag: True)
        assert run._stops()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_stopped_where_nobody_reads_what_is_said(tmp_path, monkeypatch):
    """As behind `tee`, which ends by the same Ctrl-C."""
    reader, writer = os.pipe()
    os.close(reader)
    unread, errors = os.fdopen(writer, "w"), os.dup(2)
    monkeypatch.setattr(sys, "stdout", unread)
    os.dup2(writer, 2)
    try:
        with pytest.raises(training.Interrupted) as stopped:
            # Behind a validation, of which a line is said.
            fit(tmp_path, make_model(), verbose=2, callbacks=[At(6, stop(signal.SIGINT))])
    finally:
        os.dup2(errors, 2)
        os.close(errors)
        with contextlib.suppress(BrokenPipeError):
            unread.close()
    assert stopped.value.step == 6
    checkpoints = training.Checkpoints(tmp_path / training.CHECKPOINTS)
    assert checkpoints.newest()[0]["step"] == 6


# === Validation by a function ===


def make_evaluate(act=None):
    """Scores image by image; calls `act` after the second image of each validation."""

    def evaluate(model, watch):
        scores = []
        for images, labels in make_val_data():
            found = np.argmax(model(images, training=False), axis=-1)
            scores.append(float(np.mean(found == labels.numpy())))
            if act is not None and len(scores) == 2:
                act()
            watch(len(scores), 8)
        return {"accuracy": np.mean(scores), "worst": min(scores)}

    return evaluate


def fit_by_function(workdir, model, act=None, **kwargs):
    options = {"steps": STEPS, "validate_every": EVERY, "monitor": "accuracy", "verbose": 0}
    options |= {"checkpoint_every": 2, "ema_batches": 2, "evaluate": make_evaluate(act)}
    with training.Run(workdir) as run:
        return run.fit(model, make_train_data, **{**options, **kwargs})


@pytest.mark.parametrize("averaged", [False, True])
def test_a_function_scores(tmp_path, averaged):
    options = {"ema": 0.8} if averaged else {}
    seen = []
    best = fit_by_function(
        tmp_path,
        make_model(**options),
        details=lambda model: {"val_detail": 0.5},
        draw=lambda model: seen.append(model) or np.zeros((4, 4, 3), np.uint8),
    )
    rows = training.read_log(tmp_path / training.LOG)
    assert [row["step"] for row in rows] == [5, 10, 12] and len(seen) == 3
    assert {"loss", "miou", "val_accuracy", "val_worst", "val_detail"} <= rows[0].keys()
    assert "val_loss" not in rows[0] and "val_miou" not in rows[0]
    highest = max(row["val_accuracy"] for row in rows)
    first = next(row["step"] for row in rows if row["val_accuracy"] == highest)
    assert best == {"step": first, "accuracy": highest} == training.best_score(tmp_path)
    # What is kept is what was scored: the averages, where there are any.
    kept = keras.models.load_model(tmp_path / training.BEST)
    assert make_evaluate()(kept, lambda *_: None)["accuracy"] == pytest.approx(highest, abs=1e-6)


@pytest.mark.some(1)
@pytest.mark.parametrize("averaged", [False, True])
def test_stopped_in_a_validation_by_a_function(tmp_path, averaged):
    options = {"ema": 0.8} if averaged else {}
    fit_by_function(tmp_path / "straight", make_model(**options))
    with pytest.raises(training.Interrupted) as stopped:
        fit_by_function(tmp_path / "parts", make_model(**options), stop())
    assert stopped.value.step == EVERY and stopped.value.exit_code == 128 + signal.SIGTERM
    assert not (tmp_path / "parts" / training.LOG).exists()
    assert not (tmp_path / "parts" / training.BEST).exists()
    # Once more, and then to the end.
    with pytest.raises(training.Interrupted):
        fit_by_function(tmp_path / "parts", make_model(**options), stop(signal.SIGINT))
    fit_by_function(tmp_path / "parts", make_model(**options))
    assert_same(tmp_path / "straight", tmp_path / "parts")


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import test_run
test_run.fit_by_function(
    Path(sys.argv[2]), test_run.make_model(ema=0.8), lambda: os.kill(os.getpid(), signal.SIGKILL)
)
"""


@pytest.mark.slow
def test_killed_in_a_validation_by_a_function(tmp_path):
    """Nothing is caught, nothing is tidied up: the state from before it is gone on with."""
    fit_by_function(tmp_path / "straight", make_model(ema=0.8))
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", KILLED, here, str(tmp_path / "parts")]
    assert subprocess.run(command, timeout=300).returncode == -signal.SIGKILL
    checkpoints = training.Checkpoints(tmp_path / "parts" / training.CHECKPOINTS)
    assert checkpoints.read(checkpoints.paths()[0])[0]["step"] == EVERY
    assert not (tmp_path / "parts" / training.LOG).exists()
    fit_by_function(tmp_path / "parts", make_model(ema=0.8))
    assert_same(tmp_path / "straight", tmp_path / "parts")


def test_what_a_function_gives_is_looked_at(tmp_path):
    with pytest.raises(ValueError, match="no metric 'miou' to compare models by: accuracy, worst"):
        fit_by_function(tmp_path / "a", make_model(), monitor="miou")
    with pytest.raises(FloatingPointError, match="the validation gives"):
        fit_by_function(
            tmp_path / "b", make_model(), evaluate=lambda model, watch: {"accuracy": math.nan}
        )
    assert not (tmp_path / "b" / training.BEST).exists()
    for wrong in ({"make_val_data": make_val_data}, {"evaluate": None}):
        with pytest.raises(ValueError, match="by make_val_data or by evaluate, by one of them"):
            fit_by_function(tmp_path / "c", make_model(), **wrong)


def test_a_validation_by_a_function_tells_how_far_it_is(tmp_path, capsys, monkeypatch):
    said = []
    monkeypatch.setattr(
        training.run.Progress, "validate", lambda self, done, total, s: said.append((done, total))
    )
    fit_by_function(tmp_path, make_model(), steps=2, validate_every=2)
    assert said == [(i, 8) for i in range(1, 9)]


def test_killed_before_the_state_of_a_validation_is_kept(tmp_path, monkeypatch):
    fit(tmp_path / "straight", make_model())
    write = training.Checkpoints.write

    def killed(self, step, arrays, facts):
        if facts["rows"]:  # that of the first validation is written, and so is the best model
            raise SystemExit
        return write(self, step, arrays, facts)

    monkeypatch.setattr(training.Checkpoints, "write", killed)
    with pytest.raises(SystemExit):
        fit(tmp_path / "parts", make_model())
    monkeypatch.undo()
    assert (tmp_path / "parts" / training.BEST).exists()
    fit(tmp_path / "parts", make_model())
    assert_same(tmp_path / "straight", tmp_path / "parts")


def test_what_the_log_tells(tmp_path):
    best = fit(
        tmp_path,
        make_model(ema=0.5),
        details=lambda model: {"val_iou/one": np.float32(0.5)},
        draw=lambda model: np.zeros((4, 4, 3), np.uint8),
        log_every=2,
    )
    rows = training.read_log(tmp_path / training.LOG)
    assert [row["step"] for row in rows] == [5, 10, 12]
    expected = {"loss", "miou", "val_loss", "val_miou", "val_iou/one", "learning_rate"}
    assert expected | {"gradient_norm", *TIMES} <= rows[0].keys()
    assert all(0 < row["waiting"] < 1 and row["gradient_norm"] > 0 for row in rows)
    assert best == {
        "step": max(rows, key=lambda row: row["val_miou"])["step"],
        "miou": max(row["val_miou"] for row in rows),
    }
    events = list((tmp_path / "tensorboard").glob("events*"))
    told = [
        (value.tag, event.step)
        for path in events
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    ]
    assert ("predictions", 5) in told and ("val_miou", 12) in told
    assert ("training/loss", 2) in told and ("training/gradient_norm", 4) in told


def test_losses_that_tensorboard_is_told(tmp_path):
    """Each is of the steps since the last, or since the validation behind it."""
    fit(tmp_path / "straight", make_model(), log_every=1)
    told = training.read_scalars(tmp_path / "straight" / training.TENSORBOARD, "training/loss")
    assert list(told) == list(range(1, STEPS + 1))
    for row, first in zip(
        training.read_log(tmp_path / "straight" / training.LOG), (1, 6, 11), strict=True
    ):
        steps = range(first, int(row["step"]) + 1)
        assert np.mean([told[step] for step in steps]) == pytest.approx(row["loss"], rel=1e-5)

    with pytest.raises(training.Interrupted):
        fit(tmp_path / "parts", make_model(), log_every=3, callbacks=[At(8, stop())])
    fit(tmp_path / "parts", make_model(), log_every=3)
    parts = training.read_scalars(tmp_path / "parts" / training.TENSORBOARD, "training/loss")
    # A validation begins anew; gone on with after step 8, 9 tells of all since the last one.
    means = {3: (1, 2, 3), 6: (6,), 9: (6, 7, 8, 9), 12: (11, 12)}
    expected = {step: np.mean([told[i] for i in steps]) for step, steps in means.items()}
    assert parts == pytest.approx(expected, rel=1e-4)


def test_a_number_that_was_never_told(tmp_path):
    assert training.read_scalars(tmp_path / "none", "training/loss") == {}
    fit(tmp_path, make_model(), steps=2, validate_every=2)
    folder = tmp_path / training.TENSORBOARD
    assert training.read_scalars(folder, "training/loss") == {}  # of 50 steps only
    (path,) = folder.glob("events*")
    whole = training.read_scalars(folder, "val_miou")
    path.write_bytes(path.read_bytes() + b"cut as its process died")
    assert whole.keys() == {2} and training.read_scalars(folder, "val_miou") == whole


@pytest.mark.slow
def test_steps_are_profiled(tmp_path):
    fit(tmp_path, make_model(), profile=(3, 4))
    assert list((tmp_path / "tensorboard").rglob("*.xplane.pb"))


def test_progress_is_told(tmp_path, capsys, monkeypatch, caplog):
    fit(tmp_path, make_model(), verbose=1, profile=(STEPS + 1, STEPS + 2))
    assert "nothing is profiled: step 13 is not among those to come, 1 to 12" in caplog.text
    lines = capsys.readouterr().out
    assert "step 5 of 12  val_miou" in lines and "step 12 of 12" in lines
    now = iter(np.arange(0.0, 100.0, 2.0))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    progress = training.run.Progress(100, verbose=2, every=0.0)
    progress.train(1, 0.5, 4)
    progress.train(2, 0.5, 4)
    progress.validate(3, 10, 6.0)
    out = capsys.readouterr().out.splitlines()
    assert out[1] == "step 2 of 100  loss 0.5000  2 s a step  done in 3 min 16 s"
    assert out[2] == "validating, batch 3 of 10  done in 14 s"


# === What is wrong is not kept ===


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_and_is_not_kept(tmp_path, what, monkeypatch):
    model = make_model(ema=0.5)
    if what == "gradient":

        @tf.custom_gradient
        def poisoned(x):
            return x, lambda g: g * tf.where(model.optimizer.iterations == 7, np.nan, 1.0)

        loss = PixelCrossEntropy()
        metrics, optimizer = [MeanIoU(3)], model.optimizer
        model.compile(
            optimizer, lambda y, p: loss(y, poisoned(p)), metrics=metrics, jit_compile=False
        )
    names = {}

    def batch_files(step):
        names["step"] = step
        return ["a.png", "b.png"]

    bad = 7 if what == "loss" else None
    with pytest.raises(FloatingPointError, match=f"step 8 of 12: the .*{what}.*a.png, b.png"):
        fit(tmp_path, model, bad=bad, batch_files=batch_files)
    assert names["step"] == 7  # counted from 0, as `make_train_data` has it
    checkpoints = training.Checkpoints(tmp_path / training.CHECKPOINTS)
    facts, arrays = checkpoints.read(checkpoints.paths()[0])
    assert facts["step"] == 6 and all(np.isfinite(a).all() for a in arrays.values())
    assert training.best_score(tmp_path)["step"] == 5
    before = contents(tmp_path)
    with pytest.raises(FloatingPointError, match="step 8 of 12"):  # it goes on from before
        fit(tmp_path, make_model(ema=0.5), bad=7)
    assert contents(tmp_path) == before
    best = fit(tmp_path, make_model(ema=0.5))  # with data that are mended, it ends
    assert best["step"] in (5, 10, 12)


def test_a_score_that_is_not_finite_is_no_best(tmp_path):
    class Nan(MeanIoU):
        def result(self):
            return super().result() * np.nan

    model = make_model()
    metrics = [MeanIoU(3), Nan(3, name="nan")]
    model.compile(model.optimizer, PixelCrossEntropy(), metrics=metrics, jit_compile=False)
    with pytest.raises(FloatingPointError, match="the validation gives"):
        fit(tmp_path, model)
    assert not (tmp_path / training.BEST).exists() and not (tmp_path / training.LOG).exists()


def test_a_loss_scale_that_finds_no_finite_gradient_stops(tmp_path):
    model = make_model(dtype="mixed_float16")
    model.optimizer.dynamic_scale.assign(2.0**-23)
    with pytest.raises(FloatingPointError, match="no gradient is finite"):
        loss = PixelCrossEntropy()

        @tf.custom_gradient
        def poisoned(x):
            return x, lambda g: g * np.inf

        metrics = [MeanIoU(3)]
        optimizer = model.optimizer
        model.compile(
            optimizer, lambda y, p: loss(y, poisoned(p)), metrics=metrics, jit_compile=False
        )
        fit(tmp_path, model)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_training_data_that_end_are_named(tmp_path):
    with pytest.raises(ValueError, match="no batch at step 4: make_train_data"):
        with training.Run(tmp_path) as run:
            run.fit(
                make_model(),
                lambda step, context: make_train_data(0).take(4).skip(step),
                make_val_data,
                **{"steps": STEPS, "validate_every": 4, "monitor": "miou", "verbose": 0},
            )


def test_several_steps_an_execution_are_refused(tmp_path):
    model = make_model()
    model.compile(model.optimizer, PixelCrossEntropy(), metrics=[MeanIoU(3)], steps_per_execution=2)
    with pytest.raises(ValueError, match="steps_per_execution=1, got 2"):
        fit(tmp_path, model)


def test_an_unknown_monitor_is_named(tmp_path):
    with pytest.raises(ValueError, match="no metric 'accuracy' to compare models by: loss, miou"):
        fit(tmp_path, make_model(), monitor="accuracy")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    fit(folder, make_model())
    return folder


@pytest.fixture
def finished(straight, tmp_path):
    """A workdir of a finished run, a copy of one that all tests share."""
    return shutil.copytree(straight, tmp_path / "run")


# === Whose the directory is ===


def test_another_runs_folder_is_refused_and_left_alone(tmp_path):
    fit(tmp_path / "a", make_model(), config={"train": {"rate": 1}, "test": {"scales": [1]}})
    before = contents(tmp_path / "a")
    with pytest.raises(ValueError, match="another experiment.*train.rate"):
        fit(tmp_path / "a", make_model(), config={"train": {"rate": 2}, "test": {"scales": [1]}})
    assert contents(tmp_path / "a") == before
    changed = {"train": {"rate": 1}, "test": {"scales": [2], "flip": True}}
    with training.Run(tmp_path / "a", changed, may_change=["test"]):
        pass
    assert json.loads((tmp_path / "a" / training.CONFIG).read_text()) == changed


def test_what_was_refused_before_it_began_claims_no_folder(tmp_path):
    with pytest.raises(ValueError, match="validate_every must be at least 1, got 0"):
        fit(tmp_path / "a", make_model(), config={"every": 0}, validate_every=0)
    with training.Run(tmp_path / "a", {"every": 1}):
        pass
    # Whose it was before, it stays.
    with pytest.raises(ValueError, match="validate_every"):
        fit(tmp_path / "a", make_model(), config={"every": 1}, validate_every=0)
    with pytest.raises(ValueError, match="another experiment.*every"):
        fit(tmp_path / "a", make_model(), config={"every": 2})


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        fit(tmp_path, make_model())
    assert list(contents(tmp_path).values()) == [b"mine"]


def test_killed_as_the_config_was_first_written(tmp_path):
    for name in (".lock", ".new-1-config.json"):
        (tmp_path / name).write_text("")
    with training.Run(tmp_path):
        assert sorted(os.listdir(tmp_path)) == [".lock", training.CONFIG]


def test_a_second_process_is_refused(finished):
    before = contents(finished)
    holder = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import sys, time; from isa_tf.files import lock\n"
            "with lock(sys.argv[1]): print('held', flush=True); time.sleep(600)",
            str(finished / ".lock"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OSError, match=f"in use by process {holder.pid}"):
            fit(finished, make_model())
        del before[next(path for path in before if path.name == ".lock")]
        after = contents(finished)
        assert {path: after[path] for path in before} == before
    finally:
        holder.kill()  # the lock dies with its process
        holder.wait()
    fit(finished, make_model())
    with lock(finished / ".lock"):
        pass


def test_a_run_of_version_01_is_refused(tmp_path):
    (tmp_path / training.CONFIG).write_text("{}")
    (tmp_path / "last.keras").write_bytes(b"of the last version")
    with pytest.raises(ValueError, match="last.keras.*version 0.1"):
        fit(tmp_path, make_model())


def test_never_silently_from_the_beginning(finished):
    for path in (finished / training.CHECKPOINTS).iterdir():
        path.unlink()
    before = contents(finished)
    with pytest.raises(ValueError, match="no checkpoint any more"):
        fit(finished, make_model())
    assert contents(finished) == before


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("null", "holds no dictionary"),
        ("[1]", "holds no dictionary"),
        ('{"step": 3, "miou": NaN}', "not finite"),
        ('{"step": 3', "cannot be read"),
        ('{"step": 3, "miou": 0.5}', "not what the checkpoint knows"),
    ],
)
def test_a_damaged_score_is_named_and_mended(finished, damage, said, caplog):
    path = finished / training.BEST_SCORE
    kept = path.read_text()
    path.write_text(damage)
    if said != "not what the checkpoint knows":
        with pytest.raises(ValueError, match=f"best.json: .*{said}"):
            training.best_score(finished)
    with caplog.at_level(logging.WARNING):
        fit(finished, make_model())
    assert f"{path}: " in caplog.text and said in caplog.text
    assert path.read_text() == kept


def test_a_damaged_config_is_named_and_mended(tmp_path, caplog):
    fit(tmp_path, make_model(), config={"seed": 1})
    path = tmp_path / training.CONFIG
    kept = path.read_text()
    for damage in ("null", "", '{"seed": '):
        path.write_text(damage)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            fit(tmp_path, make_model(), config={"seed": 1})
        assert str(path) in caplog.text and path.read_text() == kept
        path.write_text(damage)
        with pytest.raises(ValueError, match="another experiment.*seed"):
            fit(tmp_path, make_model(), config={"seed": 2})
    for checkpoint in (tmp_path / training.CHECKPOINTS).iterdir():
        checkpoint.unlink()
    path.write_text("null")
    with pytest.raises(ValueError, match="config.json: holds no dictionary.*put the file back"):
        fit(tmp_path, make_model(), config={"seed": 1})


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("\n10,", "\n10,1.0,", 1),
        lambda text: text.replace("\n5,", "\nfive,", 1),
        lambda text: "",
    ],
    ids=["cut", "field too many", "no number", "emptied"],
)
def test_a_damaged_log_is_named_and_mended(finished, damage, caplog):
    path = finished / training.LOG
    kept = path.read_text()
    path.write_text(damage(kept))
    with caplog.at_level(logging.WARNING):
        fit(finished, make_model())
    assert f"{path}: " in caplog.text
    assert path.read_text() == kept


def test_a_log_is_read_wherever_it_was_written(tmp_path, monkeypatch):
    """Names of classes stand in it, and a system's own encoding may have none of their letters."""

    def opened(*args, **kwargs):
        return open(*args, **{"encoding": "ascii", **kwargs})

    monkeypatch.setattr(training.callbacks, "open", opened, raising=False)
    rows = [{"step": 1.0, "val_iou/Stra\u00dfe": 0.5, "val_iou/\u9053": 0.25}]
    training.callbacks.write_log(tmp_path / training.LOG, rows)
    assert training.read_log(tmp_path / training.LOG) == rows


def test_a_lost_best_model_is_named_and_made_anew(finished, caplog):
    best = keras.models.load_model(finished / training.BEST).get_weights()
    for damage in (b"", None):
        if damage is None:
            (finished / training.BEST).unlink()
        else:
            (finished / training.BEST).write_bytes(damage)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = fit(finished, make_model())
        assert "best.keras is" in caplog.text
        assert found["step"] == STEPS  # what there is left to keep
        model = keras.models.load_model(finished / training.BEST)
        assert len(model.get_weights()) == len(best)


def test_a_checkpoint_of_something_else_is_named(finished):
    before = contents(finished)
    with pytest.raises(training.Damaged, match="it is of another optimizer"):
        fit(finished, make_model("adamw"))
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(3, 1)(inputs))
    model.compile(training.make_optimizer("sgd", 0.1, 9), PixelCrossEntropy(), metrics=[MeanIoU(3)])
    with pytest.raises(training.Damaged, match="it is of another model"):
        fit(finished, model)
    assert contents(finished) == before


def test_impossible_steps_are_named_and_the_one_before_is_used(finished, caplog):
    checkpoints = training.Checkpoints(finished / training.CHECKPOINTS)
    facts, arrays = checkpoints.read(checkpoints.paths()[0])
    newest, before = checkpoints.paths()
    newest.unlink()
    checkpoints.write(11, arrays, facts)  # its optimizer has counted 12
    with caplog.at_level(logging.WARNING):
        fit(finished, make_model(), steps=10)
    assert "impossible step: 11" in caplog.text and f"going on from {before.name}" in caplog.text


@pytest.mark.parametrize(
    ("name", "value"), [("steps", 0), ("validate_every", 0), ("checkpoint_every", 0)]
)
def test_numbers_that_make_no_sense(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        fit(tmp_path, make_model(), **{name: value})
