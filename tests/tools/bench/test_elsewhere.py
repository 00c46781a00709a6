"""What is packed for a GPU, and what becomes of the figures; what is timed there needs JAX."""

import copy
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tools.bench import device, elsewhere, jobs, packed, results

CASE = {"what": "module", "module": "isa:partition=2", "size": (4, 6), "batch": 1, "channels": 8}
CASE |= {"dtype": "float32", "pass": "backward"}


def test_weights_are_drawn_as_they_were_and_alike():
    rng = np.random.default_rng(0)
    kernel = rng.normal(0, 0.3, (3, 3, 16, 8)).astype("float32")
    how = packed.draw_as(kernel)
    drawn = packed.draw(how, kernel.shape, "float32", 5)
    np.testing.assert_array_equal(drawn, packed.draw(how, kernel.shape, "float32", 5))
    assert drawn.std() == pytest.approx(kernel.std(), rel=0.1)
    assert not np.array_equal(drawn, packed.draw(how, kernel.shape, "float32", 6))
    assert (packed.draw(packed.draw_as(np.ones(4)), (4,), "float32", 0) == 1).all()
    state = np.array([3, 7], "uint32")
    np.testing.assert_array_equal(packed.draw(packed.draw_as(state), (2,), "uint32", 0), state)
    assert packed.draw({"below": 19}, (64,), "uint8", 0).max() < 19


def test_a_module_is_packed_with_what_it_gives(tmp_path):
    case = elsewhere.pack(tmp_path, CASE, "program00")
    packed.write(tmp_path, [case], {"small": True})
    ((read,), facts) = packed.read(tmp_path)
    assert facts == {"small": True} and (tmp_path / "program00.stablehlo").stat().st_size
    about = json.loads((tmp_path / "program00.json").read_text())
    assert len(read["draw"]) == len(about["inputs"])
    assert len(read["expected"]) == len(about["outputs"])  # gradients of map and weights
    assert read["custom_calls"] == [] and read["precisions"] == ["DEFAULT"]
    assert packed.errors(read["expected"], read["expected"]) == [0] * len(about["outputs"])


def test_what_is_packed_is_all_that_is_told():
    """Sizes for trying and for timing have the same cases, none of them twice."""
    for sizes in (elsewhere.FULL, elsewhere.SMALL):
        found = [json.dumps(case, sort_keys=True) for case in elsewhere.cases(sizes)]
        assert len({*found}) == len(found)
    assert len(elsewhere.cases(elsewhere.SMALL)) == len(found)


def test_what_cannot_be_made_or_timed_is_told():
    class Case:
        def time(self, seconds):
            return jobs.times(lambda: None, lambda _: None, seconds)

    def fail():
        raise MemoryError("too much\nfor it")

    with ThreadPoolExecutor(1) as pool:
        made = jobs.Jobs(pool, [Case, fail])
        pool.shutdown()
        assert made.made() == ["made", "MemoryError: too much"]
        found = made.time(0, 0.0)
        assert len(found["times"]) == jobs.LEAST and found["made_s"] >= 0
        assert made.time(1, 0.0) == {"refused": "MemoryError: too much"}


def row(module, contestant, ms, memory, one="forward", what="module", **more):
    row = {"module": module, "what": what, "pass": one, "size": "128x128", "batch": 1}
    row |= {"dtype": "float32", "contestant": contestant, "gflops": 4.0, "parameters": 1.0}
    return row | {"ms": ms, "lone_ms": ms, "memory_mb": memory} | more


RESULT = {
    "kind": results.KIND,
    "version": results.VERSION,
    "tool": "tools.bench.device",
    "what": "gpu",
    "rows": [
        row("isa", "isa_tf", 1.0, 100, error=1e-3),
        row("isa", "isa_tf", 3.0, 200, "backward"),
        row("self_attention", "isa_tf", 8.0, 1000),
        row("isa", "torch eager", 2.5, 300),
        row("isa", "torch compile", 2.0, None),
        row("isa", "isa_tf", 30.0, 3000, "step", "train"),
        row("isa", "torch compile", 40.0, 4000, "step", "train"),
        {**row("self_attention", "torch eager", 0, 0), "refused": "OutOfMemoryError: 17 GB"},
    ],
    "identity": device.IDENTITY,
    "costs": device.COSTS,
    "settings": {"precision": "TF32"},
    "command": "python -m tools.bench.device",
    "time": "2026-11-26T00:00:00+00:00",
    "machine": {"gpu": "a card", "cpu": "a CPU", "cores": 16, "instructions": []},
    "versions": {"python": "3.12.3", "isa_tf": "0.1.0"},
    "commit": "1daa18550e26c4d5",
    "dirty": None,
}


def test_figures_are_a_stored_result_and_tables(tmp_path, capsys):
    stored = copy.deepcopy(RESULT)
    for name in ("ms", "lone_ms", "memory_mb"):
        del stored["rows"][-1][name]
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(stored))
    assert (device.KIND, device.VERSION) == (results.KIND, results.VERSION)
    assert results.read(path).identity == device.IDENTITY
    device.main([f"--render={path}"])
    said = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines()]
    ours = next(line for line in cells if line[:2] == ["isa", "128x128"])
    assert {"0.125", "0.100"} <= {*ours}  # of dense attention's time and memory
    beside = next(line for line in cells if line[:4] == ["isa", "128x128", "float32", "isa_tf"])
    assert "0.50" in beside  # of the best of PyTorch's
    assert "0.75" in next(line for line in cells if line[:1] == ["train"] and "isa_tf" in line)
    assert "torch eager: OutOfMemoryError: 17 GB" in said
