import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from isa_tf.data import DataError, FolderDataset, eval_pipeline, train_pipeline
from isa_tf.data.listing import list_images

SIZE = (12, 16)  # height, width


def write_pair(root, stem, seed=0, images="train/images", labels="train/labels", size=SIZE):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 5, size).astype(np.uint8)
    label[0, 0] = 255
    image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    for folder in (root / images, root / labels):
        folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(root / images / f"{stem}.png")
    Image.fromarray(label).save(root / labels / f"{stem}.png")
    return image, label


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        write_pair(tmp_path, f"{i:02d}", i)
    return tmp_path


def image_of(root, i=1):
    return root / "train/images" / f"{i:02d}.png"


def label_of(root, i=1):
    return root / "train/labels" / f"{i:02d}.png"


def named(path):
    return re.escape(str(path))


# === Layouts ===


def test_split_folders(tmp_path):
    written = write_pair(tmp_path, "a", 1)
    write_pair(tmp_path, "b", 2, "val/images", "val/labels")
    data = FolderDataset(tmp_path, num_classes=5)
    assert data.splits == ("train", "val")
    assert data.class_names == tuple(f"class_{i}" for i in range(5))
    np.testing.assert_array_equal(data.read("train", 0)[0], written[0])
    np.testing.assert_array_equal(data.read("train", 0)[1], written[1])
    assert [Path(p).name for p in data.examples("val")] == ["b.png"]


def test_splits_below_images_and_labels_with_folders_inside(tmp_path):
    write_pair(tmp_path, "a", 1, "images/train/city", "labels/train/city")
    write_pair(tmp_path, "a", 2, "images/train/town", "labels/train/town")
    write_pair(tmp_path, "c", 3, "images/test", "labels/test")
    data = FolderDataset(tmp_path, num_classes=5)
    assert {split: data.size(split) for split in data.splits} == {"train": 2, "test": 1}


def test_no_splits_are_split_the_same_way_every_time(tmp_path):
    for i in range(20):
        write_pair(tmp_path, f"{i:02d}", i, "images", "labels")
    data = FolderDataset(tmp_path, num_classes=5, val_fraction=0.25)
    assert (data.size("train"), data.size("val")) == (15, 5)
    assert not set(data.examples("train")) & set(data.examples("val"))
    again = FolderDataset(tmp_path, num_classes=5, val_fraction=0.25)
    assert again.examples("val") == data.examples("val")
    assert FolderDataset(tmp_path, num_classes=5, val_fraction=0).splits == ("train",)


@pytest.fixture
def sequences(tmp_path):
    for i, stem in enumerate(("A_1", "A_2", "B_1")):
        write_pair(tmp_path, stem, i)
    write_pair(tmp_path, "B_2", 3, "val/images", "val/labels")
    write_pair(tmp_path, "C_1", 4, "test/images", "test/labels")
    return tmp_path


def stems(data):
    return {split: [Path(p).stem for p in data.examples(split)] for split in data.splits}


def test_splits_by_patterns(sequences):
    splits = {"val": "*/images/B_*", "train": ["train/images/A_*", "test/*", "*C_1.png"]}
    data = FolderDataset(sequences, num_classes=5, splits=splits)
    assert data.splits == ("train", "val")
    assert stems(data) == {"train": ["C_1", "A_1", "A_2"], "val": ["B_1", "B_2"]}
    for split in data.splits:
        for image, label in data.pairs(split):
            assert label == image.parents[1] / "labels" / image.name


def test_an_image_may_be_in_several_splits(sequences):
    splits = {"train": ("train/*", "val/*"), "val": ("val/*",)}
    config = ConfigDict({"splits": splits})  # as experiments hand it on
    found = stems(FolderDataset(sequences, num_classes=5, **config.to_dict()))
    assert found == {"train": ["A_1", "A_2", "B_1", "B_2"], "val": ["B_2"]}
    assert found == stems(FolderDataset(sequences, num_classes=5, splits=config.splits))


def test_splits_by_patterns_of_a_table(sequences):
    rows = ["image,label,split"]
    rows += [f"train/images/{s}.png,train/labels/{s}.png,all" for s in ("A_1", "A_2", "B_1")]
    (sequences / "pairs.csv").write_text("\n".join(rows))
    data = FolderDataset(
        sequences / "pairs.csv", num_classes=5, splits={"train": "*/A_*", "val": "*/B_*"}
    )
    assert stems(data) == {"train": ["A_1", "A_2"], "val": ["B_1"]}


def test_what_is_in_no_split_is_not_looked_at(sequences):
    (sequences / "val/images/B_2.png").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"B_2\.png"):
        FolderDataset(sequences, num_classes=5, splits={"train": "*"})
    assert FolderDataset(sequences, num_classes=5, splits={"train": "train/*"}).size("train") == 3


@pytest.mark.parametrize(
    "splits, reason",
    [
        ({"train": "*", "val": ["*/B_*", "*/D_*"]}, r"'\*/D_\*', of split 'val'.*'test/images/C_1"),
        ({"train": []}, "split 'train' has no pattern"),
        ({}, "names no split"),
    ],
)
def test_patterns_of_no_image(sequences, splits, reason):
    with pytest.raises(ValueError, match=reason):
        FolderDataset(sequences, num_classes=5, splits=splits)


@pytest.mark.parametrize("with_split", [True, False])
def test_table(folder, with_split):
    rows = [[f"train/images/{i:02d}.png", f"train/labels/{i:02d}.png"] for i in range(4)]
    with open(folder / "pairs.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label"] + ["split"] * with_split)
        writer.writerows(row + ["val" if i else "train"] * with_split for i, row in enumerate(rows))
    data = FolderDataset(folder / "pairs.csv", num_classes=5, val_fraction=0.25)
    sizes = {split: data.size(split) for split in data.splits}
    assert sizes == ({"train": 1, "val": 3} if with_split else {"train": 3, "val": 1})


def test_table_faults(folder):
    table = folder / "pairs.csv"
    table.write_text("picture,label\na,b\n")
    with pytest.raises(DataError, match="first line is image,label"):
        FolderDataset(table, num_classes=5)
    table.write_text("image,label\na.png\n")
    with pytest.raises(DataError, match="line 2"):
        FolderDataset(table, num_classes=5)
    table.write_text("image,label\nnone.png,train/labels/00.png\n")
    with pytest.raises(DataError, match="none.png: no such file"):
        FolderDataset(table, num_classes=5)


def test_class_names_files(folder):
    (folder / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    assert FolderDataset(folder).class_names == tuple("abcde")
    (folder / "classes.json").write_text(json.dumps(list("vwxyz")))
    assert FolderDataset(folder).class_names == tuple("vwxyz")
    with pytest.raises(ValueError, match="num_classes is 4, and there are 5"):
        FolderDataset(folder, num_classes=4)
    (folder / "classes.json").write_text(json.dumps(list("vwxyv")))
    with pytest.raises(ValueError, match="class_names must differ, got 'v' for both 0 and 4"):
        FolderDataset(folder)
    (folder / "classes.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="classes.json"):
        FolderDataset(folder)


def test_text_files_of_windows(folder):
    """Notepad marks UTF-8, or writes no UTF-8 at all."""
    names = ("höhe", *"bcde")
    files = {"classes.txt": "\n".join(names), "classes.json": json.dumps(names)}
    files["table.csv"] = "image,label\ntrain/images/00.png,train/labels/00.png\n# ö,b\n"
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8-sig")
        assert FolderDataset(folder).class_names == names
        (folder / name).write_text(text.replace("h\\u00f6he", "höhe"), encoding="latin-1")
        with pytest.raises(DataError, match=named(folder / name) + ": not UTF-8"):
            FolderDataset(folder / name if name == "table.csv" else folder, num_classes=5)
        (folder / name).write_text(text, encoding="utf-8")


def test_names_or_number_are_needed(folder):
    with pytest.raises(ValueError, match="class_names"):
        FolderDataset(folder)


def test_class_names_with_colours(folder):
    colors = [(9 * i, 1, 2) for i in range(5)]
    entries = [{"name": n, "color": c} for n, c in zip("vwxyz", colors, strict=True)]
    (folder / "classes.json").write_text(json.dumps(entries))
    data = FolderDataset(folder)
    assert data.class_names == tuple("vwxyz") and data.palette == tuple(colors)
    assert FolderDataset(folder, palette=colors[::-1]).palette == tuple(colors[::-1])
    assert FolderDataset(folder, groups={"a": ["w", "x"]}).palette == (colors[1],)
    for wrong in (
        {"name": "z"},
        {"name": "z", "color": [0, 0, 256]},
        {"name": 1, "color": [0] * 3},
    ):
        (folder / "classes.json").write_text(json.dumps([*entries[:4], wrong]))
        with pytest.raises(DataError, match="classes.json: not a JSON list of names"):
            FolderDataset(folder)


# === Names that differ ===


@pytest.fixture
def cityscapes(tmp_path):
    """Pairs as of Cityscapes, among labels of other kinds; gives what was written by its stem."""
    written = {}
    for stem in ("aachen/aachen_0_1", "ulm/ulm_0_2", "ulm/aachen_0_1"):
        images, labels = "images/train", "labels/train"
        city, name = stem.split("/")
        written[stem] = write_pair(
            tmp_path, "pair", len(written), f"{images}/{city}", f"{labels}/{city}"
        )
        (tmp_path / images / city / "pair.png").rename(
            tmp_path / images / city / f"{name}_leftImg8bit.png"
        )
        label = tmp_path / labels / city / "pair.png"
        label.rename(label.with_name(f"{name}_gtFine_labelIds.png"))
        Image.new("RGB", SIZE[::-1]).save(label.with_name(f"{name}_gtFine_color.png"))
        Image.new("I;16", SIZE[::-1]).save(label.with_name(f"{name}_gtFine_instanceIds.png"))
    (tmp_path / "images/train/ulm/thumbnail.gif").write_bytes(b"")
    return tmp_path, written


PATTERNS = {"image_pattern": "*_leftImg8bit", "label_pattern": "*_gtFine_labelIds"}


def test_patterns(cityscapes):
    root, written = cityscapes
    data = FolderDataset(root, num_classes=5, **PATTERNS)
    assert data.size("train") == 3
    for i, stem in enumerate(sorted(written)):
        assert data.examples("train")[i].endswith(f"{stem}_leftImg8bit.png")
        for read, wrote in zip(data.read("train", i), written[stem], strict=True):
            np.testing.assert_array_equal(read, wrote)


def test_patterns_from_a_config(cityscapes):
    from experiments.configs import default
    from experiments.tasks import segmentation

    config = default.get_config()
    config.data.data_dir, config.data.num_classes = str(cityscapes[0]), 5
    config.data.options = PATTERNS
    assert segmentation.make_dataset(config).size("train") == 3


def test_what_a_pattern_finds_alone_is_a_fault(cityscapes):
    root, _ = cityscapes
    image = root / "images/train/ulm/ulm_0_2_leftImg8bit.png"
    label = root / "labels/train/ulm/ulm_0_2_gtFine_labelIds.png"
    label.rename(root / "elsewhere.png")
    with pytest.raises(DataError, match=f"{named(image)}: it has no label {named(label)}$"):
        FolderDataset(root, num_classes=5, **PATTERNS)
    (root / "elsewhere.png").rename(label)
    image.unlink()
    wanted = named(image.with_suffix("").relative_to(root / "images/train"))
    with pytest.raises(DataError, match=f"{named(label)}: it has no image {wanted}"):
        FolderDataset(root, num_classes=5, **PATTERNS)
    with pytest.raises(DataError, match=r"train: no image here is named left_\* and ends in"):
        FolderDataset(root, num_classes=5, image_pattern="left_*")


def test_the_star_stands_for_something(tmp_path):
    write_pair(tmp_path, "a_b")
    for pattern in ("a_*_b", "*a_b", "a_b*"):  # which would overlap, or stand for nothing
        with pytest.raises(DataError, match="no image here"):
            FolderDataset(tmp_path, num_classes=5, image_pattern=pattern, label_pattern=pattern)
    for pattern in ("a*", "*b", "*_b", "a*b"):
        data = FolderDataset(tmp_path, num_classes=5, image_pattern=pattern, label_pattern=pattern)
        assert data.size("train") == 1


def test_patterns_that_are_none(folder):
    for pattern in ("_ids", "*_*", "labels/*", "*_ids.png", 3):
        with pytest.raises(ValueError, match="label_pattern must be .*got"):
            FolderDataset(folder, num_classes=5, label_pattern=pattern)
    (folder / "pairs.csv").write_text("image,label\ntrain/images/00.png,train/labels/00.png\n")
    with pytest.raises(ValueError, match="patterns are for folders"):
        FolderDataset(folder / "pairs.csv", num_classes=5, image_pattern="*_a")


# === What labels may look like ===


def test_palette_label_gives_indices(folder):
    ids = np.arange(12 * 16).reshape(SIZE) % 5
    picture = Image.fromarray(ids.astype(np.uint8), "L").convert("P")
    picture.putdata(ids.ravel().tolist())
    picture.putpalette([200, 10, 10, 3, 200, 3, 9, 9, 200, 255, 255, 0, 1, 2, 3])
    picture.save(label_of(folder))
    with Image.open(label_of(folder)) as saved:
        assert saved.mode == "P"
    np.testing.assert_array_equal(FolderDataset(folder, num_classes=5).read("train", 1)[1], ids)


def test_sixteen_bit_label(folder):
    ids = (np.arange(12 * 16).reshape(SIZE) % 5).astype(np.uint16)
    Image.fromarray(ids).save(label_of(folder))
    data = FolderDataset(folder, num_classes=5)
    np.testing.assert_array_equal(data.read("train", 1)[1], ids)
    assert data.read("train", 1)[1].dtype == np.uint8
    Image.fromarray(ids + 256).save(label_of(folder))
    with pytest.raises(DataError, match=named(label_of(folder)) + ".*256"):
        data.read("train", 1)


def test_four_bit_grey_label(folder):
    import struct
    import zlib

    ids = np.arange(12 * 16).reshape(SIZE) % 5
    rows = b"".join(
        b"\0" + bytes(int(a) << 4 | int(b) for a, b in zip(row[::2], row[1::2], strict=True))
        for row in ids
    )

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], 4, 0, 0, 0, 0)
    label_of(folder).write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    np.testing.assert_array_equal(FolderDataset(folder, num_classes=5).read("train", 1)[1], ids)


def test_label_in_colours_is_refused(folder):
    Image.new("RGB", SIZE[::-1]).save(label_of(folder))
    with pytest.raises(DataError, match=named(label_of(folder)) + ".*colours.*RGB"):
        FolderDataset(folder, num_classes=5)


def test_jpeg_label_is_refused(folder):
    Image.open(label_of(folder)).save(label_of(folder).with_suffix(".jpg"))
    label_of(folder).unlink()
    with pytest.raises(DataError, match="01.jpg: labels are read from PNG"):
        FolderDataset(folder, num_classes=5)


# === Bad files, each named ===


def test_label_value_out_of_range(folder):
    data = FolderDataset(folder, num_classes=4)  # the labels hold 0..4
    with pytest.raises(DataError, match=named(label_of(folder)) + ".*value 4 in .*0 to 3"):
        data.read("train", 1)
    with pytest.raises(tf.errors.OpError, match=named(label_of(folder, 0)) + ".*value 4"):
        list(data.load("train"))
    with pytest.raises(tf.errors.OpError, match="value 4 in"):
        next(iter(train_pipeline(data, "train", 2, (8, 8))))


def test_missing_partners(folder):
    label_of(folder).unlink()
    with pytest.raises(DataError, match=named(image_of(folder)) + ".*no label"):
        FolderDataset(folder, num_classes=5)
    image_of(folder).unlink()
    image_of(folder, 2).unlink()
    with pytest.raises(DataError, match=named(label_of(folder, 2)) + ".*no image"):
        FolderDataset(folder, num_classes=5)


def test_empty_and_absent_folders(tmp_path):
    with pytest.raises(DataError, match="no images found"):
        FolderDataset(tmp_path, num_classes=5)
    with pytest.raises(DataError, match="absent"):
        FolderDataset(tmp_path / "absent", num_classes=5)
    (tmp_path / "train/images").mkdir(parents=True)
    with pytest.raises(DataError, match="labels.*no such folder"):
        FolderDataset(tmp_path, num_classes=5)
    (tmp_path / "train/labels").mkdir()
    with pytest.raises(DataError, match="train/images"):
        FolderDataset(tmp_path, num_classes=5)


def test_size_mismatch(folder):
    Image.new("L", (9, 9)).save(label_of(folder))
    with pytest.raises(DataError, match=named(label_of(folder)) + ".*9x9.*16x12"):
        FolderDataset(folder, num_classes=5)


def test_two_images_of_one_name(folder):
    Image.new("RGB", SIZE[::-1]).save(image_of(folder).with_suffix(".jpg"))
    with pytest.raises(DataError, match="the same name as"):
        FolderDataset(folder, num_classes=5)


def test_unreadable_and_truncated(folder):
    image_of(folder).write_bytes(b"not an image")
    with pytest.raises(DataError, match=named(image_of(folder)) + ".*cannot be read"):
        FolderDataset(folder, num_classes=5)
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    Image.fromarray(image).save(image_of(folder))
    image_of(folder).write_bytes(image_of(folder).read_bytes()[:-80])
    data = FolderDataset(folder, num_classes=5)  # its header is sound
    with pytest.raises(DataError, match=named(image_of(folder)) + ".*cannot be read"):
        data.read("train", 1)
    with pytest.raises(tf.errors.OpError, match=named(image_of(folder))):
        list(eval_pipeline(data, "train"))


def test_sixteen_bit_image_is_refused(folder):
    Image.fromarray(np.zeros(SIZE, np.uint16)).save(image_of(folder))
    with pytest.raises(DataError, match=named(image_of(folder)) + ".*8 bits"):
        FolderDataset(folder, num_classes=5)


def test_pictures_of_other_formats_are_named(folder):
    """Not one of them is passed over, nor told of twice, and what is no picture is no fault."""
    image_of(folder, 1).rename(image_of(folder, 1).with_suffix(".gif"))  # its label waits for it
    label_of(folder, 2).rename(label_of(folder, 2).with_suffix(".TIF"))
    label_of(folder, 3).rename(label_of(folder, 3).with_suffix(".jpg"))
    image_of(folder, 3).unlink()
    for name in ("more.heic", "00.tiff"):  # the second beside an image that is read
        image_of(folder).with_name(name).write_bytes(b"")
    for name in ("Thumbs.db", "notes.txt", ".hidden.gif", "README"):
        image_of(folder).with_name(name).write_bytes(b"")
        label_of(folder).with_name(name).write_bytes(b"")
    data = FolderDataset(folder, num_classes=5, on_error="skip")
    assert [Path(p).name for p in data.examples("train")] == ["00.png"]
    labels_are = "labels are read from PNG files only"
    assert {Path(fault.path).name: fault.reason for fault in data.faults} == {
        "00.tiff": "TIFF is not read; convert it to PNG or JPEG",
        "01.gif": "GIF is not read; convert it to PNG or JPEG",
        "more.heic": "HEIC is not read; convert it to PNG or JPEG",
        "02.TIF": labels_are,
        "03.jpg": labels_are,
    }
    assert len(data.faults) == 5
    with pytest.raises(DataError, match="00.tiff: TIFF is not read.*4 more"):
        FolderDataset(folder, num_classes=5)


def test_hidden_folders_are_passed_over(tmp_path):
    """Such as those that Jupyter makes beside what somebody looked at."""
    layouts = [("{}/images", "{}/labels"), ("images/{}", "labels/{}"), ("images", "labels")]
    for number, layout in enumerate(layouts):
        folder = tmp_path / str(number)
        images, labels = (part.format("train") for part in layout)
        write_pair(folder, "a", 1, images, labels)
        for hidden in (f"{images}/.ipynb_checkpoints", "images/.ipynb_checkpoints"):
            if number or hidden.startswith("train"):
                write_pair(folder, "a-checkpoint", 1, hidden, ".unseen")
        write_pair(folder, "b", 1, ".Trash/images", ".Trash/labels")
        data = FolderDataset(folder, num_classes=5, val_fraction=0)
        assert data.splits == ("train",) and data.size("train") == 1
        assert [p.name for p in list_images(folder / images)] == ["a.png"]
        image = folder / images / "a.png"
        image.rename(image.with_name("._a.png"))
        with pytest.raises(ValueError, match="no file in"):
            list_images(folder / images)


def test_a_folder_of_nothing_but_unread_pictures(tmp_path):
    write_pair(tmp_path, "a", 1, "images", "labels")
    (tmp_path / "images/a.png").rename(tmp_path / "images/a.tif")
    with pytest.raises(DataError, match="a.tif: TIF is not read; convert it to PNG or JPEG$"):
        FolderDataset(tmp_path, num_classes=5)


def test_table_of_unread_pictures(folder):
    for path in (image_of(folder, 1), label_of(folder, 2)):
        Image.open(path).save(path.with_suffix(".gif"))
    rows = ["image,label", "train/images/01.gif,train/labels/01.png"]
    rows += ["train/images/02.png,train/labels/02.gif", "train/images/03.png,train/labels/03.png"]
    (folder / "pairs.csv").write_text("\n".join(rows))
    data = FolderDataset(folder / "pairs.csv", num_classes=5, val_fraction=0, on_error="skip")
    assert [Path(p).name for p in data.examples("train")] == ["03.png"]
    assert [str(fault) for fault in data.faults] == [
        f"{folder / 'train/images/01.gif'}: GIF is not read; convert it to PNG or JPEG",
        f"{folder / 'train/labels/02.gif'}: labels are read from PNG files only",
    ]


def test_several_faults_are_counted(folder):
    label_of(folder, 1).unlink()
    label_of(folder, 2).unlink()
    with pytest.raises(DataError, match="1 more"):
        FolderDataset(folder, num_classes=5)


def test_error_carries_path_and_reason(folder):
    label_of(folder).unlink()
    with pytest.raises(DataError) as caught:
        FolderDataset(folder, num_classes=5)
    assert caught.value.path == str(image_of(folder))
    assert "no label" in caught.value.reason
    assert isinstance(caught.value, ValueError)


# === on_error="skip" ===


@pytest.fixture
def warnings(monkeypatch):
    seen = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: seen.append(text % args))
    return seen


def test_skip_at_construction(folder, warnings):
    Image.new("RGB", SIZE[::-1]).save(label_of(folder))
    data = FolderDataset(folder, num_classes=5, on_error="skip")
    assert data.size("train") == 3
    assert [fault.path for fault in data.faults] == [str(label_of(folder))]
    assert len(warnings) == 1 and str(label_of(folder)) in warnings[0]


def test_skip_while_reading(folder, warnings):
    image_of(folder).write_bytes(image_of(folder).read_bytes()[:-80])
    data = FolderDataset(folder, num_classes=5, on_error="skip")
    assert data.size("train") == 4 and not warnings
    assert len(list(data.load("train"))) == 3
    assert len(list(eval_pipeline(data, "train", batch_size=2))) == 2
    batches = train_pipeline(data, "train", 3, (8, 8), cache=True)
    assert len(list(batches.take(4))) == 4
    assert len(warnings) == 1 and str(image_of(folder)) in warnings[0]  # once, not every epoch


def test_unknown_on_error(folder):
    with pytest.raises(ValueError, match="on_error"):
        FolderDataset(folder, num_classes=5, on_error="ignore")


# === EXIF ===


def test_images_are_turned_upright(folder):
    height, width = SIZE
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees, clockwise
    path = image_of(folder).with_suffix(".jpg")
    image_of(folder).unlink()
    Image.fromarray(image).save(path, exif=exif, quality=95)
    with pytest.raises(DataError, match=named(label_of(folder)) + ".*EXIF"):
        FolderDataset(folder, num_classes=5)
    Image.new("L", (height, width)).save(label_of(folder))
    upright, label = FolderDataset(folder, num_classes=5).read("train", 1)
    assert upright.shape == (width, height, 3) and label.shape == (width, height)
    assert upright[: width // 2 - 2].min() > 200 and upright[width // 2 + 2 :].max() < 60


# === What is loaded ===


def test_load_and_palette(folder):
    data = FolderDataset(folder, num_classes=5)
    elements = list(data.load("train"))
    assert len(elements) == 4
    for i, element in enumerate(elements):
        assert element["image"].dtype == element["label"].dtype == tf.uint8
        np.testing.assert_array_equal(element["image"], data.read("train", i)[0])
    assert data.palette == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))


def test_grey_and_alpha_images_become_rgb(folder):
    Image.new("L", SIZE[::-1], 7).save(image_of(folder, 0))
    Image.new("RGBA", SIZE[::-1], (1, 2, 3, 4)).save(image_of(folder, 1))
    data = FolderDataset(folder, num_classes=5)
    assert (data.read("train", 0)[0] == 7).all()
    assert (data.read("train", 1)[0] == (1, 2, 3)).all()


def test_unknown_split(folder):
    with pytest.raises(ValueError, match="no split 'val'"):
        FolderDataset(folder, num_classes=5).size("val")


# === Groups ===


def test_groups_unite_classes_and_ignore_the_rest(folder):
    stored = FolderDataset(folder, num_classes=5)
    groups = (("odd", ("class_3", "class_1")), ("zero", "class_0"))
    data = FolderDataset(folder, num_classes=5, groups=groups)
    assert data.class_names == ("odd", "zero")
    assert data.palette == (stored.palette[3], stored.palette[0])
    old, new = stored.read("train", 2)[1], data.read("train", 2)[1]
    wanted = {0: 1, 1: 0, 2: 255, 3: 0, 4: 255, 255: 255}
    assert set(np.unique(old)) == set(wanted)
    np.testing.assert_array_equal(new, np.vectorize(wanted.get)(old))


@pytest.mark.parametrize(
    "groups, reason",
    [
        ({"a": ["class_1", "clas_2"]}, "unknown class 'clas_2'; did you mean "),
        ({"a": ["class_1"], "b": ["class_1"]}, "'class_1' is in two groups, 'a' and 'b'"),
        ({"a": []}, "'a' unites no classes"),
    ],
)
def test_groups_that_make_no_sense(folder, groups, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        FolderDataset(folder, num_classes=5, groups=groups)


def test_a_value_outside_the_stored_classes_is_refused_with_groups_too(folder):
    data = FolderDataset(folder, num_classes=4, groups={"a": ["class_0"]})
    with pytest.raises(DataError, match="label value 4"):
        data.read("train", 0)
