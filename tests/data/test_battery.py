"""Every kind of data set through the battery of all."""

import coco_folders
import odd_pictures
import pytest

from isa_tf import data
from isa_tf.testing import DatasetBattery

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:pyc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("folder")
    images = odd_pictures.images()
    for name in ("png", "jpeg low quality"):
        contents, suffix, _ = images[name]
        for label, (pixels, _) in odd_pictures.labels().items():
            odd_pictures.write(root, f"{name} {label}", contents, suffix, pixels)
    return data.FolderDataset(root, num_classes=odd_pictures.NUM_CLASSES)


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    coco_folders.write_folder(root)
    return data.CocoDataset(root, on_error="skip")


@pytest.fixture(scope="module")
def synthetic():
    return data.SyntheticDataset(num_examples={"train": 4, "val": 3})


@pytest.fixture(scope="module")
def synthetic_instances():
    return data.SyntheticInstances(48, num_examples={"train": 4, "val": 3}, crowds=True)


@pytest.mark.parametrize("check", DatasetBattery.list_checks())
@pytest.mark.parametrize("name", ["synthetic", "synthetic_instances", "folder", "coco"])
def test_battery(name, check, request):
    battery = DatasetBattery(request.getfixturevalue(name))
    if not battery.applies(check):
        pytest.skip("is of data sets of another task")
    battery.run(check)
