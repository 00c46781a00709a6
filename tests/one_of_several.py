"""One training of a tiny network, to be dealt out in all ways; also one of several processes of it.

python one_of_several.py STRATEGY DEVICES

prints what came of it as JSON.
"""

import hashlib
import json
import os
import signal
import sys

import keras
import numpy as np
import tensorflow as tf

from isa_tf.losses import PixelCrossEntropy
from isa_tf.metrics import MeanIoU
from isa_tf.training import replicas, strategy, workers

CLASSES = 4
GLOBAL_BATCH = 8
# Of unequal sizes, one a batch, so many that the last step leaves replicas, and a worker, without.
SIZES = [(16, 16), (8, 24), (24, 8), (16, 8), (8, 8)]


def numbers(context):
    """(workers, this one, replicas) of an input context; of `None`, one each."""
    if context is None:
        return 1, 0, 1
    replicas = context.num_replicas_in_sync
    return context.num_input_pipelines, context.input_pipeline_id, replicas


def example(random, height, width):
    image = random.integers(0, 255, (height, width, 3)).astype("uint8")
    return image, random.integers(0, CLASSES, (height, width)).astype("uint8")


def dataset(generator, cardinality):
    signature = tf.TensorSpec((None, None, 3), tf.uint8), tf.TensorSpec((None, None), tf.uint8)
    data = tf.data.Dataset.from_generator(generator, output_signature=signature)
    return data.apply(tf.data.experimental.assert_cardinality(cardinality))


def make_train(context):
    """Batches without end; a global one is dealt out in the order of the replicas."""
    workers, worker, replicas = numbers(context)
    share = GLOBAL_BATCH // workers

    def generate():
        random = np.random.default_rng(1)
        while True:
            batch = [example(random, 16, 16) for _ in range(GLOBAL_BATCH)]
            yield from batch[worker * share : (worker + 1) * share]

    data = dataset(generate, tf.data.INFINITE_CARDINALITY)
    return data.batch(GLOBAL_BATCH // replicas, drop_remainder=True)


def make_eval(sizes, batch_size):
    """The function that makes batches of images of these sizes, which are dealt to workers."""

    def make(context):
        workers, worker, _ = numbers(context)
        random = np.random.default_rng(2)
        mine = [example(random, *size) for size in sizes][worker::workers]
        return dataset(lambda: iter(mine), len(mine)).batch(batch_size)

    return make


class Logs(keras.callbacks.Callback):
    """What reaches callbacks, after each step; and a death in the midst of training."""

    def __init__(self, die):
        super().__init__()
        self.train, self.test, self.die = [], [], die

    def on_train_batch_end(self, batch, logs=None):
        self.train.append({name: float(value) for name, value in logs.items()})
        if self.die:
            os.kill(os.getpid(), signal.Signals[os.environ["SIGNAL"]])

    def on_test_batch_end(self, batch, logs=None):
        self.test.append({name: float(value) for name, value in logs.items()})


def train(strategy_, die=False):
    """Trains and evaluates under a strategy; a dict that is the same for all."""
    keras.utils.set_random_seed(0)
    with strategy_.scope():
        inputs = keras.Input((None, None, 3))
        x = keras.layers.Rescaling(1 / 255)(inputs)
        x = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(x)
        x = keras.layers.Conv2D(CLASSES, 3, padding="same")(x)
        model = keras.Model(inputs, x)
        metric = MeanIoU(CLASSES)
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True)
        model.compile(optimizer, PixelCrossEntropy(), metrics=[metric])
    replicas.prepare(model)
    data = replicas.distribute(strategy_, make_train)
    validation = replicas.distribute(strategy_, make_eval(SIZES, 1))
    logs = Logs(die)
    shared = {"validation_data": validation, "callbacks": [logs], "verbose": 0, "shuffle": False}
    # Twice, as a run that validates at uneven steps does.
    history = model.fit(data, steps_per_epoch=2, **shared).history
    confusions = [replicas.read_variable(metric.confusion).tolist()]
    more = model.fit(data, steps_per_epoch=1, initial_epoch=1, epochs=2, **shared).history
    pairs = replicas.distribute(strategy_, make_eval([(8, 8)] * 7, 2))
    scores = model.evaluate(pairs, verbose=0, return_dict=True)
    confusions.append(replicas.read_variable(metric.confusion).tolist())
    variables = [*model.weights, *optimizer.variables, *metric.variables]
    return {
        "history": {name: values + more[name] for name, values in history.items()},
        "train_logs": logs.train,
        "last_test_logs": logs.test[-1],
        "scores": scores,
        "confusions": confusions,
        "weights": np.concatenate([replicas.read_variable(w).ravel() for w in model.weights]),
        "restored": restored(variables),
    }


def restored(variables):
    """Whether variables hold what they are given, to the last bit."""
    kept = [replicas.read_variable(v) for v in variables]
    random = np.random.default_rng(3)
    for variable, value in zip(variables, kept, strict=True):
        # Odd and large: a share a replica, or a float, would lose digits.
        given = random.integers(2**20, 2**23, value.shape) * 2 + 1
        given = (given << 36) + 1 if value.dtype == np.int64 else given
        given = given.astype(value.dtype)
        replicas.write_variable(variable, given)
        if not np.array_equal(replicas.read_variable(variable), given):
            return False
    for variable, value in zip(variables, kept, strict=True):
        replicas.write_variable(variable, value)
    return all(
        np.array_equal(replicas.read_variable(v), value)
        for v, value in zip(variables, kept, strict=True)
    )


def talk(strategy_):
    """What workers learn of one another."""
    index = workers.worker_index(strategy_)
    try:
        workers.agree(strategy_, 500 + index, "step")
        differ = None
    except ValueError as error:
        differ = str(error)
    # Of unequal lengths, one of them none, and more than goes at once.
    rng = np.random.default_rng(index)
    mine = rng.bytes((0, 8 * workers._GATHERED_WORDS + 13)[index % 2])
    gathered = [workers.gather(strategy_, some) for some in (mine, b"ab" * (index + 1), b"")]
    return {
        "gathered": [[hashlib.sha256(data).hexdigest() for data in all_] for all_ in gathered],
        "workers": workers.num_workers(strategy_),
        "index": index,
        "chief": workers.is_chief(strategy_),
        "replicas": strategy_.num_replicas_in_sync,
        "over_workers": workers.over_workers(strategy_, 2**60 + index),
        "any_of": [
            workers.any_of(strategy_, flag) for flag in (False, index == 1, index == 0, True)
        ],
        "agree": workers.agree(strategy_, "last.keras"),
        "differ": differ,
    }


if __name__ == "__main__":
    name, devices = sys.argv[1], int(sys.argv[2])
    if devices > 1:
        strategy.logical_devices(devices)
    keras.utils.set_random_seed(0)  # may come before the strategy
    chosen = strategy.make_strategy(name)
    result = {
        "talk": talk(chosen),
        **train(chosen, die=os.environ.get("DIES") == str(workers.worker_index(chosen))),
    }
    print(json.dumps(result, default=np.ndarray.tolist))
