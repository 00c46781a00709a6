"""From images to class ids and their probabilities."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self, TypeAlias, overload

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from isa_tf.data.base import IGNORE_LABEL
from isa_tf.hints import Array, Colors
from isa_tf.inference.contract import (
    Contract,
    SegmentationContract,
    contract_of,
    seen_size,
    tuples_of,
)
from isa_tf.inference.pieces import Network, classify_in_pieces, fits_at_once
from isa_tf.inference.protocol import Protocol, ProtocolBase
from isa_tf.inference.views import class_dtype, classify, view_logits, vote
from isa_tf.layers import ResizeLike
from isa_tf.metrics import boundary_band
from isa_tf.names import Registry

_WARM_UP_SIZE = (64, 64)

# What predicts with the models of a task, by the name that their contracts have.
predictors = Registry("task")


def predictor_of_run(
    contract: Contract,
    run: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    protocol: ProtocolBase | Mapping[str, Any] | None = None,
) -> Any:
    """The predictor over an exported model.

    Args:
        contract: of the model, see `isa_tf.inference.contract_of`.
        run: function from uint8 images (B, H, W, 3) to a dict of the contract's `outputs`.
        protocol: `None`, or the protocol that the exported model follows, or a mapping of its
            arguments: there is no other. Defaults to `None`.

    Raises:
        ValueError: for another protocol.

    Example:

    >>> def run(images):
    ...     return contract_of(model).run(model, images)
    >>> class_id, score = predictor_of_run(contract_of(model), run)(images)
    """
    served = contract.served_protocol
    if protocol is not None and served.of(protocol) != served:
        raise ValueError(f"an exported model {contract.serves}; {protocol} needs the .keras file")

    def answers(images):
        found = run(images)
        return tuple(found[name] for name in contract.outputs)

    return predictors[contract.task].from_run(answers, contract)


def predictor_of_model(
    model: keras.Model, protocol: ProtocolBase | Mapping[str, Any] | None = None
) -> Any:
    """The predictor over a Keras model, of whatever task.

    See `Predictor.from_model` and `InstancePredictor.from_model`.
    """
    return predictors[contract_of(model).task].from_model(model, protocol)


@predictors.register("segmentation")
class Predictor:
    """From images to class ids and their probabilities.

    `isa_tf.load_predictor` makes one of a file, `Predictor.from_model` of a Keras model.

    Args:
        run: function from images, uint8 (B, H, W, 3), to class ids (B, H, W) and their
            probabilities (B, H, W).
        num_classes: int, or `None` where it is not known. Defaults to `None`.
        class_names: names of the classes, or `None`. Defaults to `None`.
        palette: colours of the classes, RGB 0..255, or `None`. Defaults to `None`.
        image_size: (height, width) of the only images that `run` takes, or `None` for any.
            Images of another size are resized to it, bilinearly, and the result is resized
            back, to the nearest pixel. Defaults to `None`.
        image_sizes: several such sizes, `image_size` the first; images are resized to the nearest
            (see `seen_size`). `None` for `image_size` alone. Defaults to `None`.
        protocol: the `Protocol` that `run` follows; `None` for the whole image. Defaults to
            `None`.

    Shapes:
        images, uint8, RGB: a batch (B, H, W, 3), one image (H, W, 3), or a list of images of any
        sizes -> class ids, uint8 (int32 of more than 256 classes), and the probability of the
        class at each pixel, float32: both (B, H, W), (H, W), or lists of (H, W).

    Raises:
        ValueError: from a call, for anything but such images.

    Example:

    >>> predictor = Predictor.from_model(Segmenter("tiny", num_classes=5))
    >>> class_id, score = predictor(np.zeros((65, 97, 3), "uint8"))
    >>> class_id.shape, class_id.dtype, score.dtype
    ((65, 97), dtype('uint8'), dtype('float32'))
    >>> class_ids, scores = predictor([image, image[:48]])
    >>> [class_id.shape for class_id in class_ids]
    [(96, 128), (48, 128)]
    """

    task = SegmentationContract.task

    def __init__(
        self,
        run: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        palette: Colors | None = None,
        image_size: Sequence[int] | None = None,
        protocol: Protocol | None = None,
        image_sizes: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self._run = run
        self.num_classes = num_classes
        self.class_names = None if class_names is None else tuple(class_names)
        self.palette = None if palette is None else tuple(map(tuple, palette))
        self.image_size = None if image_size is None else tuple(image_size)
        own = None if self.image_size is None else (self.image_size,)
        self.image_sizes = tuples_of(image_sizes or own)
        self.protocol = protocol or Protocol()

    @classmethod
    def from_run(
        cls,
        run: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
        contract: SegmentationContract,
    ) -> Self:
        """A predictor over what an exported model with this contract answers, as a tuple."""
        classes = (contract.num_classes, contract.class_names, contract.palette)
        sizes = contract.image_sizes
        return cls(run, *classes, image_size=contract.fixed_size, image_sizes=sizes)

    @classmethod
    def from_model(
        cls, model: keras.Model, protocol: Protocol | Mapping[str, Any] | None = None
    ) -> Self:
        """A predictor over a Keras model from RGB 0..255 to logits.

        It uses the weights that the model has at each call, so it can follow a training. The model
        is traced once for all sizes and scales and all windows, and once more for large whole
        images. (Layers that XLA compiles are compiled for each size of their input; attention
        inside groups for each number of positions that a group has.) Logits of another size than
        the image's are resized as `model.coordinates` says, where the model has this attribute.
        Images whose logits are large are classified piece after piece (see `classify_in_pieces`):
        in windows, the memory needed grows with the shorter side of the image alone.

        Args:
            model: `keras.Model`.
            protocol: `Protocol`, or a mapping of its arguments; `None` for `model.protocol`, where
                the model has this attribute, else the whole image. Defaults to `None`.

        Raises:
            ValueError: for a protocol that a model of these classes, or of a fixed image size,
                cannot follow; from a call, for an image smaller than a fixed size's windows.

        Example:

        >>> predictor = Predictor.from_model(model, Protocol("slide", crop_size=769, stride=513))
        >>> class_id, score = predictor(images)
        """
        contract = SegmentationContract.of(model)
        protocol = contract.protocol if protocol is None else Protocol.of(protocol)
        if contract.num_classes is not None:
            protocol.mirrored_classes(contract.num_classes)
        size, fixed = contract.image_size, contract.fixed_size
        if fixed is not None:
            protocol.check_size(fixed)

        def traced_of(model):
            @tf.function(input_signature=[tf.TensorSpec((None, *size, 3), tf.uint8)])
            def traced(images):
                return tf.cast(model(tf.cast(images, tf.float32), training=False), tf.float32)

            return traced

        traced = traced_of(model)
        small, resizing = _before_resizing(model)
        options = () if small is None else (traced_of(small), resizing.coordinates)

        def logits(images):
            if fixed is not None and tuple(images.shape[1:3]) != fixed:
                raise ValueError(
                    f"a window of {tuple(images.shape[1:3])}, as small as the image, is too small "
                    f"for this model, which takes {size} alone"
                )
            return traced(images)

        def run(images):
            num_classes = traced.get_concrete_function().output_shapes[-1]
            if not fits_at_once(images, protocol, num_classes):
                network = Network(logits, num_classes, *options)
                return classify_in_pieces(network, images, protocol, contract.coordinates)
            views = view_logits(logits, images, protocol, contract.coordinates)
            return classify(next(views)) if protocol.num_views() == 1 else vote(views)

        classes = (contract.num_classes, contract.class_names, contract.palette)
        image_size = fixed if protocol.mode == "whole" else None
        return cls(run, *classes, image_size=image_size, protocol=protocol)

    @overload
    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...

    @overload
    def __call__(
        self, images: Sequence[np.ndarray]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]: ...

    def __call__(self, images: Any) -> Any:
        if isinstance(images, (list, tuple)):
            results = [self(image) for image in images]
            return [class_id for class_id, _ in results], [score for _, score in results]
        batch = checked_images(images)
        if batch.ndim == 3:
            class_id, score = self(batch[None])
            return class_id[0], score[0]
        size = batch.shape[1:3]
        seen = seen_size(size, self.image_sizes)
        resized = seen != size
        if resized:
            batch = resize_pictures(batch, seen, Image.Resampling.BILINEAR)
        class_id, score = (np.asarray(result) for result in self._run(batch))
        class_id = class_id.astype(self._class_dtype(class_id.dtype), copy=False)
        score = score.astype(np.float32, copy=False)
        if resized:
            class_id = resize_pictures(class_id, size, Image.Resampling.NEAREST)
            score = resize_pictures(score, size, Image.Resampling.NEAREST)
        return class_id, score

    def _class_dtype(self, given):
        """Of the ids: by the number of classes or, where it is not known, by what is given."""
        if self.num_classes is not None:
            return class_dtype(self.num_classes)
        return np.dtype("uint8" if given == np.uint8 else "int32")


def _before_resizing(model):
    """The part of a network before its last step, and that step, where it resizes to the image."""
    output = getattr(model, "output", None)
    if isinstance(output, dict):  # of a network with an auxiliary head
        output = output.get("logits")
    step = getattr(getattr(output, "_keras_history", None), "operation", None)
    if not isinstance(step, ResizeLike) or step.input[1] is not model.inputs[0]:
        return None, None
    return keras.Model(model.inputs, step.input[0]), step


_Batches: TypeAlias = Iterable[Mapping[str, Array] | Sequence[Array]]


@overload
def confusion_matrix(
    predictor: Callable[[np.ndarray], Sequence[Any]],
    batches: _Batches,
    num_classes: int,
    ignore_label: int = IGNORE_LABEL,
    band: None = None,
    hear: Callable[[Any, np.ndarray], object] | None = None,
) -> np.ndarray: ...


@overload
def confusion_matrix(
    predictor: Callable[[np.ndarray], Sequence[Any]],
    batches: _Batches,
    num_classes: int,
    ignore_label: int = IGNORE_LABEL,
    *,
    band: int,
    hear: Callable[[Any, np.ndarray], object] | None = None,
) -> tuple[np.ndarray, np.ndarray]: ...


def confusion_matrix(
    predictor: Callable[[np.ndarray], Sequence[Any]],
    batches: _Batches,
    num_classes: int,
    ignore_label: int = IGNORE_LABEL,
    band: int | None = None,
    hear: Callable[[Any, np.ndarray], object] | None = None,
) -> Any:
    """Counts which class was predicted where which was true.

    Args:
        predictor: `Predictor`, or any function from images to (class ids, ...).
        batches: iterable of (image, label) or of dicts with these keys: uint8 images
            (B, H, W, 3) and integer labels (B, H, W).
        num_classes: int.
        ignore_label: int, the label of the pixels to leave out. Defaults to 255.
        band: int, to count a second time without the pixels that lie so near a boundary between
            labels, see `isa_tf.metrics.boundary_band`; nothing is predicted twice. Defaults to
            `None`.
        hear: function that is told of each batch, once no fault has been found with it: it gets
            the batch and the class ids that were predicted. Defaults to `None`.

    Returns:
        int64 array (num_classes, num_classes); rows are truth. `isa_tf.metrics.scores` makes
        scores of it. With a `band`, a pair of them: of all pixels, and without the band.

    Raises:
        ValueError: for a label or a prediction out of range, or a label of another size than
            its image; with the number of the batch. For a band below 0.

    Example:

    >>> data = isa_tf.data.create("camvid", data_dir)
    >>> batches = isa_tf.data.eval_pipeline(data, "test")
    >>> matrix, inside = confusion_matrix(predictor, batches, data.num_classes, band=3)
    >>> 0 <= isa_tf.metrics.scores(matrix, data.class_names)["miou"] <= 1
    True
    >>> bool((inside <= matrix).all())
    True
    """
    matrices = np.zeros((1 if band is None else 2, num_classes, num_classes), np.int64)
    for number, batch in enumerate(batches):
        pair = (batch["image"], batch["label"]) if isinstance(batch, dict) else batch
        image, label = map(np.asarray, pair)
        predicted = np.asarray(predictor(image)[0])
        if label.shape != predicted.shape:
            raise ValueError(
                f"batch {number}: labels {label.shape} for images {image.shape}; one label "
                "a pixel is needed"
            )
        counted = label != ignore_label
        truth, guess = (a[counted].astype(np.int64) for a in (label, predicted))
        for name, ids in (("label", truth), ("prediction", guess)):
            wrong = ids[(ids < 0) | (ids >= num_classes)]
            if wrong.size:
                raise ValueError(
                    f"batch {number}: {name} {wrong[0]} in {wrong.size} pixels; the ids are 0 "
                    f"to {num_classes - 1}, and {ignore_label} for ignored pixels"
                )
        cells = [truth * num_classes + guess]
        if band is not None:
            cells.append(cells[0][~boundary_band(label, band)[counted]])
        for matrix, some in zip(matrices, cells, strict=True):
            matrix += np.bincount(some, minlength=num_classes**2).reshape(matrix.shape)
        if hear is not None:
            hear(batch, predicted)
    return matrices[0] if band is None else tuple(matrices)


def warm_up(predictor: Any) -> None:
    """Makes the graph of a predictor ready: the first call takes longer than others.

    Args:
        predictor: `Predictor` or `InstancePredictor`; one of any size sees an image of 64 x 64.

    Example:

    >>> warm_up(predictor)
    """
    predictor(np.zeros((*(predictor.image_size or _WARM_UP_SIZE), 3), np.uint8))


def checked_images(images: Any) -> np.ndarray:
    """An array of images as predictors take them; ValueError for anything else."""
    images = np.asarray(images)
    is_some = images.ndim in (3, 4) and images.shape[-1] == 3 and images.size
    if images.dtype != np.uint8 or not is_some:
        raise ValueError(
            "a predictor reads RGB images as uint8 (B, H, W, 3) or (H, W, 3), not empty, or a "
            f"list of the latter, got {images.dtype} {images.shape}"
        )
    return images


def resize_pictures(
    maps: np.ndarray, size: tuple[int, int], resample: Image.Resampling
) -> np.ndarray:
    """Pictures or maps (B, H, W, ...), uint8, int32 or float32, of another size by Pillow."""
    pictures = (Image.fromarray(each).resize(size[::-1], resample) for each in maps)
    return np.stack([np.asarray(picture) for picture in pictures])
