"""Training end to end, small: resumption, strategies, refusals, evaluation, the demo's claims."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from ml_collections import config_flags
from stopping import Stop, assert_same_state, state

from experiments import setup
from experiments.configs import camvid, default, synthetic
from experiments.evaluate import evaluate
from experiments.tasks import segmentation
from experiments.train import train
from isa_tf import data, formats, load_predictor, training

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config():
    config = synthetic.get_config()
    config.data.options.num_examples = {"train": 24, "val": 6}
    config.data.batch_size = 4
    config.data.val_batch_size = 6
    config.model.head_filters = 16
    config.train.steps = 4
    config.train.validate_every = 2
    config.train.warmup_steps = 0
    config.train.pictures = 2
    config.train.ema_batches = 2
    return config


@pytest.mark.slow
def test_run_leaves_everything_and_resumes_exactly(config, tmp_path):
    """Of two phases, stopped in either of them."""
    config.train.ema = 0.5
    config.model.dropout = 0.1
    config.train.class_weights = (0.1, 0.7, 1.0, 1.0, 1.0, 1.0, 5.0)
    config.train.class_weight_steps = 2
    best = train(config, tmp_path / "straight", verbose=0)
    assert best["step"] in (2, 4) and 0 <= best["miou"] <= 1
    rows = training.read_log(tmp_path / "straight" / training.LOG)
    assert [row["step"] for row in rows] == [2, 4]
    assert {"loss", "val_loss", "val_miou", "val_context_miou", "learning_rate"} <= set(rows[0])
    assert {"val_iou/sea", "gradient_norm", "images_per_second", "waiting"} <= set(rows[0])
    assert list((tmp_path / "straight" / "tensorboard").glob("events*"))
    assert (tmp_path / "straight" / "curves.png").stat().st_size > 1000

    for step, end in ((1, 2), (2, 2), (3, 4)):  # of the phase
        with pytest.raises(training.Interrupted, match=f"at step {step} of {end}"):
            train(config, tmp_path / "resumed", verbose=0, callbacks=[Stop(step)])
    assert train(config, tmp_path / "resumed", verbose=0) == best
    assert_same_state(tmp_path / "resumed", tmp_path / "straight")
    resumed = training.read_log(tmp_path / "resumed" / training.LOG)
    for row, other in zip(resumed, rows, strict=True):
        for name in ("step", "loss", "miou", "val_loss", "val_miou", "val_iou/sea"):
            assert row[name] == other[name]

    # The weights count up to the step, and no longer.
    config.train.class_weight_steps = None
    train(config, tmp_path / "always", verbose=0)
    always = training.read_log(tmp_path / "always" / training.LOG)
    assert rows[0]["val_loss"] == always[0]["val_loss"]
    assert rows[1]["val_loss"] != always[1]["val_loss"]


def test_class_weights_up_to_a_step_there_is(config):
    weights = (1.0,) * 7
    for steps, class_weights in ((5, weights), (2, None), (0, weights)):
        wrong = config.copy_and_resolve_references()
        with wrong.ignore_type():
            wrong.train.class_weight_steps, wrong.train.class_weights = steps, class_weights
        with pytest.raises(ValueError, match=f"class_weight_steps={steps} needs"):
            segmentation.phases(wrong)


@pytest.mark.slow
def test_best_model_holds_the_averaged_weights_that_were_scored(config, tmp_path):
    config.train.ema = 0.9
    train(config, tmp_path, verbose=0)
    best = training.best_score(tmp_path)
    result = evaluate(config, tmp_path, pictures=1)
    assert result["miou"] == pytest.approx(best["miou"], abs=1e-6)
    arrays = state(tmp_path)[1]
    averaged = formats.load_model(tmp_path / training.BEST).get_weights()
    last = [arrays[name] for name in sorted(arrays) if name.startswith("model/")]
    same = [any(np.array_equal(a, b) for b in last if a.shape == b.shape) for a in averaged]
    assert not all(same)


def test_evaluate_writes_scores_and_pictures(config, tmp_path):
    train(config, tmp_path, verbose=0)
    for name in ("metrics.json", "predictions.png"):
        (tmp_path / name).write_text("older")
        os.link(tmp_path / name, tmp_path / f"older-{name}")
    result = evaluate(config, tmp_path, pictures=2)
    for name in ("metrics.json", "predictions.png"):  # replaced, not written into
        assert (tmp_path / f"older-{name}").read_text() == "older"
    assert json.loads((tmp_path / "metrics.json").read_text()) == result
    assert (tmp_path / "predictions.png").stat().st_size > 1000
    assert set(result["iou"]) == set(segmentation.make_dataset(config).class_names)
    # The score again, image by image.
    dataset = segmentation.make_dataset(config)
    predictor = load_predictor(tmp_path / training.BEST)
    matrix = np.zeros((dataset.num_classes,) * 2, int)
    for index in range(dataset.size("val")):
        image, label = dataset.read("val", index)
        np.add.at(matrix, (label.ravel(), predictor(image[None])[0].ravel()), 1)
    np.testing.assert_array_equal(result["confusion_matrix"], matrix)


def mirrored_config(config):
    config.model.dropout = 0.1
    config.data.val_batch_size = 1
    config.data.options.num_examples = {"train": 24, "val": 3}
    config.train.ema = 0.5
    config.train.class_weights = (1.0,) * 7
    config.train.class_weight_steps = 2
    return config


@pytest.mark.slow
def test_mirrored_training(config, tmp_path, mirrored):
    """Trains, validates, is stopped in the second phase, goes on, and ends."""
    assert len(tf.config.list_logical_devices("CPU")) > 1
    config = mirrored_config(config)
    with pytest.raises(training.Interrupted, match="at step 3 of 4"):
        train(config, tmp_path, mirrored, verbose=0, callbacks=[Stop(3)])
    best = train(config, tmp_path, mirrored, verbose=0)
    assert best["step"] in (2, 4)
    assert [row["step"] for row in training.read_log(tmp_path / training.LOG)] == [2, 4]
    model = formats.load_model(tmp_path / training.BEST)
    assert model.synchronized and model.backbone.synchronized and model.context.synchronized
    result = evaluate(config, tmp_path, pictures=1)
    assert result["miou"] == pytest.approx(best["miou"], abs=1e-6)


@pytest.mark.slow
def test_mirrored_training_resumes_exactly(config, tmp_path, mirrored):
    config = mirrored_config(config)
    config.model.auxiliary_level = "c1"
    train(config, tmp_path / "straight", mirrored, verbose=0)
    for step in (1, 3):
        with pytest.raises(training.Interrupted):
            train(config, tmp_path / "parts", mirrored, verbose=0, callbacks=[Stop(step)])
    train(config, tmp_path / "parts", mirrored, verbose=0)
    assert_same_state(tmp_path / "straight", tmp_path / "parts")


def test_what_a_strategy_cannot_do_is_refused(config, tmp_path, mirrored):
    config.data.batch_size = 5
    with pytest.raises(ValueError, match="data.batch_size=5 .*a multiple of 2"):
        train(config, tmp_path / "w", mirrored, verbose=0)
    config.data.batch_size = 4
    config.train.jit_compile = True
    with pytest.raises(ValueError, match="variables of 2 devices, and XLA compiles for one"):
        train(config, tmp_path / "w", mirrored, verbose=0)
    assert not (tmp_path / "w").exists()


def test_workdir_of_another_experiment_is_refused(config, tmp_path):
    setup.prepare_workdir(tmp_path / "a", config)
    kept = (tmp_path / "a" / training.CONFIG).read_text()
    config.model.head_filters = 8
    with pytest.raises(ValueError, match="another experiment.*model.head_filters"):
        setup.prepare_workdir(tmp_path / "a", config)
    assert (tmp_path / "a" / training.CONFIG).read_text() == kept
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        setup.prepare_workdir(tmp_path / "b", config)
    assert (tmp_path / "b" / "thesis.txt").read_text() == "mine"


def test_length_and_place_may_change(config, tmp_path):
    setup.prepare_workdir(tmp_path / "a", config)
    config.train.steps = 100
    config.data.data_dir = "elsewhere"
    setup.prepare_workdir(tmp_path / "a", config)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.train.step=3", '"steps" instead of "step"'),
        ("--config.modle.depth=3", '"model" instead of "modle"'),
        ("--config.train.steps=many", "many"),
    ],
)
def test_wrong_flags_are_refused_with_the_right_name(flag, message):
    values = flags.FlagValues()
    file = str(ROOT / "experiments/configs/synthetic.py")
    argv = ["train", f"--config={file}", flag]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    with pytest.raises((AttributeError, KeyError, flags.Error)) as refusal:
        values(argv)
    assert message in setup.message(refusal.value)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("model", "context", "isaa", 'did you mean "isa"'),
        ("model", "backbone", "resnet5", "resnet50"),
        ("data", "name", "camvit", "camvid"),
        ("train", "optimizer", "adm", "adamw"),
        ("train", "accumulate", 0, "config.train.accumulate must be at least 1, got 0"),
        ("data", "val_split", "vla", "no split 'vla'"),
    ],
)
def test_wrong_values_are_refused_and_leave_no_workdir(
    config, tmp_path, section, key, value, message
):
    config[section][key] = value
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "w", verbose=0)
    assert not (tmp_path / "w").exists()


def test_command_line_answers_with_a_line(tmp_path):
    command = [sys.executable, "-m", "experiments.train", f"--workdir={tmp_path / 'w'}"]
    command += ["--config=experiments/configs/synthetic.py", "--config.train.step=3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "error: --config.train.step: the config has no key 'step'" in done.stderr
    assert 'Did you mean "steps"' in done.stderr and "Traceback" not in done.stderr


def test_configs_are_locked():
    for module in (default, synthetic, camvid):
        config = module.get_config()
        with pytest.raises(AttributeError, match='Did you mean "steps"'):
            config.train.stesp = 3
        with pytest.raises(TypeError):
            config.train.steps = "three"


def test_nan_stops_with_the_last_good_state_kept(config, tmp_path):
    config.train.learning_rate = 1e30
    config.train.steps = 20
    config.train.validate_every = 10
    config.train.checkpoint_every = 1
    with pytest.raises(
        FloatingPointError, match=r"step \d+ of 20: the .* is .*its batch: "
    ) as error:
        train(config, tmp_path, verbose=0)
    facts, arrays = state(tmp_path)
    assert f"goes on from {tmp_path / training.CHECKPOINTS}" in str(error.value)
    assert f"step {facts['step'] + 1} of 20" in str(error.value)
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert not (tmp_path / training.BEST).exists()
    dataset = segmentation.make_dataset(config)
    for name in segmentation.batch_files(config, dataset, facts["step"]):
        assert name in str(error.value)


def test_signals_end_the_process_as_is_usual(tmp_path):
    command = [sys.executable, "-m", "experiments.train", f"--workdir={tmp_path}"]
    command += ["--config=experiments/configs/synthetic.py", "--config.train.pictures=0"]
    command += ["--config.data.options.num_examples={'train': 8, 'val': 2}"]
    command += ["--config.data.batch_size=2", "--config.train.checkpoint_every=2"]
    folder = tmp_path / training.CHECKPOINTS
    for number, least in ((signal.SIGTERM, 2), (signal.SIGINT, 8)):
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            # pytest-xdist ignores SIGINT, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        deadline = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < deadline:
            if any(int(path.stem[5:]) >= least for path in folder.glob("step-*")):
                break
            time.sleep(0.05)
        process.send_signal(number)
        output, _ = process.communicate(timeout=100)
        assert process.returncode == 128 + number, output
        facts, _ = state(tmp_path)
        said = f"stopped by {signal.Signals(number).name} at step {facts['step']} of 1,000"
        assert said in output and "the same command goes on" in output
    assert facts["step"] >= 8


@pytest.mark.slow
def test_precisions_learn_alike(tmp_path):
    """200 steps with averages: mIoU within 0.02 of float32's."""
    scores = {}
    for dtype in ("float32", "mixed_bfloat16", "mixed_float16"):
        config = synthetic.get_config()
        config.data.options.num_examples = {"train": 400, "val": 32}
        config.data.batch_size = 8
        config.model.dtype = dtype
        config.train.steps = config.train.validate_every = 200
        config.train.ema = 0.95
        scores[dtype] = train(config, tmp_path / dtype, verbose=0)["miou"]
    assert scores["float32"] > 0.3
    for score in scores.values():
        assert abs(score - scores["float32"]) <= 0.02, scores


@pytest.fixture(scope="module")
def plain():
    """The synthetic data, and a network without the block, of weights that hide nothing."""
    config = synthetic.get_config()
    config.model.context = "none"
    dataset = segmentation.make_dataset(config)
    model = segmentation.make_model(config, dataset)
    rng = np.random.default_rng(0)
    model.set_weights([w + 0.1 * rng.random(w.shape) for w in model.get_weights()])
    return dataset, model


class TestDemonstration:
    """The labels cannot be told from what the plain network sees."""

    def test_no_gradient_from_beacon_to_ships(self, plain):
        dataset, model = plain
        seed = dataset.example_seed("train", 0)
        images, labels = zip(
            *(dataset.render(seed, c) for c in dataset.context_class_ids), strict=True
        )
        image = tf.constant(images[0][None], tf.float32)
        ships = tf.constant(np.isin(labels[0], dataset.context_class_ids)[None, ..., None])
        with tf.GradientTape() as tape:
            tape.watch(image)
            logits = tf.where(ships, model(image, training=False), 0.0)
            # Squares, so that no two gradients cancel by chance of sign.
            total = tf.reduce_sum(logits**2)
        gradient = np.abs(tape.gradient(total, image)[0]).sum(-1)
        changed = np.zeros(gradient.shape, bool)
        for other in images[1:]:
            changed |= (other != images[0]).any(-1)
        assert changed.any()
        assert gradient[changed].max() == 0.0
        assert gradient[ships[0, ..., 0]].max() > 0.0

    def test_same_crops_under_every_class(self, plain):
        dataset, model = plain
        seed = dataset.example_seed("train", 1)
        predictions, ships = [], None
        for c in dataset.context_class_ids:
            image, label = dataset.render(seed, c)
            ships = np.isin(label, dataset.context_class_ids)
            assert (label[ships] == c).all()
            predictions.append(np.asarray(model(image[None], training=False))[0][ships])
        for other in predictions[1:]:
            np.testing.assert_array_equal(other, predictions[0])

    def test_the_block_lets_the_beacon_through(self):
        config = synthetic.get_config()
        dataset = segmentation.make_dataset(config)
        model = segmentation.make_model(config, dataset)
        seed = dataset.example_seed("train", 0)
        outputs = []
        for c in dataset.context_class_ids[:2]:
            image, label = dataset.render(seed, c)
            ships = np.isin(label, dataset.context_class_ids)
            outputs.append(np.asarray(model(image[None], training=False))[0][ships])
        assert np.abs(outputs[0] - outputs[1]).max() > 0


def camvid_dataset(held_out="val"):
    config = camvid.get_config(held_out)
    folder = ROOT / config.data.data_dir
    if not folder.exists():
        pytest.skip(f"no CamVid at {config.data.data_dir}")
    config.data.data_dir = str(folder)
    return segmentation.make_dataset(config)


def sequences(dataset, split):
    return {Path(path).name.partition("_")[0] for path in dataset.examples(split)}


def test_a_sequence_of_camvid_is_left_out_whole():
    with pytest.raises(ValueError, match="one of val, 0001TP, 0006R0, 0016E5, all, got '0001'"):
        camvid.get_config("0001")
    sizes = {"0001TP": 62, "0006R0": 101, "0016E5": 305}
    for name, size in sizes.items():
        dataset = camvid_dataset(name)
        assert (dataset.size("train"), dataset.size("val")) == (468 - size, size)
        assert sequences(dataset, "val") == {name}
        assert sequences(dataset, "train") == sizes.keys() - {name}
    everything = camvid_dataset("all")
    assert (everything.size("train"), everything.size("val")) == (468, 101)
    assert len(set(everything.examples("train"))) == 468


def test_camvid_config_fits_the_data():
    dataset = camvid_dataset()
    assert dataset.size("train") == 367 and dataset.size("val") == 101
    counts = np.zeros(256, np.int64)
    for index in range(dataset.size("train")):
        counts += np.bincount(dataset.read("train", index)[1].ravel(), minlength=256)
    shares = counts[: dataset.num_classes] / counts[: dataset.num_classes].sum()
    np.testing.assert_allclose(camvid.FREQUENCIES, shares, atol=6e-5)
    assert isinstance(dataset, data.FolderDataset)
