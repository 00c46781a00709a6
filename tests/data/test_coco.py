"""A folder in COCO's format: what it holds, and what is wrong with it."""

import json
import re
from pathlib import Path

import coco_folders
import numpy as np
import pytest
from absl import logging
from coco_folders import HEIGHT, MASKS, WIDTH
from PIL import Image
from pycocotools import mask
from pycocotools.coco import COCO

from isa_tf.data import CocoDataset, DataError, create, instance_train_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:pyc")

COCO_MINI = Path(__file__).parents[2].parent / "shared/data/coco_mini"

# === What it holds ===


@pytest.mark.parametrize("layout", ["plain", "images", "split first", "official"])
def test_layouts(layout, tmp_path):
    coco_folders.write_folder(tmp_path / "mine", layout=layout)
    data = create("coco", tmp_path / "mine")
    assert data.name == "mine" and data.splits == ("train", "val")
    assert [data.image_id("train", i) for i in range(data.size("train"))] == [7, 3, 5]
    assert [Path(name).name for name in data.examples("val")] == [
        "000000000030.jpg",
        "000000000020.jpg",
    ]
    assert data.num_classes == 80 and data.class_names[0] == "person"
    assert data.category_ids[:12] == (*range(1, 12), 13) and data.category_ids[-1] == 90
    assert len({*data.palette}) == 80 and (0, 0, 0) not in data.palette


@pytest.fixture
def folder(tmp_path):
    coco_folders.write_folder(tmp_path)
    return tmp_path


def test_two_years_keep_theirs(folder):
    for year in (2014, 2017):
        (folder / "train").rename(folder / f"train{year}")
        told = (folder / "instances_train.json").read_text()
        (folder / f"instances_train{year}.json").write_text(told)
        coco_folders.write_folder(folder)
    (folder / "instances_train.json").unlink()
    assert set(CocoDataset(folder).splits) == {"train2014", "train2017", "val"}


def test_annotations(folder):
    data = CocoDataset(folder)
    image, found = data.read("train", 0)
    told, files = coco_folders.made()["train"]
    np.testing.assert_array_equal(image, coco_folders.picture(files["000000000007.jpg"]))
    np.testing.assert_array_equal(
        found.boxes,
        np.float32([[2.1, 3.7, 12.17, 9], [24, 18, 32, 24], [4, 0, 14, 24], [20, 1, 26, 7]]),
    )
    assert found.boxes.dtype == found.areas.dtype == np.float32
    assert found.classes.tolist() == [0, 79, 2, 0] and found.classes.dtype == np.int32
    assert found.crowd.tolist() == [False, False, True, False] and found.crowd.dtype == bool
    assert found.ids.tolist() == [11, 12, 13, 16] and found.ids.dtype == np.int64
    assert found.areas[0] == np.float32(10.07 * 5.3 + 0.125)
    for number, lengths in zip(found.ids, found.masks, strict=True):
        np.testing.assert_array_equal(mask.decode(lengths), MASKS[number])


def test_an_image_without_annotations_is_an_example(folder):
    image, found = CocoDataset(folder).read("train", 1)
    assert image.shape == (HEIGHT, WIDTH, 3) and found.boxes.shape == (0, 4)
    assert all(len(values) == 0 for values in found)
    dropped = CocoDataset(folder, drop_empty=["train"])
    assert [dropped.image_id("train", i) for i in range(2)] == [7, 5] and dropped.size("val") == 2
    with pytest.raises(ValueError, match="no split 'test'"):
        CocoDataset(folder, drop_empty=["test"])


def test_crowds_and_boxes_without_area_make_no_image_worth_training_on(folder):
    for number in (13, 15):
        found = coco_folders.made()
        told = found["train"][0]
        told["annotations"] = [e for e in told["annotations"] if e["id"] == number]
        coco_folders.write_folder(folder, found)
        with pytest.raises(DataError, match="instances_train.json: no image is left"):
            CocoDataset(folder, drop_empty=["train"])


def test_graph_and_python_read_the_same(folder):
    data = CocoDataset(folder)
    read = data.image_reader("train").read
    for i in range(3):
        np.testing.assert_array_equal(read(np.int64(i)), data.read("train", i)[0])


def test_ground_truth_is_what_pycocotools_reads(folder):
    data = CocoDataset(folder)
    for split in data.splits:
        known, made = COCO(folder / f"instances_{split}.json"), COCO()
        made.dataset = data.ground_truth(split)
        made.createIndex()
        assert sorted(made.anns) == sorted(known.anns) and sorted(made.imgs) == sorted(known.imgs)
        for number, entry in made.anns.items():
            for key in ("bbox", "area", "iscrowd", "category_id", "image_id"):
                assert entry[key] == known.anns[number][key]
            np.testing.assert_array_equal(
                made.annToMask(entry), known.annToMask(known.anns[number])
            )
        assert {i: c["name"] for i, c in made.cats.items()} == {
            i: c["name"] for i, c in known.cats.items()
        }


def test_the_mini_set_whole():
    if not COCO_MINI.is_dir():
        pytest.skip(f"no {COCO_MINI}")
    data = CocoDataset(COCO_MINI)
    assert data.size("train") == data.size("val") == 68 and not data.faults
    for split, count in (("train", 624), ("val", 586)):
        known = COCO(COCO_MINI / f"instances_{split}.json")
        assert len(known.anns) == count
        seen = 0
        for i in range(data.size(split)):
            found = data.annotations(split, i)
            for number, lengths in zip(found.ids.tolist(), found.masks, strict=True):
                told = known.annToRLE(known.anns[number])
                assert lengths["size"] == told["size"] and lengths["counts"] == told["counts"]
                seen += 1
        assert seen == count


@pytest.mark.parametrize("listed", ["stored", "upright"])
def test_exif_turns_what_is_listed_turned(listed, folder):
    """COCO's own tools do not ask for the orientation, those that made a folder may have done."""
    pixels = np.random.default_rng(0).integers(0, 256, (WIDTH, HEIGHT, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(folder / "turned.png", exif=exif)
    size = {"height": WIDTH, "width": HEIGHT}
    if listed == "upright":
        size, pixels = {"height": HEIGHT, "width": WIDTH}, np.rot90(pixels, -1)
    (folder / "turned.png").rename(folder / "val/turned.png")
    told = json.loads((folder / "instances_val.json").read_text())
    told["images"].append({"id": 99, "file_name": "turned.png", **size})
    (folder / "instances_val.json").write_text(json.dumps(told))
    data = CocoDataset(folder)
    np.testing.assert_array_equal(data.read("val", 2)[0], pixels)
    batches = instance_train_pipeline(
        data, "val", 3, short_side=24, shuffle=False, repeat=False, flip=False, mask_size=8
    )
    ((x, _),) = batches
    np.testing.assert_array_equal(x["image"][2, : len(pixels), : pixels.shape[1]], pixels)


# === What is wrong ===


def change(number, **values):
    def changed(told):
        (entry,) = (e for e in told["annotations"] if e["id"] == number)
        entry.update(values)

    return changed


def without(kind, number, key):
    def changed(told):
        (entry,) = (e for e in told[kind] if e["id"] == number)
        del entry[key]

    return changed


def added(kind, **values):
    return lambda told: told[kind].append(values)


def change_image(number, **values):
    def changed(told):
        (entry,) = (e for e in told["images"] if e["id"] == number)
        entry.update(values)

    return changed


NAN, INF = float("nan"), float("inf")
SQUARE = [2, 2, 8, 2, 8, 8, 2, 8]
SHORT = {"size": [HEIGHT, WIDTH], "counts": [5, 3]}
OTHER = {"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}
ANOTHER = {
    **{"id": 11, "image_id": 7, "category_id": 1, "bbox": [2, 2, 6, 6], "area": 36.0},
    **{"iscrowd": 0, "segmentation": [SQUARE]},
}
# What is changed of "train", what is said, and which annotations are left of images 7 and 5.
ANNOTATION_FAULTS = {
    "unknown category": (change(11, category_id=12), "category_id is 12, which is not listed", 11),
    "no category": (without("annotations", 11, "category_id"), "category_id is None", 11),
    "two points": (change(11, segmentation=[SQUARE, [1, 2, 3, 4]]), "fewer than three points", 11),
    "odd count": (change(11, segmentation=[SQUARE + [1]]), "odd count of numbers", 11),
    "no polygon": (change(11, segmentation=[]), "it has no segmentation", 11),
    "no segmentation": (without("annotations", 16, "segmentation"), "it has no segmentation", 16),
    "a flat polygon": (change(11, segmentation=SQUARE), "fewer than three points", 11),
    "NaN in a polygon": (change(11, segmentation=[[NAN, *SQUARE[1:]]]), "no list of finite", 11),
    "lists in a polygon": (change(11, segmentation=[[[1, 2]] * 6]), "no list of finite", 11),
    "null in a polygon": (change(11, segmentation=[[None, *SQUARE[1:]]]), "no list of finite", 11),
    "uneven lists": (change(11, segmentation=[[[1], 2, 3, 4, 5, 6]]), "no list of finite", 11),
    "text in a polygon": (change(11, segmentation=[["2", *SQUARE[1:]]]), "no list of finite", 11),
    "a polygon far outside": (change(11, segmentation=[[1e9, *SQUARE[1:]]]), "outside of", 11),
    "box to the right": (change(16, bbox=[20, 1, 13.5, 6]), "reaches outside .* 32x24", 16),
    "box below": (change(16, bbox=[20, 20, 6, 6]), "reaches outside of the image", 16),
    "box to the left": (change(16, bbox=[-2, 1, 6, 6]), "reaches outside of the image", 16),
    "box far outside": (change(16, bbox=[900, 900, 6, 6]), "reaches outside of the image", 16),
    "negative side": (change(16, bbox=[20, 1, -6, 6]), "negative width or height", 16),
    "NaN in a box": (change(16, bbox=[20, NAN, 6, 6]), "not four finite numbers", 16),
    "three numbers": (change(16, bbox=[20, 1, 6]), "not four finite numbers", 16),
    "no box": (without("annotations", 16, "bbox"), "not four finite numbers, but None", 16),
    "NaN area": (change(16, area=NAN), "its area is nan", 16),
    "infinite area": (change(16, area=INF), "its area is inf", 16),
    "negative area": (change(16, area=-1.0), "its area is -1.0", 16),
    "RLE of another size": (change(12, segmentation=OTHER), r"of size \[32, 24\] .*\[24, 32\]", 12),
    "RLE cut short": (change(12, segmentation=SHORT), "run lengths cannot be read", 12),
    "RLE without counts": (change(12, segmentation={"size": [1, 1]}), "no size and counts", 12),
    "RLE of text that is none": (
        change(12, segmentation={"size": [HEIGHT, WIDTH], "counts": "~~~"}),
        "run lengths cannot be read",
        12,
    ),
    "polygons of a crowd": (change(13, segmentation=[SQUARE]), "a crowd and has polygons", 13),
    "odd iscrowd": (change(13, iscrowd=2), "its iscrowd is 2", 13),
    "an id twice": (added("annotations", **ANOTHER), "its id is there twice", None),
    "an id of text": (change(16, id="16"), "its id is no whole number", 16),
    "of a missing image": (change(16, image_id=1234), "of an image that is not listed", 16),
    "of no image": (without("annotations", 16, "image_id"), "an image that is not listed", 16),
}


def write_changed(folder, changed):
    found = coco_folders.made()
    changed(found["train"][0])
    coco_folders.write_folder(folder, found)


def ids_of(data):
    """The annotations of "train", by the images' ids."""
    return {
        data.image_id("train", i): data.annotations("train", i).ids.tolist()
        for i in range(data.size("train"))
    }


@pytest.mark.some(12)
@pytest.mark.parametrize("what", ANNOTATION_FAULTS)
def test_a_faulty_annotation_is_named_and_left_out(what, tmp_path, caplog):
    changed, told, number = ANNOTATION_FAULTS[what]
    write_changed(tmp_path, changed)
    with pytest.raises(DataError, match=told) as error:
        CocoDataset(tmp_path)
    assert error.value.path == str(tmp_path / "instances_train.json")
    image = {"of a missing image": "image 1234, ", "of no image": ""}.get(what, "image 7, ")
    shown = "16" if what == "an id of text" else number or 11
    assert error.value.reason.startswith(f"{image}annotation {shown}: ")
    with caplog.at_level(logging.WARNING, "absl"):
        data = CocoDataset(tmp_path, on_error="skip")
    assert [str(fault) for fault in data.faults] == [str(error.value)]
    assert str(error.value) in caplog.text
    left = {7: [11, 12, 13, 16], 3: [], 5: [14, 15]}
    left[7] = [i for i in left[7] if i != number]
    assert ids_of(data) == left
    # What is left trains and is scored.
    assert len(data.ground_truth("train")["annotations"]) == sum(map(len, left.values()))
    batches = instance_train_pipeline(data, "train", 3, short_side=24, mask_size=8, repeat=False)
    ((_, y),) = batches
    assert int(y["valid"].numpy().sum()) == sum(map(len, left.values())) - 1  # one has no area


IMAGE_FAULTS = {
    "an id twice": (
        added("images", id=3, file_name="b.jpg", height=9, width=9),
        "instances_train.json: image 3: its id is there twice",
        [7, 3, 5],
    ),
    "a file twice": (
        added("images", id=4, file_name="000000000003.jpg", height=HEIGHT, width=WIDTH),
        "instances_train.json: image 4: '000000000003.jpg' is image 3 as well",
        [7, 3, 5],
    ),
    "no size": (without("images", 7, "height"), "image 7: its height and width are None", [3, 5]),
    "no name": (without("images", 7, "file_name"), "image 7: it has no file_name", [3, 5]),
    "an id of text": (
        change_image(3, id="3"),
        "instances_train.json: image '3': its id is no whole number",
        [7, 5],
    ),
    "outside": (
        change_image(7, file_name="../val/000000000030.jpg"),
        "image 7: .*lies outside",
        [3, 5],
    ),
    "no picture": (change_image(7, file_name="notes.txt"), "image 7: .*ends in none of", [3, 5]),
    "another size": (
        change_image(3, width=WIDTH + 2),
        "000000000003.jpg: image 3: it is 32x24 and listed as 34x24",
        [7, 5],
    ),
    "a missing file": (
        change_image(7, file_name="gone.jpg"),
        "train/gone.jpg: image 7: no such file",
        [3, 5],
    ),
}


@pytest.mark.parametrize("what", IMAGE_FAULTS)
def test_a_faulty_image_is_named_and_left_out(what, tmp_path):
    changed, told, left = IMAGE_FAULTS[what]
    write_changed(tmp_path, changed)
    with pytest.raises(DataError, match=told):
        CocoDataset(tmp_path)
    data = CocoDataset(tmp_path, on_error="skip")
    assert any(re.search(told, str(fault)) for fault in data.faults)
    assert list(ids_of(data)) == left
    assert {f for i, f in ids_of(data).items() if i != 7 for f in f} == {14, 15}


def test_an_image_that_the_json_does_not_list(folder):
    Image.new("RGB", (4, 3)).save(folder / "val/extra.png")
    told = r"val/extra.png: an image that .*instances_val.json does not list"
    with pytest.raises(DataError, match=told):
        CocoDataset(folder)
    data = CocoDataset(folder, on_error="skip")
    assert data.size("val") == 2 and len(data.faults) == 1


def test_what_is_listed_by_another_spelling_of_its_path(tmp_path):
    write_changed(tmp_path, change_image(7, file_name="./000000000007.jpg"))
    assert CocoDataset(tmp_path).size("train") == 3


def test_hidden_folders_are_passed_over(folder):
    (folder / "val/.ipynb_checkpoints").mkdir()
    Image.new("RGB", (4, 3)).save(folder / "val/.ipynb_checkpoints/extra.png")
    assert CocoDataset(folder).size("val") == 2


@pytest.mark.parametrize("damage", ["header", "pixels"])
def test_an_unreadable_image_is_named(damage, folder):
    path = folder / "train/000000000007.jpg"
    contents = path.read_bytes()
    if damage == "header":
        path.write_bytes(b"no picture")
        with pytest.raises(DataError, match="000000000007.jpg: image 7: cannot be read"):
            CocoDataset(folder)
        assert list(ids_of(CocoDataset(folder, on_error="skip"))) == [3, 5]
        return
    path.write_bytes(contents[: len(contents) * 2 // 3])  # which its header does not tell
    with pytest.raises(DataError, match="000000000007.jpg: .*cannot be read"):
        CocoDataset(folder).read("train", 0)
    arguments = {"short_side": 24, "mask_size": 8, "shuffle": False, "repeat": False}
    with pytest.raises(Exception, match="000000000007.jpg"):
        list(instance_train_pipeline(CocoDataset(folder), "train", 1, **arguments))
    skipping = CocoDataset(folder, on_error="skip")
    batches = list(instance_train_pipeline(skipping, "train", 1, **arguments))
    assert [int(y["valid"].numpy().sum()) for _, y in batches] == [0, 1]


def test_several_faults_are_counted(tmp_path):
    def changed(told):
        change(11, category_id=12)(told)
        change(14, bbox=[0, 0, 99, 99])(told)

    write_changed(tmp_path, changed)
    with pytest.raises(DataError, match=r"annotation 11: .*\(and 1 more faults\)"):
        CocoDataset(tmp_path)
    assert ids_of(CocoDataset(tmp_path, on_error="skip")) == {7: [12, 13, 16], 3: [], 5: [15]}


def test_boxes_may_reach_a_pixel_outside(tmp_path):
    write_changed(tmp_path, change(16, bbox=[20, -0.75, 12.9, 7]))
    data = CocoDataset(tmp_path)
    np.testing.assert_allclose(data.annotations("train", 0).boxes[3], [20, -0.75, 32.9, 6.25])
    batches = instance_train_pipeline(
        data, "train", 1, short_side=24, mask_size=8, shuffle=False, repeat=False, flip=False
    )
    _, y = next(iter(batches))
    np.testing.assert_allclose(y["boxes"][0, 3], [20, 0, 32, 6.25])


def test_an_area_that_is_not_told_is_the_masks(tmp_path):
    write_changed(tmp_path, without("annotations", 11, "area"))
    assert CocoDataset(tmp_path).annotations("train", 0).areas[0] == MASKS[11].sum()


@pytest.mark.parametrize(
    "text, told",
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "no list of 'images'"),
        ('{"images": [], "annotations": {}, "categories": []}', "no list of 'annotations'"),
        ('{"images": [3], "annotations": [], "categories": []}', "no list of 'images'"),
        ('{"images": [], "annotations": [], "categories": []}', "lists no categories"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1}]}',
            "a category without an id or a name",
        ),
    ],
)
def test_a_broken_json_is_named(text, told, folder):
    (folder / "instances_train.json").write_text(text)
    for on_error in ("raise", "skip"):
        with pytest.raises(DataError, match=f"instances_train.json: .*{told}"):
            CocoDataset(folder, on_error=on_error)


def test_a_json_that_is_no_text(folder):
    (folder / "instances_train.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(DataError, match="instances_train.json: cannot be read as JSON"):
        CocoDataset(folder)


@pytest.mark.parametrize("same", ["id", "name"])
def test_a_category_that_is_there_twice(same, tmp_path):
    def changed(told):
        told["categories"][4][same] = told["categories"][9][same]

    write_changed(tmp_path, changed)
    with pytest.raises(DataError, match="instances_train.json: category .* is there twice"):
        CocoDataset(tmp_path, on_error="skip")


def test_categories_that_differ_between_splits(tmp_path):
    write_changed(tmp_path, lambda told: told["categories"][0].update(name="people"))
    with pytest.raises(DataError, match="val.json: its categories are not those of .*train.json"):
        CocoDataset(tmp_path)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        CocoDataset(tmp_path / "gone")
    with pytest.raises(DataError, match=r"no instances_\*.json here, nor in its folder"):
        CocoDataset(tmp_path)
    coco_folders.write_folder(tmp_path)
    (tmp_path / "val").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="val: no such folder, for the images of .*val.json"):
        CocoDataset(tmp_path)


def test_all_faulty(tmp_path):
    write_changed(tmp_path, lambda told: [i.update(height=-1) for i in told["images"]])
    with pytest.raises(DataError, match="instances_train.json: no image is left of it"):
        CocoDataset(tmp_path, on_error="skip")
