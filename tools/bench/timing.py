"""How long calls take: warm calls, contestants in rounds, ratios, and the rates of a machine."""

import statistics
import time

import numpy as np

LEAST_CALLS = 3
GEMM = 2048  # rows and columns of the matrix product that machines are compared by


def latency(call, seconds):
    """Median of warm calls, in milliseconds.

    Args:
        call: function that waits by itself for what it computes.
        seconds: float, how long it is called for; `LEAST_CALLS` times at least.
    """
    times, end = [], time.perf_counter() + seconds
    while len(times) < LEAST_CALLS or time.perf_counter() < end:
        times.append(milliseconds(call))
    return statistics.median(times)


def milliseconds(call):
    """Those of one call, which waits by itself for what it computes."""
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def in_turn(contestants, rounds):
    """Who is called, one after the other, of each round.

    Now from the first to the last, now back: none is always behind the same, and what the machine
    does beside slows all alike.

    Args:
        contestants: sequence.
        rounds: int.

    Returns:
        An iterator of them.

    Example:

    >>> "".join(in_turn("abc", 2))
    'abccba'
    """
    contestants = list(contestants)
    for number in range(rounds):
        yield from contestants[:: 1 if number % 2 == 0 else -1]


def latencies(calls, rounds):
    """Milliseconds of warm calls, all called in turn: {name: (times, busy)}, of {name: call}.

    `times` has one a round; `busy` is the processor time of all cores, which others' work delays
    less.
    """
    found = {name: ([], []) for name in calls}
    for name in in_turn(calls, rounds):
        start = time.perf_counter(), time.process_time()
        wait(calls[name]())
        end = time.perf_counter(), time.process_time()
        for times, a, b in zip(found[name], start, end, strict=True):
            times.append(1000 * (b - a))
    return found


def ratio_of_medians(times, others):
    """That of what was called in other turns, or other processes."""
    return statistics.median(times) / statistics.median(others)


def ratios(times, others):
    """The ratio of each round, of what was called in the same ones: slow rounds are so for both."""
    return [a / b for a, b in zip(times, others, strict=True)]


def wait(result):
    """Returns once the tensors in a result are computed, without copying them."""
    import tensorflow as tf

    for tensor in tf.nest.flatten(result):
        if tf.is_tensor(tensor):
            try:
                memoryview(tensor).release()  # waits for it and, unlike numpy(), makes no copy
            except (BufferError, TypeError, ValueError):
                tensor.numpy()


# === What a machine can do ===


def matmul():
    """A call that multiplies two `GEMM` x `GEMM` float32 matrices, in TensorFlow."""
    import tensorflow as tf

    a, b = (tf.random.stateless_normal((GEMM, GEMM), (0, i)) for i in range(2))
    product = tf.function(lambda: tf.matmul(a, b))
    return lambda: wait(product())


def matmul_rate(product, seconds=3.0):
    """GFLOP/s of a call such as `matmul()`: the highest rate that anything can hope for."""
    product()
    return 2 * GEMM**3 / latency(product, seconds) / 1e6


def best_matmul_rate(product, calls=3):
    """The same of the shortest of a few calls, which takes no longer than they do."""
    return 2 * GEMM**3 / min(milliseconds(product) for _ in range(calls)) / 1e6


def copy_rate(seconds=1.0):
    """Bytes that this machine reads and writes a second, GB/s, by copying 256 MB."""
    source = np.ones(1 << 26, "float32")
    target, best, end = np.empty_like(source), 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        np.copyto(target, source)
        best = max(best, 2 * source.nbytes / (time.perf_counter() - start))
    return best / 1e9
