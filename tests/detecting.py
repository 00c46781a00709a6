"""A narrow Mask R-CNN whose outputs are lively, batches for it, and slow references of boxes."""

import math

import keras
import numpy as np
import tensorflow as tf

from isa_tf import backbones, layers
from isa_tf.models import MaskRCNN
from isa_tf.testing import randomize

CLASSES = 3
NARROW = {
    "num_classes": CLASSES,
    "filters": 16,
    "box_units": (24,),
    "mask_convs": 2,
    "proposals_before": (200, 120),
    "proposals_after": (80, 50),
    "rpn_samples": 32,
    "box_samples": 32,
    "max_detections": 12,
    "anchor_sizes": (8, 16, 32, 64, 96),
}

# Layers whose inputs are no maps alone: tests/layers/test_detection.py has their cases.
OF_BOXES = {
    layers.Detections,
    layers.FillPadding,
    layers.MasksOfClasses,
    layers.Proposals,
    layers.PyramidAnchors,
    layers.PyramidRoIAlign,
}


def narrow(context=None, seed=0, backbone=None, **arguments):
    """A `MaskRCNN` with random weights that finds something of every class."""
    context_at = {"c4": context} if context else None
    options = {"filters": 8, "context_at": context_at, **(backbone or {})}
    keras.utils.set_random_seed(seed)
    model = MaskRCNN(backbones.create("resnet18", **options), **{**NARROW, **arguments})
    for part in (model.get_layer(n) for n in ("pyramid", "rpn_head", "box_head", "mask_head")):
        randomize(part, seed)
    for name in ("rpn_head", "box_head"):
        codes = model.get_layer(name).get_layer("codes")
        codes.kernel.assign(0.1 * codes.kernel)
    _enliven(model)
    return model


def _enliven(model):
    """Makes what heads say differ from place to place, around nothing in particular."""
    seen = model(images(), training=True)
    logits = [tf.reshape(x, (-1, 3)) for x in seen["logits"]]
    _standardize(model.get_layer("rpn_head").get_layer("logits"), tf.concat(logits, 0), 2.0)
    seen = model(images(), training=True)
    told = {name: seen[name] for name in ("logits", "codes", "anchors")}
    boxes, _ = model.get_layer("proposals")({**told, "size": np.int32([[96, 128]] * 2)})
    sampled = model.get_layer("box_align")([boxes, *seen["pyramid"]])
    head = model.get_layer("box_head")
    _standardize(head.get_layer("logits"), head(sampled)[0], 2.0)


def _standardize(layer, outputs, deviation):
    """Shifts and scales a last layer so that its outputs have a mean of 0 and a deviation."""
    axes = tuple(range(len(outputs.shape) - 1))
    mean, scale = np.mean(outputs, axes), deviation / np.std(outputs, axes)
    layer.kernel.assign(layer.kernel * scale)
    layer.bias.assign((layer.bias - mean) * scale)


def images(number=2, size=(96, 128), seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (number, *size, 3)).astype("float32")


def batch(number=2, size=(96, 128), objects=4, places=6, seed=0):
    """(x, y): images, one of them smaller than its padded place, and what is on them.

    The last of an image's objects is a crowd; some places are empty.
    """
    rng = np.random.default_rng(seed)
    sizes = np.tile(np.int32(size), (number, 1))
    sizes[-1] -= (10, 20)
    boxes = np.zeros((number, places, 4), "float32")
    for b in range(number):
        for n in range(objects):
            side = rng.uniform(12, 60, 2)
            corner = rng.uniform(0, 1, 2) * (sizes[b, ::-1] - side)
            boxes[b, n] = [*corner, *(corner + side)]
    valid = np.tile(np.arange(places) < objects, (number, 1))
    grown = np.where(valid[..., None], boxes + np.float32([-1, -1, 1, 1]), 0).astype("float32")
    y = {
        "boxes": boxes,
        "classes": np.where(valid, rng.integers(0, CLASSES, (number, places)), 0).astype("int32"),
        "valid": valid,
        "crowd": valid & (np.arange(places) == objects - 1),
        "masks": rng.integers(0, 256, (number, places, 24, 24)).astype("uint8"),
        "mask_boxes": grown,
        "seed": np.stack([np.full(number, 5), np.arange(number)], -1).astype("int32"),
    }
    x = {"image": images(number, size, seed), "size": sizes}
    return tuple({name: tf.constant(v) for name, v in part.items()} for part in (x, y))


# === In float64 ===


def iou(a, b):
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union else 0.0


def coverage(a, b):
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    area = (a[2] - a[0]) * (a[3] - a[1])
    return width * height / area if area else 0.0


def decode(code, box, weights=(1, 1, 1, 1)):
    dx, dy, dw, dh = (float(c) / w for c, w in zip(code, weights, strict=True))
    width, height = box[2] - box[0], box[3] - box[1]
    x, y = box[0] + width / 2 + dx * width, box[1] + height / 2 + dy * height
    limit = math.log(1000 / 16)
    width, height = width * math.exp(min(dw, limit)), height * math.exp(min(dh, limit))
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def encode(box, reference, weights=(1, 1, 1, 1)):
    width, height = reference[2] - reference[0], reference[3] - reference[1]
    code = [
        (box[0] + box[2] - reference[0] - reference[2]) / 2 / width,
        (box[1] + box[3] - reference[1] - reference[3]) / 2 / height,
        math.log((box[2] - box[0]) / width),
        math.log((box[3] - box[1]) / height),
    ]
    return [c * w for c, w in zip(code, weights, strict=True)]


def clip(box, size):
    return [min(max(c, 0.0), limit) for c, limit in zip(box, [size[1], size[0]] * 2, strict=True)]


def suppress(found, threshold, count):
    """Of (score, kind, box), from the highest score down, what overlaps none of its kind."""
    taken = []
    for score, kind, box in sorted(found, key=lambda entry: -entry[0]):
        if not any(kind == k and iou(box, b) > threshold for _, k, b in taken):
            taken.append((score, kind, box))
    return taken[:count]


def sigmoid(x):
    return 1 / (1 + math.exp(-float(x)))
