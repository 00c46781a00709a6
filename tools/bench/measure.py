"""Figures of one case, measured in this process: what `tools.benchmark` starts processes of.

    python -m tools.bench.measure measure '{"what": "gemm"}'

A case is a dict. "what" is "gemm", "context", "model", "detector" or "turns" (several context
modules, called in turn); the others say of what, see `contexts.make`, `segmenters.make` and
`detector.make`. With "memory" it is memory that is measured, else time, for so many "seconds".
"""

import functools
import json
import math
import statistics
import sys

from tools.bench import contexts, detector, memory, processes, segmenters, timing

_WARM_UP_SIZE = (16, 16)


def run(case):
    """`measure` in a fresh process; "refused" says why there is nothing to tell."""
    environment = memory.RETURNED if case.get("memory") else None
    try:
        return processes.apart("tools.bench.measure", case, environment)
    except processes.Failed as error:
        return {"refused": f"failed ({error})"}


def measure(case):
    """A dict for the row of a table: what was measured, and "refused" where something was not."""
    if case["what"] == "gemm":
        return {"gflops": timing.matmul_rate(timing.matmul())}
    import keras

    keras.utils.set_random_seed(0)
    if case["what"] == "turns":
        return {"rows": _measure_in_turn(case)}
    kinds = {"context": _measure_context, "model": _measure_model, "detector": _measure_part}
    return {name: value for name, value in kinds[case["what"]](case).items() if value is not None}


def _measure_context(case):
    import tensorflow as tf

    from isa_tf import runtime

    layer, function, specs = contexts.make(case)
    if function is None:
        return {}
    # It has its own check, and XLA compiles no graph that asks for free memory.
    with runtime.memory_checks(False):
        concrete = function.get_concrete_function(*specs)
    found = {}
    if case["pass"] == "forward" and not case.get("memory"):
        found = _counted(layer, specs[0])
    if refused := memory.too_large(concrete.graph):
        return {**found, "refused": refused}
    # A small call loads what every first call loads.
    small = [tf.TensorSpec((s.shape[0], *_WARM_UP_SIZE, *s.shape[3:]), s.dtype) for s in specs]
    function(*map(_random, small))
    inputs = [_random(spec) for spec in specs]
    return found | _figure(case, lambda: concrete(*inputs))


def _measure_model(case):
    from isa_tf import runtime

    forward, jit_compile = case["pass"] == "forward", case["jit_compile"]
    # Of training, the checks that it ships with are a part.
    with runtime.memory_checks(not (forward or jit_compile)):
        model, call, specs, graph = segmenters.make(case)
        found = _counted(model, specs[0]) if forward and not case.get("memory") else {}
        if refused := memory.too_large(graph()):
            return {**found, "refused": refused}
        inputs = [_random(spec) for spec in specs]
        return found | _figure(case, lambda: call(*inputs))


def _measure_part(case):
    from isa_tf import cost, runtime

    with runtime.memory_checks(case["pass"] == "backward" and case["part"] == "whole"):
        model, call, given, graph = detector.make(case)
        found = {}
        if case["pass"] == "forward" and not case.get("memory"):
            layer = detector.layer_of(case["part"], model)
            counted = cost.graph_flops(detector.graph_of(case["part"], model, given[0]))
            found = {"parameters": _parameters(layer), "gflops": counted.total / 1e9}
        if refused := memory.too_large(graph()):
            return {**found, "refused": refused}
        return found | _figure(case, lambda: call(*given))


def _figure(case, call):
    """The time or the memory of a call, by its name in a row."""
    timing.wait(call())  # what compiling takes is not the call's
    if case.get("memory"):
        return {f"{case['pass']}_mb": memory.peak(call)}
    return {f"{case['pass']}_ms": timing.latency(lambda: timing.wait(call()), case["seconds"])}


def _counted(layer, spec):
    """Parameters and operations of a layer or model for one map or image, for its row."""
    from isa_tf.cost import flops_by_kind

    flops = flops_by_kind(layer, (1, *spec.shape[1:]))
    return {
        "parameters": _parameters(layer),
        "gflops": flops.total / 1e9,
        "projections": flops.convolutions / 1e9,
        "products": flops.products / 1e9,
    }


def _parameters(layer):
    """Millions of them."""
    return sum(math.prod(v.shape) for v in layer.trainable_weights) / 1e6


def _measure_in_turn(case):
    """`measure` of several context modules that are called in turn: a dict for each one's row."""
    from isa_tf import runtime

    rows, calls, inputs = [{} for _ in case["cases"]], {}, {}
    for number, one in enumerate(case["cases"]):
        layer, function, specs = contexts.make(one)
        if function is None:
            continue
        if one["pass"] == "forward":
            rows[number] |= _counted(layer, specs[0])
        with runtime.memory_checks(False):
            concrete = function.get_concrete_function(*specs)
        if refused := memory.too_large(concrete.graph):
            rows[number]["refused"] = refused
            continue
        given = [inputs.setdefault(tuple(spec.shape), _random(spec)) for spec in specs]
        calls[number] = functools.partial(concrete, *given)
        timing.wait(calls[number]())
    key = f"{case['cases'][0]['pass']}_ms"
    for number, (times, busy) in timing.latencies(calls, case["rounds"]).items():
        rows[number] |= {key: statistics.median(times), f"{key}_rounds": times}
        rows[number][f"{key}_busy"] = busy
    return rows


def _random(spec):
    import tensorflow as tf

    if spec.dtype == tf.uint8:  # labels
        return tf.zeros(spec.shape, tf.uint8)
    return tf.random.stateless_normal(spec.shape, (0, 1), dtype=spec.dtype)


if __name__ == "__main__":
    processes.tell(measure(json.loads(sys.argv[2])))
