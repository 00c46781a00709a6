import numpy as np
import pytest
from absl import app
from PIL import Image

from isa_tf.inference import Predictor, load_predictor
from isa_tf.models import Segmenter
from tools import export


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("tool") / "harbour.keras"
    model = Segmenter(
        "tiny",
        "isa",
        num_classes=3,
        head_filters=8,
        head_kernel_size=1,
        class_names=("sea", "rock", "ship"),
    )
    model.save(path)
    return path


def test_both_formats(run, model, tmp_path, monkeypatch):
    pytest.importorskip("ai_edge_litert")
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "photo.png")
    status, printed = run(
        export,
        f"--model={model}",
        f"--output={tmp_path / 'out'}",
        "--image_size=44x52",
        f"--image={tmp_path / 'photo.png'}",
    )
    assert status == 0, printed
    for name in ("saved_model", "model.tflite"):
        path = tmp_path / "out" / name
        assert load_predictor(path).class_names == ("sea", "rock", "ship")
        (line,) = [line for line in printed.splitlines() if line.startswith(f"{path}: ")]
        assert " MB; " in line and f" % of {44 * 52} pixels agree with Keras" in line


def test_one_format_beside_the_model_and_a_difference_is_told(run, model, monkeypatch):
    status, printed = run(export, f"--model={model}", "--format=saved_model")
    assert status == 0
    assert [p.name for p in model.parent.glob("*_export/*")] == ["saved_model"]
    assert "100.000 % of 65536 pixels" in printed

    def wrong(path):
        return Predictor(lambda images: (images[..., 0] * 0 + 9, images[..., 0] / 255))

    monkeypatch.setattr(export, "load_predictor", wrong)
    status, printed = run(export, f"--model={model}", "--format=saved_model")
    assert status == 1
    assert "0.000 % of 65536" in printed and "TOO FEW" in printed


def test_agreement_that_proves_nothing(monkeypatch, capsys, model):
    images = np.zeros((1, 4, 4, 3), np.uint8)

    def verify(score):
        same = Predictor(lambda images: (images[..., 0], images[..., 0] + np.float32(score)))
        monkeypatch.setattr(export, "load_predictor", lambda path: same)
        monkeypatch.setattr(export.Predictor, "from_model", lambda model: same)
        return export._verify(model, None, images), capsys.readouterr().out

    agreement, printed = verify(0.5)
    assert agreement == 1 and "one class alone" in printed
    agreement, printed = verify(np.nan)
    assert agreement == 0 and "TOO FEW" in printed


def test_usage(run, model, tmp_path):
    (tmp_path / "text.keras").write_text("text")
    sound = f"--model={model}"
    for flags, message in (
        ((), "--model=FILE.keras"),
        ((sound, "--format=onnx,saved_model"), "Unknown --format 'onnx'; known: saved_model"),
        ((sound,), "give --image_size"),
        ((sound, "--image_size=big"), "HEIGHTxWIDTH, such as 360x480, not 'big'"),
        ((sound, "--image_size=0x5"), "not '0x5'"),
        ((sound, "extra"), "Unexpected arguments: extra"),
        (("--model=no.keras", "--image_size=8x8"), "no.keras: no such file"),
        ((f"--model={tmp_path}/text.keras", "--image_size=8x8"), "text.keras: not a Keras"),
        ((sound, "--image_size=8x8", "--image=no.png"), "--image: no.png: no such file"),
    ):
        with pytest.raises(app.UsageError, match=message):
            run(export, *flags)
