"""Which devices a run trains on: `tf.distribute` strategies by name."""

import tensorflow as tf


def make_strategy(name):
    """A `tf.distribute` strategy by name, over the GPUs or, without any, the (logical) CPUs."""
    if name in ("auto", "one_device"):
        return tf.distribute.get_strategy()
    if name == "mirrored":
        kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
        return tf.distribute.MirroredStrategy(
            [d.name for d in tf.config.list_logical_devices(kind)]
        )
    raise ValueError(f'strategy must be "one_device" or "mirrored", got {name!r}')


def is_chief(strategy):
    return True


def any_of(strategy, flag):
    return flag


def agree(strategy, value):
    return True


STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")


def logical_devices(n):
    pass
