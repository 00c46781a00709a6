"""Exports a Keras model to SavedModel and LiteRT, and checks what was written.

    python -m tools.export --model=model.keras --format=saved_model,litert --image_size=360x480

Writes `saved_model` and `model.tflite` into --output. Every file is loaded again and compared
with Keras on a test image; the command exits with 1 where they differ in more than one pixel
of a thousand.
"""

import re
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

from isa_tf import export
from isa_tf.data import DataError
from isa_tf.data.folder import read_image
from isa_tf.inference import Predictor, load_model, load_predictor

# Flags of its own where it is imported, so that tools do not meet in one set.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()

FORMATS = ("saved_model", "litert")
LEAST_AGREEMENT = 0.999
_DEFAULT_SIZE = (256, 256)

_MODEL = flags.DEFINE_string("model", None, "The .keras file.", flag_values=FLAGS)
_FORMAT = flags.DEFINE_list(
    "format", list(FORMATS), f"What to write: {' or '.join(FORMATS)} or both.", flag_values=FLAGS
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "The folder to write into; by default, one named after the model, beside it.",
    flag_values=FLAGS,
)
_IMAGE_SIZE = flags.DEFINE_string(
    "image_size",
    None,
    "HEIGHTxWIDTH, such as 360x480, that LiteRT models are made for.",
    flag_values=FLAGS,
)
_IMAGE = flags.DEFINE_string(
    "image", None, "An image to compare on; by default, a made-up one.", flag_values=FLAGS
)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    if _MODEL.value is None:
        raise app.UsageError("Which model? Give --model=FILE.keras")
    unknown = [name for name in _FORMAT.value if name not in FORMATS]
    if unknown or not _FORMAT.value:
        raise app.UsageError(
            f"Unknown --format {', '.join(map(repr, unknown)) or repr('')}; "
            f"known: {', '.join(FORMATS)}"
        )
    size = _parse_size(_IMAGE_SIZE.value)
    if size is None and "litert" in _FORMAT.value:
        raise app.UsageError("A LiteRT model is of one size: give --image_size=HEIGHTxWIDTH")
    try:
        model = load_model(_MODEL.value)
        image = _test_image(_IMAGE.value, size)
    except (ValueError, FileNotFoundError) as error:
        raise app.UsageError(str(error)) from error
    file = Path(_MODEL.value)
    output = Path(_OUTPUT.value) if _OUTPUT.value else file.with_name(f"{file.stem}_export")

    agreements = []
    try:
        if "saved_model" in _FORMAT.value:
            path = export.export_saved_model(model, output / "saved_model")
            agreements.append(_verify(path, model, image))
        if "litert" in _FORMAT.value:
            path = export.export_litert(model, output / "model.tflite", size)
            agreements.append(_verify(path, export.float32_clone(model), image))
    except (ValueError, ImportError, RuntimeError) as error:
        print(f"FAULT {error}")
        return 1
    return 0 if min(agreements) >= LEAST_AGREEMENT else 1


def _parse_size(text):
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)[xX,]([1-9]\d*)", text)
    if match is None:
        raise app.UsageError(f"--image_size is HEIGHTxWIDTH, such as 360x480, not {text!r}")
    return int(match[1]), int(match[2])


def _test_image(path, size):
    """The image (1, H, W, 3) to compare on: a photo, or smooth blotches of all colours."""
    if path is None:
        rng = np.random.default_rng(0)
        size = size or _DEFAULT_SIZE
        coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
        return np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC))[None]
    try:
        image = read_image(path)
    except DataError as error:
        raise ValueError(f"--image: {error}") from error
    if size not in (None, image.shape[:2]):
        image = np.asarray(Image.fromarray(image).resize(size[::-1]))
    return image[None]


def _verify(path, model, image):
    """The share of pixels where a written model gives the class that Keras gives; printed."""
    expected, score = Predictor.from_model(model)(image)
    class_id, got = load_predictor(path)(image)
    agreement = float((class_id == expected).mean())
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    size = sum(file.stat().st_size for file in files) / 1e6
    if not np.isfinite(score).all() or not np.isfinite(got).all():
        agreement = 0.0  # argmax of NaN agrees with itself
    verdict = "" if agreement >= LEAST_AGREEMENT else "  TOO FEW"
    if (expected == expected.flat[0]).all():
        verdict += "  (one class alone, which proves little: give an --image)"
    # Rounded down: 100 % means all.
    print(
        f"{path}: {size:.1f} MB; {np.floor(1e5 * agreement) / 1e3:.3f} % of {class_id.size} "
        f"pixels agree with Keras, scores to {np.abs(got - score).max():.1e}{verdict}"
    )
    return agreement


if __name__ == "__main__":
    app.run(main)
