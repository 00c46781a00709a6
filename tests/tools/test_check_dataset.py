import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]


def check(*flags):
    return subprocess.run(
        [sys.executable, "-m", "tools.check_dataset", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"},
    )


def test_sound_then_broken(tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / "train" / kind).mkdir(parents=True)
    Image.new("RGB", (4, 3)).save(tmp_path / "train/images/a.png")
    Image.fromarray(np.array([[0] * 4, [1] * 4, [255] * 4], np.uint8)).save(
        tmp_path / "train/labels/a.png"
    )
    flags = (f"--data_dir={tmp_path}", "--num_classes=2")
    done = check(*flags)
    assert done.returncode == 0, done.stderr
    assert "train: 1 examples" in done.stdout and "4x3 (1)" in done.stdout
    assert done.stdout.count("33.333") == 3 and "No faults" in done.stdout

    Image.new("RGB", (4, 3)).save(tmp_path / "train/images/b.png")
    Image.new("L", (4, 3), 9).save(tmp_path / "train/labels/b.png")
    Image.new("RGB", (4, 3)).save(tmp_path / "train/images/c.png")
    done = check(*flags)
    assert done.returncode == 1
    assert f"FAULT {tmp_path / 'train/labels/b.png'}: label value 9" in done.stdout
    assert f"FAULT {tmp_path / 'train/images/c.png'}: it has no label" in done.stdout
    assert "2 faults" in done.stdout


def test_usage():
    done = check()
    assert done.returncode != 0
    assert "--data_dir" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
