"""What a model of a task tells of itself, and what becomes of its outputs."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self, TypedDict

import keras
import numpy as np
import tensorflow as tf

from isa_tf.inference.protocol import Protocol, ProtocolBase
from isa_tf.inference.views import classify
from isa_tf.names import Registry

# What an exported model keeps of its contract: a file of this name.
METADATA_FILE = "isa_tf.json"

contracts = Registry("task")


def contract_of(model: keras.Model) -> "Contract":
    """The contract of a model: of its `task`, or of segmentation where it names none.

    >>> contract_of(model).num_classes
    11
    """
    return contracts[getattr(model, "task", SegmentationContract.task)].of(model)


def read_contract(text: str | bytes | None) -> "Contract":
    """The contract of the text that `to_text` made.

    Args:
        text: str or bytes; `None` for a model that came without, of which nothing is known.

    Raises:
        ValueError: for a text that is damaged.

    Example:

    >>> read_contract(contract_of(model).to_text()) == contract_of(model)
    True
    """
    if text is None:
        return SegmentationContract()
    try:
        values = json.loads(text)
        return contracts[values.get("task", SegmentationContract.task)].from_dict(values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"damaged {METADATA_FILE} ({error!r})") from error


def seen_size(size: Sequence[int], sizes: Sequence[Sequence[int]] | None) -> tuple[int, int]:
    """The size that images are resized to.

    Args:
        size: (height, width) of the images.
        sizes: those that a model takes, or `None` for any. Of several it is the one whose sides
            differ from the image's by the smallest factors, so that what stands stays standing.

    Example:

    >>> seen_size((100, 90), ((48, 64), (64, 48))), seen_size((100, 90), None)
    ((64, 48), (100, 90))
    """

    def factors(other):
        return sum(math.log(a / b) ** 2 for a, b in zip(size, other, strict=True))

    height, width = size if sizes is None else min(sizes, key=factors)
    return height, width


def tuples_of(values: Iterable[Iterable[int]] | None) -> tuple[tuple[int, ...], ...] | None:
    """Tuples of ints of what JSON makes lists of; `None` stays."""
    return None if values is None else tuple(tuple(map(int, each)) for each in values)


class Comparison(TypedDict):
    """How far the results of two predictors for the same images are the same.

    Attributes:
        agreement: float, the share of decisions that are the same.
        decisions: int, how many there are.
        kinds: int, how many classes are expected.
        score_difference: float, the largest.
    """

    agreement: float
    decisions: int
    kinds: int
    score_difference: float


class Contract:
    """What the contracts of all tasks share: how they are written down.

    One is a frozen dataclass of what JSON can hold, with the attributes and the methods that are
    named here.
    """

    task: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]
    decides: ClassVar[str]  # what `compare` counts
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    num_classes: int | None
    class_names: tuple[str, ...] | None
    image_size: tuple[int | None, int | None]
    image_sizes: tuple[tuple[int, int], ...] | None

    @classmethod
    def of(cls, model: keras.Model) -> Self:
        """The contract of a model."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The contract of `to_dict`'s values."""
        raise NotImplementedError

    @property
    def serves(self) -> str:
        """What an exported model does not do, in words that follow "an exported model"."""
        raise NotImplementedError

    @property
    def served_protocol(self) -> ProtocolBase:
        """What an exported model does."""
        raise NotImplementedError

    def check(self, model: keras.Model, size: tuple[int, int] | None = None) -> Self:
        """Tries a model on an image, of that size; ValueError for a model of another task."""
        raise NotImplementedError

    def run(self, model: keras.Model, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """What a served model answers: of each of `outputs` a tensor."""
        raise NotImplementedError

    def join(self, answers: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """One answer, of arrays, for a batch of images, of the answers for each of them."""
        raise NotImplementedError

    def compare(self, expected: Any, found: Any) -> Comparison:
        """How far the results of two predictors for the same images are the same."""
        raise NotImplementedError

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(height, width) of the images that the model takes, `None` where it takes several."""
        height, width = self.image_size
        return None if height is None or width is None else (height, width)

    def to_dict(self) -> dict[str, Any]:
        """The contract as what JSON can hold, and its task; `from_dict` makes it again."""
        return {"task": self.task, **json.loads(json.dumps(dataclasses.asdict(self)))}

    def to_text(self) -> str:
        """The text of a metadata file; `read_contract` reads it."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"

    def files(self) -> dict[str, str]:
        """The texts that go with an exported model, by the names of their files."""
        texts = {METADATA_FILE: self.to_text()}
        if self.class_names is not None:
            texts["labels.txt"] = "\n".join(self.class_names) + "\n"  # where LiteRT's tools look
        return texts

    def of_size(self, size: Sequence[int]) -> Self:
        """The same contract of a model that takes images of `size`, (height, width), alone."""
        return dataclasses.replace(self, image_size=size, image_sizes=None)

    def of_sizes(self, sizes: Sequence[Sequence[int]]) -> Self:
        """The same contract of a model that takes images of `sizes`, one at least, alone."""
        several = sizes if len(sizes) > 1 else None
        return dataclasses.replace(self, image_size=sizes[0], image_sizes=several)


@contracts.register("segmentation")
@dataclasses.dataclass(frozen=True)
class SegmentationContract(Contract):
    """What there is to know of a segmentation model, to use it wherever it is kept.

    Args:
        num_classes: int, or `None` where it is not known. Defaults to `None`.
        class_names: names of the classes, or `None`. Defaults to `None`.
        palette: colours of the classes, RGB 0..255, or `None`. Defaults to `None`.
        coordinates: where the pixels of its logits lie, see `resize_logits`. Defaults to
            "half_pixel".
        protocol: `Protocol`, or a mapping of its arguments, that the model is tested by; `None` for
            the whole image. Defaults to `Protocol()`, which is the same.
        image_size: (height, width) of the images it takes, `None` for any. Defaults to
            `(None, None)`.
        image_sizes: several of them, `image_size` the first, of a file that takes no others;
            `None` for `image_size` alone. Defaults to `None`.

    Example:

    >>> contract = SegmentationContract.of(model)
    >>> contract.num_classes, contract.image_size
    (11, (None, None))
    >>> SegmentationContract.from_dict(contract.to_dict()) == contract
    True
    """

    task: ClassVar[str] = "segmentation"
    outputs: ClassVar[tuple[str, ...]] = ("class_id", "score")
    decides: ClassVar[str] = "pixels"

    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None
    coordinates: str = "half_pixel"
    protocol: Protocol = Protocol()
    image_size: tuple[int | None, int | None] = (None, None)
    image_sizes: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self):
        names, palette = self.class_names, self.palette
        if palette is not None:
            # Those of NumPy are none that JSON knows.
            palette = tuple(tuple(map(int, color)) for color in palette)
        for name, value in (
            ("class_names", None if names is None else tuple(names)),
            ("palette", palette),
            ("protocol", Protocol.of(self.protocol)),
            ("image_size", tuple(self.image_size)),
            ("image_sizes", tuples_of(self.image_sizes)),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, model: keras.Model) -> Self:
        """The contract of a model: its attributes of these names, and the shape of its input."""
        shape = getattr(model, "input_shape", None)
        size = shape[1:3] if isinstance(shape, tuple) and len(shape) == 4 else (None, None)
        names = [f.name for f in dataclasses.fields(cls) if not f.name.startswith("image_size")]
        told = {name: getattr(model, name) for name in names if hasattr(model, name)}
        return cls(**told, image_size=size)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The contract of `to_dict`'s values, or of their first three alone.

        Raises:
            KeyError: where number, names or colours of the classes are missing.
        """
        needed = {name: values[name] for name in ("num_classes", "class_names", "palette")}
        others = ("coordinates", "protocol", "image_size", "image_sizes")
        return cls(**needed, **{name: values[name] for name in others if name in values})

    def check(self, model: keras.Model, size: tuple[int, int] | None = None) -> Self:
        """Tries a model on an image.

        Args:
            model: `keras.Model` from RGB 0..255 (B, H, W, 3) to logits (B, H, W, classes).
            size: (height, width) of the image; `None` for one that the model takes. Defaults to
                `None`.

        Returns:
            The contract, with the number of classes that the logits have and the given size.

        Raises:
            ValueError: for a model that is none of segmentation.

        Example:

        >>> SegmentationContract().check(model, (96, 128)).num_classes
        11
        """
        shape = (1, *(size or (own or 64 for own in self.image_size)), 3)
        try:
            logits = model(tf.zeros(shape), training=False)
        except Exception as error:
            raise ValueError(
                f"{model.name} is no segmentation model: it does not take images {shape} ({error})"
            ) from error
        if not tf.is_tensor(logits) or tuple(logits.shape[:-1]) != shape[:-1]:
            got = tuple(logits.shape) if tf.is_tensor(logits) else type(logits).__name__
            raise ValueError(
                f"{model.name} is no segmentation model: of images {shape} it makes {got}, not "
                f"logits {shape[:-1]} + (classes,)"
            )
        return dataclasses.replace(
            self, num_classes=int(logits.shape[-1]), image_size=size or self.image_size
        )

    @property
    def serves(self) -> str:
        return "sees whole images alone, for it does not tell its logits"

    @property
    def served_protocol(self) -> Protocol:
        """What an exported model does, which tells no logits: it sees whole images."""
        return Protocol()

    def run(self, model: keras.Model, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """What a served model answers: of each of `outputs` a tensor.

        Args:
            model: `keras.Model` that `check` has passed.
            images: uint8 tensor (B, H, W, 3), RGB.
        """
        logits = model(tf.cast(images, tf.float32), training=False)
        return dict(zip(self.outputs, classify(logits), strict=True))

    def join(self, answers: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """One answer, of arrays, for a batch of images, of the answers for each of them."""
        return {name: np.concatenate([answer[name] for answer in answers]) for name in self.outputs}

    def compare(self, expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> Comparison:
        """How far the results of two predictors for the same images are the same.

        Args:
            expected: (class ids, scores).
            found: (class ids, scores).

        Returns:
            dict: "agreement", the share of equal class ids, 0 where a score is not finite;
            "decisions", how many pixels there are; "kinds", how many classes are expected; and
            "score_difference", the largest.

        Example:

        >>> result = np.uint8([[[0, 2]]]), np.float32([[[0.5, 0.75]]])
        >>> SegmentationContract().compare(result, result)
        {'agreement': 1.0, 'decisions': 2, 'kinds': 2, 'score_difference': 0.0}
        """
        (class_id, score), (other_id, other_score) = expected, found
        # The argmax of NaN agrees with itself.
        finite = np.isfinite(score).all() and np.isfinite(other_score).all()
        return {
            "agreement": float((class_id == other_id).mean()) if finite else 0.0,
            "decisions": class_id.size,
            "kinds": len(np.unique(class_id)),
            "score_difference": float(np.abs(other_score - score).max()),
        }
