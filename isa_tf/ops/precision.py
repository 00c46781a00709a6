"""Which precision a processor multiplies in."""

import functools
import time

import tensorflow as tf

_SIZE = 512  # rows and columns of the matrix product that is timed
_CALLS = 3


@functools.cache
def product_dtype(dtype):
    """The precision in which products of tensors of a half precision are quickest: it, or float32.

    Processors with instructions for bfloat16 (AVX512_BF16, AMX) multiply twice as fast in it;
    others emulate it, many times slower than float32, and only save memory by it. The library
    under TensorFlow decides too, so the two are timed, once in a process (some milliseconds;
    where it is emulated, up to a second).

    Args:
        dtype: str, such as "bfloat16".

    Returns:
        str, `dtype` or "float32".

    Example:

    >>> product_dtype("float32")
    'float32'
    """
    if dtype not in ("bfloat16", "float16"):
        return "float32"
    with tf.init_scope(), tf.device("CPU"):
        times = {}
        for name in (dtype, "float32"):
            x = tf.ones((_SIZE, _SIZE), name)
            tf.matmul(x, x)
            times[name] = min(_seconds(x) for _ in range(_CALLS))
    return min(times, key=times.get)


def _seconds(x):
    start = time.perf_counter()
    tf.matmul(x, x)  # without graph and GPU, done when it returns
    return time.perf_counter() - start
