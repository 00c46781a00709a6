"""Draws where the information at one position of a photo comes from.

    python -m tools.visualize_affinity --model=model.keras --image=photo.jpg --point=120,200 \\
        --output=affinity.png

For the position of the feature map that the pixel `--point` falls in: what each attention of the
model's attention module weighs, and the product of all that ran one after the other, which is how
much of every position reaches this one through them. Each map has colours of its own, up to its
largest weight. A module of several partitions gives one row each; of a deep module the product
runs through all attentions, and those of the last round are shown alone (`--all`: of every
round). The photo goes in whole, at its own size. Weights on padding lie outside the photo: they
are cut off, and the titles give their share.
"""

from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

from isa_tf import ops
from isa_tf.attention_maps import influence, read_attention
from isa_tf.data import DataError
from isa_tf.data.pictures import read_image
from isa_tf.formats import load_model
from isa_tf.visualize import HEAT_PALETTE, heat, mark, save_picture, sheet
from tools import plugins, program

# Flags of its own where it is imported, so that tools do not meet in one set.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()

_WIDTH = 360  # pixels, of a map

_MODEL = flags.DEFINE_string("model", None, "A .keras file.", flag_values=FLAGS)
_IMAGE = flags.DEFINE_string("image", None, "The photo.", flag_values=FLAGS)
_POINT = flags.DEFINE_list(
    "point", None, "y,x: row and column of a pixel of the photo, from 0.", flag_values=FLAGS
)
_OUTPUT = flags.DEFINE_string("output", None, "The .png file to write.", flag_values=FLAGS)
_LAYER = flags.DEFINE_string(
    "layer", None, "Name of the attention module, of a model with several.", flag_values=FLAGS
)
_ALL = flags.DEFINE_bool(
    "all", False, "Of a deep module, show the attentions of every round.", flag_values=FLAGS
)
_PLUGINS = plugins.define(FLAGS)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    for flag in (_MODEL, _IMAGE, _POINT, _OUTPUT):
        if flag.value is None:
            raise app.UsageError(f"Give --{flag.name}")
    plugins.load(_PLUGINS)
    output = Path(_OUTPUT.value)
    if output.suffix.lower() != ".png":
        raise app.UsageError(f"--output={output}: a .png file is written")
    if output.resolve() == Path(_IMAGE.value).resolve():
        raise app.UsageError(f"--output={output} is the --image; choose another")
    try:
        image = read_image(_IMAGE.value)
        point = _pixel(_POINT.value, image.shape[:2])
        attentions = read_attention(load_model(_MODEL.value), image, _LAYER.value)
    except (DataError, ValueError, FileNotFoundError) as error:
        raise app.UsageError(str(error)) from error

    size = attentions[0].size
    position = _scaled(point, image.shape[:2], size)
    print(f"pixel {point} lies at {position} of a map of {size[0]}x{size[1]} (height x width)")
    # Never narrower than the map: every weight has a pixel.
    width = max(_WIDTH, size[1])
    shown_size = max(round(width * image.shape[0] / image.shape[1]), size[0]), width
    photo = np.asarray(Image.fromarray(image).resize(shown_size[::-1], Image.Resampling.LANCZOS))
    shown_point = _scaled(point, image.shape[:2], shown_size)
    pages = []
    for number, attention in enumerate(attentions):
        titles, cells, largest = ["photo"], [mark(photo, shown_point)], []
        for name, weights in _maps(attention, position, _ALL.value):
            share, inside = _without_padding(weights, attention)
            titles.append(f"{name} ({100 * share:.1f} % on padding)")
            cells.append(heat(photo, inside, shown_point))
            largest.append(f"{100 * inside.max():.2f} %")
            heaviest = np.unravel_index(inside.argmax(), size)
            print(
                f"{_digits(attention.partition)}, {name}: heaviest {largest[-1]} at "
                f"{tuple(map(int, heaviest))}; {100 * share:.2f} % on padding"
            )
        last = number == len(attentions) - 1
        page = sheet(
            [cells],
            titles,
            HEAT_PALETTE,
            ["weight 0", "1/16", "1/4", "9/16", "the largest of its map"] if last else None,
            captions=[
                f"partition {_digits(attention.partition)} of a map of {_by(size)}; "
                f"largest weights: {', '.join(largest)}"
            ],
            heading=None if number else f"Where the information at pixel {point} comes from",
            cell_width=width,
        )
        pages.append(page)
    save_picture(output, np.concatenate(pages))
    print(output)
    return 0


def _maps(attention, position, every_round):
    """Pairs of a name and the weights of the padded map: single attentions, then the product."""
    kinds, where = attention.kinds, attention[2:]
    steps = range(len(kinds))
    rounds = len(kinds) // len(set(kinds))
    for step in steps if every_round else steps[-len(set(kinds)) :]:
        name = f"{kinds[step]}-range"
        if isinstance(kinds[step], int):  # of more levels than long and short
            name = f"level {kinds[step]}"
        if kinds[step] == ops.LONG and attention.partition == (1, 1):
            name = "dense"
        if rounds > 1:
            name += f" {step // len(set(kinds)) + 1}"
        single = attention.affinities[step : step + 1], kinds[step : step + 1]
        yield name, influence(*single, *where, position)
    if len(kinds) > 1:
        order = "all" if rounds > 1 else " then ".join(map(str, kinds))
        yield order, influence(*attention, position)


def _without_padding(weights, attention):
    """The share of weights that lies on padding, and those that do not, (H, W)."""
    (top, left), (height, width) = attention.offset, attention.size
    inside = weights[top : top + height, left : left + width]
    return max(1 - inside.sum(), 0.0), inside


def _pixel(text, size):
    """(y, x) of the flag; ValueError for anything but a pixel of an image of `size`."""
    try:
        y, x = map(int, text)
    except ValueError:
        raise ValueError(f"--point={','.join(text)}: give y,x, two whole numbers") from None
    if not (0 <= y < size[0] and 0 <= x < size[1]):
        raise ValueError(
            f"--point={y},{x} is outside the photo: y is 0 to {size[0] - 1}, x 0 to {size[1] - 1}"
        )
    return y, x


def _scaled(point, size, new_size):
    """The (y, x) at which the centre of a pixel lies after resizing."""
    return tuple((2 * p + 1) * m // (2 * n) for p, n, m in zip(point, size, new_size, strict=True))


def _digits(partition):
    """(4, 4) as 4x4, ((4, 4), (2, 3)) as 4x4,2x3."""
    return ",".join(map(_by, ops.partition_digits(partition)))


def _by(pair):
    return "x".join(map(str, pair))


if __name__ == "__main__":
    program.run(main)
