"""Every format of two models, side by side: what `tools.benchmark deploy` measures.

Each format is a process of its own that holds both models and works only when called; they are
called in turn, from a uint8 photo to class ids and scores. The rest is compared on photos: how many
pixels are of the class that Keras gives them, and the mIoU.
"""

import contextlib
import importlib.util
import io
import json
import logging
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

from isa_tf.compat import flatten_layers

KEPT = "experiments/trained/camvid/best.keras"
CLASSES = 11
CASES = {"r50": (256, 512), "camvid": (360, 480)}
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
BASE = "OpenVINO"
# What decides between int8 and the rest.
_INSTRUCTIONS = r"\b(?:avx2|avx512f|avx512_vnni|avx_vnni|avx512_bf16|amx_int8|amx_bf16)\b"
_KERAS = "model.keras"
# Not in int8: what `formats.litert` keeps in float32 too.
_IN_FLOAT = ["Softmax", "Select", "Interpolate"]


def define(flag_values):
    """Defines what `tools.benchmark deploy` is told among the flags of a tool."""

    def integer(name, default, told):
        flags.DEFINE_integer(f"deploy_{name}", default, told, 1, flag_values=flag_values)

    flags.DEFINE_list(
        "deploy_models", list(CASES), "Models to deploy: r50, camvid.", flag_values=flag_values
    )
    names = [name for name, _, _ in CONTESTANTS]
    flags.DEFINE_list(
        "deploy_only", None, f"Of deploy's: {', '.join(names)}.", flag_values=flag_values
    )
    flags.DEFINE_string(
        "deploy_data", "../shared/data/camvid", "CamVid's folder.", flag_values=flag_values
    )
    integer("rounds", 7, "Calls of each of deploy's contestants.")
    integer("threads", 2, "Of each of them.")
    integer("every", 3, "Each so many-th photo of val is compared on; of r50 8 of them.")
    integer("calibration", 100, "Photos of train to quantise by; of r50 16 of them.")
    flags.DEFINE_bool(
        "deploy_reuse",
        False,
        "Whether deploy takes the files that an earlier run left in --output.",
        flag_values=flag_values,
    )


def main(given, output, machine):
    """Measures, writes `deploy.md` and `deploy.json`, and prints the tables.

    Args:
        given: dict of the flags of `define`, without "deploy_".
        output: `Path` of the folder to write into.
        machine: str, a line on it.
    """
    names = [name for name, _, _ in CONTESTANTS]
    if unknown := {*given["models"]} - {*CASES}:
        raise app.UsageError(f"--deploy_models={','.join(unknown)}: there are {', '.join(CASES)}")
    if unknown := {*(given["only"] or ())} - {*names}:
        raise app.UsageError(f"--deploy_only={','.join(unknown)}: there are {', '.join(names)}")
    chosen = []
    for name, format, options in CONTESTANTS:
        package = NEEDS.get(format)
        if name not in (given["only"] or names):
            continue
        if package and not importlib.util.find_spec(package):
            print(f"{name}: without {package}, which is not installed, left out", file=sys.stderr)
            continue
        chosen.append((name, format, options))
    output, given = output.resolve(), {**given, "data": str(Path(given["data"]).resolve())}
    folders = {case: output / "deploy" / case for case in given["models"]}
    wanted = {format for _, format, _ in chosen if format}
    if "openvino_int8" in wanted:
        wanted.add("openvino")  # of which it is made
    wanted = sorted(wanted)
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    makers = [
        _start("make", {"case": case, "folder": str(folder), "formats": wanted, **given})
        for case, folder in folders.items()
    ]
    for case, maker in zip(folders, makers, strict=True):
        if maker.wait():
            raise ChildProcessError(f"the files of {case} could not be made; why is told above")
    there = {
        format
        for format in (None, *wanted)
        if format is None or all((folder / format).exists() for folder in folders.values())
    }
    rows = _compete([each for each in chosen if each[1] in there], folders, given)
    (output / "deploy.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    text = report(rows, machine, given)
    (output / "deploy.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\nwritten: {output / 'deploy'}.md, .json")
    return 0


def report(rows, machine, given):
    """The Markdown of a table a model, and of the machine."""
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows):
        size = "x".join(map(str, CASES[case]))
        some = [row for row in rows if row["case"] == case]
        lines += ["", f"{case}, {size}, {some[0]['photos']} photos to compare on:", ""]
        lines.append(f"| format | MB | median (ms) | of {BASE} | as Keras (%) | mIoU |")
        lines.append("|---|---|---|---|---|---|")
        for row in some:
            cells = [
                row["name"],
                f"{row['mb']:.1f}" if row["mb"] else "",
                f"{row['ms']:.0f}",
                f"{row['ratio']:.2f}" if "ratio" in row else "",
                f"{np.floor(1e5 * row['agreement']) / 1e3:.3f}" if "agreement" in row else "",
                f"{row['miou']:.4f}" if "miou" in row else "",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    versions = [machine, f"instructions {', '.join(instructions()) or 'unknown'}"]
    for package in ("ai-edge-litert", "ai-edge-quantizer", "onnxruntime", "openvino", "nncf"):
        with contextlib.suppress(PackageNotFoundError):
            versions.append(f"{package} {version(package)}")
    versions.append(f"{given['threads']} threads, {given['rounds']} rounds")
    command = f"`python -m tools.benchmark {' '.join(sys.argv[1:])}`"
    return "\n".join([*lines, "", "; ".join(versions) + f". {command}"]).strip() + "\n"


def instructions():
    """Those of the processor that decide how quick small numbers are; none where none are told."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    return sorted({*re.findall(_INSTRUCTIONS, text)})


def _start(what, case, **pipes):
    """A process of this file."""
    return subprocess.Popen(
        [sys.executable, "-m", "tools.benchmark_deploy", what, json.dumps(case)],
        cwd=Path(__file__).parents[1],
        env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ},
        text=True,
        **pipes,
    )


def _compete(chosen, folders, given):
    """A row for each contestant and model."""
    processes = {}
    try:
        for name, format, options in chosen:
            case = {"name": name, "format": format, "options": options}
            case |= {
                "threads": given["threads"],
                "folders": {k: str(v) for k, v in folders.items()},
            }
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            processes[name] = _start("contestant", case, **pipes)
        rows = [{"case": case, "name": name, "times": []} for case in folders for name in processes]
        for name, process in processes.items():
            print(f"ready: {name}", file=sys.stderr)
            _ask(process, "ready")
        for round_ in range(given["rounds"]):
            # Whoever comes first in one round comes last in the next.
            for row in rows if round_ % 2 else reversed(rows):
                row["times"].append(_ask(processes[row["name"]], "call", row["case"]))
        for row in rows:
            print(f"photos: {row['name']}, {row['case']}", file=sys.stderr)
            to = folders[row["case"]] / f"ids {row['name']}.npy"
            _ask(processes[row["name"]], "predict", row["case"], str(to))
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    for row in rows:
        row |= _scores(row, folders[row["case"]], dict((n, f) for n, f, _ in chosen)[row["name"]])
    for row in rows:
        for other in rows:
            if (other["case"], other["name"]) == (row["case"], BASE):
                row["ratio"] = row["ms"] / other["ms"]
    return rows


def _ask(process, *question):
    """The answer of a contestant, as it comes out of the process."""
    process.stdin.write(json.dumps(question) + "\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith("answer "):  # and not what a library prints
            return json.loads(line.removeprefix("answer "))
    raise ChildProcessError("a contestant has ended; what it had to say is above")


def _scores(row, folder, format):
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
        found["mb"] = files.size(folder / _KERAS) / 1e6
    if row["case"] == "camvid":
        labels = np.load(folder / "labels.npy")
        matrix = confusion_matrix(lambda _: (ids,), [(ids[..., None], labels)], CLASSES)
        found["miou"] = float(scores(matrix)["miou"])
    return found


# === The files ===


def make(case, folder, formats, data, every, calibration, reuse, **_):
    """Writes photos, labels, the Keras model and the files of the formats into a folder."""
    import isa_tf

    folder, data, size = Path(folder), Path(data), CASES[case]
    large = case == "r50"
    photos, labels = _photos(data / "val", size, every=every, count=8 if large else None)
    np.save(folder / "photos.npy", photos)
    np.save(folder / "labels.npy", labels)
    if not reuse:
        for name in (_KERAS, *formats):
            _remove(folder / name)
    count = min(calibration, 16) if large else calibration
    seen, truth = _photos(data / "train", size, count=count)
    kept = folder / _KERAS
    if not kept.exists():
        if large:
            model = made_up_network(seen, truth)
        else:
            model = isa_tf.formats.load_model(Path(__file__).parents[1] / KEPT)
        isa_tf.export(model, kept)
    model = isa_tf.formats.load_model(kept)
    for format in formats:
        if (folder / format).exists():
            continue
        print(f"{case}: {format}", file=sys.stderr)
        try:
            if format == "openvino_int8":
                openvino_int8(folder / "openvino", folder / format, seen)
                continue
            known = isa_tf.formats.create(format)
            options = {"image_size": size, "calibration": seen}
            options = {name: options[name] for name in options if name in known.options}
            to = folder / f"{format}{known.suffix}"
            known.export(model, to, **options)
            to.rename(folder / format)  # by one name; what it is, is known
        except Exception as error:
            print(f"FAULT {case}, {format}: {error}", file=sys.stderr)
            _remove(folder / format)
    return 0


def _remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _photos(folder, size, every=1, count=None):
    """uint8 (N, H, W, 3) and (N, H, W): photos and labels of a split, resized where need be."""
    from isa_tf.data.folder import match_files
    from isa_tf.data.pictures import read_image, read_label

    faults = []
    pairs = match_files(folder / "images", folder / "labels", faults)
    if faults:
        raise faults[0]
    pairs = pairs[::every]
    if count is not None:
        count = min(count, len(pairs))
        pairs = [pairs[i * len(pairs) // count] for i in range(count)]

    def of_size(array, how):
        return np.asarray(Image.fromarray(array).resize(size[::-1], how))

    images = [of_size(read_image(path), Image.Resampling.BILINEAR) for _, path, _ in pairs]
    labels = [of_size(read_label(path, CLASSES), Image.Resampling.NEAREST) for _, _, path in pairs]
    return np.stack(images), np.stack(labels)


def made_up_network(photos, labels, backbone="resnet50_v1c"):
    """ResNet-50 at output stride 8 with ISA, whose classes are those of the photos' labels, nearly.

    Its convolutions are as they were initialised, its statistics those of four photos, and its
    classifier the least squares' one: a network of noise would decide by differences that mean
    nothing, and no format would agree with it.
    """
    import keras

    from isa_tf import backbones
    from isa_tf.models import ISANet

    keras.utils.set_random_seed(0)
    model = ISANet(backbones.create(backbone, 8), CLASSES)
    norms = [x for x in flatten_layers(model) if isinstance(x, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(photos[:4].astype("float32"), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    classifier = model.get_layer("logits_classifier")
    before = keras.Model(model.inputs, classifier.input)
    features, truth = [], []
    for photo, label in zip(photos, labels, strict=True):
        maps = np.asarray(before(photo[None].astype("float32"), training=False))[0]
        rows, columns = (
            (np.arange(n) * side // n + side // n // 2)
            for n, side in zip(maps.shape[:2], label.shape, strict=True)
        )
        wanted = label[np.ix_(rows, columns)]
        known = wanted != 255
        features.append(maps[known])
        truth.append(wanted[known])
    x = np.concatenate(features).astype(np.float64)
    x = np.concatenate([x, np.ones((len(x), 1))], 1)
    products = x.T @ x
    products += np.eye(len(products)) * 1e-3 * np.trace(products) / len(products)
    weights = 10 * np.linalg.solve(products, x.T @ np.eye(CLASSES)[np.concatenate(truth)])
    classifier.set_weights([weights[None, None, :-1], weights[-1]])
    return model


def openvino_int8(source, path, images):
    """Writes OpenVINO's model in int8, as its own quantiser, NNCF, makes it of images."""
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    graph = openvino.Core().read_model(str(source / "model.xml"))
    with contextlib.redirect_stdout(io.StringIO()):
        made = nncf.quantize(
            graph,
            nncf.Dataset([image[None] for image in images]),
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(types=_IN_FLOAT, validate=False),
        )
    path.mkdir(exist_ok=True)
    openvino.save_model(made, str(path / "model.xml"), compress_to_fp16=False)


# === A contestant ===


def serve(name, format, options, folders, threads):
    """Loads the models, then answers questions from standard input with lines on standard output.

    A question is a list: "ready"; "call" and a model, for the milliseconds that the second of two
    photos takes; or
    "predict", a model and a path, for the class ids of all photos.
    """
    _set_threads(threads)
    predictors, photos = {}, {}
    for case, folder in folders.items():
        photos[case] = np.load(Path(folder) / "photos.npy", mmap_mode="r")
        predictors[case] = _predictor(name, format, options, Path(folder), threads)
        for _ in range(2):  # what is made once is not the call's
            predictors[case](np.array(photos[case][0]))
    for line in sys.stdin:
        question, *told = json.loads(line)
        answer = None
        if question == "call":
            predictor, photo = predictors[told[0]], np.array(photos[told[0]][0])
            predictor(photo)  # wakes its threads and fills the caches, as one photo does the next
            start = time.perf_counter()
            predictor(photo)
            answer = 1000 * (time.perf_counter() - start)
        elif question == "predict":
            ids = [predictors[told[0]](np.array(photo))[0] for photo in photos[told[0]]]
            np.save(told[1], np.stack(ids))
        print("answer", json.dumps(answer), flush=True)
    return 0


def _set_threads(threads):
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)


def _predictor(name, format, options, folder, threads):
    from isa_tf import formats, inference

    whole = inference.Protocol()
    if format is None:
        model = formats.load_model(folder / _KERAS)
        model = inference.fuse(model) if name == "fused" else model
        return inference.Predictor.from_model(model, whole)
    known = formats.create("openvino" if format == "openvino_int8" else format)
    return known.load(folder / format, num_threads=threads, protocol=whole, **options)


if __name__ == "__main__":
    sys.exit({"make": make, "contestant": serve}[sys.argv[1]](**json.loads(sys.argv[2])))
