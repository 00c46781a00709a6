"""Many images on many machines: `tools.predict --runner=...`, an Apache Beam pipeline.

Workers see the images, the model and the output folder under the same paths as who starts it. What
is done is noted image by image in `PARTS` within the output folder, behind the files of the image,
so a run that was stopped goes on: what is noted, of the same model, options and image, is not made
again.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import apache_beam as beam
from apache_beam.ml.inference.base import ModelHandler, RunInference
from apache_beam.options.pipeline_options import PipelineOptions

from isa_tf import files, load_predictor
from isa_tf.data import DataError
from isa_tf.data.pictures import read_image
from tools import plugins
from tools.predictions import Source, predicted

PARTS = ".parts"
_RUN = "run.json"
_AT_ONCE = 8  # images that a worker holds
_FACTS = "task", "num_classes", "class_names", "palette", "category_ids"


def predict(predictor, model, writer, sources, pipeline_options, modules=()):
    """Predicts images by a Beam pipeline; writes what `tools.predict` writes, to the same bytes.

    Args:
        predictor: of the model, as `writer` has it.
        model: path, from which workers load it.
        writer: `tools.predictions.Writer`.
        sources: list of `tools.predictions.Source`, of images, each of another name.
        pipeline_options: list of str, Beam's, such as `["--runner=DirectRunner"]`.
        modules: names of modules that workers import first. Defaults to `()`.

    Returns:
        (how many images were done before, how many are done, a list of a `DataError` for each of
        the others).
    """
    parts = writer.folder / PARTS
    told = {"model": files.digest(model), "options": list(writer.options)}
    told = json.loads(json.dumps(told))
    if files.read_json(parts / _RUN) != told:
        for path in parts.rglob("*.part"):
            path.unlink()
        files.write_json(parts / _RUN, told)
    # What a worker left that was killed.
    for folder in {folder for s in sources for folder in _folders(writer, parts, s)}:
        files.sweep(folder)

    facts = SimpleNamespace(**{name: getattr(predictor, name, None) for name in _FACTS})
    light = type(writer)(facts, writer.folder, writer.options)
    left = [source for source in sources if not _is_done(writer, parts, source)]
    if left:
        with beam.Pipeline(options=PipelineOptions(list(pipeline_options))) as pipeline:
            _ = (
                pipeline
                | beam.Create([(str(source.path), source.name) for source in left])
                | beam.Reshuffle()
                | "Read" >> beam.ParDo(Read(parts))
                | RunInference(Predict(str(model), tuple(modules)))
                | "Write" >> beam.ParDo(Write(light, parts))
            )
    rows, faults, done = [], [], 0
    for source in sources:
        part = files.read_json(_part(parts, source))
        if part is None:
            raise RuntimeError(f"{source.path}: the pipeline ended without a word of it")
        if "failed" in part:
            faults.append(DataError(source.path, part["failed"]))
            continue
        rows += part["rows"]
        done += 1
    writer.finish(rows)
    return len(sources) - len(left), done, faults


class Read(beam.DoFn):
    """Reads images; of one that cannot be read, the reason is noted."""

    def __init__(self, parts):
        self.parts = parts

    def process(self, element):
        source = Source(Path(element[0]), element[1])
        try:
            stamp = _stamp(source.path)
            image = read_image(source.path)
        except DataError as error:
            _note(self.parts, source, {"failed": error.reason})
            return
        yield source, stamp, image


class Predict(ModelHandler):
    """A predictor of any format; images are predicted one by one, as `tools.predict` does it."""

    def __init__(self, model, modules):
        super().__init__(max_batch_size=_AT_ONCE)
        self.model, self.modules = model, modules

    def load_model(self):
        plugins.load(SimpleNamespace(value=self.modules))
        return load_predictor(self.model)

    def run_inference(self, batch, model, inference_args=None):
        for source, stamp, image in batch:
            try:
                result = predicted(model, source.path, image)
            except DataError as error:
                result = error  # what cannot be done is noted where what is done is
            yield source, stamp, image, result


class Write(beam.DoFn):
    """Writes what was found, and notes then that it is there, or why nothing was found."""

    def __init__(self, writer, parts):
        self.writer, self.parts = writer, parts

    def process(self, element):
        source, stamp, image, result = element
        if isinstance(result, DataError):
            _note(self.parts, source, {"failed": result.reason})
            return
        self.writer.write(source, image, result)
        _note(self.parts, source, {"of": stamp, "rows": self.writer.rows(source, result)})


def _part(parts, source):
    return parts / f"{source.name}.part"


def _note(parts, source, told):
    files.write_json(_part(parts, source), told)


def _stamp(path):
    """What tells an image from another at the same place."""
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(path, "no such file") from error
    return [found.st_size, found.st_mtime_ns]


def _is_done(writer, parts, source):
    part = files.read_json(_part(parts, source))
    if part is None or "rows" not in part:
        return False
    try:
        same = part["of"] == _stamp(source.path)
    except DataError:
        return False
    return same and all(path.exists() for path in writer.files_of(source))


def _folders(writer, parts, source):
    return {path.parent for path in (*writer.files_of(source), _part(parts, source))}
