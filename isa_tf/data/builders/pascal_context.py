"""PASCAL-Context, with and without its background."""

import collections
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from isa_tf.data import label_sets, run_lengths
from isa_tf.data.base import DataError
from isa_tf.data.builders.archives import Archive, Files, Member
from isa_tf.data.builders.base import Example, SegmentationBuilder, id_table, listed

_VOC = Archive(
    "VOCtrainval_03-May-2010.tar",
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/ (often down; mirrors have the same file)",
)
_MASKS = Archive(
    "trainval_merged.json", "https://codalabuser.blob.core.windows.net/public/trainval_merged.json"
)

# Which of the 459 categories are the 59 classes, in their order, that of their names.
_CATEGORIES = (
    *(2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98),
    *(104, 105, 113, 115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295),
    *(296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440),
    *(445, 454, 458),
)
# What is kept of the json, a fraction of it; the rest are parts, edges and key points.
_KEPT = {"images", "annos_segmentation", "file_name", "phase", "height", "width"}
_KEPT |= {"image_id", "category_id", "segmentation", "size", "counts"}


class _Masks:
    """The masks of an image in the json; what comes later lies above what came before."""

    def __init__(self, image, where):
        self.name, self._where = image["file_name"].rpartition(".")[0], where
        self.phase = image["phase"]
        self._shape = image["height"], image["width"]
        self.masks = []  # (category, run lengths)

    def ids(self):
        from pycocotools import mask

        ids = np.zeros(self._shape, np.int32)
        try:
            for category, encoded in self.masks:
                ids[mask.decode(run_lengths.encoded(encoded)) > 0] = category
        except Exception as error:  # of what is damaged it may raise any
            raise DataError(
                self._where, f"the masks of {self.name} cannot be read ({error!r})"
            ) from error
        return ids


class _PascalContext(SegmentationBuilder, skip_registration=True):
    homepage = "https://cs.stanford.edu/~roozbeh/pascal-context/"
    licence = 'photos from flickr, under its terms of use (VOC "Database Rights"); see homepage'
    citation = """@inproceedings{mottaghi2014role,
  title={The Role of Context for Object Detection and Semantic Segmentation in the Wild},
  author={Mottaghi, Roozbeh and Chen, Xianjie and Liu, Xiaobai and Cho, Nam-Gyu and Lee,
    Seong-Whan and Fidler, Sanja and Urtasun, Raquel and Yuille, Alan},
  booktitle={CVPR}, year={2014}}"""
    archives = (_VOC, _MASKS)
    sizes = {"train": 4998, "val": 5105}

    @classmethod
    def table(cls, classes: Sequence[int]) -> np.ndarray:
        """A table of ids, where those of the 59 classes are given in their order."""
        raise NotImplementedError

    def examples(self, files: Files) -> dict[str, list[Example]]:
        images = {m.stem: m for m in files.find("VOC2010/JPEGImages/*.jpg", _VOC)}
        merged = files.find("trainval_merged.json", _MASKS, optional=True)
        if merged:
            self.train_ids = self.table(_CATEGORIES)
            labels, names = _read_merged(merged[0], files)
        else:
            self.train_ids = self.table(range(1, 60))
            found = files.find("SegmentationClassContext/*.png", _MASKS)
            labels = {member.stem: member for member in found}
            names = {
                split: files.lines(f"ImageSets/SegmentationContext/{split}.txt", _MASKS)
                for split in self.sizes
            }

        return {split: listed(sorted(some), images, labels, files) for split, some in names.items()}

    @staticmethod
    def read_ids(files: Files, label: Any) -> np.ndarray:
        if isinstance(label, Member):
            return SegmentationBuilder.read_ids(files, label)
        return label.ids()


class PascalContext(_PascalContext):
    """The photographs of VOC 2010 with the 59 most frequent classes; all else is ignored.

    `VOC2010/JPEGImages/*.jpg`, and either the Detail API's trainval_merged.json, which holds masks
    and splits, or what was made of it: `SegmentationClassContext/*.png` with
    `ImageSets/SegmentationContext/{train,val}.txt`. Examples are in the order of their names.
    """

    name = "isa_tf_pascal_context"
    description = "PASCAL-Context: 59 classes; what is none of them is ignored."
    labels = label_sets.PASCAL_CONTEXT

    @classmethod
    def table(cls, classes: Sequence[int]) -> np.ndarray:
        return id_table(classes, ignored=[0])


class PascalContext60(_PascalContext):
    """`PascalContext` whose ignored pixels are the class "background", before the others."""

    name = "isa_tf_pascal_context60"
    description = "PASCAL-Context: 59 classes and background."
    labels = label_sets.PASCAL_CONTEXT_60

    @classmethod
    def table(cls, classes: Sequence[int]) -> np.ndarray:
        return id_table([0, *classes])


def _read_merged(member, files):
    """Labels, a dict of name to `_Masks`, and a dict of split to names."""
    try:
        # Objects are handed over from the inside out: most of them are gone at once.
        found = json.loads(
            files.read(member),
            object_hook=lambda some: {key: some[key] for key in _KEPT.intersection(some)},
        )
        labels = {image["image_id"]: _Masks(image, member) for image in found["images"]}
        for annotation in found["annos_segmentation"]:
            masks = labels[annotation["image_id"]].masks
            masks.append((annotation["category_id"], annotation["segmentation"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            member,
            f"cannot be read ({type(error).__name__}: {error}); if it is incomplete, get it again "
            f"from {_MASKS.source}",
        ) from error
    names = collections.defaultdict(list)
    for masks in labels.values():
        names[masks.phase].append(masks.name)
    return (
        {masks.name: masks for masks in labels.values()},
        {split: names[split] for split in _PascalContext.sizes},
    )
