"""Scores a trained experiment on whole images and draws what it sees.

    python -m experiments.evaluate --config=synthetic --workdir=runs/synthetic

Writes metrics.json and predictions.png into the workdir. The scores are those of one confusion
matrix over all pixels of the split at full size. By default the model sees each image once and
whole; --config.test.KEY=VALUE chooses another protocol (experiments/configs/default.py lists them):

    --config.test.scales=0.5,0.75,1.0,1.25,1.5,1.75 --config.test.flip=True
    --config.test.mode=slide --config.test.crop_size=769 --config.test.stride=513

--report writes report.html too, one page that needs nothing else: scores, classes, confusion
matrix, the training's curves, and the worst and the best images (--report_images says how many);
and images.csv, the scores of every image.

--predictions=FOLDER writes what is predicted instead, a PNG an image, as the benchmark's server
wants them; the split (--split=test) needs no labels, and a run that was stopped is gone on with.
"""

import datetime
import time
from pathlib import Path

from absl import flags

from experiments import setup, tasks
from isa_tf import files, load_predictor, training
from isa_tf.visualize import save_picture


def evaluate(config, workdir, model=None, split=None, pictures=8, report_images=None):
    """Evaluates and writes `metrics.json` and `predictions.png`; a report, where one is asked for.

    Args:
        config: of the experiment.
        workdir: its folder, where the results go.
        model: path of the model: of any of `isa_tf.formats`; `None` for the best of the
            workdir.
        split: name of the split; `None` for the config's validation split.
        pictures: how many examples the sheet shows.
        report_images: how many examples `report.html` shows; `None` for no report, and no
            `images.csv`.

    Returns:
        The scores, as in `metrics.json`.

    Raises:
        ValueError: for a model of other classes than the data; for a negative `report_images` or,
            with a report, a log that is no log, before anything is predicted.
    """
    task, workdir = tasks.of(config), Path(workdir)
    reports = report_images is not None
    if reports and report_images < 0:
        raise ValueError(f"report_images must be at least 0, got {report_images}")
    log = training.read_log(workdir / training.LOG) if reports else []
    trained = training.best_score(workdir) if reports and model is None else None
    model = Path(model or workdir / training.BEST)
    split = split or config.data.val_split
    dataset = task.make_dataset(config)
    protocol = task.make_protocol(config, dataset)
    predictor = _load(model, dataset, protocol)
    begin = time.monotonic()
    found, images = task.score(config, dataset, predictor, split, by_image=reports)
    result = {"model": str(model), "dataset": dataset.name, "split": split}
    result["protocol"] = protocol.to_dict()
    result["images"] = dataset.size(split)
    result["seconds"] = round(time.monotonic() - begin, 1)
    result.update(found)
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_json(workdir / "metrics.json", result, indent=2)
    heading = f"{dataset.name} {split}: {task.headline(result)}"
    sheet = task.make_sheet(config, predictor, dataset, split, pictures, heading)
    save_picture(workdir / "predictions.png", sheet)
    if reports:
        facts = {"evaluated": datetime.datetime.now().strftime("%Y-%m-%d %H:%M")}
        if trained:
            facts |= {"seed": config.seed, "training step": trained["step"]}
        made = task.make_report(result, images, dataset, predictor, log, facts, report_images)
        for name, text in zip(("images.csv", "report.html"), made, strict=True):
            with files.replacing(workdir / name) as new:
                new.write_text(text, encoding="utf-8", newline="")
    return result


def write_predictions(config, workdir, folder, model=None, split=None):
    """Writes what is predicted for a split, as a benchmark's server wants it.

    Args:
        config: of the experiment.
        workdir: its folder.
        folder: where the files go.
        model: as of `evaluate`.
        split: as of `evaluate`.

    Returns:
        List of the paths of the files.
    """
    task = tasks.of(config)
    model = Path(model or Path(workdir) / training.BEST)
    dataset = task.make_dataset(config)
    predictor = _load(model, dataset, task.make_protocol(config, dataset))
    facts = {"model": model.name, "sha256": files.digest(model)}
    split = split or config.data.val_split
    return task.write_predictions(predictor, dataset, split, folder, facts)


def _load(model, dataset, protocol):
    """The predictor of a file, which must be of the dataset's classes."""
    predictor = load_predictor(model, protocol=protocol)
    if predictor.num_classes not in (None, dataset.num_classes):
        raise ValueError(
            f"{model} has {predictor.num_classes} classes, {dataset.name} has {dataset.num_classes}"
        )
    return predictor


def main(argv):
    del argv
    values = flags.FLAGS
    if values.predictions:
        given = values.config, values.workdir, values.predictions, values.model, values.split
        paths = write_predictions(*given)
        print(f"written: {len(paths)} files in {values.predictions}")
        return
    report_images = values.report_images if values.report else None
    result = evaluate(
        values.config, values.workdir, values.model, values.split, report_images=report_images
    )
    for line in tasks.of(values.config).lines(result):
        print(line)
    names = ["metrics.json", "predictions.png"]
    names += ["images.csv", "report.html"] if values.report else []
    print(f"written: {', '.join(f'{values.workdir}/{name}' for name in names)}")


if __name__ == "__main__":
    setup.define_config_flag()
    flags.DEFINE_string("workdir", None, "Folder of the experiment.")
    flags.DEFINE_string("model", None, "Another model: .keras, SavedModel folder, .tflite, ...")
    flags.DEFINE_string("split", None, "Another split than the config's validation split.")
    flags.DEFINE_bool("report", False, "Write report.html and images.csv too.")
    flags.DEFINE_integer("report_images", 24, "How many images the report shows.", lower_bound=0)
    flags.DEFINE_string("predictions", None, "Write predictions to this folder, and no scores.")
    flags.mark_flags_as_required(["config", "workdir"])
    setup.run(main)
