"""Predicting with a model, whatever it is kept in: Keras, SavedModel or LiteRT."""

import json
import zipfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from isa_tf.data.base import IGNORE_LABEL

# What an exported model knows about its classes: a file of this name, inside it.
METADATA_FILE = "isa_tf.json"
ASSETS = "assets.extra"
SIGNATURE = "serving_default"
MAX_CLASSES = 256  # as many as fit class ids of one byte


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

    def __init__(self, run, num_classes=None, class_names=None, palette=None, image_size=None):
        self._run = run
        self.num_classes = num_classes
        self.class_names = None if class_names is None else tuple(class_names)
        self.palette = None if palette is None else tuple(map(tuple, palette))
        self.image_size = None if image_size is None else tuple(image_size)

    @classmethod
    def from_model(cls, model):
        """A predictor over a Keras model from RGB 0..255 to logits.

        It uses the weights that the model has at each call, so it can follow a training.
        """
        size = fixed_size(model)

        @tf.function(input_signature=[tf.TensorSpec((None, *size, 3), tf.uint8)])
        def run(images):
            return classify(model(tf.cast(images, tf.float32), training=False))

        return cls(run, image_size=None if None in size else size, **describe(model))

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


def load_predictor(path, num_threads=None):
    """Loads a predictor from a file, whichever of the three kinds it is.

    Args:
        path: a `.keras` file, the folder of a SavedModel from `export.export_saved_model`, or
            a `.tflite` file from `export.export_litert`. The last has a fixed image size:
            images of another are resized to it, and the result is resized back.
        num_threads: int, of LiteRT; `None` for its own choice. Defaults to `None`.

    Returns:
        `Predictor`.

    Raises:
        FileNotFoundError: where there is nothing at the path.
        ValueError: for a file of another kind, one that cannot be read, or a model that was not
            exported by this package; with the path.
        ImportError: for a `.tflite` file where LiteRT is not installed.

    Example:

    >>> predictor = load_predictor("model.tflite")
    >>> class_id, score = predictor(image[None])
    >>> predictor.class_names[class_id[0, 40, 60]]
    'road'
    """
    path = _existing(path)
    if path.is_dir():
        return _from_saved_model(path)
    if path.suffix == ".keras":
        return Predictor.from_model(load_model(path))
    if path.suffix == ".tflite":
        return _from_litert(path, num_threads)
    raise ValueError(
        f"{path}: not a model; known are .keras files, SavedModel folders and .tflite files"
    )


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
    >>> isa_tf.metrics.scores(matrix, data.class_names)["miou"]
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
