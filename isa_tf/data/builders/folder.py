"""A folder of one's own."""

import os
import re
from pathlib import Path

import tensorflow_datasets as tfds

from isa_tf.data.base import DataError
from isa_tf.data.builders.archives import Archive, Files, Member
from isa_tf.data.builders.base import Example, SegmentationBuilder, id_table
from isa_tf.data.folder import FolderDataset
from isa_tf.data.label_sets import LabelSet


class Folder(SegmentationBuilder):
    """What `isa_tf.data.FolderDataset` reads, in any of its layouts, with names of its classes.

    Each folder is a config of its own, by its name.
    """

    name = "isa_tf_folder"
    description = "Pairs of image and label files in a folder."
    sizes: dict[str, int] = {}
    labels_upright = True

    @classmethod
    def config_of(cls, manual_dir: Path) -> tfds.core.BuilderConfig:
        return tfds.core.BuilderConfig(name=re.sub(r"[^\w.-]", "_", manual_dir.resolve().name))

    def examples(self, files: Files) -> dict[str, list[Example]]:
        dataset = FolderDataset(files.folder)
        self.labels = LabelSet(dataset.class_names, dataset.palette)
        self.train_ids = id_table(range(dataset.num_classes), ignored=[dataset.ignore_label])
        return {split: examples_of(dataset, split) for split in dataset.splits}


def plain_examples(files: Files, labels: LabelSet, archive: Archive) -> dict[str, list[Example]]:
    """The examples of a plain folder, of a data set that is given away in an archive.

    Args:
        files: `Files`.
        labels: `LabelSet`.
        archive: `Archive`, for the error.

    Raises:
        DataError: for what `FolderDataset` refuses, naming the archive as well.
    """
    try:
        dataset = FolderDataset(files.folder, labels.class_names)
    except DataError as error:
        raise DataError(
            error.path,
            f"{error.reason}; nor is {archive.file} here, which is to be had from {archive.source}",
        ) from error
    return {split: examples_of(dataset, split) for split in dataset.splits}


def examples_of(dataset: FolderDataset, split: str) -> list[Example]:
    """The examples of a split of a `FolderDataset`: a list of `Example`."""
    pairs = dataset.pairs(split)
    top = os.path.commonpath([image.parent for image, _ in pairs])
    return [
        Example(
            image.relative_to(top).with_suffix("").as_posix(),
            Member(None, str(image)),
            Member(None, str(label)),
        )
        for image, label in pairs
    ]
