"""Makes a .keras file of a published checkpoint: the architecture is told from its tensors.

    python -m tools.convert --checkpoint=isanet_r50-d8_....pth --output=model.keras
    python -m tools.convert --source=torchvision --checkpoint=resnet50.pth --output=backbone.keras
    python -m tools.convert --checkpoint=FILE --output=mine.keras --num_classes=7

What tensors cannot tell comes from --preset or from the flags behind it, and is kept in the model.
A file that would run something, is cut short or does not fit is refused, and nothing is written.
"""

import ast
from pathlib import Path

from absl import app, flags

from isa_tf.files import save_model
from isa_tf.models import convert, list_presets
from isa_tf.models.presets import convert_published, find_preset
from isa_tf.weights import CheckpointError, list_sources
from tools import program

# Flags of its own where it is imported, so that tools do not meet in one set.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()

_SOURCES = (*list_sources(), *convert.BACKBONES)

_SOURCE = flags.DEFINE_enum(
    "source",
    None,
    _SOURCES,
    "Whose checkpoint it is; by default told from the names of its tensors.",
    flag_values=FLAGS,
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A .pth, .pkl, .pdparams, .safetensors or .npz file.", flag_values=FLAGS
)
_OUTPUT = flags.DEFINE_string("output", None, "The .keras file to write.", flag_values=FLAGS)
_PRESET = flags.DEFINE_string(
    "preset",
    None,
    "The published model whose settings (coordinates, test protocol, classes, colours) it has; "
    "by default told from the file's name.",
    flag_values=FLAGS,
)
_NUM_CLASSES = flags.DEFINE_integer(
    "num_classes",
    None,
    "For other classes than the checkpoint's: all but the classifiers is kept.",
    1,
    flag_values=FLAGS,
)
_ALIGN_CORNERS = flags.DEFINE_bool(
    "align_corners", None, "How logits are resized to the image.", flag_values=FLAGS
)
_PARTITION = flags.DEFINE_string(
    "partition",
    None,
    "Where it is not 8: such as 4, or [(8,8),(4,4)] of several partitions.",
    flag_values=FLAGS,
)
_MASK_PADDING = flags.DEFINE_bool(
    "mask_padding",
    None,
    "Whether attention leaves padding out; published weights were trained with it.",
    flag_values=FLAGS,
)
_OUTPUT_STRIDE = flags.DEFINE_integer(
    "output_stride", None, "Output stride of the backbone: 8, 16 or 32.", flag_values=FLAGS
)
_MEAN = flags.DEFINE_list("mean", None, "RGB, 0..255, taken from the image.", flag_values=FLAGS)
_STD = flags.DEFINE_list("std", None, "RGB, which the image is divided by then.", flag_values=FLAGS)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    for flag in (_CHECKPOINT, _OUTPUT):
        if flag.value is None:
            raise app.UsageError(f"Give --{flag.name}")
    output = Path(_OUTPUT.value)
    if output.suffix != ".keras":
        raise app.UsageError(f"--output is a .keras file, not {output}")
    try:
        model, source, report = _convert(Path(_CHECKPOINT.value))
    except (CheckpointError, ValueError, OSError) as error:
        print(f"FAULT {error}")
        return 1
    save_model(model, output)
    print(f"{output}: {model.name} from {source}, {model.count_params():,} parameters")
    _list("tensors left over", report.left_over)
    _list("weights left as initialised", report.kept)
    return 0


def _convert(path):
    preset = _preset(path)
    source = _SOURCE.value or (preset and preset.source)
    if preset and source == preset.source and preset.task != "segmentation":
        return convert_published(preset, path, _NUM_CLASSES.value, **_backbone_flags())
    arguments = dict(preset.arguments) if preset else {}
    if preset and _NUM_CLASSES.value in (None, len(preset.labels.class_names)):
        arguments.update(preset.labels._asdict())
    arguments.update(_backbone_flags())
    if _ALIGN_CORNERS.value is not None:
        arguments["coordinates"] = "align_corners" if _ALIGN_CORNERS.value else "half_pixel"
    context_options = {}
    if _PARTITION.value is not None:
        try:
            context_options["partition"] = ast.literal_eval(_PARTITION.value)
        except (ValueError, SyntaxError):
            raise ValueError(f"--partition={_PARTITION.value} is no partition") from None
    if _MASK_PADDING.value is not None:
        context_options["mask_padding"] = _MASK_PADDING.value
    if context_options:
        arguments["context_options"] = context_options
    return convert.from_checkpoint(path, source, _NUM_CLASSES.value, **arguments)


def _backbone_flags():
    """The argument "backbone" that the flags tell of, if they do."""
    backbone = {}
    if _OUTPUT_STRIDE.value is not None:
        backbone["output_stride"] = _OUTPUT_STRIDE.value
    for flag in (_MEAN, _STD):
        if flag.value is not None:
            backbone[flag.name] = _three_floats(flag)
    return {"backbone": backbone} if backbone else {}


def _preset(path):
    """The preset that is asked for, or that the file is of by its name."""
    if _PRESET.value is not None:
        return find_preset(_PRESET.value)
    return next((preset for preset in list_presets() if preset.file_name == path.name), None)


def _three_floats(flag):
    try:
        red, green, blue = map(float, flag.value)
    except ValueError:
        raise ValueError(f"--{flag.name} is three numbers, not {flag.value}") from None
    return red, green, blue


def _list(title, names):
    print(f"{title}: {', '.join(names) if names else 'none'}")


if __name__ == "__main__":
    program.run(main)
