"""Things by name: the registry that every kind of them has, and what to say of unknown names."""

import difflib
import operator
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

_FEW = 12


def unknown(what: str, name: object, known: Collection[Any]) -> str:
    """Text of the error for a name that is none of the known: the nearest, and what there is.

    The known names are listed where they are few, or where none is near.

    Args:
        what: str, what the name should be the name of.
        name: what was given.
        known: the names that there are.

    Example:

    >>> unknown("order", "log", ["long", "short"])
    'unknown order \\'log\\'; did you mean "long"? known: long, short'
    """
    near = difflib.get_close_matches(str(name), known, n=3)
    parts = []
    if near:
        parts.append("did you mean " + " or ".join(f'"{n}"' for n in near) + "?")
    if known and (not near or len(known) <= _FEW):
        parts.append(f"known: {', '.join(map(str, known))}")
    return f"unknown {what} {name!r}; {' '.join(parts) or 'there is none'}"


class Registry:
    """What there is of one kind, by name: a mapping that names its neighbours when it is missed.

    What installed packages add by entry points (`isa_tf.plugins`) is there when a name is missed,
    and when names are listed.

    Args:
        what: str, what the names are the names of, for errors.

    Raises:
        ValueError: from `registry[name]`, for an unknown name, with the nearest; from `register`,
            for a name that is taken.

    Example:

    >>> shapes = Registry("shape")
    >>> @shapes.register("square")
    ... def square(side):
    ...     return side * side
    >>> shapes["square"](3), list(shapes)
    (9, ['square'])
    >>> shapes["sqare"]
    Traceback (most recent call last):
    ValueError: unknown shape 'sqare'; did you mean "square"? known: square
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._entries: dict[str, Any] = {}

    def register(self, name: str, entry: Any = None) -> Any:
        """Gives an entry a name; without an entry, a decorator that does.

        The same entry may be registered again, as happens where its module is loaded twice.

        Returns:
            The entry.
        """
        if entry is None:
            return lambda entry: self.register(name, entry)
        if not isinstance(name, str) or not name:
            raise ValueError(f"a {self.what} has a name, got {name!r}")
        taken = self._entries.get(name)
        if taken is not None and _origin(taken) != _origin(entry):
            raise ValueError(f"there is a {self.what} {name!r} already: {taken!r}")
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: object) -> Any:
        if name not in self._entries:
            faults = _load_plugins()
            if name not in self._entries:
                told = unknown(self.what, name, list(self._entries))
                raise ValueError("; ".join([told, *faults]))
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._entries:
            _load_plugins()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        _load_plugins()
        return iter(self._entries)

    def __len__(self) -> int:
        _load_plugins()
        return len(self._entries)

    def items(self) -> Iterable[tuple[str, Any]]:
        """(name, entry) of each, in the order of their registration."""
        _load_plugins()
        return self._entries.items()


def _load_plugins():
    # Here, since this file is also read alone, where a command is quick without the package.
    from isa_tf import plugins

    return plugins.load()


def _origin(entry):
    """Where an entry was written; the entry itself where that cannot be told."""
    names = (getattr(entry, "__module__", None), getattr(entry, "__qualname__", None))
    return entry if None in names else names


def class_name(class_id: int, class_names: Sequence[str] | None) -> str:
    """The name of a class for people: "class 7" where the classes have none."""
    return class_names[class_id] if class_names else f"class {class_id}"


def id_of_class(given: int | str, class_names: Sequence[str], what: str = "class") -> int:
    """The id of a class that is given as its id or its name.

    Raises:
        ValueError: for what is neither, with the nearest name.

    Example:

    >>> id_of_class("sky", ["road", "sky"]), id_of_class("0", ["road", "sky"])
    (1, 0)
    """
    if given in class_names:
        return list(class_names).index(str(given))
    if str(given).isdecimal() and int(given) < len(class_names):
        return int(given)
    raise ValueError(unknown(what, str(given), class_names))


def two_ints(name: str, value: Any) -> tuple[int, int]:
    """(height, width) of an int for both, or of one or two of them in a sequence.

    Args:
        name: str, of the argument, for the error.
        value: int or sequence of one or two ints, above 0.

    Raises:
        ValueError: for anything else.

    Example:

    >>> two_ints("crop_size", 512), two_ints("crop_size", (512, 1024))
    ((512, 512), (512, 1024))
    """
    try:
        ints = tuple(value)
    except TypeError:
        ints = (value,)
    ints = tuple(getattr(n, "item", lambda n=n: n)() for n in ints)  # NumPy's are ints too
    if len(ints) not in (1, 2) or not all(type(n) is int and n > 0 for n in ints):
        raise ValueError(f"{name} must be an int above 0 or two of them, got {value!r}")
    return (ints * 2)[:2]


def id_pairs(name: str, value: Any) -> tuple[tuple[int, ...], ...]:
    """Pairs of class ids, as a tuple of tuples of ints.

    Args:
        name: str, of the argument, for the error.
        value: sequence of pairs of ints from 0 on, none of which stands there twice.

    Raises:
        ValueError: for anything else.

    Example:

    >>> id_pairs("flip_pairs", [[14, 15], [16, 17]])
    ((14, 15), (16, 17))
    """
    try:
        pairs = tuple(tuple(map(operator.index, pair)) for pair in value)
    except TypeError:
        pairs = ((),)
    ids = [i for pair in pairs for i in pair]
    if any(len(pair) != 2 for pair in pairs) or len({*ids}) != len(ids) or min(ids, default=0) < 0:
        raise ValueError(
            f"{name} must be pairs of class ids, no id twice, such as ((14, 15), (16, 17)), "
            f"got {value!r}"
        )
    return pairs


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The dotted names of the values in which two nested dicts differ.

    >>> differences({"train": {"steps": 1}, "seed": 0}, {"train": {"steps": 2}, "seed": 0})
    ['train.steps']
    """
    a, b = dict(flat(a)), dict(flat(b))
    return sorted(name for name in {*a, *b} if a.get(name) != b.get(name))


def flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The pairs of a dotted name and a value of a nested dict.

    >>> dict(flat({"train": {"steps": 1}, "seed": 0}))
    {'train.steps': 1, 'seed': 0}
    """
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
