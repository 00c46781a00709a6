"""The cost tool: what it counts, measures, refuses and writes."""

import csv
import sys

import numpy as np
import pytest
from absl import app

from isa_tf import runtime
from tools import benchmark
from tools.bench import contexts, costs, measure, memory, pictures, results, timing


def case(**more):
    values = {
        "what": "context",
        "module": "isa:partition=2",
        "size": [6, 8],
        "channels": 8,
        "batch": 2,
        "seconds": 0.0,
        "pass": "forward",
        "minimal_filtering": None,
    }
    return {**values, **more}


@pytest.mark.parametrize(("fuse", "is_fused"), [([], True), (["--nofuse"], False)])
def test_what_forward_is_of(run, tmp_path, monkeypatch, fuse, is_fused):
    """Without a GPU, of the copy that inference is quickest with."""
    import tensorflow as tf

    cases = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(measure, "run", lambda c: cases.append(c) or {"forward_ms": 1.0})
    status, printed = run(benchmark, "context", "--modules=isa", *fuse, f"--output={tmp_path}")
    assert status == 0 and {c["fuse"] for c in cases[:-1]} == {is_fused}
    assert ("inference.fuse" in printed) == is_fused


@pytest.mark.slow
def test_a_table_of_a_fresh_process_each(run, tmp_path, monkeypatch):
    cases = []
    fresh = measure.run
    monkeypatch.setattr(measure, "run", lambda c: cases.append(c) or fresh(c))
    arguments = ["--modules=self_attention", "--size=6x8", "--channels=8", "--seconds=0"]
    status, printed = run(benchmark, "context", *arguments, f"--output={tmp_path}")
    assert status == 0 and printed.count("| self_attention | 6x8 |") == 1
    assert [(c.get("pass", c["what"]), "memory" in c) for c in cases] == [
        ("forward", False),
        ("forward", True),
        ("backward", False),
        ("backward", True),
        ("core", False),
        ("gemm", False),
    ]
    assert {p.name for p in tmp_path.iterdir()} == {
        f"context.{e}" for e in ("csv", "json", "md", "png", "svg")
    }
    (row,) = csv.DictReader((tmp_path / "context.csv").open())
    n, c, k = 48, 8, 4
    projections = 2 * n * (2 * (c * k + k * k) + 2 * c * c) + 2 * n * 2 * c * c
    assert float(row["projections"]) * 1e9 == pytest.approx(projections)
    assert float(row["products"]) * 1e9 == pytest.approx(2 * n * n * (k + c))
    # Query, key, value, output and fusion; two numbers a channel of each normalisation.
    weights = 2 * (c * k + k * k) + 2 * c * c + 2 * c * c
    assert float(row["parameters"]) * 1e6 == pytest.approx(weights + 2 * (4 * k + 2 * c))
    assert float(row["time_ratio"]) == float(row["memory_ratio"]) == 1.0 or row["forward_mb"] == "0"
    assert min(float(row[f"{kind}_ms"]) for kind in ("forward", "backward", "core")) > 0


@pytest.mark.parametrize("arguments", ["", ":num_heads=2:position_bias=True"])
def test_the_attention_proper_is_the_layer_s(arguments):
    """With identities for projections, the module's attention and the one measured agree."""
    import tensorflow as tf

    from isa_tf import layers

    asked = case(**{"pass": "core"})
    asked["module"] += arguments
    layer, core, specs = contexts.make(asked)
    query, key, value = (tf.random.stateless_normal(s.shape, (i, 0)) for i, s in enumerate(specs))
    found = core(query, key, value)
    fused = contexts.make({**asked, "fuse": True})[1](query, key, value)
    np.testing.assert_allclose(fused, found, rtol=1e-4, atol=1e-5)
    expected = value
    for attention in layer.attentions:
        if attention.bias is not None:  # which begins at zero
            attention.bias.outer.assign(tf.random.stateless_normal((32, 2), (9, 0)))
            found = core(query, key, value)
    for attention in layer.attentions:

        class Given(type(attention)):
            """Reads its three maps side by side instead of projecting one."""

            def attend(self, x, partition, heard, training=None):
                self.query = [lambda t, training: t[..., :4]]
                self.key = [lambda t, training: t[..., 4:8]]
                self.value = lambda t: t[..., 8:]
                self.output_conv = lambda t, training: t
                return super().attend(x, partition, heard, training)

        given = Given(2, filters=8, key_filters=4, num_heads=attention.num_heads)
        given.built, given.bias, given.output_norm = True, attention.bias, None
        given.drop = lambda x, training: x
        expected = given.call(tf.concat([query, key, expected], axis=-1))
    assert isinstance(layer, layers.InterlacedSparseAttention)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "module",
    [
        "isa:partition=auto:levels=3:filters=8:key_filters=4",
        "isa:partition=2:levels=3:share_projections=True:depth=2",
    ],
)
def test_the_attention_proper_of_more_levels(module):
    """Its operations are the module's products, whether each level projects or not."""
    import tensorflow as tf

    from isa_tf.cost import flops_by_kind, graph_flops

    given = case(module=module, size=[8, 12], batch=1, **{"pass": "core"})
    layer, core, specs = contexts.make(given)
    queries, keys, values = (
        tf.random.stateless_normal(s.shape, (i, 0)) for i, s in enumerate(specs)
    )
    found = core(queries, keys, values)
    assert found.shape == (1, 8, 12, 8) and np.isfinite(found).all()
    # Every attention hands on means of the values.
    assert np.all(np.max(found, (1, 2)) <= np.max(values, (1, 2)))
    products = flops_by_kind(layer, (1, 8, 12, 8)).products
    assert graph_flops(core.get_concrete_function(*specs).graph).products == products > 0


def test_modules_called_in_turn(run, tmp_path, monkeypatch):
    """Ratios are the medians of those within a round."""
    order, calls = [], {}
    for name in ("a", "b"):
        calls[name] = lambda name=name: order.append(name) or []
    found = timing.latencies(calls, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    for times, busy in found.values():
        assert len(times) == len(busy) == 3 and min(times) > 0 and min(busy) >= 0

    rounds = {"a": ([2.0, 20.0, 2.0], [3.0, 3.0, 3.0]), "b": ([1.0, 12.0, 1.5], [1.5, 3.0, 1.2])}
    found = [
        {"name": name, "size": "4x4", "positions": 16, "core_ms": 2.0}
        | {"core_ms_rounds": times, "core_ms_busy": busy}
        for name, (times, busy) in rounds.items()
    ]
    costs.add_ratios(found, "a", None)
    assert found[0]["core_ratio"] == 1 and "note" not in found[0]
    note = "core 0.500 to 0.750 of baseline, 0.500 of its processor time"
    assert found[1]["core_ratio"] == 0.6 and found[1]["note"] == note

    monkeypatch.setattr(measure, "run", measure.measure)
    monkeypatch.setattr(timing, "GEMM", 32)
    modules = "isa:partition=2,isa:partition=2:share_projections=True,none"
    arguments = [f"--modules={modules}", "--baseline=isa:partition=2", "--size=6x8"]
    status, printed = run(
        benchmark, "context", *arguments, "--channels=8", "--rounds=2", f"--output={tmp_path}"
    )
    assert status == 0 and "of baseline" in printed
    published, shared, none = csv.DictReader((tmp_path / "context.csv").open())
    assert float(published["time_ratio"]) == float(published["backward_ratio"]) == 1
    assert min(float(shared[f"{of}_ratio"]) for of in ("time", "backward", "core")) > 0
    assert float(shared["parameters"]) < float(published["parameters"])
    assert "forward" in shared["note"] and "core" in shared["note"] and not published["note"]
    assert not none["forward_ms"] and not none["core_ms"]
    assert (tmp_path / "context.png").stat().st_size > 5000
    stored = results.read(tmp_path / "context.json")
    assert [row["name"] for row in stored.rows] == modules.split(",")
    assert len(stored.rows[0]["forward_ms_rounds"]) == 2
    assert stored.settings == {"minimal_filtering": 256, "fused": True, "channels": 8}
    assert stored.machine["matmul_gflops"] > 0
    assert run(benchmark, "compare", str(tmp_path), str(tmp_path))[0] == 0


def test_without_matplotlib_there_is_no_picture_alone(run, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "run", lambda c: {"forward_ms": 2.0, "gflops": 1.0})
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    arguments = ["--modules=isa", "--size=6x8", "--notrain", f"--output={tmp_path}"]
    status, printed = run(benchmark, "context", *arguments)
    assert status == 0 and "no picture: matplotlib is not installed" in printed
    assert {p.name for p in tmp_path.iterdir()} == {f"context.{e}" for e in ("csv", "json", "md")}


def test_a_refusal_in_turn_is_told(monkeypatch):
    monkeypatch.setattr(runtime, "free_memory", lambda: 10**7)
    cases = [case(module=module, size=[64, 64]) for module in ("self_attention", "isa")]
    dense, isa = measure.measure({"what": "turns", "cases": cases, "rounds": 1})["rows"]
    assert "4096x4096 float32" in dense["refused"] and "forward_ms" not in dense
    assert isa["forward_ms"] > 0 and "refused" not in isa


def test_modules_without_attention_have_no_core():
    assert measure.measure(case(module="none")) == {}


def test_a_model_and_its_training_step():
    shared = {"backbone": "tiny", "output_stride": 4, "num_classes": 3, "dtype": "float32"}
    model = case(what="model", size=[32, 32], jit_compile=False, **shared)
    forward = measure.measure(model)
    assert forward["gflops"] > forward["projections"] > 0 and forward["forward_ms"] > 0
    step = measure.measure({**model, "pass": "backward"})
    assert step["backward_ms"] > 0 and "gflops" not in step


def test_peak_memory_sees_what_a_call_lets_go_of():
    def call():
        np.ones(50_000_000 // 8).sum()  # 50 MB, freed again
        return []

    found = memory.peak(call)
    if found is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert 40 < found < 80


@pytest.mark.some(1)
@pytest.mark.parametrize("onednn", ["0", "1"])
def test_memory_is_that_of_the_call_whatever_allocates_it(monkeypatch, onednn):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", onednn)
    found = measure.run(case(module="self_attention", size=[64, 64], memory=True))
    if "forward_mb" not in found:
        pytest.skip("this system does not tell a process's peak memory")
    affinity = 2 * 4096**2 * 4 / 2**20  # of two maps, and a softmax reads one and makes one
    assert affinity < found["forward_mb"] < 3 * affinity


def test_what_does_not_fit_is_refused_before_it_is_allocated(monkeypatch):
    monkeypatch.setattr(runtime, "free_memory", lambda: 10**9)
    found = measure.measure(case(module="self_attention", size=[256, 256], batch=1))
    assert "65536x65536 float32, takes 17.2 GB" in found["refused"]
    assert "1.0 GB are free" in found["refused"] and "forward_ms" not in found
    assert found["products"] == pytest.approx(2 * 65536**2 * 12 / 1e9)


def rows():
    return [
        {"name": name, "size": f"{n}x{n}", "positions": n * n, "gflops": 3.0, **figures}
        for n in (4, 8, 16)
        for name, figures in (
            ("self_attention", {"forward_ms": n**4 / 2.0, "forward_mb": 8.0 * n}),
            ("isa", {"forward_ms": n**3 / 4.0, "forward_mb": 2.0 * n, "core_ms": n**2}),
            ("large", {"note": "refused"}),
        )
    ]


def test_ratios_and_growth():
    found = rows()
    costs.add_ratios(found, "self_attention", gemm=1000.0)
    isa = [row for row in found if row["name"] == "isa"]
    assert [row["time_ratio"] for row in isa] == [1 / (2 * n) for n in (4, 8, 16)]
    assert [row["memory_ratio"] for row in isa] == [0.25] * 3
    assert isa[0]["rate"] == pytest.approx(3.0 / 0.016 / 1000)
    exponents = costs.fit_exponents(found)
    assert exponents["self_attention", "forward_ms"] == pytest.approx(2.0)
    assert exponents["isa", "forward_ms"] == pytest.approx(1.5)
    assert exponents["isa", "core_ms"] == pytest.approx(1.0)
    assert not any(name == "large" for name, _ in exponents)
    text = costs.report(found, exponents, fused=True)
    assert "| isa | 1.50 | 1.00 |" in text and "| large | 4x4 |" in text
    assert "Forward is that of `isa_tf.inference.fuse(...)`" in text


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("several", [True, False])
def test_pictures(tmp_path, several, memory):
    shown = rows() if several else rows()[:3]
    if not memory:
        shown = [{k: v for k, v in row.items() if k != "forward_mb"} for row in shown]
    pictures.draw(shown, tmp_path / "picture")
    assert (tmp_path / "picture.png").stat().st_size > 5000
    assert b"<svg" in (tmp_path / "picture.svg").read_bytes()[:2000]


def test_no_picture_of_nothing(tmp_path):
    pictures.draw([{"name": "large", "size": "4x4", "note": "refused"}], tmp_path / "picture")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "What is to be measured"),
        (["layers"], "What is to be measured"),
        (["context", "--size=0x8"], "A size is HEIGHTxWIDTH"),
        (["context", "--modules=isaa"], "unknown context module 'isaa'.*did you mean"),
        (["context", "--modules=isa:parts=3"], "isa:parts=3: .*parts"),
        (["context", "--modules=isa:4"], "an argument is NAME=VALUE, not '4'"),
        (["context", "--modules=isa", "--baseline=ias"], "--baseline: unknown row 'ias'.*\"isa\""),
        (["model", "--baseline=isa"], r"--baseline: unknown row 'isa'.*resnet50_v1c\+isa float32"),
        (["detector", "--baseline=neck"], "--baseline: unknown row 'neck'.*backbone.*isa"),
        (["model", "--jit_compile=maybe"], "--jit_compile is no, yes or both, not maybe"),
    ],
)
def test_wrong_arguments(run, arguments, message):
    with pytest.raises(app.UsageError, match=message):
        run(benchmark, *arguments)


def part(name, kind="forward", **more):
    values = {"what": "detector", "backbone": "resnet18", "part": name, "module": "none"}
    return case(**{**values, "size": [64, 96], "pass": kind, "fuse": True, **more})


@pytest.mark.slow
def test_parts_of_a_detector():
    found = {name: measure.measure(part(name)) for name in ("pyramid", "proposals", "mask_head")}
    assert all(row["forward_ms"] > 0 for row in found.values())
    assert found["proposals"]["gflops"] == found["proposals"]["parameters"] == 0
    # 1x1 from 64 .. 512 channels and 3x3 of 256, at strides 4 .. 32.
    widths = {16 * 24: 64, 8 * 12: 128, 4 * 6: 256, 2 * 3: 512}
    flops = sum(2 * n * 256 * (c + 9 * 256) for n, c in widths.items())
    assert found["pyramid"]["gflops"] == pytest.approx(flops / 1e9)
    rois = 100 * 14 * 14
    flops = 2 * rois * 256 * (4 * 9 * 256 + 4 * 256) + 2 * 4 * rois * 256 * 80
    assert found["mask_head"]["gflops"] == pytest.approx(flops / 1e9)


def test_a_part_learns():
    found = measure.measure(part("rpn_head", "backward"))
    assert found.keys() == {"backward_ms"} and found["backward_ms"] > 0


@pytest.mark.slow
def test_a_context_in_a_detectors_backbone():
    plain, more = (
        measure.measure(part("backbone", module=name)) for name in ("none", "isa:partition=2")
    )
    assert more["parameters"] > plain["parameters"] and more["gflops"] > plain["gflops"]


def test_what_moving_bytes_would_take(run, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "run", lambda c: {"forward_ms": 2.0, "gflops": 0.0})
    monkeypatch.setattr(timing, "copy_rate", lambda: 10.0)
    arguments = ["--modules=box_align,box_head", "--contexts=isa", "--size=64x96", "--notrain"]
    status, printed = run(benchmark, "detector", *arguments, f"--output={tmp_path}")
    rows = {row["name"]: row for row in csv.DictReader((tmp_path / "detector.csv").open())}
    assert status == 0 and list(rows) == ["box_align", "box_head", "backbone+isa"]
    moved = 4 * 256 * (16 * 24 + 8 * 12 + 4 * 6 + 2 * 3 + 1000 * 49)
    assert float(rows["box_align"]["bound_ratio"]) == pytest.approx(2.0 / (moved / 1e10 * 1e3))
    assert rows["box_head"]["bound_ratio"] == ""
    with pytest.raises(app.UsageError, match="the parts of a detector are backbone, pyramid"):
        run(benchmark, "detector", "--modules=neck", f"--output={tmp_path}")
