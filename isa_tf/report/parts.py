"""What pages of all tasks are made of: everything is in a page, and nothing is fetched."""

import json
import math
import numbers
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any

from isa_tf import visualize
from isa_tf.hints import StrPath
from isa_tf.report import charts
from isa_tf.report.images import AnyScore, Scored

LISTED = 5000  # how many images are listed without a picture
_WORDS = {"miou": "mIoU", "iou": "IoU", "f1": "F1", "ap": "AP", "ap50": "AP50", "ap75": "AP75"}


def assemble(
    heading: str, subheading: Sequence[str], sections: Mapping[str, tuple[str, str]], data: str
) -> str:
    """The page.

    Args:
        heading: str.
        subheading: sequence of str.
        sections: dict of the section's id to (title, HTML); without HTML it is left out.
        data: what the script reads, of `script_data`.

    Returns:
        str.
    """
    sections = {key: section for key, section in sections.items() if section[1]}
    return Template(_part("template.html")).substitute(
        title=escape(heading),
        heading=escape(heading),
        subheading=escape(" · ".join(subheading)),
        nav=" ".join(f'<a href="#{key}">{title}</a>' for key, (title, _) in sections.items()),
        sections="\n".join(
            f'<section id="{key}">\n<h2>{title}</h2>\n{text}\n</section>'
            for key, (title, text) in sections.items()
        ),
        footer="Made by isa_tf. This page loads nothing: it can be kept and sent as it is.",
        style=_part("page.css"),
        script=_part("page.js"),
        data=data,
    )


def short_names(names: Iterable[StrPath]) -> list[str]:
    """Names of examples without the folders that all of them share.

    What in a file's name is no text, and so could not be written, becomes a question mark.

    >>> short_names(["/data/val/a/1.png", "/data/val/b/1.png"])
    ['a/1.png', 'b/1.png']
    """
    texts = (str(name).encode("utf-8", "replace").decode("utf-8") for name in names)
    parts = [text.replace(os.sep, "/").split("/") for text in texts]
    shared = 0
    while parts and all(
        len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts
    ):
        shared += 1
    return ["/".join(part[shared:]) for part in parts]


def _part(name):
    return resources.files("isa_tf.report").joinpath(name).read_text(encoding="utf-8")


def in_words(key: str) -> str:
    """A key of the result in words."""
    return " ".join(_WORDS.get(word, word) for word in key.split("_"))


def number(value: float | None, digits: int = 4) -> str:
    """A score as it is written everywhere; of nothing, a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def subject(result: Mapping[str, Any]) -> str:
    """What was evaluated, as the heading says it."""
    of = " ".join(str(result[key]) for key in ("dataset", "split") if key in result)
    return of or "Evaluation"


def script_data(
    scores: Sequence[Scored],
    names: Sequence[str],
    class_names: Sequence[str],
    colors: Sequence[str],
    confusion: Sequence[Sequence[int]] = ((), (), ()),
) -> str:
    """What the script reads, as JSON that ends no script element.

    Args:
        scores: of images; each has `index`, `value`, by which images are ranked, `share`, `iou`
            and `truth`, see `ImageScore`.
        names: of all images, by their position.
        class_names: sequence of str.
        colors: of the classes, "#rrggbb".
        confusion: rows, columns and counts of a confusion matrix. Defaults to none.
    """
    ranked = sorted(scores, key=lambda s: (s.value is None, s.value, s.index))[:LISTED]
    data = {
        "classes": class_names,
        "colors": colors,
        "images": [
            [
                score.index,
                names[score.index],
                _rounded(score.value),
                _rounded(score.share),
                # By class: the IoU, and whether the truth has it.
                {i: [_rounded(iou), int(i in score.truth)] for i, iou in score.iou.items()},
            ]
            for score in ranked
        ],
        "unlisted": len(scores) - len(ranked),
        "confusion": confusion,
    }
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _rounded(value):
    return None if value is None else round(value, 4)


# === Scores ===


def tiles(
    result: Mapping[str, Any],
    class_names: Sequence[str],
    facts: Mapping[str, Any],
    first: Sequence[str],
    without: Collection[str],
    table: str = "",
) -> str:
    """The scores as tiles, and what else there is to tell as lines.

    Args:
        result: dict; floats are tiles.
        class_names: sequence of str; a dict with all of them has a column elsewhere.
        facts: dict of what is told before the rest.
        first: names of scores that all speak of.
        without: names that are told elsewhere.
        table: HTML between tiles and lines. Defaults to none.
    """
    shown, lines = [], []
    for key, value in {**{key: result[key] for key in first}, **facts, **result}.items():
        if key in without:
            continue
        title = escape(in_words(key))
        is_score = value is None or isinstance(value, float) and key != "seconds"
        if is_score and key not in facts:
            shown.append(f"<div><dt>{title}</dt><dd>{number(value)}</dd></div>")
        elif not by_class(value, class_names) and (told := _told(value)):
            lines.append(f"<div><dt>{title}</dt><dd>{escape(told)}</dd></div>")
    return (
        f'<dl class="tiles">{"".join(shown)}</dl>\n{table}<dl class="facts">{"".join(lines)}</dl>'
    )


def by_class(value: object, class_names: Sequence[str]) -> bool:
    """Whether a value is a dict of a number, or `None`, for each class."""
    return (
        isinstance(value, dict)
        and set(value) == set(class_names)
        and all(v is None or isinstance(v, numbers.Real) for v in value.values())
    )


def _told(value):
    """A value in words; empty for what is nothing."""
    if isinstance(value, dict):
        parts = ((in_words(key), _told(part)) for key, part in value.items())
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


def class_table(
    classes: Sequence[tuple[str, str]],
    columns: Mapping[str, Mapping[str, float | None]],
    bar: str,
    hint: str,
    more: Mapping[str, Sequence[tuple[float, str]]] | None = None,
    log: Sequence[Mapping[str, float]] = (),
) -> str:
    """The table of classes, whose columns sort.

    Args:
        classes: list of (name, colour).
        columns: dict of a column's name to a dict of class name to a score, or `None`.
        bar: name of the column that is a bar too.
        hint: HTML above the table.
        more: dict of a column's head to a list of (number to sort by, HTML), one a class. Defaults
            to none.
        log: rows of the training; what is named "val_SCORE/CLASS" is drawn. Defaults to none.
    """
    lines = {}
    for name in visualize.curve_names(log)["classes"]:
        lines[name.split("/", 1)[1]] = charts.sparkline(charts.finite(log, name))
    lines = {name: line for name, line in lines.items() if line}
    more = more or {}
    heads = ["class", *map(in_words, columns), *more]
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
        long = columns[bar][name]
        cells = [
            f'<th scope="row" data-value="{i}"><div>'
            f'<a class="name" href="#images" data-class="{i}">'
            f'<i style="background:{color}"></i>{escape(name)}</a>'
            f'<span class="bar"><b style="width:{100 * (long or 0):.2f}%"></b></span></div></th>'
        ]
        for key, column in columns.items():
            told = number(column[name]) if key != bar or long is not None else "absent"
            cells.append(f'<td data-value="{_sortable(column[name])}">{told}</td>')
        for rest in more.values():
            cells.append(f'<td data-value="{rest[i][0]}">{rest[i][1]}</td>')
        if lines:
            cells.append(f"<td>{lines.get(name, '')}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<p class="hint">{hint}</p>\n'
        f'<div class="scroll"><table class="classes"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def percent(share: float) -> str:
    return "&lt;0.01" if 0 < share < 0.5e-4 else f"{100 * share:.2f}"


def _sortable(value):
    return "" if value is None or not math.isfinite(value) else repr(float(value))


# === Training ===


def training(log: Sequence[Mapping[str, float]], scores: Collection[str] | None = None) -> str:
    """The curves of a training.

    Args:
        log: rows, as `isa_tf.training.read_log` gives them.
        scores: names of the scores to draw; `None` for all. Defaults to `None`.
    """
    names = visualize.curve_names(log)
    if scores is not None:
        names["score"] = [name for name in names["score"] if name in scores]
    drawn = [charts.curve_chart(title, log, names[title]) for title in ("loss", "score")]
    return f'<div class="charts">{"".join(drawn)}</div>' if any(drawn) else ""


# === Images ===


def image_groups(
    groups: Sequence[tuple[str, str, str, Sequence[AnyScore]]],
    card: Callable[[AnyScore], str],
    classes: Sequence[tuple[str, str]],
    total: int,
    heads: Sequence[str],
    hint: str,
) -> str:
    """The images that are shown, group by group, and the list of all of them.

    Args:
        groups: list of (id, title, hint, scores).
        card: function from a score to the HTML of an image.
        classes: list of (name, colour).
        total: int, how many images there are.
        heads: two str: what the scores that images are ranked by and `share` are called.
        hint: HTML above the groups.
    """
    parts = [
        '<div class="search" hidden><label>Class or file <input id="search" type="search" '
        'list="names" placeholder="all" autocomplete="off"></label>'
        '<label>Order <select id="order"><option value="up">worst first</option>'
        '<option value="down">best first</option></select></label>'
        f'<datalist id="names">{_options(classes)}</datalist>'
        '<p id="found" aria-live="polite"></p></div>\n'
        f'<p class="hint">{hint}</p>'
    ]
    for key, title, about, group in groups:
        if group:
            cards = "\n".join(map(card, group))
            parts.append(
                f'<div class="group" id="{key}"><h3>{title} <small>{about}</small></h3>\n'
                f'<div class="cards">{cards}</div></div>'
            )
    shown = sum(len(group) for *_, group in groups)
    parts.append(
        '<div class="group" id="matching" hidden><div class="cards"></div></div>\n'
        f'<details id="all"><summary>All {total:,} images, with and without pictures '
        f'({shown} have some)</summary><div class="scroll"><table class="listing"><thead><tr>'
        '<th scope="col">image</th><th scope="col" class="of-class"></th>'
        f'<th scope="col">{heads[0]}</th><th scope="col">{heads[1]}</th></tr></thead>'
        '<tbody></tbody></table></div><button id="more">more</button><noscript>'
        "<p>The list needs JavaScript.</p></noscript></details>"
    )
    return "\n".join(parts)


def _options(classes):
    return "".join(f'<option value="{escape(name)}"></option>' for name, _ in classes)


def card(
    score: Scored,
    name: str,
    classes: Sequence[tuple[str, str]],
    line: str,
    pictures: Mapping[str, str],
    size: Sequence[int],
) -> str:
    """An image with its pictures.

    Args:
        score: of the image, see `script_data`.
        name: str, of the image.
        classes: list of (name, colour).
        line: HTML beneath the name.
        pictures: dict of what a picture shows to its data URI.
        size: (height, width) of the pictures, for their proportions.
    """
    escaped = escape(name)
    height, width = size
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
            f"<b>{number(iou, 2)}</b></li>"
        )
    return (
        f'<article class="card" id="image-{score.index}"><h4>{escaped}</h4><p>{line}</p>'
        f'<div class="views">{figures}</div><ul class="chips">{chips}</ul></article>'
    )
