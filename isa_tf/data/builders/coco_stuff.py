"""COCO-Stuff, the first 10 000 images and all of COCO 2017."""

import numpy as np

from isa_tf.data import label_sets
from isa_tf.data.builders.archives import Archive, Files, Member
from isa_tf.data.builders.base import Example, SegmentationBuilder, id_table, listed, pair
from isa_tf.data.builders.coco import IMAGES
from isa_tf.data.builders.matlab import read_mat

_10K = Archive(
    "cocostuff-10k-v1.1.zip",
    "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/cocostuff-10k-v1.1.zip",
)
_MAPS = Archive(
    "stuffthingmaps_trainval2017.zip",
    "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/"
    "stuffthingmaps_trainval2017.zip",
)

# Of COCO's things 1..91 and the stuff 92..182, those that COCO has never segmented.
_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
_USED = tuple(i for i in range(1, 183) if i not in _UNUSED)


class _CocoStuff(SegmentationBuilder, skip_registration=True):
    homepage = "https://github.com/nightrome/cocostuff"
    licence = "images under Flickr's terms of use; annotations CC BY 4.0"
    citation = """@inproceedings{caesar2018coco,
  title={COCO-Stuff: Thing and Stuff Classes in Context},
  author={Caesar, Holger and Uijlings, Jasper and Ferrari, Vittorio},
  booktitle={CVPR}, year={2018}}"""
    labels = label_sets.COCO_STUFF


class CocoStuff10k(_CocoStuff):
    """10 000 photographs of COCO: 80 kinds of things and 91 of stuff.

    `images/*.jpg`, `annotations/*.mat` and `imageLists/{train,test}.txt`, in whose order the
    examples are. 0 is unlabelled; the classes are 1..182 without eleven.
    """

    name = "isa_tf_coco_stuff10k"
    description = "COCO-Stuff 10k, version 1.1: 171 classes of things and stuff."
    archives = (_10K,)
    sizes = {"train": 9000, "test": 1000}
    train_ids = id_table(_USED, ignored=[0])

    def examples(self, files: Files) -> dict[str, list[Example]]:
        images = {m.stem: m for m in files.find("images/*.jpg", _10K)}
        labels = {m.stem: m for m in files.find("annotations/*.mat", _10K)}

        # The star is for folders made by mmsegmentation's guide, which writes "imagesLists".
        return {
            split: listed(files.lines(f"image*Lists/{split}.txt", _10K), images, labels, files)
            for split in self.sizes
        }

    @staticmethod
    def read_ids(files: Files, label: Member) -> np.ndarray:
        return read_mat(files, label, "S")


class CocoStuff164k(_CocoStuff):
    """All labelled photographs of COCO 2017: 80 kinds of things and 91 of stuff.

    `{train,val}2017/*.jpg` with `{train,val}2017/*.png`. The classes are 0..181 without eleven,
    each one less than in COCO-Stuff 10k; 255 is unlabelled.
    """

    name = "isa_tf_coco_stuff164k"
    description = "COCO-Stuff on COCO 2017 (164k): 171 classes of things and stuff."
    archives = (*IMAGES.values(), _MAPS)
    sizes = {"train": 118287, "val": 5000}
    train_ids = id_table([i - 1 for i in _USED], ignored=[255])

    def examples(self, files: Files) -> dict[str, list[Example]]:
        found = {}
        for split in self.sizes:
            labels = files.find(f"{split}2017/*.png", _MAPS)
            # What mmsegmentation's script has made lies beside what it was made of.
            labels = [m for m in labels if not m.stem.endswith("_labelTrainIds")]
            images = files.find(f"{split}2017/*.jpg", IMAGES[f"{split}2017"])
            found[split] = pair(images, labels)
        return found
