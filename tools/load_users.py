"""Locust's users of `tools.load`: they ask for good pictures and for garbage, and compare."""

import hashlib
import io
import json
import os
import random
import time
from pathlib import Path

import gevent
import numpy as np
from gevent import socket
from locust import FastHttpUser, User, constant, events, task
from PIL import Image
from pycocotools import mask

FOLDER = Path(os.environ["LOAD_FOLDER"])
GARBAGE_SHARE = float(os.environ["LOAD_GARBAGE"])
PREDICT = "/v1/models/model/predict"
FORMATS = ("ids",) * 4 + ("json",) * 3 + ("overlay",)  # what is asked for, in these shares
GOOD = {path.stem: path.read_bytes() for path in sorted(FOLDER.glob("good_*.picture"))}
BAD = {path.stem: path.read_bytes() for path in sorted(FOLDER.glob("*.garbage"))}
SLOW_BYTES = 60

random.seed(0)
seen, wrong, gone = set(), [], []  # answers that were right; what was not; 503, and when
begun = time.monotonic()


def is_right(kind, format, body):
    """Whether an answer tells what the predictor found."""
    digest = (kind, format, hashlib.sha256(body).digest())
    if digest in seen:
        return True
    ids = np.load(FOLDER / f"{kind}.ids.npy")
    if format == "json":
        told = json.loads(body)
        found = np.full(ids.shape, -1)
        for row in told["classes"]:
            found[mask.decode(row["segmentation"]) > 0] = row["class_id"]
    else:
        found = np.asarray(Image.open(io.BytesIO(body)))
    if format == "overlay":
        ids = np.asarray(Image.open(FOLDER / f"{kind}.overlay.png"))
    if found.shape != ids.shape or not (found == ids).all():
        return False
    seen.add(digest)
    return True


class Client(FastHttpUser):
    """Asks one request after the other."""

    wait_time = constant(0)
    connection_timeout = network_timeout = 90

    @task
    def ask(self):
        if random.random() < GARBAGE_SHARE:
            self.ask_garbage()
        else:
            self.ask_good()

    def ask_good(self):
        kind, format = random.choice([*GOOD]), random.choice(FORMATS)
        with self.client.post(
            f"{PREDICT}?format={format}", data=GOOD[kind], name="good", catch_response=True
        ) as answer:
            if answer.status_code == 503:
                gone.append(time.monotonic() - begun)
                answer.success()
                answer.request_meta["name"] = "good, 503"
            elif answer.status_code != 200 or not is_right(kind, format, answer.content):
                text = f"{kind} {format}: {answer.status_code} {(answer.text or '')[:200]}"
                wrong.append((time.monotonic() - begun, text))
                answer.failure(text)

    def ask_garbage(self):
        kind = random.choice([*BAD])
        status = int(kind[:3])
        headers = {"Content-Type": "application/json"} if kind.endswith("json") else {}
        with self.client.post(
            PREDICT, data=BAD[kind], headers=headers, name=f"bad {kind}", catch_response=True
        ) as answer:
            told = _reason(answer.content)
            if answer.status_code == status and told:
                answer.success()
            elif answer.status_code == 503 and told:
                gone.append(time.monotonic() - begun)
                answer.success()
            else:
                text = f"{kind}: {answer.status_code} {(answer.text or '')[:200]}"
                wrong.append((time.monotonic() - begun, text))
                answer.failure(text)


class Slow(User):
    """Sends a byte a second; there is one of them."""

    fixed_count = 1
    wait_time = constant(1)

    @task
    def drip(self):
        host, _, port = self.host.removeprefix("http://").partition(":")
        start, answer = time.perf_counter(), b""
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {SLOW_BYTES}\r\n\r\n"
            connection.sendall(head.encode())
            sending = gevent.spawn(self._send, connection)
            while part := connection.recv(65536):  # until the server closes
                answer += part
            sending.kill()
        taken = 1000 * (time.perf_counter() - start)
        right = answer.startswith(b"HTTP/1.1 408") and b"had not come within" in answer
        if not right:
            wrong.append((time.monotonic() - begun, f"slow: {answer[:300]!r}"))
        self.environment.events.request.fire(
            request_type="POST",
            name="bad 408_slow",
            response_time=taken,
            response_length=len(answer),
            exception=None if right else ValueError(answer[:300]),
            context={},
        )

    def _send(self, connection):
        for _ in range(SLOW_BYTES):
            connection.sendall(b"x")
            gevent.sleep(1)


def _reason(body):
    try:
        return json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return None


@events.quitting.add_listener
def tell(environment, **_):
    """Writes what was found."""
    stats = environment.stats
    good = stats.get("good", "POST")
    bad = [entry for entry in stats.entries.values() if entry.name.startswith("bad")]
    seconds = good.last_request_timestamp - stats.start_time
    found = {
        "seconds": round(seconds, 1),
        "good": good.num_requests,
        "bad": {entry.name: entry.num_requests for entry in bad},
        "answered_503": [round(when, 1) for when in gone],
        "wrong": [(round(when, 1), text) for when, text in wrong[:50]],
        "right": not wrong,
        "rate": good.num_requests / seconds,
        "p50_ms": good.get_response_time_percentile(0.5),
        "p99_ms": good.get_response_time_percentile(0.99),
        "max_ms": round(good.max_response_time, 1),
    }
    (FOLDER / "found.json").write_text(json.dumps(found))
