"""stand-in"""

import keras
import tensorflow as tf


def build(model, spec):
    batch = tf.nest.map_structure(lambda s: keras.KerasTensor(s.shape, s.dtype.name), spec)
    model._symbolic_build(data_batch=batch)


def prepare(model):
    pass


def distribute(strategy, make):
    return make(None)


def read_variable(v):
    return v.numpy() if hasattr(v.value, "numpy") else v.numpy()


def write_variable(v, a):
    v.assign(a)
