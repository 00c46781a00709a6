"""Every data set that has a builder, from its publisher's archives to the ids that are trained on.

Where the environment variable ISA_TF_ARCHIVES names a folder with a subfolder for each of the data
sets (`voc2012`, `lip`, ...) that holds its archives or what is unpacked of them, the splits of the
real data sets are counted, too.
"""

import os
import pickle
import shutil
import tempfile
from pathlib import Path

import miniatures
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from isa_tf import data
from isa_tf.data import DataError, label_sets, pictures
from isa_tf.data.base import voc_palette
from isa_tf.data.builders.archives import Files
from isa_tf.data.builders.base import SegmentationBuilder
from isa_tf.inference import Encoding

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:pyc")

ROOT = Path(__file__).resolve().parents[3]
NAMES = sorted(miniatures.WRITERS)
ARCHIVES = os.environ.get("ISA_TF_ARCHIVES")
SIZES = {
    "ade20k": {"train": 20210, "val": 2000},
    "camvid": {"train": 367, "val": 101, "test": 233},
    "ccp": {"train": 804, "val": 200},
    "cityscapes": {"train": 2975, "val": 500, "test": 1525},
    "coco_stuff10k": {"train": 9000, "test": 1000},
    "coco_stuff164k": {"train": 118287, "val": 5000},
    "folder": {},
    "lip": {"train": 30462, "val": 10000},
    "pascal_context": {"train": 4998, "val": 5105},
    "pascal_context60": {"train": 4998, "val": 5105},
    "voc2012": {"train": 1464, "val": 1449, "trainaug": 10582},
}

# === What the stored ids mean, told in another way than the builders tell it: by names ===

_CITYSCAPES = {
    **{"road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17},
    **{"traffic light": 19, "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23},
    **{"person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31},
    **{"motorcycle": 32, "bicycle": 33},
}
# The Detail API counts VOC's classes first, in VOC's order, then the others.
_CONTEXT = dict(
    zip(
        """aeroplane bicycle bird boat bottle bus car cat chair cow table dog horse motorbike person
        pottedplant sheep sofa train tvmonitor bag bed bench book building cabinet ceiling cloth
        computer cup door fence floor flower food grass ground keyboard light mountain mouse curtain
        platform sign plate road rock shelves sidewalk sky snow bedclothes track tree truck wall
        water window wood""".split(),
        [
            *(2, 23, 25, 31, 34, 45, 59, 65, 72, 98, 397, 113, 207, 258, 284, 308, 347, 368, 416),
            *(427, 9, 18, 22, 33, 44, 46, 68, 80, 85, 104, 115, 144, 158, 159, 162, 187, 189, 220),
            *(232, 259, 260, 105, 296, 355, 295, 324, 326, 349, 354, 360, 366, 19, 415, 420, 424),
            *(440, 445, 454, 458),
        ],
        strict=True,
    )
)
# COCO-Stuff's names by their ids in the 10k set: those on both sides of every gap, and the ends.
_STUFF_KNOWN = {
    **{1: "person", 11: "fire hydrant", 13: "stop sign", 25: "giraffe", 27: "backpack"},
    **{28: "umbrella", 31: "handbag", 44: "bottle", 46: "wine glass", 65: "bed"},
    **{67: "dining table", 70: "toilet", 72: "tv", 82: "refrigerator", 84: "book"},
    **{90: "toothbrush", 92: "banner", 182: "wood"},
}


def _named(ids, names, ignored):
    return {**{ids[name]: i for i, name in enumerate(names)}, **dict.fromkeys(ignored, 255)}


def _stuff(first, unlabelled):
    """The used ids, in order, are the classes; `first` is the first of them."""
    used = [i for i in range(1, 183) if i not in miniatures.STUFF_GAPS]
    return {**{i - 1 + first: k for k, i in enumerate(used)}, unlabelled: 255}


def _same(count, *ignored):
    return {**{i: i for i in range(count)}, **dict.fromkeys(ignored, 255)}


EXPECTED = {
    "ade20k": {0: 255, **{i: i - 1 for i in range(1, 151)}},
    "camvid": _same(11, 11),
    "ccp": _same(59),
    "cityscapes": _named(
        _CITYSCAPES,
        label_sets.CITYSCAPES.class_names,
        set(range(34)) - set(_CITYSCAPES.values()),
    ),
    "coco_stuff10k": _stuff(1, 0),
    "coco_stuff164k": _stuff(0, 255),
    "folder": _same(3, 255),
    "lip": _same(20),
    "pascal_context": _named(_CONTEXT, label_sets.PASCAL_CONTEXT.class_names, [0]),
    "pascal_context60": _named(
        {"background": 0, **_CONTEXT}, label_sets.PASCAL_CONTEXT_60.class_names, []
    ),
    "voc2012": _same(21, 255),
}
# Ids that no label has, and some of the gaps.
REFUSED = {
    "ade20k": 151,
    "camvid": 12,
    "ccp": 59,
    "cityscapes": 34,
    "coco_stuff10k": 91,
    "coco_stuff164k": 11,
    "folder": 3,
    "lip": 255,
    "pascal_context": 1,
    "pascal_context60": 459,
    "voc2012": 21,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A function that gives the `Miniature` of a data set and the folder of its archives."""
    made = {}

    def write(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = miniatures.WRITERS[name](folder), folder
        return made[name]

    return write


@pytest.fixture
def unpacked(written, tmp_path):
    """A function that gives the `Miniature` of a data set and a folder of what it unpacks to."""

    def unpack(name):
        miniature, folder = written(name)
        miniatures.unpack(folder, tmp_path / "unpacked")
        return miniature, tmp_path / "unpacked"

    return unpack


def prepare(name, manual_dir, data_dir):
    return data.prepare(name, manual_dir, data_dir, check_sizes=False, num_threads=2)


def assert_reads_back(name, miniature, data_dir, expected):
    """What is read is what was packed: order and names, images, and labels value by value."""
    dataset = data.create(name, data_dir)
    assert {*dataset.splits} == {*miniature.splits}
    for split, some in miniature.splits.items():
        assert dataset.examples(split) == tuple(some), split
        for i, (file, picture) in enumerate(some.items()):
            image, label = dataset.read(split, i)
            np.testing.assert_array_equal(image, pictures.read_image(file, picture.image), file)
            if picture.ids is None:
                assert (label == 255).all(), file
                continue
            assert {*np.unique(picture.ids)} <= {*expected}, file
            for value in np.unique(picture.ids):
                found = np.unique(label[picture.ids == value])
                assert found.tolist() == [expected[value]], (file, value)
    return dataset


@pytest.mark.parametrize("form", ["archives", "unpacked"])
@pytest.mark.parametrize("name", NAMES)
def test_reads_back(name, form, written, unpacked, tmp_path):
    miniature, folder = (written if form == "archives" else unpacked)(name)
    prepare(name, folder, tmp_path / "data")
    dataset = assert_reads_back(name, miniature, tmp_path / "data", EXPECTED[name])
    assert {*EXPECTED[name].values()} - {255} == {*range(dataset.num_classes)}
    stored = [p.ids for some in miniature.splits.values() for p in some.values()]
    stored = np.unique(np.stack([ids for ids in stored if ids is not None]))
    assert stored.tolist() == sorted(EXPECTED[name])  # nothing was left untried


def test_every_builder_of_segmentation_has_a_miniature():
    of_segmentation = [
        name for name in data.list_builders() if issubclass(data.builder(name), SegmentationBuilder)
    ]
    assert NAMES == sorted(of_segmentation)
    # Those of instances are in test_coco.py.
    assert {*data.list_builders()} - {*NAMES} == {"coco"}


def test_pipelines_give_what_is_read_of_every_kind_of_jpeg(written, tmp_path):
    """One in colour, one in grey and one in CMYK, of which TensorFlow reads two."""
    prepare("coco_stuff10k", written("coco_stuff10k")[1], tmp_path)
    dataset = data.create("coco_stuff10k", tmp_path)
    ((images, labels),) = data.eval_pipeline(dataset, "train", batch_size=3)
    for i in range(3):
        image, label = dataset.read("train", i)
        np.testing.assert_array_equal(images[i], image)
        np.testing.assert_array_equal(labels[i], label)


@pytest.mark.parametrize("name", ["pascal_context", "pascal_context60"])
def test_prepared_masks_of_pascal_context(name, tmp_path):
    miniature = miniatures.pascal_context_prepared(tmp_path / "masks")
    prepare(name, tmp_path / "masks", tmp_path / "data")
    background = 255 if name == "pascal_context" else 0
    first = 0 if name == "pascal_context" else 1
    expected = {0: background, **{i + 1: i + first for i in range(59)}}
    assert_reads_back(name, miniature, tmp_path / "data", expected)


def test_train_ids_of_coco_stuff_are_the_same_classes_in_both_sets():
    names = label_sets.COCO_STUFF.class_names
    small, large = (data.builder(f"coco_stuff{size}").train_ids for size in ("10k", "164k"))
    for stored, name in _STUFF_KNOWN.items():
        assert names[small[stored]] == names[large[stored - 1]] == name
    np.testing.assert_array_equal(small[1:183], large[:182])
    assert (small[0], large[255]) == (255, 255)


def test_flip_pairs_of_lip(written, tmp_path):
    prepare("lip", written("lip")[1], tmp_path)
    dataset = data.create("lip", tmp_path)
    swapped = [tuple(dataset.class_names[i] for i in pair) for pair in dataset.flip_pairs]
    assert swapped == [(f"Left-{part}", f"Right-{part}") for part in ("arm", "leg", "shoe")]


def test_submission_ids_of_cityscapes(written, tmp_path):
    prepare("cityscapes", written("cityscapes")[1], tmp_path)
    dataset = data.create("cityscapes", tmp_path)
    assert dict(zip(dataset.class_names, dataset.submission_ids, strict=True)) == _CITYSCAPES


def test_results_of_voc_have_its_palette(written, tmp_path):
    prepare("voc2012", written("voc2012")[1], tmp_path)
    encoding = Encoding.of(data.create("voc2012", tmp_path))
    assert encoding.ids is None and encoding.palette == voc_palette(256)
    assert Encoding.of(data.create("voc2012", tmp_path, groups={"bird": ["bird"]})) == Encoding()


def test_parts_of_lip_alone(written, tmp_path):
    """Each archive in LIP.zip is given away alone as well, without lists."""
    miniature, folder = written("lip")
    shutil.unpack_archive(folder / "LIP.zip", tmp_path / "all")
    (tmp_path / "parts").mkdir()
    for name in ("TrainVal_images.zip", "TrainVal_parsing_annotations.zip"):
        shutil.copy(tmp_path / "all/LIP" / name, tmp_path / "parts")
    prepare("lip", tmp_path / "parts", tmp_path / "data")
    assert_reads_back("lip", miniature, tmp_path / "data", EXPECTED["lip"])


def test_what_is_listed_of_lip_and_missing(written, tmp_path):
    miniature, folder = written("lip")
    miniatures.unpack(folder, tmp_path / "lip")
    with open(tmp_path / "lip/LIP/val_id.txt", "a") as file:
        file.write("77_88\n")
    with pytest.raises(DataError, match=r"1 of the 3 images in val_id.txt .* 77_88"):
        prepare("lip", tmp_path / "lip", tmp_path / "data")


def test_trees_that_mmsegmentation_has_made(unpacked, tmp_path):
    """Its scripts leave converted labels beside the publisher's, and misprint a folder."""
    miniature, folder = unpacked("coco_stuff164k")
    for label in list(folder.glob("annotations/*2017/0*.png")):
        shutil.copy(label, label.with_name(f"{label.stem}_labelTrainIds.png"))
    prepare("coco_stuff164k", folder, tmp_path / "data")
    assert_reads_back("coco_stuff164k", miniature, tmp_path / "data", EXPECTED["coco_stuff164k"])


def test_misprinted_lists_of_coco_stuff(unpacked, tmp_path):
    miniature, folder = unpacked("coco_stuff10k")
    (folder / "imageLists").rename(folder / "imagesLists")
    found = data.builder("coco_stuff10k")(data_dir=tmp_path).examples(Files(folder, tmp_path))
    names = {split: [e.name for e in some] for split, some in found.items()}
    assert names == {split: list(some) for split, some in miniature.splits.items()}


@pytest.mark.parametrize("name", ["camvid", "ccp"])
def test_some_of_a_real_plain_folder(name, tmp_path):
    real = ROOT.parent / "shared/data" / name
    if not real.is_dir():
        pytest.skip(f"no {name} at {real}")
    for split in ("train", "val"):
        for part in ("images", "labels"):
            (tmp_path / "some" / split / part).mkdir(parents=True)
        for image in sorted((real / split / "images").iterdir())[:2]:
            label = real / split / f"labels/{image.stem}.png"
            for file in (image, label):
                (tmp_path / "some" / split / file.parent.name / file.name).symlink_to(file)
    prepare(name, tmp_path / "some", tmp_path / "data")
    plain, prepared = (data.create(name, tmp_path / part) for part in ("some", "data"))
    assert prepared.class_names == plain.class_names and prepared.palette == plain.palette
    for split in ("train", "val"):
        assert prepared.size(split) == plain.size(split) == 2
        for i in range(2):
            for one, other in zip(plain.read(split, i), prepared.read(split, i), strict=True):
                np.testing.assert_array_equal(one, other)


def write_pair(folder, image, label):
    """An image and its label of class 1, at paths below a folder."""
    for path, pixels in ((image, np.zeros((6, 8, 3), np.uint8)), (label, np.ones((6, 8), "uint8"))):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / path)


def test_a_plain_folder_of_camvid_with_its_splits_below(tmp_path):
    for split in ("train", "val"):
        write_pair(tmp_path / "plain", f"images/{split}/0.png", f"labels/{split}/0.png")
    prepare("camvid", tmp_path / "plain", tmp_path / "data")
    assert data.create("camvid", tmp_path / "data").splits == ("train", "val")


def test_folders_whose_names_differ_behind_a_dot(tmp_path):
    found = []
    for name in ("seen.v1", "seen.v2"):
        write_pair(tmp_path / name, f"train/images/{name}.png", f"train/labels/{name}.png")
        (tmp_path / name / "classes.txt").write_text("sky\nsea\n")
        folder = prepare("folder", tmp_path / name, tmp_path / "data")
        found.append(data.create("folder", folder).examples("train"))
    assert found == [("seen.v1",), ("seen.v2",)]


def test_names_in_folders_of_a_split(tmp_path):
    """They do not tell where the folder lay."""
    for city in ("bonn", "ulm"):
        write_pair(tmp_path / "own", f"train/images/{city}/0.png", f"train/labels/{city}/0.png")
    (tmp_path / "own" / "classes.txt").write_text("sky\nsea\n")
    folder = prepare("folder", tmp_path / "own", tmp_path / "data")
    assert data.create("folder", folder).examples("train") == ("bonn/0", "ulm/0")


# === What is amiss ===


def assert_refused(name, folder, data_dir, *told):
    with pytest.raises(DataError) as error:
        prepare(name, folder, data_dir)
    for text in told:
        assert text in str(error.value)
    with pytest.raises(DataError):
        data.create(name, data_dir)
    assert not [path for path in data_dir.rglob("*.tfrecord*")]
    assert not [path for path in data_dir.rglob("incomplete.*")]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "folder"])
def test_a_missing_archive_is_named(name, written, tmp_path):
    miniature, folder = written(name)
    shutil.copytree(folder, tmp_path / "archives")
    (tmp_path / "archives" / miniature.archive).unlink()
    (tmp_path / "archives/README.txt").touch()
    (archive,) = (a for a in data.builder(name).archives if a.file == miniature.archive)
    assert_refused(name, tmp_path / "archives", tmp_path / "data", archive.file, archive.source)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "folder"])
def test_all_archives_are_named_where_there_is_none(name, tmp_path):
    (tmp_path / "archives").mkdir()
    told = [text for a in data.builder(name).archives for text in (a.file, a.source)]
    assert_refused(name, tmp_path / "archives", tmp_path / "data", *told)


@pytest.mark.parametrize("what", ["image", "label"])
@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(name, what, unpacked, tmp_path):
    if (name, what) == ("ccp", "label"):
        pytest.skip("most photos of CCP have none")
    miniature, folder = unpacked(name)
    (path,) = (
        path for path in folder.rglob(getattr(miniature, what)) if "__MACOSX" not in path.parts
    )
    path.unlink()
    # Of Cityscapes both have a suffix, and it is the other one that is named.
    stem = path.stem.partition("_leftImg8bit")[0].partition("_gtFine")[0]
    assert_refused(name, folder, tmp_path / "data", stem)


@pytest.mark.parametrize("name", NAMES)
def test_an_id_outside_of_the_map_is_named(name, unpacked, tmp_path):
    miniature, folder = unpacked(name)
    ids = miniatures.ids_of([REFUSED[name]])
    ids[0, 0] = 0
    miniature.set_ids(folder, ids)
    count = miniatures.HEIGHT * miniatures.WIDTH - 1
    told = f"label value {REFUSED[name]} in {count} pixels"
    place = miniature.image if miniature.label.endswith(".json") else miniature.label
    assert_refused(name, folder, tmp_path / "data", place, told)


def test_masks_of_pascal_context_go_to_other_processes(written, tmp_path):
    miniature, folder = written("pascal_context")
    builder, files = data.builder("pascal_context"), Files(folder, tmp_path)
    examples = builder(data_dir=tmp_path).examples(files)["train"]
    for example, picture in zip(examples, miniature.splits["train"].values(), strict=True):
        label = pickle.loads(pickle.dumps(example.label))
        np.testing.assert_array_equal(builder.read_ids(files, label), picture.ids)


@pytest.mark.parametrize("damage", ["cut", "no images", "size"])
def test_a_damaged_json_of_pascal_context(damage, unpacked, tmp_path):
    _, folder = unpacked("pascal_context")
    file = folder / "trainval_merged.json"
    text = file.read_text()
    told = "get it again"
    if damage == "cut":
        file.write_text(text[: len(text) // 2])
    elif damage == "no images":
        file.write_text(text.replace('"images"', '"pictures"'))
    else:
        file.write_text(text.replace('"height": 24', '"height": 23'))
        told = "masks of 2008_0000"
    assert_refused("pascal_context", folder, tmp_path / "data", str(file), told)


# === Official sizes ===


@pytest.mark.parametrize("name", NAMES)
def test_official_sizes_are_told(name):
    assert data.builder(name).sizes == SIZES[name]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "folder"])
def test_official_sizes_of_the_real_archives(name, tmp_path):
    if ARCHIVES is None:
        pytest.skip("ISA_TF_ARCHIVES names no folder of the real archives")
    folder = Path(ARCHIVES) / name
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    found = data.builder(name)(data_dir=tmp_path).examples(Files(folder, tmp_path))
    assert {split: len(some) for split, some in found.items()} == SIZES[name]


# === tensorflow-datasets' own battery ===


class _Battery(tfds.testing.DatasetBuilderTestCase):
    """Prepares the miniature as `tfds.load` would, and reads it by `as_dataset`."""

    __test__ = False

    @classmethod
    def setUpClass(cls):
        cls.EXAMPLE_DIR = tempfile.mkdtemp()
        cls.addClassCleanup(shutil.rmtree, cls.EXAMPLE_DIR)
        miniature = miniatures.WRITERS[cls.dataset](Path(cls.EXAMPLE_DIR))
        cls.SPLITS = {split: len(some) for split, some in miniature.splits.items()}
        cls.DATASET_CLASS = data.builder(cls.dataset)
        super().setUpClass()

    def _make_builder(self, config=None):
        config = config or self.DATASET_CLASS.config_of(Path(self.EXAMPLE_DIR))
        return self.DATASET_CLASS(data_dir=self.tmp_dir, config=config, check_sizes=False)


def _battery(name):
    parts = {"dataset": name, "__test__": True, "__module__": __name__}
    if name == "voc2012":
        parts["OVERLAPPING_SPLITS"] = ["trainaug"]
    return type(f"Test_{name}", (_Battery,), parts)


for _name in NAMES:
    globals()[f"Test_{_name}"] = _battery(_name)
