import json
import re
import signal

import numpy as np
import pytest
import tensorflow as tf
from processes import finish, start

from isa_tf.training import (
    clusters,
    logical_devices,
    make_strategy,
    num_workers,
    strategy,
    worker_index,
)

CLUSTER = {"worker": ["a:1", "b:2"]}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No cluster but what the test names."""
    for name in ("TF_CONFIG", "TPU_NAME", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def chosen(monkeypatch):
    """Makes `make_strategy` say what it would make, which needs other machines."""
    monkeypatch.setattr(strategy, "_multi_worker", lambda *cluster: ("multi_worker", cluster))
    monkeypatch.setattr(strategy, "_tpu_strategy", lambda: "tpu")
    monkeypatch.setattr(strategy, "_mirrored", lambda: "mirrored")
    return make_strategy


def tf_config(monkeypatch, cluster, kind="worker", index=0):
    config = {"cluster": cluster, "task": {"type": kind, "index": index}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))


def srun(monkeypatch, rank, node, local, **variables):
    """The variables of a task of srun."""
    variables = {
        "JOB_ID": 41_003,
        "NTASKS": 5,
        "STEP_NUM_TASKS": 5,
        "STEP_NODELIST": "node[08-10]",
        "STEP_TASKS_PER_NODE": "2(x2),1",
        "PROCID": rank,
        "NODEID": node,
        "LOCALID": local,
        **variables,
    }
    monkeypatch.delenv("SLURM_DISTRIBUTION", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))


# === What is chosen ===
def test_one_process_of_one_device():
    assert make_strategy() is tf.distribute.get_strategy()
    assert make_strategy("one_device") is tf.distribute.get_strategy()


def test_mirrored_takes_the_logical_cpus():
    mirrored = make_strategy("mirrored")
    assert mirrored.num_replicas_in_sync == len(tf.config.list_logical_devices("CPU")) == 2
    assert num_workers(mirrored) == 1 and worker_index(mirrored) == 0


def test_a_second_model_of_a_process_sums_too():
    """By TensorFlow's own sums, which GPUs take: see `_mirrored_over`."""
    assert make_strategy("mirrored") is make_strategy("mirrored")
    for size in (9, 1):
        mirrored = strategy._mirrored_over(("CPU:0", "CPU:1"), None)

        @tf.function
        def run(size=size, mirrored=mirrored):
            def add():
                context = tf.distribute.get_replica_context()
                return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.ones(size))

            return mirrored.run(add)

        for found in mirrored.experimental_local_results(run()):
            np.testing.assert_array_equal(found, np.full(size, 2.0))


def test_several_gpus_are_mirrored(chosen, monkeypatch):
    listed = tf.config.list_physical_devices
    for count, name in ((1, tf.distribute.get_strategy()), (2, "mirrored")):
        monkeypatch.setattr(
            tf.config,
            "list_physical_devices",
            lambda kind=None, count=count: ["gpu"] * count if kind == "GPU" else listed(kind),
        )
        assert chosen() == name


def test_tpu_of_the_environment(chosen, monkeypatch):
    monkeypatch.setenv("TPU_NAME", "mine")
    assert chosen() == "tpu"
    assert chosen("one_device") is tf.distribute.get_strategy()


def test_no_tpu():
    with pytest.raises(ValueError, match="TPU_NAME"):
        make_strategy("tpu")


def test_tf_config_of_several_workers(chosen, monkeypatch):
    tf_config(monkeypatch, CLUSTER, index=1)
    assert chosen() == chosen("multi_worker") == ("multi_worker", (CLUSTER, "worker", 1))
    # What is asked for is what there is.
    assert chosen("mirrored") == "mirrored"


def test_tf_config_goes_before_slurm(chosen, monkeypatch):
    srun(monkeypatch, 0, 0, 0)
    tf_config(monkeypatch, CLUSTER)
    assert chosen()[1][0] == CLUSTER


def test_tf_config_of_one_worker_is_one_process(chosen, monkeypatch):
    tf_config(monkeypatch, {"worker": ["a:1"]})
    assert chosen() is tf.distribute.get_strategy()
    with pytest.raises(ValueError, match="several workers.*TF_CONFIG should look like"):
        chosen("multi_worker")


def test_unknown_names_the_nearest():
    with pytest.raises(ValueError, match='did you mean "mirrored"'):
        make_strategy("miror")


def test_multi_worker_without_a_cluster():
    with pytest.raises(ValueError, match="TF_CONFIG should look like.*srun"):
        make_strategy("multi_worker")


# === TF_CONFIG ===
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{worker", "is not JSON"),
        ("[]", "is not an object"),
        ('{"task": {"type": "worker", "index": 0}}', 'no "cluster"'),
        ('{"cluster": {"worker": ["a:1", "b:1"]}}', 'no "task"'),
        ('{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker"}}', 'no "task" with'),
        (
            '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "chief", "index": 0}}',
            "'chief', which is not in",
        ),
        (
            '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}',
            r"index 2, outside of 0\.\.1",
        ),
        (
            '{"cluster": {"worker": ["a", "b:1"]}, "task": {"type": "worker", "index": 0}}',
            "'a', which is not host:port",
        ),
        (
            '{"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": 0}}',
            "no list of addresses",
        ),
        (
            '{"cluster": {"ps": ["a:1"], "worker": ["b:1"]}, "task": {"type": "ps", "index": 0}}',
            "a job 'ps'",
        ),
    ],
)
def test_tf_config_that_is_none(monkeypatch, text, why):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match=f"^TF_CONFIG .*{why}.*TF_CONFIG should look like"):
        make_strategy()


def test_a_chief_comes_before_the_workers(chosen, monkeypatch):
    cluster = {"chief": ["c:1"], "worker": ["a:1", "b:1"]}
    tf_config(monkeypatch, cluster, "worker", "1")
    assert chosen()[1] == (cluster, "worker", 1)


# === SLURM ===
@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("node[01-03,07],gpu5", "node01 node02 node03 node07 gpu5"),
        ("gpu5", "gpu5"),
        ("b,a", "b a"),
        ("a-[9-10]-x,c", "a-9-x a-10-x c"),
        ("r[1-2]n[3,5]", "r1n3 r1n5 r2n3 r2n5"),
        ("[1-2]", "1 2"),
        ("node-1.example.org", "node-1.example.org"),
    ],
)
def test_hosts(text, hosts):
    assert clusters.expand_hosts(text) == hosts.split()


@pytest.mark.parametrize("text", ["", ",", "a,", ",a", "a,,b", "a[1-", "a[]", "a]", "a[x]", "a b"])
def test_no_list_of_hosts(text):
    with pytest.raises(ValueError, match=f"list of hosts.*{re.escape(repr(text))}"):
        clusters.expand_hosts(text)


@pytest.mark.parametrize(
    ("distribution", "places"),
    [
        (None, [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]),
        ("block:cyclic", [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]),
        ("cyclic", [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)]),
    ],
)
def test_tasks_of_slurm(chosen, monkeypatch, distribution, places):
    for rank, place in enumerate(places):
        srun(monkeypatch, rank, *place)
        if distribution:
            monkeypatch.setenv("SLURM_DISTRIBUTION", distribution)
        name, (spec, kind, index) = chosen()
        addresses = [f"node{8 + node:02}:{12_060 + local}" for node, local in places]
        assert (name, spec, kind, index) == ("multi_worker", {"worker": addresses}, "worker", rank)


def test_one_task_of_slurm_is_one_process(chosen, monkeypatch):
    srun(monkeypatch, 0, 0, 0, STEP_NUM_TASKS=1, STEP_NODELIST="a", STEP_TASKS_PER_NODE="1")
    assert chosen() is tf.distribute.get_strategy()


def test_a_batch_script_is_one_process(chosen, monkeypatch):
    srun(monkeypatch, 0, 0, 0)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    assert chosen() is tf.distribute.get_strategy()


@pytest.mark.parametrize(
    ("variables", "match"),
    [
        ({"STEP_TASKS_PER_NODE": "2(x3)"}, "SLURM_STEP_TASKS_PER_NODE=2.* does not fit"),
        ({"STEP_TASKS_PER_NODE": "two"}, "SLURM_STEP_TASKS_PER_NODE should be"),
        ({"PROCID": "first"}, "SLURM_PROCID should be a number, got 'first'"),
        ({"PROCID": "3"}, "SLURM_PROCID=3 .*TF_CONFIG"),
    ],
)
def test_variables_of_slurm_that_contradict(monkeypatch, variables, match):
    srun(monkeypatch, 0, 0, 0, **variables)
    with pytest.raises(ValueError, match=match):
        make_strategy()


def test_a_variable_of_slurm_that_is_not_there(monkeypatch):
    srun(monkeypatch, 0, 0, 0)
    monkeypatch.delenv("SLURM_STEP_NODELIST")
    with pytest.raises(ValueError, match="SLURM_STEP_NODELIST is not"):
        make_strategy()


# === Before TensorFlow begins ===
def test_too_late_for_several_processes(monkeypatch):
    tf.zeros(())
    tf_config(monkeypatch, {"worker": ["127.0.0.1:1", "127.0.0.1:2"]})
    with pytest.raises(RuntimeError, match="before TensorFlow's first tensor"):
        make_strategy()


def test_too_late_for_logical_devices():
    tf.zeros(())
    with pytest.raises(RuntimeError, match="before TensorFlow's first tensor"):
        logical_devices(3)


@pytest.mark.parametrize("count", [0, -1, 2.0, True, "2"])
def test_number_of_logical_devices(count):
    with pytest.raises(ValueError, match="above 0"):
        logical_devices(count)


# === Death ===
@pytest.mark.parametrize("name", ["SIGKILL", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_where_one_dies_the_other_ends(name):
    (code, _, errors), (dead, _, _) = finish(start(2, 1, DIES="1", SIGNAL=name), timeout=90)
    assert dead == -signal.Signals[name]
    assert code == 1
    assert "UnavailableError" in errors or "DeadlineExceededError" in errors
