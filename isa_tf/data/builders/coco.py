"""COCO 2017, with the instances of its 80 kinds of things."""

from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from isa_tf.data import label_sets
from isa_tf.data.base import DataError
from isa_tf.data.builders.archives import Archive, Files
from isa_tf.data.builders.instances import InstanceBuilder, InstanceExample
from isa_tf.data.coco_file import Instances

# Where images come from, which COCO-Stuff has as well.
IMAGES = {
    split: Archive(f"{split}.zip", f"http://images.cocodataset.org/zips/{split}.zip")
    for split in ("train2017", "val2017")
}
_ANNOTATIONS = Archive(
    "annotations_trainval2017.zip",
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
)


class Coco(InstanceBuilder):
    """Photographs with boxes and masks of 80 kinds of things, some of them crowds.

    `{train,val}2017/*.jpg` with `annotations/instances_{train,val}2017.json`, in whose order the
    examples are. Category ids are 1..90 without ten. Annotations that `isa_tf.data.CocoDataset`
    would name as faulty are left out, logged, and told in `faults` of the metadata.
    """

    name = "isa_tf_coco"
    description = "COCO 2017: instances of 80 kinds of things, with boxes and masks."
    homepage = "https://cocodataset.org"
    licence = "images under Flickr's terms of use; annotations CC BY 4.0"
    citation = """@inproceedings{lin2014microsoft,
  title={Microsoft COCO: Common Objects in Context},
  author={Lin, Tsung-Yi and Maire, Michael and Belongie, Serge and Hays, James and Perona, Pietro
    and Ramanan, Deva and Doll{\\'a}r, Piotr and Zitnick, C. Lawrence},
  booktitle={ECCV}, year={2014}}"""
    archives = (*IMAGES.values(), _ANNOTATIONS)
    labels = label_sets.COCO
    category_ids = label_sets.COCO_IDS
    sizes = {"train": 118287, "val": 5000}

    def examples(self, files: Files) -> dict[str, list[InstanceExample]]:
        self._faults: list[str] = []
        return {split: self._examples_of(split, files) for split in self.sizes}

    def _examples_of(self, split, files):
        json = files.one(f"instances_{split}2017.json", _ANNOTATIONS)
        images = {
            member.name.rpartition("/")[2]: member
            for member in files.find(f"{split}2017/*.jpg", IMAGES[f"{split}2017"])
        }
        found = Instances(json, None, files.read(json))
        wanted = dict(zip(self.category_ids, self.labels.class_names, strict=True))
        if found.categories != wanted:
            raise DataError(json, "its categories are not COCO's 80 with their ids, 1 to 90")
        for listed in found.images:
            if listed.file_name not in images:
                raise DataError(json, f"there is no {listed.file_name} of image {listed.id}")
        names = {listed.file_name for listed in found.images}
        if unlisted := [member for name, member in images.items() if name not in names]:
            raise DataError(
                unlisted[0],
                f"{json} does not list it, as {len(unlisted)} of {len(images)} images: is it "
                "another data set's?",
            )
        for fault in found.faults:
            logging.warning("Left out of coco/%s: %s", split, fault)
            self._faults.append(str(fault))
        return [
            InstanceExample(listed.file_name.rpartition(".")[0], images[listed.file_name], listed)
            for listed in found.images
        ]

    def told(self, examples: Mapping[str, Sequence[InstanceExample]]) -> dict[str, Any]:
        return {**super().told(examples), "faults": self._faults}
