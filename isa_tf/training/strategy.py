"""Which devices a run trains on: `tf.distribute` strategies by name, and talk between workers."""

import functools
import hashlib
import json
import os
import re
import signal
import threading
from typing import Any

import numpy as np
import tensorflow as tf

from isa_tf.compat import collective_extended
from isa_tf.names import unknown

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")

_GATHERED_WORDS = 2**20  # of 8 bytes, of each worker at a time

_TF_CONFIG = (
    'TF_CONFIG should look like {"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
    '"task": {"type": "worker", "index": 0}}'
)


def make_strategy(name: str = "auto") -> tf.distribute.Strategy:
    """A `tf.distribute` strategy by name.

    It must be made before TensorFlow does anything: before the first tensor, variable or
    `tf.data.Dataset`, and before `tf.config.list_logical_devices`. Importing this package,
    `keras.utils.set_random_seed`, a global dtype policy, `isa_tf.data.create`,
    `tf.config.list_physical_devices` and `logical_devices` may come before it.

    Several processes ("multi_worker") find one another by the environment variable TF_CONFIG,
    or, without it, by what SLURM's `srun` tells its tasks. All processes run the same program, with
    the same arguments. Those on one machine should each see GPUs of their own
    (CUDA_VISIBLE_DEVICES, or `srun --gpus-per-task`). Where one of them dies, the others get
    `tf.errors.UnavailableError` or `tf.errors.DeadlineExceededError` in what they do together next,
    at once where the process is gone and after ten seconds where its machine is. A strategy cannot
    be mended: whoever started the processes starts all of them again. Until all have come, those
    that are there wait without limit, and only SIGKILL ends them.

    Args:
        name: str, one of
            "auto": "multi_worker" where TF_CONFIG or SLURM name more than one process, else "tpu"
            where there is one, else "mirrored" where there are several GPUs, else "one_device".
            "one_device": no strategy, on the first GPU or the CPU.
            "mirrored": a replica on each GPU or, without any, on each logical CPU.
            "multi_worker": the same in several processes.
            "tpu": the TPU of this machine, or the one that TPU_NAME names.
            Defaults to "auto".

    Returns:
        `tf.distribute.Strategy`.

    Raises:
        ValueError: for an unknown name, "multi_worker" without a cluster of several workers, a
            TF_CONFIG that is none, or variables of SLURM that contradict one another.
        RuntimeError: for several processes where TensorFlow has begun already.

    Example:

    >>> make_strategy("one_device").num_replicas_in_sync
    1
    """
    if name not in STRATEGIES:
        raise ValueError(unknown("strategy", name, STRATEGIES))
    if name in ("auto", "multi_worker"):
        cluster = _cluster()
        if cluster is not None:
            return _multi_worker(*cluster)
        if name == "multi_worker":
            raise ValueError(
                f"multi_worker needs a cluster of several workers: {_TF_CONFIG}; or start the "
                f"processes by SLURM's srun"
            )
    if name == "tpu" or (name == "auto" and _tpu() is not None):
        return _tpu_strategy()
    if name == "mirrored" or (name == "auto" and len(tf.config.list_physical_devices("GPU")) > 1):
        return _mirrored()
    return tf.distribute.get_strategy()


def logical_devices(count: int) -> None:
    """Splits this machine's CPU into logical devices, to try strategies without GPUs.

    Args:
        count: int, above 0.

    Raises:
        ValueError: for a count that is none.
        RuntimeError: where TensorFlow has begun already, see `make_strategy`.

    Example:

    >>> logical_devices(0)
    Traceback (most recent call last):
    ValueError: the number of logical devices must be an int above 0, got 0
    """
    if type(count) is not int or count < 1:
        raise ValueError(f"the number of logical devices must be an int above 0, got {count!r}")
    cpu = tf.config.list_physical_devices("CPU")[0]
    devices = [tf.config.LogicalDeviceConfiguration() for _ in range(count)]
    try:
        tf.config.set_logical_device_configuration(cpu, devices)
    except RuntimeError as error:
        raise RuntimeError(
            "logical_devices must be called before TensorFlow's first tensor, variable, dataset "
            "or list of logical devices"
        ) from error


# === Talk between workers ===
def num_workers(strategy: tf.distribute.Strategy) -> int:
    """The number of processes that share a training: int, 1 but for "multi_worker".

    Args:
        strategy: `tf.distribute.Strategy`.

    Example:

    >>> num_workers(make_strategy("one_device"))
    1
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 1
    spec = strategy.cluster_resolver.cluster_spec().as_dict()
    return sum(map(len, spec.values())) or 1


def worker_index(strategy: tf.distribute.Strategy) -> int:
    """Which of the processes this one is: int, 0 for the chief.

    Args:
        strategy: `tf.distribute.Strategy`.

    Example:

    >>> worker_index(make_strategy("one_device"))
    0
    """
    if num_workers(strategy) == 1:
        return 0
    resolver = strategy.cluster_resolver
    chiefs = resolver.cluster_spec().as_dict().get("chief", ())
    return resolver.task_id + (len(chiefs) if resolver.task_type == "worker" else 0)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes logs and files.

    Args:
        strategy: `tf.distribute.Strategy`.

    Example:

    >>> is_chief(make_strategy("one_device"))
    True
    """
    return worker_index(strategy) == 0


def over_workers(strategy: tf.distribute.Strategy, value: Any) -> Any:
    """What every worker has of an int: a list, in the order of the workers.

    All workers must call it, with an int each, and wait for one another in it.

    Args:
        strategy: `tf.distribute.Strategy`.
        value: int, of 64 bits.

    Example:

    >>> over_workers(make_strategy("one_device"), 3)
    [3]
    """
    workers = num_workers(strategy)
    if workers == 1:
        return [int(value)]
    mine = [0] * workers
    mine[worker_index(strategy)] = int(value)
    total = strategy.reduce(
        tf.distribute.ReduceOp.SUM, tf.identity(tf.constant(mine, tf.int64)), axis=None
    )
    return total.numpy().tolist()


def gather(strategy: tf.distribute.Strategy, data: Any) -> Any:
    """What every worker has of bytes: a list, in the order of the workers, the same in all of them.

    All workers must call it, and wait for one another in it.

    Args:
        strategy: `tf.distribute.Strategy`.
        data: bytes, of any length.

    Example:

    >>> gather(make_strategy("one_device"), b"found")
    [b'found']
    """
    workers = num_workers(strategy)
    if workers == 1:
        return [bytes(data)]
    lengths = over_workers(strategy, len(data))
    words = -(-max(lengths) // 8)
    mine = np.zeros(words, np.int64)
    mine.view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
    parts = []
    for start in range(0, words, _GATHERED_WORDS):
        # All others have zeros in the place of this one's, so that the sum holds each as it is.
        block = np.zeros((workers, min(_GATHERED_WORDS, words - start)), np.int64)
        block[worker_index(strategy)] = mine[start:][: block.shape[1]]
        total = strategy.reduce(
            tf.distribute.ReduceOp.SUM, tf.identity(tf.constant(block)), axis=None
        )
        parts.append(total.numpy())
    whole = np.concatenate(parts, axis=1) if parts else np.zeros((workers, 0), np.int64)
    return [whole[i].tobytes()[:length] for i, length in enumerate(lengths)]


def barrier(strategy: tf.distribute.Strategy) -> None:
    """Returns once every worker has come here.

    Args:
        strategy: `tf.distribute.Strategy`.

    Example:

    >>> barrier(make_strategy("one_device"))
    """
    over_workers(strategy, 0)


def any_of(strategy: tf.distribute.Strategy, flag: bool) -> bool:
    """Whether a flag is set for any worker. All workers must ask.

    As for a signal to end, which reaches one of them: all must end at the same step.

    Args:
        strategy: `tf.distribute.Strategy`.
        flag: bool.

    Example:

    >>> any_of(make_strategy("one_device"), False)
    False
    """
    return any(over_workers(strategy, bool(flag)))


def agree(strategy: tf.distribute.Strategy, value: Any, what: str = "value") -> Any:
    """Checks that every worker has the same value. All workers must ask, and all get the error.

    Args:
        strategy: `tf.distribute.Strategy`.
        value: int, or str.
        what: str, of what it is the value, for the error. Defaults to "value".

    Returns:
        The value.

    Raises:
        ValueError: where two of them differ, naming the workers.

    Example:

    >>> agree(make_strategy("one_device"), 500, "step to go on from")
    500
    """
    number = value
    if isinstance(value, str):
        number = int.from_bytes(hashlib.sha256(value.encode()).digest()[:7], "big")
    numbers = over_workers(strategy, number)
    if len(set(numbers)) > 1:
        listed = ", ".join(
            f"{i}: {n}" if number is value else f"{i}: {'the same' if n == number else 'another'}"
            for i, n in enumerate(numbers)
        )
        raise ValueError(
            f"the workers differ in their {what}: worker {worker_index(strategy)} has {value!r} "
            f"(of all workers {listed})"
        )
    return value


# === Making each ===
def _mirrored():
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    devices = [device.name for device in tf.config.list_logical_devices(kind)]
    # CPUs share their memory; the collective operations that TensorFlow chooses are for GPUs.
    operations = None if kind == "GPU" else tf.distribute.ReductionToOneDevice
    return _mirrored_over(tuple(devices), operations)


@functools.cache
def _mirrored_over(devices, operations):
    """The process's one strategy over these devices.

    Each that TensorFlow makes counts its sums from the same number on, and two that differ in their
    shapes under one number end in "Shape mismatch in the collective instance 100"
    (tensorflow/tensorflow#62790): the second model of a process could not be trained.
    """
    operations = operations and operations()
    return tf.distribute.MirroredStrategy(list(devices), cross_device_ops=operations)


def _tpu():
    """The name of the TPU there is, or `None`."""
    if os.environ.get("TPU_NAME"):
        return os.environ["TPU_NAME"]
    return "local" if tf.config.list_physical_devices("TPU") else None


def _tpu_strategy():
    address = _tpu()
    if address is None:
        raise ValueError("there is no TPU here, and TPU_NAME names none")
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=address)
    if address != "local":
        tf.config.experimental_connect_to_cluster(resolver)
    tf.tpu.experimental.initialize_tpu_system(resolver)
    return tf.distribute.TPUStrategy(resolver)


def _multi_worker(spec, task_type, index):
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(spec),
        task_type=task_type,
        task_id=index,
        num_accelerators={"GPU": len(tf.config.get_visible_devices("GPU"))},
        rpc_layer="grpc",
    )
    cpus = tf.config.get_logical_device_configuration(tf.config.list_physical_devices("CPU")[0])
    try:
        if cpus is not None and len(cpus) > 1:
            strategy = _on_all_cpus(resolver, len(cpus))
        else:
            strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except RuntimeError as error:
        if "program startup" not in str(error):
            raise
        raise RuntimeError(
            "a strategy of several processes must be made before TensorFlow's first tensor, "
            "variable, dataset or list of logical devices"
        ) from error
    # TensorFlow has put a handler of its own in the place of SIGTERM's, which swallows the signal:
    # neither would the process end, nor a handler of Python's be called.
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
    return strategy


def _on_all_cpus(resolver, count):
    """A `MultiWorkerMirroredStrategy` with a replica on each logical CPU.

    TensorFlow's own takes all GPUs of a process but one CPU, which leaves no way to try several
    replicas in each of several processes without GPUs.
    """

    class Extended(collective_extended()):
        def _initialize_local_devices(self, cluster_resolver, worker_device):
            devices, kind = super()._initialize_local_devices(cluster_resolver, worker_device)
            if kind == "CPU":
                devices = tuple(f"{worker_device}/device:CPU:{i}" for i in range(count))
            return devices, kind

    class Strategy(tf.distribute.MultiWorkerMirroredStrategy):
        def __init__(self):
            options = tf.distribute.experimental.CommunicationOptions()
            extended = Extended(self, resolver, options)
            tf.distribute.Strategy.__init__(self, extended)

    return Strategy()


# === Clusters ===
def _cluster():
    """(addresses by job, own job, own index) of several processes; `None` for one."""
    if os.environ.get("TF_CONFIG"):
        spec, task_type, index = _read_tf_config(os.environ["TF_CONFIG"])
    elif "SLURM_STEP_NUM_TASKS" in os.environ:
        # What srun sets, and it alone: SLURM_NTASKS is there in a batch script too, which runs
        # once however many tasks it may start.
        spec, task_type, index = _read_slurm(os.environ)
    else:
        return None
    return (spec, task_type, index) if sum(map(len, spec.values())) > 1 else None


def _read_tf_config(text):
    def refuse(why):
        raise ValueError(f"TF_CONFIG {why}: {text!r}. {_TF_CONFIG}")

    try:
        config = json.loads(text)
    except ValueError as error:
        refuse(f"is not JSON ({error})")
    if not isinstance(config, dict):
        refuse("is not an object")
    spec = config.get("cluster")
    if not isinstance(spec, dict) or not spec:
        refuse('has no "cluster"')
    for job, addresses in spec.items():
        if job not in ("chief", "worker"):
            refuse(f'has a job {job!r}; only "worker" and "chief" train together')
        if not isinstance(addresses, list) or not addresses:
            refuse(f"has no list of addresses for {job!r}")
        for address in addresses:
            if not isinstance(address, str) or not re.search(r":\d+$", address):
                refuse(f"has an address {address!r}, which is not host:port")
    task = config.get("task")
    if not isinstance(task, dict) or "type" not in task or "index" not in task:
        refuse('has no "task" with "type" and "index"')
    kind, index = task["type"], task["index"]
    if kind not in spec:
        refuse(f"has a task of type {kind!r}, which is not in the cluster")
    if isinstance(index, str) and index.isdigit():  # as some schedulers write it
        index = int(index)
    if type(index) is not int or not 0 <= index < len(spec[kind]):
        refuse(f"has the task index {index!r}, outside of 0..{len(spec[kind]) - 1}")
    return spec, kind, index


def _read_slurm(environment):
    """The cluster of a step of SLURM.

    `tf.distribute.cluster_resolver.SlurmClusterResolver` is not used: it asks nvidia-smi, and dies
    where there is none; it sets CUDA_VISIBLE_DEVICES anew, by its own count; it sorts the hosts,
    though tasks are numbered in the order of the list; and all jobs of a machine share its port.
    """

    def read(name):
        try:
            return environment[f"SLURM_{name}"]
        except KeyError:
            raise ValueError(
                f"SLURM_STEP_NUM_TASKS is set, SLURM_{name} is not: processes must be started by "
                f"srun, or told of one another by TF_CONFIG"
            ) from None

    def number(name):
        text = read(name)
        if not text.isdigit():
            raise ValueError(f"SLURM_{name} should be a number, got {text!r}")
        return int(text)

    tasks, rank = number("STEP_NUM_TASKS"), number("PROCID")
    if tasks == 1:
        return {"worker": ["localhost:0"]}, "worker", 0
    hosts = expand_hosts(read("STEP_NODELIST"))
    per_host = _expand_tasks(read("STEP_TASKS_PER_NODE"))
    if len(per_host) != len(hosts) or sum(per_host) != tasks:
        raise ValueError(
            f"SLURM_STEP_TASKS_PER_NODE={read('STEP_TASKS_PER_NODE')} does not fit "
            f"SLURM_STEP_NODELIST={read('STEP_NODELIST')} and SLURM_STEP_NUM_TASKS={tasks}"
        )
    places = [(i, k) for i, count in enumerate(per_host) for k in range(count)]
    if environment.get("SLURM_DISTRIBUTION", "block").startswith("cyclic"):
        places.sort(key=lambda place: place[::-1])  # one to each host in turn
    node, local = number("NODEID"), number("LOCALID")
    if not 0 <= rank < tasks or places[rank] != (node, local):
        raise ValueError(
            f"SLURM_PROCID={rank} should be task {local} of node {node} by SLURM_LOCALID and "
            f"SLURM_NODEID, and is not by block or cyclic distribution; use srun "
            f"--distribution=block, or set TF_CONFIG"
        )
    # Below the ports that systems give out; jobs that share a machine get others.
    base = 12_000 + 20 * (number("JOB_ID") % 1_000)
    return {"worker": [f"{hosts[i]}:{base + k}" for i, k in places]}, "worker", rank


def expand_hosts(text: str) -> list[str]:
    """The hosts of a list in SLURM's notation, in its order.

    Args:
        text: str, such as "node[01-03,07],gpu5".

    Returns:
        list of str.

    Raises:
        ValueError: for what is no such list.

    Example:

    >>> expand_hosts("node[01-03,07],gpu5")
    ['node01', 'node02', 'node03', 'node07', 'gpu5']
    """
    if not re.fullmatch(f"{_HOST}(?:,{_HOST})*", text):
        raise ValueError(f"not a list of hosts as SLURM writes it: {text!r}")
    hosts = []
    for host in re.findall(_HOST, text):
        names = [""]
        for plain, numbers in re.findall(r"([^\[\]]+)|\[([^\[\]]*)\]", host):
            names = [name + end for name in names for end in _ends(plain, numbers)]
        hosts += names
    return hosts


# A name with lists of numbers in brackets, whose commas do not separate hosts.
_HOST = r"(?:[^\s,\[\]]|\[\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*\])+"


def _ends(plain, numbers):
    """What a part of a host's name stands for: itself, or the numbers of a bracket."""
    if plain:
        return [plain]
    ends = []
    for item in numbers.split(","):
        first, _, last = item.partition("-")
        # As many digits as SLURM writes.
        ends += [str(n).zfill(len(first)) for n in range(int(first), int(last or first) + 1)]
    return ends


def _expand_tasks(text):
    """Tasks of each host from SLURM's notation: "3(x2),1" is [3, 3, 1]."""
    counts = []
    for item in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", item)
        if match is None:
            raise ValueError(f'SLURM_STEP_TASKS_PER_NODE should be as "2(x3),1", got {text!r}')
        counts += [int(match[1])] * int(match[2] or 1)
    return counts
