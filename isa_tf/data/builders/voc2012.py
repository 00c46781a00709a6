"""PASCAL VOC 2012, and its training set augmented by SBD."""

import numpy as np

from isa_tf.data import label_sets
from isa_tf.data.base import voc_palette
from isa_tf.data.builders.archives import Archive, Files, Member
from isa_tf.data.builders.base import Example, SegmentationBuilder, id_table, listed
from isa_tf.data.builders.matlab import read_mat

_VOC = Archive(
    "VOCtrainval_11-May-2012.tar",
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ (often down; mirrors have the same file)",
)
_SBD = Archive(
    "benchmark.tgz",
    "http://home.bharathh.info/pubs/codes/SBD/download.html",
    needed=("dataset/cls/*.mat", "dataset/train.txt", "dataset/val.txt"),
)


class Voc2012(SegmentationBuilder):
    """20 kinds of objects and background; their borders, 255, are ignored.

    `VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}`, and of the Semantic Boundaries
    Dataset `dataset/cls/*.mat` and its two lists. Split "trainaug" is VOC's train and all of SBD
    without VOC's val, in the order of the names, by VOC's own masks where both have one. Without
    SBD and with `check_sizes=False` there is no such split.
    """

    name = "isa_tf_voc2012"
    description = "PASCAL VOC 2012 segmentation, with SBD's additional labels as split trainaug."
    homepage = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
    licence = 'photos from flickr, under its terms of use (VOC2012 "Database Rights")'
    citation = """@article{everingham2015voc,
  title={The PASCAL Visual Object Classes Challenge: A Retrospective},
  author={Everingham, Mark and Eslami, S. M. Ali and Van Gool, Luc and Williams, Christopher K. I.
    and Winn, John and Zisserman, Andrew}, journal={IJCV}, year={2015}}
@inproceedings{hariharan2011semantic,
  title={Semantic Contours from Inverse Detectors},
  author={Hariharan, Bharath and Arbelaez, Pablo and Bourdev, Lubomir and Maji, Subhransu and
    Malik, Jitendra}, booktitle={ICCV}, year={2011}}"""
    archives = (_VOC, _SBD)
    labels = label_sets.VOC
    sizes = {"train": 1464, "val": 1449, "trainaug": 10582}
    train_ids = id_table(range(21), ignored=[255])
    submission_palette = voc_palette(256)

    def examples(self, files: Files) -> dict[str, list[Example]]:
        images = {m.stem: m for m in files.find("VOC2012/JPEGImages/*.jpg", _VOC)}
        masks = {m.stem: m for m in files.find("VOC2012/SegmentationClass/*.png", _VOC)}
        lists = {
            split: files.lines(f"VOC2012/ImageSets/Segmentation/{split}.txt", _VOC)
            for split in ("train", "val")
        }
        more = {m.stem: m for m in files.find("dataset/cls/*.mat", _SBD, not self.check_sizes)}
        if more:
            of_sbd = [
                *files.lines("dataset/train.txt", _SBD),
                *files.lines("dataset/val.txt", _SBD),
            ]
            lists["trainaug"] = sorted({*lists["train"], *of_sbd} - {*lists["val"]})

        labels = {**more, **masks}
        return {split: listed(names, images, labels, files) for split, names in lists.items()}

    @staticmethod
    def read_ids(files: Files, label: Member) -> np.ndarray:
        if label.name.endswith(".mat"):
            return read_mat(files, label, "GTcls", "Segmentation")
        return SegmentationBuilder.read_ids(files, label)
