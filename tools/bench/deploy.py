"""Every format of two models, side by side: what `tools.benchmark deploy` measures.

Each format is a process of its own that holds both models and works only when called; they are
called in turn, from a uint8 photo to class ids and scores. The rest is compared on photos: how many
pixels are of the class that Keras gives them, and the mIoU.
"""

import contextlib
import importlib.util
import json
import statistics
import sys
from pathlib import Path

import numpy as np

from tools import tables
from tools.bench import processes, results, timing
from tools.bench.deploy_files import CASES, CLASSES, KEPT, KERAS

# (name, format, options of loading); no format for what is no file that leaves the package.
CONTESTANTS = (
    ("Keras", None, {}),
    ("fused", None, {}),
    ("SavedModel", "saved_model", {}),
    ("LiteRT", "litert", {}),
    ("LiteRT fp16", "litert_fp16", {}),
    ("LiteRT int8", "litert_int8", {}),
    ("ONNX Runtime", "onnx", {}),
    ("OpenVINO", "openvino", {}),
    ("OpenVINO bf16", "openvino", {"precision": "bf16"}),
    ("OpenVINO int8", "openvino_int8", {}),
)
NEEDS = {
    "litert": "ai_edge_litert",
    "litert_fp16": "ai_edge_litert",
    "litert_int8": "ai_edge_quantizer",
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "openvino_int8": "nncf",
}
NAMES = [name for name, _, _ in CONTESTANTS]
BASE = "OpenVINO"
COLUMNS = {
    "name": ("format", "{}"),
    "mb": ("MB", "{:.1f}"),
    "ms": ("median (ms)", "{:.0f}"),
    "ratio": (f"of {BASE}", "{:.2f}"),
    "percent": ("as Keras (%)", "{:.3f}"),
    "miou": ("mIoU", "{:.4f}"),
}
# Of a stored result.
_IDENTITY, _COSTS = ("case", "name"), {"ms": "median (ms)", "mb": "MB"}
_PACKAGES = ("ai-edge-litert", "ai-edge-quantizer", "onnxruntime", "openvino", "nncf")


def benchmark(given, output):
    """Measures; gives the `results.Result` and the Markdown of it.

    Args:
        given: dict: "models" and "only", names; "data", CamVid's folder; "rounds", "threads",
            "every", "calibration" and "reuse", see `tools.benchmark`.
        output: `Path` of the folder to leave files in.

    Raises:
        ValueError: for what there is not.
        ChildProcessError: where the files cannot be made.
    """
    if unknown := {*given["models"]} - {*CASES}:
        raise ValueError(f"--deploy_models={','.join(unknown)}: there are {', '.join(CASES)}")
    if unknown := {*(given["only"] or ())} - {*NAMES}:
        raise ValueError(f"--deploy_only={','.join(unknown)}: there are {', '.join(NAMES)}")
    if "camvid" in given["models"] and not KEPT.is_file():
        raise ValueError(f"--deploy_models=camvid is of a model in a checkout, {KEPT}")
    chosen = []
    for name, format, options in CONTESTANTS:
        package = NEEDS.get(format)
        if name not in (given["only"] or NAMES):
            continue
        if package and not importlib.util.find_spec(package):
            print(f"{name}: without {package}, which is not installed, left out", file=sys.stderr)
            continue
        chosen.append((name, format, options))
    output, given = output.resolve(), {**given, "data": str(Path(given["data"]).resolve())}
    folders = {case: output / "deploy" / case for case in given["models"]}
    there = _make_files({format for _, format, _ in chosen if format}, folders, given)
    rows = _compete([each for each in chosen if each[1] in there], folders, given)
    settings = {name: given[name] for name in ("threads", "every", "calibration")}
    result = results.of_now(
        "tools.benchmark", "deploy", rows, _IDENTITY, _COSTS, settings, packages=_PACKAGES
    )
    return result, report(result, given)


def report(result, given):
    """The Markdown of a table a model, and of the machine."""
    lines = []
    for case in dict.fromkeys(row["case"] for row in result.rows):
        size = "x".join(map(str, CASES[case]))
        rows = [row for row in result.rows if row["case"] == case]
        lines += [f"{case}, {size}, {rows[0]['photos']} photos to compare on:", ""]
        lines += [tables.of_dicts(COLUMNS, [row | _percent(row) for row in rows]), ""]
    lines.append(result.footer(f"{given['threads']} threads, {given['rounds']} rounds"))
    return "\n".join(lines)


def _percent(row):
    """How much is as by Keras; rounded down, so that 100 % means all."""
    return {"percent": np.floor(1e5 * row["agreement"]) / 1e3} if "agreement" in row else {}


def _make_files(wanted, folders, given):
    """Makes the files of formats; gives the formats that there are of every model, and `None`."""
    if "openvino_int8" in wanted:
        wanted = {*wanted, "openvino"}  # of which it is made
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    makers = {
        case: processes.start(
            "tools.bench.deploy_files",
            "make",
            {"case": case, "folder": str(folder), "formats": sorted(wanted), **given},
        )
        for case, folder in folders.items()
    }
    for case, maker in makers.items():
        if maker.wait():
            raise ChildProcessError(f"the files of {case} could not be made; why is told above")
    return {
        format
        for format in (None, *wanted)
        if format is None or all((folder / format).exists() for folder in folders.values())
    }


def _compete(chosen, folders, given):
    """A row for each contestant and model."""
    shared = {"threads": given["threads"], "folders": {k: str(v) for k, v in folders.items()}}
    formats = {name: format for name, format, _ in chosen}
    with contextlib.ExitStack() as stack:
        contestants = {}
        for name, format, options in chosen:
            case = {"name": name, "format": format, "options": options, **shared}
            made = processes.Contestant(name, "tools.bench.deploy", case)
            contestants[name] = stack.enter_context(made)
        rows = [
            {"case": case, "name": name, "times": []} for case in folders for name in contestants
        ]
        for name, contestant in contestants.items():
            contestant.ask("ready")
            print(f"ready: {name}", file=sys.stderr)
        for row in timing.in_turn(rows, given["rounds"]):
            row["times"].append(contestants[row["name"]].ask("call", row["case"]))
        for row in rows:
            print(f"photos: {row['name']}, {row['case']}", file=sys.stderr)
            to = folders[row["case"]] / f"ids {row['name']}.npy"
            contestants[row["name"]].ask("predict", row["case"], str(to))
    for row in rows:
        row |= scores_of(row, folders[row["case"]], formats[row["name"]])
    for row in rows:
        for other in rows:
            if (other["case"], other["name"]) == (row["case"], BASE):
                row["ratio"] = timing.ratio_of_medians(row["times"], other["times"])
    return rows


def scores_of(row, folder, format):
    """What a row tells of the class ids that a contestant gave."""
    from isa_tf import files
    from isa_tf.inference import confusion_matrix
    from isa_tf.metrics import scores

    ids = np.load(folder / f"ids {row['name']}.npy")
    found = {"ms": statistics.median(row["times"]), "mb": None, "photos": len(ids)}
    keras_ids = folder / "ids Keras.npy"
    if keras_ids.is_file() and row["name"] != "Keras":
        found["agreement"] = float((ids == np.load(keras_ids)).mean())
    if format:
        found["mb"] = files.size(folder / format) / 1e6
    elif row["name"] == "Keras":
        found["mb"] = files.size(folder / KERAS) / 1e6
    if row["case"] == "camvid":
        labels = np.load(folder / "labels.npy")
        matrix = confusion_matrix(lambda _: (ids,), [(ids[..., None], labels)], CLASSES)
        found["miou"] = float(scores(matrix)["miou"])
    return found


# === A contestant ===


def serve(name, format, options, folders, threads):
    """Loads the models, then answers questions, see `processes.serve`.

    They are "ready"; "call" and a model, for the milliseconds that the second of two photos takes;
    or "predict", a model and a path, for the class ids of all photos.
    """
    _set_threads(threads)
    predictors, photos = {}, {}
    for case, folder in folders.items():
        photos[case] = np.load(Path(folder) / "photos.npy", mmap_mode="r")
        predictors[case] = _predictor(name, format, options, Path(folder), threads)
        for _ in range(2):  # what is made once is not the call's
            predictors[case](np.array(photos[case][0]))

    def call(case):
        predictor, photo = predictors[case], np.array(photos[case][0])
        predictor(photo)  # wakes its threads and fills the caches, as one photo does the next
        return timing.milliseconds(lambda: predictor(photo))

    def predict(case, path):
        np.save(path, np.stack([predictors[case](np.array(photo))[0] for photo in photos[case]]))

    processes.serve({"ready": lambda: None, "call": call, "predict": predict})


def _set_threads(threads):
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)


def _predictor(name, format, options, folder, threads):
    from isa_tf import formats, inference

    whole = inference.Protocol()
    if format is None:
        model = formats.load_model(folder / KERAS)
        model = inference.fuse(model) if name == "fused" else model
        return inference.Predictor.from_model(model, whole)
    known = formats.create("openvino" if format == "openvino_int8" else format)
    return known.load(folder / format, num_threads=threads, protocol=whole, **options)


if __name__ == "__main__":
    serve(**json.loads(sys.argv[2]))
