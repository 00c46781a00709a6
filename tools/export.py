"""Exports a Keras model to SavedModel, LiteRT and other formats, and checks what was written.

    python -m tools.export --model=model.keras --format=saved_model,litert --image_size=360x480

Writes `saved_model`, `model.tflite`, ... into --output. Every file is loaded again and compared
with Keras on a test image; the command exits with 1 where they differ in more than one pixel
of a thousand, or one detection of an instance model, which needs an --image that it finds something
in. Each option goes to the formats that have it.
"""

import re
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

from isa_tf import formats
from isa_tf.data import DataError
from isa_tf.data.pictures import read_image
from isa_tf.inference import contract_of
from tools import plugins

# Flags of its own where it is imported, so that tools do not meet in one set.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()

LEAST_AGREEMENT = 0.999
_DEFAULT_SIZE = (256, 256)

_MODEL = flags.DEFINE_string("model", None, "The .keras file.", flag_values=FLAGS)
_FORMAT = flags.DEFINE_list(
    "format",
    ["saved_model", "litert"],
    f"What to write: {', '.join(formats.list_names())}, or what a plugin registers; several with "
    "commas.",
    flag_values=FLAGS,
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
    "HEIGHTxWIDTH, such as 360x480, or one number for both, of formats whose models are made for "
    "one size, such as litert.",
    flag_values=FLAGS,
)
_WEIGHTS_DTYPE = flags.DEFINE_enum(
    "weights_dtype",
    None,
    ["float32", "float16"],
    "How weights are kept, by formats with a choice, such as keras.",
    flag_values=FLAGS,
)
_JIT_COMPILE = flags.DEFINE_bool(
    "jit_compile",
    None,
    "Whether what layers let XLA compile stays compiled, in formats with a choice, such as "
    "saved_model.",
    flag_values=FLAGS,
)
_IMAGE = flags.DEFINE_string(
    "image", None, "An image to compare on; by default, a made-up one.", flag_values=FLAGS
)
_PLUGINS = plugins.define(FLAGS)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    if _MODEL.value is None:
        raise app.UsageError("Which model? Give --model=FILE.keras")
    plugins.load(_PLUGINS)
    size = _parse_size(_IMAGE_SIZE.value)
    given = {"image_size": size}
    given.update({flag.name: flag.value for flag in (_WEIGHTS_DTYPE, _JIT_COMPILE)})
    given = {name: value for name, value in given.items() if value is not None}
    try:
        chosen = [formats.create(name) for name in _FORMAT.value]
        options = [_options(format, given) for format in chosen]
        model = formats.load_model(_MODEL.value)
        image = _test_image(_IMAGE.value, size)
    except (ValueError, FileNotFoundError) as error:
        raise app.UsageError(str(error)) from error
    file = Path(_MODEL.value)
    output = Path(_OUTPUT.value) if _OUTPUT.value else file.with_name(f"{file.stem}_export")

    verdicts = []
    try:
        decides = contract_of(model).decides
        for format, some in zip(chosen, options, strict=True):
            path = format.export(model, output / format.file_name, **some)
            verdicts.append(_tell(path, format.verify(path, model, image), decides))
    except (ValueError, ImportError, RuntimeError) as error:
        print(f"FAULT {error}")
        return 1
    return 0 if all(verdicts) else 1


def _options(format, given):
    """Those of the given options that a format has; ValueError where one that it needs is not."""
    for name, needed in format.options.items():
        if needed and name not in given:
            raise ValueError(f"The format {format.name!r} needs --{name}")
    return {name: value for name, value in given.items() if name in format.options}


def _parse_size(text):
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)(?:[xX,]([1-9]\d*))?", text)
    if match is None:
        raise app.UsageError(f"--image_size is HEIGHTxWIDTH, such as 360x480, not {text!r}")
    return int(match[1]), int(match[2] or match[1])


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


def _tell(path, found, decides):
    """Prints how far what was written agrees with Keras; gives whether that is enough."""
    enough = found.agreement >= LEAST_AGREEMENT
    verdict = "" if enough else "  TOO FEW"
    if found.kinds < 2:
        proves = ("nothing found, which proves nothing", "one class alone, which proves little")
        verdict += f"  ({proves[found.kinds]}: give an --image)"
    # Rounded down: 100 % means all.
    print(
        f"{path}: {found.bytes / 1e6:.1f} MB; {np.floor(1e5 * found.agreement) / 1e3:.3f} % of "
        f"{found.decisions} {decides} agree with Keras, scores to {found.score_difference:.1e}"
        f"{verdict}"
    )
    return enough


if __name__ == "__main__":
    app.run(main)
