"""Predicting with a model, whatever it is kept in: Keras, SavedModel or LiteRT."""

import dataclasses
import json
import math
import operator
import zipfile
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from isa_tf import ops
from isa_tf.data.base import IGNORE_LABEL
from isa_tf.inference_fuse import fuse  # noqa: F401
from isa_tf.names import unknown

# What an exported model knows about its classes: a file of this name, inside it.
METADATA_FILE = "isa_tf.json"
ASSETS = "assets.extra"
SIGNATURE = "serving_default"
MAX_CLASSES = 256  # as many as fit class ids of one byte
WINDOWS_AT_ONCE = 4  # of a slide, in one batch
PAD_COLOR = 128  # PaddleSeg's 127.5, as whole images have it


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a model is shown an image at test time, as mmsegmentation 1.2.2 defines it.

    Every view of the image (each scale, and its mirror image) goes through the model, whole or in
    windows. Its logits are mirrored back and brought to the size of the image, bilinearly. Of one
    view the logits decide; of several, the mean of their softmax.

    Args:
        mode: "whole", or "slide": windows all over the view, whose logits are averaged where they
            overlap. Defaults to "whole".
        crop_size: (height, width) of a window, or one int for both; of "slide" alone. A view that
            is smaller makes windows of its own size. Defaults to `None`.
        stride: (vertical, horizontal) step from window to window, or one int; of "slide" alone. The
            last window is moved back inside the view. Defaults to `None`.
        scales: ratios at which the image is seen. Defaults to `(1.0,)`.
        fit_size: (long, short) side that the image is resized to fit into, times each scale,
            keeping its proportions; `None` for the image's own size. mmsegmentation tests ADE20K
            and VOC at `(2048, 512)` and its 769x769 models of Cityscapes at `(2049, 1025)`.
            Defaults to `None`.
        pad_size: (height, width) to which an image that is smaller is padded at its bottom and
            right, with mid-grey (128), before it is scaled; what is predicted there is cut off.
            PaddleSeg tests Cityscapes at `(1025, 2049)` and VOC at `(512, 512)`. Not together with
            `fit_size`. Defaults to `None`.
        flip: bool, whether to see the mirror image (left to right) too. Defaults to `False`.
        flip_pairs: pairs of class ids that change places in a mirror, such as left and right arm;
            `((14, 15), (16, 17), (18, 19))` for LIP. They matter where `flip` is set. Defaults to
            `()`.

    Raises:
        ValueError: for a mode of another name, a window without stride (or either without
            "slide"), a stride that skips pixels, sizes or scales that are not above 0, pairs that
            are none or share a class.

    Example:

    >>> protocol = Protocol("slide", crop_size=769, stride=513, scales=(0.5, 1.0), flip=True)
    >>> Protocol.from_dict(protocol.to_dict()) == protocol
    True

    Source: mmsegmentation 1.2.2, `EncoderDecoder`, `SegTTAModel` and the `Resize` of its test
    pipelines.
    """

    mode: str = "whole"
    crop_size: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    fit_size: tuple[int, int] | None = None
    pad_size: tuple[int, int] | None = None
    flip: bool = False
    flip_pairs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self):
        for name in ("crop_size", "stride", "fit_size", "pad_size"):
            object.__setattr__(self, name, _two_ints(name, getattr(self, name)))
        object.__setattr__(self, "scales", _scales(self.scales))
        object.__setattr__(self, "flip_pairs", _flip_pairs(self.flip_pairs))
        windows = (self.crop_size, self.stride)
        if self.mode not in ("whole", "slide"):
            raise ValueError(f'mode must be "whole" or "slide", got {self.mode!r}')
        if self.mode == "slide" and None in windows:
            raise ValueError(f'mode "slide" needs a crop_size and a stride, got {windows}')
        if self.mode == "whole" and windows != (None, None):
            raise ValueError(f'crop_size and stride are of mode "slide" alone, got {windows}')
        if self.mode == "slide" and any(s > c for c, s in zip(*windows, strict=True)):
            raise ValueError(f"a stride above the crop_size skips pixels, got {windows}")
        if None not in (self.fit_size, self.pad_size):
            raise ValueError(
                f"fit_size and pad_size exclude each other, got {self.fit_size}, {self.pad_size}"
            )
        if not isinstance(self.flip, bool):
            raise ValueError(f"flip must be True or False, got {self.flip!r}")

    def to_dict(self):
        """The protocol as what JSON can hold; `from_dict` makes it again."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values):
        """The protocol of a mapping of its arguments; absent ones have their defaults.

        Raises:
            ValueError: for an argument that is none, with the nearest that is one.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                raise ValueError(unknown("argument of a protocol", name, names))
        return cls(**values)

    def num_views(self):
        """How many views of an image the protocol has."""
        return len(self.scales) * (1 + self.flip)

    def mirrored_classes(self, num_classes):
        """For each class, the class whose scores in the mirror image are its own.

        Raises:
            ValueError: for `flip_pairs` of classes that are not there.
        """
        order = list(range(num_classes))
        for a, b in self.flip_pairs:
            if max(a, b) >= num_classes:
                raise ValueError(f"flip_pairs has {(a, b)}, classes are 0 to {num_classes - 1}")
            order[a], order[b] = b, a
        return order


class Predictor:
    """From images to class ids and their probabilities.

    `load_predictor` makes one of a file, `Predictor.from_model` of a Keras model.

    Args:
        run: function from images, uint8 (B, H, W, 3), to class ids (B, H, W) and their
            probabilities (B, H, W).
        num_classes: int, or `None` where it is not known. Defaults to `None`.
        class_names: names of the classes, or `None`. Defaults to `None`.
        palette: colours of the classes, RGB 0..255, or `None`. Defaults to `None`.
        image_size: (height, width) of the only images that `run` takes, or `None` for any.
            Images of another size are resized to it, bilinearly, and the result is resized
            back, to the nearest pixel. Defaults to `None`.
        protocol: the `Protocol` that `run` follows; `None` for the whole image. Defaults to
            `None`.

    Shapes:
        images (B, H, W, 3), uint8, RGB -> class ids (B, H, W), uint8, and the probability of
        the class at each pixel (B, H, W), float32.

    Raises:
        ValueError: from a call, for anything but a batch of uint8 RGB images.

    Example:

    >>> predictor = Predictor.from_model(Segmenter("tiny", num_classes=5))
    >>> class_id, score = predictor(np.zeros((1, 65, 97, 3), "uint8"))
    >>> class_id.shape, class_id.dtype, score.dtype
    ((1, 65, 97), dtype('uint8'), dtype('float32'))
    """

    def __init__(
        self,
        run,
        num_classes=None,
        class_names=None,
        palette=None,
        image_size=None,
        protocol=None,
    ):
        self._run = run
        self.num_classes = num_classes
        self.class_names = None if class_names is None else tuple(class_names)
        self.palette = None if palette is None else tuple(map(tuple, palette))
        self.image_size = None if image_size is None else tuple(image_size)
        self.protocol = protocol or Protocol()

    @classmethod
    def from_model(cls, model, protocol=None):
        """A predictor over a Keras model from RGB 0..255 to logits.

        It uses the weights that the model has at each call, so it can follow a training. The model
        is traced once for all sizes and scales and all windows (only layers that XLA compiles are
        compiled anew for each size). Logits of another size than the image's are resized as
        `model.coordinates` says, where the model has this attribute.

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
        if protocol is None:
            protocol = getattr(model, "protocol", None) or Protocol()
        if isinstance(protocol, Mapping):
            protocol = Protocol.from_dict(protocol)
        description = describe(model)
        if description["num_classes"] is not None:
            protocol.mirrored_classes(description["num_classes"])
        size = fixed_size(model)
        fixed = None not in size
        if fixed:
            _check_fixed(protocol, size)
        coordinates = getattr(model, "coordinates", "half_pixel")

        @tf.function(input_signature=[tf.TensorSpec((None, *size, 3), tf.uint8)])
        def traced(images):
            return tf.cast(model(tf.cast(images, tf.float32), training=False), tf.float32)

        def logits(images):
            if fixed and tuple(images.shape[1:3]) != size:
                raise ValueError(
                    f"a window of {tuple(images.shape[1:3])}, as small as the image, is too small "
                    f"for this model, which takes {size} alone"
                )
            return traced(images)

        def run(images):
            views = view_logits(logits, images, protocol, coordinates)
            return classify(next(views)) if protocol.num_views() == 1 else vote(views)

        image_size = size if fixed and protocol.mode == "whole" else None
        return cls(run, image_size=image_size, protocol=protocol, **description)

    def __call__(self, images):
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                "A predictor reads RGB images as uint8 (B, H, W, 3). Received: "
                f"{images.dtype} {images.shape}"
            )
        size = images.shape[1:3]
        resized = self.image_size not in (None, size)
        if resized:
            images = _resize(images, self.image_size, Image.Resampling.BILINEAR)
        class_id, score = (np.asarray(result) for result in self._run(images))
        if resized:
            class_id = _resize(class_id, size, Image.Resampling.NEAREST)
            score = _resize(score, size, Image.Resampling.NEAREST)
        return class_id.astype(np.uint8), score.astype(np.float32)


def load_predictor(path, num_threads=None, protocol=None):
    """Loads a predictor from a file, whichever of the three kinds it is.

    Args:
        path: a `.keras` file, the folder of a SavedModel from `export.export_saved_model`, or
            a `.tflite` file from `export.export_litert`. The last has a fixed image size:
            images of another are resized to it, and the result is resized back.
        num_threads: int, of LiteRT; `None` for its own choice. Defaults to `None`.
        protocol: `Protocol`, or a mapping of its arguments. Other ones than the whole image need
            a `.keras` file: the other kinds do not tell their logits. `None` for the model's own,
            as in `Predictor.from_model`. Defaults to `None`.

    Returns:
        `Predictor`.

    Raises:
        FileNotFoundError: where there is nothing at the path.
        ValueError: for a file of another kind, one that cannot be read, a model that was not
            exported by this package, or one that cannot follow the protocol; with the path.
        ImportError: for a `.tflite` file where LiteRT is not installed.

    Example:

    >>> predictor = load_predictor("model.tflite")
    >>> class_id, score = predictor(image[None])
    >>> what_is_there = predictor.class_names[class_id[0, 40, 60]]
    """
    path = _existing(path)
    if isinstance(protocol, Mapping):
        protocol = Protocol.from_dict(protocol)
    if path.suffix == ".keras" and path.is_file():
        model = load_model(path)
        try:
            return Predictor.from_model(model, protocol)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    if not path.is_dir() and path.suffix != ".tflite":
        raise ValueError(
            f"{path}: not a model; known are .keras files, SavedModel folders and .tflite files"
        )
    if protocol not in (None, Protocol()):
        raise ValueError(
            f"{path}: an exported model sees whole images alone, for it does not tell its logits; "
            f"{protocol} needs the .keras file"
        )
    return _from_saved_model(path) if path.is_dir() else _from_litert(path, num_threads)


def load_model(path):
    """Loads the Keras model of a `.keras` file, without its optimizer.

    Args:
        path: of the file.

    Returns:
        `keras.Model`.

    Raises:
        FileNotFoundError: where there is nothing at the path.
        ValueError: for a file that is no Keras model, with the path.

    Example:

    >>> model = load_model("model.keras")
    """
    path = _existing(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not a Keras model, or not the whole of one")
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as a Keras model ({error})") from error


def confusion_matrix(predictor, batches, num_classes, ignore_label=IGNORE_LABEL):
    """Counts which class was predicted where which was true.

    Args:
        predictor: `Predictor`, or any function from images to (class ids, ...).
        batches: iterable of (image, label) or of dicts with these keys: uint8 images
            (B, H, W, 3) and integer labels (B, H, W).
        num_classes: int.
        ignore_label: int, the label of the pixels to leave out. Defaults to 255.

    Returns:
        int64 array (num_classes, num_classes); rows are truth. `isa_tf.metrics.scores` makes
        scores of it.

    Raises:
        ValueError: for a label or a prediction out of range, or a label of another size than
            its image; with the number of the batch.

    Example:

    >>> data = isa_tf.data.create("camvid", data_dir)
    >>> batches = isa_tf.data.eval_pipeline(data, "test")
    >>> matrix = confusion_matrix(predictor, batches, data.num_classes)
    >>> 0 <= isa_tf.metrics.scores(matrix, data.class_names)["miou"] <= 1
    True
    """
    matrix = np.zeros((num_classes, num_classes), np.int64)
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
        counts = np.bincount(truth * num_classes + guess, minlength=num_classes**2)
        matrix += counts.reshape(matrix.shape)
    return matrix


# === Views of an image ===


def view_size(size, scale=1.0, fit_size=None):
    """The size at which a protocol sees an image.

    Without `fit_size`, both sides times the scale, rounded, bound the view; with it, `fit_size`
    times the scale, rounded down. The view is the largest within the bound (long side in long,
    short in short) that keeps the image's proportions, rounded; so a long and narrow image can
    come out some pixels smaller than its sides times the scale.

    Args:
        size: (height, width) of the image.
        scale: float. Defaults to 1.
        fit_size: (long, short), or `None`. Defaults to `None`.

    Returns:
        (height, width), at least 1 each.

    Example:

    >>> view_size((1024, 2048), 0.75), view_size((1024, 2048), fit_size=(2049, 1025))
    ((768, 1536), (1025, 2049))

    Source: `Resize` with `keep_ratio` of mmcv 2.1; scales of `fit_size`: `MultiScaleFlipAug` of
    mmsegmentation 0.30, whose successor knows none.
    """
    if fit_size is None:
        bound = [int(n * scale + 0.5) for n in size]
    else:
        bound = [int(n * scale) for n in fit_size]
    factor = min(max(bound) / max(size), min(bound) / min(size))
    return tuple(max(int(n * factor + 0.5), 1) for n in size)


def resize_image(images, size):
    """Resizes images bilinearly, as OpenCV does to within one grey level.

    Pixel centres lie at half-integers, nothing is smoothed before shrinking, and the result is
    rounded.

    Args:
        images: uint8 (B, H, W, C).
        size: (height, width).

    Shapes:
        (B, H, W, C) -> (B, height, width, C), uint8.

    Example:

    >>> resize_image(np.array([0, 100], "uint8").reshape(1, 1, 2, 1), (1, 4))[0, 0, :, 0]
    <tf.Tensor: shape=(4,), dtype=uint8, numpy=array([  0,  25,  75, 100], dtype=uint8)>
    """
    if tuple(images.shape[1:3]) == tuple(size):
        return tf.convert_to_tensor(images)
    return tf.cast(tf.round(ops.resize_bilinear(images, size)), tf.uint8)


def resize_logits(logits, size, coordinates="half_pixel"):
    """Resizes logits bilinearly, without smoothing them before they shrink.

    Args:
        logits: (B, H, W, classes).
        size: (height, width).
        coordinates: where a pixel of the result lies in the logits, see `ops.resize_bilinear`:
            "half_pixel", "align_corners" or "asymmetric". Defaults to "half_pixel".

    Shapes:
        (B, H, W, classes) -> (B, height, width, classes), float32.

    Raises:
        ValueError: for unknown coordinates.

    Example:

    >>> logits = np.array([0.0, 1.0]).reshape(1, 1, 2, 1)
    >>> resize_logits(logits, (1, 3), "align_corners")[0, 0, :, 0]
    <tf.Tensor: shape=(3,), dtype=float32, numpy=array([0. , 0.5, 1. ], dtype=float32)>
    """
    ops.check_coordinates(coordinates)
    if tuple(logits.shape[1:3]) == tuple(size):
        return tf.cast(logits, tf.float32)
    return ops.resize_bilinear(logits, size, coordinates)


def window_starts(length, crop, stride):
    """Where the windows of a slide begin along one side: a list of ints.

    >>> window_starts(1024, 769, 513), window_starts(500, 769, 513)
    ([0, 255], [0])
    """
    last = max(length - crop, 0)
    steps = -(-last // stride)  # rounded up
    return [min(step * stride, last) for step in range(steps + 1)]


def slide(run, images, crop_size, stride):
    """The logits of images seen in windows, averaged where windows overlap.

    Args:
        run: function from uint8 images (N, h, w, 3) to logits (N, h, w, classes), float32. It is
            given windows of one size, some at once.
        images: uint8 (B, H, W, 3).
        crop_size: (height, width) of a window; an image that is smaller has windows as small.
        stride: (vertical, horizontal) step from window to window. The last window of a row or
            column is moved back inside the image.

    Shapes:
        (B, H, W, 3) -> (B, H, W, classes).

    Example:

    >>> slide(model, images, crop_size=(64, 64), stride=(43, 43)).shape
    TensorShape([1, 96, 128, 11])

    Source: `EncoderDecoder.slide_inference` of mmsegmentation 1.2.2.
    """
    batch, *size = images.shape[:3]
    crop = [min(n, c) for n, c in zip(size, crop_size, strict=True)]
    tops, lefts = map(window_starts, size, crop, stride)
    at_once = max(WINDOWS_AT_ONCE // batch, 1)
    total = 0.0
    for top in tops:
        strip = 0.0  # of the windows side by side
        rows = images[:, top : top + crop[0]]
        for begin in range(0, len(lefts), at_once):
            some = lefts[begin : begin + at_once]
            windows = tf.concat([rows[:, :, left : left + crop[1]] for left in some], axis=0)
            for left, logits in zip(some, tf.split(run(windows), len(some)), strict=True):
                strip += tf.pad(logits, [[0, 0], [0, 0], [left, size[1] - crop[1] - left], [0, 0]])
        total += tf.pad(strip, [[0, 0], [top, size[0] - crop[0] - top], [0, 0], [0, 0]])
    down, across = (
        np.sum([(np.arange(n) >= s) & (np.arange(n) < s + c) for s in starts], axis=0)
        for n, c, starts in zip(size, crop, (tops, lefts), strict=True)
    )
    return total / np.outer(down, across).astype(np.float32)[:, :, None]


def view_logits(run, images, protocol, coordinates="half_pixel"):
    """The logits of every view of a protocol, one after the other, at the size of the images.

    Args:
        run: function from uint8 images (N, h, w, 3) to logits (N, h, w, classes), float32.
        images: uint8 (B, H, W, 3).
        protocol: `Protocol`.
        coordinates: of the logits' pixels, see `resize_logits`. Defaults to "half_pixel".

    Returns:
        A generator of float32 tensors (B, H, W, classes): for each scale the view and, with
        `flip`, its mirror image, mirrored back.

    Raises:
        ValueError: for `flip_pairs` of classes that are not there.

    Example:

    >>> class_id, score = vote(view_logits(model, images, Protocol(scales=(0.75, 1), flip=True)))
    """
    height, width = images.shape[1:3]
    if protocol.pad_size is not None:
        down, across = (
            max(p - n, 0) for p, n in zip(protocol.pad_size, (height, width), strict=True)
        )
        pads = [[0, 0], [0, down], [0, across], [0, 0]]
        images = tf.pad(images, pads, constant_values=tf.constant(PAD_COLOR, images.dtype))
    size = tuple(images.shape[1:3])
    for scale in protocol.scales:
        resized = resize_image(images, view_size(size, scale, protocol.fit_size))
        for mirrored in (False, True)[: 1 + protocol.flip]:
            view = tf.reverse(resized, [2]) if mirrored else resized
            if protocol.mode == "slide":
                logits = slide(run, view, protocol.crop_size, protocol.stride)
            else:
                logits = run(view)
            if mirrored:
                order = protocol.mirrored_classes(logits.shape[-1])
                logits = tf.gather(tf.reverse(logits, [2]), order, axis=-1)
            yield resize_logits(logits, size, coordinates)[:, :height, :width]


def vote(views):
    """Class ids and probabilities by the mean softmax of several views.

    Args:
        views: iterable of logits (B, H, W, classes), read one at a time.

    Shapes:
        (B, H, W, classes) each -> class ids (B, H, W), uint8, and the mean probability of each,
        float32.

    Example:

    >>> mirrored = model(images[:, :, ::-1])[:, :, ::-1]
    >>> class_id, score = vote([model(images), mirrored])

    Source: `SegTTAModel` of mmsegmentation 1.2.2.
    """
    total, count = 0.0, 0
    for logits in views:
        total += tf.nn.softmax(tf.cast(logits, tf.float32))
        count += 1
    return tf.cast(tf.argmax(total, axis=-1), tf.uint8), tf.reduce_max(total, axis=-1) / count


# === What exporting shares ===


def classify(logits):
    """Class ids (B, H, W), uint8, and their probabilities, of logits (B, H, W, classes)."""
    class_id = tf.argmax(logits, axis=-1, output_type=tf.int32)
    score = tf.reduce_max(tf.nn.softmax(tf.cast(logits, tf.float32)), axis=-1)
    return tf.cast(class_id, tf.uint8), score


def describe(model):
    """num_classes, class_names and palette of a model, `None` where it has none, as a dict."""
    names = ("num_classes", "class_names", "palette")
    return {name: getattr(model, name, None) for name in names}


def fixed_size(model):
    """(height, width) that a model was built for; (None, None) for any."""
    shape = getattr(model, "input_shape", None)
    return tuple(shape[1:3]) if isinstance(shape, tuple) and len(shape) == 4 else (None, None)


# === Checks of a protocol ===


def _two_ints(name, value):
    """(int, int) of an int, of one or two of them in a sequence; `None` of `None`."""
    if value is None:
        return None
    try:
        ints = tuple(map(operator.index, (value,) if np.isscalar(value) else value))
    except TypeError:
        ints = ()
    if len(ints) not in (1, 2) or min(ints) < 1:
        raise ValueError(f"{name} must be an int above 0 or two of them, got {value!r}")
    return (ints * 2)[:2]


def _scales(value):
    try:
        scales = tuple(map(float, (value,) if np.isscalar(value) else value))
    except (TypeError, ValueError):
        scales = ()
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise ValueError(f"scales must be numbers above 0, at least one, got {value!r}")
    return scales


def _flip_pairs(value):
    try:
        pairs = tuple(tuple(map(operator.index, pair)) for pair in value)
    except TypeError:
        pairs = ((),)
    ids = [i for pair in pairs for i in pair]
    if any(len(pair) != 2 for pair in pairs) or len({*ids}) != len(ids) or min(ids, default=0) < 0:
        raise ValueError(
            "flip_pairs must be pairs of class ids, no id twice, such as ((14, 15), (16, 17)), "
            f"got {value!r}"
        )
    return pairs


def _check_fixed(protocol, size):
    """Refuses a protocol that needs other sizes than the only one that a model takes."""
    if protocol.mode == "slide":
        possible = protocol.crop_size == size
    else:
        resized = (protocol.fit_size, protocol.pad_size) != (None, None)
        possible = protocol.scales == (1.0,) and not resized
    if not possible:
        raise ValueError(
            f"the model takes images of {size[0]}x{size[1]} alone: it can see whole images at "
            f"scale 1, or slide with crop_size={size}, got {protocol}"
        )


# === The kinds of file ===


def _existing(path):
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    return path


def _metadata(path, text):
    try:
        metadata = json.loads(text)
        return {name: metadata[name] for name in describe(None)}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged {METADATA_FILE} ({error!r})") from error


def _from_saved_model(path):
    if not (path / "saved_model.pb").is_file():
        raise ValueError(f"{path}: no SavedModel, for it has no saved_model.pb")
    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as a SavedModel ({error})") from error
    signature = loaded.signatures.get(SIGNATURE)
    outputs = set() if signature is None else set(signature.structured_outputs)
    if outputs != {"class_id", "score"}:
        raise ValueError(f"{path}: not a SavedModel of isa_tf.export.export_saved_model")
    size = tuple(signature.structured_input_signature[1]["image"].shape[1:3])

    def run(images):
        results = signature(image=tf.constant(images))
        return results["class_id"], results["score"]

    run.loaded = loaded  # its variables live no longer than this object
    file = path / ASSETS / METADATA_FILE
    metadata = _metadata(path, file.read_text(encoding="utf-8")) if file.is_file() else {}
    return Predictor(run, image_size=None if None in size else size, **metadata)


def _from_litert(path, num_threads):
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ImportError(
            f"{path} needs LiteRT, which is not installed: pip install isa_tf[litert]"
        ) from error
    try:
        interpreter = Interpreter(str(path), num_threads=num_threads)
        interpreter.allocate_tensors()
        signature = interpreter.get_signature_list().get(SIGNATURE)
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as a LiteRT model ({error})") from error
    if signature is None or set(signature["outputs"]) != {"class_id", "score"}:
        raise ValueError(f"{path}: not a LiteRT model of isa_tf.export.export_litert")
    runner = interpreter.get_signature_runner(SIGNATURE)
    _, height, width, _ = runner.get_input_details()["image"]["shape"]

    def run(images):
        results = [runner(image=image[None]) for image in images]
        return tuple(
            np.concatenate([result[name] for result in results]) for name in ("class_id", "score")
        )

    metadata = {}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if METADATA_FILE in archive.namelist():
                metadata = _metadata(path, archive.read(METADATA_FILE))
    return Predictor(run, image_size=(int(height), int(width)), **metadata)


def _resize(maps, size, resample):
    pictures = (Image.fromarray(each).resize(size[::-1], resample) for each in maps)
    return np.stack([np.asarray(picture) for picture in pictures])
