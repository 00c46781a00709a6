"""A tiny real study, stopped, resumed and tabled; what is refused."""

import csv
import functools
import json
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

from experiments import ablate, study_figures
from experiments.configs import synthetic
from experiments.tasks import segmentation
from experiments.train import train
from isa_tf import data, formats, layers, load_predictor, training
from isa_tf.files import lock

ROOT = Path(__file__).resolve().parents[2]
SEEDS = [0, 3]
VARIANTS = ["none", "isa"]


def make_config():
    config = synthetic.get_config()
    config.data.options.num_examples = {"train": 4, "val": 4}
    config.data.options.image_size = (80, 128)
    config.data.options.min_distance = 16
    config.data.crop_size = (80, 128)
    config.data.batch_size = 2
    config.data.val_batch_size = 4
    config.model.head_filters = 8
    config.train.steps = 4
    config.train.validate_every = 2
    config.train.warmup_steps = 0
    config.train.pictures = 0
    return config


def make_study(workdir, config=None):
    return ablate.Study("context", config or make_config(), workdir, SEEDS, VARIANTS, "the command")


def read_csv(folder):
    with open(folder / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def checkpoints(run_folder):
    return {p.name: p.read_bytes() for p in (run_folder / training.CHECKPOINTS).iterdir()}


def never(config, folder):
    raise AssertionError(f"{folder} was run again")


class Stop(keras.callbacks.Callback):
    """Has a training told to stop in its third step."""

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == 3:
            os.kill(os.getpid(), signal.SIGTERM)  # pytest-xdist ignores SIGINT


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A study stopped in its second run, then resumed: (folder, what was seen on the way)."""
    workdir = tmp_path_factory.mktemp("ablation")
    folder = workdir / "context"
    seen = {"begun": []}

    def stopped_in_the_second(config, run_folder):
        seen["begun"].append(run_folder.relative_to(folder).as_posix())
        with pytest.MonkeyPatch.context() as patch:
            if len(seen["begun"]) == 2:
                patch.setattr(ablate, "train", functools.partial(train, callbacks=[Stop()]))
            ablate.run(config, run_folder)

    with pytest.raises(KeyboardInterrupt):
        make_study(workdir).go(stopped_in_the_second)
    seen["table"] = (folder / "results.md").read_text()
    seen["rows"] = read_csv(folder)
    seen["half"] = training.read_log(folder / "isa/seed0" / training.LOG)
    seen["first"] = checkpoints(folder / "none/seed0")

    def resumed(config, run_folder):
        seen["begun"].append(run_folder.relative_to(folder).as_posix())
        ablate.run(config, run_folder)

    make_study(workdir).go(resumed)
    return folder, seen


class TestStudy:
    def test_order_of_the_runs(self, story):
        first = ["none/seed0", "isa/seed0"]
        resumed = ["isa/seed0", "none/seed3", "isa/seed3"]
        assert story[1]["begun"] == first + resumed

    def test_a_study_cut_short_says_so(self, story):
        seen = story[1]
        assert "Not complete: 1 of 4 runs" in seen["table"]
        done, unfinished = seen["rows"]
        assert done["miou_seed0"] and not done["miou_seed3"] and not done["miou_sd"]
        assert done["miou_mean"] == done["miou_seed0"]
        assert not any(value for name, value in unfinished.items() if name != "context")

    def test_an_unfinished_run_goes_on_from_its_checkpoint(self, story):
        folder, seen = story
        log = training.read_log(folder / "isa/seed0" / training.LOG)
        assert [row["step"] for row in seen["half"]] == [2]
        assert [row["step"] for row in log] == [2, 4]
        assert log[0] == seen["half"][0]
        assert checkpoints(folder / "none/seed0") == seen["first"]

    def test_runs_differ_in_variant_and_seed_alone(self, story):
        kept = {}
        for variant in VARIANTS:
            for seed in SEEDS:
                path = story[0] / variant / f"seed{seed}" / training.CONFIG
                config = json.loads(path.read_text())
                assert config.pop("seed") == seed
                assert config["model"].pop("context") == variant
                kept[variant, seed] = config
        expected = json.loads(make_config().to_json())
        del expected["seed"], expected["model"]["context"]
        assert all(config == expected for config in kept.values())

    def test_figures_are_those_of_the_runs(self, story):
        folder = story[0]
        table = (folder / "results.md").read_text()
        for row in read_csv(folder):
            runs = [folder / row["context"] / f"seed{seed}" for seed in SEEDS]
            metrics = [json.loads((run / "metrics.json").read_text()) for run in runs]
            for score in ("miou", "context_miou"):
                a, b = (m[score] for m in metrics)
                assert [float(row[f"{score}_seed{s}"]) for s in SEEDS] == [a, b]
                assert float(row[f"{score}_mean"]) == pytest.approx((a + b) / 2)
                # The sample standard deviation of two values.
                assert float(row[f"{score}_sd"]) == pytest.approx(abs(a - b) / math.sqrt(2))
                spread = abs(a - b) / math.sqrt(2)
                assert f"| {(a + b) / 2:.4f} ± {spread:.4f} | {a:.4f}, {b:.4f} |" in table
            model = formats.load_model(runs[0] / training.BEST)
            parameters = sum(math.prod(v.shape) for v in model.weights)
            assert int(row["parameters"]) == parameters and f"| {parameters:,} |" in table
            ends = [training.read_log(run / training.LOG)[-1] for run in runs]
            assert [float(row[f"seconds_seed{s}"]) for s in SEEDS] == [e["seconds"] for e in ends]

    def test_a_score_again_from_the_model(self, story):
        run = story[0] / "isa/seed3"
        options = make_config().data.options.to_dict()
        dataset = data.SyntheticDataset(**options)
        predictor = load_predictor(run / training.BEST)
        matrix = np.zeros((dataset.num_classes,) * 2, int)
        for index in range(dataset.size("val")):
            image, label = dataset.read("val", index)
            np.add.at(matrix, (label.ravel(), predictor(image[None])[0].ravel()), 1)
        union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
        miou = np.mean([matrix[c, c] / union[c] for c in range(len(union)) if union[c]])
        (row,) = (row for row in read_csv(story[0]) if row["context"] == "isa")
        assert float(row["miou_seed3"]) == pytest.approx(miou)

    def test_table_says_how(self, story):
        table = (story[0] / "results.md").read_text()
        assert "All 4 runs are done." in table and "seeds 0, 3" in table
        assert "4 steps of 2 crops" in table and "Data: synthetic" in table
        assert "`the command`" in table and "4 images of val" in table
        for package in ("tensorflow", "keras"):
            assert sys.modules[package].__version__ in table

    def test_pictures(self, story):
        image = data.pictures.read_image(story[0] / "results.png")
        assert image.shape[0] > 100 and image.std() > 0
        drawn = (story[0] / "results.svg").read_text()
        assert drawn.count("<use") > 0
        assert data.pictures.read_image(story[0] / "losses.png").std() > 0

    def test_started_again_trains_nothing(self, story, capsys):
        before = (story[0] / "results.csv").read_text()
        make_study(story[0].parent).go(never)
        assert (story[0] / "results.csv").read_text() == before
        assert capsys.readouterr().out.count("done before") == 4

    def test_another_length_or_config_is_refused(self, story):
        before = (story[0] / "results.md").read_text()
        for key, value in (("steps", 6), ("learning_rate", 0.5)):
            config = make_config()
            config.train[key] = value
            with pytest.raises(ValueError, match=f"seed0 .*train.{key}"):
                make_study(story[0].parent, config)
        assert (story[0] / "results.md").read_text() == before

    def test_scores_of_another_protocol_are_not_taken(self, story):
        config = make_config()
        config.test.flip = True
        assert not make_study(story[0].parent, config).results
        assert len(make_study(story[0].parent).results) == 4

    @pytest.mark.parametrize("name", [ablate.RUN, "metrics.json"])
    def test_a_run_whose_facts_are_damaged_is_not_done(self, story, name):
        path = story[0] / "isa/seed0" / name
        kept = path.read_text()
        path.write_text("")  # as a machine leaves it that went off
        try:
            assert ("isa", 0) not in make_study(story[0].parent).results
        finally:
            path.write_text(kept)
        assert len(make_study(story[0].parent).results) == 4

    def test_scores_by_the_dataset_s_own_pairs_are_taken(self, story, monkeypatch):
        config = make_config()
        config.test.flip = True
        folder = story[0] / "isa/seed0"
        kept = (folder / "metrics.json").read_text()
        told = json.loads(kept)
        told["protocol"] |= {"flip": True, "flip_pairs": [[1, 2]]}
        dataset = segmentation.make_dataset(config)
        monkeypatch.setattr(segmentation, "make_dataset", lambda config: dataset)
        (folder / "metrics.json").write_text(json.dumps(told))
        try:
            assert ablate.read_run(config, folder) is None
            dataset.flip_pairs = ((1, 2),)
            assert ablate.read_run(config, folder)["miou"] == told["miou"]
        finally:
            (folder / "metrics.json").write_text(kept)


def test_foreign_folders_are_refused(tmp_path):
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "results.md").write_text("# My thesis\n")
    with pytest.raises(ValueError, match="context is not empty and no study's"):
        make_study(tmp_path)
    assert (tmp_path / "context" / "results.md").read_text() == "# My thesis\n"


@pytest.mark.parametrize(
    ("study", "variants", "message"),
    [
        ("ordre", None, 'unknown study .ordre.; did you mean "order"'),
        ("order", ["shrot_long"], 'shrot_long.*did you mean "short_long"'),
        ("order", ["4"], "study 'order': unknown variant '4'; known: .*long_short"),
        ("partition", ["4x"], "study 'partition': unknown variant '4x'; .*known: 4, 8.*, ..."),
        ("partition", ["0"], "unknown variant '0'"),
        ("depth", ["auto"], "study 'depth': unknown variant 'auto'; known: 1, 2, 3, ..."),
        ("context", ["isaa"], 'unknown variant .isaa.*did you mean "isa"'),
        ("context", ["isaa:depth=2"], "unknown variant 'isaa:depth=2'"),
        ("context", ["isa:deep=2"], "isa:deep=2: .*deep"),
        ("context", ["isa:depth"], "isa:depth: an argument is NAME=VALUE, not 'depth'"),
        ("order", ["long:depth=2"], "unknown variant 'long:depth=2'"),
    ],
)
def test_wrong_names_are_refused(tmp_path, study, variants, message):
    with pytest.raises(ValueError, match=message):
        ablate.Study(study, make_config(), tmp_path / "w", [0], variants)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("every", "words"),
    [(2, "the best model on them, validated every 2 steps"), (4, "the last step")],
)
def test_the_table_says_which_model_is_scored(tmp_path, every, words):
    config = make_config()
    config.train.validate_every = every
    assert f"* Scores: of {words}; " in make_study(tmp_path, config).table()


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1]])
def test_wrong_seeds_are_refused(tmp_path, seeds):
    with pytest.raises(ValueError, match="seeds must be distinct natural numbers"):
        ablate.Study("order", make_config(), tmp_path, seeds)


def test_a_study_of_the_block_needs_the_block(tmp_path):
    config = make_config()
    config.model.context = "none"
    with pytest.raises(ValueError, match="config.model.context is 'none'"):
        ablate.Study("depth", config, tmp_path)
    assert ablate.Study("context", config, tmp_path).variants


@pytest.mark.parametrize(
    ("study", "name", "value"),
    [
        ("partition", "8", 8),
        ("partition", "4x16", (4, 16)),
        ("partition", "auto", "auto"),
        ("order", "long", "long"),
        ("depth", "3", 3),
        ("context", "self_attention", "self_attention"),
    ],
)
def test_variant_reaches_the_module(tmp_path, study, name, value):
    """From the name to the layer that would be trained."""
    run = ablate.Study(study, make_config(), tmp_path, [0], [name])
    config, folder = run.runs[name, 0]
    told = config.model.context if study == "context" else config.model.context_options[study]
    assert told == value and folder == tmp_path / study / name / "seed0"
    context = segmentation.make_model(config, segmentation.make_dataset(config)).context
    if study == "context":
        assert context.partitions == [(1, 1)]
    else:
        found = context.partitions[0] if study == "partition" else getattr(context, study)
        assert found == ((8, 8) if name == "8" else value)


def test_arguments_behind_a_name_reach_the_module(tmp_path):
    """Beside the config's own where it is its module, else beside the defaults."""
    config = make_config()
    config.model.context_options = {"partition": 4, "key_filters": 4}
    variants = ["isa", "isa:num_heads=2", "isa_plus:num_heads=2:key_filters=6", "isa:partition=8"]
    study, made = ablate.Study("context", config, tmp_path, [0], variants), []
    for variant in variants:
        run, folder = study.runs[variant, 0]
        assert folder == tmp_path / "context" / variant / "seed0"
        module = segmentation.make_model(run, segmentation.make_dataset(run)).context
        facts = (module.num_heads, module.key_filters, module.position_bias, module.partitions[0])
        made.append(facts)
    assert made == [
        (1, 4, False, (4, 4)),
        (2, 4, False, (4, 4)),
        (2, 6, True, (8, 8)),
        (1, 4, False, (8, 8)),
    ]
    assert config.model.context_options.to_dict() == {"partition": 4, "key_filters": 4}


@pytest.mark.parametrize("study", ablate.FORMS)
def test_every_form_reaches_the_module(tmp_path, study):
    run = ablate.Study(study, make_config(), tmp_path, [0])
    assert run.variants == list(ablate.FORMS[study]) and ablate.AGAINST[study] in run.variants
    seen = []
    for variant, options in ablate.FORMS[study].items():
        config, _ = run.runs[variant, 0]
        context = segmentation.make_model(config, segmentation.make_dataset(config)).context
        found = context.get_config()
        for name, value in options.items():
            assert found[name] == ([value] if name == "partition" else value)
        seen.append(found)
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])
    with pytest.raises(ValueError, match="unknown variant 'faster'"):
        ablate.Study(study, make_config(), tmp_path, [0], ["faster"])


def test_own_variants_fit(tmp_path):
    config = make_config()
    # A map of 20 x 32 positions.
    assert segmentation.map_size(config) == (20, 32)
    assert ablate.default_variants("partition", config) == list(ablate.STUDIES["partition"])
    config.data.crop_size = (32, 64)
    assert ablate.default_variants("partition", config) == ["4", "8", "auto", "4x8", "8x4", "8x16"]
    known = layers.list_contexts()
    found = ablate.default_variants("context", config)
    assert set(found) == set(ablate.STUDIES["context"]) & set(known)
    assert {"none", "self_attention", "isa"} <= set(found)


def test_mean_and_spread():
    assert ablate.mean_and_spread([1.0, None, 2.0, 6.0]) == (3.0, pytest.approx(math.sqrt(7)))
    assert ablate.mean_and_spread([None, 5.0]) == (5.0, None)
    assert ablate.mean_and_spread([None]) == (None, None)


def test_interval():
    """Student's own example of sleep (1908): ten pairs, mean 1.58, standard error 0.389."""
    gained = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    found = ablate.interval(gained)
    assert found == pytest.approx((1.58, 0.7001, 2.4599), abs=1e-4)
    assert ablate.interval([2.0]) == (2.0, None, None)
    assert ablate.interval([]) == (None, None, None)
    with pytest.raises(ValueError, match="at most 31 values, got 32"):
        ablate.interval(list(range(32)))


def test_differences_are_of_the_same_seeds(tmp_path):
    study = ablate.Study("context", make_config(), tmp_path, [0, 1, 2], VARIANTS)
    facts = {"parameters": 5, "seconds": 1.0, "images": 4, "tensorflow": "2", "keras": "3"}
    scores = {("none", 0): 0.1, ("isa", 0): 0.3, ("none", 1): 0.2, ("isa", 2): 0.9}
    study.results = {key: {"miou": score, **facts} for key, score in scores.items()}
    assert study.differences("isa", "miou") == (pytest.approx(0.2), None, None)
    study.results["isa", 1] = {"miou": 0.3, **facts}
    assert study.differences("isa", "miou") == pytest.approx((0.15, 0.15 - 0.6353, 0.15 + 0.6353))
    assert study.differences("none", "miou") is None
    row = study.rows()[VARIANTS.index("isa")]
    assert row["miou_difference_low"] == pytest.approx(0.15 - 0.6353)
    assert "| mIoU against none |" in study.table()
    assert "| +0.1500 [-0.4853, +0.7853] |" in study.table()
    alone = ablate.Study("context", make_config(), tmp_path, [0], ["isa"])
    assert "against" not in alone.table()


def test_training_losses(tmp_path):
    """What TensorBoard was told of every run: drawn, and its last sixth tabled."""
    config = make_config()
    config.train.steps = 600
    study = make_study(tmp_path, config)
    falls = {"none": (0.9, 0.7), "isa": (0.8, 0.4)}
    for variant, values in falls.items():
        for seed, value in zip(SEEDS, values, strict=True):
            folder = study.runs[variant, seed][1] / training.TENSORBOARD
            told = training.callbacks.TensorBoard(folder)
            for step in range(50, 601, 50):
                # Level in the last sixth, which is of the steps 550 and 600.
                told.write(step, {"training/loss": value + 0.1 * (step < 550)})
            finish(study, variant, seed)
            assert study.results[variant, seed]["train_loss"] == pytest.approx(value)
    rows = {row["context"]: row for row in study.rows()}
    assert rows["isa"]["train_loss_mean"] == pytest.approx(0.6)
    assert rows["isa"]["train_loss_sd"] == pytest.approx(0.4 / math.sqrt(2))
    lines = study_figures.losses(study).axes[0].lines
    assert [line.get_label() for line in lines] == VARIANTS
    for line, values in zip(lines, falls.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), range(50, 601, 50))
        expected = [np.mean(values) + 0.1 * (step < 550) for step in range(50, 601, 50)]
        np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-6)
    # Of a run that is not finished nothing is drawn, and of one that told nothing nothing tabled.
    del study.results["isa", SEEDS[0]]
    line = study_figures.losses(study).axes[0].lines[1]
    np.testing.assert_allclose(line.get_ydata()[-2:], falls["isa"][1], rtol=1e-6)
    shutil.rmtree(study.runs["isa", SEEDS[0]][1] / training.TENSORBOARD)
    finish(study, "isa", SEEDS[0])
    assert study.results["isa", SEEDS[0]]["train_loss"] is None
    assert len(study_figures.losses(study).axes[0].lines) == 2


def finish(study, variant, seed):
    """Writes what tells that a run is done, and has the study read it."""
    config, folder = study.runs[variant, seed]
    (folder / ablate.RUN).write_text("{}")
    training.callbacks.write_log(folder / training.LOG, [{"step": 600, "seconds": 1.0}])
    protocol = segmentation.make_protocol(config).to_dict()
    metrics = {"split": config.data.val_split, "protocol": protocol, "model": training.BEST}
    (folder / "metrics.json").write_text(json.dumps({**metrics, "images": 4, "miou": 0.5}))
    study.results[variant, seed] = ablate.read_run(config, folder)


def test_the_control_has_as_many_parameters(tmp_path):
    config = make_config()
    config.features.folder = str(tmp_path / "maps")
    config.model.context_options.depth = 2
    study = ablate.Study("frozen", config, tmp_path, [0])
    counts = {}
    for variant in ("isa", "pointwise", "local", "none"):
        run, _ = study.runs[variant, 0]
        model = segmentation.make_model(run, segmentation.make_dataset(run))
        counts[variant] = model.count_params()
    gained = {name: count - counts["none"] for name, count in counts.items()}
    # But for the moving statistics, of which the controls have other numbers; to within a channel.
    width = config.model.head_filters
    for control, of_a_channel in (("pointwise", 2 * width), ("local", 10 * width)):
        assert gained[control] == pytest.approx(gained["isa"], rel=0.05, abs=2 * of_a_channel)
    config.features.folder = None
    with pytest.raises(ValueError, match="needs config.features.folder"):
        ablate.Study("frozen", config, tmp_path, [0])


@pytest.mark.slow
def test_released_runs_begin_where_the_frozen_ones_ended(tmp_path):
    config = make_config()
    config.train.steps = config.train.validate_every = 1
    config.model.freeze_backbone = True
    config.features.folder = str(tmp_path / "maps")
    names = ["isa", "pointwise"]
    frozen = ablate.Study("frozen", config, tmp_path, [3], names)
    config.model.freeze_backbone, config.features.folder = False, None
    with pytest.raises(ValueError, match='folder of a study "frozen"'):
        ablate.Study("released", config, tmp_path, [3], names)
    config.model.initial = str(frozen.folder)
    with pytest.raises(ValueError, match=r"no finished run .*isa/seed3"):
        ablate.Study("released", config, tmp_path, [3], names)
    assert not (tmp_path / "released").exists()
    frozen.go(run=ablate.run)

    released = ablate.Study("released", config, tmp_path, [3], names)
    assert released.against == "pointwise"
    for name in names:
        run, folder = released.runs[name, 3]
        assert folder == tmp_path / "released" / name / "seed3"
        model = segmentation.make_model(run, segmentation.make_dataset(run))
        kept = formats.load_model(tmp_path / "frozen" / name / "seed3" / training.BEST)
        assert all(weight.trainable for weight in model.backbone.trainable_weights)
        assert len(model.trainable_weights) > len(kept.trainable_weights)
        for weight, other in zip(model.weights, kept.weights, strict=True):
            np.testing.assert_array_equal(weight, other)


@pytest.mark.slow
def test_command_line(tmp_path):
    """Two runs in processes of their own, then a run that fails."""
    command = [sys.executable, "-m", "experiments.ablate", "--study=depth", "--variants=1,2"]
    command += [f"--workdir={tmp_path}", "--config.train.steps=2", "--config.data.batch_size=2"]
    command += ["--config.data.options.num_examples.train=2", "--config.train.pictures=0"]
    command += ["--config.data.options.num_examples.val=2", "--config.train.warmup_steps=0"]

    def start(*more):
        return subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True)

    done = start()
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "depth/results.md").read_text()
    assert "All 2 runs are done." in table and "--config.train.steps=2" in table
    first, second = read_csv(tmp_path / "depth")
    assert int(second["parameters"]) > int(first["parameters"])
    assert "[2/2] depth=2, seed 0: mIoU" in done.stdout
    # What a run has to say is seen, and the study names the run.
    failed = start("--seeds=0,1", f"--workdir={tmp_path}/b", "--config.data.name=camvit")
    assert failed.returncode != 0
    assert 'did you mean "camvid"' in failed.stderr
    assert "depth/1/seed0: the run ended with exit code 1" in failed.stderr
    assert "0 of 4" in (tmp_path / "b/depth/results.md").read_text()


@pytest.mark.slow
def test_what_ends_the_study_ends_its_run(tmp_path):
    """Also where the study is killed; the run's state is kept, and the next start goes on."""
    command = [sys.executable, "-m", "experiments.ablate", "--study=depth", "--variants=1"]
    command += [f"--workdir={tmp_path}", "--config.data.batch_size=2", "--config.train.pictures=0"]
    command += ["--config.data.options.num_examples={'train': 8, 'val': 2}"]
    command += ["--config.train.checkpoint_every=2"]
    folder = tmp_path / "depth/1/seed0"
    step = 0
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 128 + signal.SIGTERM)):
        study = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 200
        while kept_step(folder) < step + 2 and time.monotonic() < deadline:
            assert study.poll() is None, study.communicate()[0]
            time.sleep(0.05)
        study.send_signal(number)
        output, _ = study.communicate(timeout=100)  # until the run, too, has closed its stdout
        assert study.returncode == code, output
        step, before = kept_step(folder), step
        assert step >= before + 2
        with lock(folder / training.workdir.LOCK):  # nobody has it
            time.sleep(2)
            assert kept_step(folder) == step
    assert f"going on from step {before:,}" in output


def kept_step(folder):
    steps = (folder / training.CHECKPOINTS).glob("step-*.safetensors")
    return max((int(path.stem[5:]) for path in steps), default=0)
