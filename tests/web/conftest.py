"""A small exported model, and the page: of its sources alone, and built."""

import shutil
import subprocess
from pathlib import Path

import exporting
import pytest

import isa_tf

ROOT = Path(__file__).parents[2]
SIZE = (48, 64)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """The `.tflite` file of a model of seven classes for images of 48 x 64 pixels."""
    path = tmp_path_factory.mktemp("exported") / "model.tflite"
    return isa_tf.export(exporting.make_model(), path, image_size=SIZE)


@pytest.fixture(scope="session")
def page(tmp_path_factory):
    """A folder as `make web` makes it, but for scripts and the runtime."""
    folder = tmp_path_factory.mktemp("page")
    for name in ("index.html", "page.css"):
        (folder / name).write_bytes((ROOT / "web/src" / name).read_bytes())
    html = (folder / "index.html").read_text(encoding="utf-8").replace("$litert", "2.0")
    (folder / "index.html").write_text(html, encoding="utf-8")
    (folder / "wasm").mkdir()
    (folder / "wasm" / "runtime.wasm").write_bytes(b"\0asm")
    return folder


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """web/ with its npm packages: the checkout's, or a copy where they are not installed."""
    for command in ("node", "npm"):
        if shutil.which(command) is None:
            pytest.skip(f"needs {command}")
    if (ROOT / "web/node_modules/installed").is_file():
        return ROOT / "web"
    folder = tmp_path_factory.mktemp("npm")
    shutil.copy(ROOT / "LICENSE", folder)
    shutil.copytree(ROOT / "web", folder / "web", ignore=shutil.ignore_patterns("node_modules"))
    done = subprocess.run(
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"],
        cwd=folder / "web",
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode:
        pytest.skip(f"npm cannot install what the page is built of: {done.stderr[-300:]}")
    return folder / "web"


@pytest.fixture(scope="session")
def built(sources, tmp_path_factory):
    """The page as `make web` builds it."""
    folder = tmp_path_factory.mktemp("built") / "page"
    subprocess.run(["node", sources / "build.mjs", folder], check=True, timeout=120)
    return folder
