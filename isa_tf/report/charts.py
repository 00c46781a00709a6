"""Drawings of a page: curves as SVG, pictures as data URIs. Colours are the style sheet's."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image

# Of the confusion matrix's picture: hits and misses, as the style sheet has them for a light page.
HIT_COLOR, MISS_COLOR = (0, 114, 178), (213, 94, 0)


def picture_uri(image: np.ndarray, longest: int | None = None, lossless: bool = False) -> str:
    """A picture as a data URI of WebP.

    Args:
        image: uint8 (H, W, 3), RGB, or (H, W, 4), RGBA.
        longest: int, pixels that the longer side has at most; `None` for any. Defaults to `None`.
        lossless: bool, for paintings, whose pixels are then picked rather than mixed, so that
            every colour is one of the painting's. Defaults to `False`.

    Returns:
        str.

    Example:

    >>> picture_uri(image, longest=64)[:23]
    'data:image/webp;base64,'
    """
    picture = Image.fromarray(image)
    if longest is not None and max(picture.size) > longest:
        factor = longest / max(picture.size)
        size = [max(1, round(side * factor)) for side in picture.size]
        kind = Image.Resampling.NEAREST if lossless else Image.Resampling.LANCZOS
        picture = picture.resize(size, kind)
    file = io.BytesIO()
    # Of a lossless picture, quality is effort; more of it saves little and takes a hundred times
    # as long.
    picture.save(file, "WEBP", lossless=lossless, quality=50 if lossless else 80)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def shares(confusion: np.ndarray) -> np.ndarray:
    """A confusion matrix, rows are truth, over its row sums; 0 where a row is empty."""
    confusion = np.asarray(confusion, np.float64)
    return confusion / np.maximum(confusion.sum(1, keepdims=True), np.finfo(float).tiny)


def confusion_picture(confusion: np.ndarray) -> np.ndarray:
    """A confusion matrix as a picture with one pixel a cell.

    Hits, on the diagonal, and misses have a colour each; the larger a cell's share of its row,
    the more opaque (by the square root, so that small shares are seen), on whatever lies below.

    Args:
        confusion: counts (classes, classes), rows are truth.

    Shapes:
        -> (classes, classes, 4), uint8, RGBA.

    Example:

    >>> confusion_picture([[3, 1], [0, 0]])[0, :, 3]
    array([221, 128], dtype=uint8)
    """
    opacity = np.sqrt(shares(confusion))
    picture = np.empty((*opacity.shape, 4), np.uint8)
    picture[..., :3] = MISS_COLOR
    picture[np.eye(len(picture), dtype=bool), :3] = HIT_COLOR
    picture[..., 3] = np.round(255 * opacity)
    return picture


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that span an interval in about `count` steps: a list, both ends included.

    An interval of no length is taken for one of length 1, as of scores that are all 0.

    >>> ticks(0, 0.83), ticks(0, 3000)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.0, 1000.0, 2000.0, 3000.0])
    """
    if high - low < 1e-9:
        high = low + 1.0
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = unit * next(m for m in (1, 2, 5, 10) if m * unit >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def curve_chart(
    title: str,
    rows: Sequence[Mapping[str, float]],
    names: Sequence[str],
    width: int = 560,
    height: int = 250,
) -> str:
    """Curves of a log as an SVG element, the legend in it.

    Args:
        title: str.
        rows: dicts of numbers, each with "step".
        names: what of a row to draw, a curve each; those that begin with "val_" in one colour,
            others in another, and of either all but the shortest name dashed.
        width: int. Defaults to 560.
        height: int. Defaults to 250.

    Returns:
        str; empty where no row has a finite value.

    Example:

    >>> curve_chart("loss", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}], ["loss"])[:4]
    '<svg'
    """
    curves = {name: points for name in names if (points := finite(rows, name))}
    if not curves:
        return ""
    steps = [x for points in curves.values() for x, _ in points]
    xs = ticks(0, max(steps))
    values = [y for points in curves.values() for _, y in points]
    ys = ticks(min(0, *values), max(values))
    left, right, top, bottom = 46, 24, 34, 38

    def place(x, y):
        across = (x - xs[0]) / (xs[-1] - xs[0])
        up = (y - ys[0]) / (ys[-1] - ys[0])
        return left + across * (width - left - right), height - bottom - up * (
            height - top - bottom
        )

    parts = [f'<text class="title" x="{left}" y="16">{escape(title)}</text>']
    for y in ys:
        at = place(0, y)[1]
        parts.append(f'<path class="grid" d="M{left} {at:.1f}H{width - right}"/>')
        parts.append(f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in xs:
        at = place(x, ys[0])[0]
        parts.append(
            f'<text x="{at:.1f}" y="{height - bottom + 16}" text-anchor="middle">{x:,.0f}</text>'
        )
    parts.append(f'<text x="{width - right}" y="{height - 4}" text-anchor="end">step</text>')
    # Of a kind, the shortest name is the score itself; those that derive from it are dashed.
    first: dict[str, str] = {}
    for name in sorted(curves, key=len):
        first.setdefault(_kind(name), name)
    at = width - right
    for name, points in reversed(curves.items()):  # the legend goes from the right
        kind = _kind(name)
        style = kind if first[kind] == name else f"{kind} dashed"
        places = [place(x, y) for x, y in points]
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path class="curve {style}" d="M{line}"/>')
        if len(points) <= 40:
            for (x, y), (step, value) in zip(places, points, strict=True):
                parts.append(
                    f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
                    f"<title>{escape(name)} {value:.4g} at step {step:,.0f}</title></circle>"
                )
        parts.append(f'<text x="{at:.1f}" y="16" text-anchor="end">{escape(name)}</text>')
        at -= 7.2 * len(name) + 4
        parts.append(f'<path class="curve {style}" d="M{at:.1f} 12h-18"/>')
        at -= 30
    label = escape(f"{title}: {', '.join(curves)} over the steps")
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        + "".join(parts)
        + "</svg>"
    )


def _kind(name):
    return "val" if name.startswith("val_") else "train"


def sparkline(points: Sequence[tuple[float, float]], width: int = 84, height: int = 20) -> str:
    """A small curve from 0 to 1, as an SVG element; empty for fewer than two points.

    Args:
        points: list of (step, value).
        width: int. Defaults to 84.
        height: int. Defaults to 20.

    Example:

    >>> sparkline([(0, 0.25), (10, 0.5)])[:4]
    '<svg'
    """
    if len(points) < 2 or points[0][0] == points[-1][0]:
        return ""
    first, last = points[0][0], points[-1][0]
    line = "L".join(
        f"{1 + (x - first) / (last - first) * (width - 2):.1f} "
        f"{height - 1 - min(max(y, 0), 1) * (height - 2):.1f}"
        for x, y in points
    )
    values = ", ".join(f"{y:.3f}" for _, y in points[-6:])
    return (
        f'<svg class="spark" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="last values {values}"><path class="grid" d="M0 {height - 1}'
        f'H{width}"/><path class="curve val" d="M{line}"/></svg>'
    )


def finite(rows: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
    """A log's (step, value) of one name, where the value is finite."""
    return [(row["step"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]
