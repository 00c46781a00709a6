"""Coloured shapes that lie on each other: made-up images with instances."""

import zlib

import numpy as np

from isa_tf.data.instances import Annotations, InstanceDataset
from isa_tf.hints import Size
from isa_tf.names import two_ints

_SHAPES = (
    ("disc", (230, 75, 60)),
    ("square", (60, 180, 75)),
    ("triangle", (0, 130, 200)),
    ("ring", (245, 180, 40)),
)
# The shortest and longest side of a shape, as a part of the image's shorter side.
_SIDES = (0.12, 0.5)
_LEAST_PIXELS = 9


class SyntheticInstances(InstanceDataset):
    """Discs, squares, triangles and rings in any colour, one upon the other, drawn from a seed.

    Later ones hide parts of earlier ones; of what is hidden but for a few pixels nothing is told.
    Some images have no instance. A crowd, where there are any, is a region strewn with dots of a
    class's shape.

    Args:
        image_size: int for both sides, or (height, width). Defaults to (128, 128).
        num_examples: dict from split to number of examples. Defaults to
            `{"train": 1000, "val": 200}`.
        max_shapes: int, the most shapes in an image; as likely any number from 0 on. Defaults to 6.
        crowds: bool, whether every third image has a crowd. Defaults to `False`.
        seed: int. Defaults to 0.

    Shapes:
        `read` gives an image (H, W, 3), uint8, and `Annotations`.

    Raises:
        ValueError: for an `image_size` that is neither.

    Example:

    >>> data = isa_tf.data.SyntheticInstances(64, {"train": 8}, max_shapes=3)
    >>> image, annotations = data.read("train", 1)
    >>> image.shape
    (64, 64, 3)
    """

    def __init__(
        self,
        image_size: Size = (128, 128),
        num_examples: dict[str, int] | None = None,
        max_shapes: int = 6,
        crowds: bool = False,
        seed: int = 0,
    ) -> None:
        num_examples = dict(num_examples or {"train": 1000, "val": 200})
        names, palette = [name for name, _ in _SHAPES], [color for _, color in _SHAPES]
        super().__init__("synthetic_instances", names, tuple(num_examples), palette)
        self.image_size = two_ints("image_size", image_size)
        self.num_examples, self.max_shapes = num_examples, max_shapes
        self.crowds, self.seed = crowds, seed

    def examples(self, split: str) -> tuple[str, ...]:
        self._check_split(split)
        return tuple(f"{split}/{index:06d}" for index in range(self.num_examples[split]))

    def size_of(self, split: str, index: int) -> tuple[int, ...]:
        self._check_split(split)
        return self.image_size

    def sizes(self, split: str) -> np.ndarray:
        return np.array([self.image_size] * self.size(split))

    def read(self, split: str, index: int) -> tuple[np.ndarray, Annotations]:
        from pycocotools import mask

        self._check_split(split)
        rng = np.random.default_rng((self.seed, zlib.crc32(split.encode()), int(index)))
        height, width = self.image_size
        image = _background(rng, height, width)
        owner = np.full((height, width), -1)
        classes, crowd = [], []
        if self.crowds and index % 3 == 0:
            classes.append(int(rng.integers(len(_SHAPES))))
            crowd.append(True)
            region = _place(rng, height, width, (0.3, 0.5))
            dots = _inside(0, *region) & (rng.random((height, width)) < 0.5)
            owner[_inside(0, *region)] = 0
            image[dots] = rng.integers(0, 256, 3)
        for _ in range(rng.integers(self.max_shapes + 1)):
            kind = int(rng.integers(len(_SHAPES)))
            inside = _inside(kind, *_place(rng, height, width, _SIDES))
            owner[inside] = len(classes)
            shade = rng.normal(0, 8, (int(inside.sum()), 1))
            image[inside] = np.clip(rng.integers(0, 256, 3) + shade, 0, 255)
            classes.append(kind)
            crowd.append(False)
        entries, masks = [], []
        for n, kind in enumerate(classes):
            visible = owner == n
            if visible.sum() < _LEAST_PIXELS:
                continue
            rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
            x, y = int(columns[0]), int(rows[0])
            entries.append(
                {
                    "id": int(index) * (self.max_shapes + 1) + n + 1,
                    "category_id": self.category_ids[kind],
                    "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
                    "area": int(visible.sum()),
                    "iscrowd": int(crowd[n]),
                }
            )
            masks.append(mask.encode(np.asfortranarray(visible.astype(np.uint8))))
        return image.astype(np.uint8), Annotations.of(entries, masks, self.class_ids)


def _background(rng, height, width):
    """Grey that changes slowly, with noise."""
    slope = rng.uniform(-40, 40, 2)
    y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j]
    grey = rng.uniform(80, 170) + slope[0] * y + slope[1] * x
    return np.clip(grey[..., None] + rng.normal(0, 10, (height, width, 3)), 0, 255)


def _place(rng, height, width, sides):
    """Coordinates of all pixels within a turned square: about -1 to 1 in it."""
    half = max(rng.uniform(*sides) * min(height, width) / 2, 2.0)
    centre = rng.uniform(0, height), rng.uniform(0, width)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0.5:height, 0.5:width]
    y, x = (y - centre[0]) / half, (x - centre[1]) / half
    return np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x


def _inside(kind, y, x):
    name, radius = _SHAPES[kind][0], np.hypot(y, x)
    if name == "disc":
        return radius <= 1
    if name == "ring":
        return (radius <= 1) & (radius >= 0.55)
    if name == "square":
        return np.maximum(np.abs(y), np.abs(x)) <= 0.85
    return (y <= 0.6) & (1.6 * np.abs(x) - 0.9 <= y)
