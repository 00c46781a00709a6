"""The writer of tables."""

import pytest

from tools import tables


def test_markdown_has_a_row_for_each_and_nothing_that_breaks_it():
    text = tables.markdown(["a", "b"], [["x|y", 1], [None, ""]])
    assert text == "| a | b |\n|---|---|\n| x\\|y | 1 |\n|  |  |"
    assert tables.markdown(["a"], []) == "| a |\n|---|"


@pytest.mark.parametrize("row", [["x"], ["x", "y", "z"]])
def test_a_row_of_another_length(row):
    with pytest.raises(ValueError, match=f"a row of {len(row)} cells under 2 heads"):
        tables.markdown(["a", "b"], [row])


def test_columns_that_no_row_has_are_left_out():
    columns = {"a": ("A", "{:.1f}"), "b": ("B", "{}"), "c": ("C", "{}")}
    rows = [{"a": 0.0, "b": None}, {"c": "z", "d": "of no column"}]
    assert tables.of_dicts(columns, rows) == "| A | C |\n|---|---|\n| 0.0 |  |\n|  | z |"


def test_columns_line_up():
    rows = [["id", "class", "%"], ["0", "road", "12.5"], ["255", "", ""]]
    text = tables.aligned(rows, left=[1], widths=(3, 0, 6), indent="  ")
    assert text.splitlines() == ["   id  class       %", "    0  road     12.5", "  255"]
