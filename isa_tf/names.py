"""What to say of a name that is not known."""

import difflib

_FEW = 12


def unknown(what, name, known):
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
