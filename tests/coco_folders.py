"""Small data sets in COCO's format, with all kinds of shapes, as a folder and in its archives."""

import copy
import io
import json

import numpy as np
from miniatures import HEIGHT, WIDTH, jpeg, zipped
from pycocotools import mask

from isa_tf.data import label_sets

# Run lengths go down the columns. Whole columns are crowded, so that they are told by hand.
_CROWD = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * 4, HEIGHT * 10, HEIGHT * (WIDTH - 14)]}


def _rectangle(x, y, width, height):
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def _packed(inside):
    found = mask.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {"size": [HEIGHT, WIDTH], "counts": found["counts"].decode()}


def _annotation(number, image, category, box, segmentation, crowd=0):
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": float(box[2] * box[3]) + 0.125 * (number == 11),
        "iscrowd": crowd,
        "segmentation": segmentation,
    }


def made():
    """{split: (told, {file name: bytes})}: the JSON, and the images; new ones each time.

    Image 7 of "train" has a polygon, two of them, packed run lengths and a crowd; image 3 has
    nothing, image 5 a grey photo and a box without height. "val" has one instance an image.
    """
    corner = np.zeros((HEIGHT, WIDTH), bool)
    corner[-6:, -8:] = True
    two = [_rectangle(2, 3, 4, 5), _rectangle(10, 3, 2, 5)]
    annotations = {
        "train": [
            _annotation(11, 7, 1, [2.1, 3.7, 10.07, 5.3], two),
            _annotation(12, 7, 90, [WIDTH - 8, HEIGHT - 6, 8, 6], _packed(corner)),
            _annotation(13, 7, 3, [4, 0, 10, HEIGHT], copy.deepcopy(_CROWD), 1),
            _annotation(14, 5, 13, [1, 2, 12, 6], [_rectangle(1, 2, 12, 6)]),
            _annotation(15, 5, 13, [1, 2, 3, 0], [[1, 2, 1, 2, 4, 2, 4, 2]]),
            _annotation(16, 7, 1, [20, 1, 6, 6], [_rectangle(20, 1, 6, 6)]),
        ],
        "val": [
            _annotation(21, 30, 1, [3, 3, 9, 9], [_rectangle(3, 3, 9, 9)]),
            _annotation(22, 20, 17, [0, 0, 20, 10], [_rectangle(0, 0, 20, 10)]),
        ],
    }
    numbers = {"train": (7, 3, 5), "val": (30, 20)}
    categories = [
        {"supercategory": "thing", "id": i, "name": name}
        for i, name in zip(label_sets.COCO_IDS, label_sets.COCO.class_names, strict=True)
    ]
    found = {}
    for split, ids in numbers.items():
        images = [
            {"id": i, "file_name": f"{i:012d}.jpg", "height": HEIGHT, "width": WIDTH, "license": 4}
            for i in ids
        ]
        told = {
            "info": {"year": 2017},
            "images": images,
            "annotations": annotations[split],
            "categories": copy.deepcopy(categories),
        }
        files = {f"{i:012d}.jpg": jpeg(i, "L" if i == 5 else "RGB") for i in ids}
        found[split] = told, files
    return found


def write_folder(folder, found=None, layout="plain"):
    """Writes what `made` makes; layouts "plain", "images", "split first" and "official"."""
    for split, (told, files) in (found or made()).items():
        name = f"{split}2017" if layout == "official" else split
        images = {"images": folder / name / "images", "split first": folder / "images" / name}
        images = images.get(layout, folder / name)
        top = folder / "annotations" if layout == "official" else folder
        for path in (images, top):
            path.mkdir(parents=True, exist_ok=True)
        (top / f"instances_{name}.json").write_text(json.dumps(told))
        for file, contents in files.items():
            (images / file).write_bytes(contents)


def write_archives(folder, found=None):
    """Packs it as COCO's publisher does, with what else is there."""
    folder.mkdir(parents=True, exist_ok=True)
    annotations = {}
    for split, (told, files) in (found or made()).items():
        annotations[f"annotations/instances_{split}2017.json"] = json.dumps(told).encode()
        annotations[f"annotations/captions_{split}2017.json"] = b"{}"
        annotations[f"annotations/person_keypoints_{split}2017.json"] = b"{}"
        packed = {f"{split}2017/{name}": files[name] for name in sorted(files, reverse=True)}
        (folder / f"{split}2017.zip").write_bytes(zipped(packed))
    (folder / "annotations_trainval2017.zip").write_bytes(zipped(annotations))


def picture(contents):
    """The pixels of an image's bytes."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(contents)).convert("RGB"))


def inside(rectangles):
    """A mask (HEIGHT, WIDTH) of rectangles (x, y, width, height)."""
    found = np.zeros((HEIGHT, WIDTH), bool)
    for x, y, width, height in rectangles:
        found[y : y + height, x : x + width] = True
    return found


# What the masks of "train" are, by the annotations' ids.
MASKS = {
    11: inside([(2, 3, 4, 5), (10, 3, 2, 5)]),
    12: inside([(WIDTH - 8, HEIGHT - 6, 8, 6)]),
    13: inside([(4, 0, 10, HEIGHT)]),
    14: inside([(1, 2, 12, 6)]),
    15: inside([]),
    16: inside([(20, 1, 6, 6)]),
}
