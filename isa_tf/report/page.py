"""The page of a segmentation model."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from isa_tf import metrics, visualize
from isa_tf.hints import Colors
from isa_tf.report import charts, parts
from isa_tf.report.images import ImageScores, choose

LONGEST = 400  # pixels, the longer side of a picture
_TABLE_CLASSES = 20  # up to how many classes the confusion matrix has numbers in it
_CONFUSED = 12  # how many pairs of classes are told
_HEADINGS = (
    ("worst", "Worst", "the lowest mIoU first"),
    ("best", "Best", "the highest mIoU first"),
    ("of-a-class", "Worst of a class", "class by class, those with the lowest IoU first"),
)


def page(
    result: Mapping[str, Any],
    images: ImageScores,
    names: Sequence[str],
    class_names: Sequence[str],
    palette: Colors,
    show: Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray]],
    log: Sequence[Mapping[str, float]] = (),
    facts: Mapping[str, Any] | None = None,
    max_images: int = 24,
) -> str:
    """An evaluation as one HTML page that needs nothing but itself.

    It shows the scores, a bar for each class, the confusion matrix over its row sums, the curves of
    the training, and the images `choose` picks with photo, truth, prediction and errors; all images
    are listed and can be searched by name and by class. It loads nothing, and without JavaScript
    only sorting, searching and that list are missing.

    Args:
        result: dict of the scores, as `isa_tf.metrics.scores` gives them, and whatever else is to
            be told: floats beside the scores, dicts by class name as columns, others as lines.
        images: `ImageScores` of all images.
        names: what names each example of the split, by its position; of paths, what is common is
            left out.
        class_names: sequence of str.
        palette: RGB triples, 0..255, one a class.
        show: function from the position of an example to its image, uint8 (H, W, 3), its label and
            the prediction, ints (H, W).
        log: rows of the training, as `isa_tf.training.read_log` gives them. Defaults to none.
        facts: dict of str to what to tell before the rest of `result`. Defaults to `None`.
        max_images: int, how many images are shown at most. Defaults to 24.

    Returns:
        str, the page. Beside what is fixed, it takes four pictures of at most 400 x 400 pixels
        for each image shown, and a line for each of the first 5000 that are listed.

    Raises:
        ValueError: for names, colours and a confusion matrix that are not of as many classes, or a
            negative `max_images`.

    Example:

    >>> images = isa_tf.report.ImageScores(data.num_classes)
    >>> for index in range(data.size("val")):
    ...     photo, truth = data.read("val", index)
    ...     images.add(index, truth, predictor(photo)[0])
    >>> result = isa_tf.metrics.scores(images.total(), data.class_names)
    >>> def show(index):
    ...     photo, truth = data.read("val", index)
    ...     return photo, truth, predictor(photo)[0]
    >>> html = page(result, images, data.examples("val"), data.class_names, data.palette, show)
    >>> html[:15]
    '<!DOCTYPE html>'
    """
    confusion = np.asarray(result["confusion_matrix"])
    if not len(class_names) == len(palette) == len(confusion) == images.num_classes:
        raise ValueError(
            f"{len(class_names)} class names and {len(palette)} colours for confusion matrices of "
            f"{len(confusion)} and {images.num_classes} classes"
        )
    if max_images < 0:
        raise ValueError(f"max_images must be at least 0, got {max_images}")
    names, class_names = parts.short_names(names), [str(name) for name in class_names]
    scores = images.scores()
    iou = [result["iou"][name] for name in class_names]
    by_iou = sorted((i for i in range(len(iou)) if iou[i] is not None), key=iou.__getitem__)
    chosen = choose(scores, max_images, by_iou)
    colors = ["#{:02x}{:02x}{:02x}".format(*map(int, color)) for color in palette]
    classes = list(zip(class_names, colors, strict=True))
    sections = {
        "scores": ("Scores", _scores(result, class_names, facts or {})),
        "classes": ("Classes", _classes(result, confusion, classes, log)),
        "confusion": ("Confusion", _confusion(confusion, class_names)),
        "training": ("Training", parts.training(log)),
        "images": ("Images", _images(chosen, scores, names, classes, palette, images, show)),
    }
    heading = f"{parts.subject(result)}: mIoU {parts.number(result['miou'])}"
    told = [str(result["model"])] if "model" in result else []
    told += [f"{len(images):,} images", f"{len(class_names)} classes"]
    rows, columns = np.nonzero(confusion)
    cells = [rows.tolist(), columns.tolist(), confusion[rows, columns].tolist()]
    return parts.assemble(
        heading, told, sections, parts.script_data(scores, names, class_names, colors, cells)
    )


def _scores(result, class_names, facts):
    # The score that all speak of comes first; two have sections of their own.
    return parts.tiles(result, class_names, facts, ["miou"], ("confusion_matrix", "classes"))


def _classes(result, confusion, classes, log):
    class_names = [name for name, _ in classes]
    table, truth = metrics.class_scores(confusion, class_names), confusion.sum(1)
    columns = {
        kind: {name: row[kind] for name, row in table.items()}
        for kind in ("iou", "accuracy", "precision", "f1")
    }
    columns |= {key: value for key, value in result.items() if parts.by_class(value, class_names)}
    total = max(truth.sum(), 1)
    shares = [(count / total, parts.percent(count / total)) for count in truth]
    hint = (
        "Columns sort by their heads. A class leads to the images that have it, the worst of it "
        "first. Accuracy is the share of a class's pixels that is found, precision the share of "
        "its predictions that is right."
    )
    return parts.class_table(classes, columns, "iou", hint, {"% of pixels": shares}, log)


# === Confusion ===


def _confusion(confusion, class_names):
    is_table = len(class_names) <= _TABLE_CLASSES
    matrix = (_matrix_table if is_table else _matrix_picture)(confusion, class_names)
    return (
        '<p class="hint">Rows are the truth and add up to 100 %; columns are what was predicted. '
        "Shades go by the square root, so that small shares are seen.</p>\n"
        f'<div class="beside"><div class="main">{matrix}\n'
        '<p class="readout" id="readout" aria-live="polite"></p></div>\n'
        f"{_confused(confusion, class_names)}</div>"
    )


def _matrix_table(confusion, class_names):
    names = [escape(name) for name in class_names]
    head = "".join(f'<th scope="col"><span>{name}</span></th>' for name in names)
    rows = []
    for i, share in enumerate(charts.shares(confusion)):
        cells = []
        for j, value in enumerate(share):
            kind = "hit" if i == j else "miss"
            strong = " strong" if value > 0.4 else ""
            told = f"{100 * value:.0f}" if value >= 0.005 else "·" if value else ""
            cells.append(
                f'<td class="{kind}{strong}" style="--v:{math.sqrt(value):.3f}">{told}</td>'
            )
        rows.append(f'<tr><th scope="row">{names[i]}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="scroll"><table class="matrix"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _matrix_picture(confusion, class_names):
    spans = "".join(f'<span title="{escape(n)}">{escape(n)}</span>' for n in class_names)
    uri = charts.picture_uri(charts.confusion_picture(confusion), lossless=True)
    return (
        f'<div class="scroll map" tabindex="0" style="--n:{len(class_names)}">'
        f'<div class="corner"></div><div class="cols">{spans}</div><div class="rows">{spans}</div>'
        f'<img id="matrix" src="{uri}" alt="the confusion matrix, a pixel a cell"></div>'
    )


def _confused(confusion, class_names):
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSED]
    pairs = [divmod(int(cell), len(wrong)) for cell in order if wrong.flat[cell] > 0]
    if not pairs:
        return ""
    share, total = charts.shares(confusion), confusion.sum()
    rows = "".join(
        f"<tr><td>{escape(class_names[i])}</td><td>{escape(class_names[j])}</td>"
        f"<td>{parts.percent(share[i, j])} %</td>"
        f"<td>{parts.percent(wrong[i, j] / total)} %</td></tr>"
        for i, j in pairs
    )
    return (
        '<div><h3>Most confused</h3>\n<div class="scroll"><table class="confused"><thead><tr>'
        '<th scope="col">truth</th><th scope="col">taken for</th><th scope="col">of the class</th>'
        f'<th scope="col">of all pixels</th></tr></thead><tbody>{rows}</tbody></table></div></div>'
    )


# === Images ===


def _images(chosen, scores, names, classes, palette, images, show):
    def card(score):
        return _card(score, names[score.index], classes, palette, images.ignore_label, show)

    groups = [(*heading, group) for heading, group in zip(_HEADINGS, chosen, strict=True)]
    hint = (
        "The mIoU of an image is that of the classes in its truth or prediction. Errors are "
        "orange; what the truth ignores is light grey."
    )
    return parts.image_groups(groups, card, classes, len(scores), ("mIoU", "accuracy"), hint)


def _card(score, name, classes, palette, ignore_label, show):
    image, label, predicted = map(np.asarray, show(score.index))
    pictures = {
        "photo": charts.picture_uri(image, LONGEST),
        "truth": charts.picture_uri(
            visualize.colorize(label, palette, ignore_label), LONGEST, lossless=True
        ),
        "prediction": charts.picture_uri(
            visualize.colorize(predicted, palette, None), LONGEST, lossless=True
        ),
        "errors": charts.picture_uri(
            visualize.errors(image, label, predicted, ignore_label), LONGEST, lossless=True
        ),
    }
    line = (
        f"mIoU <b>{parts.number(score.miou)}</b>, "
        f"accuracy <b>{parts.number(score.pixel_accuracy)}</b>"
    )
    return parts.card(score, name, classes, line, pictures, label.shape)
