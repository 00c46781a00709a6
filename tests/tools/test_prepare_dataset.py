import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from absl import app
from PIL import Image

from isa_tf import data
from tools import check_dataset, prepare_dataset

GUIDES = Path(__file__).parents[2] / "docs/datasets"
ZIP = "ADEChallengeData2016.zip"
IDS = np.array([[0, 1, 2, 150], [3, 3, 4, 149], [0, 0, 5, 6]], np.uint8)
TRAIN_IDS = np.array([[255, 0, 1, 149], [2, 2, 3, 148], [255, 255, 4, 5]], np.uint8)


def encoded(array, kind):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


def write_archive(folder, ids=IDS, counts=(("training", 2), ("validation", 1))):
    """A small ADEChallengeData2016.zip, whose second image is grey."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(folder / ZIP, "w") as archive:
        for split, count in counts:
            for i in range(count):
                shape = ids.shape if i == 1 else (*ids.shape, 3)
                stem = f"{split}/ADE_{split[:5]}_{i:08d}"
                image = rng.integers(0, 256, shape, "uint8")
                archive.writestr(f"ADEChallengeData2016/images/{stem}.jpg", encoded(image, "JPEG"))
                archive.writestr(
                    f"ADEChallengeData2016/annotations/{stem}.png", encoded(ids, "PNG")
                )
    return folder


@pytest.fixture
def prepare(run, tmp_path):
    """Runs the tool on ADE20K; gives (exit status, what it printed)."""

    def prepare(*flags):
        where = (f"--manual_dir={tmp_path / 'archives'}", f"--data_dir={tmp_path / 'prepared'}")
        return run(prepare_dataset, "--name=ade20k", *where, *flags)

    return prepare


def left(folder):
    """Files below a folder, but for the lock."""
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and p.name != "prepare.lock")


def test_prepared_read_checked_and_then_left_alone(prepare, run, tmp_path):
    write_archive(tmp_path / "archives")
    status, printed = prepare("--nocheck_sizes", "--num_threads=2")
    assert status == 0, printed
    folder, data_dir = tmp_path / "prepared/isa_tf_ade20k/1.0.0", tmp_path / "prepared"
    assert "train: 2 of 2\nval: 1 of 1\nade20k is prepared, in" in printed
    size = next(folder.glob("*-train.*")).stat().st_size
    assert f"train: 2 images, a part of 20,210, {size / 2**20:.1f} MiB" in printed
    assert f"in {folder}\n" in printed
    assert f"tools.check_dataset --dataset=ade20k --data_dir={data_dir}\n" in printed
    assert "recipes.py:ade20k-resnet101-isa \\\n" in printed
    dataset = data.create("ade20k", data_dir)
    np.testing.assert_array_equal(dataset.read("train", 1)[1], TRAIN_IDS)

    checked, table = run(check_dataset, "--dataset=ade20k", f"--data_dir={data_dir}")
    assert checked == 0 and "ade20k/train: 2 examples" in table and "No faults." in table

    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    status, printed = prepare()  # and its archive is not looked at
    assert status == 0 and "is there already, nothing was done" in printed
    assert "train: 2 images, a part of 20,210" in printed
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times


def test_a_part_is_refused_unless_asked_for(prepare, tmp_path):
    write_archive(tmp_path / "archives")
    status, printed = prepare()
    assert status == 1
    assert printed.count("\n") == 1 and printed.startswith("FAULT ")
    assert "split train has 2 images, not 20210; split val has 1 images, not 2000" in printed
    assert left(tmp_path / "prepared") == []


def test_missing_archive(prepare, tmp_path):
    status, printed = prepare()
    assert status == 1 and f"FAULT {tmp_path / 'archives'}: no such folder" in printed
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives/other.zip").write_bytes(b"")
    status, printed = prepare()
    assert status == 1
    assert f"neither {ZIP} nor images" in printed and "from http://data.csail.mit.edu" in printed
    assert left(tmp_path / "prepared") == []


def test_a_label_that_the_data_set_does_not_have(prepare, tmp_path):
    ids = IDS.copy()
    ids[0, :2] = 151
    write_archive(tmp_path / "archives", ids)
    status, printed = prepare("--nocheck_sizes")
    assert status == 1
    assert "ADE_train_00000000.png: label value 151 in 2 pixels" in printed
    assert left(tmp_path / "prepared") == []


def test_a_place_that_is_a_file(prepare, tmp_path):
    write_archive(tmp_path / "archives")
    (tmp_path / "prepared").write_text("mine")
    status, printed = prepare("--nocheck_sizes")
    assert status == 1 and printed.splitlines()[-1].startswith("FAULT ")
    assert (tmp_path / "prepared").read_text() == "mine"


def test_list_tells_of_every_builder(run, tmp_path, monkeypatch):
    (tmp_path / "own_coast.py").write_text(
        "from isa_tf import data\n"
        "class Coast(data.builder('ade20k')):\n"
        "    name, description = 'isa_tf_far_coast', 'Coasts.'\n"
        "data.register('coast', builder=Coast)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    status, printed = run(prepare_dataset, "--list", "--plugins=own_coast")
    assert status == 0
    told = {each.partition(":")[0]: each for each in printed.split("\n\n")}
    assert set(told) == {*data.list_builders()} >= {"ade20k", "camvid", "coast", "voc2012"}
    assert "Coasts." in told["coast"]
    assert "21 classes; images: train 1,464, val 1,449, trainaug 10,582" in told["voc2012"]
    for name, text in told.items():
        for archive in data.builder(name).archives:
            assert f"{archive.file}, from {archive.source}" in text


def test_guides_say_what_builders_have():
    lines = (GUIDES / "README.md").read_text().splitlines()
    rows = {line.split("`")[1]: line for line in lines if line.startswith("| `")}
    assert set(data.list_builders()) <= set(rows)
    for name in data.list_builders():
        builder, row = data.builder(name), rows[name]
        assert (GUIDES / re.search(r"\[guide\]\((\w+\.md)\)", row)[1]).is_file()
        for split, size in builder.sizes.items():
            assert f"{split} {size:,}" in row
        if hasattr(builder, "labels"):
            assert f"| {len(builder.labels.class_names)} |" in row


def test_recipes_that_are_named_exist():
    recipes = pytest.importorskip("experiments.configs.recipes").RECIPES
    texts = [path.read_text() for path in GUIDES.glob("*.md")]
    texts += [prepare_dataset._config(name) for name in data.list_builders()]
    named = {name for text in texts for name in re.findall(r"recipes\.py:([\w-]+)", text)}
    named -= {"NAME-resnet101-isa"}
    assert named and named <= set(recipes)
    detectors = pytest.importorskip("experiments.configs.mask_rcnn").RECIPES
    named = {name for text in texts for name in re.findall(r"mask_rcnn\.py:([\w-]+)", text)}
    assert named and named <= set(detectors)


def test_usage(run):
    with pytest.raises(app.UsageError, match="--name, or --list"):
        run(prepare_dataset)
    with pytest.raises(app.UsageError, match="--manual_dir"):
        run(prepare_dataset, "--name=ade20k")
    with pytest.raises(app.UsageError, match='did you mean "ade20k"'):
        run(prepare_dataset, "--name=ade20", "--manual_dir=.", "--data_dir=new")


def test_command(tmp_path):
    """The exit status, and that what a library prints is not in between."""
    write_archive(tmp_path / "archives", counts=(("training", 1),))
    command = [sys.executable, "-m", "tools.prepare_dataset", "--name=ade20k", "--nocheck_sizes"]
    command += [f"--manual_dir={tmp_path / 'archives'}", f"--data_dir={tmp_path / 'prepared'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"FAULT {tmp_path / 'archives'}: neither {ZIP} nor images/validation/*.jpg of it is here; "
        f"it is to be had from {data.builder('ade20k').archives[0].source}"
    ]
    assert left(tmp_path / "prepared") == []
