"""Average precision of boxes and masks, by COCO's own tools."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

_KINDS = {"box": "bbox", "mask": "segm"}
_SIZES = ("all", "small", "medium", "large")
_MOST = 100  # detections an image, of those that COCO scores


class CocoTruth(Protocol):
    """What is asked of a dataset, such as `isa_tf.data.InstanceDataset`, which stands above."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def category_ids(self) -> tuple[int, ...]: ...

    def size(self, split: str) -> int: ...

    def size_of(self, split: str, index: int) -> tuple[int, int]: ...

    def image_id(self, split: str, index: int) -> int: ...

    def ground_truth(self, split: str) -> dict[str, list[dict[str, Any]]]: ...


class Detected(Protocol):
    """Instances that were found in an image, see `CocoScores.add`."""

    @property
    def boxes(self) -> ArrayLike: ...

    @property
    def classes(self) -> ArrayLike: ...

    @property
    def scores(self) -> ArrayLike: ...

    @property
    def masks(self) -> ArrayLike: ...


class CocoScores:
    """Collects the detections of a split and scores them by pycocotools.

    Results of an image are kept as COCO's results format has them, masks as run lengths.

    Args:
        dataset: what is scored against: an `isa_tf.data.InstanceDataset`, of which `size`,
            `image_id`, `class_names`, `category_ids` and `ground_truth` are asked.
        split: str, such as "val".

    Raises:
        ValueError: for an unknown split.

    Example:

    >>> data = isa_tf.data.SyntheticInstances(num_examples={"val": 3})
    >>> scores = CocoScores(data, "val")
    >>> scores.scores()["box_ap"]
    0.0

    Library: https://github.com/ppwwyyxx/cocoapi (pycocotools)
    """

    def __init__(self, dataset: CocoTruth, split: str) -> None:
        self._dataset, self._split = dataset, split
        self._size = dataset.size(split)
        self._results: dict[int, list[dict[str, Any]]] = {}  # position in the split: list of dicts

    def add(self, index: int, instances: Detected) -> None:
        """Takes the detections of one image, in place of what was given of it before.

        Args:
            index: int, the image's position in the split.
            instances: anything with `boxes` (n, 4), (x1, y1, x2, y2) in pixels of the image,
                `classes` (n,), `scores` (n,) and `masks` (n, height, width), bools.

        Raises:
            ValueError: for a position out of the split, numbers of boxes, classes, scores and masks
                that differ, a class that there is not, masks of another size than the image.
        """
        if not 0 <= index < self._size:
            raise ValueError(f"{self._split!r} has {self._size} images, and no index {index}")
        boxes = np.asarray(instances.boxes, np.float64).reshape(-1, 4)
        classes = np.asarray(instances.classes, np.int64).reshape(-1)
        certainty = np.asarray(instances.scores, np.float64).reshape(-1)
        masks = np.asarray(instances.masks, bool)
        counts = len(boxes), len(classes), len(certainty), len(masks)
        if len({*counts}) > 1:
            raise ValueError(
                "boxes, classes, scores and masks must be as many, got "
                + ", ".join(map(str, counts))
            )
        known = len(self._dataset.category_ids)
        if ((classes < 0) | (classes >= known)).any():
            raise ValueError(f"classes must be 0 to {known - 1}, got {classes.tolist()}")
        size = tuple(self._dataset.size_of(self._split, index))
        if len(masks) and masks.shape[1:] != size:
            raise ValueError(f"masks must be {size}, as the image is, got {masks.shape[1:]}")
        image_id = self._dataset.image_id(self._split, index)
        self._results[int(index)] = coco_results(instances, image_id, self._dataset.category_ids)

    def by_image(self) -> dict[int, list[dict[str, Any]]]:
        """The results of each image that `add` was called for, by its position: a dict of lists."""
        return dict(self._results)

    def add_results(self, index: int, results: Sequence[dict[str, Any]]) -> None:
        """Takes what `by_image` tells of one image elsewhere, such as in another process."""
        self._results[int(index)] = list(results)

    def results(self) -> list[dict[str, Any]]:
        """All detections in COCO's results format, in the order of the images: a list of dicts.

        It can be written as JSON: boxes are [x, y, width, height], run lengths have text.
        """
        return [result for index in sorted(self._results) for result in self._results[index]]

    def scores(self, only_added: bool = False) -> dict[str, Any]:
        """The scores of all images; one without detections is one in which nothing was found.

        Args:
            only_added: bool, whether only images are scored that `add` was called for. Defaults to
                `False`.

        Returns:
            dict of "box_ap" (the mean over intersections of 0.5, 0.55, ... 0.95), "box_ap50",
            "box_ap75", "box_ap_small" (less than 32 x 32 pixels), "box_ap_medium" and
            "box_ap_large" (more than 96 x 96), the same of "mask_", and "classes": a dict of name
            to "box_ap" and "mask_ap". All in 0..1 (pycocotools falls short of 1 by 2e-16); a score
            of nothing is `None`.
        """
        truth = self._dataset.ground_truth(self._split)
        images = [image["id"] for image in truth["images"]]
        if only_added:
            images = [self._dataset.image_id(self._split, index) for index in self._results]
        # pycocotools puts categories into the order of their ids.
        order = np.argsort(np.argsort(self._dataset.category_ids))
        found: dict[str, Any] = {}
        classes: dict[str, dict[str, float]] = {name: {} for name in self._dataset.class_names}
        for kind, told in _KINDS.items():
            precision = _precision(truth, self.results(), told, images)
            found[f"{kind}_ap"] = _mean(precision[..., 0])
            found[f"{kind}_ap50"] = _mean(precision[0, ..., 0])
            found[f"{kind}_ap75"] = _mean(precision[5, ..., 0])
            for i, size in enumerate(_SIZES[1:], 1):
                found[f"{kind}_ap_{size}"] = _mean(precision[..., i])
            for i, row in zip(order, classes.values(), strict=True):
                row[f"{kind}_ap"] = _mean(precision[:, :, i, 0])
        return {**found, "classes": classes}


def coco_results(
    instances: Detected, image_id: int, category_ids: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Instances in COCO's results format, which its evaluation and its server read.

    Args:
        instances: anything with `boxes`, `classes`, `scores` and `masks`, see `CocoScores.add`.
        image_id: what the data set calls the image.
        category_ids: the data set's own id of each class; `None` for 1, 2, ... Defaults to `None`.

    Returns:
        list of dicts that JSON can hold: "image_id", "category_id", "bbox", [x, y, width, height]
        in pixels, "score", and "segmentation", run lengths with text.

    Example:

    >>> from types import SimpleNamespace
    >>> some = {"boxes": [[0, 0, 3, 1]], "scores": [0.5], "masks": np.ones((1, 1, 3), bool)}
    >>> (row,) = coco_results(SimpleNamespace(classes=[2], **some), image_id=139)
    >>> row["category_id"], row["bbox"], row["segmentation"]
    (3, [0.0, 0.0, 3.0, 1.0], {'size': [1, 3], 'counts': '03'})
    """
    boxes = np.array(instances.boxes, np.float64).reshape(-1, 4)
    boxes[:, 2:] -= boxes[:, :2]
    classes = np.asarray(instances.classes, np.int64).reshape(-1).tolist()
    certainty = np.asarray(instances.scores, np.float64).reshape(-1).tolist()
    return [
        {
            "image_id": image_id,
            "category_id": class_id + 1 if category_ids is None else category_ids[class_id],
            "bbox": box,
            "score": score,
            "segmentation": run_lengths(mask),
        }
        for class_id, box, score, mask in zip(
            classes, boxes.tolist(), certainty, np.asarray(instances.masks, bool), strict=True
        )
    ]


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """A mask as COCO's run lengths, in the form that JSON can hold.

    Args:
        mask: bool (H, W).

    Returns:
        dict: "size", [height, width], and "counts", COCO's text, which pycocotools decodes.

    Example:

    >>> run_lengths(np.ones((1, 3), bool))
    {'size': [1, 3], 'counts': '03'}

    Library: https://github.com/ppwwyyxx/cocoapi (pycocotools)
    """
    from pycocotools import mask as tools

    encoded = tools.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(map(int, encoded["size"])), "counts": encoded["counts"].decode()}


def _mean(precision):
    """Over what there is: -1 stands for classes of which there is nothing to be found."""
    counted = precision[precision > -1]
    return float(counted.mean()) if counted.size else None


def _precision(truth, results, kind, images):
    """pycocotools' precision (intersections, recalls, classes, sizes)."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        known, said = COCO(), COCO()
        # To its tools an annotation whose id is 0 is none.
        entries = [{**entry, "id": i} for i, entry in enumerate(truth["annotations"], 1)]
        known.dataset = {**truth, "annotations": entries}
        said.dataset = {**truth, "annotations": _as_annotations(results, kind)}
        known.createIndex()
        said.createIndex()
        evaluation = COCOeval(known, said, kind)
        evaluation.params.imgIds = sorted(images)
        evaluation.params.catIds = [category["id"] for category in truth["categories"]]
        evaluation.evaluate()
        evaluation.accumulate()
    most = evaluation.params.maxDets.index(_MOST)
    return evaluation.eval["precision"][..., most]


def _as_annotations(results, kind):
    """Results as `COCO.loadRes` would have them, which takes no empty list.

    The size of a detection is that of its box or of its mask: what is scored.
    """
    from pycocotools import mask

    made = []
    for i, result in enumerate(results, 1):
        box = result["bbox"]
        area = box[2] * box[3] if kind == "bbox" else float(mask.area(result["segmentation"]))
        made.append({**result, "id": i, "iscrowd": 0, "area": area})
    return made
