"""`tools.predict` on videos, by models of both tasks."""

import json
import os
import signal
from pathlib import Path

import filming
import numpy as np
import pytest
from absl import app
from exporting import NAMES, PALETTE, make_model
from finding import make_detector
from PIL import Image
from pycocotools import mask

import isa_tf
from isa_tf.data.base import DataError
from isa_tf.data.videos import Frame
from isa_tf.visualize import draw_instances, legend, overlay
from tools import predict, predictions

pytest.importorskip("av", reason="the extra video is not installed")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("tool") / "model.keras"
    make_model().save(path)
    return path


@pytest.fixture(scope="module")
def predictor(model):
    return isa_tf.load_predictor(model)


@pytest.fixture
def film(tmp_path):
    return filming.film(tmp_path / "film.mp4", filming.pictures(), movflags="faststart")


def names_in(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def assert_shows(path, pictures):
    """A film is these pictures, but for what its encoding loses."""
    found, told = filming.decoded(path)
    assert found.shape == np.shape(pictures)
    found = found.astype(int)
    difference = np.abs(found - pictures).mean((1, 2, 3))
    others = np.abs(found[:-1] - pictures[1:]).mean()
    assert difference.max() < 20 < 30 < others, (difference, others)
    return told


def test_a_film(run, model, predictor, film, tmp_path):
    out = tmp_path / "out"
    given = f"--model={model}", f"--images={film}", f"--output={out}"
    status, printed = run(predict, *given, "--json=masks", "--frame_labels")
    assert status == 0, printed
    frames, (rate, _, times) = filming.decoded(film)
    ids = [predictor(frame)[0] for frame in frames]
    assert len(np.unique(ids)) > 2
    labels = [f"film_label/{i:06d}.png" for i in range(12)]
    assert names_in(out) == ["film.jsonl", *labels, "film_overlay.mp4"]
    for name, class_id in zip(labels, ids, strict=True):
        np.testing.assert_array_equal(Image.open(out / name), class_id)
    pictures = [overlay(f, i, PALETTE) for f, i in zip(frames, ids, strict=True)]
    told_rate, codec, told_times = assert_shows(out / "film_overlay.mp4", pictures)
    assert told_rate == rate and codec == "h264"
    np.testing.assert_allclose(told_times, times, atol=1e-4)
    lines = [json.loads(line) for line in (out / "film.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(12))
    for line, class_id, seconds in zip(lines, ids, times, strict=True):
        assert line["seconds"] == pytest.approx(seconds, abs=1e-5)
        assert line["size"] == [48, 64] and line["task"] == "segmentation"
        for row in line["classes"]:
            where = class_id == row["class_id"]
            assert row["name"] == NAMES[row["class_id"]] and row["share"] == where.mean()
            np.testing.assert_array_equal(mask.decode(row["segmentation"]), where)
        assert sum(row["pixels"] for row in line["classes"]) == class_id.size


def test_some_of_it_with_a_legend(run, model, predictor, film, tmp_path):
    out = tmp_path / "out"
    given = f"--model={model}", f"--images={film}", f"--output={out}", "--legend", "--clear=sky"
    assert run(predict, *given, "--every=3", "--frames=3", "--json=shares")[0] == 0
    frames, (rate, _, times) = filming.decoded(film)
    found, (told, _, told_times) = filming.decoded(out / "film_overlay.mp4")
    assert len(found) == 3 and told == rate / 3
    np.testing.assert_allclose(told_times, times[:9:3], atol=1e-4)
    for picture, frame in zip(found, frames[::3], strict=False):
        painted = overlay(frame, predictor(frame)[0], PALETTE, clear=(1,))
        assert np.abs(picture[:48, :64].astype(int) - painted).mean() < 20
    # The same beneath every frame: what stands there is the legend of all that is painted.
    some = [i for i in range(7) if i != 1]
    names = legend([NAMES[i] for i in some], [PALETTE[i] for i in some], 240 - 28, 14)
    for picture in found:
        assert picture.shape[0] % 2 == 0 and picture.shape[1] == 240
        beneath = picture[48 + 14 : 48 + 14 + names.shape[0], 14 : 14 + names.shape[1]]
        blank = np.abs(255 - names.astype(int)).mean()
        assert np.abs(beneath.astype(int) - names).mean() < blank / 2
    rows = [json.loads(line) for line in (out / "film.jsonl").read_text().splitlines()]
    assert [row["frame"] for row in rows] == [0, 3, 6]
    assert "segmentation" not in rows[0]["classes"][0]


def test_a_film_that_ends_early(run, model, predictor, film, tmp_path):
    out = tmp_path / "out"
    whole, _ = filming.decoded(film)
    filming.cut(film, 0.75)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    given = f"--model={model}", f"--images={tmp_path}/*.mp4", f"--output={out}"
    status, printed = run(predict, *given, "--json=shares")
    assert status == 1
    assert names_in(out) == ["failures.json", "film.jsonl", "film_overlay.mp4"]
    bad, cut = json.loads((out / "failures.json").read_text())
    assert bad["path"] == f"{tmp_path}/bad.mp4" and "cannot be read" in bad["reason"]
    count = len((out / "film.jsonl").read_text().splitlines())
    assert 0 < count < 12 and f"ended after {count} frames of about 12" in cut["reason"]
    assert f"FAULT {film}: ended after {count} frames" in printed
    pictures = [overlay(frame, predictor(frame)[0], PALETTE) for frame in whole[:count]]
    assert_shows(out / "film_overlay.mp4", pictures)


def test_a_camera_that_is_switched_off(predictor, tmp_path):
    class Camera:
        live, rate, time_base, path = True, filming.RATE, 1 / filming.RATE, "camera0"

        def __iter__(self):
            for i, image in enumerate(filming.pictures(4)):
                yield Frame(i, image, i)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("not interrupted")

    writer = predictions.Labels(predictor, tmp_path, predictions.Options())
    source = predictions.Source(tmp_path / "camera0", "camera0")
    assert writer.write_video(source, Camera()) == (4, None)
    assert len(filming.decoded(tmp_path / "camera0_overlay.mp4")[0]) == 4
    # What is no camera is not kept by halves.
    Camera.live = False
    (tmp_path / "camera0_overlay.mp4").unlink()
    with pytest.raises(KeyboardInterrupt):
        writer.write_video(source, Camera())
    assert names_in(tmp_path) == []


def test_a_full_disk_leaves_the_older_film(predictor, film, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "film_overlay.mp4").write_bytes(b"older")
    writer = predictions.Labels(predictor, out, predictions.Options(json="shares"))
    calls = []

    def told(result):
        calls.append(result)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return {}

    monkeypatch.setattr(writer, "told", told)
    with pytest.raises(OSError, match="No space left"):
        writer.write_video(predictions.Source(film, "film"), isa_tf.data.videos.Video(film))
    assert names_in(out) == ["film_overlay.mp4"]
    assert (out / "film_overlay.mp4").read_bytes() == b"older"


@pytest.mark.slow
def test_instances(run, film, tmp_path):
    detector = make_detector()
    path = isa_tf.export(detector, tmp_path / "saved")
    predictor = isa_tf.load_predictor(path)
    given = f"--model={path}", f"--images={film}", f"--output={tmp_path}/out"
    flags = "--frames=3", "--json=masks", "--score_threshold=0"
    assert run(predict, *given, *flags)[0] == 0
    assert names_in(tmp_path / "out") == ["film.jsonl", "film_overlay.mp4"]
    frames, _ = filming.decoded(film)
    results = [predictor(frame) for frame in frames[:3]]
    names, palette = predictor.class_names, predictor.palette
    pictures = [
        draw_instances(frame, result, names, palette, width=64)
        for frame, result in zip(frames, results, strict=False)
    ]
    assert_shows(tmp_path / "out/film_overlay.mp4", pictures)
    lines = (tmp_path / "out/film.jsonl").read_text().splitlines()
    for line, result in zip(lines, results, strict=True):
        told = json.loads(line)["instances"]
        assert len(told) == len(result.scores) > 0
        masks = [mask.decode(row["segmentation"]) for row in told]
        np.testing.assert_array_equal(masks, result.masks)
    with pytest.raises(app.UsageError, match="--frame_labels is for models that give each pixel"):
        run(predict, *given, "--frame_labels")


def test_sources_have_names_of_their_own(tmp_path):
    for name in ("a/1.jpg", "b/1.jpg", "b/1.png", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    given = [f"{tmp_path}/**/1.*", f"{tmp_path}/b", f"{tmp_path}/a/1.jpg"]
    sources = predict.find_sources(given[:1])
    assert [source.name for source in sources] == ["a/1", "b/1", "b/1"]
    kept, (fault,) = predictions.unlike(sources)
    assert [source.file_name for source in kept] == ["a/1.jpg", "b/1.jpg"]
    assert isinstance(fault, DataError) and fault.path == f"{tmp_path}/b/1.png"
    assert fault.reason == f"the same name as {tmp_path}/b/1.jpg"
    listed = [predictions.Source(Path(name), "detections") for name in ("x.jpg", "x.mp4")]
    assert predictions.unlike(listed[:1], predictions.Detections.lists)[0] == []
    assert predictions.unlike(listed[1:], predictions.Detections.lists)[0] == listed[1:]
    assert len(predict.find_sources(given)) == 3  # a file that is named twice is one
