import json
import os
import re
import signal
import sys
import urllib.request
from pathlib import Path

import exporting
import pytest
import served
from absl import app
from PIL import Image

import isa_tf
from tools import demo_web

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "lr=1" / "model.tflite"
    return isa_tf.export(exporting.make_model(), path, image_size=(16, 24))


@pytest.fixture
def page(tmp_path, monkeypatch):
    """In place of what `make web` builds: the page without scripts and runtime."""
    folder = tmp_path / "page"
    (folder / "wasm").mkdir(parents=True)
    html = (ROOT / "web/src/index.html").read_text().replace("$litert", "2.0")
    (folder / "index.html").write_text(html)
    monkeypatch.setattr("isa_tf.web.folder.PAGE", folder)
    return folder


def told(folder):
    return json.loads((folder / "models" / "models.json").read_text(encoding="utf-8"))


def test_it_writes(run, exported, page, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (8, 6)).save(photos / name)
    site = tmp_path / "site"
    status, printed = run(
        demo_web,
        f"--model={exported},again={exported}",
        f"--images={photos}",
        "--title=Streets & roads",
        "--clear=",
        f"--output={site}",
        "--noserve",
    )
    assert status == 0
    assert re.match(rf"{re.escape(str(site))}: [\d.]+ MB, 2 models; ", printed)
    assert [row["name"] for row in told(site)["models"]] == ["model", "again"]
    assert [row["clear"] for row in told(site)["models"]] == [[], []]
    assert told(site)["examples"] == ["a.jpg", "b.png"]
    assert "<h1>Streets &amp; roads</h1>" in (site / "index.html").read_text()


def test_by_default_beside_the_model(run, exported, page):
    status, _ = run(demo_web, f"--model={exported}", "--noserve")
    (row,) = told(exported.with_name("model_web"))["models"]
    assert status == 0 and row["name"] == "model" and row["clear"] == [0]
    run(demo_web, f"--model={exported}", "--noserve", "--clear=Bäume,1")
    assert told(exported.with_name("model_web"))["models"][0]["clear"] == [1, 6]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ([], "Which model"),
        (["--model=nowhere.tflite"], "no such file"),
        (["--model={0},{0}"], "two models of the name 'model'"),
        (["--model={0}", "--clear=sea"], "model.tflite: 'sea'; "),
        (["--model={0}", "--clear=7"], "model.tflite: '7'; "),
        (["--model={0}", "--images=nowhere"], "no file is there"),
        (["--model={0}", "--output={1}"], "holds something else"),
        (["--model={0}", "left"], "Unexpected arguments: left"),
    ],
)
def test_what_it_refuses(run, exported, page, tmp_path, flags, reason):
    flags = [flag.format(exported, tmp_path) for flag in flags]
    with pytest.raises(app.UsageError, match=re.escape(reason)):
        run(demo_web, *flags, "--noserve")


def test_a_page_that_is_not_built(run, exported, page, tmp_path):
    (page / "index.html").unlink()
    with pytest.raises(app.UsageError, match="`make web` builds it"):
        run(demo_web, f"--model={exported}", f"--output={tmp_path}/site", "--noserve")


def test_a_port_that_is_taken(run, exported, page, tmp_path):
    from isa_tf import web

    site = tmp_path / "site"
    run(demo_web, f"--model={exported}", f"--output={site}", "--noserve")
    server = web.make_server(site, port=0)
    with pytest.raises(app.UsageError, match="--port=0 takes a free one"):
        run(demo_web, f"--model={exported}", f"--output={site}", f"--port={server.server_port}")
    server.server_close()


@pytest.mark.some(1)
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_ended(exported, page, tmp_path, end):
    code = (
        "import sys, isa_tf.web.folder as f, pathlib; f.PAGE = pathlib.Path(sys.argv.pop(1));"
        "from tools import demo_web; sys.exit(demo_web.main(demo_web.FLAGS(sys.argv)))"
    )
    command = [sys.executable, "-c", code, page, f"--model={exported}", "--port=0"]
    command.append(f"--output={tmp_path}/site")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    with served.page(command, env=environment) as (process, url):
        with urllib.request.urlopen(f"{url}models/models.json", timeout=30) as answer:
            assert json.load(answer)["models"][0]["image_sizes"] == [[16, 24]]
        process.send_signal(end)
        assert process.wait(30) == 0
