"""Scores a trained experiment on whole images and draws what it sees.

python -m experiments.evaluate --config=experiments/configs/synthetic.py --workdir=runs/synthetic

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
import json
import time
from pathlib import Path

from absl import flags
from PIL import Image

from experiments import setup
from isa_tf import files, inference, load_predictor, metrics, report, training

# Pixels so near a boundary between labels are left out of a second mIoU: annotators err there.
BAND = 3


def make_protocol(config, dataset=None):
    """The `inference.Protocol` of an experiment's `config.test`.

    Where the mirror image is seen and no `flip_pairs` are given, they are the dataset's own.
    """
    # --config.test.stride=None arrives as (None,).
    given = {key: value for key, value in config.test.items() if value != (None,)}
    if given.get("flip") and not given.get("flip_pairs"):
        given["flip_pairs"] = dataset.flip_pairs if dataset is not None else ()
    return inference.Protocol.from_dict(given)


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
    workdir = Path(workdir)
    own = model is None
    model = Path(model or workdir / training.BEST)
    split = split or config.data.val_split
    reports = report_images is not None
    if reports and report_images < 0:
        raise ValueError(f"report_images is at least 0, got {report_images}")
    log = training.read_log(workdir / training.LOG) if reports else []
    trained = training.best_score(workdir) if reports and own else None
    dataset = setup.make_dataset(config)
    protocol = make_protocol(config, dataset)
    predictor = load_predictor(model, protocol=protocol)
    if predictor.num_classes not in (None, dataset.num_classes):
        raise ValueError(
            f"{model} has {predictor.num_classes} classes, {dataset.name} has {dataset.num_classes}"
        )
    begin = time.monotonic()
    batches = setup.make_val_data(config, dataset, split, with_index=reports)
    images = report.ImageScores(dataset.num_classes, dataset.ignore_label)
    confusion, inside = inference.confusion_matrix(
        predictor,
        batches,
        dataset.num_classes,
        dataset.ignore_label,
        band=BAND,
        hear=images.add_batch if reports else None,
    )
    result = {"model": str(model), "dataset": dataset.name, "split": split}
    result["protocol"] = protocol.to_dict()
    result["images"] = dataset.size(split)
    result["seconds"] = round(time.monotonic() - begin, 1)
    result.update(metrics.scores(confusion, dataset.class_names))
    result["miou_without_boundaries"] = metrics.scores(inside)["miou"]
    if context_ids := getattr(dataset, "context_class_ids", None):
        context = metrics.scores(confusion, dataset.class_names, context_ids)
        result["context_miou"] = context["miou"]
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "metrics.json").write_text(json.dumps(result, indent=2) + "\n")
    heading = f"{dataset.name} {split}: mIoU {result['miou']:.4f}"
    sheet = setup.make_sheet(predictor, dataset, split, pictures, heading)
    Image.fromarray(sheet).save(workdir / "predictions.png")
    if reports:
        facts = {"evaluated": datetime.datetime.now().strftime("%Y-%m-%d %H:%M")}
        if trained:
            facts |= {"seed": config.seed, "training step": trained["step"]}
        write_report(workdir, result, images, dataset, predictor, log, facts, report_images)
    return result


def write_report(workdir, result, images, dataset, predictor, log, facts, max_images):
    """Writes `images.csv` and `report.html`; the images that it shows are predicted once more."""
    split = result["split"]
    names = report.short_names(dataset.examples(split))

    def show(index):
        image, label = dataset.read(split, index)
        return image, label, predictor(image)[0]

    page = report.page(
        result,
        images,
        names,
        dataset.class_names,
        dataset.palette,
        show,
        log,
        facts,
        max_images,
    )
    table = report.table(images.scores(), names, dataset.class_names)
    for name, text in (("images.csv", table), ("report.html", page)):
        with files.replacing(workdir / name) as new:
            new.write_text(text, encoding="utf-8", newline="")


def write_predictions(config, workdir, folder, model=None, split=None):
    """Writes what is predicted for a split; see `inference.write_results`.

    Args:
        config: of the experiment.
        workdir: its folder.
        folder: where the files go.
        model: as of `evaluate`.
        split: as of `evaluate`.

    Returns:
        List of the paths of the files.
    """
    model = Path(model or Path(workdir) / training.BEST)
    dataset = setup.make_dataset(config)
    predictor = load_predictor(model, protocol=make_protocol(config, dataset))
    facts = {"model": model.name, "sha256": files.digest(model)}
    split = split or config.data.val_split
    return inference.write_results(predictor, dataset, split, folder, facts=facts)


def _shown(score):
    return "absent" if score is None else f"{score:.4f}"


def main(argv):
    del argv
    values = flags.FLAGS
    if values.predictions:
        given = values.config, values.workdir, values.predictions, values.model, values.split
        print(f"written: {len(write_predictions(*given))} files in {values.predictions}")
        return
    report_images = values.report_images if values.report else None
    result = evaluate(
        values.config, values.workdir, values.model, values.split, report_images=report_images
    )
    kinds = ("iou", "accuracy", "precision", "f1")
    print(" " * 20 + "".join(f"  {kind:>9}" for kind in kinds))
    for name, row in result["classes"].items():
        cells = ("-" if row[kind] is None else f"{row[kind]:.4f}" for kind in kinds)
        print(f"{name:>20}" + "".join(f"  {cell:>9}" for cell in cells))
    inside = _shown(result["miou_without_boundaries"])
    print(f"{'mIoU':>20}  {_shown(result['miou'])} over {result['classes_counted']} classes")
    print(f"{'mIoU inside':>20}  {inside} further than {BAND} pixels from a boundary")
    print(f"{'mean accuracy':>20}  {_shown(result['mean_accuracy'])}")
    print(f"{'pixel accuracy':>20}  {_shown(result['pixel_accuracy'])}")
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
