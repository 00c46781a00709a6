r"""Keeps what a frozen backbone makes of images, for heads to be trained on in minutes.

    python -m experiments.features --config=experiments/configs/frozen.py:camvid \
        --config.features.folder=runs/features/camvid
    python -m experiments.train --config=experiments/configs/frozen.py:camvid \
        --config.features.folder=runs/features/camvid --workdir=runs/frozen

Of every training image the maps that the model's head reads, in float16: as the config's
augmentation makes it, features.rounds times, and mirrored too where features.mirror says so; of
every validation image those of the view that config.test shows. Training computes what is missing
by itself; this does it beforehand, for several trainings or hosts. Started again, it goes on from
where it was, and a folder of other maps is refused.
"""

import keras
from absl import flags

from experiments import setup, tasks
from isa_tf import files


def main(argv):
    del argv
    config = flags.FLAGS.config
    if not config.get("features", {}).get("folder"):
        raise ValueError("config.features.folder says where the maps are kept: it is to be set")
    keras.utils.set_random_seed(config.seed)  # as a training does: weights that are drawn are its
    task = tasks.of(config)
    dataset = task.make_dataset(config)
    task.part_to_train(config, dataset, task.make_model(config, dataset))
    kept = task.kept_features(config, dataset)
    for split in kept.splits:
        print(f"{kept.folder / split}: {kept.size(split):,} images")
    print(f"{files.size(kept.folder) / 2**30:.2f} GiB of {', '.join(kept.levels)}")


if __name__ == "__main__":
    setup.define_config_flag()
    flags.mark_flags_as_required(["config"])
    setup.run(main)
