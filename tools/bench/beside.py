"""What networks are timed in isa_tf and in PyTorch, and what a process of one answers."""

import json
import sys

from tools.bench import memory, processes, timing

CHANNELS, WIDTH, KEYS, CLASSES = 2048, 512, 256, 19
# The parts of Mask R-CNN that each is made of.
DETECTOR = {
    "detector": ("backbone", "pyramid", "rpn_head"),
    "box_head": ("box_head",),
    "mask_head": ("mask_head",),
}
INTERLACED = "isa_tf interlaced"
OURS = {
    "head": ("isa_tf", "isa_tf fused"),
    "model": ("isa_tf", "isa_tf fused", "isa_tf saved_model", "isa_tf saved_model without XLA"),
    "train": ("isa_tf",),
    "dense": ("isa_tf", "isa_tf fused", INTERLACED),
    **dict.fromkeys(DETECTOR, ("isa_tf", "isa_tf fused")),
}
THEIRS = ("torch eager", "torch channels_last", "torch compile")
OPENVINO = "openvino"  # of head and model, in float32


def contestants_of(what):
    """The names of those that can do it."""
    return (*THEIRS, *([OPENVINO] if what in ("head", "model") else []), *OURS[what])


def channels_of(what):
    """Those of the input."""
    return {"head": CHANNELS, "dense": WIDTH}.get(what, 3)


def module_of(name):
    """The module of a contestant's process."""
    return "tools.bench.theirs" if name in THEIRS else "tools.bench.ours"


def serve(make):
    """The process of a contestant: makes its network, and answers questions.

    They are "ready", for facts; "memory", for what a warm call holds at its highest beyond what was
    held before the first one, MB; "call", for milliseconds; "matmul", for GFLOP/s.

    Args:
        make: function of the case, a dict, that gives (call, matrix product, facts).
    """
    call, product, facts = make(json.loads(sys.argv[2]))
    before = memory.resident()
    call()
    call()
    product()
    processes.serve(
        {
            "ready": lambda: facts,
            "memory": lambda: memory.peak(call, before),
            "call": lambda: timing.milliseconds(call),
            "matmul": lambda: timing.best_matmul_rate(product),
        }
    )
