import json
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask

from isa_tf.data import DataError, FolderDataset
from isa_tf.data.convert_labels import (
    Source,
    convert_colors,
    convert_instances,
    read_colors,
)
from isa_tf.data.listing import FileNames

COCO_MINI = Path(__file__).parents[2].parent / "shared/data/coco_mini"
HEIGHT, WIDTH = 12, 16


def rectangle(top, left, bottom, right):
    """A polygon that covers rows top..bottom - 1 and columns left..right - 1."""
    return [left, top, right, top, right, bottom, left, bottom]


def run_lengths(pixels):
    """COCO's run lengths: down the columns, zeros first."""
    flat = pixels.ravel(order="F").astype(int)
    changes = np.flatnonzero(np.diff(flat, prepend=0))
    return {
        "size": list(pixels.shape),
        "counts": np.diff([0, *changes, pixels.size]).tolist(),
    }


class Coco:
    """A folder of images and its JSON, to be changed and written."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "images").mkdir(parents=True)
        self.told = {
            "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
            "images": [],
            "annotations": [],
        }

    def image(self, number, name="", size=(HEIGHT, WIDTH), **save):
        path = self.folder / "images" / (name or f"{number}.png")
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), "uint8")
        Image.fromarray(pixels).save(path, **save)
        entry = {"id": number, "file_name": name or path.name, "height": size[0], "width": size[1]}
        self.told["images"].append(entry)

    def shape(self, image, category, segmentation, **more):
        number = len(self.told["annotations"]) + 1
        entry = {"id": number, "image_id": image, "category_id": category}
        self.told["annotations"].append({**entry, "segmentation": segmentation, **more})

    def source(self, split=None):
        path = self.folder / "instances.json"
        path.write_text(json.dumps(self.told))
        return Source(self.folder / "images", path, split)


@pytest.fixture
def coco(tmp_path):
    coco = Coco(tmp_path / "coco")
    coco.image(5)
    return coco


def label_of(folder, name="5", split="."):
    return np.asarray(Image.open(folder / split / "labels" / f"{name}.png"))


def names_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# === Instances ===


def test_what_lies_on_what(coco, tmp_path):
    crowd = np.zeros((HEIGHT, WIDTH), bool)
    crowd[2:10, 8:16] = True
    crowd[5, 9] = False
    small = np.zeros((HEIGHT, WIDTH), bool)
    small[4:6, 2:12:2] = True
    coco.shape(5, 3, run_lengths(small))
    coco.shape(5, 18, [rectangle(1, 1, 9, 10), rectangle(10, 12, 12, 15)], iscrowd=0, area=1)
    coco.shape(5, 18, run_lengths(crowd), iscrowd=1)
    wanted = np.zeros((HEIGHT, WIDTH), np.uint8)
    wanted[crowd] = 255
    wanted[1:9, 1:10] = wanted[10:12, 12:15] = 2  # the dog of id 18, though it stands first
    wanted[small] = 1
    made = convert_instances([coco.source()], tmp_path / "made")
    assert made.class_names == ("background", "car", "dog") and made.sizes == {None: 1}
    np.testing.assert_array_equal(label_of(tmp_path / "made"), wanted)

    without = np.where(wanted == 255, 255, wanted - np.uint8(1))  # 0 becomes 255
    convert_instances([coco.source()], tmp_path / "none", background=False)
    np.testing.assert_array_equal(label_of(tmp_path / "none"), without)
    assert json.loads((tmp_path / "none/classes.json").read_text()) == ["car", "dog"]


def test_of_one_size_the_later_lies_on_top(coco, tmp_path):
    coco.shape(5, 18, [rectangle(0, 0, 4, 4)])
    coco.shape(5, 3, [rectangle(2, 2, 6, 6)])
    convert_instances([coco.source()], tmp_path / "made")
    label = label_of(tmp_path / "made")
    assert (label[2:6, 2:6] == 1).all() and (label[:2, :4] == 2).all()


def test_run_lengths_as_text(coco, tmp_path):
    masks = {}
    for number, size, share in ((6, (3, 5), 0.1), (7, (90, 110), 0.4), (8, (300, 200), 5e-4)):
        coco.image(number, size=size)
        masks[number] = np.random.default_rng(number).random(size) < share
        encoded = mask.encode(np.asfortranarray(masks[number].astype(np.uint8)))
        coco.shape(number, 3, {"size": list(size), "counts": encoded["counts"].decode()})
    convert_instances([coco.source()], tmp_path / "made")
    for number, wanted in masks.items():
        np.testing.assert_array_equal(label_of(tmp_path / "made", number), wanted)


def test_splits_and_folders_read_as_a_data_set(coco, tmp_path):
    coco.image(6, "city/6.png")
    coco.shape(6, 3, [rectangle(0, 0, 3, 3)])
    other = Coco(tmp_path / "other")
    other.image(7)
    seen = []
    made = convert_instances(
        [coco.source("train"), other.source("val")],
        tmp_path / "made",
        num_threads=2,
        progress=lambda *told: seen.append(told),
    )
    assert made.sizes == {"train": 2, "val": 1}
    assert seen == [("train", 1, 2), ("train", 2, 2), ("val", 1, 1)]
    data = FolderDataset(tmp_path / "made")
    assert data.class_names == made.class_names and data.splits == ("train", "val")
    image, label = data.read("train", 1)
    original = np.asarray(Image.open(coco.folder / "images/city/6.png"))
    np.testing.assert_array_equal(image, original)
    assert label.sum() == 9 and data.read("val", 0)[1].sum() == 0


@pytest.mark.parametrize("orientation", [3, 6, 7])
def test_a_label_turns_with_its_image(coco, tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    coco.image(6, "6.jpg", exif=exif)
    coco.shape(6, 3, [rectangle(0, 0, 3, 5)])
    convert_instances([coco.source()], tmp_path / "made")
    stored = np.zeros((HEIGHT, WIDTH), np.uint8)
    stored[:3, :5] = 1
    upright = {3: stored[::-1, ::-1], 6: stored[::-1].T, 7: stored[::-1, ::-1].T}[orientation]
    data = FolderDataset(tmp_path / "made", val_fraction=0)
    np.testing.assert_array_equal(data.read("train", 1)[1], upright)


def break_polygon(coco):
    coco.shape(5, 3, [[1, 1, 4, 1]])
    return "annotation 1: it has no polygon, or one with less than three points"


def break_letters(coco):
    coco.shape(5, 3, [["a", 1, 4, 1, 4, 4]])
    return "annotation 1: its segmentation cannot be read"


def break_size(coco):
    coco.shape(5, 3, {"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]})
    return r"annotation 1: its size is \[16, 12\] and its image's \[12, 16\]"


def break_counts(coco):
    coco.shape(5, 3, {"size": [HEIGHT, WIDTH], "counts": [3, 4]})
    return r"annotation 1: .*its run lengths are not those of 16x12 pixels"


def break_compressed(coco):
    encoded = mask.encode(np.asfortranarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8)))
    coco.shape(5, 3, {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()[:-2]})
    return r"annotation 1: .*its run lengths are not those of 16x12 pixels"


def break_category(coco):
    coco.shape(5, 4, [rectangle(0, 0, 2, 2)])
    return "annotation 1: it is of category 4, which is not listed"


def break_image(coco):
    coco.shape(9, 3, [rectangle(0, 0, 2, 2)])
    return "annotation 1: it is of image 9, which is not listed"


def break_listed_size(coco):
    coco.told["images"][0]["height"] = 30
    return "5.png: it is 16x12 and listed as 16x30"


def break_file(coco):
    coco.image(6)
    (coco.folder / "images/6.png").unlink()
    return "6.png: no such file, as 1 of 2 that .*instances.json lists"


def break_path(coco):
    coco.told["images"][0]["file_name"] = "../5.png"
    return "'../5.png' lies outside"


def break_names(coco):
    coco.image(6, "5.jpg")
    return "5.jpg: the same name as 5.png"


def break_keys(coco):
    del coco.told["annotations"]
    return r"instances.json: not COCO's JSON of instances \(KeyError\('annotations'\)\)"


def break_ids(coco):
    coco.told["categories"].append({"id": 3, "name": "bus"})
    return "an id of a category or an image is there twice"


@pytest.mark.parametrize(
    "damage", [value for name, value in sorted(globals().items()) if name.startswith("break_")]
)
def test_bad_instances_leave_nothing(coco, tmp_path, damage):
    reason = damage(coco)
    with pytest.raises(DataError, match=reason):
        convert_instances([coco.source()], tmp_path / "new/made")
    assert not (tmp_path / "new").exists() or names_below(tmp_path / "new") == []


def test_a_file_that_is_no_json_and_other_categories(coco, tmp_path):
    source = coco.source("train")
    other = Coco(tmp_path / "other")
    other.told["categories"][0]["name"] = "wolf"
    with pytest.raises(DataError, match="its categories are not those of .*coco/instances.json"):
        convert_instances([source, other.source("val")], tmp_path / "made")
    source.labels.write_text('{"images": [')
    with pytest.raises(DataError, match="instances.json: cannot be read as JSON"):
        convert_instances([source], tmp_path / "made")
    with pytest.raises(ValueError, match="a split of its own"):
        convert_instances([source, source], tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_what_is_there_is_left_alone(coco, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made/mine.txt").write_text("mine")
    with pytest.raises(DataError, match="made: there is something already"):
        convert_instances([coco.source()], tmp_path / "made")
    assert names_below(tmp_path / "made") == ["mine.txt"]
    (tmp_path / "made/mine.txt").unlink()
    convert_instances([coco.source()], tmp_path / "made")
    assert len(FolderDataset(tmp_path / "made", val_fraction=0).examples("train")) == 1


def test_a_full_disk_leaves_nothing(coco, tmp_path):
    """No file may have more than 4 KiB: as full as a disk can be made in a test."""
    noise = np.random.default_rng(0).random((200, 300)) < 0.5
    coco.image(6, size=noise.shape)
    coco.shape(6, 3, run_lengths(noise))
    source = coco.source()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="could not be made.*new/made"):
            convert_instances([source], tmp_path / "new/made")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert names_below(tmp_path / "new") == []
    convert_instances([source], tmp_path / "new/made")
    np.testing.assert_array_equal(label_of(tmp_path / "new/made", "6"), noise)


@pytest.mark.skipif(not COCO_MINI.is_dir(), reason=f"no slice of COCO at {COCO_MINI}")
def test_coco(tmp_path):
    """Beside Pillow's polygons, which differ along the outlines."""
    path = COCO_MINI / "instances_val.json"
    told = json.loads(path.read_text())
    crowded = {a["image_id"] for a in told["annotations"] if a["iscrowd"]}
    told["images"] = [i for i in told["images"] if i["id"] not in crowded][:12]
    kept = {image["id"] for image in told["images"]}
    told["annotations"] = [a for a in told["annotations"] if a["image_id"] in kept]
    (tmp_path / "some.json").write_text(json.dumps(told))
    convert_instances([Source(COCO_MINI / "val", tmp_path / "some.json")], tmp_path / "made")
    data = FolderDataset(tmp_path / "made", val_fraction=0)
    assert data.num_classes == 81 and data.class_names[80] == "toothbrush"
    ids = {category["id"]: i + 1 for i, category in enumerate(told["categories"])}
    agreed = total = drawn = 0
    for i, image in enumerate(sorted(told["images"], key=lambda each: each["file_name"])):
        canvas = Image.new("L", (image["width"], image["height"]))
        of_it = [a for a in told["annotations"] if a["image_id"] == image["id"]]
        for annotation in sorted(of_it, key=lambda each: -each["area"]):
            for polygon in annotation["segmentation"]:
                ImageDraw.Draw(canvas).polygon(polygon, fill=ids[annotation["category_id"]])
        label, reference = data.read("train", i)[1], np.asarray(canvas)
        agreed, total = agreed + (label == reference).sum(), total + label.size
        drawn += (reference > 0).sum()
    assert drawn > 0.1 * total
    assert agreed > 0.99 * total


# === Colours ===

SKY, SEA, DEEP, BORDER = (128, 128, 128), (0, 0, 255), (0, 0, 100), (255, 255, 255)
TABLE = "name,r,g,b\nsky,128,128,128\nsea, 0, 0, 255\n\nsea,0,0,100\n,255,255,255\n"
PLACES = np.array([[0, 1, 2], [3, 1, 0]])
RGB = np.array([SKY, SEA, DEEP, BORDER], np.uint8)[PLACES]
IDS = np.array([0, 1, 1, 255], np.uint8)[PLACES]


@pytest.fixture
def colored(tmp_path):
    """Images, labels in colours with a suffix to their names, and a table."""
    (tmp_path / "photos/a").mkdir(parents=True)
    (tmp_path / "colored/a").mkdir(parents=True)
    for name in ("a/0", "1"):
        Image.new("RGB", (3, 2), name == "1" and "red" or "blue").save(
            tmp_path / f"photos/{name}.jpg"
        )
        Image.fromarray(RGB).save(tmp_path / f"colored/{name}_color.png")
    Image.new("L", (3, 2)).save(tmp_path / "colored/1_ids.png")
    (tmp_path / "colors.csv").write_text(TABLE)
    return Source(tmp_path / "photos", tmp_path / "colored")


NAMES = FileNames(label="*_color")


def test_colours_become_ids(colored, tmp_path):
    rgba = np.dstack([RGB, np.array([[0, 9, 255], [0, 9, 255]], np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "colored/1_color.png")
    palette = Image.fromarray(PLACES.astype(np.uint8))
    palette.putpalette([*SKY, *SEA, *DEEP, *BORDER])
    palette.save(tmp_path / "colored/a/0_color.png")
    with Image.open(tmp_path / "colored/a/0_color.png") as saved:
        assert saved.mode == "P"
    table = read_colors(tmp_path / "colors.csv")
    made = convert_colors([colored], tmp_path / "made", table, NAMES)
    assert made.class_names == ("sky", "sea") and made.sizes == {None: 2}
    assert names_below(tmp_path / "made")[-3:] == ["labels/1.png", "labels/a", "labels/a/0.png"]
    data = FolderDataset(tmp_path / "made", val_fraction=0)
    assert data.class_names == ("sky", "sea") and data.palette == (SKY, SEA)
    for i in range(2):
        np.testing.assert_array_equal(data.read("train", i)[1], IDS)
    assert tuple(data.read("train", 0)[0][0, 0]) == (254, 0, 0)


def test_an_unknown_colour_is_named_or_ignored(colored, tmp_path):
    other = RGB.copy()
    other[0, :2], other[1, 2] = (1, 2, 3), (3, 2, 1)
    Image.fromarray(other).save(tmp_path / "colored/1_color.png")
    table = read_colors(tmp_path / "colors.csv")
    with pytest.raises(
        DataError, match=r"1_color.png: colour \(1, 2, 3\) in 2 pixels.*and 1 more such colours"
    ):
        convert_colors([colored], tmp_path / "new/made", table, NAMES)
    assert names_below(tmp_path / "new") == []
    convert_colors([colored], tmp_path / "made", table, NAMES, ignore_unknown=True)
    wanted = IDS.copy()
    wanted[0, :2] = wanted[1, 2] = 255
    np.testing.assert_array_equal(label_of(tmp_path / "made", "1"), wanted)
    np.testing.assert_array_equal(label_of(tmp_path / "made", "a/0"), IDS)


def test_pairs_that_are_none(colored, tmp_path):
    table = read_colors(tmp_path / "colors.csv")
    with pytest.raises(DataError, match="photos/1.jpg: it has no label .*colored/1.png"):
        convert_colors([colored], tmp_path / "made", table)
    Image.new("RGB", (2, 3), SKY).save(tmp_path / "colored/1_color.png")
    with pytest.raises(DataError, match="the label is 2x3 and its image .*1.jpg is 3x2"):
        convert_colors([colored], tmp_path / "made", table, NAMES)
    assert not (tmp_path / "made").exists()


def test_tables(tmp_path):
    written = tmp_path / "colors.json"
    written.write_text(
        json.dumps(
            [
                {"name": "sky", "color": SKY},
                {"name": "sea", "color": SEA},
                {"name": None, "color": BORDER},
            ]
        )
    )
    table = read_colors(written, ignored=[DEEP])
    assert table.class_names == ("sky", "sea") and table.palette == (SKY, SEA)
    assert table.ids == {SKY: 0, SEA: 1, BORDER: 255, DEEP: 255}
    assert read_colors("camvid").ids[0, 128, 192] == 10
    with pytest.raises(ValueError, match='did you mean "camvid"'):
        read_colors("canvid")
    with pytest.raises(DataError, match="ade20k: its palette: .* stands for 'road' and 'sky"):
        read_colors("ade20k")  # whose palette has grey twice
    with pytest.raises(ValueError, match="no colours of its own"):
        read_colors("folder")
    with pytest.raises(DataError, match=r"ignored: \(0, 0, 255\) stands for 'sea' and 'ignored"):
        read_colors(written, ignored=[SEA])


@pytest.mark.parametrize(
    "text, reason",
    [
        ("sky,128,128,128\n", "the first line is name,r,g,b"),
        ("name,r,g,b\nsky,1,2\n", r"line 2: \(1, 2\) is not three numbers from 0 to 255"),
        ("name,r,g,b\nsky,1,2,256\n", "line 2: .*256"),
        ("name,r,g,b\nsky,1,2,x\n", "line 2 is not name,r,g,b"),
        ("name,r,g,b\n,1,2,3\n", "0 classes"),
        ("name,r,g,b\na,1,2,3\nb,1,2,3\n", r"line 3: \(1, 2, 3\) stands for 'a' and 'b'"),
    ],
)
def test_bad_tables(tmp_path, text, reason):
    (tmp_path / "colors.csv").write_text(text)
    with pytest.raises(DataError, match=reason):
        read_colors(tmp_path / "colors.csv")
