"""Cityscapes, fine annotations."""

from isa_tf.data import label_sets
from isa_tf.data.builders.archives import Archive, Files
from isa_tf.data.builders.base import Example, SegmentationBuilder, id_table, pair

_HOME = "https://www.cityscapes-dataset.com/downloads/ (after registration)"
_IMAGES = Archive("leftImg8bit_trainvaltest.zip", _HOME)
_LABELS = Archive("gtFine_trainvaltest.zip", _HOME)
_IMAGE, _LABEL = "_leftImg8bit", "_gtFine_labelIds"

# The ids that are trained on, in the order of the train ids; the other ones of 0..33 are void.
_TRAINED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


class Cityscapes(SegmentationBuilder):
    """Road scenes of 50 cities, 2048x1024, 19 classes.

    `leftImg8bit/{train,val,test}/*/*_leftImg8bit.png` with `gtFine/.../*_gtFine_labelIds.png`:
    what is in the archives, before any script made `*_labelTrainIds.png` of it. The labels of
    "test" are not public: all of it is ignored.
    """

    name = "isa_tf_cityscapes"
    description = "Cityscapes, fine annotations: road scenes, 2048x1024, 19 classes."
    homepage = "https://www.cityscapes-dataset.com/"
    licence = "see https://www.cityscapes-dataset.com/license/"
    citation = """@inproceedings{cordts2016cityscapes,
  title={The Cityscapes Dataset for Semantic Urban Scene Understanding},
  author={Cordts, Marius and Omran, Mohamed and Ramos, Sebastian and Rehfeld, Timo and
    Enzweiler, Markus and Benenson, Rodrigo and Franke, Uwe and Roth, Stefan and Schiele, Bernt},
  booktitle={CVPR}, year={2016}}"""
    archives = (_IMAGES, _LABELS)
    labels = label_sets.CITYSCAPES
    sizes = {"train": 2975, "val": 500, "test": 1525}
    train_ids = id_table(_TRAINED, ignored=set(range(34)) - set(_TRAINED))
    submission_ids = _TRAINED

    def examples(self, files: Files) -> dict[str, list[Example]]:
        found = {
            split: pair(
                files.find(f"leftImg8bit/{split}/*/*{_IMAGE}.png", _IMAGES),
                files.find(f"gtFine/{split}/*/*{_LABEL}.png", _LABELS),
                image_name=lambda stem: stem.removesuffix(_IMAGE),
                label_name=lambda stem: stem.removesuffix(_LABEL),
            )
            for split in ("train", "val")
        }
        # Many unpack none of it.
        test = files.find(f"leftImg8bit/test/*/*{_IMAGE}.png", _IMAGES, not self.check_sizes)
        if test:
            found["test"] = [Example(m.stem.removesuffix(_IMAGE), m, None) for m in test]
        return found
