r"""Trains one experiment, from its beginning or from where it was left.

    python -m experiments.train --config=synthetic --workdir=runs/synthetic

The workdir gets checkpoints, log.csv, curves.png, TensorBoard's files, and best.keras: the model
that scored best. SIGTERM and Ctrl-C keep the state; the same command goes on from it. On several
GPUs or hosts see docs/distributed.md.
"""

import sys

import keras
from absl import flags

from experiments import setup, tasks
from isa_tf import training


def train(config, workdir, strategy="one_device", verbose="auto", profile=None, callbacks=()):
    """Trains `config` in `workdir`.

    Args:
        config: of the experiment.
        workdir: folder of this experiment alone.
        strategy: `tf.distribute.Strategy`, or a name that `training.make_strategy` knows.
        verbose, profile, callbacks: see `training.Run.fit`.

    Returns:
        The best score, {"step": ..., "miou": ...} of segmentation.
    """
    if isinstance(strategy, str):  # before anything else of TensorFlow
        strategy = training.make_strategy(strategy)
    given, config = config, setup.for_replicas(config, strategy.num_replicas_in_sync)
    setup.tell_scaling(given, config)
    keras.utils.set_random_seed(config.seed)
    task = tasks.of(config)
    dataset = task.make_dataset(config)
    phases = task.phases(config)
    setup.check_splits(config, dataset)
    setup.check_strategy(config, strategy)
    with strategy.scope():
        whole = task.make_model(config, dataset)
        model = task.part_to_train(config, dataset, whole)
        validation = task.compile_model(model, config, dataset, phases[0])
    print(f"{workdir}: {whole.count_params():,} parameters", flush=True)

    with setup.make_run(workdir, config, strategy) as run:
        for phase in phases:
            if phase is not phases[0]:  # goes on from the last state, with another loss
                with strategy.scope():
                    validation = task.compile_model(model, config, dataset, phase)
            best = run.fit(
                model,
                lambda step, context: task.make_train_data(config, dataset, step, context),
                **validation,
                whole=whole,
                steps=phase.steps,
                validate_every=config.train.validate_every,
                checkpoint_every=config.train.checkpoint_every,
                batch_files=lambda step: task.batch_files(config, dataset, step),
                ema_batches=config.train.ema_batches,
                profile=profile,
                callbacks=callbacks,
                verbose=verbose,
            )
        setup.draw_curves(run)
    return best


def main(argv):
    del argv
    values = flags.FLAGS
    profile = None
    if values.profile:
        try:
            profile = tuple(int(step) for step in values.profile)
        except ValueError:
            profile = ()
        if len(profile) != 2 or not 0 < profile[0] < profile[1]:
            raise ValueError(f"profile must be START,STOP, got {','.join(values.profile)}")
    if values.logical_devices > 1:
        training.logical_devices(values.logical_devices)
    strategy = training.make_strategy(values.strategy)
    best = train(values.config, values.workdir, strategy, profile=profile)
    if training.is_chief(strategy):
        setup.tell(values.config, values.workdir, best, sys.argv[1:])


if __name__ == "__main__":
    setup.define_config_flag()
    flags.DEFINE_string("workdir", None, "Folder of this experiment alone.")
    flags.DEFINE_enum(
        "strategy",
        "auto",
        list(training.STRATEGIES),
        "How to use devices and hosts; auto takes what the machine and TF_CONFIG or SLURM offer.",
    )
    flags.DEFINE_list("profile", [], "START,STOP: steps to trace for TensorBoard's profiler.")
    flags.DEFINE_integer(
        "logical_devices", 1, "Parts to split the CPU into, to try strategies without GPUs.", 1
    )
    flags.mark_flags_as_required(["config", "workdir"])
    setup.run(main)
