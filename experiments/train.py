"""Trains one experiment, from its beginning or from where it was left.

python -m experiments.train --config=experiments/configs/synthetic.py --workdir=runs/synthetic
"""

import json
from pathlib import Path

import keras
from absl import flags

from experiments import setup
from isa_tf import training


def train(config, workdir, strategy="one_device", verbose="auto"):
    """Trains `config` in `workdir`; returns the best score, {"step": ..., "miou": ...}."""
    keras.utils.set_random_seed(config.seed)
    dataset = setup.make_dataset(config)
    val_data = setup.make_val_data(config, dataset)
    (steps, weighted), *more = setup.phases(config)
    scope = training.make_strategy(strategy).scope
    with scope():
        model = setup.make_model(config, dataset)
        setup.compile_model(model, config, dataset, weighted)
    workdir = setup.claim(workdir, config)
    print(f"{workdir}: {model.count_params():,} parameters", flush=True)

    def fit(steps):
        return training.fit(
            model,
            lambda step: setup.make_train_data(config, dataset, step),
            val_data,
            workdir,
            steps,
            config.train.validate_every,
            setup.make_draw(config, dataset),
            config.train.ema_batches,
            verbose=verbose,
        )

    best = fit(steps)
    for steps, weighted in more:  # goes on from the last state
        with scope():
            setup.compile_model(model, config, dataset, weighted)
        best = fit(steps)
    return best


def main(argv):
    del argv
    values = flags.FLAGS
    best = train(values.config, values.workdir, values.strategy)
    print(f"best: {json.dumps(best)}; the model is {Path(values.workdir) / training.BEST}")


if __name__ == "__main__":
    setup.define_config_flag()
    flags.DEFINE_string("workdir", None, "Folder of this experiment alone.")
    flags.DEFINE_enum(
        "strategy", "one_device", ["one_device", "mirrored"], "How to use this machine's devices."
    )
    flags.mark_flags_as_required(["config", "workdir"])
    setup.run(main)
