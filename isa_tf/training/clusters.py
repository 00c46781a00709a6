"""The processes of a training, as TF_CONFIG or SLURM tell them."""

import json
import os
import re

TF_CONFIG = (
    'TF_CONFIG should look like {"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
    '"task": {"type": "worker", "index": 0}}'
)


def find_cluster() -> tuple[dict[str, list[str]], str, int] | None:
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
        raise ValueError(f"TF_CONFIG {why}: {text!r}. {TF_CONFIG}")

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
