import coco_folders
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
    with pytest.raises(app.UsageError, match="num_classes"):
        run(check_dataset, "--dataset=coco", "--data_dir=.", "--num_classes=80")


def test_a_data_set_of_a_plugin(run, tmp_path, monkeypatch):
    (tmp_path / "my_data_sets.py").write_text(
        "from isa_tf import data\n"
        "few = {'train': 1, 'val': 1}\n"
        "data.register('mine', lambda: data.SyntheticDataset(num_examples=few))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    status, printed = run(check_dataset, "--dataset=mine", "--plugins=my_data_sets")
    assert status == 0 and "synthetic/train: " in printed


def test_instances(run, tmp_path):
    coco_folders.write_folder(tmp_path)
    flags = ("--dataset=coco", f"--data_dir={tmp_path}")
    status, printed = run(check_dataset, *flags)
    assert status == 0 and "No faults." in printed
    assert "/train: 3 examples, width x height 32x24 (3)" in printed
    lines = [line.split() for line in printed.splitlines()]
    assert ["0", "person", "2", "0", "1"] in lines and ["2", "car", "0", "1", "1"] in lines
    assert ["(all)", "5", "1", "2"] in lines and ["(all)", "2", "0", "2"] in lines
    assert "5 are smaller than 32x32 pixels, 0 smaller than 96x96, 0 larger; 1 have no" in printed
    assert "1 images have none, and one has 4" in printed

    found = coco_folders.made()
    found["train"][0]["annotations"][0]["category_id"] = 12
    found["val"][0]["images"][0]["file_name"] = "gone.jpg"
    coco_folders.write_folder(tmp_path, found)
    status, printed = run(check_dataset, *flags)
    json = tmp_path / "instances_train.json"
    assert status == 1 and "3 faults" in printed
    assert f"FAULT {json}: image 7, annotation 11: its category_id is 12" in printed
    assert f"FAULT {tmp_path}/val/gone.jpg: image 30: no such file" in printed
    assert f"FAULT {tmp_path}/val/000000000030.jpg: an image that" in printed
    assert ["(all)", "4", "1", "2"] in [line.split() for line in printed.splitlines()]

    json.write_text("{")
    status, printed = run(check_dataset, *flags)
    assert status == 1 and f"FAULT {json}: cannot be read as JSON" in printed
