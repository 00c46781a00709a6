"""What is in a picture, in the form that JSON can hold: classes with their shares, instances."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from isa_tf.inference.instance_predictor import InstancePredictor
from isa_tf.inference.instances import Instances
from isa_tf.inference.predictor import Predictor
from isa_tf.metrics import run_lengths
from isa_tf.names import Registry, class_name

# What tells the result of a predictor, by its task.
tellers = Registry("task")


def findings(
    predictor: Predictor | InstancePredictor, result: Sequence[np.ndarray], masks: bool = True
) -> dict[str, Any]:
    """What a predictor found in one image, in the form that JSON can hold.

    Args:
        predictor: `Predictor` or `InstancePredictor`, which knows the names of its classes.
        result: what it gave for one image: (class ids (H, W), ...), or `Instances`.
        masks: bool, whether the masks are told, as run lengths. Defaults to `True`.

    Returns:
        dict: "task", the predictor's; "size", [height, width]; and "classes", as of
        `class_findings`, or "instances", as of `instance_findings`.

    Example:

    >>> findings(predictor, predictor(image), masks=False)["size"]
    [96, 128]
    """
    return {"task": predictor.task, **tellers[predictor.task](predictor, result, masks)}


@tellers.register("segmentation")
def _of_classes(predictor, result, masks):
    class_id = result[0]
    told = class_findings(class_id, predictor.class_names, masks)
    return {"size": list(class_id.shape), "classes": told}


@tellers.register("instance_segmentation")
def _of_instances(predictor, result, masks):
    told = instance_findings(result, predictor.class_names, predictor.category_ids, masks)
    return {"size": list(result.masks.shape[1:]), "instances": told}


def class_findings(
    class_id: np.ndarray, class_names: Sequence[str] | None = None, masks: bool = True
) -> list[dict[str, Any]]:
    """The classes in a label: a dict each, the largest first.

    Args:
        class_id: ints (H, W), from 0.
        class_names: names of the classes, or `None`. Defaults to `None`.
        masks: bool, whether their masks are told. Defaults to `True`.

    Returns:
        list of dicts: "class_id"; "name", a class without one is "class 7"; "pixels"; "share" of
        the image, 0..1; and, with `masks`, "segmentation", see `isa_tf.metrics.run_lengths`.

    Example:

    >>> first, second = class_findings(np.uint8([[2, 0, 2, 2]]), ("sky", "sea", "land"))
    >>> first["name"], first["share"], first["segmentation"]
    ('land', 0.75, {'size': [1, 4], 'counts': '0111'})
    >>> second["name"], second["pixels"]
    ('sky', 1)
    """
    class_id = np.asarray(class_id)
    if masks:
        columns = np.ascontiguousarray(class_id.T)  # in which run lengths go
    counts = np.bincount(class_id.ravel())
    told = []
    for number in np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].tolist():
        row = {
            "class_id": number,
            "name": class_name(number, class_names),
            "pixels": int(counts[number]),
            "share": int(counts[number]) / class_id.size,
        }
        if masks:
            row["segmentation"] = run_lengths((columns == number).T)
        told.append(row)
    return told


def instance_findings(
    instances: Instances,
    class_names: Sequence[str] | None = None,
    category_ids: Sequence[int] | None = None,
    masks: bool = True,
) -> list[dict[str, Any]]:
    """Instances: a dict each, in their order.

    Args:
        instances: `Instances`.
        class_names: names of the classes, or `None`. Defaults to `None`.
        category_ids: the data set's own id of each class, or `None`. Defaults to `None`.
        masks: bool, whether their masks are told. Defaults to `True`.

    Returns:
        list of dicts: "class_id", from 0; "name", a class without one is "class 7";
        "category_id", where there are `category_ids`; "score"; "box", [x1, y1, x2, y2] in pixels;
        "pixels" of the mask; and, with `masks`, "segmentation", see `isa_tf.metrics.run_lengths`.

    Example:

    >>> some = [[0, 0, 3, 1]], [1], [0.5], np.ones((1, 1, 3), bool)
    >>> found = isa_tf.inference.Instances(*map(np.array, some))
    >>> (row,) = instance_findings(found, ("cat", "dog"))
    >>> row["name"], row["box"], row["segmentation"]
    ('dog', [0.0, 0.0, 3.0, 1.0], {'size': [1, 3], 'counts': '03'})
    """
    told = []
    for box, number, score, mask in zip(*instances, strict=True):
        number = int(number)
        row = {
            "class_id": number,
            "name": class_name(number, class_names),
            "category_id": None if category_ids is None else category_ids[number],
            "score": float(score),
            "box": [float(value) for value in box],
            "pixels": int(mask.sum()),
        }
        if category_ids is None:
            del row["category_id"]
        if masks:
            row["segmentation"] = run_lengths(mask)
        told.append(row)
    return told
