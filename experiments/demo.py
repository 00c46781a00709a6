"""The demonstration: what interlaced attention sees that a plain network cannot.

    python -m experiments.demo --workdir=runs/demo

Trains experiments/configs/synthetic.py twice with equal budgets, without and with the block,
evaluates both, exports the second and predicts with the exported files. Started again, it goes on
from where it was.
"""

import json
import shlex
import sys
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from experiments import setup
from experiments.configs import synthetic
from experiments.evaluate import evaluate
from experiments.tasks import segmentation
from experiments.train import train
from isa_tf import export, formats, inference, load_predictor, training, visualize, web
from tools import command, tables

CONTEXTS = ("none", "isa")
PICTURES = 6


def demo(workdir, steps=None):
    """Runs the demonstration in `workdir`; returns what `metrics.json` holds."""
    workdir = Path(workdir)
    metrics = {}
    for context in CONTEXTS:
        config = synthetic.get_config()
        config.model.context = context
        config.train.steps = steps or config.train.steps
        folder = workdir / context
        print(
            f"\n=== Training with context module {context!r}, {config.train.steps} steps",
            flush=True,
        )
        train(config, folder)
        scores = evaluate(config, folder)
        metrics[context] = {
            "miou": scores["miou"],
            "context_miou": scores["context_miou"],
            "seconds": training.read_log(folder / training.LOG)[-1]["seconds"],
        }
    dataset = segmentation.make_dataset(config)

    print("\n=== Exporting the ISA model, predicting with the exported files", flush=True)
    model = formats.load_model(workdir / "isa" / training.BEST)
    export(model, workdir / "saved_model")
    export(model, workdir / "model.tflite", image_size=dataset.image_size)
    predictors = {
        "keras": inference.Predictor.from_model(model),
        "saved_model": load_predictor(workdir / "saved_model"),
        "litert": load_predictor(workdir / "model.tflite"),
    }
    plain = load_predictor(workdir / "none" / training.BEST)
    split = config.data.val_split
    rows, agreement = [], {"saved_model": [], "litert": []}
    for folder in ("images", "predictions"):
        (workdir / folder).mkdir(exist_ok=True)
    for index in range(PICTURES):
        image, truth = dataset.read(split, index)
        Image.fromarray(image).save(workdir / "images" / f"{index}.png")
        found = {name: predict(image)[0] for name, predict in predictors.items()}
        for name, values in agreement.items():
            values.append(np.mean(found[name] == found["keras"]))
            painted = visualize.overlay(image, found[name], dataset.palette)
            Image.fromarray(painted).save(workdir / "predictions" / f"{index}_{name}.png")
        rows.append((image, truth, plain(image)[0], found["litert"]))
    sheet = visualize.sheet(
        rows, ("image", "truth", "without", "with ISA"), dataset.palette, dataset.class_names
    )
    Image.fromarray(sheet).save(workdir / "comparison.png")

    metrics["agreement_with_keras"] = {k: float(np.mean(v)) for k, v in agreement.items()}
    (workdir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    (workdir / "report.md").write_text(_report(metrics, dataset))
    return metrics


def _report(metrics, dataset):
    guess = 1 / (2 * len(dataset.context_class_ids) - 1)
    lines = [
        "# The demonstration",
        "",
        "The colour of one beacon, out of sight of the network's own receptive field, decides the",
        "class of every ship. mIoU over the validation images; guessing among the ship classes",
        f"gives {guess:.3f} on them.",
        "",
    ]
    rows = []
    for context in CONTEXTS:
        m = metrics[context]
        scores = (f"{m[name]:.3f}" for name in ("miou", "context_miou"))
        rows.append([context, *scores, f"{m['seconds']:.0f} s"])
    lines.append(tables.markdown(["context module", "mIoU", "mIoU of the ships", "training"], rows))
    lines += ["", "Pixels on which the exported ISA model agrees with Keras:", ""]
    for name, share in metrics["agreement_with_keras"].items():
        lines.append(f"* {name}: {share:.2%}")
    lines += ["", "![image, truth, without, with ISA](comparison.png)", ""]
    return "\n".join(lines)


def main(argv):
    del argv
    workdir = Path(flags.FLAGS.workdir)
    demo(workdir, flags.FLAGS.steps)
    print("\n" + (workdir / "report.md").read_text().split("![")[0])
    print(f"report:    {workdir / 'report.md'}")
    print(f"picture:   {workdir / 'comparison.png'}")
    print(f"figures:   {workdir / 'metrics.json'}")
    print(f"models:    {workdir / 'isa' / training.BEST}, {workdir / 'saved_model'},")
    print(f"           {workdir / 'model.tflite'}")
    print(f"\nin a browser{'' if web.is_built() else ', once `make web` has built the page'}:")
    print(in_a_browser(workdir))


def in_a_browser(workdir):
    """The command that shows the model in a browser, as this process was started."""
    model, images = (shlex.quote(str(workdir / name)) for name in ("model.tflite", "images"))
    view = command.spell("python -m tools.demo_web").replace("python", str(_python()), 1)
    return f"  {view} --model={model} \\\n      --images={images} --title=Harbours"


def _python():
    """This Python, as somebody here would call it."""
    here, path = Path.cwd(), Path(sys.executable)
    return path.relative_to(here) if path.is_relative_to(here) else path


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/demo", "Folder of the demonstration.")
    flags.DEFINE_integer("steps", None, "Length of each training, instead of the config's.", 1)
    setup.run(main)
