"""Draws the pictures of the README from the library itself.

python -m tools.draw_docs --output=docs/images
"""

from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image, ImageDraw, ImageFont

from isa_tf import ops, visualize
from isa_tf.data import SyntheticDataset

_SIZE, _PARTITION, _QUERY = 16, 4, (6, 9)
_CELL, _GAP, _TOP, _BOTTOM = 22, 46, 40, 44
_INK, _PAPER, _PALE = (40, 44, 52), (255, 255, 255), (233, 236, 240)
_MARK = (214, 48, 49)


def interlacing():
    """Who hears whom: the groups of both attentions, and what one position hears.

    Shapes:
        -> (height, width, 3), uint8.
    """
    names = ("1. long-range attention", "2. short-range attention", "both: every position heard")
    captions = (
        "same colour = one group: positions P apart",
        "same colour = one group: P x P neighbours",
    )
    return _levels((_PARTITION, _PARTITION), names, captions)


def levels():
    """The same of three levels, whose digits have the radices 4, 2 and 2.

    Shapes:
        -> (height, width, 3), uint8.
    """
    names = ("level 0", "level 1", "level 2", "all: every position heard")
    captions = (
        "one group: equal but for the digit of the 4s",
        "one group: equal but for that of the 2s",
        "one group: 2 x 2 neighbours",
    )
    return _levels(((2, 2), (2, 2)), names, captions)


def _levels(partition, names, captions):
    """A panel for each level of a partition, with what one position hears in it, and one for all.

    The colours come from `ops.to_groups`, the reach of the query from following the groups.
    """
    index = np.arange(_SIZE**2).reshape(1, _SIZE, _SIZE, 1)
    position = _QUERY[0] * _SIZE + _QUERY[1]
    members = []
    for level in range(len(ops.partition_digits(partition)) + 1):
        _, rows, columns = ops.group_shape((_SIZE, _SIZE), partition, level)
        groups = ops.to_groups(index, partition, level)
        members.append(np.asarray(groups).reshape(-1, rows * columns))

    def colors(groups):
        of = np.zeros(_SIZE**2, int)
        for number, group in enumerate(groups):
            of[group] = number
        # Neighbouring groups far apart in hue.
        hues = (of % _PARTITION * 64 + of // _PARTITION * 16) % 256
        hsv = np.stack([hues, np.full_like(hues, 95), np.full_like(hues, 245)], -1)
        picture = Image.fromarray(hsv.astype(np.uint8).reshape(_SIZE, _SIZE, 3), "HSV")
        return np.asarray(picture.convert("RGB"))

    def hears(cells, groups):
        return {i for group in groups if cells & set(group) for i in group}

    everything = {position}
    for groups in reversed(members):
        before, everything = everything, hears(everything, groups)
    panels = [(colors(groups), hears({position}, groups)) for groups in members]
    panels.append((np.full((_SIZE, _SIZE, 3), 255, np.uint8), everything))
    captions = (
        *captions,
        f"{len(everything)} of {_SIZE**2}, by way of its {len(before)} neighbours",
    )
    side = _SIZE * _CELL
    width = len(panels) * side + (len(panels) + 1) * _GAP
    picture = Image.new("RGB", (width, _TOP + side + _BOTTOM), _PAPER)
    draw = ImageDraw.Draw(picture)
    title, small = ImageFont.load_default(size=20), ImageFont.load_default(size=15)
    for number, (name, (fill, heard), caption) in enumerate(
        zip(names, panels, captions, strict=True)
    ):
        left = _GAP + number * (side + _GAP)
        draw.text((left, 8), name, _INK, title)
        draw.text((left, _TOP + side + 12), caption, _INK, small)
        for i in range(_SIZE**2):
            y, x = _TOP + i // _SIZE * _CELL, left + i % _SIZE * _CELL
            box = (x, y, x + _CELL, y + _CELL)
            color = tuple(int(c) for c in fill[i // _SIZE, i % _SIZE])
            draw.rectangle(box, color, _PALE)
            if i in heard:
                inset = (x + 7, y + 7, x + _CELL - 7, y + _CELL - 7)
                draw.ellipse(inset, _INK)
        y, x = _TOP + _QUERY[0] * _CELL, left + _QUERY[1] * _CELL
        draw.rectangle((x, y, x + _CELL, y + _CELL), None, _MARK, 3)
    return np.asarray(picture)


def harbour():
    """One scene of the synthetic data under each of its beacons, with its labels."""
    dataset = SyntheticDataset()
    seed = dataset.example_seed("train", 0)
    pairs = [dataset.render(seed, c) for c in dataset.context_class_ids]
    titles = [f"beacon {i + 1}" for i in range(len(pairs))]
    rows = [[image for image, _ in pairs], [label for _, label in pairs]]
    return visualize.sheet(rows, titles, dataset.palette, dataset.class_names, cell_width=240)


def main(argv):
    del argv
    folder = Path(flags.FLAGS.output)
    folder.mkdir(parents=True, exist_ok=True)
    for draw in (interlacing, levels, harbour):
        path = folder / f"{draw.__name__}.png"
        Image.fromarray(draw()).save(path, optimize=True)
        print(path)


if __name__ == "__main__":
    flags.DEFINE_string("output", "docs/images", "Folder for the pictures.")
    app.run(main)
