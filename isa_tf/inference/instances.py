"""What a model that finds instances answers, and what it tells of itself."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import keras
import numpy as np
import tensorflow as tf
from pycocotools import mask

from isa_tf.data.instances import Annotations
from isa_tf.inference.contract import Comparison, Contract, contracts, tuples_of
from isa_tf.inference.detection import DetectionProtocol, detect
from isa_tf.metrics import coco_results

# When two detections are the same: both have one class, no corner is further apart than this many
# pixels, and the masks overlap at least so much.
_SAME_PIXELS, _SAME_MASK = 1.0, 0.95


class Instances(NamedTuple):
    """The instances that were found in an image.

    Attributes:
        boxes: float32 (n, 4), (x1, y1, x2, y2) in pixels of the image.
        classes: int32 (n,), from 0.
        scores: float32 (n,), falling.
        masks: bool (n, H, W).

    Example:

    >>> found = Instances(np.zeros((1, 4)), np.array([2]), np.array([0.5]), np.ones((1, 3, 4)) > 0)
    >>> len(found.above(0.4).classes), len(found.above(0.6).classes)
    (1, 0)
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    masks: np.ndarray

    def take(self, which: np.ndarray | Sequence[int]) -> "Instances":
        """Some of the instances: those of a bool (n,), or of indices in their order."""
        return Instances(*(part[which] for part in self))

    def above(self, score: float) -> "Instances":
        """The instances whose score is at least `score`."""
        return self.take(self.scores >= score)

    def to_coco(
        self, image_id: int, category_ids: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """The instances in COCO's results format, see `isa_tf.metrics.coco_results`."""
        return coco_results(self, image_id, category_ids)


class Truth(NamedTuple):
    """The true instances of an image, as pictures and reports take them.

    Attributes:
        boxes: float32 (n, 4), (x1, y1, x2, y2) in pixels of the image.
        classes: int32 (n,), from 0.
        crowd: bool (n,), what stands for many instances, none of which is told apart.
        masks: bool (n, H, W).
    """

    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    masks: np.ndarray

    @classmethod
    def of(cls, annotations: Annotations, size: Sequence[int]) -> "Truth":
        """The truth of what a data set reads.

        Args:
            annotations: what has `boxes`, `classes`, `crowd`, and `masks`, a list of pycocotools'
                run lengths.
            size: (height, width) of the image.

        Example:

        >>> rle = mask.encode(np.asfortranarray(np.eye(3, dtype="uint8")))
        >>> from types import SimpleNamespace
        >>> some = SimpleNamespace(boxes=[[0, 0, 3, 3]], classes=[1], crowd=[False], masks=[rle])
        >>> int(Truth.of(some, (3, 3)).masks.sum())
        3
        """
        masks = [mask.decode(rle).astype(bool) for rle in annotations.masks]
        return cls(
            np.asarray(annotations.boxes, np.float32).reshape(-1, 4),
            np.asarray(annotations.classes, np.int32),
            np.asarray(annotations.crowd, bool),
            np.stack(masks) if masks else np.zeros((0, *size), bool),
        )


@contracts.register("instance_segmentation")
@dataclasses.dataclass(frozen=True)
class InstanceContract(Contract):
    """What there is to know of a model that finds instances, to use it wherever it is kept.

    Args:
        num_classes: int, or `None` where it is not known. Defaults to `None`.
        class_names: names of the classes, or `None`. Defaults to `None`.
        palette: colours of the classes, RGB 0..255, or `None`. Defaults to `None`.
        category_ids: the data set's own id of each class, such as COCO's 1 to 90; `None` for none.
            Defaults to `None`.
        protocol: `DetectionProtocol`, or a mapping of its arguments: how it is shown an image;
            `None` for its defaults. Defaults to `DetectionProtocol()`, which are they.
        image_size: (height, width) of the images that it takes, `None` for any. Defaults to
            `(None, None)`.
        image_sizes: several of them, see `SegmentationContract`. Defaults to `None`.

    Raises:
        ValueError: for names, colours or category ids that are not one a class.

    Example:

    >>> contract = InstanceContract(2, ("cat", "dog"), category_ids=(17, 18))
    >>> InstanceContract.from_dict(contract.to_dict()) == contract
    True
    """

    task: ClassVar[str] = "instance_segmentation"
    outputs: ClassVar[tuple[str, ...]] = ("boxes", "classes", "scores", "valid", "masks")
    decides: ClassVar[str] = "detections"  # what `compare` counts

    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None
    category_ids: tuple[int, ...] | None = None
    protocol: DetectionProtocol = DetectionProtocol()
    image_size: tuple[int | None, int | None] = (None, None)
    image_sizes: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self):
        def tuple_of(values, each):
            return None if values is None else tuple(map(each, values))

        for name, value in (
            ("class_names", tuple_of(self.class_names, str)),
            ("palette", tuple_of(self.palette, lambda color: tuple(map(int, color)))),
            ("category_ids", tuple_of(self.category_ids, int)),
            ("protocol", DetectionProtocol.of(self.protocol)),
            ("image_size", tuple(self.image_size)),
            ("image_sizes", tuples_of(self.image_sizes)),
        ):
            object.__setattr__(self, name, value)
        for name in ("class_names", "palette", "category_ids"):
            value = getattr(self, name)
            if None not in (value, self.num_classes) and len(value) != self.num_classes:
                raise ValueError(f"{len(value)} {name} for {self.num_classes} classes")

    @classmethod
    def of(cls, model: keras.Model) -> Self:
        """The contract of a model: its attributes of these names."""
        fields = dataclasses.fields(cls)
        names = [field.name for field in fields if not field.name.startswith("image_size")]
        return cls(**{name: getattr(model, name) for name in names if hasattr(model, name)})

    @property
    def serves(self) -> str:
        return f"sees images by {self.protocol} alone"

    @property
    def served_protocol(self) -> DetectionProtocol:
        """What an exported model does: its own protocol is part of it."""
        return self.protocol

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The contract of `to_dict`'s values.

        Raises:
            KeyError: where one of them is missing.
        """
        several = values.get("image_sizes")  # which files of older versions do not tell
        names = (field.name for field in dataclasses.fields(cls) if field.name != "image_sizes")
        return cls(**{name: values[name] for name in names}, image_sizes=several)

    def with_protocol(self, protocol: DetectionProtocol) -> Self:
        """The same contract by another `DetectionProtocol`."""
        return dataclasses.replace(self, protocol=protocol)

    def check(self, model: keras.Model, size: tuple[int, int] | None = None) -> Self:
        """Tries a model on an image.

        Args:
            model: `keras.Model`, see `isa_tf.inference.detect`.
            size: (height, width) of the only images that it is to take; `None` for any. Defaults
                to `None`.

        Returns:
            The contract, with the given size.

        Raises:
            ValueError: for a model that finds no instances.
        """
        side = 2 * self.protocol.size_divisor
        shapes = {"image": (1, side, side, 3), "size": (1, 2)}
        image = {"image": tf.zeros(shapes["image"]), "size": tf.constant([[side, side]])}
        try:
            found = model(image, training=False)
        except Exception as error:
            raise ValueError(
                f"{model.name} finds no instances: it does not take {shapes} ({error})"
            ) from error
        needed = {"boxes": 3, "scores": 2, "classes": 2, "valid": 2, "masks": 4}
        got = found if isinstance(found, dict) else {}
        ranks = {name: len(got[name].shape) for name in needed if name in got}
        if ranks != needed:
            made = {name: tuple(value.shape) for name, value in got.items()} or type(found).__name__
            raise ValueError(
                f"{model.name} finds no instances: it makes {made}, not {list(needed)}"
            )
        return dataclasses.replace(self, image_size=size or self.image_size)

    def run(self, model: keras.Model, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """What a served model answers: of each of `outputs` a tensor, see `detect`.

        For images of one size, which is LiteRT's way, it has one place at least, not valid where
        nothing is found: its interpreter gives no empty tensors.
        """
        found = detect(model, images, self.protocol, least=int(self.fixed_size is not None))
        return {name: found[name] for name in self.outputs}

    def join(self, answers: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """One answer, of arrays, for a batch of images, of the answers for each of them."""
        most = max(answer["valid"].shape[1] for answer in answers)

        def padded(array):
            return np.pad(array, [(0, 0), (0, most - array.shape[1])] + [(0, 0)] * (array.ndim - 2))

        return {
            name: np.concatenate([padded(np.asarray(answer[name])) for answer in answers])
            for name in self.outputs
        }

    def compare(self, expected: Sequence[Instances], found: Sequence[Instances]) -> Comparison:
        """How far the results of two predictors for the same images are the same.

        Two detections are the same where they have one class, corners that are not more than a
        pixel apart, and masks whose intersection over union is at least 0.95.

        Args:
            expected: list of `Instances`, one an image.
            found: list of `Instances`, one an image.

        Returns:
            dict: "agreement", the share of detections that both have, 1 where there are none, and
            0 where a score is not finite; "decisions", how many detections there are, those that
            both have counted once; "kinds", how many classes are expected; and
            "score_difference", the largest, the whole score of what one alone has.

        Example:

        >>> cat = Instances(*map(np.array, ([[0, 0, 2, 2]], [1], [0.75], np.ones((1, 2, 2)) > 0)))
        >>> InstanceContract().compare([cat], [cat])
        {'agreement': 1.0, 'decisions': 1, 'kinds': 1, 'score_difference': 0.0}
        """
        same, differences, decisions, finite = 0, [0.0], 0, True
        for one, other in zip(expected, found, strict=True):
            pairs = _same(one, other)
            same += len(pairs)
            decisions += len(one.scores) + len(other.scores) - len(pairs)
            finite &= bool(np.isfinite(one.scores).all() and np.isfinite(other.scores).all())
            differences += [abs(float(one.scores[i]) - float(other.scores[j])) for i, j in pairs]
            for side, instances in enumerate((one, other)):
                alone = np.delete(instances.scores, [pair[side] for pair in pairs])
                differences += map(float, alone)
        kinds = np.unique(np.concatenate([np.asarray(one.classes) for one in expected]))
        return {
            "agreement": (same / decisions if decisions else 1.0) if finite else 0.0,
            "decisions": decisions,
            "kinds": len(kinds),
            "score_difference": max(differences),
        }


def _same(one, other):
    """Pairs (i, j) of detections that are the same, each in one pair at most."""
    pairs, free = [], list(range(len(other.scores)))
    for i in range(len(one.scores)):
        for j in free:
            if one.classes[i] != other.classes[j]:
                continue
            if np.abs(one.boxes[i] - other.boxes[j]).max() > _SAME_PIXELS:
                continue
            union = (one.masks[i] | other.masks[j]).sum()
            if (one.masks[i] & other.masks[j]).sum() < _SAME_MASK * union:
                continue
            pairs.append((i, j))
            free.remove(j)
            break
    return pairs
