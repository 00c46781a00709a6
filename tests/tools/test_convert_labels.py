import json
import re
import shlex

import numpy as np
import pytest
from absl import app
from PIL import Image

from tools import check_dataset, convert_labels


@pytest.fixture
def coco(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "photos/a.png")
    told = {
        "categories": [{"id": 4, "name": "boat"}],
        "images": [{"id": 1, "file_name": "a.png", "height": 6, "width": 8}],
        "annotations": [
            {"id": 2, "image_id": 1, "category_id": 4, "segmentation": [[0, 0, 4, 0, 4, 3, 0, 3]]}
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(told))
    return told


def test_instances_then_checked(run, coco, tmp_path):
    photos, told, made = tmp_path / "photos", tmp_path / "instances.json", tmp_path / "made"
    flags = (f"--instances={told},{told}", f"--images={photos},{photos}", "--splits=train,val")
    status, printed = run(convert_labels, *flags, f"--output={made}")
    assert status == 0
    assert printed.startswith("train: 1 of 1\nval: 1 of 1\n")
    assert f"{made}: train 1, val 1; 2 classes." in printed
    status, printed = run(check_dataset, f"--data_dir={made}")
    assert status == 0 and re.search(r"boat +25\.000 +1\n", printed)

    status, printed = run(convert_labels, *flags, f"--output={made}")
    assert (status, printed) == (
        1,
        f"FAULT {made}: there is something already; remove it or give another folder\n",
    )
    status, _ = run(convert_labels, *flags, "--nobackground", f"--output={tmp_path / 'other'}")
    assert status == 0
    label = np.asarray(Image.open(tmp_path / "other/val/labels/a.png"))
    assert label[0, 0] == 0 and label[5, 7] == 255


def test_colours(run, tmp_path):
    for name in ("photos", "colored"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (2, 1)).save(tmp_path / "photos/a_left.jpg")
    rgb = np.array([[[128, 0, 0], [224, 224, 192]]], np.uint8)
    Image.fromarray(rgb).save(tmp_path / "colored/a_color.png")
    flags = [f"--labels={tmp_path / 'colored'}", f"--images={tmp_path / 'photos'}"]
    flags += ["--label_pattern=*_color", "--image_pattern=*_left", "--colors=voc2012"]
    flags += [f"--output={tmp_path / 'made'}"]
    status, printed = run(convert_labels, *flags)
    assert status == 1 and "a_color.png: colour (224, 224, 192) in 1 pixels" in printed
    assert not (tmp_path / "made").exists()
    for more in ("--ignored_colors=e0e0c0", "--ignore_unknown"):
        made = tmp_path / f"made by {more}"
        flags[-1] = f"--output={made}"
        status, printed = run(convert_labels, *flags, more)
        assert status == 0 and "images 1; 21 classes" in printed
        assert shlex.split(printed)[-1] == f"--data_dir={made}"
        label = np.asarray(Image.open(made / "labels/a.png"))
        np.testing.assert_array_equal(label, [[1, 255]])


def test_usage(run):
    for flags, message in (
        ((), "--output"),
        (
            ("--output=x", "--instances=a", "--images=a", "--splits=../y"),
            "a split is a name, without folders, got '../y'",
        ),
        (("--output=x",), "--instances, or --labels"),
        (("--output=x", "--labels=x", "--images=x"), "--colors"),
        (("--output=x", "--instances=a,b", "--images=a"), "one entry a split"),
        (("--output=x", "--instances=a,b", "--images=a,b"), "--splits names each"),
        (
            ("--output=x", "--labels=a", "--images=a", "--colors=voc2012", "--ignored_colors=12"),
            "'12' is no colour",
        ),
        (
            ("--output=x", "--labels=a", "--images=.", "--colors=voc2012", "--label_pattern=x"),
            "label_pattern must be a file name with one star",
        ),
    ):
        with pytest.raises(app.UsageError, match=message):
            run(convert_labels, *flags)
