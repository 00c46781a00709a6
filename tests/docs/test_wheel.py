"""A stranger's walk: the wheel, in a fresh environment, on twenty images of one's own.

`make walk` (and `make release`) builds the wheel that is tried here; ISA_TF_WHEEL is its path. What
is installed, and each command but those that ask for a version or for help, stands in
docs/own_data.md; nothing of the checkout is on any path.
"""

import json
import os
import re
import shutil
import signal
import sys
import urllib.request
from pathlib import Path

import handbook
import numpy as np
import pytest
import served
from handbook import DOCS
from PIL import Image, ImageDraw
from walking import Walk, clocks

PAGE = "own_data.md"
COMMANDS = handbook.commands(DOCS / PAGE)
NAMES = ["table", "plate", "leaf", "egg"]
COLORS = [(150, 110, 70), (225, 225, 235), (60, 150, 60), (240, 190, 60)]
SIZE = (96, 128)
SMALL = [
    (r"(config\.train\.steps) = [\d_]+", r"\1 = 10"),
    (r"(config\.train\.validate_every) = [\d_]+", r"\1 = 10"),
    (r"(crop_size) = \(384, 384\)", r"\1 = (96, 96)"),
    (r"--image_size=384x384", f"--image_size={SIZE[0]}x{SIZE[1]}"),
]
MOST_SECONDS = 360  # on two cores, with the installation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("ISA_TF_WHEEL" not in os.environ, reason="`make walk` builds the wheel"),
]


class Stranger(Walk):
    """Somebody who has a wheel and Python, and nothing else.

    Args:
        folder: path of an empty folder, for the environment and what is made in it.
        wheel: path.
    """

    def __init__(self, folder, wheel):
        kept = ("PATH", "HOME", "LANG", "TMPDIR", "CUDA_VISIBLE_DEVICES")
        environment = {name: value for name, value in os.environ.items() if name in kept}
        # How packages are fetched here is this machine's affair.
        environment |= {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "SSL_"))}
        place, self.bin = folder / "place", folder / "venv" / "bin"
        place.mkdir()
        super().__init__(place, [self.bin / "isa-tf"], self.bin / "python", environment, SMALL)
        python = os.environ.get("PYTHON", sys.executable)
        self.process([python, "-m", "venv", self.bin.parent], "python -m venv")
        (what,) = (made.arguments for made in COMMANDS if str(made).startswith("pip install"))
        what = [f"{wheel}{word[1:]}" if word.startswith(".") else word for word in what]
        self.process([self.bin / "python", "-m", "pip", *what], "pip install")

    def isa_tf(self, *arguments):
        return self.process([*self.command, *arguments], " ".join(["isa-tf", *arguments]))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    begin = clocks()
    folder = tmp_path_factory.mktemp("stranger")
    made = Stranger(folder, Path(os.environ["ISA_TF_WHEEL"]).resolve())
    made.begin = begin
    yield made
    shutil.rmtree(folder)  # 2 GB


def make_folder(folder):
    """Twenty photos of tables that are laid, in the layout that the page begins with."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 4)):
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True)
        for i in range(count):
            label = Image.new("L", SIZE[::-1])
            draw = ImageDraw.Draw(label)
            for class_id in (1, 2, 3):
                x, y = rng.integers(0, SIZE[1]), rng.integers(0, SIZE[0])
                r = rng.integers(18, 28) + 12 * (class_id == 1)
                draw.ellipse((x - r, y - r, x + r, y + r), fill=class_id)
            ids = np.asarray(label)
            photo = np.array(COLORS)[ids] + rng.normal(0, 12, (*SIZE, 3))
            name = f"{split}_{i:02d}"
            Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(
                folder / split / "images" / f"{name}.jpg", quality=95
            )
            label.save(folder / split / "labels" / f"{name}.png")
    (folder / "classes.json").write_text(json.dumps(NAMES))


def test_what_is_installed_is_the_wheel(stranger):
    stranger.process([stranger.python, "-m", "pip", "check"], "pip check")
    code = (
        "from importlib.metadata import version\n"
        "import isa_tf\n"
        "from isa_tf.web.folder import is_built\n"
        "print(isa_tf.__file__, isa_tf.__version__, version('isa_tf'), is_built())\n"
    )
    where, *versions, built = stranger.process([stranger.python, "-c", code], "import").split()
    assert where.startswith(str(stranger.bin.parent))
    named = Path(os.environ["ISA_TF_WHEEL"]).name.split("-")[1]
    assert versions == [named, named]
    assert built == "True", "the wheel has no page for browsers: make web comes first"
    assert stranger.isa_tf("--version") == f"isa-tf {named}\n"


def test_every_command_has_its_help(stranger):
    names = re.findall(r"^  ([a-z_]+)  ", stranger.isa_tf("--help"), re.MULTILINE)
    assert len(names) > 10
    for name in names:
        assert "\nflags:" in stranger.isa_tf(name, "--help"), name


def test_from_twenty_images_to_the_browser(stranger):
    folder = stranger.folder
    make_folder(folder / "my_data")
    shutil.copytree(folder / "my_data/val/images", folder / "photos")
    # All of the page but the Python that makes images for who has none, and that which reads them.
    counts = stranger.follow(PAGE, skip=lambda text: text.startswith("import "))
    assert counts == {"bash": 5, "python": 0}

    # What the page promises of the workdir.
    made = {path.name for path in (folder / "runs/mine").iterdir()}
    assert made >= {"best.keras", "checkpoints", "log.csv", "curves.png", "tensorboard"}
    assert made >= {"metrics.json", "predictions.png", "report.html", "images.csv"}
    metrics = json.loads((folder / "runs/mine/metrics.json").read_text())
    assert metrics["images"] == 4 and [*metrics["iou"]] == NAMES
    told = "plate" in (folder / "runs/mine/report.html").read_text()
    assert told
    exported = folder / "runs/mine/best_export"
    assert (exported / "saved_model/saved_model.pb").is_file()
    # What is predicted is what was scored: after ten steps not much, but the same.
    confusion = np.zeros((len(NAMES), len(NAMES)))
    for path in (folder / "my_data/val/labels").iterdir():
        predicted = np.asarray(Image.open(folder / f"predicted/{path.stem}_label.png"))
        np.add.at(confusion, (np.asarray(Image.open(path)), predicted), 1)
        assert (folder / f"predicted/{path.stem}_overlay.png").is_file()
    hits = np.diag(confusion)
    iou = hits / (confusion.sum(0) + confusion.sum(1) - hits)
    np.testing.assert_allclose([*metrics["iou"].values()], iou, atol=1e-3)
    serve_page(stranger, exported)

    helps = [times for what, *times in stranger.times if what.endswith("--help")]
    rows = [row for row in stranger.times if not row[0].endswith("--help")]
    rows += [(f"isa-tf [NAME] --help, {len(helps)} times", *np.sum(helps, axis=0))]
    rows += [("in all", *(clocks() - stranger.begin))]
    for what, seconds, used in rows:
        print(f"{seconds:7.1f} s ({used:.1f} s of processors)  {what}")
    # Where others compute too, the clock tells how many they are.
    busy = os.getloadavg()[1] > 1.5 * os.cpu_count()
    assert rows[-1][2 if busy else 1] < MOST_SECONDS


def serve_page(stranger, exported):
    """Runs the page's `isa-tf web`, and looks at what it writes and serves."""
    (made,) = (made for made in COMMANDS if made.program == "isa-tf web")
    begin = clocks()
    command = [*stranger.command, "web", *made.arguments, "--port=0"]
    places = {"cwd": stranger.folder, "env": stranger.environment}
    with served.page(command, **places) as (process, url):

        def get(path):
            with urllib.request.urlopen(url + path, timeout=30) as answer:
                return answer.read(), answer.headers

        index, headers = get("")
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        text = index.decode("utf-8")
        assert "$" not in re.findall(r"<title>.*?</title>|<h1>.*?</h1>", text)[0]
        # What the page asks for is there; scripts, the runtime and the licences too.
        asked = re.findall(r'(?:src|href)="([\w./-]+)"', text)
        assert {"page.css", "page.js"} <= {*asked}
        for name in {*asked, "worker.js", "licences.txt"}:
            assert len(get(name)[0]) > 500, name
        for kind in ("threaded_", "", "compat_"):
            runtime, headers = get(f"wasm/litert_wasm_{kind}internal.wasm")
            assert runtime[:4] == b"\0asm" and headers["Content-Type"] == "application/wasm"
        (row,) = json.loads(get("models/models.json")[0])["models"]
        assert row["image_sizes"] == [[*SIZE]]
        assert [kind["name"] for kind in row["classes"]] == NAMES
        # Compared outside of `assert`, which would look for a difference in 14 MB.
        same = get(f"models/{row['file']}")[0] == (exported / "model.tflite").read_bytes()
        assert same
        assert {path.name for path in (exported / "model_web").iterdir()} >= {"models", "wasm"}
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    stranger.times.append(("isa-tf web", *(clocks() - begin)))
