"""Tables as text: of Markdown, for files, and of columns that line up, for a terminal."""


def markdown(heads, rows):
    """A Markdown table.

    Args:
        heads: texts, of the columns.
        rows: sequences of as many texts; `None` for an empty cell.

    Returns:
        str, without a line break at its end.

    Raises:
        ValueError: for a row of another length.

    Example:

    >>> print(markdown(["module", "ms"], [["isa", "12"], ["none", None]]))
    | module | ms |
    |---|---|
    | isa | 12 |
    | none |  |
    """
    heads = list(heads)
    lines = [heads]
    for row in rows:
        cells = list(row)
        if len(cells) != len(heads):
            raise ValueError(f"a row of {len(cells)} cells under {len(heads)} heads: {cells}")
        lines.append(["" if cell is None else str(cell).replace("|", r"\|") for cell in cells])
    text = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([text[0], "|" + "---|" * len(heads), *text[1:]])


def of_dicts(columns, rows):
    """A Markdown table of dicts, with the columns that any of them has.

    Args:
        columns: dict from a key to (head, format), the format as of `str.format`.
        rows: dicts; what is missing or `None` is an empty cell.

    Returns:
        str, see `markdown`.

    Example:

    >>> columns = {"name": ("", "{}"), "ms": ("time (ms)", "{:.1f}"), "mb": ("MB", "{:.0f}")}
    >>> print(of_dicts(columns, [{"name": "isa", "ms": 1.25}, {"name": "none"}]))
    |  | time (ms) |
    |---|---|
    | isa | 1.2 |
    | none |  |
    """
    shown = [key for key in columns if any(row.get(key) is not None for row in rows)]
    return markdown(
        [columns[key][0] for key in shown],
        [
            [None if row.get(key) is None else columns[key][1].format(row[key]) for key in shown]
            for row in rows
        ],
    )


def aligned(rows, left=(0,), widths=(), indent=""):
    """Lines whose columns line up.

    Args:
        rows: sequences of texts, of one length; heads, if any, are the first.
        left: positions of the columns that are set to the left; the others to the right. Defaults
            to the first alone.
        widths: ints, how wide the columns are at least. Defaults to none.
        indent: str, in front of every line. Defaults to none.

    Returns:
        str, without a line break at its end.

    Example:

    >>> print(aligned([("format", "MB"), ("litert", "14.5"), ("onnx", "")]))
    format    MB
    litert  14.5
    onnx
    """
    rows = [list(row) for row in rows]
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for i, width in enumerate(widths):
        wide[i] = max(wide[i], width)
    lines = []
    for row in rows:
        cells = (
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, wide, strict=True))
        )
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)
