"""What this machine can do: memory that is free, and the precision that it multiplies in.

Nothing in the library decides by a stopwatch. A caller asks, and passes on what was answered.
"""

import contextlib
import functools
import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

from isa_tf.hints import Shape

_SMALL = 2**28  # bytes that are not worth asking for
_BATCH = 1024  # images that a batch of unknown size is taken to hold at most
_UNTOLD = tf.int64.max  # what files that are not there state
_MEMINFO = "/proc/meminfo"
_AVAILABLE = r"(?s).*MemAvailable:\s+(\d+) kB.*"
_CGROUPS = Path("/sys/fs/cgroup")
_NUMBER = r"(\d+)\s*"
# Of a memory cgroup: limit, usage, and where its statistics count the file cache in the usage.
_CGROUP_FILES = {
    "v2": ("memory.max", "memory.current", r"(?s)(?:.*\n)?inactive_file (\d+)\n.*"),
    "v1": (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        r"(?s)(?:.*\n)?total_inactive_file (\d+)(?:\n.*)?",
    ),
}
_SIZE = 512  # rows and columns of the matrix product that is timed
_CALLS = 3

_checks = [True]  # whether graphs that are traced now check their memory


def has_gpu() -> bool:
    """Whether TensorFlow computes on a GPU here.

    Example:

    >>> has_gpu() == bool(tf.config.list_physical_devices("GPU"))
    True
    """
    return bool(tf.config.list_logical_devices("GPU"))


def processors() -> int:
    """Processors that this process may run on: fewer than the machine has, where it was told so.

    Example:

    >>> 1 <= processors() <= os.cpu_count()
    True
    """
    if hasattr(os, "sched_getaffinity"):  # not on macOS, nor on Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# === Memory ===


def free_memory() -> int | None:
    """Bytes that this process can still take; `None` where the system does not tell (Linux does).

    It is the least of what the machine has available and of what the limits of the cgroups leave
    that the process is in, as in a container. Memory that only caches files counts as free.

    Example:

    >>> free_memory() is None or free_memory() > 0
    True
    """
    with tf.init_scope():
        free = int(_free_memory())
    return None if free == _UNTOLD else free


def _free_memory():
    """The same as an int64 scalar, by operations that a graph runs anew in each call."""
    kilobytes = _stated(_MEMINFO, _AVAILABLE)
    free = [tf.where(kilobytes == _UNTOLD, _UNTOLD, kilobytes * 1024)]
    for version, folder in _cgroups():
        limit_file, usage_file, cached = _CGROUP_FILES[version]
        limit, used = (_stated(f"{folder}/{name}", _NUMBER) for name in (limit_file, usage_file))
        cache = _stated(f"{folder}/memory.stat", cached)
        used -= tf.where(cache == _UNTOLD, tf.zeros_like(cache), cache)
        # Without a limit there is no number in v2, and a huge one in v1.
        told = (limit != _UNTOLD) & (used != _UNTOLD)
        free.append(tf.where(told, tf.maximum(limit - used, 0), _UNTOLD))
    return tf.reduce_min(tf.stack(free))


def _stated(path, pattern):
    """The number that a pattern finds in a file: an int64 scalar, `_UNTOLD` where there is none."""
    untold = tf.constant(_UNTOLD, tf.int64)

    def read():
        text = tf.io.read_file(path)
        return tf.cond(
            tf.strings.regex_full_match(text, pattern),
            lambda: tf.strings.to_number(tf.strings.regex_replace(text, pattern, r"\1"), tf.int64),
            lambda: untold,
        )

    return tf.cond(tf.size(tf.io.matching_files(path)) > 0, read, lambda: untold)


def _cgroups():
    """[("v1" or "v2", folder), ...] of the memory cgroups that this process is in, outermost last.

    The mount itself is always among them: in a container it is usually the container's own group.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        version = "v2" if not controllers else "v1"
        if version == "v1" and "memory" not in controllers.split(","):
            continue
        mount = _CGROUPS if version == "v2" else _CGROUPS / "memory"
        folder = mount / group.lstrip("/")
        inside = [f for f in (folder, *folder.parents) if f == mount or mount in f.parents]
        found += [(version, f) for f in inside if f == mount or f.is_dir()]
    return found


@contextlib.contextmanager
def memory_checks(on: bool) -> Iterator[None]:
    """For as long as it lasts, `refuse_too_large` puts checks into graphs, or does not.

    Whoever traces a graph for somewhere else, or for XLA to compile as a whole, turns them off:
    neither reads this system's files.

    Args:
        on: bool.
    """
    _checks.append(on)
    try:
        yield
    finally:
        _checks.pop()


def refuse_too_large(shape: Shape, x: tf.Tensor) -> tf.Tensor:
    """`x`, unless a float32 affinity that is about to be made of it cannot fit into memory.

    A softmax reads one tensor of this shape and writes another. On Linux a process that takes too
    much is killed without a word; with a GPU, TensorFlow tells by itself, and nothing is checked.
    What is decided is decided when it runs: a graph asks anew in every call. It cannot ask where
    XLA compiles the whole of it, see `memory_checks`.

    Args:
        shape: the affinity's, its batch first: ints, and scalar tensors where it is not known
            before.
        x: tensor.

    Returns:
        `x`, in a graph behind an assertion.

    Raises:
        ValueError: outside of graphs, with the estimate.
        tf.errors.InvalidArgumentError: from a graph, when it runs.

    Example:

    >>> x = tf.zeros((1, 4, 4, 2))
    >>> refuse_too_large((1, 1, 16, 16), x) is x
    True
    """
    # Most maps are small enough for any batch, and need none of the check's operations.
    at_most = [_BATCH if tf.is_tensor(shape[0]) else shape[0], *shape[1:]]
    known = not any(tf.is_tensor(n) for n in at_most)
    if known and 4 * math.prod(at_most) < _SMALL or has_gpu():
        return x
    if tf.executing_eagerly():
        shape = [int(n) for n in shape]
        size, free = 4 * math.prod(shape), free_memory()
        if size >= _SMALL and free is not None and 2 * size > free:
            sizes = "x".join(map(str, shape))
            raise ValueError("".join(_too_large(sizes, f"{size / 1e9:.1f}", f"{free / 1e9:.1f}")))
        return x
    if not _checks[-1]:
        return x
    sizes = tf.stack([tf.cast(n, tf.int64) for n in shape])
    size = 4 * tf.reduce_prod(sizes)

    def check():
        free = _free_memory()
        taken, left = (
            tf.strings.as_string(tf.cast(n, tf.float64) / 1e9, precision=1) for n in (size, free)
        )
        text = _too_large(
            tf.strings.reduce_join(tf.strings.as_string(sizes), separator="x"), taken, left
        )
        # Halved, and not the size doubled: what is untold is the largest number there is.
        assertion = tf.debugging.Assert(size <= free // 2, [tf.strings.join(text)])
        with tf.control_dependencies([assertion]):
            return tf.constant(True)

    checked = tf.cond(size >= _SMALL, check, lambda: tf.constant(True))
    with tf.control_dependencies([checked]):
        return tf.identity(x)


def short_of_memory(error: BaseException) -> str | None:
    """What an error says of memory that was refused or not there; `None` of another error.

    Args:
        error: of calling a model: what `refuse_too_large` raised, or what TensorFlow, NumPy or
            Python raised where nothing more could be had.

    Example:

    >>> short_of_memory(MemoryError())
    'there is not enough memory'
    >>> short_of_memory(KeyError("image")) is None
    True
    """
    if isinstance(error, (MemoryError, tf.errors.ResourceExhaustedError)):
        return "there is not enough memory"
    # In whatever TensorFlow says around it.
    told = re.search("".join(_too_large(r"[\dx]+", r"[\d.]+", r"[\d.]+")), str(error))
    return told[0] if told else None


def _too_large(sizes, taken, free):
    """What is to be said, in parts: strings, or string tensors."""
    return (
        *("the affinity, ", sizes, " float32, takes ", taken, " GB, and its softmax two of that "),
        *("size; ", free, " GB are free. Give smaller maps, or a partition into more groups"),
    )


# === Precision ===


@functools.cache
def product_dtype(dtype: str) -> str:
    """The precision in which products of tensors of a half precision are quickest: it, or float32.

    Processors with instructions for bfloat16 (AVX512_BF16, AMX) multiply twice as fast in it;
    others emulate it, many times slower than float32, and only save memory by it. The library
    under TensorFlow decides too, so the two are timed, once in a process (some milliseconds;
    where it is emulated, up to a second).

    Args:
        dtype: str, such as "bfloat16", or the name of a policy, such as "mixed_bfloat16".

    Returns:
        str, `dtype` without "mixed_", or "float32"; see `isa_tf.inference.fuse`.

    Example:

    >>> product_dtype("float32")
    'float32'
    """
    dtype = dtype.removeprefix("mixed_")
    if dtype not in ("bfloat16", "float16"):
        return "float32"
    with tf.init_scope(), tf.device("CPU"):
        times = {}
        for name in (dtype, "float32"):
            x = tf.ones((_SIZE, _SIZE), name)
            tf.matmul(x, x)
            times[name] = min(_seconds(x) for _ in range(_CALLS))
    return min(times, key=times.__getitem__)


def _seconds(x):
    start = time.perf_counter()
    tf.matmul(x, x)  # without graph and GPU, done when it returns
    return time.perf_counter() - start
