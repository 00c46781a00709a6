"""What `tools.predict` writes of what a predictor found: of images, of videos, by task.

There are no flags here, so that whatever predicts can write the same files: see `Options`.
"""

import contextlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from isa_tf import files, runtime
from isa_tf.data import DataError
from isa_tf.data.base import voc_palette
from isa_tf.data.videos import VIDEO_SUFFIXES, VideoWriter, some_frames
from isa_tf.inference import class_findings, findings
from isa_tf.names import Registry, class_name, id_of_class
from isa_tf.visualize import draw_classes, draw_instances, save_picture, with_legend

DETECTIONS = "detections.json"
FAILURES = "failures.json"
_MOST_CLASSES = 2**16  # that a PNG holds

# What writes the results of a task's predictor.
outputs = Registry("task")


class Options(NamedTuple):
    """How results are drawn and what is written, see the flags of `tools.predict`."""

    opacity: float | None = None
    clear: tuple[str, ...] = ("0",)
    legend: bool | None = None
    score_threshold: float | None = None
    json: str | None = None
    frame_labels: bool = False


class Source(NamedTuple):
    """An image or a video: where it lies, and what its results are called, without a suffix."""

    path: Path
    name: str

    @property
    def file_name(self):
        """What it is called in lists of results: its name, with the suffix of its file."""
        return self.name + self.path.suffix


def is_video(path):
    """Whether a file is a video, by its ending."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def unlike(sources, lists=()):
    """Sources whose results are files of their own, and a `DataError` for each of the others.

    Args:
        sources: list of `Source`.
        lists: names of files that are of all sources, which none of one may replace. Defaults to
            none.
    """
    first, faults = {}, []
    for source in sources:
        if source.name in first:
            reason = f"the same name as {first[source.name].path}"
            faults.append(DataError(source.path, reason))
        elif f"{source.name}.json" in lists and not is_video(source.path):
            reason = f"its {source.name}.json would be lost, for one of that name is of all images"
            faults.append(DataError(source.path, reason))
        else:
            first[source.name] = source
    return list(first.values()), faults


def replaced(writer, sources):
    """The path of a source that the results of another would replace; `None` where none is.

    Args:
        writer: `Writer`.
        sources: list of `Source`, all that are to be predicted.
    """
    names = {source.path.name for source in sources}
    written = [path for source in sources for path in writer.files_of(source)]
    alike = [path for path in written if path.name in names]  # most often none: nothing to resolve
    paths = {source.path.resolve() for source in sources} if alike else ()
    return next((path for path in alike if path.resolve() in paths), None)


def write_failures(folder, faults):
    """Writes what could not be predicted, path and reason; nothing stays where there is nothing."""
    path = Path(folder) / FAILURES
    if not faults:
        path.unlink(missing_ok=True)
        return
    told = [{"path": fault.path, "reason": fault.reason} for fault in faults]
    files.write_json(path, told, indent=1)


def predicted(predictor, path, image):
    """What a predictor finds in an image; `DataError`, naming `path`, where memory is too short."""
    try:
        return predictor(image)
    except Exception as error:
        if (why := runtime.short_of_memory(error)) is None:
            raise
        raise DataError(path, f"{size_words(image)} pixels are too large: {why}") from None


class Writer:
    """Writes results into a folder: what the writers of all tasks share.

    A subclass draws (`picture`, `frame`), has labels or none (`label`), and tells in words.
    """

    lists = (FAILURES,)  # what is of all images

    def __init__(self, predictor, folder, options):
        self.predictor, self.folder, self.options = predictor, Path(folder), options

    def files_of(self, source):
        """The paths of what is written for an image, or of the film of a video."""
        if is_video(source.path):
            return [self.folder / f"{source.name}_overlay.mp4"]
        suffixes = [*self.suffixes, *([".json"] if self.options.json else [])]
        return [self.folder / f"{source.name}{suffix}" for suffix in suffixes]

    def write(self, source, image, result):
        """Writes what was found in an image, each file whole or not at all; tells it in words."""
        for path in self.files_of(source):
            if path.suffix == ".json":
                files.write_json(path, self.told(result))
            else:
                made = self.label if path.name.endswith("_label.png") else self.picture
                save_picture(path, made(image, result))
        return self.words(result)

    def write_video(self, source, video, every=1, limit=None, say=None):
        """Predicts the frames of a video and writes them, one after the other.

        Args:
            source: `Source`, which names what is written.
            video: `isa_tf.data.videos.Video`, or what is like it.
            every: int, of how many frames one is predicted. Defaults to 1.
            limit: int, the most frames to predict; `None` for all. Defaults to `None`.
            say: function that is told how many frames are done; `None` for none. Defaults to
                `None`.

        Returns:
            (how many frames were written, the `DataError` that the video ended with or `None`).
            What was written before it is kept.
        """
        stem, count, fault = self.folder / source.name, 0, None
        with contextlib.ExitStack() as stack:
            film = lines = None
            try:
                for frame in some_frames(video, every, limit):
                    result = predicted(self.predictor, source.path, frame.image)
                    picture = self.frame(frame.image, result)
                    if film is None:
                        path, size = stem.with_name(f"{stem.name}_overlay.mp4"), picture.shape[:2]
                        new = VideoWriter(path, size, video.rate / every, video.time_base)
                        film = stack.enter_context(new)
                        if self.options.json:
                            path = stem.with_name(f"{stem.name}.jsonl")
                            path = stack.enter_context(files.replacing(path))
                            lines = stack.enter_context(open(path, "w", encoding="utf-8"))
                    if picture.shape[:2] != film.size:
                        reason = f"frame {frame.index} is {size_words(picture)}, the first was not"
                        raise DataError(source.path, reason)
                    film.write(picture, frame.time)
                    if self.options.frame_labels:
                        label = self.label(frame.image, result)
                        path = stem.with_name(f"{stem.name}_label") / f"{frame.index:06d}.png"
                        save_picture(path, label)
                    if lines is not None:
                        seconds = round(float(frame.time * video.time_base), 6)
                        told = {"frame": frame.index, "seconds": seconds, **self.told(result)}
                        lines.write(json.dumps(told) + "\n")
                    count += 1
                    if say is not None:
                        say(count)
            except DataError as error:
                fault = error
            except KeyboardInterrupt:  # by which a camera is switched off
                if not video.live:
                    raise
        return count, fault

    def told(self, result):
        """What JSON says of a result."""
        return findings(self.predictor, result, masks=self.options.json == "masks")

    def rows(self, source, result):
        """The lines of one image in the file of all of them."""
        return []

    def finish(self, rows):
        """Writes what is of all images: the `rows` of each, in their order."""


@outputs.register("segmentation")
class Labels(Writer):
    """Writes class ids: an overlay and a label an image."""

    did = "segmented"
    suffixes = "_overlay.png", "_label.png"

    def __init__(self, predictor, folder, options):
        super().__init__(predictor, folder, options)
        if options.score_threshold is not None:
            raise ValueError("--score_threshold is for models that find instances")
        self.clear = _class_ids(options.clear, predictor)
        self.opacity = 0.5 if options.opacity is None else options.opacity

    def picture(self, image, result):
        return self._draw(image, result[0], self.options.legend is not False)

    def _draw(self, image, class_id, with_names):
        names, palette = self.predictor.class_names, self.predictor.palette
        return draw_classes(image, class_id, names, palette, self.opacity, self.clear, with_names)

    def frame(self, image, result):
        """The picture of a frame: a legend is of all classes, so that it is the same in each."""
        picture = self._draw(image, result[0], with_names=False)
        if not self.options.legend:
            return picture
        predictor = self.predictor
        palette = predictor.palette or voc_palette(predictor.num_classes)
        named = [i for i in range(predictor.num_classes) if i not in self.clear]
        names = [class_name(i, predictor.class_names) for i in named]
        page = with_legend(picture, names, [palette[i] for i in named])
        # Of an even size, which every player can show.
        odd = [(0, page.shape[axis] % 2) for axis in (0, 1)]
        return np.pad(page, [*odd, (0, 0)], constant_values=255)

    def label(self, image, result):
        class_id = result[0]
        return class_id.astype(np.uint8 if class_id.dtype == np.uint8 else np.uint16)

    def words(self, result):
        return _classes(result[0], self.predictor.class_names)


@outputs.register("instance_segmentation")
class Detections(Writer):
    """Writes instances: an overlay an image, and one file of all of them."""

    did = "searched"
    suffixes = ("_overlay.png",)
    lists = (FAILURES, DETECTIONS)

    def __init__(self, predictor, folder, options):
        super().__init__(predictor, folder, options)
        if options.frame_labels:
            raise ValueError("--frame_labels is for models that give each pixel a class")
        self.opacity = 0.4 if options.opacity is None else options.opacity
        least = options.score_threshold
        self.drawn, self.kept = (0.5, 0.0) if least is None else (least, least)

    def picture(self, image, result, width=None):
        names, palette = self.predictor.class_names, self.predictor.palette
        labels = self.options.legend is not False
        drawn = result.above(self.drawn)
        return draw_instances(
            image, drawn, names, palette, self.opacity, labels=labels, width=width
        )

    def frame(self, image, result):
        return self.picture(image, result, image.shape[1])

    def words(self, result):
        return _counts(result.above(self.drawn), self.predictor.class_names)

    def told(self, result):
        return super().told(result.above(self.kept))

    def rows(self, source, result):
        name = source.file_name
        image_id = int(source.name) if source.name.isdecimal() else name
        rows = result.above(self.kept).to_coco(image_id, self.predictor.category_ids)
        return [{**row, "file_name": name} for row in rows]

    def finish(self, rows):
        with files.replacing(self.folder / DETECTIONS) as new:
            new.write_text(json.dumps(rows), encoding="utf-8")


def size_words(picture):
    return f"{picture.shape[1]}x{picture.shape[0]}"


def _class_ids(given, predictor):
    """The ids of classes given as ids or names; ValueError for what is no class, or too many."""
    if (predictor.num_classes or 0) > _MOST_CLASSES:
        raise ValueError(
            f"{predictor.num_classes} classes are more than the {_MOST_CLASSES} of a label PNG"
        )
    names = predictor.class_names or [*map(str, range(predictor.num_classes or _MOST_CLASSES))]
    return tuple(id_of_class(name, names, "class in --clear:") for name in given)


def _classes(class_id, class_names):
    """The classes of a label and their shares of it, largest first."""
    found = class_findings(class_id, class_names, masks=False)
    return ", ".join(f"{row['name']} {100 * row['share']:.1f} %" for row in found)


def _counts(instances, class_names):
    """The classes of instances and how many there are of each, most first."""
    counts = np.bincount(instances.classes, minlength=1)
    order = [i for i in np.argsort(-counts, kind="stable") if counts[i]]
    return ", ".join(f"{counts[i]} {class_name(i, class_names)}" for i in order) or "nothing"
