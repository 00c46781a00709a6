import numpy as np
from PIL import Image

from isa_tf.data import FolderDataset
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
