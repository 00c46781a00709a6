"""A narrow detector, and a slow reference of what surrounds it."""

import keras
import numpy as np
from viewing import bilinear

from isa_tf import backbones
from isa_tf.models import MaskRCNN

NAMES = ("cup", "dog", "Bäume")
PALETTE = ((200, 40, 40), (40, 200, 40), (40, 60, 220))
IDS = (47, 18, 90)
PROTOCOL = {"short_side": 64, "long_side": 96, "size_divisor": 32}


def make_detector(finds=True, **kwargs):
    """A `MaskRCNN` with random weights that finds things of all classes, or nothing at all."""
    keras.utils.set_random_seed(2)
    model = MaskRCNN(
        backbones.create("resnet18", filters=8),
        3,
        filters=16,
        anchor_sizes=(8, 16, 32, 48, 64),
        box_units=(16,),
        mask_convs=1,
        proposals_before=(40, 40),
        proposals_after=(40, 20),
        score_threshold=0.6 if finds else 1.0,
        max_detections=6,
        class_names=NAMES,
        palette=PALETTE,
        category_ids=IDS,
        protocol=PROTOCOL,
        **kwargs,
    )
    images = photos(4, 64, 96, seed=9).astype("float32")
    # What random weights say hardly differs; here all classes and some of the places win clearly.
    for name, layer, spread in (("rpn_head", "logits", 3), ("box_head", "logits", 2.5)):
        _spread(model, images, model.get_layer(name), layer, spread)
    _spread(model, images, model.get_layer("mask_head"), "logits", 6)
    return model


def _spread(model, images, head, name, deviation):
    """Scales a head's layer, so that each channel of what it says has mean 0 and a deviation."""
    layer, seen = head.get_layer(name), []
    call = layer.call
    layer.call = lambda x, **_: seen.append(np.asarray(call(x))) or call(x)
    model(images, training=False)
    layer.call = call
    said = np.concatenate([x.reshape(-1, x.shape[-1]) for x in seen]).astype(np.float64)
    kernel, bias = layer.get_weights()
    scale = deviation / said.std(0)
    layer.set_weights([kernel * scale, (bias - said.mean(0)) * scale])


def photos(*shape, seed=0):
    """Images (B, h, w, 3) of smooth blotches."""
    rng = np.random.default_rng(seed)
    return np.round(bilinear(rng.integers(0, 256, (shape[0], 3, 4, 3)), shape[1:])).astype("uint8")


def paste(mask, box, size):
    """A mask in its box, pixel by pixel: torchvision's rule, in float64."""
    m = len(mask) + 2
    bordered = np.pad(np.asarray(mask, np.float64), 1)
    center, half = (box[2:] + box[:2]) / 2, (box[2:] - box[:2]) / 2 * np.float32(m / (m - 2))
    x1, y1, x2, y2 = np.trunc(np.concatenate([center - half, center + half])).astype(int)
    height, width = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
    whole = bilinear(bordered[None, ..., None], (height, width))[0, ..., 0]
    pasted = np.zeros(size)
    for y in range(max(y1, 0), min(y2 + 1, size[0])):
        for x in range(max(x1, 0), min(x2 + 1, size[1])):
            pasted[y, x] = whole[y - y1, x - x1]
    return pasted


def expected(model, image, protocol=PROTOCOL):
    """(boxes, classes, scores, mask probabilities) of an image, by NumPy around the model."""
    h, w = image.shape[:2]
    scale = min(protocol["short_side"] / min(h, w), protocol["long_side"] / max(h, w))
    size = int(h * scale), int(w * scale)
    divisor = protocol["size_divisor"]
    padded = np.zeros((1, -(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor, 3))
    padded[:, : size[0], : size[1]] = bilinear(image[None], size)
    found = model({"image": padded.astype("float32"), "size": np.int32([size])}, training=False)
    found = {name: np.asarray(value)[0] for name, value in found.items()}
    valid = found["valid"]
    ratio = np.array([w / size[1], h / size[0]] * 2)
    boxes = (found["boxes"][valid] * ratio).astype("float32")
    masks = [
        paste(mask, box, (h, w)) for mask, box in zip(found["masks"][valid], boxes, strict=True)
    ]
    masks = np.stack(masks) if masks else np.zeros((0, h, w))
    return boxes, found["classes"][valid], found["scores"][valid], masks


def assert_agrees(found, truth):
    """`Instances` are those of `expected`, masks but for near-ties."""
    boxes, classes, scores, masks = truth
    assert found.boxes.dtype == found.scores.dtype == np.float32 and found.masks.dtype == bool
    assert found.classes.dtype == np.int32
    np.testing.assert_array_equal(found.classes, classes)
    np.testing.assert_allclose(found.scores, scores, atol=1e-4)
    np.testing.assert_allclose(found.boxes, boxes, atol=0.01)
    assert found.masks.shape == masks.shape
    clear = np.abs(masks - 0.5) > 1e-3
    assert clear.sum() >= 0.95 * clear.size
    np.testing.assert_array_equal(found.masks[clear], (masks > 0.5)[clear])
