"""The page in Chromium, beside what the same files give in Python."""

import json
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import exporting
import numpy as np
import pytest
from PIL import Image

import isa_tf
from isa_tf import web

ROOT = Path(__file__).parents[2]
CAMVID = ROOT.parent / "shared/data/camvid/val/images"


class Quiet(SimpleHTTPRequestHandler):
    """A host that sends none of the headers that `make_server` does."""

    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def chromium():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("needs Chromium")


@pytest.fixture
def drive(chromium, sources, tmp_path):
    """Serves a folder, does the steps with its page, and gives what was found."""
    servers = []

    def drive(folder, *steps, plain=False, clean=True, file=False, **plan):
        if plain:
            handler = partial(Quiet, directory=str(folder))
            server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        else:
            server = web.make_server(folder, port=0)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        if file:
            url = (folder / "index.html").as_uri()
        steps = [[s] if isinstance(s, str) else [*s] for s in steps]
        plan = {"browser": chromium, "url": url, "output": str(tmp_path), "steps": steps, **plan}
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        done = subprocess.run(
            ["node", sources / "test/drive.mjs", tmp_path / "plan.json"],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert "failed" not in told, (told["failed"], told["status"], told["console"])
        if clean:
            # Nothing is wrong, nothing is asked of anybody but the host, nothing is sent there.
            assert told["console"] == []
            for request in told["requests"]:
                assert request.startswith((f"GET {url}", f"GET blob:{url}")), request
        return told

    yield drive
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def site(built, exported, tmp_path_factory):
    """A page of two models, the second of other classes and of two other sizes."""
    folder = tmp_path_factory.mktemp("site")
    other = exporting.make_model(names=None)
    other = isa_tf.export(other, folder / "other.tflite", image_size=[(40, 40), (36, 64)])
    photo = folder / "example.png"
    Image.fromarray(exporting.random_images(1, 50, 60)[0]).save(photo)
    models = {"first": exported, "other": other}
    return web.write(folder / "site", models, [photo], "Seven", clear=(), page=built)


def pictures(folder, *sizes):
    paths = []
    for number, size in enumerate(sizes):
        paths.append(folder / f"photo{number}.png")
        Image.fromarray(exporting.random_images(1, *size, seed=number)[0]).save(paths[-1])
    return paths


def ids_of(path):
    with Image.open(path) as mask:
        assert mask.mode == "L"
        return np.asarray(mask)


def test_ids_are_those_of_python(drive, site, exported, tmp_path):
    # Of the model's own size, shrunk, enlarged, one shrunk and one enlarged.
    photos = pictures(tmp_path, (48, 64), (123, 187), (31, 40), (100, 33))
    steps = [["status", "Ready"]]
    for photo in photos:
        steps += [["drop", str(photo)], ["status", f"{photo.stem}: "]]
        steps += [["download", "#save-mask", f"{photo.stem}.mask"], ["text", "#picture-size"]]
    told = drive(site, *steps)
    assert told["isolated"]
    predictor = isa_tf.load_predictor(exported)
    for i, photo in enumerate(photos):
        with Image.open(photo) as image:
            expected, _ = predictor(np.asarray(image))
        np.testing.assert_array_equal(ids_of(tmp_path / f"{photo.stem}.mask"), expected)
        assert len(np.unique(expected)) > 1
        _, status, file, size = told["answers"][1 + 4 * i : 5 + 4 * i]
        assert file == f"{photo.stem}_label.png"
        assert size == f"{expected.shape[1]} x {expected.shape[0]}"
        counts = np.bincount(expected.ravel())
        top = np.argmax(counts)
        share = f"{exporting.NAMES[top]} {100 * counts[top] / expected.size:.1f} %"
        assert status.startswith(f"{photo.stem}: {share}, ") and status.endswith(" ms.")


def test_what_is_shown(drive, site, exported, tmp_path):
    (photo,) = pictures(tmp_path, (48, 64))
    pixel = """(() => {
        const context = new OffscreenCanvas(1, 1).getContext("2d");
        context.drawImage(document.querySelector("#overlay"), -%d, -%d);
        return [...context.getImageData(0, 0, 1, 1).data];
    })()"""
    told = drive(
        site,
        ["status", "Ready"],
        ["choose", str(photo)],
        ["status", "photo0: "],
        ["texts", "#legend label"],
        ["evaluate", "document.querySelector('#stage').focus()"],
        ["press", "ArrowRight", "ArrowDown", "Shift+ArrowLeft"],
        ["text", "#under"],
        ["evaluate", pixel % (23, 25)],
        # The class there, taken away and brought back.
        ["click", "#legend label.at"],
        ["evaluate", pixel % (23, 25)],
        ["click", "#legend label.at"],
        ["evaluate", pixel % (23, 25)],
        ["evaluate", "document.querySelector('#opacity').focus()"],
        ["press", "End", "ArrowLeft"],
        ["text", "#opacity-text"],
        ["evaluate", "getComputedStyle(document.querySelector('#overlay')).opacity"],
        ["download", "#save-picture", "picture.png"],
        ["point", 50.5 / 64, 7.5 / 48],
        ["text", "#under"],
    )
    answers = told["answers"]
    with Image.open(photo) as image:
        image = np.asarray(image)
    ids, scores = isa_tf.load_predictor(exported)(image)
    counts = np.bincount(ids.ravel(), minlength=7)
    rows = [row.split("\n") for row in answers[3]]
    assert [row[0] for row in rows] == [
        exporting.NAMES[i] for i in sorted(range(7), key=lambda i: (-counts[i], i)) if counts[i]
    ]
    for name, share in rows:
        expected = 100 * counts[exporting.NAMES.index(name)] / ids.size
        assert float(share.removesuffix(" %")) == pytest.approx(expected, abs=0.051)
    # From the middle, 32, 24: one right, one down, ten left.
    name, sure, where = answers[6].strip().split(", ", 2)
    assert (name, where) == (exporting.NAMES[ids[25, 23]], "at 23, 25")
    assert float(sure.removesuffix(" % sure")) == pytest.approx(100 * scores[25, 23], abs=0.11)
    color = [*exporting.PALETTE[ids[25, 23]], 255]
    assert answers[7] == answers[11] == color
    assert answers[9] == [0, 0, 0, 0]
    assert answers[14] == "99 %" and answers[15] == "0.99"
    with Image.open(tmp_path / "picture.png") as picture:
        picture = np.asarray(picture.convert("RGB")).astype(float)
    painted = 0.01 * image + 0.99 * np.asarray(exporting.PALETTE)[ids]
    assert np.abs(picture - painted).max() < 1.5
    assert answers[18].strip().startswith(f"{exporting.NAMES[ids[7, 50]]}, ")
    assert answers[18].strip().endswith(" at 50, 7")


def test_another_model_and_an_example(drive, site, tmp_path):
    told = drive(
        site,
        ["status", "Ready"],
        ["click", "#examples button"],
        ["status", "example: "],
        ["texts", "#model option"],
        ["select", "#model", "other"],
        ["status", "example: class"],
        ["text", "#model-size"],
        ["download", "#save-mask", "mask.png"],
    )
    assert told["answers"][3] == ["first", "other"]
    assert told["answers"][6] == "64 x 36"  # which is nearer to 50x60 than 40x40
    with Image.open(site / "examples/example.png") as image:
        expected, _ = isa_tf.load_predictor(site / "models/1-other.tflite")(np.asarray(image))
    np.testing.assert_array_equal(ids_of(tmp_path / "mask.png"), expected)


def test_a_host_without_headers(drive, site, exported, tmp_path):
    """One thread, and the same policy, of the worker too."""
    (photo,) = pictures(tmp_path, (48, 64))
    told = drive(
        site,
        ["status", "Ready"],
        ["drop", str(photo)],
        ["status", "photo0: "],
        ["download", "#save-mask", "mask.png"],
        plain=True,
    )
    assert not told["isolated"] and told["threads"].startswith("1 (")
    with Image.open(photo) as image:
        expected, _ = isa_tf.load_predictor(exported)(np.asarray(image))
    np.testing.assert_array_equal(ids_of(tmp_path / "mask.png"), expected)


@pytest.mark.parametrize("plain", [False, True])
def test_nothing_can_leave(site, drive, plain):
    """Page and worker may ask nobody but the host."""
    heard = []

    class Listener(Quiet):
        def do_GET(self):
            heard.append(self.path)
            self.send_error(404)

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    try:
        ask = f"fetch('http://127.0.0.1:{listener.server_port}/%s', {{mode: 'no-cors'}})"
        ask += ".then(() => 'sent', (error) => String(error))"
        told = drive(
            site,
            ["status", "Ready"],
            ["evaluate", ask % "page"],
            ["worker", ask % "worker"],
            plain=plain,
            clean=False,
        )
    finally:
        listener.shutdown()
        listener.server_close()
    assert told["answers"][1:] == 2 * ["TypeError: Failed to fetch"]
    assert any("Content Security Policy" in line for line in told["console"])
    assert heard == []


def test_the_camera(drive, site, exported, tmp_path):
    told = drive(
        site,
        ["status", "Ready"],
        ["click", "#camera"],
        ["wait", "Number(document.querySelector('#rate').textContent) > 0"],
        ["text", "#camera"],
        ["click", "#camera"],
        ["wait", "document.querySelector('#status').textContent === 'The camera is off.'"],
        ["text", "#camera"],
        ["wait", "!document.querySelector('#save-mask').disabled"],
        ["evaluate", "new Promise((then) => setTimeout(then, 1000))"],
        ["download", "#save-mask", "mask.png"],
        ["frame", "frame.png"],
        camera=True,
    )
    assert told["answers"][3] == "Stop the camera" and told["answers"][6] == "Start the camera"
    with Image.open(tmp_path / "frame.png") as image:
        frame = np.asarray(image.convert("RGB"))
    expected, _ = isa_tf.load_predictor(exported)(frame)
    np.testing.assert_array_equal(ids_of(tmp_path / "mask.png"), expected)


def test_faults_are_told(drive, site, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    good, large = pictures(tmp_path, (20, 20), (1, 3000))
    told = drive(
        site,
        ["status", "Ready"],
        ["drop", str(bad)],
        ["status", "bad"],
        ["drop", str(good)],
        ["status", "photo0: "],
        ["drop", str(large)],
        ["status", "photo1: "],
        ["text", "#picture-size"],
    )
    assert told["answers"][2] == "bad.jpg cannot be read as a picture by this browser."
    assert told["answers"][7] == "3000 x 1"


def test_a_file_from_the_disk_tells_what_is_missing(drive, site):
    told = drive(site, ["status", "The page cannot begin"], file=True, clean=False)
    assert "any server of static files will do" in told["answers"][0]
    assert told["console"] == []


def test_a_model_that_is_no_such(drive, site, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(site, broken)
    (broken / "models" / "0-first.tflite").write_bytes(b"\0\0\0\0TFL3 cut")
    (broken / "models" / "1-other.tflite").unlink()
    told = drive(
        broken,
        ["status", "The model could not be loaded: "],
        ["select", "#model", "other"],
        ["wait", "/tflite is not there \\(404\\)/.test(document.body.innerText)"],
        ["text", "#status"],
        clean=False,
    )
    assert told["answers"][-1].startswith("The model could not be loaded: http")


def test_it_can_be_read_and_used_by_all(drive, site, tmp_path):
    """axe-core on a screen and a phone, light and dark; nothing is wider than a phone."""
    (photo,) = pictures(tmp_path, (48, 64))
    check = [["axe"], ["dark", True], ["axe"], ["dark", False]]
    told = drive(
        site,
        ["status", "Ready"],
        *check,
        ["drop", str(photo)],
        ["status", "photo0: "],
        *check,
        ["resize", 360, 740],
        *check,
        ["evaluate", "document.documentElement.scrollWidth"],
    )
    answers = told["answers"]
    assert [a for a in answers if isinstance(a, list)] == [[]] * 6
    assert answers[-1] <= 360


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.slow
def test_real_photos(drive, built, tmp_path, plain):
    """The model of the README on photos of CamVid, one of them of another size."""
    if not CAMVID.is_dir():
        pytest.skip(f"{CAMVID} is not there")
    model = isa_tf.formats.load_model(ROOT / "experiments/trained/camvid/best.keras")
    path = isa_tf.export(model, tmp_path / "camvid.tflite", image_size=(360, 480))
    folder = web.write(tmp_path / "site", [path], page=built)
    photos = []
    for number, source in enumerate(sorted(CAMVID.glob("*.jpg"))[:30:10]):
        photos.append(tmp_path / f"photo{number}.png")
        with Image.open(source) as image:
            size = (700, 460) if number == 1 else image.size
            image.convert("RGB").resize(size).save(photos[-1])
    steps = [["status", "Ready"]]
    for photo in photos:
        steps += [["drop", str(photo)], ["status", f"{photo.stem}: "]]
        steps += [["download", "#save-mask", f"{photo.stem}.mask"]]
    told = drive(folder, *steps, plain=plain)
    assert told["isolated"] is not plain and told["paint"] < 1000
    predictor = isa_tf.load_predictor(path)
    for photo in photos:
        with Image.open(photo) as image:
            expected, _ = predictor(np.asarray(image))
        np.testing.assert_array_equal(ids_of(tmp_path / f"{photo.stem}.mask"), expected)


def test_the_same_sources_make_the_same_page(sources, built, tmp_path):
    subprocess.run(["node", sources / "build.mjs", tmp_path / "again"], check=True, timeout=120)
    files = {
        str(path.relative_to(built)): path.read_bytes()
        for path in built.rglob("*")
        if path.is_file()
    }
    assert {"page.js", "worker.js", "index.html", "licences.txt"} < {*files}
    for name, data in files.items():
        assert (tmp_path / "again" / name).read_bytes() == data


def test_resizing_is_pillows(sources, tmp_path):
    rng = np.random.default_rng(0)
    cases, expected = [], {}
    for i in range(40):
        size, to = (tuple(map(int, rng.integers(1, 90, 2))) for _ in range(2))
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        for kind, array, filter in (
            ("rgb", image, Image.Resampling.BILINEAR),
            ("ids", image[..., 0].copy(), Image.Resampling.NEAREST),
        ):
            name = f"{kind}{i}"
            (tmp_path / f"{name}.in").write_bytes(array.tobytes())
            cases.append({"name": name, "kind": kind, "size": size, "to": to})
            expected[name] = np.asarray(Image.fromarray(array).resize(to[::-1], filter))
    many = rng.integers(0, 70000, (7, 9)).astype("<i4") % 65536
    (tmp_path / "many.in").write_bytes(many.tobytes())
    cases.append({"name": "many", "kind": "png16", "size": many.shape, "to": None})
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    subprocess.run(["node", sources / "test/resample.mjs", tmp_path], check=True, timeout=60)
    for name, array in expected.items():
        assert (tmp_path / f"{name}.out").read_bytes() == array.tobytes(), name
    with Image.open(tmp_path / "many.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), many)
