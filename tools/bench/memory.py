"""What calls hold in memory, as Linux tells it, and what cannot fit."""

import ctypes
import gc
import re
from pathlib import Path

from tools.bench.timing import wait

# Where memory is measured, what is freed goes back to the system at once: it costs time, and tells
# what is held. glibc would keep it, and so would the pool that TensorFlow has with oneDNN.
RETURNED = {
    "MALLOC_MMAP_THRESHOLD_": str(2**18),
    "TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "true",
}


def resident():
    """KB that this process holds; `None` where the system does not tell."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed and not given back is not held
    except AttributeError:
        pass  # not glibc
    try:
        return _status("VmRSS")
    except OSError:
        return None


def peak(call, before=None):
    """What a call holds at its highest beyond what is held before it, MB; `None` where not told.

    Args:
        call: function, what it returns is waited for.
        before: KB, from `resident`, that were held at another time. Defaults to `None`, for now.
    """
    before = resident() if before is None else before
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far is now
        wait(call())
        return max(_status("VmHWM") - before, 0) / 1024
    except OSError:
        return None


def most():
    """The most bytes that this process has held."""
    import resource  # which Windows lacks

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def too_large(graph):
    """Why a graph cannot run in the memory that is free; `None` where it can.

    Its largest tensor has to exist beside another of its size: a softmax reads one and makes one.
    """
    from isa_tf import runtime

    largest, size = None, 0
    for op in graph.get_operations():
        for tensor in op.outputs:
            shape = tensor.shape
            if shape.rank is not None and shape.is_fully_defined() and tensor.dtype.size:
                count = shape.num_elements() * tensor.dtype.size
                if count > size:
                    largest, size = tensor, count
    free = runtime.free_memory()
    if free is None or 2 * size <= free:
        return None
    shape = "x".join(map(str, largest.shape))
    return (
        f"refused: its largest tensor, {shape} {largest.dtype.name}, takes {size / 1e9:.1f} GB, "
        f"and two of its size are held at once; {free / 1e9:.1f} GB are free"
    )


def _status(name):
    """KB of this process, by the name in Linux's /proc/self/status."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
