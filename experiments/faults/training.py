"""The small training that faults are done to."""

from experiments.configs import synthetic

VALIDATE_EVERY, CHECKPOINT_EVERY = 8, 3


def settings(steps, seed=0):
    """What the training changes of experiments/configs/synthetic.py, by dotted name."""
    return {
        "seed": seed,
        "data.options.num_examples": {"train": 24, "val": 6},
        "data.crop_size": 64,
        "data.batch_size": 4,
        "data.val_batch_size": 2,
        "model.head_filters": 16,
        "model.dropout": 0.1,
        "train.steps": steps,
        "train.validate_every": VALIDATE_EVERY,
        "train.checkpoint_every": CHECKPOINT_EVERY,
        "train.warmup_steps": 4,
        "train.ema": 0.9,
        "train.ema_batches": 4,
        "train.class_weight_steps": steps // 2,
        "train.pictures": 0,
    }


def validated(steps):
    """The steps after which there is a validation: of every phase, also the last."""
    every = range(VALIDATE_EVERY, steps, VALIDATE_EVERY)
    return sorted({*every, steps // 2, steps})


def make_config(steps, seed=0):
    """The config of the training, as `kills.Start` has it by flags."""
    config = synthetic.get_config()
    config.update_from_flattened_dict(settings(steps, seed))
    return config
