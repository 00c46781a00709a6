"""Tables that a command makes of the results kept in docs/results are what it makes of them."""

import copy

import handbook
import pytest

from experiments import gains

_PROGRAM = "python -m experiments.gains"
COMMANDS = [
    (page, command)
    for page in handbook.PAGES
    for command in handbook.commands(page)
    if command.program == _PROGRAM and any("docs/results" in word for word in command.arguments)
]


def _read(arguments):
    """The values of a command's flags."""
    values = copy.deepcopy(gains.FLAGS)
    values([_PROGRAM, *arguments])
    return values


@pytest.mark.parametrize(
    ("page", "command"),
    COMMANDS,
    ids=[f"{handbook.name(p)}-{n}" for n, (p, _) in enumerate(COMMANDS)],
)
def test_tables_are_what_the_results_say(page, command, monkeypatch):
    monkeypatch.chdir(handbook.ROOT)
    values = _read(command.arguments)
    found = gains.read_all(values.study, values.variants)
    if values.output:  # drawn: the picture stands on the page in place of the tables
        assert f"]({values.output.removeprefix('docs/')})" in page.read_text(encoding="utf-8")
        return
    text = page.read_text(encoding="utf-8").splitlines()
    for table in (gains.score_table, gains.gain_table):
        lines = table(found, values.variants).splitlines()
        assert set(lines) <= set(text), set(lines) - set(text)


def test_there_are_such_commands():
    drawn = [_read(command.arguments).output for _, command in COMMANDS]
    assert None in drawn and "docs/images/gains.png" in drawn
