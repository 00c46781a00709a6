"""Classes united to fewer."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from isa_tf.data.base import IGNORE_LABEL
from isa_tf.hints import Colors
from isa_tf.names import unknown


class Grouping(NamedTuple):
    """What becomes of classes that are united.

    Attributes:
        new_ids: uint8 array (256,), the new id of every stored one.
        class_names: list of str, the new classes.
        palette: list of RGB triples, of each group's first member.
    """

    new_ids: np.ndarray
    class_names: list[str]
    palette: list[tuple[int, ...]]

    def pairs(self, stored: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
        """Pairs of stored classes as pairs of new ones; none of what is ignored or one now.

        >>> names, palette = ["left", "right", "sky"], [(0, 0, 0)] * 3
        >>> found = group(names, palette, {"r": ["right"], "l": ["left"]})
        >>> found.pairs([(0, 1)])
        ((0, 1),)
        """
        pairs = (sorted(int(self.new_ids[i]) for i in pair) for pair in stored)
        return tuple(sorted({(a, b) for a, b in pairs if a != b and b != IGNORE_LABEL}))


def group(
    class_names: Sequence[str],
    palette: Colors,
    groups: Mapping[str, str | Sequence[str]] | Iterable[tuple[str, str | Sequence[str]]],
) -> Grouping:
    """Unites classes.

    Args:
        class_names: sequence of str, the stored classes.
        palette: sequence of RGB triples, theirs.
        groups: dict of a new class's name to the names of the classes that it unites, or such
            pairs, in the order of the new ids; classes in no group are ignored.

    Returns:
        A `Grouping`.

    Raises:
        ValueError: for a group without classes, of unknown ones or of one that is in another
            group.

    Example:

    >>> palette = [(0, 0, 1), (0, 0, 2), (9, 9, 9)]
    >>> found = group(["car", "bus", "sky"], palette, {"road user": ["car", "bus"]})
    >>> found.new_ids[:3], found.class_names, found.palette
    (array([  0,   0, 255], dtype=uint8), ['road user'], [(0, 0, 1)])
    """
    groups = dict(groups)
    new_ids = np.full(256, IGNORE_LABEL, np.uint8)
    ids, colors = {name: i for i, name in enumerate(class_names)}, []
    taken: dict[str, str] = {}
    for new_id, (name, members) in enumerate(groups.items()):
        members = [members] if isinstance(members, str) else list(members)
        if not members:
            raise ValueError(f"group {name!r} unites no classes")
        for member in members:
            if member not in ids:
                raise ValueError(f"group {name!r}: {unknown('class', member, ids)}")
            if member in taken:
                raise ValueError(
                    f"class {member!r} is in two groups, {taken[member]!r} and {name!r}"
                )
            taken[member] = name
            new_ids[ids[member]] = new_id
        colors.append(tuple(palette[ids[members[0]]]))
    return Grouping(new_ids, list(groups), colors)
