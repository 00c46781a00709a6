import asyncio
import threading

import asking
import numpy as np
import pytest
from asking import ask

from isa_tf.inference import Predictor
from isa_tf.serving import Limits, Service, make_app
from isa_tf.serving.app import Door, Local, last_version

pytest.importorskip("starlette", reason="Starlette is not installed")
pytest.importorskip("python_multipart", reason="python-multipart is not installed")

PICTURE = asking.some_picture()
CONTENTS = asking.saved(PICTURE)
ADDRESS = "/v1/models/streets/predict"


def service(value, hold=None):
    """A service whose model finds class `value` in every pixel."""

    def run(images):
        if hold is not None:
            hold.wait(10)
        if images[0, 0, 0].tolist() == [1, 2, 3]:
            raise RuntimeError("a secret of the server's")
        return np.full(images.shape[:3], value, np.uint8), np.ones(images.shape[:3], np.float32)

    predictor = Predictor(run, 20, [f"class {i}" for i in range(20)])
    made = Service.__new__(Service)
    made.predictor, made.limits = predictor, Limits(max_pixels=10_000)
    return made


def models(**kwargs):
    versions = {version: Local(service(int(version), **kwargs)) for version in ("2", "10")}
    return {"streets": versions, "rooms": {"1": Local(service(1, **kwargs))}}


@pytest.fixture(scope="module")
def app():
    return make_app(models(), Limits(max_bytes=8000, body_seconds=0.3, answer_seconds=5))


def test_versions(app):
    def found(address):
        answer = ask(app, "POST", address, CONTENTS)
        assert answer.status == 200
        (row,) = answer.told["classes"]
        return row["class_id"], answer.headers["x-model"]

    assert found(ADDRESS) == (10, "streets/10")
    assert found("/v1/models/streets/versions/2/predict") == (2, "streets/2")
    assert found("/v1/models/rooms/predict") == (1, "rooms/1")
    assert last_version(["1.9", "1.10", "1"]) == "1.10"
    assert last_version(["v2", "10", "old"]) == "v2"


def test_what_there_is_to_know(app):
    assert ask(app, "GET", "/healthz").told == {"status": "ok"}
    told = ask(app, "GET", "/v1/models").told["models"]
    assert [(card["name"], card["version"]) for card in told] == [("streets", "10"), ("rooms", "1")]
    card = ask(app, "GET", "/v1/models/streets/versions/2").told
    assert card["version"] == "2" and card["versions"] == ["2", "10"]
    assert card["num_classes"] == 20
    assert ask(app, "GET", "/v1/models/streets").told["version"] == "10"


def test_a_form(app):
    def form(*parts):
        body = b"".join(b"--edge\r\n" + part + b"\r\n" for part in parts) + b"--edge--\r\n"
        kind = {"Content-Type": "multipart/form-data; boundary=edge"}
        return ask(app, "POST", ADDRESS, body, kind)

    def part(name, contents, file=""):
        return f'Content-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + contents

    file = '; filename="photo.png"'
    assert form(part("note", b"hello"), part("image", CONTENTS, file)).status == 200
    assert form(part("image", CONTENTS[:100], file)).status == 400
    answer = form(part("note", b"hello"))
    assert answer.status == 400 and "without a file" in answer.told["error"]
    answer = form(part("a", CONTENTS, file), part("b", CONTENTS, file))
    assert answer.status == 400 and "Too many files" in answer.told["error"]
    for kind in ("multipart/form-data", "multipart/form-data; boundary=other"):
        answer = ask(app, "POST", ADDRESS, b"--edge\r\nx", {"Content-Type": kind})
        assert answer.status == 400 and "form" in answer.told["error"]


# Pillow warns of a bomb that is below its own limit; it is ours that is tested.
@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning:PIL")
@pytest.mark.parametrize("kind", asking.garbage())
def test_garbage(app, kind):
    contents, status, reason = asking.garbage()[kind]
    answer = ask(app, "POST", ADDRESS, contents)
    assert answer.status == answer.told["status"] == status
    assert reason in answer.told["error"]


@pytest.mark.parametrize(
    ("method", "address", "body", "headers", "status", "reason"),
    [
        ("GET", "/", b"", {}, 404, "Not Found"),
        ("GET", "/metrics", b"", {}, 404, "no metrics"),
        ("GET", ADDRESS, b"", {}, 405, "Method Not Allowed"),
        ("GET", "/v1/models/street", b"", {}, 404, 'did you mean "streets"'),
        ("POST", "/v1/models/x/predict", CONTENTS, {}, 404, "unknown model 'x'"),
        ("POST", "/v1/models/streets/versions/3/predict", CONTENTS, {}, 404, "version of streets"),
        ("POST", f"{ADDRESS}?format=gif", CONTENTS, {}, 400, "unknown format 'gif'"),
        ("POST", ADDRESS, b'{"image', {"Content-Type": "application/json"}, 400, "no JSON"),
        ("POST", ADDRESS, b"{}", {"Content-Type": "application/json"}, 415, "JSON is not taken"),
        ("POST", ADDRESS, bytes(8001), {}, 413, "8000 bytes"),
        ("POST", ADDRESS, b"", {"Content-Length": "8001"}, 413, "8000 bytes"),
        ("POST", ADDRESS, asking.saved(np.zeros((101, 100), np.uint8)), {}, 413, "100x101"),
    ],
)
def test_what_is_refused(app, method, address, body, headers, status, reason):
    answer = ask(app, method, address, body, headers)
    assert answer.status == answer.told["status"] == status
    assert reason in answer.told["error"]


def test_a_client_that_sends_a_byte_now_and_then(app):
    answer = ask(app, "POST", ADDRESS, CONTENTS, pause=0.05)
    assert answer.status == 408 and "had not come within 0.3 s" in answer.told["error"]
    assert answer.headers["connection"] == "close"


def test_a_length_that_is_a_lie(app):
    answer = ask(app, "POST", ADDRESS, bytes(9000), {"Content-Length": "10"})
    assert answer.status == 413


def test_an_error_of_the_models_is_not_told(app):
    picture = PICTURE.copy()
    picture[0, 0] = 1, 2, 3
    answer = ask(app, "POST", ADDRESS, asking.saved(picture))
    assert answer.status == 500 and "secret" not in answer.body.decode()
    assert ask(app, "POST", ADDRESS, CONTENTS).status == 200


def test_an_answer_that_takes_too_long():
    hold = threading.Event()
    app = make_app(models(hold=hold), Limits(answer_seconds=0.1))
    threading.Timer(0.3, hold.set).start()
    answer = ask(app, "POST", ADDRESS, CONTENTS)
    assert answer.status == 504 and "more than 0.1 s" in answer.told["error"]


def test_a_server_that_ends_answers_what_is_running():
    hold, door = threading.Event(), Door()
    app = make_app(models(hold=hold), door=door)

    async def both():
        running = asyncio.create_task(asking.asking(app, "POST", ADDRESS, CONTENTS))
        while not door.inside:
            await asyncio.sleep(0.001)
        assert not await door.close(seconds=0.05)
        late = await asking.asking(app, "POST", ADDRESS, CONTENTS)
        health = await asking.asking(app, "GET", "/healthz")
        hold.set()
        assert await door.close(seconds=5)
        return (await running).status, late, health.status

    running, late, health = asyncio.run(both())
    assert (running, late.status, health) == (200, 503, 503)
    assert "ends" in late.told["error"] and late.headers["retry-after"] == "1"
    assert door.inside == 0


def test_metrics_are_passed_on():
    async def metrics():
        return "requests 3\n"

    answer = ask(make_app(models(), metrics=metrics), "GET", "/metrics")
    assert answer.body == b"requests 3\n" and answer.headers["content-type"].startswith(
        "text/plain"
    )
