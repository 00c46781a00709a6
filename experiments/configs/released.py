r"""From frozen to released: the whole network learns, from the head that a frozen backbone taught.

python -m experiments.ablate --study=frozen --config=experiments/configs/frozen.py:camvid-c3 \
    --workdir=runs/frozen/camvid-c3 --seeds=0,1,2
python -m experiments.ablate --study=released --config=experiments/configs/released.py:camvid-c3 \
    --workdir=runs/released/camvid-c3 --seeds=0,1,2 \
    --config.model.initial=runs/frozen/camvid-c3/frozen

Each run of the second begins with what the first left of the same module and seed; for one
training `config.model.initial` is a run's best.keras. After the colon: what frozen.py takes. The
backbone learns at a tenth of the head's rate, on whole images.
"""

from experiments.configs import default, frozen


def get_config(what="camvid"):
    config = frozen.get_config(what)
    config.features = default.get_config().features
    config.data.flip = True
    config.data.cache = True
    config.model.freeze_backbone = False
    config.train.learning_rate = 1e-4
    config.train.head_rate = 10.0
    return config
