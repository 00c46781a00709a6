import numpy as np
import pytest
from absl import app
from PIL import Image

from tools import check_dataset


def test_sound_then_broken(run, tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / "train" / kind).mkdir(parents=True)
    Image.new("RGB", (4, 3)).save(tmp_path / "train/images/a.png")
    Image.fromarray(np.array([[0] * 4, [1] * 4, [255] * 4], np.uint8)).save(
        tmp_path / "train/labels/a.png"
    )
    flags = (f"--data_dir={tmp_path}", "--num_classes=2")
    status, printed = run(check_dataset, *flags)
    assert status == 0
    assert "train: 1 examples" in printed and "4x3 (1)" in printed
    assert printed.count("33.333") == 3 and "No faults" in printed

    Image.new("RGB", (4, 3)).save(tmp_path / "train/images/b.png")
    Image.new("L", (4, 3), 9).save(tmp_path / "train/labels/b.png")
    Image.new("RGB", (4, 3)).save(tmp_path / "train/images/c.png")
    Image.new("RGB", (4, 3)).save(tmp_path / "train/images/d.gif")
    status, printed = run(check_dataset, *flags)
    assert status == 1
    assert f"FAULT {tmp_path / 'train/images/d.gif'}: GIF is not read" in printed
    assert f"FAULT {tmp_path / 'train/labels/b.png'}: label value 9" in printed
    assert f"FAULT {tmp_path / 'train/images/c.png'}: it has no label" in printed
    assert "3 faults" in printed


def test_usage(run):
    with pytest.raises(app.UsageError, match="--data_dir"):
        run(check_dataset)
    with pytest.raises(app.UsageError, match='did you mean "camvid"'):
        run(check_dataset, "--dataset=canvid")
