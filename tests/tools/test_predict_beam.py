"""`tools.predict` as an Apache Beam pipeline."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from absl import app
from exporting import make_model
from finding import make_detector
from PIL import Image

import isa_tf
from isa_tf.models import Segmenter
from tools import predict

ROOT = Path(__file__).parents[2]
BEAM = "--runner=DirectRunner"


@pytest.fixture(scope="module", autouse=True)
def _beam():
    pytest.importorskip("apache_beam", reason="the extra beam is not installed")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("tool") / "model.keras"
    make_model().save(path)
    return path


def photos(folder, count, bad=()):
    """Small photos; those that are bad are cut, empty or no images."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
        coarse.resize((20, 16), Image.BICUBIC).save(folder / f"{i:03d}.png")
    damages = (lambda old: old[: len(old) // 2], lambda old: b"", lambda old: b"no image")
    for i, damage in zip(bad, damages, strict=False):
        path = folder / f"{i:03d}.png"
        path.write_bytes(damage(path.read_bytes()))
    return folder


def results(folder):
    """What is in a folder but for the notes of what is done: bytes by name."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in found}
    return {n: p.read_bytes() for n, p in names.items() if not n.startswith(".parts/")}


def test_beam_of_many_photos(run, model, tmp_path):
    given = f"--model={model}", f"--images={photos(tmp_path / 'photos', 200, (7, 99, 150))}"
    status, printed = run(predict, *given, f"--output={tmp_path}/beam", "--json=masks", BEAM)
    assert status == 1 and "197 of 200 images segmented" in printed
    assert run(predict, *given, f"--output={tmp_path}/plain", "--json=masks")[0] == 1
    beam, plain = results(tmp_path / "beam"), results(tmp_path / "plain")
    assert beam == plain
    assert sum(name.endswith("_label.png") for name in beam) == 197
    failures = json.loads(beam["failures.json"])
    named = [tmp_path / f"photos/{i:03d}.png" for i in (7, 99, 150)]
    assert [row["path"] for row in failures] == list(map(str, named))
    assert all("cannot be read as an image" in row["reason"] for row in failures)
    assert len({bytes(beam[name]) for name in beam if name.endswith("_label.png")}) > 100
    # One is mended and one has changed; nothing else is made again.
    Image.new("RGB", (9, 9)).save(named[0])
    Image.new("RGB", (7, 9)).save(tmp_path / "photos/003.png")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "beam").glob("*_label.png")}
    status, printed = run(predict, *given, f"--output={tmp_path}/beam", "--json=masks", BEAM)
    assert status == 1 and "196 images were done before" in printed
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "beam").glob("*_label.png")}
    assert sorted(p.name for p in after if after[p] != before.get(p)) == [
        *("003_label.png", "007_label.png")
    ]
    assert len(json.loads((tmp_path / "beam/failures.json").read_text())) == 2


def test_beam_that_is_killed(run, model, tmp_path):
    folder = photos(tmp_path / "photos", 120, (5,))
    out = tmp_path / "beam"
    given = f"--model={model}", f"--images={folder}"
    command = [sys.executable, "-m", "tools.predict", *given, f"--output={out}", BEAM]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 170
        while len(list(out.glob(".parts/*.part"))) < 10 and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it had not ended by itself
    done = [p.stem for p in out.glob(".parts/*.part") if "rows" in p.read_text()]
    before = {name: (out / f"{name}_label.png").stat().st_mtime_ns for name in done}
    assert 0 < len(done) < 119 and not (out / "failures.json").exists()
    (out / ".new-1-000_label.png").write_bytes(b"what a killed writer leaves")
    status, printed = run(predict, *given, f"--output={out}", BEAM)
    assert status == 1 and f"{len(done)} images were done before" in printed
    run(predict, *given, f"--output={tmp_path}/plain")
    assert results(out) == results(tmp_path / "plain")
    for name, moment in before.items():
        assert (out / f"{name}_label.png").stat().st_mtime_ns == moment
    # By other options all is another.
    status, printed = run(predict, *given, f"--output={out}", "--opacity=1", BEAM)
    assert status == 1 and "done before" not in printed
    run(predict, *given, f"--output={tmp_path}/plain", "--opacity=1")
    assert results(out) == results(tmp_path / "plain")


def test_beam_of_instances(run, tmp_path):
    model = isa_tf.export(make_detector(), tmp_path / "saved")
    folder = photos(tmp_path / "photos", 6, (2,))
    (tmp_path / "photos/more").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "photos/more/000.png")
    given = f"--model={model}", f"--images={folder}/**/*.png", "--score_threshold=0"
    for name, more in (("plain", ()), ("beam", (BEAM,)), ("beam", (BEAM,))):
        assert run(predict, *given, f"--output={tmp_path / name}", *more)[0] == 1
    beam = results(tmp_path / "beam")
    assert beam == results(tmp_path / "plain") and "more/000_overlay.png" in beam
    rows = json.loads(beam["detections.json"])
    assert len({row["file_name"] for row in rows}) > 3


def test_beam_leaves_out_what_the_memory_is_too_short_for(run, tmp_path):
    model, folder = tmp_path / "dense.keras", photos(tmp_path / "photos", 3)
    Segmenter("tiny", "self_attention", 3, head_filters=4, head_kernel_size=1).save(model)
    Image.new("RGB", (4096, 4096)).save(folder / "large.png")  # affinities of 275 GB
    given = f"--model={model}", f"--images={folder}"
    for name, more in (("plain", ()), ("beam", (BEAM,)), ("beam", (BEAM,))):
        status, printed = run(predict, *given, f"--output={tmp_path / name}", *more)
        assert status == 1 and "4096x4096 pixels are too large: the affinity" in printed
    assert "3 images were done before" in printed
    beam, plain = results(tmp_path / "beam"), results(tmp_path / "plain")
    for found in (beam, plain):
        (fault,) = json.loads(found.pop("failures.json"))  # which tells how much is free just now
        assert fault["path"] == str(folder / "large.png")
    assert beam == plain and sum(name.endswith("_label.png") for name in beam) == 3


def test_beam_is_for_images(run, model, tmp_path):
    (tmp_path / "film.mp4").touch()
    given = f"--model={model}", f"--images={tmp_path}/film.mp4", f"--output={tmp_path}/out"
    with pytest.raises(app.UsageError, match="--runner is for images"):
        run(predict, *given, BEAM)
    assert not (tmp_path / "out").exists()
