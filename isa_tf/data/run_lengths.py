"""COCO's run lengths, checked: behind those that end too early pycocotools leaves old memory."""

from collections.abc import Mapping
from typing import Any


def encoded(found: Mapping[str, Any]) -> dict[str, Any]:
    """What `pycocotools.mask.decode` takes, of run lengths as COCO's json holds them.

    Args:
        found: dict of "size", (height, width), and "counts": a list of ints, or COCO's text.

    Raises:
        ValueError: for lengths that are not those of an image of the size.

    Example:

    >>> from pycocotools import mask
    >>> mask.decode(encoded({"size": [2, 3], "counts": [1, 2, 3]}))
    array([[0, 1, 0],
           [1, 0, 0]], dtype=uint8)
    """
    from pycocotools import mask

    (height, width), counts = found["size"], found["counts"]
    counts = counts if isinstance(counts, list) else _numbers(counts)
    if min(counts) < 0 or sum(counts) != height * width:
        raise ValueError(f"its run lengths are not those of {width}x{height} pixels")
    return mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def _numbers(text):
    """The numbers in COCO's text: 5 bits a letter, from the fourth on as differences."""
    lengths, value, shift = [], 0, 0
    for letter in text if isinstance(text, bytes) else text.encode():
        bits = letter - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last letter of a number
            value -= (bits & 16) and 1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    return lengths
