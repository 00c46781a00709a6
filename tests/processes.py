"""Processes of one training, on this machine, as a scheduler would start them."""

import json
import os
import subprocess
import sys
from pathlib import Path

from experiments.faults.kills import free_ports

SCRIPT = Path(__file__).with_name("one_of_several.py")
ROOT = SCRIPT.parents[1]


def start(workers, devices, strategy="auto", **environment):
    """Starts `one_of_several.py` as each of several workers; list of their processes."""
    return start_script([SCRIPT, strategy, str(devices)], workers, **environment)


def start_script(command, workers, **environment):
    """Starts a script with its arguments as each of several workers; list of their processes."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    processes = []
    for index in range(workers):
        task = {"type": "worker", "index": index}
        config = json.dumps({"cluster": {"worker": addresses}, "task": task})
        variables = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TF_CONFIG": config,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "-1",
            **environment,
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, *command],
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def finish(processes, timeout=170):
    """(exit code, output, errors) of each; none outlives the test."""
    try:
        texts = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *text) for p, text in zip(processes, texts, strict=True)]


def outputs(processes, timeout=170):
    """What each printed, all of them having ended by themselves and well."""
    ended = finish(processes, timeout)
    assert [code for code, _, _ in ended] == [0] * len(ended), "\n".join(
        e[-3000:] for _, _, e in ended
    )
    return [output for _, output, _ in ended]


def results(processes):
    """What each printed last, in JSON."""
    return [json.loads(output.splitlines()[-1]) for output in outputs(processes)]
