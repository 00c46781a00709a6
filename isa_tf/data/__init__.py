"""Datasets, augmentations and the `tf.data` pipelines."""

from isa_tf.data.base import DataError, GraphReader, SegmentationDataset
from isa_tf.data.catalogue import builder, create, list_builders, list_names, register
from isa_tf.data.folder import FolderDataset
from isa_tf.data.pipeline import batch_examples, eval_pipeline, train_pipeline
from isa_tf.data.preparation import prepare
from isa_tf.data.prepared import PreparedDataset
from isa_tf.data.synthetic import SyntheticDataset

__all__ = [
    "DataError",
    "FolderDataset",
    "GraphReader",
    "PreparedDataset",
    "SegmentationDataset",
    "SyntheticDataset",
    "batch_examples",
    "builder",
    "create",
    "eval_pipeline",
    "list_builders",
    "list_names",
    "prepare",
    "register",
    "train_pipeline",
]
