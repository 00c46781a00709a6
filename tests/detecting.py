"""A small model that finds instances, and a slow reference of what surrounds it."""

import keras
import numpy as np
import tensorflow as tf
from viewing import bilinear

NAMES = ("cup", "dog", "Bäume")
PALETTE = ((200, 40, 40), (40, 200, 40), (40, 60, 220))
IDS = (47, 18, 90)
PROTOCOL = {"short_side": 64, "long_side": 96, "size_divisor": 32}
COUNT = 6


@keras.saving.register_keras_serializable("tests")
class Blobs(keras.layers.Layer):
    def __init__(self, least=0.6, **kwargs):
        super().__init__(**kwargs)
        self.least = least

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def get_config(self):
        return {**super().get_config(), "least": self.least}

    def call(self, x):
        cells = tf.nn.avg_pool2d(x["image"], 16, 16, "VALID") / 255 * self.scale
        columns = tf.shape(cells)[2]
        flat = tf.reshape(cells, (tf.shape(cells)[0], -1, 3))
        scores, index = tf.math.top_k(tf.reduce_max(flat, -1), COUNT)
        classes = tf.gather(tf.argmax(flat, -1, output_type=tf.int32), index, batch_dims=1)
        y = tf.cast(index // columns, tf.float32) * 16 - 5.25
        x1 = tf.cast(index % columns, tf.float32) * 16 + 2.5
        boxes = tf.stack([x1, y, x1 + 20.75, y + 25.5], -1)
        limit = tf.cast(tf.reverse(x["size"], [1]), tf.float32)[:, None]
        boxes = tf.clip_by_value(boxes, 0, tf.concat([limit, limit], -1))
        at = tf.linspace(-1.0, 1.0, 28)
        disc = tf.sigmoid(8 * (0.9 - at[:, None] ** 2 - at**2))
        valid = scores > self.least
        keep = tf.cast(valid, tf.float32)
        return {
            "boxes": boxes * keep[..., None],
            "scores": scores * keep,
            "classes": tf.where(valid, classes, 0),
            "valid": valid,
            "masks": tf.ones((tf.shape(boxes)[0], COUNT, 1, 1)) * disc * keep[..., None, None],
        }


@keras.saving.register_keras_serializable("tests")
class Detector(keras.Model):
    task = "instance_segmentation"

    def __init__(self, least=0.6, **facts):
        image, size = (
            keras.Input((None, None, 3), name="image"),
            keras.Input((2,), dtype="int32", name="size"),
        )
        inputs = {"image": image, "size": size}
        super().__init__(inputs=inputs, outputs=Blobs(least, name="blobs")(inputs))
        self.least, self.facts = least, facts
        for name, value in facts.items():
            setattr(self, name, value)

    def get_config(self):
        return {"least": self.least, **self.facts}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


def make_detector(finds=True):
    return Detector(
        0.55 if finds else 2.0,
        num_classes=3,
        class_names=NAMES,
        palette=PALETTE,
        category_ids=IDS,
        protocol=PROTOCOL,
    )


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
    for y in range(size[0]):
        for x in range(size[1]):
            if y1 <= y <= y2 and x1 <= x <= x2:
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
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes, boxes, atol=2e-3)
    assert found.masks.shape == masks.shape
    clear = np.abs(masks - 0.5) > 1e-3
    assert clear.sum() >= 0.95 * clear.size
    np.testing.assert_array_equal(found.masks[clear], (masks > 0.5)[clear])
