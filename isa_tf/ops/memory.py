"""What fits into memory, asked before it is taken."""

import math
import re
from pathlib import Path

import tensorflow as tf

_SMALL = 2**28  # bytes that are not worth asking for


def free_memory():
    """Bytes that the system can still give; `None` where it does not tell (Linux does).

    Example:

    >>> free_memory() is None or free_memory() > 0
    True
    """
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    return 1024 * int(re.search(r"MemAvailable:\s+(\d+) kB", text)[1])


def refuse_too_large(shape, x):
    """`x`, unless a float32 affinity that is about to be made of it cannot fit into memory.

    A softmax reads one tensor of this shape and writes another. On Linux a process that takes too
    much is killed without a word; with a GPU, TensorFlow tells by itself, and nothing is checked.
    An unknown batch counts as 1; other unknown sizes are not checked.

    Args:
        shape: the affinity's.
        x: tensor.

    Returns:
        `x`, in a graph behind an assertion where the affinity is too large: what is only traced,
        to count its operations, may be of any size.

    Raises:
        ValueError: outside of graphs, with the estimate. (`tf.errors.InvalidArgumentError` when a
            graph that holds the assertion runs.)
    """
    batch, *others = shape
    if None in others:
        return x
    size = 4 * (batch or 1) * math.prod(others)
    if size < _SMALL or tf.config.list_logical_devices("GPU"):
        return x
    free = free_memory()
    if free is None or 2 * size <= free:
        return x
    text = (
        f"the affinity, {'x'.join(map(str, (batch or 1, *others)))} float32, takes "
        f"{size / 1e9:.1f} GB, and its softmax two of that size; {free / 1e9:.1f} GB are free. "
        "Give smaller maps, or a partition into more groups"
    )
    if tf.executing_eagerly():
        raise ValueError(text)
    with tf.control_dependencies([tf.debugging.Assert(False, [text])]):
        return tf.identity(x)
