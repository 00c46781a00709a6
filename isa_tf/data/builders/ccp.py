"""Clothing Co-Parsing."""

import numpy as np

from isa_tf.data import label_sets
from isa_tf.data.builders.archives import Archive, Files, Member
from isa_tf.data.builders.base import Example, SegmentationBuilder, id_table, pair
from isa_tf.data.builders.folder import plain_examples
from isa_tf.data.builders.matlab import read_mat

_ARCHIVE = Archive(
    "clothing-co-parsing-master.zip", "https://github.com/bearpaw/clothing-co-parsing"
)


class Ccp(SegmentationBuilder):
    """Street fashion photographs: 59 classes of clothing and body.

    `photos/*.jpg` with `annotations/pixel-level/*.mat` (the photos with only tags are left out);
    or a folder that `isa_tf.data.FolderDataset` reads. The authors give no split of these: every
    fifth photo, in the order of their names, is "val".
    """

    name = "isa_tf_ccp"
    description = "Clothing Co-Parsing: street fashion photographs, 59 classes."
    homepage = "https://github.com/bearpaw/clothing-co-parsing"
    licence = "Apache License 2.0"
    citation = """@inproceedings{yang2014clothing,
  title={Clothing Co-Parsing by Joint Image Segmentation and Labeling},
  author={Yang, Wei and Luo, Ping and Lin, Liang}, booktitle={CVPR}, year={2014}}"""
    archives = (_ARCHIVE,)
    labels = label_sets.CCP
    sizes = {"train": 804, "val": 200}
    train_ids = id_table(range(59), ignored=[255])

    def examples(self, files: Files) -> dict[str, list[Example]]:
        labels = files.find("annotations/pixel-level/*.mat", _ARCHIVE, optional=True)
        if not labels:
            return plain_examples(files, self.labels, _ARCHIVE)
        labelled = {member.stem for member in labels}
        photos = [m for m in files.find("photos/*.jpg", _ARCHIVE) if m.stem in labelled]
        examples = pair(photos, labels)
        return {
            "train": [e for i, e in enumerate(examples) if i % 5 != 4],
            "val": examples[4::5],
        }

    @staticmethod
    def read_ids(files: Files, label: Member) -> np.ndarray:
        if label.name.endswith(".mat"):
            return read_mat(files, label, "groundtruth")
        return SegmentationBuilder.read_ids(files, label)
