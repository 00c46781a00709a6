"""Datasets, augmentations and the `tf.data` pipelines."""

from isa_tf.data.base import DataError, GraphReader, SegmentationDataset
from isa_tf.data.catalogue import create, list_names, register
from isa_tf.data.folder import FolderDataset
from isa_tf.data.pipeline import batch_examples, eval_pipeline, train_pipeline
from isa_tf.data.synthetic import SyntheticDataset

__all__ = [
    "DataError",
    "FolderDataset",
    "GraphReader",
    "SegmentationDataset",
    "SyntheticDataset",
    "batch_examples",
    "create",
    "eval_pipeline",
    "list_names",
    "register",
    "train_pipeline",
]
