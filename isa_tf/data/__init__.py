"""Datasets, augmentations and the `tf.data` pipelines."""

from isa_tf.data.base import DataError, GraphReader, SegmentationDataset
from isa_tf.data.catalogue import builder, create, list_builders, list_names, register
from isa_tf.data.coco import CocoDataset
from isa_tf.data.features import (
    FeatureDataset,
    create_features,
    feature_eval_pipeline,
    feature_pipeline,
    write_features,
)
from isa_tf.data.folder import FolderDataset
from isa_tf.data.instance_pipeline import instance_train_pipeline
from isa_tf.data.instances import Annotations, InstanceDataset
from isa_tf.data.pipeline import batch_examples, eval_pipeline, train_pipeline
from isa_tf.data.preparation import prepare
from isa_tf.data.prepared import PreparedDataset, PreparedInstances
from isa_tf.data.synthetic import SyntheticDataset
from isa_tf.data.synthetic_instances import SyntheticInstances

__all__ = [
    "Annotations",
    "CocoDataset",
    "DataError",
    "FeatureDataset",
    "FolderDataset",
    "GraphReader",
    "InstanceDataset",
    "PreparedDataset",
    "PreparedInstances",
    "SegmentationDataset",
    "SyntheticDataset",
    "SyntheticInstances",
    "batch_examples",
    "builder",
    "create",
    "create_features",
    "eval_pipeline",
    "feature_eval_pipeline",
    "feature_pipeline",
    "instance_train_pipeline",
    "list_builders",
    "list_names",
    "prepare",
    "register",
    "train_pipeline",
    "write_features",
]
