"""The page itself: everything is in it, and nothing is fetched."""

import json
import math
import numbers
import os
from html import escape
from importlib import resources
from string import Template

import numpy as np

from isa_tf import metrics, visualize
from isa_tf.report import charts
from isa_tf.report.images import choose

LONGEST = 400  # pixels, the longer side of a picture
LISTED = 5000  # how many images are listed without a picture
_TABLE_CLASSES = 20  # up to how many classes the confusion matrix has numbers in it
_CONFUSED = 12  # how many pairs of classes are told
_HEADINGS = (
    ("worst", "Worst", "the lowest mIoU first"),
    ("best", "Best", "the highest mIoU first"),
    ("of-a-class", "Worst of a class", "class by class, those with the lowest IoU first"),
)
_WORDS = {"miou": "mIoU", "iou": "IoU", "f1": "F1"}


def page(
    result,
    images,
    names,
    class_names,
    palette,
    show,
    log=(),
    facts=None,
    max_images=24,
):
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
        raise ValueError(f"`max_images` is at least 0, got {max_images}")
    names, class_names = short_names(names), [str(name) for name in class_names]
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
        "training": ("Training", _training(log)),
        "images": ("Images", _images(chosen, scores, names, classes, palette, images, show)),
    }
    sections = {key: section for key, section in sections.items() if section[1]}
    of = " ".join(str(result[key]) for key in ("dataset", "split") if key in result)
    heading = f"{of or 'Evaluation'}: mIoU {_number(result['miou'])}"
    facts = [str(result["model"])] if "model" in result else []
    facts += [f"{len(images):,} images", f"{len(class_names)} classes"]
    return Template(_part("template.html")).substitute(
        title=escape(heading),
        heading=escape(heading),
        subheading=escape(" · ".join(facts)),
        nav=" ".join(f'<a href="#{key}">{title}</a>' for key, (title, _) in sections.items()),
        sections="\n".join(
            f'<section id="{key}">\n<h2>{title}</h2>\n{text}\n</section>'
            for key, (title, text) in sections.items()
        ),
        footer="Made by isa_tf. This page loads nothing: it can be kept and sent as it is.",
        style=_part("page.css"),
        script=_part("page.js"),
        data=_data(scores, names, class_names, colors, confusion),
    )


def short_names(names):
    """Names of examples without the folders that all of them share.

    What in a file's name is no text, and so could not be written, becomes a question mark.

    >>> short_names(["/data/val/a/1.png", "/data/val/b/1.png"])
    ['a/1.png', 'b/1.png']
    """
    names = (str(name).encode("utf-8", "replace").decode("utf-8") for name in names)
    parts = [name.replace(os.sep, "/").split("/") for name in names]
    shared = 0
    while parts and all(
        len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts
    ):
        shared += 1
    return ["/".join(part[shared:]) for part in parts]


def _part(name):
    return resources.files("isa_tf.report").joinpath(name).read_text(encoding="utf-8")


def _title(key):
    """A key of the result in words."""
    return " ".join(_WORDS.get(word, word) for word in key.split("_"))


def _number(value, digits=4):
    """A score as it is written everywhere; of nothing, a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def _data(scores, names, class_names, colors, confusion):
    """What the script reads, as JSON that ends no script element."""
    ranked = sorted(scores, key=lambda s: (s.miou is None, s.miou, s.index))[:LISTED]
    rows, columns = np.nonzero(confusion)
    data = {
        "classes": class_names,
        "colors": colors,
        "images": [
            [
                score.index,
                names[score.index],
                _rounded(score.miou),
                _rounded(score.pixel_accuracy),
                # By class: the IoU, and whether the truth has it.
                {i: [_rounded(iou), int(i in score.truth)] for i, iou in score.iou.items()},
            ]
            for score in ranked
        ],
        "unlisted": len(scores) - len(ranked),
        "confusion": [rows.tolist(), columns.tolist(), confusion[rows, columns].tolist()],
    }
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _rounded(value):
    return None if value is None else round(value, 4)


# === Scores ===


def _scores(result, class_names, facts):
    tiles, lines = [], []
    # The score that all speak of comes first.
    for key, value in {"miou": result["miou"], **facts, **result}.items():
        if key in ("confusion_matrix", "classes"):  # which have sections of their own
            continue
        title = escape(_title(key))
        is_score = value is None or isinstance(value, float) and key != "seconds"
        if is_score and key not in facts:
            tiles.append(f"<div><dt>{title}</dt><dd>{_number(value)}</dd></div>")
        elif not _by_class(value, class_names) and (told := _told(value)):
            lines.append(f"<div><dt>{title}</dt><dd>{escape(told)}</dd></div>")
    return f'<dl class="tiles">{"".join(tiles)}</dl>\n<dl class="facts">{"".join(lines)}</dl>'


def _by_class(value, class_names):
    """Whether a value is a dict of a number, or `None`, for each class."""
    return (
        isinstance(value, dict)
        and set(value) == set(class_names)
        and all(v is None or isinstance(v, numbers.Real) for v in value.values())
    )


def _told(value):
    """A value in words; empty for what is nothing."""
    if isinstance(value, dict):
        parts = ((_title(key), _told(part)) for key, part in value.items())
        return ", ".join(f"{key} {part}" for key, part in parts if part)
    if isinstance(value, (list, tuple)):
        parts = [_told(part) for part in value]
        return parts[0] if len(parts) == 1 else f"({', '.join(parts)})" if parts else ""
    if value is None or value is False:
        return ""
    if isinstance(value, bool):
        return "yes"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) > 9999 else str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


# === Classes ===


def _classes(result, confusion, classes, log):
    class_names = [name for name, _ in classes]
    table, truth = metrics.class_scores(confusion, class_names), confusion.sum(1)
    columns = {
        kind: {name: row[kind] for name, row in table.items()}
        for kind in ("iou", "accuracy", "precision", "f1")
    }
    columns |= {key: value for key, value in result.items() if _by_class(value, class_names)}
    total = max(truth.sum(), 1)
    lines = {}
    for name in visualize.curve_names(log)["classes"]:
        lines[name.split("/", 1)[1]] = charts.sparkline(charts.finite(log, name))
    lines = {name: line for name, line in lines.items() if line}
    heads = ["class", *map(_title, columns)]
    heads.append("% of pixels")
    head = "".join(
        # Browsers leave buttons out of a head that they repeat on the next sheet.
        f'<th scope="col" aria-sort="none"><button>{escape(text)}</button>'
        f'<span class="printed">{escape(text)}</span></th>'
        for text in heads
    )
    if lines:
        head += '<th scope="col">in training</th>'
    rows = []
    for i, (name, color) in enumerate(classes):
        iou = columns["iou"][name]
        cells = [
            f'<th scope="row" data-value="{i}"><div>'
            f'<a class="name" href="#images" data-class="{i}">'
            f'<i style="background:{color}"></i>{escape(name)}</a>'
            f'<span class="bar"><b style="width:{100 * (iou or 0):.2f}%"></b></span></div></th>'
        ]
        for key, column in columns.items():
            told = _number(column[name]) if key != "iou" or iou is not None else "absent"
            cells.append(f'<td data-value="{_sortable(column[name])}">{told}</td>')
        share = truth[i] / total
        cells.append(f'<td data-value="{share}">{_percent(share)}</td>')
        if lines:
            cells.append(f"<td>{lines.get(name, '')}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        '<p class="hint">Columns sort by their heads. A class leads to the images that have it, '
        "the worst of it first. Accuracy is the share of a class's pixels that is found, precision "
        "the share of its predictions that is right.</p>\n"
        f'<div class="scroll"><table class="classes"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _percent(share):
    return "&lt;0.01" if 0 < share < 0.5e-4 else f"{100 * share:.2f}"


def _sortable(value):
    return "" if value is None or not math.isfinite(value) else repr(float(value))


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
        f"<td>{_percent(share[i, j])} %</td><td>{_percent(wrong[i, j] / total)} %</td></tr>"
        for i, j in pairs
    )
    return (
        '<div><h3>Most confused</h3>\n<div class="scroll"><table class="confused"><thead><tr>'
        '<th scope="col">truth</th><th scope="col">taken for</th><th scope="col">of the class</th>'
        f'<th scope="col">of all pixels</th></tr></thead><tbody>{rows}</tbody></table></div></div>'
    )


# === Training ===


def _training(log):
    names = visualize.curve_names(log)
    drawn = [charts.curve_chart(title, log, names[title]) for title in ("loss", "score")]
    return f'<div class="charts">{"".join(drawn)}</div>' if any(drawn) else ""


# === Images ===


def _images(chosen, scores, names, classes, palette, images, show):
    parts = [
        '<div class="search" hidden><label>Class or file <input id="search" type="search" '
        'list="names" placeholder="all" autocomplete="off"></label>'
        '<label>Order <select id="order"><option value="up">worst first</option>'
        '<option value="down">best first</option></select></label>'
        f'<datalist id="names">{_options(classes)}</datalist>'
        '<p id="found" aria-live="polite"></p></div>\n'
        '<p class="hint">The mIoU of an image is that of the classes in its truth or prediction. '
        "Errors are orange; what the truth ignores is light grey.</p>"
    ]
    for (key, title, hint), group in zip(_HEADINGS, chosen, strict=True):
        if group:
            cards = "\n".join(
                _card(score, names[score.index], classes, palette, images.ignore_label, show)
                for score in group
            )
            parts.append(
                f'<div class="group" id="{key}"><h3>{title} <small>{hint}</small></h3>\n'
                f'<div class="cards">{cards}</div></div>'
            )
    shown = sum(map(len, chosen))
    parts.append(
        '<div class="group" id="matching" hidden><div class="cards"></div></div>\n'
        f'<details id="all"><summary>All {len(scores):,} images, with and without pictures '
        f'({shown} have some)</summary><div class="scroll"><table class="listing"><thead><tr>'
        '<th scope="col">image</th><th scope="col" class="of-class"></th>'
        '<th scope="col">mIoU</th><th scope="col">accuracy</th></tr></thead><tbody></tbody>'
        '</table></div><button id="more">more</button><noscript><p>The list needs JavaScript.'
        "</p></noscript></details>"
    )
    return "\n".join(parts)


def _options(classes):
    return "".join(f'<option value="{escape(name)}"></option>' for name, _ in classes)


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
    escaped = escape(name)
    height, width = label.shape
    figures = "".join(
        f'<figure><button><img src="{uri}" width="{width}" height="{height}" '
        f'alt="{kind} of {escaped}"></button>'
        f"<figcaption>{kind}</figcaption></figure>"
        for kind, uri in pictures.items()
    )
    # In the order of their IoU; what the truth has not is marked.
    chips = ""
    for i, iou in sorted(score.iou.items(), key=lambda item: (item[1], item[0])):
        title, color = escape(classes[i][0]), classes[i][1]
        kind = "" if i in score.truth else ' class="unfounded" title="not in the truth"'
        chips += (
            f'<li data-name="{title}"{kind}><i style="background:{color}"></i>{title} '
            f"<b>{_number(iou, 2)}</b></li>"
        )
    return (
        f'<article class="card" id="image-{score.index}"><h4>{escaped}</h4>'
        f"<p>mIoU <b>{_number(score.miou)}</b>, accuracy <b>{_number(score.pixel_accuracy)}</b></p>"
        f'<div class="views">{figures}</div><ul class="chips">{chips}</ul></article>'
    )
