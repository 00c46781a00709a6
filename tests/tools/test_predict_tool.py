import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from absl import app
from PIL import Image
from pycocotools import mask

import tools
from isa_tf import load_predictor
from isa_tf.data.pictures import read_label
from isa_tf.models import Segmenter
from isa_tf.visualize import overlay, with_legend
from tools import predict

ROOT = Path(__file__).parents[2]
NAMES = ("sea", "rock", "ship")
PALETTE = ((0, 0, 200), (90, 80, 70), (250, 30, 30))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("tool") / "model.keras"
    model = Segmenter(
        "tiny",
        None,
        num_classes=3,
        head_filters=8,
        head_kernel_size=1,
        class_names=NAMES,
        palette=PALETTE,
    )
    model.save(path)
    return path


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("a.png", (31, 40, 3)), ("b.jpg", (20, 24, 3))):
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_folder(run, model, photos, tmp_path):
    output = tmp_path / "out"
    status, printed = run(predict, f"--model={model}", f"--images={photos}", f"--output={output}")
    assert status == 0
    assert sorted(p.name for p in output.iterdir()) == [
        f"{stem}_{kind}.png" for stem in "ab" for kind in ("label", "overlay")
    ]
    image = np.asarray(Image.open(photos / "a.png"))
    class_id = load_predictor(model)(image[None])[0][0]
    np.testing.assert_array_equal(read_label(output / "a_label.png", 3), class_id)
    found = np.unique(class_id)
    picture = np.asarray(Image.open(output / "a_overlay.png"))
    painted = overlay(image, class_id, PALETTE)
    np.testing.assert_array_equal(picture[:31, :40], painted)
    colors = [PALETTE[i] if i else None for i in found]
    np.testing.assert_array_equal(picture, with_legend(painted, [NAMES[i] for i in found], colors))
    line = printed.splitlines()[0]
    assert re.match(rf"{re.escape(str(photos))}/a.png: \d+ ms; ", line)
    shares = dict(re.findall(r"(\w+) ([\d.]+) %", line))
    for i, name in enumerate(NAMES):
        share = 100 * (class_id == i).mean()
        assert float(shares.get(name, 0)) == pytest.approx(share, abs=0.051)
    assert printed.splitlines()[-1].startswith("2 of 2 images segmented")


def test_a_bad_image_is_named_and_left_out(run, model, photos, tmp_path):
    (photos / "a0.png").write_bytes(b"no image")
    Image.new("RGB", (8, 8)).save(photos / "b.png")
    status, printed = run(
        predict, f"--model={model}", f"--images={photos}/*.[pj]*", f"--output={tmp_path}/out"
    )
    assert status == 1
    assert f"FAULT {photos / 'a0.png'}: cannot be read as an image" in printed
    assert f"FAULT {photos / 'b.png'}: the same name as {photos / 'b.jpg'}" in printed
    assert "2 of 4 images segmented" in printed
    assert Image.open(tmp_path / "out/b_label.png").size == (24, 20)


def test_an_image_too_large_for_the_memory_is_named_and_left_out(run, photos, tmp_path):
    path = tmp_path / "dense.keras"
    # 4096x4096 at stride 8: affinities of 275 GB, which no system gives at once.
    Segmenter("tiny", "self_attention", 3, head_filters=4, head_kernel_size=1).save(path)
    Image.new("RGB", (4096, 4096)).save(photos / "aa.png")
    given = f"--model={path}", f"--images={photos}", f"--output={tmp_path}/out"
    status, printed = run(predict, *given)
    assert status == 1 and "2 of 3 images segmented" in printed
    reason = "4096x4096 pixels are too large: the affinity, 1x1x262144x262144 float32, takes 274.9"
    assert f"FAULT {photos}/aa.png: {reason} GB, " in printed
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found == {f"{stem}_{kind}.png" for stem in "ab" for kind in ("label", "overlay")} | {
        "failures.json"
    }
    (fault,) = json.loads((tmp_path / "out/failures.json").read_text())
    assert fault["path"] == str(photos / "aa.png") and fault["reason"].startswith(reason)
    assert fault["reason"].endswith("Give smaller maps, or a partition into more groups")


def test_an_image_called_as_a_list_of_all_replaces_none(run, model, photos, tmp_path):
    (photos / "b.jpg").rename(photos / "failures.jpg")
    given = f"--model={model}", f"--images={photos}", f"--output={tmp_path}/out"
    assert run(predict, *given)[0] == 0  # without --json there is nothing to be mixed up
    status, printed = run(predict, *given, "--json=shares")
    assert status == 1 and f"FAULT {photos}/failures.jpg: its failures.json would be" in printed
    (fault,) = json.loads((tmp_path / "out/failures.json").read_text())
    assert fault["path"] == str(photos / "failures.jpg")


def test_results_replace_no_image_that_is_to_be_predicted(run, model, photos):
    label = photos / "a_label.png"  # somebody's own, beside the photo
    Image.new("L", (40, 31), 1).save(label)
    kept, there = label.read_bytes(), sorted(photos.iterdir())
    given = f"--model={model}", f"--output={photos / '..' / photos.name}"
    with pytest.raises(app.UsageError, match="a_label.png is to be predicted, and what is found"):
        run(predict, *given, f"--images={photos}")
    assert label.read_bytes() == kept and sorted(photos.iterdir()) == there
    status, _ = run(predict, *given, f"--images={photos / 'b.jpg'}")
    assert status == 0 and (photos / "b_label.png").exists()


def test_one_file_without_names(run, photos, tmp_path):
    Segmenter("tiny", None, 4, head_filters=8).save(tmp_path / "m.keras")
    status, printed = run(
        predict,
        f"--model={tmp_path}/m.keras",
        f"--images={photos}/a.png",
        f"--output={tmp_path}/out",
        "--opacity=1",
    )
    assert status == 0 and re.search(r"ms; class \d \d", printed)


def test_what_is_painted_and_named(run, model, photos, tmp_path):
    image = np.asarray(Image.open(photos / "a.png"))
    class_id = load_predictor(model)(image)[0]
    for flags, clear in (((), (0,)), (("--clear=",), ()), (("--clear=sea,2",), (0, 2))):
        output = tmp_path / f"out{len(clear)}"
        given = (f"--model={model}", f"--images={photos}/a.png", f"--output={output}", *flags)
        assert run(predict, *given, "--nolegend")[0] == 0
        np.testing.assert_array_equal(
            Image.open(output / "a_overlay.png"), overlay(image, class_id, PALETTE, clear=clear)
        )


def test_more_classes_than_a_byte_holds(run, photos, tmp_path):
    image = keras.Input((None, None, 3))
    conv = keras.layers.Conv2D(300, 1)
    model = keras.Model(image, conv(image))
    conv.set_weights([np.zeros((1, 1, 3, 300)), np.eye(300)[299]])
    model.save(tmp_path / "m.keras")
    given = f"--model={tmp_path}/m.keras", f"--images={photos}/a.png", f"--output={tmp_path}/out"
    status, printed = run(predict, *given)
    assert status == 0 and "class 299 100.0 %" in printed
    label = np.asarray(Image.open(tmp_path / "out/a_label.png"))
    assert label.shape == (31, 40) and (label == 299).all()


def test_json_of_what_was_found(run, model, photos, tmp_path):
    (photos / "bad.png").write_bytes(b"no image")
    predictor = load_predictor(model)
    for kind in ("masks", "shares"):
        out = tmp_path / kind
        given = f"--model={model}", f"--images={photos}", f"--output={out}", f"--json={kind}"
        assert run(predict, *given)[0] == 1
        for stem, suffix in (("a", ".png"), ("b", ".jpg")):
            class_id = predictor(np.asarray(Image.open(photos / f"{stem}{suffix}")))[0]
            told = json.loads((out / f"{stem}.json").read_text())
            assert told["size"] == list(class_id.shape)
            assert {row["name"]: row["share"] for row in told["classes"]} == {
                NAMES[i]: (class_id == i).mean() for i in np.unique(class_id)
            }
            for row in told["classes"]:
                if kind == "shares":
                    assert "segmentation" not in row
                    continue
                found = mask.decode(row["segmentation"])
                np.testing.assert_array_equal(found, class_id == row["class_id"])
        (failure,) = json.loads((out / "failures.json").read_text())
        assert failure["path"] == str(photos / "bad.png")
        assert failure["reason"].startswith("cannot be read as an image")
    (photos / "bad.png").unlink()
    assert run(predict, *given)[0] == 0 and not (out / "failures.json").exists()


def test_folders_within_a_pattern(run, model, photos, tmp_path):
    (photos / "more").mkdir()
    Image.new("RGB", (9, 7)).save(photos / "more/a.png")
    given = f"--model={model}", f"--output={tmp_path}/out", "--nolegend"
    images = f"--images={photos}/**/*.png", f"--images={photos}/b.jpg"
    status, printed = run(predict, *given, *images)
    assert status == 0 and "3 of 3 images" in printed
    assert Image.open(tmp_path / "out/more/a_label.png").size == (9, 7)
    assert Image.open(tmp_path / "out/a_label.png").size == (40, 31)
    assert (tmp_path / "out/b_label.png").exists()


def test_what_is_not_installed(run, model, photos, tmp_path, monkeypatch):
    given = f"--model={model}", f"--output={tmp_path}/out"
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "tools.predict_beam", raising=False)
    monkeypatch.delattr(tools, "predict_beam", raising=False)
    with pytest.raises(app.UsageError, match="--runner needs Apache Beam: pip install"):
        run(predict, *given, f"--images={photos}", "--runner=DirectRunner")
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "film.mp4").touch()
    with pytest.raises(app.UsageError, match=r"a video needs PyAV.*isa_tf\[video\]"):
        run(predict, *given, f"--images={tmp_path}/film.mp4")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(app.UsageError, match=r"a camera needs OpenCV.*isa_tf\[video\]"):
        run(predict, *given, "--camera=0")
    assert list((tmp_path / "out").glob("*")) == []


def test_usage(run, model, photos, tmp_path):
    sound = {"--model": model, "--images": photos, "--output": tmp_path / "out"}

    def refused(message, *extra, **changes):
        flags = {**sound, **{f"--{name}": value for name, value in changes.items()}}
        given = [f"{name}={value}" for name, value in flags.items() if value is not None]
        with pytest.raises(app.UsageError, match=message):
            run(predict, *given, *extra)

    for name in ("model", "images", "output"):
        refused(f"Give --{name}", **{name: None})
    refused("no.tflite: no such file", model="no.tflite")
    refused("not a model; known are", model=photos / "a.png")
    refused("nothing.: no file is there, or matches", images=photos / "nothing*")
    refused("ends in .jpg", images=tmp_path)
    refused("--plugins: 'no_such_module' cannot be imported", "--plugins=no_such_module")
    refused("unknown class in --clear: 'shp'; did you mean .ship", "--clear=sea,shp")
    refused("unknown class in --clear: '3'; known: sea, rock, ship", "--clear=3")
    refused("--images: give a path", images="")
    refused("Give --output", output="")
    refused("x.png .a pattern of --images needs quotes", "x.png")
    refused("--output: the folder cannot be made .*exists", output=photos / "a.png")
    assert not (tmp_path / "out").exists()


def test_as_a_command(photos):
    """Every tool, once, as it is called: flags, usage and exit status go through absl."""
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(
        [sys.executable, "-m", "tools.predict", f"--images={photos}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=env,
    )
    assert done.returncode == 1
    assert "Give --model" in done.stdout + done.stderr
    assert "--output: The folder to write into." in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
