"""Exports a Keras model to SavedModel, LiteRT, ONNX, OpenVINO and other formats, and checks them.

    python -m tools.export --model=model.keras --format=saved_model,litert --image_size=360x480
    python -m tools.export --model=model.keras --format=litert --image_size=360x480 \\
        --image_size=480x360
    python -m tools.export --model=model.keras --format=tf_serving --serving=camvid
    python -m tools.export --model=model.keras --format=litert_int8,onnx,openvino \\
        --image_size=360x480 --calibration=my_data/train/images \\
        --images=my_data/val/images --labels=my_data/val/labels

Writes `saved_model`, `model.tflite`, ... into --output, of tf_serving the next version in a folder
of the name --serving. Every file is loaded again and compared with Keras on a test image: --image,
or else the first of --images or --calibration, or a made-up one. The command exits with 1 where
they differ in more decisions than the format may: one pixel of a thousand (three of a hundred of
litert_int8, and of a SavedModel of a model in half precision), or one detection of an instance
model, which needs an --image that it finds something in. Each option goes to the formats that have
it. At the end a table tells what each file takes: its size, its agreement, the time of a prediction
of the test image, and, where there are --labels, the mIoU of --images.
"""

from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

from isa_tf import formats
from isa_tf.data.listing import list_images, match_files
from isa_tf.data.pictures import read_image, read_label
from isa_tf.formats.base import seconds_of
from isa_tf.inference import confusion_matrix, contract_of, predictor_of_model
from isa_tf.metrics import scores
from tools import plugins, program, tables, typed

# Flags of its own where it is imported, so that tools do not meet in one set.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()

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
_IMAGE_SIZE = flags.DEFINE_multi_string(
    "image_size",
    None,
    "HEIGHTxWIDTH, such as 360x480, or one number for both, of formats whose models are made for "
    "one size, such as litert, or for several, each by a flag; of tf_serving, to warm up with",
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
_MINIMAL_FILTERING = flags.DEFINE_integer(
    "minimal_filtering",
    None,
    "From how many channels on 3x3 convolutions are computed by minimal filtering, in formats with "
    "a choice, such as saved_model: quicker, and the file is larger; 0 for never.",
    0,
    flag_values=FLAGS,
)
_SERVING = flags.DEFINE_string(
    "serving",
    "model",
    "What TensorFlow Serving calls the model, of tf_serving.",
    flag_values=FLAGS,
)
_CALIBRATION = flags.DEFINE_string(
    "calibration",
    None,
    "A folder of images such as the model is to see, of formats that quantise by what they make of "
    "them, such as litert_int8.",
    flag_values=FLAGS,
)
_IMAGE = flags.DEFINE_string(
    "image",
    None,
    "An image to compare on; by default the first of --images or --calibration, or a made-up one.",
    flag_values=FLAGS,
)
_IMAGES = flags.DEFINE_string(
    "images", None, "A folder of images to score what was written on.", flag_values=FLAGS
)
_LABELS = flags.DEFINE_string(
    "labels", None, "The folder of the labels of --images, PNGs of class ids.", flag_values=FLAGS
)
_PLUGINS = plugins.define(FLAGS)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    if _MODEL.value is None:
        raise app.UsageError("Which model? Give --model=FILE.keras")
    if not _FORMAT.value:
        raise app.UsageError(f"--format is one of {', '.join(formats.list_names())}, or several")
    if not _SERVING.value or Path(_SERVING.value).name != _SERVING.value:
        raise app.UsageError(f"--serving is a name, without folders, not {_SERVING.value!r}")
    plugins.load(_PLUGINS)
    sizes = [_parse_size(text) for text in _IMAGE_SIZE.value or ()]
    size = sizes[0] if sizes else None  # that images are compared at
    given = {"image_size": sizes if len(sizes) > 1 else size}
    flags_of_formats = (_WEIGHTS_DTYPE, _JIT_COMPILE, _CALIBRATION)
    given.update({flag.name: flag.value for flag in flags_of_formats})
    given = {name: value for name, value in given.items() if value is not None}
    if _MINIMAL_FILTERING.value is not None:
        given["minimal_filtering"] = _MINIMAL_FILTERING.value or None
    try:
        chosen = [formats.create(name) for name in _FORMAT.value]
        options = [_options(format, given) for format in chosen]
        model = formats.load_model(_MODEL.value)
        pairs = _pairs(_IMAGES.value, _LABELS.value)
        image = _test_image(_photo(pairs), size)
        contract = contract_of(model)
        if pairs and contract.task != "segmentation":
            raise ValueError(f"--labels are of class ids, which a model of {contract.task} has not")
    except (ValueError, FileNotFoundError) as error:
        raise app.UsageError(str(error)) from error
    file = Path(_MODEL.value)
    output = Path(_OUTPUT.value) if _OUTPUT.value else file.with_name(f"{file.stem}_export")

    failed, rows = 0, []
    for format, some in zip(chosen, options, strict=True):
        try:
            name = _SERVING.value if format.name == "tf_serving" else format.file_name
            path = format.export(model, output / name, **some)
            found = format.verify(path, model, image)
            failed += not _tell(path, found, contract.decides, format.least_for(model))
            cells = [f"{found.bytes / 1e6:.1f}", _percent(found.agreement)]
            miou = (
                _score(format.load(path, protocol=contract.served_protocol), pairs) if pairs else []
            )
            rows.append([format.name, *cells, _ms(found.seconds), *miou])
        except (ValueError, ImportError, RuntimeError, OSError) as error:
            print(f"FAULT {error}")
            failed += 1
    if rows:
        predictor = predictor_of_model(model, contract.served_protocol)
        predictor(image)  # the first call makes the graph ready
        seconds = seconds_of(lambda: predictor(image))
        miou = _score(predictor, pairs) if pairs else []
        rows.insert(0, ["Keras", "", "", _ms(seconds), *miou])
        heads = ["format", "MB", "agreement", "time", *(["mIoU"] if pairs else [])]
        print(tables.aligned([heads, *rows]))
    return 1 if failed else 0


def _pairs(images, labels):
    """(image, label) paths of two folders; none where neither is given."""
    if (images is None) != (labels is None):
        raise ValueError("Give --images and --labels together")
    if images is None:
        return []
    faults = []
    pairs = [pair[1:] for pair in match_files(Path(images), Path(labels), faults)]
    if faults:
        raise faults[0]
    return pairs


def _score(predictor, pairs):
    """A cell with the mIoU of a predictor on (image, label) paths."""
    count = predictor.num_classes
    batches = ((read_image(image)[None], read_label(label, count)[None]) for image, label in pairs)
    miou = scores(confusion_matrix(predictor, batches, count))["miou"]
    return ["-" if miou is None else f"{miou:.4f}"]


def _ms(seconds):
    return f"{1000 * seconds:.1f} ms"


def _percent(share):
    return f"{np.floor(1e5 * share) / 1e3:.3f} %"  # rounded down: 100 % means all


def _options(format, given):
    """Those of the given options that a format has; ValueError where one that it needs is not."""
    for name, needed in format.options.items():
        if needed and name not in given:
            raise ValueError(f"The format {format.name!r} needs --{name}")
    return {name: value for name, value in given.items() if name in format.options}


def _parse_size(text):
    try:
        return typed.parse_size(text.replace(",", "x").lower())
    except ValueError as error:
        raise app.UsageError(f"--image_size: {error}") from None


def _photo(pairs):
    """The path of the image to compare on, of those that are given for it or for something else."""
    if _IMAGE.value is not None:
        return _IMAGE.value
    if pairs:
        return pairs[0][0]
    if _CALIBRATION.value is not None:
        return list_images(_CALIBRATION.value)[0]
    return None


def _test_image(path, size):
    """The image (1, H, W, 3) to compare on: a photo, or smooth blotches of all colours."""
    if path is None:
        rng = np.random.default_rng(0)
        size = size or _DEFAULT_SIZE
        coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
        return np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC))[None]
    image = read_image(path)
    if size not in (None, image.shape[:2]):
        image = np.asarray(Image.fromarray(image).resize(size[::-1]))
    return image[None]


def _tell(path, found, decides, least):
    """Prints how far what was written agrees with Keras; gives whether that is enough."""
    enough = found.agreement >= least
    verdict = "" if enough else "  TOO FEW"
    if found.kinds < 2:
        proves = ("nothing found, which proves nothing", "one class alone, which proves little")
        verdict += f"  ({proves[found.kinds]}: give an --image)"
    print(
        f"{path}: {found.bytes / 1e6:.1f} MB; {_percent(found.agreement)} of "
        f"{found.decisions} {decides} agree with Keras, scores to {found.score_difference:.1e}"
        f"{verdict}"
    )
    return enough


if __name__ == "__main__":
    program.run(main)
