"""The page of a model that finds instances, and what it found in each image."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from pycocotools import mask

from isa_tf import visualize
from isa_tf.data.instances import Annotations
from isa_tf.hints import Colors
from isa_tf.report import charts, parts
from isa_tf.report.images import choose

FOUND = 0.5  # the intersection over union from which on an instance is found
LONGEST = 560  # pixels, the longer side of a picture
_HEADINGS = (
    ("worst", "Worst", "the lowest mask IoU first"),
    ("best", "Best", "the highest mask IoU first"),
    ("of-a-class", "Worst of a class", "class by class, those with the lowest mask IoU first"),
)
_SIZES = (
    ("ap", "AP"),
    ("ap50", "AP50"),
    ("ap75", "AP75"),
    ("ap_small", "small"),
    ("ap_medium", "medium"),
    ("ap_large", "large"),
)


class TrueInstances(visualize.Drawn, Protocol):
    """What `isa_tf.inference.Truth` tells, which stands above."""

    @property
    def crowd(self) -> np.ndarray: ...


class FoundInstances(visualize.Drawn, Protocol):
    """What `isa_tf.inference.Instances` tell."""

    @property
    def scores(self) -> np.ndarray: ...

    def above(self, score: float) -> "FoundInstances": ...


class InstanceScore(NamedTuple):
    """How well the true instances of one image were found.

    Attributes:
        index: int, the image's position in its split.
        instances: int, how many are true, crowds left out.
        mask_iou: float, the mean over the true instances of the best intersection over union with
            a mask that was found with their class and a score that counts; `None` without
            instances. What was found beside them lowers nothing.
        found: float, the share of the true instances where that is at least 0.5; `None` without.
        false_alarms: int, what was found with such a score and overlaps no true instance of its
            class by 0.5, nor lies in a crowd of it by half.
        iou: dict from class id to the mean of the class's true instances; 0 for a class that has
            none here, but a false alarm.
        truth: dict from class id to number of true instances.
    """

    index: int  # type: ignore[assignment]  # in place of a tuple's method
    instances: int
    mask_iou: float | None
    found: float | None
    false_alarms: int
    iou: dict[int, float]
    truth: dict[int, int]

    @property
    def value(self) -> float | None:
        """By which images are ranked."""
        return self.mask_iou

    @property
    def share(self) -> float | None:
        """What is told beside it."""
        return self.found


class InstanceScores:
    """How well the instances of each image of an evaluation were found.

    It tells images apart; average precision, which ranks the detections of all images by their
    scores, is `isa_tf.metrics.CocoScores`'s.

    Args:
        num_classes: int.
        least_score: float, the least score that counts: what has less counts as not found, and is
            not drawn. A lower one suits a model that is not sure of anything yet. Defaults to 0.5.

    Raises:
        ValueError: from `add`, for a class out of range or an image that has been added.

    Example:

    >>> box, square = np.array([[0, 0, 2, 2]]), np.ones((1, 2, 2), bool)
    >>> cat = isa_tf.inference.Instances(box, np.array([1]), np.array([0.9]), square)
    >>> images = isa_tf.report.InstanceScores(num_classes=2)
    >>> images.add(0, isa_tf.inference.Truth(box, cat.classes, np.array([False]), square), cat)
    >>> images.score(0).iou
    {1: 1.0}
    """

    def __init__(self, num_classes: int, least_score: float = 0.5) -> None:
        self.num_classes = num_classes
        self.least_score = least_score
        # By index: the classes of the true instances, best overlaps, false alarms.
        self._found: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def add(self, index: int, truth: TrueInstances | Annotations, found: FoundInstances) -> None:
        """Takes an image.

        Args:
            index: int, its position in the split.
            truth: what has `classes` (n,), `crowd` (n,) and `masks`, bool (n, H, W) or a list of
                pycocotools' run lengths: `isa_tf.inference.Truth`, or what a data set reads.
            found: `isa_tf.inference.Instances`.
        """
        index = int(index)
        if index in self._found:
            raise ValueError(f"image {index} has been added")
        found = found.above(self.least_score)
        true, guess = (np.asarray(some.classes, int) for some in (truth, found))
        for ids in (true, guess):
            if ids.size and not 0 <= ids.min() <= ids.max() < self.num_classes:
                raise ValueError(f"image {index}: a class outside 0..{self.num_classes - 1}")
        crowd = np.asarray(truth.crowd, bool)
        overlaps = np.zeros((len(guess), len(true)))
        if overlaps.size:
            both = _run_lengths(found.masks), _run_lengths(truth.masks)
            # With a crowd, the share of what was found that lies in it.
            overlaps = np.asarray(mask.iou(*both, crowd.astype(np.uint8).tolist()))
        overlaps = np.where(guess[:, None] == true, overlaps, 0)
        best = overlaps.max(0, initial=0)[~crowd]
        alarms = guess[overlaps.max(1, initial=0) < FOUND]
        self._found[index] = true[~crowd], best, alarms

    def __len__(self) -> int:
        return len(self._found)

    def score(self, index: int) -> InstanceScore:
        """The `InstanceScore` of an image."""
        true, best, alarms = self._found[index]
        counts = {int(i): int((true == i).sum()) for i in np.unique(true)}
        iou = {int(i): 0.0 for i in np.unique(alarms)}
        iou |= {i: float(best[true == i].mean()) for i in counts}
        mean, share = (
            (float(best.mean()), float((best >= FOUND).mean())) if len(best) else (None,) * 2
        )
        return InstanceScore(
            index, len(best), mean, share, len(alarms), dict(sorted(iou.items())), counts
        )

    def scores(self) -> list[InstanceScore]:
        """The `InstanceScore` of every image, in the order of the split."""
        return [self.score(index) for index in sorted(self._found)]

    def classes(self) -> list[dict[str, Any]]:
        """What became of the true instances of each class, in all images.

        Returns:
            list, one a class, of dicts of "instances", "false_alarms", ints, and "mask_iou" and
            "found", floats, as of `InstanceScore`, `None` for a class without instances.
        """
        true, best, alarms = (
            np.concatenate([parts[i] for parts in self._found.values()] or [np.zeros(0, int)])
            for i in range(3)
        )
        rows = []
        for i in range(self.num_classes):
            own = best[true == i]
            rows.append(
                {
                    "instances": len(own),
                    "mask_iou": float(own.mean()) if len(own) else None,
                    "found": float((own >= FOUND).mean()) if len(own) else None,
                    "false_alarms": int((alarms == i).sum()),
                }
            )
        return rows


def _run_lengths(masks):
    if isinstance(masks, np.ndarray):
        return mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return list(masks)


def instance_table(
    scores: Iterable[InstanceScore], names: Sequence[str], class_names: Sequence[str]
) -> str:
    """The scores of images as CSV.

    Args:
        scores: `InstanceScore`s, a row each.
        names: what names each example of the split, by its position.
        class_names: sequence of str.

    Returns:
        str: rows of "image", "instances", "mask_iou", "found", "false_alarms" and, by class,
        "iou/NAME"; what does not occur in an image is empty.

    Example:

    >>> scores = [InstanceScore(0, 2, 0.75, 1.0, 0, {1: 0.75}, {1: 2})]
    >>> print(instance_table(scores, ["a.jpg"], ["cat", "dog"]), end="")
    image,instances,mask_iou,found,false_alarms,iou/cat,iou/dog
    a.jpg,2,0.75,1.0,0,,0.75
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["instances", "mask_iou", "found", "false_alarms"]
    writer.writerow(["image", *head, *(f"iou/{name}" for name in class_names)])
    for score in scores:
        row = [names[score.index], *(getattr(score, name) for name in head)]
        writer.writerow(row + [score.iou.get(i) for i in range(len(class_names))])
    return text.getvalue()


def instance_page(
    result: Mapping[str, Any],
    images: InstanceScores,
    names: Sequence[str],
    class_names: Sequence[str],
    palette: Colors,
    show: Callable[[int], tuple[np.ndarray, TrueInstances, FoundInstances]],
    log: Sequence[Mapping[str, float]] = (),
    facts: Mapping[str, Any] | None = None,
    max_images: int = 24,
) -> str:
    """An evaluation of instances as one HTML page that needs nothing but itself; see `page`.

    It shows average precision of masks and of boxes, overall, by size and by class, the curves of
    the training, and the images that `choose` picks, truth beside what was found.

    Args:
        result: dict of the scores, as `isa_tf.metrics.CocoScores.scores` gives them, and whatever
            else is to be told: floats beside the scores, others as lines.
        images: `InstanceScores` of all images.
        names: what names each example of the split, by its position; of paths, what is common is
            left out.
        class_names: sequence of str.
        palette: RGB triples, 0..255, one a class.
        show: function from the position of an example to its image, uint8 (H, W, 3), its true
            instances and those found: `isa_tf.inference.Truth` and `Instances`.
        log: rows of the training, as `isa_tf.training.read_log` gives them. Defaults to none.
        facts: dict of str to what to tell before the rest of `result`. Defaults to `None`.
        max_images: int, how many images are shown at most. Defaults to 24.

    Returns:
        str, the page. It takes two pictures of at most 560 x 560 pixels for each image shown.

    Raises:
        ValueError: for names, colours and scores that are not of as many classes, or a negative
            `max_images`.

    Example:

    >>> images = isa_tf.report.InstanceScores(num_classes=1)
    >>> result = {"mask_ap": 0.5, "box_ap": 0.25, "classes": {"cat": {"mask_ap": 0.5}}}
    >>> instance_page(result, images, [], ["cat"], [(200, 0, 0)], show=None)[:15]
    '<!DOCTYPE html>'
    """
    class_names = [str(name) for name in class_names]
    if not len(class_names) == len(palette) == images.num_classes:
        raise ValueError(
            f"{len(class_names)} class names and {len(palette)} colours for scores of "
            f"{images.num_classes} classes"
        )
    if max_images < 0:
        raise ValueError(f"max_images must be at least 0, got {max_images}")
    names, scores = parts.short_names(names), images.scores()
    colors = ["#{:02x}{:02x}{:02x}".format(*map(int, color)) for color in palette]
    classes = list(zip(class_names, colors, strict=True))
    told = [result.get("classes", {}).get(name, {}).get("mask_ap") for name in class_names]
    by_ap = sorted((i for i, ap in enumerate(told) if ap is not None), key=told.__getitem__)
    chosen = choose(scores, max_images, by_ap)

    def card(score):
        return _card(score, names[score.index], classes, palette, show, images.least_score)

    groups = [(*heading, group) for heading, group in zip(_HEADINGS, chosen, strict=True)]
    hint = (
        "The mask IoU of an image is the mean, over its true instances, of the best overlap with a "
        f"mask that was found with the instance's class and a score of at least "
        f"{images.least_score:g}: such masks are drawn, what is less sure counts as not found. "
        f"Found is the share of instances where it is at least {FOUND}. Neither counts false "
        "alarms: what overlaps no instance of its class so much. Crowds are grey and count as "
        "nothing."
    )
    sections = {
        "scores": ("Scores", _scores(result, class_names, facts or {})),
        "classes": ("Classes", _classes(result, images, classes, log)),
        "training": ("Training", parts.training(log, ("val_mask_ap", "val_box_ap"))),
        "images": (
            "Images",
            parts.image_groups(groups, card, classes, len(scores), ("mask IoU", "found"), hint),
        ),
    }
    heading = f"{parts.subject(result)}: mask AP {parts.number(result['mask_ap'])}"
    lines = [str(result["model"])] if "model" in result else []
    lines += [f"{len(images):,} images", f"{len(class_names)} classes"]
    data = parts.script_data(scores, names, class_names, colors)
    return parts.assemble(heading, lines, sections, data)


def _scores(result, class_names, facts):
    told = [f"{kind}_{key}" for kind in ("mask", "box") for key, _ in _SIZES]
    rows = {kind: [result.get(f"{kind}_{key}") for key, _ in _SIZES] for kind in ("mask", "box")}
    head = "".join(f'<th scope="col">{title}</th>' for _, title in _SIZES)
    body = "".join(
        f'<tr><th scope="row">{kind}</th>'
        + "".join(f"<td>{parts.number(value)}</td>" for value in row)
        + "</tr>"
        for kind, row in rows.items()
    )
    table = (
        f'<div class="scroll"><table class="ap"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>\n"
        '<p class="hint">Average precision as COCO counts it: the mean over overlaps of 0.5, 0.55, '
        "... 0.95, at 0.5 and at 0.75 alone, and of instances smaller than 32 x 32 pixels, up to "
        "96 x 96, and larger.</p>\n"
    )
    first = [name for name in ("mask_ap", "box_ap") if name in result]
    elsewhere = {"classes", *told} - set(first)
    return parts.tiles(result, class_names, facts, first, elsewhere, table)


def _classes(result, images, classes, log):
    told = result.get("classes", {})
    columns = {
        key: {name: told.get(name, {}).get(key) for name, _ in classes}
        for key in ("mask_ap", "box_ap")
    }
    rows = images.classes()
    for key in ("mask_iou", "found"):
        columns[key] = {name: row[key] for (name, _), row in zip(classes, rows, strict=True)}
    more = {
        title: [(row[key], f"{row[key]:,}") for row in rows]
        for title, key in (("instances", "instances"), ("false alarms", "false_alarms"))
    }
    hint = (
        "Columns sort by their heads. A class leads to the images that have it, the worst of it "
        "first. Mask IoU is the mean of its true instances' best overlaps with what was found, "
        f"found the share of them of at least {FOUND}, see below."
    )
    return parts.class_table(classes, columns, "mask_ap", hint, more, log)


def _card(score, name, classes, palette, show, least_score):
    image, truth, found = show(score.index)
    image = np.asarray(image)
    height, width = image.shape[:2]
    wide = max(1, round(width * LONGEST / max(height, width)))
    class_names = [title for title, _ in classes]
    pictures = {
        kind: charts.picture_uri(
            visualize.draw_instances(image, some, class_names, palette, width=wide), LONGEST
        )
        for kind, some in (("truth", truth), ("prediction", found.above(least_score)))
    }
    line = (
        f"mask IoU <b>{parts.number(score.mask_iou)}</b>, found "
        f"<b>{parts.number(score.found)}</b> of {score.instances}, false alarms "
        f"<b>{score.false_alarms}</b>"
    )
    return parts.card(score, name, classes, line, pictures, (height, width))
