"""What an evaluation found in each of its images."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from isa_tf import metrics
from isa_tf.hints import Array


class Scored(Protocol):
    """What pages tell of an image, whatever its task: see `ImageScore`."""

    @property
    def index(self) -> int: ...

    @property
    def value(self) -> float | None: ...

    @property
    def share(self) -> float | None: ...

    @property
    def iou(self) -> Mapping[int, float]: ...

    @property
    def truth(self) -> Mapping[int, int]: ...


AnyScore = TypeVar("AnyScore", bound=Scored)


class ImageScore(NamedTuple):
    """The scores of one image.

    Attributes:
        index: int, the image's position in its split.
        pixels: int, those that are not ignored.
        miou: float, the mean IoU over the classes that occur in this image, in truth or
            prediction; `None` where every pixel is ignored.
        pixel_accuracy: float; `None` where every pixel is ignored.
        iou: dict from class id to IoU, of the classes that occur in truth or prediction.
        truth: dict from class id to number of pixels, of the classes that occur in truth.
    """

    index: int  # type: ignore[assignment]  # in place of a tuple's method
    pixels: int
    miou: float | None
    pixel_accuracy: float | None
    iou: dict[int, float]
    truth: dict[int, int]

    @property
    def value(self) -> float | None:
        """By which images are ranked."""
        return self.miou

    @property
    def share(self) -> float | None:
        """What is told beside it."""
        return self.pixel_accuracy


class ImageScores:
    """The confusion matrix of each image of an evaluation.

    Of a matrix the cells that are not 0 are kept, which are few: a split of thousands of images
    with 150 classes takes megabytes where whole matrices would take one gigabyte.

    Args:
        num_classes: int.
        ignore_label: int, the label of the pixels to leave out. Defaults to 255.

    Shapes:
        `add` takes a label and class ids, both ints (H, W); `confusion` and `total` give int64
        arrays (num_classes, num_classes), rows are truth.

    Raises:
        ValueError: from `add`, for arrays of different shapes, an id out of range or an image
            that has been added; from `confusion` and `score`, for one that has not.

    Example:

    >>> images = isa_tf.report.ImageScores(num_classes=3)
    >>> images.add(0, np.array([[0, 1], [1, 255]]), np.array([[0, 1], [0, 2]]))
    >>> images.score(0).iou
    {0: 0.5, 1: 0.5}
    """

    def __init__(self, num_classes: int, ignore_label: int = 255) -> None:
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self._counts: dict[
            int, tuple[np.ndarray, np.ndarray]
        ] = {}  # index: (cells of the flat matrix, their counts)

    def add(self, index: int, label: Array, predicted: Array) -> None:
        """Counts an image, by its position in the split, its label and what was predicted."""
        index, label, predicted = int(index), np.asarray(label), np.asarray(predicted)
        if label.shape != predicted.shape:
            raise ValueError(f"image {index}: a label {label.shape}, predicted {predicted.shape}")
        if index in self._counts:
            raise ValueError(f"image {index} has been added")
        counted = label != self.ignore_label
        truth, guess = (a[counted].astype(np.int64) for a in (label, predicted))
        for name, ids in (("label", truth), ("prediction", guess)):
            if ids.size and not 0 <= ids.min() <= ids.max() < self.num_classes:
                raise ValueError(f"image {index}: {name} outside 0..{self.num_classes - 1}")
        counts = np.bincount(truth * self.num_classes + guess)
        cells = np.flatnonzero(counts)
        self._counts[index] = cells, counts[cells]

    def add_batch(self, batch: Mapping[str, Array], predicted: Array) -> None:
        """Counts the images of a batch, a dict of "index" (B,) and "label" (B, H, W)."""
        for index, label, class_id in zip(
            np.asarray(batch["index"]), np.asarray(batch["label"]), predicted, strict=True
        ):
            self.add(index, label, class_id)

    def __len__(self) -> int:
        return len(self._counts)

    def confusion(self, index: int) -> np.ndarray:
        """The confusion matrix of an image."""
        if index not in self._counts:
            raise ValueError(f"no image {index} among the {len(self)} that were added")
        return self._sum([self._counts[index]])

    def total(self) -> np.ndarray:
        """The confusion matrix over all images."""
        return self._sum(self._counts.values())

    def _sum(self, counts):
        matrix = np.zeros(self.num_classes**2, np.int64)
        for cells, numbers in counts:
            matrix[cells] += numbers
        return matrix.reshape(self.num_classes, self.num_classes)

    def score(self, index: int) -> ImageScore:
        """The `ImageScore` of an image."""
        matrix = self.confusion(index)
        truth = matrix.sum(1)
        present = np.flatnonzero(truth + matrix.sum(0))
        found = metrics.scores(matrix[np.ix_(present, present)], present.tolist())
        pixels = {int(i): int(truth[i]) for i in present if truth[i]}
        return ImageScore(
            index,
            int(truth.sum()),
            found["miou"],
            found["pixel_accuracy"],
            found["iou"],
            pixels,
        )

    def scores(self) -> list[ImageScore]:
        """The `ImageScore` of every image, in the order of the split."""
        return [self.score(index) for index in sorted(self._counts)]


def choose(
    scores: Iterable[AnyScore], limit: int, class_ids: Iterable[int] | None = None
) -> tuple[list[AnyScore], list[AnyScore], list[AnyScore]]:
    """The images worth looking at: the worst, the best, and of each class the worst.

    A third of the places goes to each; where all images have room, the worse half and the better
    half. An image has one place. Of two that miss a class alike, the one with more of it counts as
    the worse. Images without a score are left out.

    Args:
        scores: `ImageScore`s, or `InstanceScore`s.
        limit: int, how many to choose at most.
        class_ids: the classes that take turns for their worst image, in this order; `None` for
            all. Defaults to `None`.

    Returns:
        Three lists of the scores: the worst, worst first; the best, best first; and, class by
        class, the worst of a class.

    Example:

    >>> rng, images = np.random.default_rng(0), isa_tf.report.ImageScores(3)
    >>> for index in range(9):
    ...     images.add(index, *rng.integers(0, 3, (2, 4, 4)))
    >>> worst, best, of_a_class = choose(images.scores(), limit=6)
    >>> len(worst), len(best), len(of_a_class), worst[0].miou <= best[0].miou
    (2, 2, 2, True)
    """
    ranked = sorted(
        (score for score in scores if score.value is not None),
        key=lambda score: (score.value, score.index),
    )
    if len(ranked) <= limit:
        half = (len(ranked) + 1) // 2
        return ranked[:half], ranked[half:][::-1], []
    third = limit // 3
    worst, best = ranked[: limit - 2 * third], ranked[len(ranked) - third :][::-1]
    taken = {score.index for score in worst + best}
    if class_ids is None:
        class_ids = sorted({i for score in ranked for i in score.truth})

    def who_has(i):
        """Those with a class, the worst first."""
        found = (score for score in ranked if i in score.truth and score.index not in taken)
        return sorted(found, key=lambda score: (score.iou[i], -score.truth[i], score.index))

    queues = [who_has(i) for i in class_ids]
    of_a_class: list[AnyScore] = []
    while len(of_a_class) < third and any(queues):
        for queue in queues:
            while queue and queue[0].index in taken:
                queue.pop(0)
            if queue and len(of_a_class) < third:
                of_a_class.append(queue.pop(0))
                taken.add(of_a_class[-1].index)
    return worst, best, of_a_class


def table(scores: Iterable[ImageScore], names: Sequence[str], class_names: Sequence[str]) -> str:
    """The scores of images as CSV.

    Args:
        scores: `ImageScore`s, a row each.
        names: what names each example of the split, by its position.
        class_names: sequence of str.

    Returns:
        str: rows of "image", "pixels" (not ignored), "miou", "pixel_accuracy" and, by class,
        "iou/NAME"; what does not occur in an image is empty.

    Example:

    >>> images = isa_tf.report.ImageScores(2)
    >>> images.add(0, np.array([[0, 0]]), np.array([[0, 0]]))
    >>> print(table(images.scores(), ["a.jpg"], ["sky", "sea"]), end="")
    image,pixels,miou,pixel_accuracy,iou/sky,iou/sea
    a.jpg,2,1.0,1.0,1.0,
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["image", "pixels", "miou", "pixel_accuracy"]
    writer.writerow(head + [f"iou/{name}" for name in class_names])
    for score in scores:
        row = [names[score.index], score.pixels, score.miou, score.pixel_accuracy]
        writer.writerow(row + [score.iou.get(i) for i in range(len(class_names))])
    return text.getvalue()
