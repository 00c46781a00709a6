"""The files of the formats that `deploy` compares: two models, photos, and what is written of them.

Each model has a process of its own, which may take all the memory that converting needs.
"""

import contextlib
import io
import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from isa_tf.compat import flatten_layers
from tools.bench.machine import ROOT

KEPT = ROOT / "experiments/trained/camvid/best.keras"
CLASSES = 11
CASES = {"r50": (256, 512), "camvid": (360, 480)}
KERAS = "model.keras"
# Not in int8: what `formats.litert` keeps in float32 too.
_IN_FLOAT = ["Softmax", "Select", "Interpolate"]


def make(case, folder, formats, data, every, calibration, reuse, **_):
    """Writes photos, labels, the Keras model and the files of the formats into a folder."""
    import isa_tf

    folder, data, size = Path(folder), Path(data), CASES[case]
    large = case == "r50"
    photos, labels = _photos(data / "val", size, every=every, count=8 if large else None)
    np.save(folder / "photos.npy", photos)
    np.save(folder / "labels.npy", labels)
    if not reuse:
        for name in (KERAS, *formats):
            _remove(folder / name)
    count = min(calibration, 16) if large else calibration
    seen, truth = _photos(data / "train", size, count=count)
    kept = folder / KERAS
    if not kept.exists():
        if large:
            model = made_up_network(seen, truth)
        else:
            model = isa_tf.formats.load_model(KEPT)
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
    from isa_tf.data.listing import match_files
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


if __name__ == "__main__":
    sys.exit(make(**json.loads(sys.argv[2])))
