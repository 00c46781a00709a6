"""Instances end to end, small: trained, stopped, gone on with, scored; what is refused."""

import json
import os
import signal
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from ml_collections import config_flags
from PIL import Image
from pycocotools import mask
from stopping import Stop, assert_same_state

from experiments import ablate, setup, tasks
from experiments.configs import coco_mini, default, instances, synthetic, synthetic_instances
from experiments.evaluate import evaluate, write_predictions
from experiments.tasks import instances as task
from experiments.train import train
from isa_tf import backbones, data, files, formats, inference, layers, training
from isa_tf.backbones.backbone import Backbone, image_input, normalize
from isa_tf.backbones.contexts import StageContexts


@keras.saving.register_keras_serializable("tests")
class FiveConvolutions(Backbone):
    """As few layers as a pyramid can stand on, with ISA among them: it is traced in no time."""

    def __init__(
        self,
        output_stride=32,
        weights=None,
        context_at=None,
        synchronized=False,
        dtype=None,
        **kwargs,
    ):
        shared = {"synchronized": synchronized, "dtype": dtype}
        place = StageContexts(context_at, ["c4"], **shared)
        image = image_input()
        x, maps = normalize(127.5, 127.5)(image), {}
        for i in range(1, 6):
            if i == 4:
                x = layers.ConvNormAct(8, 3, strides=2, name="conv4a", **shared)(x)
                x = place(x, "c4", "context")
            x = layers.ConvNormAct(8, 3, strides=1 if i == 4 else 2, name=f"conv{i}", **shared)(x)
            maps[f"c{i}"] = x
        strides = {level: 2 ** int(level[1]) for level in maps}
        super().__init__(image, maps, strides, dtype=dtype, context_names=place.names, **kwargs)
        self.synchronized = synchronized

    def get_config(self):
        return {**super().get_config(), "synchronized": self.synchronized}


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config():
    config = synthetic_instances.get_config()
    config.data.options.image_size = (48, 64)
    config.data.options.num_examples = {"train": 8, "val": 3}
    config.data.short_side = config.test.short_side = 48
    config.data.long_side = config.test.long_side = 64
    config.data.pad_size = (64, 64)
    config.data.max_instances = 6
    config.data.mask_size = 28
    config.data.batch_size = 2
    config.model.backbone_options.filters = 4
    config.model.context_options.partition = 2
    config.model.options = {
        "filters": 8,
        "anchor_sizes": (8, 16, 24, 32, 48),
        "box_units": (16,),
        "mask_convs": 1,
        "proposals_before": (20, 10),
        "proposals_after": (20, 10),
        "rpn_samples": 16,
        "box_samples": 8,
        "max_detections": 5,
        "score_threshold": 0.0,  # of a network that knows nothing yet
    }
    config.train.steps = 4
    config.train.validate_every = 2
    config.train.warmup_steps = 0
    config.train.pictures = 1
    config.train.ema_batches = 2
    config.test.score_threshold = 0.0
    return config


@pytest.fixture
def small(config):
    """The quickest to train."""
    backbones.register("five_convolutions", FiveConvolutions)
    config.model.backbone, config.model.backbone_options = "five_convolutions", {}
    config.train.optimizer = "sgd"  # of the fewest operations
    return config


def test_from_the_first_step_to_the_report(small, tmp_path):
    best = train(small, tmp_path, verbose=0)
    rows = training.read_log(tmp_path / training.LOG)
    assert [row["step"] for row in rows] == [2, 4]
    parts = {"rpn_objectness", "rpn_box", "box_class", "box", "mask"}
    assert parts | {"loss", "gradient_norm", "val_box_ap", "val_mask_ap"} <= rows[0].keys()
    assert sum(rows[0][part] for part in parts) == pytest.approx(rows[0]["loss"], rel=1e-4)
    assert best == {"step": best["step"], "mask_ap": max(row["val_mask_ap"] for row in rows)}

    result = evaluate(small, tmp_path, pictures=2, report_images=2)
    assert json.loads((tmp_path / "metrics.json").read_text()) == result
    assert result["mask_ap"] == pytest.approx(best["mask_ap"], abs=1e-6)
    assert result["images"] == 3 and set(result["classes"]) == set(config_names(small))
    assert inference.DetectionProtocol.from_dict(result["protocol"]).short_side == 48
    for kind in ("box", "mask"):
        for ending in ("", "50", "75", "_small", "_medium", "_large"):
            assert f"{kind}_ap{ending}" in result
    for name in ("predictions.png", "report.html", "images.csv", "curves.png"):
        assert (tmp_path / name).stat().st_size > 100
    assert Image.open(tmp_path / "predictions.png").size[0] > 600


def config_names(config):
    return task.make_dataset(config).class_names


@pytest.mark.slow
def test_stopped_in_a_validation_it_goes_on_as_if_it_had_not_been(small, tmp_path, monkeypatch):
    best = train(small, tmp_path / "straight", verbose=0)
    read, seen = data.SyntheticInstances.read, []

    def noted(self, split, index):
        if split == "val":
            seen.append(index)
            if len(seen) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
        return read(self, split, index)

    with monkeypatch.context() as patch:
        patch.setattr(data.SyntheticInstances, "read", noted)
        with pytest.raises(training.Interrupted, match="at step 2 of 4"):
            train(small, tmp_path / "parts", verbose=0)
    assert not (tmp_path / "parts" / training.LOG).exists()
    assert train(small, tmp_path / "parts", verbose=0) == best
    assert_same_state(tmp_path / "straight", tmp_path / "parts")


@pytest.mark.slow
def test_stopped_in_any_step_it_goes_on_as_if_it_had_not_been(config, tmp_path):
    config.train.ema, config.train.checkpoint_every = 0.5, 1
    train(config, tmp_path / "straight", verbose=0)
    for step in (1, 3):
        with pytest.raises(training.Interrupted, match=f"at step {step} of 4"):
            train(config, tmp_path / "parts", verbose=0, callbacks=[Stop(step)])
    train(config, tmp_path / "parts", verbose=0)
    assert_same_state(tmp_path / "straight", tmp_path / "parts")


@pytest.mark.slow
def test_predictions_for_a_server(config, tmp_path):
    """They are what the predictor finds, in the dataset's own ids."""
    dataset = task.make_dataset(config)
    model = task.make_model(config, dataset)
    model.save(tmp_path / training.BEST)
    (path,) = write_predictions(config, tmp_path, tmp_path / "sent")
    assert path == tmp_path / "sent" / "detections.json"
    results, facts = (json.loads((path.parent / n).read_text()) for n in (path.name, "facts.json"))
    assert facts["images"] == 3 and facts["detections"] == len(results)
    assert facts["split"] == "val" and facts["sha256"] == files.digest(tmp_path / training.BEST)
    predictor = inference.InstancePredictor.from_model(model, task.make_protocol(config))
    expected = []
    for index in range(dataset.size("val")):
        image = dataset.read("val", index)[0]
        found = predictor(image)
        for box, class_id, score, shape in zip(*found, strict=True):
            expected.append((dataset.image_id("val", index), class_id, score, box, shape))
    assert len(results) == len(expected) > 0
    for result, (image_id, class_id, score, box, shape) in zip(results, expected, strict=True):
        assert result["image_id"] == image_id
        assert result["category_id"] == dataset.category_ids[class_id]
        assert result["score"] == pytest.approx(float(score), abs=1e-6)
        x, y, width, height = result["bbox"]
        np.testing.assert_allclose([x, y, x + width, y + height], box, atol=1e-3)
        np.testing.assert_array_equal(mask.decode(result["segmentation"]).astype(bool), shape)
    (tmp_path / "sent" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="thesis.txt, which is no file of detections"):
        write_predictions(config, tmp_path, tmp_path / "sent")
    assert json.loads(path.read_text()) == results


@pytest.mark.slow
def test_two_replicas_train_and_validate(config, tmp_path, mirrored):
    config.train.steps = config.train.validate_every = 2
    config.train.ema = 0.5
    best = train(config, tmp_path, mirrored, verbose=0)
    assert best["step"] == 2
    result = evaluate(config, tmp_path, pictures=1)
    assert result["mask_ap"] == pytest.approx(best["mask_ap"], abs=1e-6)
    model = formats.load_model(tmp_path / training.BEST)
    assert model.synchronized and model.backbone.synchronized


@pytest.mark.slow
def test_it_learns(tmp_path):
    """The config as it stands, in a third of its steps."""
    config = synthetic_instances.get_config()
    config.train.steps, config.train.validate_every = 330, 330
    config.data.options.num_examples = {"train": 200, "val": 40}
    begin = time.monotonic()
    best = train(config, tmp_path, verbose=0)
    print(f"mask AP {best['mask_ap']:.3f} in {time.monotonic() - begin:.0f} s")
    assert best["mask_ap"] > 0.1


# === The parts ===


def test_the_module_stands_in_the_backbone(config):
    dataset = task.make_dataset(config)
    model = task.make_model(config, dataset)
    modules = model.backbone.context_layers()
    assert list(modules) == ["c4"] and modules["c4"].partitions == [(2, 2)]
    assert model.class_names == dataset.class_names and model.category_ids == (1, 2, 3, 4)
    assert inference.DetectionProtocol.of(model.protocol) == task.make_protocol(config)
    config.model.context = "none"
    assert not task.make_model(config, dataset).backbone.context_layers()
    config.model.context, config.model.context_level = "nonlocal", "c5"
    config.model.context_options = {"sub_sample": "before", "use_scale": True}
    assert list(task.make_model(config, dataset).backbone.context_layers()) == ["c5"]
    config.model.backbone_options.context_at = {"c3": "isa"}
    with pytest.raises(ValueError, match="the module in the backbone is told by one of them"):
        task.make_model(config, dataset)


def test_what_is_frozen_does_not_learn(config):
    config.model.freeze_at, config.model.freeze_norm = "c2", True
    dataset = task.make_dataset(config)
    model = task.make_model(config, dataset)
    of_backbone = {v.path for v in model.backbone.trainable_variables}
    whole = len(model.backbone.variables)
    assert 0 < len(of_backbone) < whole
    norms = [path for path in of_backbone if path.endswith(("gamma", "beta"))]
    assert norms and all("context" in path for path in norms)


def test_few_images_of_the_split_may_score(config, monkeypatch):
    assert setup.spread(10) == list(range(10)) == setup.spread(10, 11)
    assert setup.spread(10, 4) == [0, 2, 5, 7]
    config.train.val_images = 2
    dataset = task.make_dataset(config)
    model = task.make_model(config, dataset)
    validation = task.compile_model(model, config, dataset)
    said = []
    scores = validation["evaluate"](model, lambda done, total: said.append((done, total)))
    assert said == [(1, 2), (2, 2)] and validation["monitor"] == "mask_ap"
    assert {"mask_ap", "box_ap", "mask_ap50"} <= set(scores)
    assert all(isinstance(value, float) for value in scores.values())
    assert any(name.startswith("mask_ap/") for name in scores)


def random_instances(rng, count, size):
    boxes = rng.uniform(0, min(size), (count, 4)).astype(np.float32)
    return inference.Instances(
        boxes,
        rng.integers(0, 4, count).astype(np.int32),
        rng.random(count).astype(np.float32),
        rng.random((count, *size)) < 0.5,
    )


@pytest.mark.parametrize("size, workers", [(5, 2), (4, 2), (1, 3), (7, 3)])
def test_workers_share_the_images(config, monkeypatch, size, workers):
    """Each worker's turns are as many, each image is looked at once, all get the same."""
    config.data.options.num_examples = {"train": 1, "val": size}
    dataset = task.make_dataset(config)
    rng = np.random.default_rng(0)
    expected = [random_instances(rng, i % 3, (48, 64)) for i in range(size)]
    whose = {dataset.read("val", i)[0].tobytes(): i for i in range(size)}
    sent, turns, looked = {}, [], []

    def predictor(image):
        looked.append(whose[image.tobytes()])
        return expected[looked[-1]]

    monkeypatch.setattr(training, "num_workers", lambda strategy: workers)
    for me in range(workers):
        monkeypatch.setattr(training, "worker_index", lambda strategy, me=me: me)
        monkeypatch.setattr(
            training, "gather", lambda strategy, packed, me=me: [sent.setdefault(me, packed)]
        )
        turns.append([])
        watch = turns[-1]
        task.count(predictor, dataset, "val", range(size), "s", lambda *a, w=watch: w.append(a))
    assert sorted(looked) == list(range(size))
    most = -(-size // workers)
    assert turns == [[(i + 1, most) for i in range(most)]] * workers
    shares = [sent[me] for me in range(workers)]
    monkeypatch.setattr(training, "gather", lambda strategy, packed: shares)
    shared = task.count(predictor, dataset, "val", range(size), "s")
    alone = task.count(predictor, dataset, "val", range(size))
    assert sorted(shared.by_image()) == list(range(size))
    assert shared.results() == alone.results() and shared.scores() == alone.scores()


def test_an_image_that_cannot_be_read(config, monkeypatch):
    read = data.SyntheticInstances.read

    def broken(self, split, index):
        if index == 1:
            raise data.DataError("photo.jpg", "cut off")
        return read(self, split, index)

    monkeypatch.setattr(data.SyntheticInstances, "read", broken)
    dataset = task.make_dataset(config)
    nothing, said = random_instances(np.random.default_rng(0), 0, (48, 64)), []
    with pytest.raises(data.DataError, match="photo.jpg: cut off"):
        task.count(lambda image: nothing, dataset, "val", range(3))
    dataset.on_error = "skip"
    scores = task.count(
        lambda image: nothing, dataset, "val", range(3), watch=lambda *a: said.append(a)
    )
    assert list(scores.by_image()) == [0, 2] and said == [(1, 3), (2, 3), (3, 3)]


# === Some images, some classes ===


def test_a_subset_is_the_dataset_s_own_in_all_it_tells(config):
    whole = task.make_dataset(config)
    ids = [whole.image_id("train", i) for i in (1, 4, 6)]
    with config.ignore_type():
        config.data.image_ids, config.data.classes = tuple(ids[::-1]), ("ring", "disc")
    part = task.make_dataset(config)
    assert part.size("train") == 3 and part.class_names == ("ring", "disc")
    assert part.category_ids == (4, 1)
    assert part.palette == (whole.palette[3], whole.palette[0])
    assert part.examples("train") == tuple(whole.examples("train")[i] for i in (1, 4, 6))
    kept = 0
    for index, own in enumerate((1, 4, 6)):
        assert part.image_id("train", index) == ids[index]
        assert tuple(part.size_of("train", index)) == (48, 64)
        image, annotations = part.read("train", index)
        known, truth = whole.read("train", own)
        np.testing.assert_array_equal(image, known)
        left = [i for i, c in enumerate(truth.classes) if c in (0, 3)]
        kept += len(left)
        assert annotations.ids.tolist() == truth.ids[left].tolist()
        assert annotations.classes.tolist() == [{3: 0, 0: 1}[truth.classes[i]] for i in left]
        assert annotations.masks == [truth.masks[i] for i in left]
        np.testing.assert_array_equal(annotations.boxes, truth.boxes[left])
    assert kept
    told = part.ground_truth("train")
    assert [c["id"] for c in told["categories"]] == [4, 1]
    assert len(told["annotations"]) == kept
    batch, truth = next(iter(task.make_train_data(config, part)))
    assert batch["image"].shape == (2, 64, 64, 3) and int(tf.reduce_max(truth["classes"])) <= 1


def test_a_subset_of_what_is_not_there_is_refused(config):
    config.data.image_ids = (1, 9999, 10000)
    with pytest.raises(ValueError, match="has no image 9999, 10000"):
        task.make_dataset(config)
    config.data.image_ids, config.data.classes = None, ("rign",)
    with pytest.raises(ValueError, match='unknown class .rign.; did you mean "ring"'):
        task.make_dataset(config)


def test_the_photos_of_coco_mini():
    config = coco_mini.get_config()
    folder = ROOT / config.data.data_dir
    if not folder.exists():
        pytest.skip(f"no photos at {config.data.data_dir}")
    config.data.data_dir = str(folder)
    dataset = task.make_dataset(config)
    assert dataset.size("train") == 16
    found = [dataset.annotations("train", index) for index in range(16)]
    classes = np.concatenate([each.classes for each in found])
    assert (len(classes), len(set(classes.tolist()))) == (53, 25)
    assert not any(each.crowd.any() for each in found)
    assert max(len(each.classes) for each in found) <= config.data.max_instances
    for step, (x, _) in zip(range(8), task.make_train_data(config, dataset), strict=False):
        assert tuple(x["image"].shape[1:3]) in config.data.pad_size, step
        names = task.batch_files(config, dataset, step)
        assert len(names) == 4 and set(names) <= set(dataset.examples("train"))
    assert coco_mini.get_config("none").model.context == "none"
    with pytest.raises(ValueError, match="isa or none"):
        coco_mini.get_config("ppm")


# === Configs ===


def test_configs_are_locked():
    for module in (instances, synthetic_instances, coco_mini):
        config = module.get_config()
        assert tasks.of(config) is task
        with pytest.raises(AttributeError, match='Did you mean "steps"'):
            config.train.stesp = 3
        with pytest.raises(TypeError):
            config.train.steps = "three"


def test_configs_without_a_task_are_of_segmentation():
    for module in (default, synthetic):
        config = module.get_config()
        assert "task" not in config and tasks.of(config) is tasks.segmentation
    config = instances.get_config()
    config.task = "instances_segmentation"
    with pytest.raises(ValueError, match='did you mean "instance_segmentation"'):
        tasks.of(config)


def test_tasks_have_the_same_functions():
    def functions(module):
        return {
            name
            for name, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "").startswith("experiments.")
        }

    named = {
        *("make_dataset", "make_train_data", "batch_files", "make_model", "part_to_train"),
        *("phases", "compile_model", "map_size", "make_sheet", "make_protocol", "score"),
        *("headline", "lines", "make_report", "write_predictions"),
    }
    assert set(tasks.tasks) == {"segmentation", "instance_segmentation"}
    for module in map(tasks.tasks.__getitem__, tasks.tasks):
        assert named <= functions(module)
        assert module.MONITOR in module.SCORES and module.EXAMPLES
        for name in named:
            assert f"`{name}`" in tasks.__doc__ and vars(module)[name].__doc__


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("model", "context", "isaa", 'did you mean "isa"'),
        ("model", "context_level", "c6", "c6"),
        ("model", "backbone", "resnet5", "resnet50"),
        ("model", "backbone", "tiny", "output_stride must be 4 or 8, got 32"),
        ("model", "freeze_at", "c9", "c9"),
        ("data", "name", "coko", "coco"),
        ("data", "name", "synthetic", "data.name=.synthetic.: the data set has no instances"),
        ("data", "val_split", "test", "test"),
        ("train", "schedule", "stairs", "step"),
        ("train", "optimizer", "adm", "adamw"),
    ],
)
def test_wrong_values_are_refused_and_leave_no_workdir(
    config, tmp_path, section, key, value, message
):
    config[section][key] = value
    if value == "synthetic":
        config.data.options = {}
    if value in ("tiny",):
        config.model.context, config.model.backbone_options = "none", {}
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "w", verbose=0)
    assert not (tmp_path / "w").exists()


def parsed(*arguments):
    """The config of a command line."""
    values = flags.FlagValues()
    argv = ["train", f"--config={instances.__file__}", *arguments]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    return values.config


def test_what_a_command_line_can_tell():
    config = parsed(
        "--config.data.short_side=640,672,704",
        "--config.data.pad_size=((800,1344),(1344,800))",
        "--config.data.image_ids=9,25",
        '--config.data.classes="cat","dog"',
        "--config.train.boundaries=10,20",
        "--config.model.options={'filters': 64}",
        '--config.model.context_options={"partition": (4, 8)}',
    )
    assert config.data.short_side == (640, 672, 704) and config.data.image_ids == (9, 25)
    assert config.data.pad_size == ((800, 1344), (1344, 800))
    assert config.data.classes == ("cat", "dog") and config.train.boundaries == (10, 20)
    assert config.model.options.filters == 64
    assert config.model.context_options.partition == (4, 8)
    for wrong in ("--config.train.boundary=3", "--config.model.head_filters=8"):
        with pytest.raises((AttributeError, KeyError)):
            parsed(wrong)


# === Studies ===


def test_a_study_of_modules_in_the_backbone(config, tmp_path):
    study = ablate.Study("context", config, tmp_path, [0], ["none", "isa", "rcca"])
    for name, expected in (("none", {}), ("isa", {"partition": 2}), ("rcca", {})):
        given, folder = study.runs[name, 0]
        assert given.model.context == name and folder == tmp_path / "context" / name / "seed0"
        assert name == "none" or given.model.context_options.to_dict() == expected
    table = study.table()
    assert "| context | parameters | mask AP |" in table
    assert "4 steps of 2 images" in table and "short_side=48" in table
    assert ablate.default_variants("partition", config) == ["4", "auto"]
    assert task.map_size(config) == (4, 4)
    pads = {None: (3, 4), 64: (4, 4), ((48, 64), (64, 48), (80, 96)): (5, 6)}
    for pad_size, expected in pads.items():
        other = config.copy_and_resolve_references()
        with other.ignore_type():
            other.data.pad_size = pad_size
        assert task.map_size(other) == expected
    with other.ignore_type():
        other.data.pad_size, other.data.short_side = None, (640, 800)
    assert task.map_size(other) == (50, 4)
    varied = ablate.Study("partition", config, tmp_path, [0], ["4"]).runs["4", 0][0]
    assert varied.model.context_options.partition == 4
