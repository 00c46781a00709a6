"""Every recipe is what its publisher's tables say, and one of each family trains."""

import json
import math

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image

from experiments import setup
from experiments.configs import camvid, default, recipes, synthetic
from experiments.tasks import segmentation
from experiments.train import train
from isa_tf import losses, training
from isa_tf.data import augment
from isa_tf.models import Segmenter

FILE = recipes.__file__
CLASSES = {
    **{"cityscapes": 19, "ade20k": 150, "lip": 20, "pascal_context": 59},
    **{"coco_stuff10k": 171, "coco_stuff164k": 171, "voc2012": 21},
}


def keys(config, prefix=""):
    """The dotted names of what a config holds; of what may hold anything, the name."""
    names = set()
    for key, value in config.items():
        name = f"{prefix}{key}"
        free = {"data.options", "model.backbone_options", "model.context_options"}
        free |= {"train.losses", "train.loss_options"}
        names |= keys(value, f"{name}.") if hasattr(value, "items") and name not in free else {name}
    return names


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_is_a_config(name):
    config = recipes.get_config(name)
    assert keys(config) == keys(default.get_config())
    with pytest.raises(AttributeError, match='Did you mean "steps"'):
        config.train.stesp = 3
    data, train, model = config.data, config.train, config.model
    assert data.name == name.split("-")[0] and data.data_dir is None
    augment.make_resize(data.short_side, data.fit_size, data.exact_size)
    segmentation.make_protocol(config)
    if train.class_weights is not None:
        assert len(train.class_weights) == CLASSES[data.name]
    losses.combine(train.losses.to_dict(), train.loss_options.to_dict(), average=train.loss_average)
    assert train.reference_batch == data.batch_size
    assert (model.backbone, model.output_stride) == ("hrnet_w48", 4) or (
        model.backbone.rsplit("_", 1)[0] in ("resnet50", "resnet101") and model.output_stride > 4
    )


def test_there_is_all_that_there_should_be():
    official = [name for name in recipes.RECIPES if "mmseg" not in name]
    data = ("cityscapes", "ade20k", "lip", "pascal_context", "coco_stuff10k", "voc2012")
    assert len(official) == len(data) * 3 * 3
    published = [r for r in recipes.RECIPES.values() if r.family == "mmseg" and r.context == "isa"]
    assert sum(r.miou is not None for r in published) == 16
    best = recipes.RECIPES["cityscapes-resnet101-isa-mmseg-769x769-80k"]
    assert (best.miou, best.miou_ms_flip) == (80.61, 81.59)
    assert recipes.RECIPES["cityscapes-resnet101-isa"].miou == 79.55
    assert recipes.RECIPES["ade20k-resnet50-isa"].miou is None


# What recipes differ in, as the publishers' files have it.
@pytest.mark.parametrize(
    "name, expected",
    {
        "cityscapes-resnet101-isa": {
            "data.crop_size": (512, 1024),
            "data.batch_size": 8,
            "data.aspect_range": (0.9, 1.1),
            "data.brightness": 10,
            "data.photometric": False,
            "train.learning_rate": 0.01,
            "train.weight_decay": 5e-4,
            "train.warmup_steps": 0,
            "train.steps": 40_000,
            "train.loss_average": "valid",
            "model.auxiliary_filters": 512,
            "model.coordinates": "align_corners",
        },
        "ade20k-resnet101-isa": {
            "data.short_side": 520,
            "train.learning_rate": 0.02,
            "train.steps": 150_000,
            "train.warmup_steps": 1_000,
            "train.head_rate": 1.0,
            "train.class_weights": None,
        },
        "ade20k-hrnet_w48-isa": {
            "train.losses.ohem": 1.0,
            "train.loss_options.ohem.threshold": 0.9,
            "model.auxiliary_level": None,
        },
        "lip-resnet101-isa": {
            "data.exact_size": (473, 473),
            "data.scale_range": (0.5, 1.5),
            "data.batch_size": 32,
            "model.output_stride": 16,
            "train.steps": 110_000,
            "test.flip_pairs": ((14, 15), (16, 17), (18, 19)),
        },
        "lip-hrnet_w48-isa": {"train.steps": 100_000},
        "pascal_context-hrnet_w48-fcn": {
            "train.head_rate": 10.0,
            "train.steps": 60_000,
            "model.context": "none",
            "model.head_filters": 720,
            "model.head_kernel_size": 3,
        },
        "coco_stuff10k-resnet101-isa": {"data.val_split": "test", "train.learning_rate": 0.001},
        "voc2012-resnet50-isa-mmseg-512x512-20k": {
            "data.train_split": "trainaug",
            "data.fit_size": (2048, 512),
            "data.cat_max_ratio": 0.75,
            "data.photometric": True,
            "data.aspect_range": None,
            "data.brightness": 0,
            "data.batch_size": 16,
            "train.loss_average": "all",
            "train.end_learning_rate": 1e-4,
            "train.steps": 20_000,
            "test.fit_size": (2048, 512),
        },
        "cityscapes-resnet101-isa-mmseg-769x769-80k": {
            "test.mode": "slide",
            "test.stride": (513, 513),
            "model.coordinates": "align_corners",
            "model.backbone": "resnet101_v1c",
        },
    }.items(),
)
def test_what_recipes_differ_in(name, expected):
    config = recipes.get_config(name)
    for path, value in expected.items():
        found = config
        for key in path.split("."):
            found = found[key]
        assert found == value, path


@pytest.mark.parametrize(
    "name", ["ade20k-resnet101-isa", "cityscapes-resnet50-isa-mmseg-512x1024-40k"]
)
def test_the_schedule_is_the_recipes_formula(name):
    c = recipes.get_config(name).train
    schedule = training.make_optimizer(
        c.optimizer,
        c.learning_rate,
        c.steps,
        power=c.power,
        end_learning_rate=c.end_learning_rate,
        warmup_steps=c.warmup_steps,
    )._learning_rate
    base, end = (0.02, 0.0) if "ade20k" in name else (0.01, 1e-4)
    warmup = 1_000 if "ade20k" in name else 0
    for step in (0, 999, 1_000, c.steps // 2, c.steps - 1):
        expected = (base - end) * (1 - step / c.steps) ** 0.9 + end
        if warmup:
            expected *= min((step + 1) / warmup, 1)
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-4, abs=1e-8), step
    assert float(schedule(c.steps)) == pytest.approx(end, abs=1e-9)


def make_folder(folder, classes):
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 1)):
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True)
        for i in range(count):
            label = rng.integers(0, classes, (3, 4), "uint8").repeat(14, 0).repeat(14, 1)
            label[:4] = 255
            photo = Image.fromarray(np.stack([label * 12] * 3, axis=-1))
            photo.save(folder / split / "images" / f"{i}.jpg")
            Image.fromarray(label).save(folder / split / "labels" / f"{i}.png")


def tiny(name, folder, classes):
    """A recipe on four small images, with a tiny backbone in place of its own."""
    config = recipes.get_config(name)
    config.data.name, config.data.data_dir = "folder", str(folder)
    config.data.num_classes = classes
    config.data.train_split, config.data.val_split = "train", "val"
    config.data.crop_size = (33, 33)
    for key, value in (("short_side", 40), ("fit_size", (60, 40))):
        if config.data[key] is not None:
            config.data[key] = value
    config.data.replica_batch_size = 2
    config.model.backbone, config.model.backbone_weights = "tiny", None
    config.model.backbone_options = {}
    config.model.output_stride = 4
    config.model.head_filters = config.model.auxiliary_filters = 16
    if config.model.auxiliary_level:
        config.model.auxiliary_level = "c1"
    config.train.steps = config.train.validate_every = 2
    config.train.pictures = 0
    return config


def test_one_of_the_official_code_trains(tmp_path, capsys):
    make_folder(tmp_path / "data", 59)
    config = tiny("pascal_context-resnet101-isa", tmp_path / "data", 59)
    train(config, tmp_path / "run", verbose=0)
    (row,) = training.read_log(tmp_path / "run" / training.LOG)
    assert row["step"] == 2 and math.isfinite(row["loss"]) and row["gradient_norm"] > 0
    assert "data.batch_size=2: 2 of each replica" in capsys.readouterr().out
    kept = json.loads((tmp_path / "run" / training.CONFIG).read_text())
    assert kept["data"]["batch_size"] == 2
    assert kept["train"]["learning_rate"] == pytest.approx(0.001 * 2 / 16)


@pytest.mark.parametrize(
    "name, classes",
    [
        pytest.param("cityscapes-resnet50-isa-mmseg-769x769-40k", 19, marks=pytest.mark.slow),
        ("ade20k-hrnet_w48-fcn", 150),
    ],
)
def test_others_make_a_step(name, classes, tmp_path):
    make_folder(tmp_path, classes)
    config = setup.for_replicas(tiny(name, tmp_path, classes), 1)
    dataset = segmentation.make_dataset(config)
    model = segmentation.make_model(config, dataset)
    segmentation.compile_model(model, config, dataset)
    before = model.get_layer("head").trainable_variables[0].numpy()
    data = segmentation.make_train_data(config, dataset)
    history = model.fit(data, steps_per_epoch=1, epochs=1, shuffle=False, verbose=0).history
    assert math.isfinite(history["loss"][0])
    assert np.any(model.get_layer("head").trainable_variables[0].numpy() != before)
    if "hrnet" in name:
        assert isinstance(model.loss, losses.OHEMCrossEntropy) and model.auxiliary_level is None
    else:
        assert model.loss.average == "all" and model.coordinates == "align_corners"


def test_a_context_inside_the_backbone_is_told_by_the_config(tmp_path):
    make_folder(tmp_path, 19)
    name = "cityscapes-resnet50-isa-mmseg-769x769-40k"
    config = setup.for_replicas(tiny(name, tmp_path, 19), 1)
    config.model.backbone, config.model.output_stride = "resnet18", 8
    context_at = {"c4": {"name": "isa", "partition": (4, 2)}, "c5": "nonlocal", "c3": "none"}
    config.model.backbone_options = {"filters": 4, "context_at": context_at}
    model = segmentation.make_model(config, segmentation.make_dataset(config))
    modules = model.backbone.context_layers()
    assert list(modules) == ["c4", "c5"] and modules["c4"].partitions == [(4, 2)]


def test_the_head_learns_faster(tmp_path):
    make_folder(tmp_path, 59)
    config = setup.for_replicas(tiny("pascal_context-resnet101-isa", tmp_path, 59), 1)
    dataset = segmentation.make_dataset(config)
    model = segmentation.make_model(config, dataset)
    segmentation.compile_model(model, config, dataset)
    model.optimizer.build(model.trainable_variables)
    of_backbone = {id(v) for v in model.backbone.trainable_variables}
    for variable in model.trainable_variables:
        rate = 1.0 if id(variable) in of_backbone else 10.0
        assert model.optimizer.rate(variable, 1.0) == rate, variable.path
    assert model.optimizer.spared == () and model.optimizer.l2 == 1e-4
    assert model.loss.class_weights is None and model.loss.average == "valid"
    assert model.auxiliary_weight == 0.4 and model.context.mask_padding is False


def test_layers_of_one_name_in_backbone_and_head_are_refused():
    model = Segmenter("tiny", "none", 3, head_filters=8)
    head = next(v for v in model.trainable_variables if v.path.startswith("head/"))
    head._path = "conv1/kernel"
    with pytest.raises(ValueError, match=r"layers of one name, \['conv1'\]"):
        segmentation.head_layers(model)


# === Batch and rate ===


@pytest.mark.parametrize(
    "given, replicas, batch, rate",
    [
        ({}, 8, 8, 0.01),  # nothing is asked for, nothing is changed
        ({"replica": 2}, 8, 16, 0.01),
        ({"replica": 2, "reference": 8}, 8, 16, 0.02),
        ({"reference": 16}, 1, 8, 0.005),
        ({"replica": 2, "reference": 16, "accumulate": 4}, 2, 4, 0.01),
    ],
)
def test_batch_and_rate_follow_the_replicas(given, replicas, batch, rate, capsys):
    config = default.get_config()
    config.data.replica_batch_size = given.get("replica")
    config.train.reference_batch = given.get("reference")
    config.train.accumulate = given.get("accumulate", 1)
    found = setup.for_replicas(config, replicas)
    assert found.data.batch_size == batch
    assert found.train.learning_rate == pytest.approx(rate)
    again = setup.for_replicas(found, replicas)
    assert again.to_json() == found.to_json()
    assert config.data.batch_size == 8 and config.train.learning_rate == 0.01  # not changed
    assert found.train.steps == config.train.steps
    setup.tell_scaling(config, found)
    said = capsys.readouterr().out
    assert ("data.batch_size=" in said) == (batch != 8)
    assert ("train.learning_rate=" in said) == (rate != 0.01)


def test_sizes_that_are_none_are_refused():
    for section, key in (("data", "replica_batch_size"), ("train", "reference_batch")):
        config = default.get_config()
        config[section][key] = 0
        with pytest.raises(ValueError, match=f"{section}.{key} must be at least 1"):
            setup.for_replicas(config, 1)


def test_a_training_too_short_to_change_a_weight_is_refused(tmp_path):
    config = synthetic.get_config()
    config.train.steps, config.train.accumulate = 3, 4
    with pytest.raises(ValueError, match="steps=3 must be at least config.train.accumulate=4"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# === The command line ===


def parse(*arguments):
    values = flags.FlagValues()
    argv = ["train", *arguments]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    return values.config


def test_a_recipe_and_its_losses_by_the_command_line():
    config = parse(
        f"--config={FILE}:ade20k-resnet101-isa",
        "--config.data.data_dir=there",
        '--config.train.losses={"ohem": 1.0, "lovasz": 0.5}',
        '--config.train.loss_options={"ohem": {"threshold": 0.8}}',
        "--config.data.aspect_range=0.8,1.2",
        '--config.train.decay_spares="norm","bias"',
    )
    assert config.data.data_dir == "there" and config.data.short_side == 520
    assert config.train.losses.to_dict() == {"ohem": 1.0, "lovasz": 0.5}
    assert config.train.loss_options.to_dict() == {"ohem": {"threshold": 0.8}}
    assert config.data.aspect_range == (0.8, 1.2)
    assert config.train.decay_spares == ("norm", "bias")


@pytest.mark.parametrize(
    "name, message", [("ade20k-resnet101-is", "ade20k-resnet101-isa"), ("", "recipe")]
)
def test_a_name_that_is_none_is_refused_with_the_nearest(name, message):
    with pytest.raises(ValueError, match=message):
        recipes.get_config(name)


def test_the_list_tells_of_each(capsys):
    recipes.main()
    said = capsys.readouterr().out
    for recipe in recipes.RECIPES.values():
        assert f"{recipe.command}\n" in said
    assert said.count("not run here") == len(recipes.RECIPES)
    assert "mIoU 78.49, multi-scale and flip 79.44, mmsegmentation on 4 V100 GPUs; not" in said
    assert "its neighbour there, HRNet-W48 with OCR: 56.72" in said


def test_the_kept_result_has_the_loss_that_it_had():
    config = camvid.get_config()
    loss = losses.combine(config.train.losses.to_dict(), class_weights=(1.0,) * 3)
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 3, (1, 8, 8)), rng.normal(size=(1, 8, 8, 3)).astype("float32")
    parts = losses.PixelCrossEntropy(class_weights=(1.0,) * 3), losses.SoftJaccard()
    expected = parts[0](labels, logits) + 0.5 * parts[1](labels, logits)
    assert float(loss(labels, logits)) == float(expected)
