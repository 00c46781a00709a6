"""What every builder of a data set of instances is."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from isa_tf.data.base import DataError
from isa_tf.data.builders.archives import Files, Member
from isa_tf.data.builders.base import Builder
from isa_tf.data.coco_file import ListedImage
from isa_tf.data.prepared import PreparedInstances


class InstanceExample(NamedTuple):
    """An image and its annotations, before they are read.

    Attributes:
        name: str, unlike that of the split's others.
        image: `Member`.
        listed: `ListedImage`, with its annotations.
    """

    name: str
    image: Member
    listed: ListedImage


class InstanceBuilder(Builder, skip_registration=True):
    """Prepares a data set of instances: images as they came, with boxes and packed run lengths.

    A data set is this class with the attributes below, those of `Builder` and `examples` filled in,
    which gives lists of `InstanceExample`. Examples have features `image`, `name`, `image_id`;
    `upright` and `plain`, see `SegmentationBuilder`; `objects`, a sequence of `bbox` (x, y, width,
    height), `category` (a class id), `iscrowd`, `area`, `id` and `counts` (COCO's text of run
    lengths); and `annotations`, the same but for these as JSON, whose numbers are as they were,
    where those of `objects` are float32. `isa_tf.data.PreparedInstances` reads what was prepared.

    Attributes:
        category_ids: tuple of int, the ids that the data set gives to the classes.

    Args:
        **kwargs: see `Builder`.

    Raises:
        DataError: while preparing, naming what is missing or damaged.

    Example:

    >>> builder = isa_tf.data.builder("coco")(data_dir="prepared")
    >>> builder.info.features["objects"]["bbox"].shape
    (4,)
    """

    dataset = PreparedInstances
    category_ids: tuple[int, ...] = ()

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        return {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "name": tfds.features.Text(),
            "image_id": tfds.features.Scalar(np.int64),
            "upright": tfds.features.Scalar(np.bool_),
            "plain": tfds.features.Scalar(np.bool_),
            "objects": tfds.features.Sequence(
                {
                    "bbox": tfds.features.Tensor(shape=(4,), dtype=np.float32),
                    "category": tfds.features.ClassLabel(names=list(self.labels.class_names)),
                    "iscrowd": tfds.features.Scalar(np.bool_),
                    "area": tfds.features.Scalar(np.float32),
                    "id": tfds.features.Scalar(np.int64),
                    "counts": tfds.features.Text(),
                }
            ),
            "annotations": tfds.features.Text(),
        }

    def told(self, examples: Mapping[str, Sequence[InstanceExample]]) -> dict[str, Any]:
        return {
            "category_ids": list(self.category_ids),
            "images": {
                split: [
                    {
                        "id": example.listed.id,
                        "size": list(example.listed.size),
                        "instances": example.listed.has_instances,
                    }
                    for example in some
                ]
                for split, some in examples.items()
            },
        }

    def maker(self, files: Files) -> Callable[[InstanceExample], dict[str, Any]]:
        class_ids = {category: i for i, category in enumerate(self.category_ids)}
        return functools.partial(_make, files, class_ids)


def _make(files, class_ids, example):
    """The features of an example."""
    image, listed = files.read(example.image), example.listed
    listed.path = example.image
    try:
        listed.look(image)
    except DataError as error:
        raise DataError(error.path, f"image {listed.id}: {error.reason}") from error
    objects = [
        {
            "bbox": np.array(shape.entry["bbox"], np.float32),
            "category": class_ids[shape.entry["category_id"]],
            "iscrowd": bool(shape.entry["iscrowd"]),
            "area": shape.entry["area"],
            "id": shape.entry["id"],
            "counts": shape.run_lengths(listed.size)["counts"].decode(),
        }
        for shape in listed.shapes
    ]
    return {
        "image": image,
        "name": example.name,
        "image_id": listed.id,
        "upright": listed.upright,
        "plain": listed.plain,
        "objects": objects,
        "annotations": json.dumps([shape.entry for shape in listed.shapes]),
    }
