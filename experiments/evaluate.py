"""Scores a trained experiment on whole images and draws what it sees.

python -m experiments.evaluate --config=experiments/configs/synthetic.py --workdir=runs/synthetic

Writes metrics.json and predictions.png into the workdir. The scores are those of one confusion
matrix over all pixels of the split at full size. By default the model sees each image once and
whole; --config.test.KEY=VALUE chooses another protocol (experiments/configs/default.py lists them):

--config.test.scales=0.5,0.75,1.0,1.25,1.5,1.75 --config.test.flip=True
--config.test.mode=slide --config.test.crop_size=769 --config.test.stride=513

--predictions=FOLDER writes what is predicted instead, a PNG an image, as the benchmark's server
wants them; the split (--split=test) needs no labels, and a run that was stopped is gone on with.
"""

import json
import time
from pathlib import Path

from absl import flags
from PIL import Image

from experiments import setup
from isa_tf import files, inference, load_predictor, metrics, training


def make_protocol(config, dataset=None):
    """The `inference.Protocol` of an experiment's `config.test`.

    Where the mirror image is seen and no `flip_pairs` are given, they are the dataset's own.
    """
    # --config.test.stride=None arrives as (None,).
    given = {key: value for key, value in config.test.items() if value != (None,)}
    if given.get("flip") and not given.get("flip_pairs"):
        given["flip_pairs"] = getattr(dataset, "flip_pairs", ())
    return inference.Protocol.from_dict(given)


def evaluate(config, workdir, model=None, split=None, pictures=8):
    """Evaluates and writes `metrics.json` and `predictions.png`.

    Args:
        config: of the experiment.
        workdir: its folder, where the results go.
        model: path of the model: of any of `isa_tf.formats`; `None` for the best of the
            workdir.
        split: name of the split; `None` for the config's validation split.
        pictures: how many examples the sheet shows.

    Returns:
        The scores, as in `metrics.json`.
    """
    workdir = Path(workdir)
    model = Path(model or workdir / training.BEST)
    split = split or config.data.val_split
    dataset = setup.make_dataset(config)
    protocol = make_protocol(config, dataset)
    predictor = load_predictor(model, protocol=protocol)
    if predictor.num_classes not in (None, dataset.num_classes):
        raise ValueError(
            f"{model} has {predictor.num_classes} classes, {dataset.name} has {dataset.num_classes}"
        )
    begin = time.monotonic()
    batches = setup.make_val_data(config, dataset, split)
    confusion = inference.confusion_matrix(
        predictor, batches, dataset.num_classes, dataset.ignore_label
    )
    result = {"model": str(model), "dataset": dataset.name, "split": split}
    result["protocol"] = protocol.to_dict()
    result["images"] = dataset.size(split)
    result["seconds"] = round(time.monotonic() - begin, 1)
    result.update(metrics.scores(confusion, dataset.class_names))
    if context_ids := getattr(dataset, "context_class_ids", None):
        context = metrics.scores(confusion, dataset.class_names, context_ids)
        result["context_miou"] = context["miou"]
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "metrics.json").write_text(json.dumps(result, indent=2) + "\n")
    heading = f"{dataset.name} {split}: mIoU {result['miou']:.4f}"
    sheet = setup.make_sheet(predictor, dataset, split, pictures, heading)
    Image.fromarray(sheet).save(workdir / "predictions.png")
    return result


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


def main(argv):
    del argv
    values = flags.FLAGS
    if values.predictions:
        given = values.config, values.workdir, values.predictions, values.model, values.split
        print(f"written: {len(write_predictions(*given))} files in {values.predictions}")
        return
    result = evaluate(values.config, values.workdir, values.model, values.split)
    for name, iou in result["iou"].items():
        print(f"{name:>20}  {'absent' if iou is None else f'{iou:.4f}'}")
    print(f"{'mIoU':>20}  {result['miou']:.4f} over {result['classes_counted']} classes")
    print(f"{'mean accuracy':>20}  {result['mean_accuracy']:.4f}")
    print(f"{'pixel accuracy':>20}  {result['pixel_accuracy']:.4f}")
    print(f"written: {values.workdir}/metrics.json, {values.workdir}/predictions.png")


if __name__ == "__main__":
    setup.define_config_flag()
    flags.DEFINE_string("workdir", None, "Folder of the experiment.")
    flags.DEFINE_string("model", None, "Another model: .keras, SavedModel folder, .tflite, ...")
    flags.DEFINE_string("split", None, "Another split than the config's validation split.")
    flags.DEFINE_string("predictions", None, "Write predictions to this folder, and no scores.")
    flags.mark_flags_as_required(["config", "workdir"])
    setup.run(main)
