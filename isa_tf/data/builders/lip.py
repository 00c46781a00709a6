"""Look Into Person."""

from isa_tf.data import label_sets
from isa_tf.data.base import DataError
from isa_tf.data.builders.archives import Archive, Files
from isa_tf.data.builders.base import Example, SegmentationBuilder, id_table, pair

_ARCHIVE = Archive(
    "LIP.zip",
    "https://lip.sysuhcp.com/overview.php",
    parts=("TrainVal_images.zip", "TrainVal_parsing_annotations.zip"),
)


class Lip(SegmentationBuilder):
    """Photographs of single persons: background and 19 parts of body and clothing.

    `{train,val}_images/*.jpg` and `{train,val}_segmentations/*.png` of the archives in LIP.zip, of
    which one holds another of its own name; or each of these alone. Examples are in the order of
    their names; where there are lists, `{train,val}_id.txt`, they are those listed. Left and right
    arms, legs and shoes change places in a mirror.
    """

    name = "isa_tf_lip"
    description = "Look Into Person (single person): human parsing, 20 classes."
    homepage = "https://lip.sysuhcp.com/"
    licence = "see https://lip.sysuhcp.com/"
    citation = """@inproceedings{gong2017look,
  title={Look into Person: Self-Supervised Structure-Sensitive Learning and a New Benchmark for
    Human Parsing},
  author={Gong, Ke and Liang, Xiaodan and Zhang, Dongyu and Shen, Xiaohui and Lin, Liang},
  booktitle={CVPR}, year={2017}}"""
    archives = (_ARCHIVE,)
    labels = label_sets.LIP
    sizes = {"train": 30462, "val": 10000}
    train_ids = id_table(range(20))
    flip_pairs = ((14, 15), (16, 17), (18, 19))

    def examples(self, files: Files) -> dict[str, list[Example]]:
        return {split: self._split(files, split) for split in self.sizes}

    def _split(self, files, split):
        examples = pair(
            files.find(f"{split}_images/*.jpg", _ARCHIVE),
            files.find(f"{split}_segmentations/*.png", _ARCHIVE),
        )
        listed = files.lines(f"{split}_id.txt", _ARCHIVE, optional=True)
        if listed is None:
            return examples
        names = [line.removesuffix(".jpg") for line in listed]
        found = {example.name: example for example in examples}
        if missing := [name for name in names if name not in found]:
            raise DataError(
                files.folder,
                f"{len(missing)} of the {len(names)} images in {split}_id.txt are not here, such "
                f"as {missing[0]}: is an archive incomplete?",
            )
        return [found[name] for name in sorted(set(names))]
