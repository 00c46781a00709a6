"""ADE20K, the scene parsing benchmark."""

from isa_tf.data import label_sets
from isa_tf.data.builders.archives import Archive, Files
from isa_tf.data.builders.base import Example, SegmentationBuilder, id_table, pair

_ARCHIVE = Archive(
    "ADEChallengeData2016.zip",
    "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
)


class Ade20k(SegmentationBuilder):
    """Scenes of all kinds with 150 classes of stuff and things.

    `{images,annotations}/{training,validation}` of ADEChallengeData2016.zip; 0 is "other", which
    is ignored, and 1..150 are the classes.
    """

    name = "isa_tf_ade20k"
    description = "ADE20K scene parsing (MIT Scene Parsing Benchmark): 150 classes."
    homepage = "http://sceneparsing.csail.mit.edu/"
    licence = "images for non-commercial research and education; annotations BSD-3-Clause"
    citation = """@inproceedings{zhou2017scene,
  title={Scene Parsing through ADE20K Dataset},
  author={Zhou, Bolei and Zhao, Hang and Puig, Xavier and Fidler, Sanja and Barriuso, Adela and
    Torralba, Antonio}, booktitle={CVPR}, year={2017}}"""
    archives = (_ARCHIVE,)
    labels = label_sets.ADE20K
    sizes = {"train": 20210, "val": 2000}
    train_ids = id_table(range(1, 151), ignored=[0])
    submission_ids = tuple(range(1, 151))

    def examples(self, files: Files) -> dict[str, list[Example]]:
        return {
            split: pair(
                files.find(f"images/{folder}/*.jpg", _ARCHIVE),
                files.find(f"annotations/{folder}/*.png", _ARCHIVE),
            )
            for split, folder in (("train", "training"), ("val", "validation"))
        }
