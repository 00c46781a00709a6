import keras
import numpy as np
import pytest
from absl import app
from golden import CHECKPOINT, checkpoint_arrays

from tools import convert


def test_a_model(run, tmp_path):
    output = tmp_path / "model.keras"
    status, printed = run(
        convert, f"--checkpoint={CHECKPOINT}", f"--output={output}", "--align_corners"
    )
    assert status == 0
    assert "from mmseg" in printed and "tensors left over: none" in printed
    model = keras.models.load_model(output)
    assert model.coordinates == "align_corners" and model.num_classes == 5


def test_other_classes_and_settings(run, tmp_path):
    output = tmp_path / "model.keras"
    status, printed = run(
        convert,
        f"--checkpoint={CHECKPOINT}",
        f"--output={output}",
        "--source=mmseg",
        "--num_classes=7",
        "--partition=4",
        "--mask_padding",
        "--mean=1,2,3",
    )
    assert status == 0
    assert "decode_head.conv_seg.weight" in printed and "logits_classifier" in printed
    model = keras.models.load_model(output)
    assert model.num_classes == 7 and model.backbone.mean == (1, 2, 3)
    assert model.context.partitions == [(4, 4)] and model.context.mask_padding


def test_a_preset_s_settings(run, tmp_path):
    output = tmp_path / "model.keras"
    preset = "isanet_r50-d8_4xb2-80k_cityscapes-769x769"
    flags = (f"--checkpoint={CHECKPOINT}", f"--output={output}", f"--preset={preset}")
    status, printed = run(convert, *flags)
    assert status == 1 and "class_names has 19 entries for 5 classes" in printed
    assert not output.exists()
    status, _ = run(convert, *flags, "--num_classes=6")
    model = keras.models.load_model(output)
    assert status == 0 and model.coordinates == "align_corners"
    assert model.protocol["mode"] == "slide"


def test_what_is_refused_writes_nothing(run, tmp_path):
    tensors = checkpoint_arrays()
    del tensors["decode_head.out_conv.bn.bias"]
    broken, output = tmp_path / "broken.npz", tmp_path / "model.keras"
    np.savez(broken, **tensors)
    status, printed = run(convert, f"--checkpoint={broken}", f"--output={output}")
    assert status == 1 and "decode_head.out_conv.bn.bias" in printed
    (tmp_path / "cut.npz").write_bytes(broken.read_bytes()[:-100])
    for name in ("cut.npz", "absent.pth"):
        status, printed = run(convert, f"--checkpoint={tmp_path / name}", f"--output={output}")
        assert status == 1 and name in printed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken.npz", "cut.npz"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "Give --checkpoint"),
        (["--checkpoint=a.pth"], "Give --output"),
        (["--checkpoint=a.pth", "--output=model.h5"], "a .keras file"),
    ],
)
def test_usage(run, flags, message):
    with pytest.raises(app.UsageError, match=message):
        run(convert, *flags)
