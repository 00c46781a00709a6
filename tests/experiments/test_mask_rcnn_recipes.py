"""Every recipe of Mask R-CNN is what it says, and one of them trains on small images."""

import math
from pathlib import Path

import numpy as np
import pytest

from experiments import setup
from experiments.configs import instances, mask_rcnn
from experiments.tasks import instances as task

ROOT = Path(__file__).resolve().parents[2]
FREE = {
    *("data.options", "model.backbone_options", "model.context_options", "model.options"),
}


def keys(config, prefix=""):
    """The dotted names of what a config holds; of what may hold anything, the name."""
    names = set()
    for key, value in config.items():
        name = f"{prefix}{key}"
        names |= keys(value, f"{name}.") if hasattr(value, "items") and name not in FREE else {name}
    return names


@pytest.mark.parametrize("name", mask_rcnn.RECIPES)
def test_every_recipe_is_a_config(name):
    config, recipe = mask_rcnn.get_config(name), mask_rcnn.RECIPES[name]
    assert keys(config) == keys(instances.get_config())
    with pytest.raises(AttributeError, match='Did you mean "steps"'):
        config.train.stesp = 3
    backbone, context, schedule = name.split("-")
    assert (config.model.backbone, config.model.context) == (backbone, context)
    assert (recipe.backbone, recipe.context, recipe.schedule) == (backbone, context, schedule)
    assert config.model.context_level == "c4" and config.model.backbone_weights == "imagenet"
    data, train = config.data, config.train
    assert (data.batch_size, data.short_side, data.long_side) == (16, 800, 1333)
    assert train.reference_batch == data.batch_size and train.learning_rate == 0.02
    assert (train.momentum, train.weight_decay, train.decay_spares) == (0.9, 1e-4, ())
    protocol = task.make_protocol(config)
    assert (protocol.short_side, protocol.long_side) == (800, 1333)


def test_there_is_all_that_there_should_be():
    assert len(mask_rcnn.RECIPES) == 20
    assert mask_rcnn.EPOCH == math.ceil(117_266 / 16)
    figures = {name: (r.box_ap, r.mask_ap) for name, r in mask_rcnn.RECIPES.items() if r.box_ap}
    assert figures["resnet50-none-1x"] == (38.2, 34.7)
    assert figures["resnet50-nonlocal-1x"] == (39.0, 35.5)
    assert figures["resnet101-nonlocal-1x"] == (40.8, 37.1)
    assert not any("isa" in name or "rcca" in name for name in figures)


@pytest.mark.parametrize("schedule, falls", [("1x", (8, 11)), ("2x", (16, 22))])
def test_the_rate_falls_after_epochs(schedule, falls):
    config = mask_rcnn.get_config(f"resnet50-isa-{schedule}")
    rate = setup.make_optimizer(config)._learning_rate
    assert config.train.steps == {"1x": 12, "2x": 24}[schedule] * 7_330
    for step in (0, 1, 250, 499, 500, config.train.steps - 1):
        expected = 0.02 * 0.1 ** sum(step >= epoch * 7_330 for epoch in falls)
        expected *= 0.001 + 0.999 * min(step / 500, 1)
        assert float(rate(step)) == pytest.approx(expected, rel=1e-5)
    for i, epoch in enumerate(falls):
        before, after = (float(rate(epoch * 7_330 + shift)) for shift in (-1, 0))
        assert before == pytest.approx(0.02 * 0.1**i) and after == pytest.approx(before / 10)


def test_the_rate_follows_the_batch():
    config = mask_rcnn.get_config("resnet50-isa-1x")
    config.data.replica_batch_size = 1
    found = setup.for_replicas(config, 2)
    assert found.data.batch_size == 2
    assert found.train.learning_rate == pytest.approx(0.02 * 2 / 16)
    config.train.accumulate = 4
    rate = setup.make_optimizer(config)._learning_rate  # counted in updates
    assert rate.boundaries == (8 * 7_330 // 4, 11 * 7_330 // 4) and rate.warmup_steps == 125


def test_the_docs_have_the_table():
    text = (ROOT / "docs" / "recipes.md").read_text()
    assert mask_rcnn.table() in text


def test_the_list_tells_of_each(capsys):
    mask_rcnn.main()
    said = capsys.readouterr().out
    for recipe in mask_rcnn.RECIPES.values():
        assert f"{recipe.command}\n" in said
    assert said.count("not run here") == 20 and said.count("no published figure at hand") == 14
    assert "box AP 39.0, mask AP 35.5, the non-local paper; on 8 GPUs" in said


def test_every_shape_of_photo_fits_a_padding():
    protocol = task.make_protocol(mask_rcnn.get_config("resnet50-none-1x"))
    for ratio in np.linspace(0.1, 10, 500):
        height, width = protocol.resized(480, round(480 * ratio))
        assert any(height <= h and width <= w for h, w in mask_rcnn.PADS)
    assert all(side % 32 == 0 for pad in mask_rcnn.PADS for side in pad)
    fit = {(480, 640): (800, 1088), (427, 640): (800, 1216), (640, 480): (1088, 800)}
    for size, pad in fit.items():
        height, width = protocol.resized(*size)
        assert min(p for p in mask_rcnn.PADS if p[0] >= height and p[1] >= width) == pad


def test_a_name_that_is_none_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="resnet50-isa-1x"):
        mask_rcnn.get_config("resnet50-isa-3x")


@pytest.mark.slow
@pytest.mark.parametrize(
    "context", ["isa", *(pytest.param(c, marks=pytest.mark.slow) for c in mask_rcnn.CONTEXTS[:2])]
)
def test_one_makes_a_step(context):
    """On small images, with a narrow network of as many layers as ResNet-18."""
    config = mask_rcnn.get_config(f"resnet50-{context}-1x")
    config.data.name = "synthetic_instances"
    config.data.options = {"image_size": (48, 64), "num_examples": {"train": 4, "val": 1}}
    config.data.short_side, config.data.long_side, config.data.pad_size = 64, 96, (64, 96)
    config.data.batch_size, config.data.max_instances, config.data.mask_size = 2, 8, 28
    config.model.backbone, config.model.backbone_weights = "resnet18", None
    config.model.backbone_options = {"filters": 4}
    config.model.options = {
        "filters": 8,
        "box_units": (16,),
        "mask_convs": 1,
        "proposals_before": (20, 10),
        "proposals_after": (20, 10),
        "rpn_samples": 16,
        "box_samples": 8,
    }
    config.train.warmup_steps = 0
    config = setup.for_replicas(config, 1)
    assert config.train.learning_rate == pytest.approx(0.02 * 2 / 16)
    dataset = task.make_dataset(config)
    model = task.make_model(config, dataset)
    task.compile_model(model, config, dataset)
    weights = [v.numpy() for v in model.variables]
    data = task.make_train_data(config, dataset)
    history = model.fit(data, steps_per_epoch=1, epochs=1, shuffle=False, verbose=0).history
    assert math.isfinite(history["loss"][0]) and history["loss"][0] > 0
    changed = [np.any(v.numpy() != w) for v, w in zip(model.variables, weights, strict=True)]
    own = {id(v) for v in model.backbone.variables}
    both = list(zip(model.variables, changed, strict=True))
    of_backbone = {v.path for v, moved in both if moved and id(v) in own}
    assert of_backbone and any(moved for v, moved in both if id(v) not in own)
    # What is frozen stays: stem, res2, and the statistics of the backbone's normalisation.
    assert not [path for path in of_backbone if path.startswith(("stem", "stage1"))]
    moving = [path for path in of_backbone if "moving" in path]
    assert all("context" in path for path in moving)
    assert (context == "none") == (not any("context" in path for path in of_backbone))
