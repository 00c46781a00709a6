"""One predictor as a server has it: the bytes of pictures in, answers out."""

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from PIL import Image

from isa_tf import runtime
from isa_tf.inference import InstancePredictor, Predictor, findings, warm_up
from isa_tf.names import Registry, unknown
from isa_tf.serving.limits import Limits, Refused, read_picture
from isa_tf.visualize import draw_classes, draw_instances

# What there is to ask for, and its type in HTTP.
FORMATS = {"json": "application/json", "ids": "image/png", "overlay": "image/png"}
_FAST = 1  # of zlib's levels

# What draws the result of a task's predictor over the image.
painters = Registry("task")


class Answer(NamedTuple):
    """The body of an answer, bytes, and its type."""

    body: bytes
    media_type: str


@dataclasses.dataclass(frozen=True)
class Options:
    """How a request wants to be answered.

    Args:
        format: str, "json", "ids" (a PNG of class ids; of segmentation models alone) or "overlay"
            (a PNG of the image with the result drawn over it). Defaults to "json".
        masks: bool, whether the JSON tells the masks. Defaults to `True`.
        score: float, the least of instances; `None` for all, and 0.5 of those that are drawn.
            Defaults to `None`.
        opacity: float, of the overlay's colours. Defaults to 0.5.
        legend: bool, whether the overlay names what it shows. Defaults to `True`.

    Raises:
        Refused: 400, for what is none of these.

    Example:

    >>> Options.of({"format": "json", "masks": "0"}).masks
    False
    """

    format: str = "json"
    masks: bool = True
    score: float | None = None
    opacity: float = 0.5
    legend: bool = True

    def __post_init__(self):
        if self.format not in FORMATS:
            raise Refused(400, unknown("format", self.format, [*FORMATS]))
        for name in ("score", "opacity"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise Refused(400, f"{name} lies in 0 to 1, got {value}")

    @classmethod
    def of(cls, query: Mapping[str, str], accept: str = "") -> Self:
        """The options of an address and of its header `Accept`, which decides without `format`.

        Args:
            query: mapping of str to str.
            accept: str. `image/png` asks for ids, all else for JSON. Defaults to "".
        """
        known = {field.name for field in dataclasses.fields(cls)}
        given: dict[str, Any] = dict(query)
        if strange := sorted(given.keys() - known):
            raise Refused(400, unknown("parameter", strange[0], sorted(known)))
        for name in ("masks", "legend"):
            if name in given:
                given[name] = _bool_of(name, given[name])
        for name in ("score", "opacity"):
            if name in given:
                given[name] = _float_of(name, given[name])
        if "format" not in given and "image/png" in accept:
            given["format"] = "ids"
        return cls(**given)


def _bool_of(name, text):
    values = {"0": False, "false": False, "1": True, "true": True}
    if text.lower() not in values:
        raise Refused(400, f"{name} is 0 or 1, got {text!r}")
    return values[text.lower()]


def _float_of(name, text):
    try:
        return float(text)
    except ValueError:
        raise Refused(400, f"{name} is a number, got {text!r}") from None


class Service:
    """A predictor that takes the bytes of pictures and makes answers of its results.

    Args:
        predictor: `isa_tf.inference.Predictor` or `InstancePredictor`, as `isa_tf.load_predictor`
            gives it.
        limits: `Limits`; `None` for its defaults. Defaults to `None`.

    Example:

    >>> service = Service(isa_tf.load_predictor("model.keras"))
    >>> answer = service.answer(open("photo.jpg", "rb").read(), Options("ids"))
    >>> Image.open(io.BytesIO(answer.body)).size
    (128, 96)
    """

    def __init__(
        self, predictor: Predictor | InstancePredictor, limits: Limits | None = None
    ) -> None:
        self.predictor, self.limits = predictor, limits or Limits()
        warm_up(predictor)

    def answer(self, contents: bytes, options: Options) -> Answer:
        """What there is to say of a picture: an `Answer`.

        Args:
            contents: bytes of a picture.
            options: `Options`.

        Raises:
            Refused: see `read_picture`; 400 for ids of a model that has none to give; 413 for a
                picture that the memory is too short for.
        """
        image = self.read(contents, options)
        return self.write(image, self._see(image), options)

    def read(self, contents: bytes, options: Options) -> np.ndarray:
        """The picture as predictors take it, of what is to be answered by these options."""
        if options.format == "ids" and self.predictor.task != "segmentation":
            raise Refused(
                400, f"a model of {self.predictor.task} gives no class ids: ask for json or overlay"
            )
        return read_picture(contents, self.limits)

    def predict(self, images: Sequence[np.ndarray]) -> list[Any]:
        """The results of several images, a list: those of one size go together.

        In place of a result is the exception that it ended in.
        """
        results: list[Any] = [None] * len(images)
        together: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(images):
            together.setdefault(image.shape, []).append(i)
        for indices in together.values():
            try:
                some = self._batch([images[i] for i in indices])
            except Exception as error:
                # Whichever it was that could not be done: the others can.
                some = [error] if len(indices) == 1 else [self._alone(images[i]) for i in indices]
            for i, result in zip(indices, some, strict=True):
                results[i] = result
        return results

    def _batch(self, images):
        if len(images) == 1:
            return [self._see(images[0])]
        found = self.predictor(np.stack(images))
        return list(zip(*found, strict=True)) if isinstance(found, tuple) else found

    def _alone(self, image):
        try:
            return self._see(image)
        except Exception as error:
            return error

    def _see(self, image):
        try:
            return self.predictor(image)
        except Exception as error:
            if (why := runtime.short_of_memory(error)) is None:
                raise
            height, width = image.shape[:2]
            raise Refused(413, f"{width}x{height} pixels are too large: {why}") from error

    def write(self, image: np.ndarray, result: Any, options: Options) -> Answer:
        """The `Answer` that tells the result of an image."""
        if options.format == "json":
            if options.score is not None and self.predictor.task != "segmentation":
                result = result.above(options.score)
            told = findings(self.predictor, result, options.masks)
            return Answer(json.dumps(told).encode(), FORMATS["json"])
        if options.format == "ids":
            depth = np.uint8 if result[0].dtype == np.uint8 else np.uint16
            return _png(result[0].astype(depth, copy=False))
        return _png(painters[self.predictor.task](self.predictor, image, result, options))

    def card(self) -> dict[str, Any]:
        """What there is to know of the model, in the form that JSON can hold."""
        known: dict[str, Any] = {"task": self.predictor.task}
        for name in ("num_classes", "class_names", "palette", "category_ids", "image_size"):
            if (value := getattr(self.predictor, name, None)) is not None:
                known[name] = value
        formats = [name for name in FORMATS if name != "ids" or known["task"] == "segmentation"]
        known["protocol"] = self.predictor.protocol.to_dict()
        return {**known, "formats": formats, "limits": dataclasses.asdict(self.limits)}


@painters.register("segmentation")
def _paint_classes(predictor, image, result, options):
    names, palette = predictor.class_names, predictor.palette
    return draw_classes(image, result[0], names, palette, options.opacity, (), options.legend)


@painters.register("instance_segmentation")
def _paint_instances(predictor, image, result, options):
    drawn = result.above(0.5 if options.score is None else options.score)
    names, palette = predictor.class_names, predictor.palette
    return draw_instances(image, drawn, names, palette, options.opacity, labels=options.legend)


def _png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", compress_level=_FAST)
    return Answer(file.getvalue(), "image/png")
