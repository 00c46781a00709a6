"""Pictures of labels and predictions, with NumPy and Pillow alone. Nothing here shows a window."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

IGNORE_COLOR = (224, 224, 224)
_INK = (32, 33, 36)
_FAINT = (110, 113, 120)
_PAPER = (255, 255, 255)
_EDGE = (200, 202, 206)


def colorize(label, palette, ignore_label=255, ignore_color=IGNORE_COLOR):
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


def overlay(image, label, palette, opacity=0.5, ignore_label=255):
    """Lays the colours of the classes over a photo, a little stronger along their borders.

    Args:
        image: uint8 (H, W, 3), RGB.
        label: ints (H, W).
        palette: RGB triples, 0..255, one a class.
        opacity: float in [0, 1], of the colours. Defaults to 0.5.
        ignore_label: int, whose pixels stay as they are in the photo. Defaults to 255.

    Shapes:
        (H, W, 3), (H, W) -> (H, W, 3), uint8.

    Raises:
        ValueError: for a label of another size, an opacity out of range, an id without colour.

    Example:

    >>> picture = overlay(image, class_id[0], predictor.palette)
    >>> Image.fromarray(picture).save("overlay.png")
    """
    image, label = np.asarray(image), np.asarray(label)
    if image.dtype != np.uint8 or image.shape != (*label.shape, 3):
        raise ValueError(
            "an image is uint8 (H, W, 3) and its label (H, W), got "
            f"{image.dtype} {image.shape} and {label.shape}"
        )
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity lies in [0, 1], got {opacity}")
    colors = colorize(label, palette, ignore_label)
    weight = np.where(_borders(label), min(opacity * 1.6, 1.0), opacity)
    weight = np.where(label == ignore_label, 0.0, weight)[..., None]
    return np.round(image + weight * (colors.astype(np.float64) - image)).astype(np.uint8)


def legend(class_names, palette, width=720, font_size=14):
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


def sheet(
    rows,
    titles,
    palette=None,
    class_names=None,
    captions=None,
    heading=None,
    cell_width=320,
    ignore_label=255,
):
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

    >>> rows = [(image, label, predictor(image[None])[0][0])]
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
    if class_names is not None:
        names, colors = list(class_names), list(palette)
        labels = [cell for row in rows for cell in row if np.ndim(cell) == 2]
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
