"""Which devices a run trains on: `tf.distribute` strategies by name."""

import functools
import os
import signal
import threading

import tensorflow as tf

from isa_tf import runtime
from isa_tf.compat import collective_extended
from isa_tf.names import unknown
from isa_tf.training.clusters import TF_CONFIG, find_cluster

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")


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
        cluster = find_cluster()
        if cluster is not None:
            return _multi_worker(*cluster)
        if name == "multi_worker":
            raise ValueError(
                f"multi_worker needs a cluster of several workers: {TF_CONFIG}; or start the "
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


# === Making each ===
def _mirrored():
    kind = "GPU" if runtime.has_gpu() else "CPU"
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
