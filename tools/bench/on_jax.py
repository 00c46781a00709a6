"""JAX's side of `tools.bench.device`: a process of packed programs, without TensorFlow."""

import functools
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tools.bench import jobs, packed, processes
from tools.stablehlo import load

WORKERS = 6  # programs that are compiled at once; on a GPU they wait for it to try out kernels


class Case:
    """A case's program, compiled, and the arrays that it is called on.

    Args:
        folder: `Path` of the packed programs.
        about: dict of the case.
    """

    def __init__(self, folder, about):
        self.about = about
        program = load.Program(folder / about["program"])
        kinds = [(tuple(kind["shape"]), kind["dtype"]) for kind in program.inputs]
        self.arrays = [
            packed.draw(how, *kind, number)
            for number, (how, kind) in enumerate(zip(about["draw"], kinds, strict=True))
        ]
        donated = ()
        if about["what"] == "train":
            donated = tuple(range(len(self.arrays) - 2))  # the state makes place for the next
        kinds = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in self.arrays]
        self.compiled = jax.jit(program, donate_argnums=donated).lower(*kinds).compile()

    def memory_mb(self):
        """Temporary arrays and outputs, without those that lie in an input's place; `None`."""
        told = self.compiled.memory_analysis()
        if told is None:
            return None
        held = told.temp_size_in_bytes + told.output_size_in_bytes - told.alias_size_in_bytes
        return held / 2**20

    def time(self, seconds):
        """What `jobs.Jobs` is asked for: a dict of figures."""
        arrays = jax.device_put(self.arrays)
        outputs = jax.block_until_ready(self.compiled(*arrays))
        train = self.about["what"] == "train"
        found = [_samples(output) for output in (outputs[-1:] if train else outputs)]
        errors = packed.errors(found, self.about["expected"])
        facts = {"error": float(np.median(errors)), "worst_error": max(errors)}
        state = [*outputs[:-1], *arrays[-2:]]
        del outputs

        def call():
            if not train:
                return self.compiled(*arrays)
            *state[:-2], loss = self.compiled(*state)  # a step goes on from the one before
            return loss

        facts |= jobs.times(call, jax.block_until_ready, seconds)
        if train:
            facts["losses"] = [found[0][0], float(call())]
        return {**facts, "memory_mb": self.memory_mb()}


def _samples(output):
    flat = np.asarray(output).reshape(-1)  # on the device it were a program for each shape
    return flat[packed.positions(flat.size)].astype("float32").tolist()


class Products:
    """Products of two square matrices, as JAX does them if it is told nothing.

    To be made before the cases are: behind them they would wait for all that is late.
    """

    def __init__(self, size):
        self.size, self._made = size, {}
        for dtype in ("float32", "bfloat16"):
            kinds = [jax.ShapeDtypeStruct((size, size), dtype)] * 2
            self._made[dtype] = jax.jit(jnp.matmul).lower(*kinds).compile()

    def rate(self, dtype):
        """TFLOP/s."""
        values = np.random.default_rng(0).standard_normal((2, self.size, self.size), np.float32)
        a, b = jax.device_put(list(values.astype(jnp.dtype(dtype))))
        product = self._made[dtype]
        return jobs.rate(lambda: product(a, b), jax.block_until_ready, self.size)


def main(case):
    jax.config.update("jax_enable_x64", True)  # the counter of Keras's optimizers
    folder, cases = Path(case["folder"]), json.loads(Path(case["cases"]).read_text())
    products = Products(case["matmul"])
    pool = ThreadPoolExecutor(min(WORKERS, os.cpu_count()))
    makers = [functools.partial(Case, folder, about) for about in cases]
    made = jobs.Jobs(pool, makers)
    device = jax.devices()[0]
    facts = {
        "device": f"{device.device_kind} ({device.platform})",
        "versions": {"jax": jax.__version__, "jaxlib": version("jaxlib")},
    }
    processes.serve({**made.answers(), "facts": lambda: facts, "matmul": products.rate})


if __name__ == "__main__":
    main(json.loads(sys.argv[2]))
