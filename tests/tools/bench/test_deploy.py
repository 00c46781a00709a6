"""`tools.benchmark deploy`: what it refuses, scores and writes."""

import io
import json
import sys

import numpy as np
import pytest
from absl import app
from PIL import Image

from isa_tf.metrics import scores
from tools import benchmark
from tools.bench import deploy, results

KERAS, OTHER = "Keras", "LiteRT"


def test_what_there_is_not(run, tmp_path):
    for flag, message in (
        ("--deploy_models=r51", "r51: there are r50, camvid"),
        ("--deploy_only=LiteRT,TVM", "TVM: there are Keras, fused, SavedModel"),
    ):
        with pytest.raises(app.UsageError, match=message):
            run(benchmark, "deploy", flag, f"--output={tmp_path}")
    assert not [*tmp_path.iterdir()]


def test_the_kept_model_is_in_a_checkout_alone(run, tmp_path, monkeypatch):
    monkeypatch.setattr(deploy, "KEPT", tmp_path / "best.keras")
    with pytest.raises(app.UsageError, match="camvid is of a model in a checkout"):
        run(benchmark, "deploy", f"--output={tmp_path}")


def test_scores_are_those_of_the_class_ids(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 11, (2, 6, 8)).astype("uint8")
    labels[0, :2] = 255
    by_keras = np.where(rng.random(labels.shape) < 0.8, labels % 11, 3).astype("uint8")
    by_other = by_keras.copy()
    by_other[1, 2, 3:6] = (by_keras[1, 2, 3:6] + 1) % 11
    np.save(tmp_path / "labels.npy", labels)
    np.save(tmp_path / f"ids {KERAS}.npy", by_keras)
    np.save(tmp_path / f"ids {OTHER}.npy", by_other)
    (tmp_path / "model.keras").write_bytes(bytes(3000))
    (tmp_path / "litert").mkdir()
    (tmp_path / "litert" / "a").write_bytes(bytes(2000))

    def row(name, format):
        times = {"case": "camvid", "name": name, "times": [3.0, 1.0, 2.0]}
        return deploy.scores_of(times, tmp_path, format)

    def miou(ids):
        """Pixel by pixel."""
        matrix = np.zeros((11, 11), int)
        for truth, guess in zip(labels.ravel(), ids.ravel(), strict=True):
            if truth != 255:
                matrix[truth, guess] += 1
        return scores(matrix)["miou"]

    assert row(KERAS, None) == {"ms": 2.0, "mb": 0.003, "photos": 2, "miou": miou(by_keras)}
    other = row(OTHER, "litert")
    assert other.pop("agreement") == pytest.approx(1 - 3 / labels.size)
    assert other == {"ms": 2.0, "mb": 0.002, "photos": 2, "miou": miou(by_other)}


def test_report_rounds_agreement_down():
    row = {"case": "camvid", "name": OTHER, "ms": 12.4, "mb": 1.26, "photos": 34, "miou": 0.75}
    more = {"agreement": 0.9999999, "ratio": 0.7}
    rows = [row | {"name": KERAS, "mb": None}, row | more]
    result = results.of_now("tools.benchmark", "deploy", rows, ["case", "name"], {}, {})
    text = deploy.report(result, {"threads": 2, "rounds": 7})
    assert "camvid, 360x480, 34 photos" in text
    assert "| Keras |  | 12 |  |  | 0.7500 |" in text
    assert "| LiteRT | 1.3 | 12 | 0.70 | 99.999 | 0.7500 |" in text
    assert "; instructions " in text and "; 2 threads, 7 rounds. `python -m tools" in text


def test_a_contestant_answers_what_it_is_asked(tmp_path, monkeypatch, capsys):
    photos = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)
    np.save(tmp_path / "photos.npy", photos)
    seen = []

    def predictor(photo):
        seen.append(photo)
        return photo[..., 0] % 11, photo[..., 0] / 255

    monkeypatch.setattr(deploy, "_predictor", lambda *given: predictor)
    monkeypatch.setattr(deploy, "_set_threads", lambda threads: None)
    questions = [["ready"], ["call", "camvid"], ["predict", "camvid", str(tmp_path / "ids.npy")]]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(map(json.dumps, questions))))
    deploy.serve(OTHER, "litert", {}, {"camvid": str(tmp_path)}, 2)
    answers = [line.split(" ", 1) for line in capsys.readouterr().out.splitlines()]
    assert [key for key, _ in answers] == ["answer"] * 3
    assert answers[0][1] == answers[2][1] == "null" and float(answers[1][1]) >= 0
    np.testing.assert_array_equal(np.load(tmp_path / "ids.npy"), photos[..., 0] % 11)
    assert len(seen) == 2 + 2 + 2  # warming up, the call after another, the photos


@pytest.mark.slow
def test_a_table_of_fresh_processes(run, tmp_path):
    pytest.importorskip("ai_edge_litert")
    rng = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 4)):
        for kind, channels in (("images", (3,)), ("labels", ())):
            folder = tmp_path / "camvid" / split / kind
            folder.mkdir(parents=True)
            for i in range(count):
                array = rng.integers(0, 256 if channels else 11, (60, 80, *channels), np.uint8)
                Image.fromarray(array).save(folder / f"{i}.png")
    status, printed = run(
        benchmark,
        "deploy",
        "--deploy_models=camvid",
        "--deploy_only=Keras,SavedModel,LiteRT",
        "--deploy_rounds=1",
        "--deploy_every=2",
        f"--deploy_data={tmp_path / 'camvid'}",
        f"--output={tmp_path / 'out'}",
    )
    assert status == 0
    rows = results.read(tmp_path / "out" / "deploy.json").rows
    assert [row["name"] for row in rows] == ["Keras", "SavedModel", "LiteRT"]
    assert all(row["photos"] == 2 and row["ms"] > 0 and row["mb"] > 1 for row in rows)
    assert min(row["agreement"] for row in rows[1:]) > 0.995
    assert (tmp_path / "out" / "deploy.md").read_text() in printed
