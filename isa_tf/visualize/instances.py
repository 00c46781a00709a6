"""Pictures of instances: masks over a photo, their boxes, and what they are."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from isa_tf.data.base import voc_palette
from isa_tf.hints import Colors
from isa_tf.names import class_name
from isa_tf.visualize.pictures import IGNORE_COLOR, sheet

_LEAST_SIDE = 480  # pixels: smaller pictures have no room for letters
_DARK, _LIGHT = (16, 17, 20), (255, 255, 255)


class Drawn(Protocol):
    """What there is to draw of the instances in an image, such as `isa_tf.inference.Instances`.

    Attributes:
        boxes: (n, 4), (x1, y1, x2, y2) in pixels.
        classes: ints (n,), from 0.
        masks: bool (n, H, W).
    """

    @property
    def boxes(self) -> np.ndarray: ...

    @property
    def classes(self) -> np.ndarray: ...

    @property
    def masks(self) -> np.ndarray: ...


def draw_instances(
    image: np.ndarray,
    instances: Drawn,
    class_names: Sequence[str] | None = None,
    palette: Colors | None = None,
    opacity: float = 0.4,
    boxes: bool = True,
    labels: bool = True,
    width: int | None = None,
) -> np.ndarray:
    """Paints instances over a photo: masks with outlines, boxes, names with scores.

    Smaller instances lie on top of larger ones. Of two of one class the colours differ a little.
    Letters and lines suit the size of the picture. Labels go where they hide no other, the highest
    score first; one that finds no room at its box is left out.

    Args:
        image: uint8 (H, W, 3), RGB.
        instances: what has `boxes` (n, 4), (x1, y1, x2, y2) in pixels, `classes` (n,), `masks`,
            bool (n, H, W), and maybe `scores` (n,), and `crowd`, bool (n,), whose regions are
            painted light grey: `isa_tf.inference.Instances` or `Truth`.
        class_names: sequence of str; `None` for "class 0", ... Defaults to `None`.
        palette: RGB triples, 0..255, one a class; `None` for PASCAL VOC's without its
            black. Defaults to `None`.
        opacity: float in [0, 1], of the masks. Defaults to 0.4.
        boxes: bool, whether to draw the boxes. Defaults to `True`.
        labels: bool, whether to write names and scores. Defaults to `True`.
        width: int, pixels that the picture is wide, whatever the image is; `None` for the image's
            own width, or so wide that the longer side is 480 pixels. Defaults to `None`.

    Shapes:
        (H, W, 3) -> (height, width, 3), uint8, of the image's proportions.

    Raises:
        ValueError: for masks of another size, boxes or classes that are not as many, an opacity out
            of range, a class without name or colour.

    Example:

    >>> found = isa_tf.inference.InstancePredictor.from_model(detector)(image)
    >>> picture = draw_instances(image, found, data.class_names, data.palette)
    >>> Image.fromarray(picture).save("instances.png")
    """
    image = np.asarray(image)
    corners = np.asarray(instances.boxes, np.float64).reshape(-1, 4)
    classes, masks = np.asarray(instances.classes), np.asarray(instances.masks)
    scores, crowd = getattr(instances, "scores", None), getattr(instances, "crowd", None)
    crowd = np.zeros(len(classes), bool) if crowd is None else np.asarray(crowd)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"an image is uint8 (H, W, 3), got {image.dtype} {image.shape}")
    if masks.dtype != bool or masks.shape != (len(classes), *image.shape[:2]):
        raise ValueError(
            f"masks are bool {(len(classes), *image.shape[:2])} for {len(classes)} classes and an "
            f"image {image.shape}, got {masks.dtype} {masks.shape}"
        )
    if not len(corners) == len(classes) == len(crowd):
        raise ValueError(f"{len(corners)} boxes for {len(classes)} classes")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must lie in [0, 1], got {opacity}")
    palette = voc_palette(max(classes, default=0) + 2)[1:] if palette is None else palette
    most = min(len(known) for known in (palette, class_names) if known is not None)
    for class_id in classes.tolist():
        if not 0 <= class_id < most:
            raise ValueError(f"no name or colour for class {class_id}, there are {most}")

    height = image.shape[0]
    if width is None:
        width = image.shape[1]
        longest = max(height, width)
        width = width if longest >= _LEAST_SIDE else round(width * _LEAST_SIDE / longest)
    size = max(1, width), max(1, round(height * width / image.shape[1]))
    corners = corners * ([size[0] / image.shape[1], size[1] / height] * 2)
    line = max(1, round(max(size) / 400))

    picture = Image.fromarray(image)
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    painted = np.array(picture, np.float32)
    colors = _shades(classes, palette, crowd)
    areas = masks.sum((1, 2))
    for i in sorted(range(len(masks)), key=lambda i: (not crowd[i], -areas[i])):
        mask = _resized(masks[i], size)
        if not mask.any():
            continue
        # Nothing changes outside of its rows and columns.
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        mask = mask[part]
        weight = np.where(mask, np.float32(0.75 if crowd[i] else opacity), np.float32(0))
        if not crowd[i]:
            weight[_rim(mask, line)] = 1
        painted[part] += weight[..., None] * (np.float32(colors[i]) - painted[part])
    picture = Image.fromarray(np.round(painted).astype(np.uint8))

    draw = ImageDraw.Draw(picture)
    order = np.arange(len(classes)) if scores is None else np.argsort(-np.asarray(scores))
    if boxes:
        for i in order[::-1]:
            x1, y1, x2, y2 = np.round(corners[i])
            if not crowd[i]:
                box = (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1))
                draw.rectangle(box, outline=tuple(colors[i]), width=line)
    if labels:
        font = ImageFont.load_default(size=max(12, round((size[0] * size[1]) ** 0.5 / 42)))
        taken: list[tuple[int, int, int, int]] = []
        for i in order:
            text = class_name(classes[i], class_names)
            text = f"{text} (crowd)" if crowd[i] else str(text)
            text += f" {100 * scores[i]:.0f} %" if scores is not None else ""
            _label(draw, text, corners[i], colors[i], font, size, taken)
    return np.asarray(picture)


def _shades(classes, palette, crowd):
    """The colour of each instance: its class's, those of one class lighter in turn."""
    colors, seen = [], {}
    for class_id, of_many in zip(classes.tolist(), crowd.tolist(), strict=True):
        if of_many:
            colors.append(IGNORE_COLOR)
            continue
        turn = seen[class_id] = seen.get(class_id, -1) + 1
        color = np.array(palette[class_id], float)
        color += (0, 0.25, 0.5)[turn % 3] * (255 - color)
        colors.append(tuple(int(value) for value in np.round(color)))
    return colors


def _resized(mask, size):
    if mask.shape == size[::-1]:
        return mask
    picture = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(picture) >= 128


def _rim(mask, width):
    """Bools (H, W): pixels of a mask that lie at most `width` from what is not the mask."""
    inside = mask
    for _ in range(width):
        padded = np.pad(inside, 1)
        inside = (
            inside & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        )
    return mask & ~inside


def _label(draw, text, box, color, font, size, taken):
    """Writes a label at a box where it meets none of `taken`, if there is such a place."""
    ascent, descent = font.getmetrics()
    pad = max(1, ascent // 6)
    width, height = int(font.getlength(text)) + 2 * pad + 1, ascent + descent
    x1, y1, x2, y2 = box
    places = [(x, y) for y in (y1 - height, y1, y2 - height, y2) for x in (x1, x2 - width)]
    for x, y in places:
        x = int(min(max(x, 0), max(size[0] - width, 0)))
        y = int(min(max(y, 0), max(size[1] - height, 0)))
        free = all(
            x >= right or x + width <= left or y >= bottom or y + height <= top
            for left, top, right, bottom in taken
        )
        if free:
            taken.append((x, y, x + width, y + height))
            draw.rectangle((x, y, x + width - 1, y + height - 1), fill=tuple(color))
            light = np.dot(color, (0.299, 0.587, 0.114)) > 140
            draw.text((x + pad, y + ascent), text, _DARK if light else _LIGHT, font, anchor="ls")
            return


def instance_sheet(
    examples: Iterable[tuple[np.ndarray, *tuple[Drawn, ...]]],
    class_names: Sequence[str] | None = None,
    palette: Colors | None = None,
    captions: Sequence[str] | None = None,
    heading: str | None = None,
    titles: Sequence[str] = ("truth", "prediction"),
    cell_width: int = 480,
) -> np.ndarray:
    """A sheet of pictures: one image a row, its true instances beside those that were found.

    Args:
        examples: sequence of (image, instances, instances, ...), as of `draw_instances`.
        class_names: as of `draw_instances`.
        palette: as of `draw_instances`.
        captions: sequence of str, one line under each row; or `None`. Defaults to `None`.
        heading: str, at the top; or `None`. Defaults to `None`.
        titles: sequence of str, one for each instances of an example. Defaults to
            `("truth", "prediction")`.
        cell_width: int, pixels. Defaults to 480.

    Shapes:
        -> (height, width, 3), uint8.

    Raises:
        ValueError: as of `draw_instances` and `sheet`.

    Example:

    >>> found = isa_tf.inference.InstancePredictor.from_model(detector)(image)
    >>> examples = [(image, found, found.above(0.5))]
    >>> titles = "all", "the surer ones"
    >>> picture = instance_sheet(examples, data.class_names, data.palette, titles=titles)
    >>> Image.fromarray(picture).save("sheet.png")
    """
    rows = [
        [draw_instances(image, some, class_names, palette, width=cell_width) for some in each]
        for image, *each in examples
    ]
    return sheet(rows, titles, captions=captions, heading=heading, cell_width=cell_width)
