import inspect
import re
import sys

import keras
import numpy as np
import pytest
from absl import app
from finding import make_detector, photos
from PIL import Image

from isa_tf import formats, load_predictor
from isa_tf.inference import Predictor
from isa_tf.models import Segmenter
from tools import export, predict


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


@pytest.mark.slow
def test_it_is_compared_on_what_the_model_is_to_see(run, model, tmp_path):
    """The size of the image that it was compared on tells which one that was."""
    for folder, size in (("images", (20, 24)), ("labels", (20, 24)), ("more", (12, 16))):
        (tmp_path / folder).mkdir()
        for i in range(2):
            shape = (
                (size[0] + 2 * i, size[1]) if folder == "labels" else (size[0] + 2 * i, size[1], 3)
            )
            Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / folder / f"{i}.png")
    scored = [f"--images={tmp_path / 'images'}", f"--labels={tmp_path / 'labels'}"]
    more = f"--calibration={tmp_path / 'more'}"
    one = f"--image={tmp_path / 'more' / '1.png'}"
    for given, pixels in (
        ([], 65536),
        ([more], 192),
        ([*scored, more], 480),
        ([*scored, one], 224),
    ):
        written = ["--format=keras", f"--output={tmp_path / 'out'}"]
        status, printed = run(export, f"--model={model}", *written, *given)
        assert status == 0 and f" of {pixels} pixels agree" in printed, printed


def test_one_format_beside_the_model_and_a_difference_is_told(run, model, monkeypatch):
    status, printed = run(export, f"--model={model}", "--format=saved_model")
    assert status == 0
    assert [p.name for p in model.parent.glob("*_export/*")] == ["saved_model"]
    assert "100.000 % of 65536 pixels" in printed

    def wrong(self, path, num_threads=None, protocol=None):
        return Predictor(lambda images: (images[..., 0] * 0 + 9, images[..., 0] / 255))

    monkeypatch.setattr(formats.SavedModel, "load", wrong)
    status, printed = run(export, f"--model={model}", "--format=saved_model")
    assert status == 1
    assert "0.000 % of 65536" in printed and "TOO FEW" in printed


def test_a_model_in_half_precision_is_not_refused_for_its_rounding(run, tmp_path):
    """Folded it rounds otherwise: more than a pixel of a thousand, and nothing is amiss."""
    keras.utils.set_random_seed(0)
    model = Segmenter("tiny", num_classes=3, head_filters=8, dtype="mixed_bfloat16")
    model.save(tmp_path / "half.keras")
    status, printed = run(export, f"--model={tmp_path / 'half.keras'}", "--format=saved_model")
    agreement = float(re.search(r"([\d.]+) % of 65536 pixels agree", printed)[1])
    assert 97 <= agreement < 99.9
    assert status == 0 and "TOO FEW" not in printed


@pytest.mark.slow
def test_a_table_of_all_formats_with_their_scores(run, model, tmp_path):
    """Labels that the model itself gives: its own mIoU is 1, and what is exported comes near."""
    for package in ("ai_edge_litert", "ai_edge_quantizer", "onnxruntime", "tf2onnx", "openvino"):
        pytest.importorskip(package)
    predictor = load_predictor(model)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for i in range(3):
        coarse = np.random.default_rng(i).integers(0, 256, (5, 6, 3), np.uint8)
        image = Image.fromarray(coarse).resize((60, 44), Image.Resampling.BICUBIC)
        image.save(tmp_path / "images" / f"{i}.png")
        label = predictor(np.asarray(image))[0]
        Image.fromarray(label).save(tmp_path / "labels" / f"{i}.png")
    status, printed = run(
        export,
        f"--model={model}",
        f"--output={tmp_path / 'out'}",
        "--format=saved_model,litert,litert_fp16,litert_int8,onnx,openvino",
        "--image_size=44x60",
        f"--image={tmp_path / 'images' / '0.png'}",
        f"--images={tmp_path / 'images'}",
        f"--labels={tmp_path / 'labels'}",
        f"--calibration={tmp_path / 'images'}",
    )
    head, *rows = [line.split() for line in printed.splitlines()[-8:]]
    assert head == ["format", "MB", "agreement", "time", "mIoU"]
    assert [row[0] for row in rows] == [
        *("Keras", "saved_model", "litert", "litert_fp16", "litert_int8", "onnx", "openvino")
    ]
    assert rows[0][1:] == [rows[0][1], "ms", "1.0000"]
    agreement = {row[0]: float(row[2]) for row in rows[1:]}
    miou = {row[0]: float(row[-1]) for row in rows}
    # Of a network that nothing has trained int8 is not to be had: what is told of it is the truth.
    assert status == int(agreement.pop("litert_int8") < 97)
    assert miou.pop("litert_int8") > 0.2
    assert min(agreement.values()) >= 99.9 and min(miou.values()) > 0.99
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("model.onnx", "model.tflite", "model_fp16.tflite", "model_int8.tflite"),
        *("openvino", "saved_model"),
    ]
    for path in (tmp_path / "out").iterdir():
        to = tmp_path / f"predicted_{path.stem}"
        given = f"--model={path}", f"--images={tmp_path / 'images'}", f"--output={to}"
        status, printed = run(predict, *given)
        assert status == 0 and "3 of 3 images segmented" in printed, printed
        assert len(list(to.glob("*_label.png"))) == 3


def test_what_fails_is_told_and_the_others_are_written(run, model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    status, printed = run(
        export,
        f"--model={model}",
        f"--output={tmp_path}",
        "--format=openvino,keras",
    )
    assert status == 1
    assert "FAULT " in printed and "pip install isa_tf[openvino]" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]
    # What cannot be written, too.
    given = f"--model={model}", f"--output={tmp_path}/model.keras", "--format=keras,saved_model"
    status, printed = run(export, *given)
    assert status == 1 and printed.count("FAULT [Errno") == 2


def test_agreement_that_proves_nothing(run, model, tmp_path, monkeypatch):
    def alike(score):
        same = Predictor(
            lambda images: (images[..., 0] * 0, images[..., 0] * 0 + np.float32(score))
        )
        monkeypatch.setattr(formats.KerasFile, "load", lambda *args, **kwargs: same)
        monkeypatch.setattr(Predictor, "from_model", lambda *args, **kwargs: same)
        return run(export, f"--model={model}", f"--output={tmp_path}", "--format=keras")

    status, printed = alike(0.5)
    assert status == 0 and "one class alone" in printed
    status, printed = alike(np.nan)
    assert status == 1 and "TOO FEW" in printed


@pytest.mark.slow
def test_options_go_to_the_formats_that_have_them(run, model, tmp_path, monkeypatch):
    pytest.importorskip("ai_edge_litert")
    given = {}
    for kind in (formats.KerasFile, formats.SavedModel, formats.LiteRT):

        def export_and_note(self, model, path, kind=kind, of=kind.export, **options):
            given[self.name] = options
            return of(self, model, path, **options)

        export_and_note.__signature__ = inspect.signature(kind.export)
        monkeypatch.setattr(kind, "export", export_and_note)
    status, printed = run(
        export,
        f"--model={model}",
        f"--output={tmp_path}",
        "--format=keras,saved_model,litert",
        "--image_size=48",
        "--weights_dtype=float16",
        "--jit_compile",
    )
    assert status == 0, printed
    assert given == {
        "keras": {"weights_dtype": "float16"},
        "saved_model": {"jit_compile": True},
        "litert": {"image_size": (48, 48)},
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("model.keras", "model.tflite", "saved_model")
    ]


def test_a_format_of_a_plugin_is_one_more_word(run, model, tmp_path, monkeypatch):
    (tmp_path / "my_formats.py").write_text(
        "from isa_tf import formats\n"
        "@formats.register\n"
        "class Backup(formats.KerasFile):\n"
        "    name, suffix = 'backup', '.backup'\n"
        "    def export(self, model, path):\n"
        "        formats.export(model, f'{path}.keras').rename(path)\n"
        "        return path\n"
        "    def load(self, path, num_threads=None, protocol=None):\n"
        "        again = path.rename(f'{path}.keras')\n"
        "        return formats.load_predictor(again, protocol=protocol)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(app.UsageError, match="unknown format 'backup'"):
        run(export, f"--model={model}", "--format=backup")
    try:
        status, printed = run(
            export,
            f"--model={model}",
            f"--output={tmp_path / 'out'}",
            "--format=backup",
            "--plugins=my_formats",
        )
    finally:
        formats._formats._entries.pop("backup", None)
    assert status == 0 and "model.backup: " in printed and "100.000 %" in printed


def test_usage(run, model, tmp_path):
    (tmp_path / "text.keras").write_text("text")
    sound = f"--model={model}"
    for flags, message in (
        ((), "--model=FILE.keras"),
        ((sound, "--format=onyx,saved_model"), 'unknown format .onyx.; did you mean "onnx"'),
        ((sound, "--format="), "--format is one of keras, saved_model"),
        ((sound, "--format=tf_serving", "--serving=../a"), "without folders, not '../a'"),
        ((sound, "--format=tf_serving", "--serving="), "without folders, not ''"),
        ((sound,), "format 'litert' needs --image_size"),
        (
            (sound, "--image_size=big"),
            "--image_size: A size is HEIGHTxWIDTH, such as 97x97, or one number, not 'big'",
        ),
        ((sound, "--image_size=0x5"), "not '0x5'"),
        ((sound, "--plugins=no_such_module"), "--plugins: 'no_such_module' cannot be imported"),
        ((sound, "extra"), "Unexpected arguments: extra"),
        (("--model=no.keras", "--image_size=8x8"), "no.keras: no such file"),
        ((f"--model={tmp_path}/text.keras", "--image_size=8x8"), "text.keras: not a Keras"),
        ((sound, "--format=litert_int8", "--image_size=8"), "needs --calibration"),
        ((sound, "--format=keras", "--images=a"), "--images and --labels together"),
        ((sound, "--format=keras", "--images=a", "--labels=b"), "b: no such folder"),
        ((sound, "--image_size=8x8", "--image=no.png"), "no.png: no such file"),
    ):
        with pytest.raises(app.UsageError, match=message):
            run(export, *flags)


@pytest.mark.slow
def test_a_model_that_finds_instances(run, tmp_path):
    Image.fromarray(photos(1, 50, 70)[0]).save(tmp_path / "photo.png")
    for finds, said in (
        (True, r"6 detections agree .* to \S+$"),
        (False, "nothing found, which"),
    ):
        make_detector(finds).save(tmp_path / "m.keras")
        given = f"--model={tmp_path}/m.keras", f"--image={tmp_path}/photo.png", "--format=keras"
        status, printed = run(export, *given)
        assert status == 0, printed
        assert re.search(rf"100\.000 % of (\d .*\()?{said}", printed, re.MULTILINE), printed


def test_several_sizes_and_a_name_for_the_server(run, model, tmp_path):
    for package in ("ai_edge_litert", "tensorflow_serving"):
        pytest.importorskip(package)
    status, printed = run(
        export,
        f"--model={model}",
        f"--output={tmp_path}",
        "--format=litert,tf_serving",
        "--image_size=44x52",
        "--image_size=52x44",
        "--serving=harbour",
    )
    assert status == 0, printed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["harbour", "model.tflite"]
    assert load_predictor(tmp_path / "model.tflite").image_sizes == ((44, 52), (52, 44))
    assert load_predictor(tmp_path / "harbour").image_sizes is None
    assert (tmp_path / "harbour/1/assets.extra/tf_serving_warmup_requests").is_file()
