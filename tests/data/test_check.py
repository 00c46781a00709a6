import coco_folders
import numpy as np
from PIL import Image

from isa_tf.data import CocoDataset, DataError, FolderDataset
from isa_tf.data.check import check_dataset


def write(root, stem, label):
    for kind in ("images", "labels"):
        (root / "train" / kind).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", label.shape[::-1]).save(root / "train/images" / f"{stem}.jpg")
    Image.fromarray(label).save(root / "train/labels" / f"{stem}.png")


def test_counts_and_faults(tmp_path):
    write(tmp_path, "a", np.array([[0, 0, 1], [1, 1, 255]], np.uint8))
    write(tmp_path, "b", np.array([[0, 0], [0, 0]], np.uint8))
    write(tmp_path, "bad_value", np.array([[0, 7]], np.uint8))
    write(tmp_path, "lonely", np.array([[0]], np.uint8))
    (tmp_path / "train/images/lonely.jpg").unlink()
    data = FolderDataset(tmp_path, num_classes=3, on_error="skip")
    reports, faults = check_dataset(data)
    report = reports["train"]
    assert report.examples == 2
    assert report.pixels.tolist() == [6, 3, 0]
    assert report.images.tolist() == [2, 1, 0]
    assert report.ignored == 1
    assert report.sizes == {(2, 3): 1, (2, 2): 1}
    assert sorted(fault.path.rsplit("/")[-1] for fault in faults) == [
        "bad_value.png",
        "lonely.png",
    ]
    assert {type(fault) for fault in faults} == {DataError}


def test_instances_are_counted(tmp_path):
    found = coco_folders.made()
    found["train"][0]["annotations"][5]["category_id"] = 12
    coco_folders.write_folder(tmp_path, found)
    path = tmp_path / "val/000000000030.jpg"
    path.write_bytes(path.read_bytes()[:-200])  # which its header does not tell
    reports, faults = check_dataset(CocoDataset(tmp_path, on_error="skip"))
    report = reports["train"]
    assert report.examples == 3 and report.sizes == {(24, 32): 3}
    of = {name: i for i, name in enumerate(CocoDataset(tmp_path, on_error="skip").class_names)}
    for name, instances, crowds, images, pixels in (
        ("person", 1, 0, 1, 30),
        ("toothbrush", 1, 0, 1, 48),
        ("car", 0, 1, 1, 240),
        ("stop sign", 2, 0, 1, 72),
        ("dog", 0, 0, 0, 0),
    ):
        i = of[name]
        told = report.instances[i], report.crowds[i], report.images[i], report.pixels[i]
        assert told == (instances, crowds, images, pixels), name
    assert report.instances.sum() == 4 and report.crowds.sum() == 1
    assert report.areas.tolist() == [4, 0, 0]
    assert (report.empty, report.most, report.no_area) == (1, 3, 1)
    assert reports["val"].examples == 1
    assert [fault.path.rpartition("/")[2] for fault in faults] == [
        "instances_train.json",
        "000000000030.jpg",
    ]
