"""The server on Ray Serve itself: `make test-serve`."""

import concurrent.futures
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import asking
import exporting
import numpy as np
import pytest
from pycocotools import mask

import isa_tf

pytest.importorskip("ray.serve", reason="Ray Serve is not installed")
psutil = pytest.importorskip("psutil", reason="psutil is not installed")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SIZE = (48, 64)
PICTURE = exporting.random_images(1, *SIZE)[0]


class Server:
    """`tools.serve` in a process of its own."""

    def __init__(self, path, port, *flags):
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tools.serve", f"--model=m@1={path}", f"--port={port}", *flags],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        watch = threading.Timer(150, self.process.kill)
        watch.start()
        for line in self.process.stdout:
            if re.match(rf"ready at {self.url}/v1/models ", line):
                break
        watch.cancel()
        assert self.process.poll() is None

    def ask(self, address, body=None, timeout=60):
        try:
            with urllib.request.urlopen(f"{self.url}{address}", body, timeout) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def replicas(self):
        children = psutil.Process(self.process.pid).children(recursive=True)
        names = {child: " ".join(child.cmdline()) for child in children}
        return [child for child, name in names.items() if "m@1" in name]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "model.tflite"
    return isa_tf.export(exporting.make_model(), path, image_size=SIZE)


@pytest.fixture
def server(path):
    made = Server(path, 8123, "--body_seconds=2", f"--model=m@2={path}", "--batch=4")
    yield made
    if made.process.poll() is None:  # what Ray started would outlive it
        children = psutil.Process(made.process.pid).children(recursive=True)
        for process in (made.process, *children):
            process.kill()
    made.process.stdout.close()


def test_it_serves(path, server):
    contents = asking.saved(PICTURE)
    truth = isa_tf.load_predictor(path)(PICTURE)[0]
    assert len(np.unique(truth)) > 2
    assert server.ask("/healthz") == (200, b'{"status":"ok"}')
    card = json.loads(server.ask("/v1/models/m")[1])
    assert card["version"] == "2" and card["class_names"] == list(exporting.NAMES)

    def answers(_):
        return server.ask("/v1/models/m/versions/1/predict", contents)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for status, body in pool.map(answers, range(24)):
            found = np.full(SIZE, -1)
            for row in json.loads(body)["classes"]:
                found[mask.decode(row["segmentation"]) > 0] = row["class_id"]
            assert status == 200 and (found == truth).all()
    for kind, (bad, status, reason) in asking.garbage().items():
        found, body = server.ask("/v1/models/m/predict", bad)
        assert (found, kind) == (status, kind) and reason in json.loads(body)["error"]
    end = time.monotonic() + 60  # Ray counts anew every ten seconds
    while b"serve_num_http_requests" not in server.ask("/metrics")[1]:
        assert time.monotonic() < end
        time.sleep(1)

    # A replica that is killed is replaced, and who asks meanwhile is answered.
    (replica,) = server.replicas()
    replica.kill()
    statuses, end = [], time.monotonic() + 60
    while statuses[-3:] != [200] * 3 and time.monotonic() < end:
        statuses.append(answers(0)[0])
    assert statuses[-3:] == [200] * 3 and {*statuses} <= {200, 503}
    assert [each.pid for each in server.replicas()] != [replica.pid]

    # In the end what is running is answered.
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        running = [pool.submit(answers, i) for i in range(8)]
        time.sleep(0.05)
        server.process.send_signal(signal.SIGTERM)
        found = {future.result()[0] for future in running}
        assert 200 in found and found <= {200, 503}
    assert server.process.wait(60) == 0
    assert "requests running" not in server.process.stdout.read()
