"""Processes of one training, on this machine, as a scheduler would start them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("one_of_several.py")
ROOT = SCRIPT.parents[1]


def free_ports(count):
    """Ports that nobody has."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


def start(workers, devices, strategy="auto", **environment):
    """Starts `one_of_several.py` as each of several workers; list of their processes."""
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
                [sys.executable, SCRIPT, strategy, str(devices)],
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


def results(processes):
    """What each printed, all of them having ended by themselves and well."""
    ended = finish(processes)
    assert [code for code, _, _ in ended] == [0] * len(ended), "\n".join(
        e[-3000:] for _, _, e in ended
    )
    return [json.loads(output.splitlines()[-1]) for _, output, _ in ended]
