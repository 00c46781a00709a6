"""Training end to end, small: resumption, strategies, refusals, evaluation, the demo's claims."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from ml_collections import config_flags

from experiments import setup
from experiments.configs import camvid, default, synthetic
from experiments.evaluate import evaluate
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
    return config


def weights(path):
    return keras.models.load_model(path).get_weights()


def test_run_leaves_everything_and_resumes_exactly(config, tmp_path):
    config.train.ema = 0.5
    best = train(config, tmp_path / "straight", verbose=0)
    assert best["step"] in (2, 4) and 0 <= best["miou"] <= 1
    rows = training.read_log(tmp_path / "straight" / training.LOG)
    assert [row["step"] for row in rows] == [2, 4]
    assert {"loss", "val_loss", "val_miou", "val_context_miou", "learning_rate"} <= set(rows[0])
    assert list((tmp_path / "straight" / "tensorboard").glob("events*"))

    config.train.steps = 4
    half = config.copy_and_resolve_references()
    # The schedule is that of four steps: only the run is cut short.
    with pytest.raises(KeyboardInterrupt):
        interrupted(half, tmp_path / "resumed", after=2)
    train(config, tmp_path / "resumed", verbose=0)
    for ours, theirs in zip(
        weights(tmp_path / "resumed" / training.LAST),
        weights(tmp_path / "straight" / training.LAST),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    resumed = training.read_log(tmp_path / "resumed" / training.LOG)
    assert [row["step"] for row in resumed] == [2, 4]
    np.testing.assert_allclose(resumed[1]["val_loss"], rows[1]["val_loss"], rtol=1e-4)

    # Once done, nothing is trained again.
    before = (tmp_path / "resumed" / training.LAST).read_bytes()
    train(config, tmp_path / "resumed", verbose=0)
    assert (tmp_path / "resumed" / training.LAST).read_bytes() == before


def test_class_weights_up_to_a_step(config, tmp_path):
    config.train.ema = 0.5
    config.train.class_weights = (0.1, 0.7, 1.0, 1.0, 1.0, 1.0, 5.0)
    with pytest.raises(KeyboardInterrupt):
        interrupted(config, tmp_path / "weighted", after=2)
    (tmp_path / "parts").mkdir()
    last = (tmp_path / "weighted" / training.LAST).read_bytes()
    (tmp_path / "parts" / training.LAST).write_bytes(last)
    plain = config.copy_and_resolve_references()
    with plain.ignore_type():
        plain.train.class_weights = None
    setup.claim(tmp_path / "claimed", plain)
    kept = (tmp_path / "claimed" / setup.CONFIG_FILE).read_text()
    (tmp_path / "parts" / setup.CONFIG_FILE).write_text(kept)
    train(plain, tmp_path / "parts", verbose=0)

    config.train.class_weight_steps = 2
    train(config, tmp_path / "one", verbose=0)
    assert [row["step"] for row in training.read_log(tmp_path / "one" / training.LOG)] == [2, 4]
    for ours, theirs in zip(
        weights(tmp_path / "one" / training.LAST),
        weights(tmp_path / "parts" / training.LAST),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    losses = [row["val_loss"] for row in training.read_log(tmp_path / "one" / training.LOG)]
    theirs = training.read_log(tmp_path / "parts" / training.LOG)[-1]["val_loss"]
    assert losses[1] == pytest.approx(theirs, rel=1e-4)

    for steps, class_weights in ((5, config.train.class_weights), (2, None), (0, (1.0,) * 7)):
        wrong = config.copy_and_resolve_references()
        with wrong.ignore_type():
            wrong.train.class_weight_steps, wrong.train.class_weights = steps, class_weights
        with pytest.raises(ValueError, match=f"class_weight_steps={steps} needs"):
            setup.phases(wrong)


def interrupted(config, workdir, after):
    """`train`, stopped by force once the step `after` is kept."""

    class Stop(training.TensorBoardLog):
        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            if logs["step"] >= after:
                raise KeyboardInterrupt

    original, training.run.TensorBoardLog = training.TensorBoardLog, Stop
    try:
        train(config, workdir, verbose=0)
    finally:
        training.run.TensorBoardLog = original


def test_best_model_holds_the_averaged_weights_that_were_scored(config, tmp_path):
    config.train.ema = 0.9
    train(config, tmp_path, verbose=0)
    best = training.best_score(tmp_path)
    result = evaluate(config, tmp_path, pictures=1)
    assert result["miou"] == pytest.approx(best["miou"], abs=1e-6)
    last = weights(tmp_path / training.LAST)
    averaged = weights(tmp_path / training.BEST)
    assert any(not np.allclose(a, b) for a, b in zip(last, averaged, strict=True))


def test_evaluate_writes_scores_and_pictures(config, tmp_path):
    train(config, tmp_path, verbose=0)
    result = evaluate(config, tmp_path, pictures=2)
    assert json.loads((tmp_path / "metrics.json").read_text()) == result
    assert (tmp_path / "predictions.png").stat().st_size > 1000
    assert set(result["iou"]) == set(setup.make_dataset(config).class_names)
    # The score again, image by image.
    dataset = setup.make_dataset(config)
    predictor = load_predictor(tmp_path / training.BEST)
    matrix = np.zeros((dataset.num_classes,) * 2, int)
    for index in range(dataset.size("val")):
        image, label = dataset.read("val", index)
        np.add.at(matrix, (label.ravel(), predictor(image[None])[0].ravel()), 1)
    np.testing.assert_array_equal(result["confusion_matrix"], matrix)


def test_mirrored_training(config, tmp_path):
    assert len(tf.config.list_logical_devices("CPU")) > 1
    config.model.auxiliary_level = "c1"
    best = train(config, tmp_path, strategy="mirrored", verbose=0)
    assert best["step"] in (2, 4)
    model = formats.load_model(tmp_path / training.BEST)
    assert model.synchronized and model.backbone.synchronized and model.context.synchronized
    result = evaluate(config, tmp_path, pictures=1)
    assert result["miou"] == pytest.approx(best["miou"], abs=1e-6)


def test_workdir_of_another_experiment_is_refused(config, tmp_path):
    setup.claim(tmp_path / "a", config)
    kept = (tmp_path / "a" / setup.CONFIG_FILE).read_text()
    config.model.head_filters = 8
    with pytest.raises(ValueError, match="another experiment.*model.head_filters"):
        setup.claim(tmp_path / "a", config)
    assert (tmp_path / "a" / setup.CONFIG_FILE).read_text() == kept
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        setup.claim(tmp_path / "b", config)
    assert (tmp_path / "b" / "thesis.txt").read_text() == "mine"


def test_length_and_place_may_change(config, tmp_path):
    setup.claim(tmp_path / "a", config)
    config.train.steps = 100
    config.data.data_dir = "elsewhere"
    setup.claim(tmp_path / "a", config)


def test_foreign_state_is_refused(config, tmp_path):
    setup.claim(tmp_path, config)
    (tmp_path / training.LAST).write_bytes(b"not a model")
    with pytest.raises(ValueError, match="last.keras"):
        train(config, tmp_path, verbose=0)
    assert (tmp_path / training.LAST).read_bytes() == b"not a model"


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
    assert 'Did you mean "steps"' in done.stderr and "Traceback" not in done.stderr


def test_configs_are_locked():
    for module in (default, synthetic, camvid):
        config = module.get_config()
        with pytest.raises(AttributeError, match='Did you mean "steps"'):
            config.train.stesp = 3
        with pytest.raises(TypeError):
            config.train.steps = "three"


@pytest.mark.parametrize(
    ("start", "steps", "every", "calls"),
    [
        (0, 4, 2, [(0, 2, 2)]),
        (0, 5, 2, [(0, 2, 2), (4, 1, 1)]),
        (3, 9, 4, [(3, 1, 1), (4, 1, 4), (8, 1, 1)]),
        (1, 2, 4, [(1, 1, 1)]),
        (0, 3, 10, [(0, 1, 3)]),
        (7, 7, 5, []),
        (9, 7, 5, []),
    ],
)
def test_segments(start, steps, every, calls):
    assert training.segments(start, steps, every) == calls
    assert sum(epochs * length for _, epochs, length in calls) == max(0, steps - start)


def test_nan_stops_with_the_last_good_state_kept(config, tmp_path):
    config.train.learning_rate = 1e30
    config.train.steps = 20
    config.train.validate_every = 10
    with pytest.raises(FloatingPointError, match="not a number"):
        train(config, tmp_path, verbose=0)


class TestDemonstration:
    """The labels cannot be told from what the plain network sees."""

    @pytest.fixture(scope="class")
    def plain(self):
        config = synthetic.get_config()
        config.model.context = "none"
        dataset = setup.make_dataset(config)
        model = setup.make_model(config, dataset)
        rng = np.random.default_rng(0)
        model.set_weights([w + 0.1 * rng.random(w.shape) for w in model.get_weights()])
        return dataset, model

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
        dataset = setup.make_dataset(config)
        model = setup.make_model(config, dataset)
        seed = dataset.example_seed("train", 0)
        outputs = []
        for c in dataset.context_class_ids[:2]:
            image, label = dataset.render(seed, c)
            ships = np.isin(label, dataset.context_class_ids)
            outputs.append(np.asarray(model(image[None], training=False))[0][ships])
        assert np.abs(outputs[0] - outputs[1]).max() > 0


def test_camvid_config_fits_the_data():
    config = camvid.get_config()
    folder = ROOT / config.data.data_dir
    if not folder.exists():
        pytest.skip(f"no CamVid at {config.data.data_dir}")
    config.data.data_dir = str(folder)
    dataset = setup.make_dataset(config)
    assert dataset.size("train") == 367 and dataset.size("val") == 101
    counts = np.zeros(256, np.int64)
    for index in range(dataset.size("train")):
        counts += np.bincount(dataset.read("train", index)[1].ravel(), minlength=256)
    shares = counts[: dataset.num_classes] / counts[: dataset.num_classes].sum()
    np.testing.assert_allclose(camvid.FREQUENCIES, shares, atol=6e-5)
    assert isinstance(dataset, data.FolderDataset)
