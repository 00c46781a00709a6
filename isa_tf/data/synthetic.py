"""A harbour at night: made-up images that no classifier of small neighbourhoods can label."""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from isa_tf.data.base import SegmentationDataset
from isa_tf.hints import Size
from isa_tf.names import two_ints

# A lamp and the fleet that it makes: (name, colour).
_LAMPS = (
    ("red", (255, 56, 48)),
    ("green", (48, 255, 110)),
    ("amber", (255, 190, 40)),
    ("blue", (70, 130, 255)),
)
_LOCAL = (("sea", (22, 48, 84)), ("rock", (120, 108, 96)), ("beacon", (245, 245, 245)))
_SEA, _ROCK, _BEACON = range(3)

# Pixels. Beyond its radius the beacon changes no pixel of the image.
BEACON_RADIUS = 9
_PLATFORM_RADIUS = 4.5
_SHIP_LENGTH = (18.0, 32.0)
_ROCK_RADIUS = (5.0, 12.0)
_SHIP_MARGIN = _SHIP_LENGTH[1] / 2 + 1
_BEACON_MARGIN = BEACON_RADIUS + 1
_LEAST_ROOM = 8


class Ship(NamedTuple):
    """Where a ship lies: its centre, length and heading (radians), in pixels."""

    y: float
    x: float
    length: float
    angle: float


class Layout(NamedTuple):
    """Where things lie: the beacon (y, x), the ships, and the rocks (y, x, radius)."""

    beacon: tuple[float, float]
    ships: tuple[Ship, ...]
    rocks: tuple[tuple[float, float, float], ...]


class SyntheticDataset(SegmentationDataset):
    """A harbour at night, where one lamp, far away, decides what every ship is.

    Seven classes: sea, rock and beacon can be told from their looks. The other four are ships,
    all drawn alike; whether they are red, green, amber or blue ships depends on the colour of
    the image's one beacon, which lies at least `min_distance` pixels (Chebyshev, from the
    outermost pixel of its glow) from every pixel of every ship. `render` with the same seed and
    another context class gives an image that differs within `BEACON_RADIUS` of the beacon and
    nowhere else. So a network without long-range context is left to guess among four.
    Small lights of all four colours, driftwood, wakes and foam are there to mislead it.

    Context classes take turns, so each is that of a quarter of the examples.

    Args:
        image_size: int for both sides, or (height, width). Defaults to (128, 128).
        num_examples: dict from split to number of examples. Defaults to
            `{"train": 2000, "val": 400}`.
        min_distance: int, pixels. Defaults to 48.
        seed: int. Defaults to 0.

    Shapes:
        `read` gives an image (H, W, 3) and a label (H, W), both uint8.

    Raises:
        ValueError: for an `image_size` that is neither, or where no ship fits that far from a
            beacon.

    Example:

    >>> data = isa_tf.data.SyntheticDataset(num_examples={"train": 400, "val": 100})
    >>> image, label = data.read("train", 0)
    >>> train = isa_tf.data.train_pipeline(
    ...     data, "train", 16, data.image_size, scale_range=None, photometric=False, cache=True
    ... )
    """

    def __init__(
        self,
        image_size: Size = (128, 128),
        num_examples: dict[str, int] | None = None,
        min_distance: int = 48,
        seed: int = 0,
    ) -> None:
        num_examples = dict(num_examples or {"train": 2000, "val": 400})
        classes = _LOCAL + tuple((f"ship_{name}", color) for name, color in _LAMPS)
        super().__init__(
            "synthetic",
            [name for name, _ in classes],
            splits=tuple(num_examples),
            palette=[color for _, color in classes],
        )
        self.image_size = two_ints("image_size", image_size)
        self.num_examples = num_examples
        self.min_distance = min_distance
        self.seed = seed
        least = 2 * _SHIP_MARGIN + _BEACON_MARGIN + self._reach + _LEAST_ROOM
        if max(self.image_size) < least or min(self.image_size) < 2 * _SHIP_MARGIN:
            raise ValueError(
                f"with min_distance={min_distance}, one side of the image must have at least "
                f"{int(np.ceil(least))} pixels, got image_size={self.image_size}"
            )

    @property
    def context_class_ids(self) -> tuple[int, ...]:
        """Tuple of int, the ids of the classes that the beacon decides."""
        return tuple(range(len(_LOCAL), self.num_classes))

    def examples(self, split: str) -> tuple[str, ...]:
        self._check_split(split)
        return tuple(f"{split}/{index:06d}" for index in range(self.num_examples[split]))

    def example_seed(self, split: str, index: int) -> tuple[int, int, int]:
        """Tuple of int, the seed that `read` gives to `render`."""
        return (self.seed, zlib.crc32(split.encode()), int(index))

    def read(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        self._check_split(split)
        context = self.context_class_ids[index % len(_LAMPS)]
        return self.render(self.example_seed(split, index), context)

    def layout(self, seed: int | Sequence[int]) -> "Layout":
        """The `Layout` of a seed: it knows nothing of the context class."""
        rng = np.random.default_rng(seed)
        height, width = self.image_size
        while True:
            drawn = rng.uniform(_BEACON_MARGIN, np.subtract(self.image_size, _BEACON_MARGIN))
            down, right = np.floor(drawn)
            beacon = down, right
            sides = (*beacon, height - 1 - beacon[0], width - 1 - beacon[1])
            if max(sides) >= self._reach + 2 * _SHIP_MARGIN + _LEAST_ROOM - 1:
                break
        # Circles that the things lie in, which do not meet: (y, x, radius).
        taken = [(*beacon, _PLATFORM_RADIUS + 2)]
        ships = []
        for length in sorted(rng.uniform(*_SHIP_LENGTH, rng.integers(2, 5)))[::-1]:
            clear = self._reach + length / 2 + 1
            spots = self._spots(rng, 64, _SHIP_MARGIN)
            far = np.abs(spots - np.array(beacon)).max(axis=1) >= clear
            spot = _first_free(spots[far], length / 2 + 1, taken)
            if spot is not None:
                y, x = spot
                ships.append(Ship(y, x, length, rng.uniform(0, 2 * np.pi)))
        rocks = []
        for radius in rng.uniform(*_ROCK_RADIUS, rng.integers(3, 6) * height * width // 128**2):
            spot = _first_free(self._spots(rng, 16, 0), 1.3 * radius, taken)
            if spot is not None:
                rocks.append((*spot, radius))
        return Layout(beacon, tuple(ships), tuple(rocks))

    def render(
        self, seed: int | Sequence[int], context_class: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws the scene of a seed.

        Args:
            seed: int or sequence of ints.
            context_class: int, one of `context_class_ids`.

        Shapes:
            -> image (H, W, 3) and label (H, W), both uint8.
        """
        if context_class not in self.context_class_ids:
            raise ValueError(
                f"context_class must be one of {self.context_class_ids}, got {context_class}"
            )
        layout = self.layout(seed)
        rng = np.random.default_rng((*np.atleast_1d(seed), 1))
        canvas = _Canvas(self.image_size, rng)
        canvas.sea()
        for ship in layout.ships:
            canvas.wake(ship)
        canvas.clutter()
        for rock in layout.rocks:
            canvas.rock(*rock)
        for ship in layout.ships:
            canvas.ship(ship, context_class)
        canvas.decoys(layout.beacon)
        canvas.grain()
        y, x = layout.beacon
        canvas.beacon(y, x, _LAMPS[context_class - len(_LOCAL)][1])
        image = np.clip(canvas.image, 0, 255).astype(np.uint8)
        return image, canvas.label

    @property
    def _reach(self):
        return self.min_distance + BEACON_RADIUS

    def _spots(self, rng, count, margin):
        return rng.uniform(margin, np.subtract(self.image_size, 1 + margin), (count, 2))


def _first_free(spots, radius, taken):
    """The first of `spots` whose circle meets none in `taken`, which it joins; or `None`."""
    for y, x in spots:
        if all(np.hypot(y - b, x - a) >= radius + r for b, a, r in taken):
            taken.append((y, x, radius))
            return y, x
    return None


class _Canvas:
    """The image (H, W, 3) and the label (H, W) while they are drawn.

    Things are drawn on the patch around them, from the signed distance to their outline, which
    gives smooth edges; a pixel is theirs in the label where at least half of it is.
    """

    def __init__(self, image_size, rng):
        self.rng = rng
        self.size = image_size
        self.image = np.zeros((*image_size, 3), np.float32)
        self.label = np.zeros(image_size, np.uint8)
        self.texture = 0.6 * self._noise(24) + 0.4 * self._noise(6)

    def sea(self):
        height, width = self.size
        y, x = np.ogrid[:height, :width]
        warp = 6 * self._noise(32)
        wind = self.rng.uniform(0, 2 * np.pi)
        waves = np.zeros(self.size, np.float32)
        for length, weight in ((31, 0.5), (17, 0.8), (9.5, 0.9), (5.5, 0.6)):
            angle = wind + self.rng.normal(0, 0.35)
            along = y * np.sin(angle) + x * np.cos(angle) + warp
            phase = (2 * np.pi / length) * along + self.rng.uniform(0, 2 * np.pi)
            waves += weight * np.sin(phase.astype(np.float32))
        # A long swell of light and dark, and the moon's glitter on the crests.
        light = (1 + 0.25 * self._noise(48) + 0.10 * waves)[..., None]
        moon_y, moon_x = self.rng.uniform(0, 1, 2) * self.size
        spread = np.hypot((y - moon_y) / height, (x - moon_x) / width).astype(np.float32)
        moon = np.exp(-((spread / 0.38) ** 2))
        crest = np.clip(waves + 0.9 * self.texture - 0.9, 0, None) * (0.10 + moon)
        self.image[:] = light * np.array((15, 40, 68), np.float32)
        self.image += moon[..., None] * np.array((10, 24, 34), np.float32)
        self.image += crest[..., None] * np.array((62, 74, 84), np.float32)

    def wake(self, ship):
        """Two lines of foam behind a ship; sea, to the label."""
        reach = 1.6 * ship.length
        box, u, v = self._frame(ship.y, ship.x, ship.angle, reach)
        behind = -u - 0.35 * ship.length
        lines = np.exp(-((np.abs(v) - 0.12 * ship.length - 0.16 * behind) ** 2) / 1.6)
        churn = 0.5 * np.exp(-(v**2) / 6)
        fade = np.clip(1 - behind / (reach - 0.35 * ship.length), 0, 1) * (behind > 0)
        foam = (lines + churn) * fade * (0.8 + 0.5 * self.texture[box])
        self.image[box] += 78 * np.clip(foam, 0, None)[..., None]

    def clutter(self):
        """Driftwood and crates; sea, to the label."""
        for _ in range(self.rng.integers(4, 9)):
            y, x = self.rng.uniform(0, 1, 2) * self.size
            long, wide = self.rng.uniform(1.5, 5), self.rng.uniform(0.8, 1.6)
            box, u, v = self._frame(y, x, self.rng.uniform(0, np.pi), 7)
            edge = np.maximum(np.abs(u) - long, np.abs(v) - wide)
            tone = self.rng.uniform(0.6, 1.2)
            self._paint(box, edge, tone * np.array((104, 82, 60)), None)

    def rock(self, y, x, radius):
        box, u, v = self._frame(y, x, 0.0, 1.5 * radius + 4)
        around = np.arctan2(v, u)
        outline = np.ones_like(around)
        for k, weight in ((2, 0.14), (3, 0.10), (5, 0.06), (8, 0.04)):
            outline += weight * np.sin(k * around + self.rng.uniform(0, 2 * np.pi))
        distance = np.hypot(u, v)
        edge = distance - radius * outline
        foam = np.exp(-((edge - 1.2) ** 2) / 1.8) * (0.75 + 0.6 * self.texture[box])
        self.image[box] += 82 * np.clip(foam, 0, None)[..., None]
        # A dome, lit from the upper left, with cracks.
        slope = (u + v) / (1.4 * radius)
        tone = 0.85 - 0.35 * slope + 0.30 * self.texture[box]
        tone = np.clip(tone, 0.25, None) * self.rng.uniform(0.8, 1.15)
        self._paint(box, edge, tone[..., None] * np.array((92, 86, 82)), _ROCK)

    def ship(self, ship, context_class):
        half = ship.length / 2
        box, u, v = self._frame(ship.y, ship.x, ship.angle, half + 3)
        beam = half * self.rng.uniform(0.34, 0.42)
        taper = np.sqrt(np.clip(1 - (np.clip(u / half - 0.1, 0, None) / 0.9) ** 2, 0, 1))
        edge = np.maximum(np.abs(v) - beam * taper, np.abs(u) - half)
        paint = np.array((1.0, 0.98, 0.94)) * self.rng.uniform(125, 190)
        self._paint(box, edge, 0.45 * paint, context_class)  # hull
        self._paint(box, edge + 1.2, paint * (1 + 0.12 * self.texture[box])[..., None], None)
        cabin = np.maximum(np.abs(u + 0.45 * half) - 0.28 * half, np.abs(v) - 0.62 * beam)
        self._paint(box, cabin, 0.6 * paint, None)
        for place in (0.02, 0.38):  # hatches
            hatch = np.maximum(np.abs(u - place * half) - 0.13 * half, np.abs(v) - 0.45 * beam)
            self._paint(box, hatch, 0.75 * paint, None)
        for side in (-1, 1):  # windows
            glow = np.exp(-((u + 0.2 * half) ** 2 + (v - side * 0.35 * beam) ** 2) / 0.9)
            self.image[box] += glow[..., None] * np.array((150, 125, 70))

    def decoys(self, beacon):
        """Small bare lights in the colours of the lamps; they mean nothing."""
        for _ in range(self.rng.integers(3, 8)):
            y, x = self.rng.uniform(0, 1, 2) * self.size
            color = np.array(_LAMPS[self.rng.integers(len(_LAMPS))][1])
            if np.hypot(y - beacon[0], x - beacon[1]) > 2 * BEACON_RADIUS:
                box, u, v = self._frame(y, x, 0.0, 5)
                distance = np.hypot(u, v)
                core = np.exp(-((distance / 1.1) ** 2)) + 0.3 * np.exp(-((distance / 2.4) ** 2))
                self.image[box] += (core * (self.label[box] == _SEA))[..., None] * color

    def grain(self):
        noise = self.rng.standard_normal(self.size, np.float32)
        self.image += 3.5 * noise[..., None]

    def beacon(self, y, x, color):
        """A white platform with a coloured lamp; the glow ends at `BEACON_RADIUS`."""
        box, u, v = self._frame(y, x, 0.0, BEACON_RADIUS)
        distance = np.hypot(u, v)
        color = np.array(color, np.float64)
        glow = np.clip(1 - distance / BEACON_RADIUS, 0, 1) ** 1.5
        self.image[box] += 0.9 * glow[..., None] * color
        self._paint(box, distance - _PLATFORM_RADIUS, np.array((225, 225, 220)), _BEACON)
        self._paint(box, distance - 3.1, 0.25 * color + 20, None)
        self._paint(box, distance - 2.4, color, None)
        self.image[box] += np.exp(-(distance**2) / 0.8)[..., None] * 120

    def _noise(self, cell):
        """Smooth noise of about unit size, in bumps of `cell` pixels."""
        rows, columns = (side // cell + 2 for side in self.size)
        coarse = Image.fromarray(self.rng.standard_normal((rows, columns), np.float32))
        return np.asarray(coarse.resize(self.size[::-1], Image.Resampling.BICUBIC))

    def _frame(self, y, x, angle, reach):
        """The patch within `reach` of a point, and coordinates along and across an angle."""
        rows, columns = (
            slice(max(int(np.floor(c - reach)), 0), min(int(np.ceil(c + reach)) + 1, side))
            for c, side in zip((y, x), self.size, strict=True)
        )
        down = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - y
        right = np.arange(columns.start, columns.stop, dtype=np.float32) - x
        along = right * np.cos(angle) + down * np.sin(angle)
        return (rows, columns), along, down * np.cos(angle) - right * np.sin(angle)

    def _paint(self, box, edge, color, class_id):
        cover = np.clip(0.5 - edge, 0, 1)[..., None]
        self.image[box] += cover * (color - self.image[box])
        if class_id is not None:
            self.label[box][edge <= 0] = class_id
