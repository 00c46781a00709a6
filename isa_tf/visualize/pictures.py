"""Pictures of labels, predictions and weights."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from isa_tf import files
from isa_tf.data.base import voc_palette
from isa_tf.hints import Colors
from isa_tf.names import class_name

IGNORE_COLOR = (224, 224, 224)
# What `difference` tells apart, and its colours, which the colour-blind can tell apart too.
BOTH_RIGHT = 0
ONLY_FIRST = 1
ONLY_SECOND = 2
BOTH_WRONG = 3
DIFFERENCE_PALETTE = ((244, 245, 246), (213, 94, 0), (0, 114, 178), (150, 153, 158))
# Of a prediction beside the truth.
ERROR_COLOR = (213, 94, 0)
# From weight 0 to the largest of a map.
HEAT_PALETTE = ((48, 18, 110), (130, 28, 130), (214, 48, 80), (250, 140, 40), (255, 238, 120))
POINT_COLOR = (0, 229, 255)
_INK = (32, 33, 36)
_FAINT = (110, 113, 120)
_PAPER = (255, 255, 255)
_EDGE = (200, 202, 206)
_LEAST_LEGEND = 240  # pixels, the width
_NO_LABEL = -1  # an id that is none


def colorize(
    label: np.ndarray,
    palette: Colors,
    ignore_label: int = 255,
    ignore_color: Sequence[int] = IGNORE_COLOR,
) -> np.ndarray:
    """Paints every pixel in the colour of its class.

    Args:
        label: ints (H, W).
        palette: RGB triples, 0..255, one a class.
        ignore_label: int, or `None` for no such label. Defaults to 255.
        ignore_color: RGB triple of the ignored pixels. Defaults to a light grey.

    Shapes:
        (H, W) -> (H, W, 3), uint8.

    Raises:
        ValueError: for a label that is not (H, W), or an id that has no colour.

    Example:

    >>> colorize(np.array([[0, 1, 255]]), [(10, 20, 30), (40, 50, 60)])[0, 1]
    array([40, 50, 60], dtype=uint8)
    """
    label = np.asarray(label)
    if label.ndim != 2 or label.dtype.kind not in "ui":
        raise ValueError(f"a label is ints (H, W), got {label.dtype} {label.shape}")
    ignored = np.zeros(label.shape, bool) if ignore_label is None else label == ignore_label
    colors = np.asarray(palette, np.uint8).reshape(-1, 3)
    bad = label[~ignored & ((label < 0) | (label >= len(colors)))]
    if bad.size:
        raise ValueError(f"no colour for class {bad[0]}: the palette has {len(colors)}")
    painted = colors[np.where(ignored, 0, label)]
    painted[ignored] = ignore_color
    return painted


def overlay(
    image: np.ndarray,
    label: np.ndarray,
    palette: Colors,
    opacity: float = 0.5,
    ignore_label: int = 255,
    clear: Sequence[int] = (0,),
) -> np.ndarray:
    """Lays the colours of the classes over a photo, a little stronger along their borders.

    Class 0, in many data sets what is none of the others, stays as it is in the photo.

    Args:
        image: uint8 (H, W, 3), RGB.
        label: ints (H, W).
        palette: RGB triples, 0..255, one a class.
        opacity: float in [0, 1], of the colours. Defaults to 0.5.
        ignore_label: int, whose pixels stay as they are in the photo. Defaults to 255.
        clear: class ids whose pixels stay as they are in the photo too; `()` paints every class.
            Defaults to `(0,)`.

    Shapes:
        (H, W, 3), (H, W) -> (H, W, 3), uint8.

    Raises:
        ValueError: for a label of another size, an opacity out of range, an id without colour.

    Example:

    >>> class_id, score = predictor(image)
    >>> picture = overlay(image, class_id, predictor.palette)
    >>> Image.fromarray(picture).save("overlay.png")
    """
    image, label = np.asarray(image), np.asarray(label)
    if image.dtype != np.uint8 or image.shape != (*label.shape, 3):
        raise ValueError(
            "an image is uint8 (H, W, 3) and its label (H, W), got "
            f"{image.dtype} {image.shape} and {label.shape}"
        )
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must lie in [0, 1], got {opacity}")
    colors = colorize(label, palette, ignore_label)
    weight = np.where(_borders(label), min(opacity * 1.6, 1.0), opacity)
    weight = np.where(np.isin(label, [ignore_label, *clear]), 0.0, weight)[..., None]
    return np.round(image + weight * (colors.astype(np.float64) - image)).astype(np.uint8)


def legend(
    class_names: Sequence[str], palette: Colors, width: int = 720, font_size: int = 14
) -> np.ndarray:
    """A swatch and a name for every class, in columns.

    Args:
        class_names: sequence of str.
        palette: RGB triples, 0..255, one a class.
        width: int, pixels. Defaults to 720.
        font_size: int, pixels. Defaults to 14.

    Shapes:
        -> (height, width, 3), uint8, as high as the names need.

    Raises:
        ValueError: for names and colours that are not as many.

    Example:

    >>> Image.fromarray(legend(data.class_names, data.palette)).save("legend.png")
    """
    names = [str(name) for name in class_names]
    if len(names) != len(palette):
        raise ValueError(f"{len(palette)} colours for {len(names)} class names")
    font = ImageFont.load_default(size=font_size)
    swatch, gap, line = font_size + 2, font_size // 2, round(1.9 * font_size)
    longest = max((font.getlength(name) for name in names), default=0)
    column = swatch + gap + int(longest) + 2 * font_size
    columns = max(1, min(len(names), (width + 2 * font_size) // column))
    rows = -(-len(names) // columns)
    picture = Image.new("RGB", (width, max(rows * line, 1)), _PAPER)
    draw = ImageDraw.Draw(picture)
    for i, (name, color) in enumerate(zip(names, palette, strict=True)):
        x, y = i % columns * column, i // columns * line
        top = y + (line - swatch) // 2
        box = (x, top, x + swatch, top + swatch)
        draw.rounded_rectangle(box, 3, fill=tuple(map(int, color)), outline=_EDGE)
        name = _shorten(name, font, width - x - swatch - gap)
        draw.text((x + swatch + gap, y + line / 2), name, _INK, font, anchor="lm")
    return np.asarray(picture)


def with_legend(
    picture: np.ndarray, class_names: Sequence[str], palette: Sequence[Sequence[int] | None]
) -> np.ndarray:
    """Puts a legend underneath a picture, in letters that suit its size.

    Args:
        picture: uint8 (H, W, 3), RGB.
        class_names: sequence of str.
        palette: RGB triples, 0..255, one a class; `None` in place of one for a class that is not
            painted, whose swatch stays empty.

    Shapes:
        (H, W, 3) -> (height, width, 3), uint8. The picture is the upper left of it; paper is
        added underneath and, where the picture is narrower than a legend can be, at the right.

    Raises:
        ValueError: for names and colours that are not as many.

    Example:

    >>> class_id, score = predictor(image)
    >>> found = np.unique(class_id)
    >>> picture = overlay(image, class_id, data.palette, clear=())
    >>> picture = with_legend(
    ...     picture, [data.class_names[i] for i in found], [data.palette[i] for i in found]
    ... )
    """
    picture = np.asarray(picture)
    height, width = picture.shape[:2]
    page_width = max(width, _LEAST_LEGEND)
    font_size = max(14, round(page_width / 60))
    colors = [_PAPER if color is None else color for color in palette]
    names = legend(class_names, colors, page_width - 2 * font_size, font_size)
    page = Image.new("RGB", (page_width, height + names.shape[0] + 2 * font_size), _PAPER)
    page.paste(Image.fromarray(picture), (0, 0))
    page.paste(Image.fromarray(names), (font_size, height + font_size))
    return np.asarray(page)


def draw_classes(
    image: np.ndarray,
    class_id: np.ndarray,
    class_names: Sequence[str] | None = None,
    palette: Colors | None = None,
    opacity: float = 0.5,
    clear: Sequence[int] = (0,),
    labels: bool = True,
) -> np.ndarray:
    """The classes found in a photo, laid over it, and the names of what was found beneath.

    Args:
        image: uint8 (H, W, 3), RGB.
        class_id: ints (H, W), from 0; every one of them is a class, 255 too.
        class_names: sequence of str; `None` for "class 0", ... Defaults to `None`.
        palette: RGB triples, 0..255, one a class; `None` for PASCAL VOC's. Defaults to `None`.
        opacity: float in [0, 1], of the colours. Defaults to 0.5.
        clear: ids of the classes that are not painted. Defaults to `(0,)`.
        labels: bool, whether the names stand beneath. Defaults to `True`.

    Shapes:
        (H, W, 3), (H, W) -> (height, W, 3), uint8; higher than the photo by the names.

    Raises:
        ValueError: see `overlay`.

    Example:

    >>> class_id, score = isa_tf.load_predictor("model.keras")(image)
    >>> picture = draw_classes(image, class_id, data.class_names, data.palette)
    """
    found = np.unique(class_id).tolist()
    if palette is None:
        palette = voc_palette(max(len(class_names or ()), found[-1] + 1))
    picture = overlay(image, class_id, palette, opacity, _NO_LABEL, clear)
    if not labels:
        return picture
    names = [class_name(i, class_names) for i in found]
    return with_legend(picture, names, [None if i in clear else palette[i] for i in found])


def sheet(
    rows: Sequence[Sequence[np.ndarray | None]],
    titles: Sequence[str],
    palette: Colors | None = None,
    class_names: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    heading: str | None = None,
    cell_width: int = 320,
    ignore_label: int = 255,
) -> np.ndarray:
    """A sheet of pictures: one example a row, titles above, the classes underneath.

    All cells are brought to one width; what is narrower or wider keeps its proportions. Labels
    are resized to the nearest pixel, photos smoothly.

    Args:
        rows: sequence of rows, each of as many cells as there are titles. A cell is an image,
            uint8 (H, W, 3); a label, ints (H, W), to be painted; or `None`, left empty.
        titles: sequence of str, one a column.
        palette: RGB triples, one a class; needed for labels. Defaults to `None`.
        class_names: names for the legend; `None` for no legend. Defaults to `None`.
        captions: sequence of str, one line under each row; or `None`. Defaults to `None`.
        heading: str, at the top; or `None`. Defaults to `None`.
        cell_width: int, pixels. Defaults to 320.
        ignore_label: int. Defaults to 255.

    Shapes:
        -> (height, width, 3), uint8.

    Raises:
        ValueError: for a row of another length than the titles, captions that are not as many
            as the rows, a label or a legend without palette, a cell that is neither image nor
            label.

    Example:

    >>> rows = [(image, label, predictor(image)[0])]
    >>> picture = sheet(rows, ("photo", "truth", "prediction"), data.palette, data.class_names)
    >>> Image.fromarray(picture).save("sheet.png")
    """
    for i, row in enumerate(rows):
        if len(row) != len(titles):
            raise ValueError(f"row {i} has {len(row)} cells for {len(titles)} titles")
    if captions is not None and len(captions) != len(rows):
        raise ValueError(f"{len(captions)} captions for {len(rows)} rows")
    if class_names is not None and palette is None:
        raise ValueError("a legend needs a palette")
    margin, gap = 24, 12
    inner = len(titles) * cell_width + (len(titles) - 1) * gap
    title_font, font = (ImageFont.load_default(size=size) for size in (17, 13))

    blocks = []  # (picture, space above), from top to bottom
    if heading is not None:
        blocks.append((_line(inner, [(0, heading)], ImageFont.load_default(size=22)), 0))
    starts = [i * (cell_width + gap) for i in range(len(titles))]
    texts = [
        (x, _shorten(title, title_font, cell_width))
        for x, title in zip(starts, titles, strict=True)
    ]
    blocks.append((_line(inner, texts, title_font), gap if blocks else 0))
    for i, row in enumerate(rows):
        cells = [_cell(cell, palette, cell_width, ignore_label) for cell in row]
        height = max((cell.height for cell in cells if cell is not None), default=1)
        strip = Image.new("RGB", (inner, height), _PAPER)
        for x, cell in zip(starts, cells, strict=True):
            if cell is not None:
                strip.paste(cell, (x, 0))
        blocks.append((strip, 8 if i == 0 else gap))
        if captions is not None:
            caption = _shorten(str(captions[i]), font, inner)
            blocks.append((_line(inner, [(0, caption)], font, _FAINT), 4))
    if class_names is not None and palette is not None:
        names, colors = list(class_names), list(palette)
        labels = [cell for row in rows for cell in row if cell is not None and np.ndim(cell) == 2]
        if any((np.asarray(label) == ignore_label).any() for label in labels):
            names, colors = names + ["(ignored)"], colors + [IGNORE_COLOR]
        blocks.append((Image.fromarray(legend(names, colors, inner)), margin))

    height = sum(picture.height + space for picture, space in blocks)
    page = Image.new("RGB", (inner + 2 * margin, height + 2 * margin), _PAPER)
    y = margin
    for picture, space in blocks:
        page.paste(picture, (margin, y + space))
        y += picture.height + space
    return np.asarray(page)


def difference(
    label: np.ndarray, first: np.ndarray, second: np.ndarray, ignore_label: int = 255
) -> np.ndarray:
    """Which of two predictions is right, pixel by pixel.

    Args:
        label: ints (H, W), the truth.
        first: ints (H, W), class ids.
        second: ints (H, W), class ids.
        ignore_label: int, kept where the truth has it. Defaults to 255.

    Shapes:
        (H, W) three times -> (H, W), ints: `BOTH_RIGHT`, `ONLY_FIRST`, `ONLY_SECOND`,
        `BOTH_WRONG` or `ignore_label`; all but the last are indices of `DIFFERENCE_PALETTE`.

    Raises:
        ValueError: for arrays of different shapes.

    Example:

    >>> difference(np.array([[0, 1, 2, 255]]), np.array([[0, 1, 0, 0]]), np.array([[0, 0, 2, 0]]))
    array([[  0,   1,   2, 255]])
    """
    label, first, second = map(np.asarray, (label, first, second))
    if not label.shape == first.shape == second.shape:
        raise ValueError(
            f"a label {label.shape} and predictions {first.shape} and {second.shape}: not one size"
        )
    right = first == label, second == label
    kinds = np.select(
        [right[0] & right[1], right[0], right[1]], [BOTH_RIGHT, ONLY_FIRST, ONLY_SECOND], BOTH_WRONG
    )
    return np.where(label == ignore_label, ignore_label, kinds)


def errors(
    image: np.ndarray, label: np.ndarray, predicted: np.ndarray, ignore_label: int = 255
) -> np.ndarray:
    """Paints a prediction's errors over a photo in eight pale greys.

    So few colours make a small file without loss, in which thin errors stay.

    Args:
        image: uint8 (H, W, 3), RGB.
        label: ints (H, W), the truth.
        predicted: ints (H, W), class ids.
        ignore_label: int; its pixels are painted in `IGNORE_COLOR`. Defaults to 255.

    Shapes:
        (H, W, 3), (H, W), (H, W) -> (H, W, 3), uint8: wrong pixels are `ERROR_COLOR`.

    Raises:
        ValueError: for arrays that are not of one size, or an image that is not uint8.

    Example:

    >>> class_id, score = predictor(image)
    >>> Image.fromarray(errors(image, label, class_id)).save("errors.png")
    """
    image, label, predicted = map(np.asarray, (image, label, predicted))
    if image.dtype != np.uint8 or not image.shape == (*label.shape, 3) == (*predicted.shape, 3):
        raise ValueError(
            "an image is uint8 (H, W, 3), its label and prediction (H, W), got "
            f"{image.dtype} {image.shape}, {label.shape} and {predicted.shape}"
        )
    grey = 96 + 14 * (np.asarray(Image.fromarray(image).convert("L")) // 32)
    painted = np.repeat(grey[..., None], 3, -1)
    painted[label != predicted] = ERROR_COLOR
    painted[label == ignore_label] = IGNORE_COLOR
    return painted


def heat(image: np.ndarray, weights: np.ndarray, point: Sequence[int] | None = None) -> np.ndarray:
    """Lays weights over a photo turned grey: one cell a weight, the heaviest the brightest.

    Colours go by the square root of the weight, relative to the largest, so that weak ones are
    seen: `HEAT_PALETTE` at 0, 1/16, 1/4, 9/16 and all of it. The weaker, the more the photo
    shows through.

    Args:
        image: uint8 (H, W, 3), RGB.
        weights: floats (h, w), of which none is negative, that cover the whole image.
        point: (y, x), a pixel to mark by a ring; or `None`. Defaults to `None`.

    Shapes:
        (H, W, 3), (h, w) -> (H, W, 3), uint8.

    Raises:
        ValueError: for an image that is not uint8 RGB, or weights that are not (h, w), finite and
            at least 0.

    Example:

    >>> weights = np.random.default_rng(0).random((12, 16))
    >>> Image.fromarray(heat(image, weights)).save("heat.png")
    """
    image, weights = np.asarray(image), np.asarray(weights, np.float64)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"an image is uint8 (H, W, 3), got {image.dtype} {image.shape}")
    if weights.ndim != 2 or not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(f"weights are finite floats (h, w) of at least 0, got {weights.shape}")
    strength = np.sqrt(weights / max(weights.max(), np.finfo(float).tiny))
    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) * cells / n).astype(int), cells - 1)
        for n, cells in zip(image.shape[:2], weights.shape, strict=True)
    )
    strength = strength[rows[:, None], columns]
    stops = np.linspace(0, 1, len(HEAT_PALETTE))
    channels = np.transpose(HEAT_PALETTE)
    colors = np.stack([np.interp(strength, stops, channel) for channel in channels], -1)
    grey = np.asarray(Image.fromarray(image).convert("L"), np.float64)[..., None]
    opacity = (0.35 + 0.6 * strength)[..., None]
    picture = np.round(0.8 * grey * (1 - opacity) + colors * opacity).astype(np.uint8)
    return picture if point is None else mark(picture, point)


def mark(image: np.ndarray, point: Sequence[int]) -> np.ndarray:
    """A copy of an image, uint8 (H, W, 3), with a ring around the pixel `point`, (y, x)."""
    picture = Image.fromarray(np.asarray(image))
    draw = ImageDraw.Draw(picture)
    y, x = point
    radius = max(4, round(0.02 * max(picture.size)))
    line = max(2, radius // 3)
    for color, reach, width in ((_INK, radius + 1, line + 2), (POINT_COLOR, radius, line)):
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), None, color, width)
    return np.asarray(picture)


def _borders(label):
    """Bools (H, W): pixels of which a neighbour, of the four, is of another class."""
    border = np.zeros(label.shape, bool)
    rows, columns = label[1:] != label[:-1], label[:, 1:] != label[:, :-1]
    border[1:] |= rows
    border[:-1] |= rows
    border[:, 1:] |= columns
    border[:, :-1] |= columns
    return border


def _cell(cell, palette, width, ignore_label):
    if cell is None:
        return None
    cell = np.asarray(cell)
    is_label = cell.ndim == 2
    if is_label:
        if palette is None:
            raise ValueError("a label needs a palette")
        cell = colorize(cell, palette, ignore_label)
    if cell.dtype != np.uint8 or cell.ndim != 3 or cell.shape[-1] != 3:
        raise ValueError(
            "a cell is an image, uint8 (H, W, 3), or a label, ints (H, W), got "
            f"{cell.dtype} {cell.shape}"
        )
    picture = Image.fromarray(cell)
    size = (width, max(1, round(picture.height * width / picture.width)))
    resample = Image.Resampling.NEAREST if is_label else Image.Resampling.LANCZOS
    return picture if picture.size == size else picture.resize(size, resample)


def _line(width, texts, font, color=_INK):
    """A strip with texts, each (x, text), on one line."""
    ascent, descent = font.getmetrics()
    picture = Image.new("RGB", (width, ascent + descent), _PAPER)
    draw = ImageDraw.Draw(picture)
    for x, text in texts:
        draw.text((x, ascent), text, color, font, anchor="ls")
    return picture


def _shorten(text, font, width):
    """The text, or as much of its beginning as fits, and an ellipsis."""
    text = str(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def save_picture(path: files.StrPath, picture: np.ndarray) -> None:
    """Saves a picture, whole or not at all.

    Args:
        path: of the file, whose suffix says the format. Folders above it are made.
        picture: uint8 (H, W, 3), RGB; or ids (H, W), uint8 or uint16.

    Raises:
        OSError: naming `path`, where the disk is full or may not be written to.
        ValueError: for a suffix of no format that Pillow writes.

    Example:

    >>> save_picture("sheets/day.png", np.zeros((4, 6, 3), np.uint8))
    >>> Image.open("sheets/day.png").size
    (6, 4)
    """
    with files.replacing(path) as new:
        Image.fromarray(picture).save(new)
