"""Predicts images and videos with a model of any format: .keras, SavedModel folder, .tflite, ...

    python -m tools.predict --model=model.keras --images=photos --output=predicted
    python -m tools.predict --model=model.tflite --images='photos/**/*.jpg' --output=predicted
    python -m tools.predict --model=model.keras --images=film.mp4 --output=predicted --every=5
    python -m tools.predict --model=model.keras --camera=0 --output=predicted

What is written depends on what the model is for.

A segmentation model: for each image NAME_overlay.png, the classes laid over the image with a legend
of those found, and NAME_label.png, the class ids as grey values, which `FolderDataset` reads as a
label (16 bits deep where the model has more than 256 classes). Class 0, in many data sets what is
none of the others, stays as it is in the photo; --clear names others, and --clear= none.

A model that finds instances: for each image NAME_overlay.png, masks, boxes, names and scores over
the image (enlarged where it is too small for letters), and for all of them one detections.json, a
list in COCO's results format: image_id, category_id, bbox, score, segmentation (run lengths), and
file_name. The image_id is the number that a file is named by ("000000000139.jpg" is image 139), of
other names the file's name; the category_id is the data set's own where the model knows it, else
the class id + 1. --score_threshold leaves out what the model is less sure of.

--json=shares adds NAME.json for each image: classes with their shares, or instances; --json=masks
has their masks too, as COCO's run lengths.

Of a video: NAME_overlay.mp4, of its size and with its times of frames; --legend puts the names of
all classes underneath, so it is higher then. --json writes NAME.jsonl, a line for each frame,
--frame_labels NAME_label/000000.png, ..., the class ids. A camera is a video that ends by Ctrl-C or
--frames.

NAME is the file's, with the folders below the part of a pattern before its first "*". An image that
cannot be read is named and left out, of a video that ends early what came before is kept; both
stand in failures.json, path and reason, and the command then exits with 1.

--runner=NAME predicts a folder of images that is too large for one machine: docs/predict.md.
"""

import glob
import time
from pathlib import Path

from absl import app, flags

from isa_tf import load_predictor
from isa_tf.data import DataError
from isa_tf.data.listing import list_images
from isa_tf.data.pictures import read_image
from isa_tf.data.videos import Camera, Video
from isa_tf.inference import warm_up
from isa_tf.training.callbacks import Progress
from tools import plugins, program
from tools.predictions import (
    Options,
    Source,
    is_video,
    outputs,
    predicted,
    replaced,
    unlike,
    write_failures,
)

__all__ = ["find_images", "main"]

# Flags of its own where it is imported, so that tools do not meet in one set.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()


_MODEL = flags.DEFINE_string(
    "model",
    None,
    "A .keras, .tflite or .onnx file, a folder of SavedModel or OpenVINO, ...",
    flag_values=FLAGS,
)
_IMAGES = flags.DEFINE_multi_string(
    "images",
    None,
    "An image, a video, a folder of images, or a pattern in quotes, such as 'photos/**/*.jpg'",
    flag_values=FLAGS,
)
_CAMERA = flags.DEFINE_integer(
    "camera", None, "The number of a camera to predict, until Ctrl-C.", 0, flag_values=FLAGS
)
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write into.", flag_values=FLAGS)
_OPACITY = flags.DEFINE_float(
    "opacity",
    None,
    "Opacity of the overlay's colours; by default 0.5 of classes, 0.4 of instances.",
    0.0,
    1.0,
    flag_values=FLAGS,
)
_CLEAR = flags.DEFINE_list(
    "clear",
    ["0"],
    "Classes, ids or names, to leave out of the overlay of a segmentation model.",
    flag_values=FLAGS,
)
_LEGEND = flags.DEFINE_bool(
    "legend",
    None,
    "Whether the overlay names the classes, or the instances; by default all but a video's does, "
    "whose legend of classes makes it higher.",
    flag_values=FLAGS,
)
_SCORE_THRESHOLD = flags.DEFINE_float(
    "score_threshold",
    None,
    "The least score of instances to draw and to write; by default, 0.5 of those drawn, and all "
    "are written.",
    0.0,
    1.0,
    flag_values=FLAGS,
)
_JSON = flags.DEFINE_enum(
    "json",
    None,
    ["shares", "masks"],
    "Write NAME.json too: classes and their shares, or instances; with masks, as run lengths.",
    flag_values=FLAGS,
)
_FRAME_LABELS = flags.DEFINE_bool(
    "frame_labels", False, "Of a video, write the class ids of each frame.", flag_values=FLAGS
)
_EVERY = flags.DEFINE_integer(
    "every", 1, "Of a video, predict every n-th frame, and show these alone.", 1, flag_values=FLAGS
)
_FRAMES = flags.DEFINE_integer(
    "frames", None, "Of a video, the most frames to predict.", 1, flag_values=FLAGS
)
_RUNNER = flags.DEFINE_string(
    "runner",
    None,
    "Predict images by an Apache Beam pipeline (pip install '.[beam]') on this runner, such as "
    "DirectRunner; the same command goes on where it was stopped.",
    flag_values=FLAGS,
)
_BEAM_OPTIONS = flags.DEFINE_list(
    "beam_options",
    [],
    "More options of the pipeline, such as --beam_options=--direct_num_workers=4.",
    flag_values=FLAGS,
)
_PLUGINS = plugins.define(FLAGS)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(
            f"Unexpected arguments: {' '.join(argv[1:])} (a pattern of --images needs quotes)"
        )
    for flag in (_MODEL, _OUTPUT):
        if not flag.value:
            raise app.UsageError(f"Give --{flag.name}")
    if not _IMAGES.value and _CAMERA.value is None:
        raise app.UsageError("Give --images, or --camera")
    plugins.load(_PLUGINS)
    names = Options._fields
    options = Options(**{name: FLAGS[name].value for name in names})
    try:
        found = find_sources(_IMAGES.value or [])
        camera = None if _CAMERA.value is None else Camera(_CAMERA.value)
        predictor = load_predictor(_MODEL.value)
        writer = outputs[predictor.task](predictor, _OUTPUT.value, options)
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise app.UsageError(str(error)) from error
    sources, faults = unlike(found, writer.lists if options.json else ())
    images = [source for source in sources if not is_video(source.path)]
    videos = [source for source in sources if is_video(source.path)]
    if lost := replaced(writer, sources):
        raise app.UsageError(
            f"--output={writer.folder}: {lost} is to be predicted, and what is found in another "
            "would replace it; choose another folder"
        )
    if _RUNNER.value is not None and (videos or camera is not None):
        raise app.UsageError("--runner is for images, not for videos and cameras")

    try:
        writer.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise app.UsageError(f"--output: the folder cannot be made ({error})") from error
    for fault in faults:
        print(f"FAULT {fault}")
    predict_images = _predict_images if _RUNNER.value is None else _predict_on_beam
    if _RUNNER.value is None:
        warm_up(predictor)  # not to be counted among the times below
    wrong = []
    if images:
        written, wrong = predict_images(predictor, writer, images)
        of = len(images) + sum(not is_video(fault.path) for fault in faults)
        print(f"{written} of {of} images {writer.did} into {writer.folder}")
    for source in videos:
        try:
            wrong += _predict_video(writer, source, Video(source.path))
        except DataError as error:
            print(f"FAULT {error}")
            wrong.append(error)
        except ImportError as error:
            raise app.UsageError(str(error)) from error
    if camera is not None:
        wrong += _predict_video(writer, Source(camera.path, camera.path.name), camera)
    write_failures(writer.folder, sorted([*faults, *wrong], key=lambda fault: fault.path))
    return 1 if faults or wrong else 0


def _predict_images(predictor, writer, sources):
    """Writes what is found in images: how many, and the faults of the others."""
    rows, faults = [], []
    for source in sources:
        try:
            image = read_image(source.path)
            start = time.perf_counter()
            result = predicted(predictor, source.path, image)
            seconds = time.perf_counter() - start
        except DataError as error:
            print(f"FAULT {error}")
            faults.append(error)
            continue
        print(f"{source.path}: {1000 * seconds:.0f} ms; {writer.write(source, image, result)}")
        rows += writer.rows(source, result)
    writer.finish(rows)
    return len(sources) - len(faults), faults


def _predict_on_beam(predictor, writer, sources):
    """The same by a Beam pipeline."""
    try:
        from tools import predict_beam
    except ImportError as error:
        raise app.UsageError(
            f"--runner needs Apache Beam: pip install '.[beam]' ({error})"
        ) from error
    options = [f"--runner={_RUNNER.value}", *_BEAM_OPTIONS.value]
    before, written, faults = predict_beam.predict(
        predictor, _MODEL.value, writer, sources, options, _PLUGINS.value
    )
    if before:
        print(f"{before} images were done before")
    for fault in faults:
        print(f"FAULT {fault}")
    return written, faults


def _predict_video(writer, source, video):
    """Writes what is found in a video; gives the fault that it ended with, in a list."""
    start, progress = time.perf_counter(), Progress(0)

    def say(done):
        if (now := time.monotonic()) - progress.last >= progress.every:
            progress.last = now
            progress.say(f"{source.path}: {done:,} frames")

    count, fault = writer.write_video(source, video, _EVERY.value, _FRAMES.value, say)
    seconds = time.perf_counter() - start
    if count:
        each = f"{1000 * seconds / count:.0f} ms each"
        print(f"{source.path}: {count} frames {writer.did} into {writer.folder}, {each}")
    if fault is not None:
        print(f"FAULT {fault}")
    return [] if fault is None else [fault]


def find_images(images):
    """The files that a path or pattern names, of a folder its images; ValueError for none."""
    return [source.path for source in _found(images)]


def find_sources(given):
    """`Source`s of paths and patterns, each file once; ValueError for one that names none."""
    return list({source.path: source for images in given for source in _found(images)}.values())


def _found(images):
    path = Path(images)
    if not images:  # as of a variable that is not set: it is not the folder that one is in
        raise ValueError("--images: give a path, or a pattern")
    if path.is_file():
        return [Source(path, path.stem)]
    if path.is_dir():
        return [Source(p, p.stem) for p in list_images(path)]
    parts = Path(images).parts
    base = Path(*parts[: next((i for i, p in enumerate(parts) if glob.has_magic(p)), 0)])
    found = [Path(p) for p in glob.glob(images, recursive=True) if Path(p).is_file()]
    if not found:
        raise ValueError(f"--images={images}: no file is there, or matches")
    return [Source(p, p.relative_to(base).with_suffix("").as_posix()) for p in sorted(found)]


if __name__ == "__main__":
    program.run(main)
