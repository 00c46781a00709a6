"""What this machine can do, and affinities that do not fit are refused before they are taken."""

import re

import pytest
import tensorflow as tf

from isa_tf import runtime
from isa_tf.layers import InterlacedSparseAttention, NonLocal2D, SelfAttention2D

TOO_LARGE = "takes 1.1 GB, and its softmax two of that size; 2.0 GB are free"


@pytest.fixture
def system(monkeypatch, tmp_path):
    """Sets what a made-up system's files state: function of a dict from names to texts."""
    if runtime.has_gpu():
        pytest.skip("with a GPU, TensorFlow refuses by itself")
    groups = tmp_path / "cgroup"
    monkeypatch.setattr(runtime, "_MEMINFO", str(tmp_path / "meminfo"))
    monkeypatch.setattr(runtime, "_CGROUPS", groups)
    folders = [("v2", groups / "mine"), ("v2", groups), ("v1", groups / "memory")]
    monkeypatch.setattr(runtime, "_cgroups", lambda: folders)

    def state(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    return state


def meminfo(available):
    return f"MemTotal:       99 kB\nMemFree:        5 kB\nMemAvailable:   {available} kB\nX: 1 kB\n"


@pytest.fixture
def little_memory(system):
    system({"meminfo": meminfo(2_000_000_000 // 1024 + 1)})


# === Memory that is free ===


def test_of_this_system():
    free = runtime.free_memory()
    if free is None:
        pytest.skip("this system does not tell")
    assert 2**20 < free < 2**50
    for version, folder in runtime._cgroups():
        assert version in ("v1", "v2") and str(folder).startswith("/sys/fs/cgroup")


def test_of_a_system_that_does_not_tell(system):
    assert runtime.free_memory() is None
    system({"meminfo": "MemTotal: 99 kB\nMemFree: 50 kB\n"})  # before Linux 3.14
    assert runtime.free_memory() is None
    with_any_size = runtime.refuse_too_large((1, 1, 10**7, 10**7), x := tf.zeros(1))
    assert with_any_size is x


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 4_096_000),
        ({"cgroup/mine/memory.max": "max\n", "cgroup/mine/memory.current": "7\n"}, 4_096_000),
        # 3,000,000 less 2,500,000, of which 1,000,000 only caches files.
        (
            {
                "cgroup/mine/memory.max": "3000000\n",
                "cgroup/mine/memory.current": "2500000\n",
                "cgroup/mine/memory.stat": "anon 7\ninactive_file 1000000\nactive_file 9\n",
            },
            1_500_000,
        ),
        # The group above has the tighter limit, and no statistics.
        (
            {
                "cgroup/mine/memory.max": "3000000",
                "cgroup/mine/memory.current": "0",
                "cgroup/memory.max": "500000",
                "cgroup/memory.current": "600000",
            },
            0,
        ),
        (
            {
                "cgroup/memory/memory.limit_in_bytes": "2000000\n",
                "cgroup/memory/memory.usage_in_bytes": "500000\n",
                "cgroup/memory/memory.stat": "inactive_file 9\ntotal_inactive_file 100000\n",
            },
            1_600_000,
        ),
        (
            {
                "cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",  # no limit
                "cgroup/memory/memory.usage_in_bytes": "500000\n",
            },
            4_096_000,
        ),
    ],
)
def test_the_limits_of_control_groups_count(system, files, free):
    system({"meminfo": meminfo(4000), **files})
    assert runtime.free_memory() == free
    assert int(tf.function(runtime._free_memory)()) == free


# === Affinities ===


@pytest.mark.parametrize("layer", [SelfAttention2D, NonLocal2D])
def test_dense_attention_too_large(little_memory, layer):
    layer = layer(key_filters=2)
    with pytest.raises(ValueError, match=re.escape(f"1x1x16384x16384 float32, {TOO_LARGE}")):
        layer(tf.zeros((1, 128, 128, 2)))
    assert layer(tf.zeros((1, 16, 16, 2))).shape == (1, 16, 16, 2)  # and nothing is lost


@pytest.mark.parametrize("layer", [SelfAttention2D, NonLocal2D])
@pytest.mark.parametrize("shape", [(None, 128, 128, 2), (1, 128, 128, 2), (None, None, None, 2)])
def test_a_graph_decides_when_it_runs(system, layer, shape):
    """Not when it is traced: under pressure then, it would refuse for ever."""
    layer = layer(key_filters=2)
    layer.build((None, None, None, 2))
    system({"meminfo": meminfo(1)})
    function = tf.function(lambda x: tf.shape(layer(x)), input_signature=[tf.TensorSpec(shape)])
    traced, image = function.get_concrete_function(), tf.zeros((1, 128, 128, 2))
    system({"meminfo": meminfo(2_000_000_000 // 1024 + 1)})
    with pytest.raises(tf.errors.InvalidArgumentError, match=TOO_LARGE):
        traced(image)
    system({"meminfo": meminfo(10**7)})
    assert traced(image).numpy().tolist() == [1, 128, 128, 2]


def test_an_unknown_batch_counts(system):
    """Of one image the affinity is small, of eight it is not."""
    layer = SelfAttention2D(key_filters=2)
    layer.build((None, None, None, 2))
    function = tf.function(lambda x: layer(x), input_signature=[tf.TensorSpec((None, 64, 64, 2))])
    system({"meminfo": meminfo(500_000)})
    assert function(tf.zeros((1, 64, 64, 2))).shape == (1, 64, 64, 2)
    with pytest.raises(tf.errors.InvalidArgumentError, match="8x1x4096x4096 float32, takes 0.5"):
        function(tf.zeros((8, 64, 64, 2)))


@pytest.mark.parametrize(
    ("shape", "checked"),
    [((None, 12, 12, 2), False), ((None, 64, 64, 2), True), ((None, None, None, 2), True)],
)
def test_maps_that_are_small_in_any_batch_have_no_check(shape, checked):
    """A thousand of them are."""
    layer = SelfAttention2D(key_filters=2)
    layer.build((None, None, None, 2))
    graph = tf.function(lambda x: layer(x)).get_concrete_function(tf.TensorSpec(shape)).graph
    assert any(op.type == "If" for op in graph.get_operations()) == checked


def test_without_checks_xla_compiles_the_whole(little_memory):
    layer = SelfAttention2D(key_filters=2)
    layer.build((None, None, None, 2))
    function = tf.function(lambda x: layer(x), jit_compile=True)
    with runtime.memory_checks(False):
        graph = function.get_concrete_function(tf.TensorSpec((1, 128, 128, 2))).graph
    assert not any(op.type == "ReadFile" for op in graph.get_operations())


def test_interlaced_attention_of_the_same_map_fits(little_memory):
    layer = InterlacedSparseAttention(partition=8, key_filters=2)
    assert layer(tf.zeros((1, 128, 128, 2))).shape[1:3] == (128, 128)


# === Precision ===


@pytest.mark.parametrize(
    ("dtype", "half_seconds", "expected"),
    [
        ("bfloat16", 0.5, "bfloat16"),
        ("mixed_bfloat16", 0.5, "bfloat16"),
        ("bfloat16", 2.0, "float32"),
        ("float16", 0.5, "float16"),
        ("float16", 2.0, "float32"),
        ("float32", 0.5, "float32"),
        ("float64", 0.5, "float32"),
    ],
)
def test_the_quicker_precision(monkeypatch, dtype, half_seconds, expected):
    seconds = {dtype.removeprefix("mixed_"): half_seconds, "float32": 1.0}
    monkeypatch.setattr(runtime, "_seconds", lambda x: seconds[x.dtype.name])
    assert runtime.product_dtype.__wrapped__(dtype) == expected


def test_it_is_timed_once(monkeypatch):
    first = runtime.product_dtype("bfloat16")
    monkeypatch.setattr(runtime, "_seconds", lambda x: pytest.fail("timed again"))
    assert runtime.product_dtype("bfloat16") == first in ("bfloat16", "float32")
