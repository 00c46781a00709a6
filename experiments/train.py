"""Trains one experiment, from its beginning or from where it was left.

python -m experiments.train --config=experiments/configs/synthetic.py --workdir=runs/synthetic
"""

import json
from pathlib import Path

import keras
from absl import app, flags, logging
from ml_collections import config_flags

from experiments import setup
from isa_tf import training

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, a file in configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this experiment alone.")
_STRATEGY = flags.DEFINE_enum(
    "strategy",
    "one_device",
    ["one_device", "mirrored"],
    "How to use the devices of this machine.",
)


def train(config, workdir, strategy="one_device", verbose="auto"):
    """Trains `config` in `workdir`; returns the best score, {"step": ..., "miou": ...}."""
    workdir = setup.claim(workdir, config)
    keras.utils.set_random_seed(config.seed)
    dataset = setup.make_dataset(config)
    val_data = setup.make_val_data(config, dataset)
    with setup.make_strategy(strategy).scope():
        model = setup.make_model(config, dataset)
        setup.compile_model(model, config, dataset)
    logging.info("%s: %s parameters", workdir, f"{model.count_params():,}")
    return training.fit(
        model,
        lambda step: setup.make_train_data(config, dataset, step),
        val_data,
        workdir,
        config.train.steps,
        config.train.validate_every,
        setup.make_draw(config, dataset),
        verbose=verbose,
    )


def main(argv):
    del argv
    best = train(_CONFIG.value, _WORKDIR.value, _STRATEGY.value)
    print(f"best: {json.dumps(best)}; the model is {Path(_WORKDIR.value) / training.BEST}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
