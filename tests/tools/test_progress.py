import contextlib
import io

from tools.progress import Lines


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_one_line_a_split_where_there_is_no_terminal(capsys):
    lines = Lines()
    with contextlib.redirect_stdout(None):  # as what prepares does
        for split, total in (("train", 1500), ("val", 2)):
            for made in range(1, total + 1):
                lines(split, made, total)
    assert capsys.readouterr().out == "train: 1,500 of 1,500\nval: 2 of 2\n"


def test_a_line_that_is_written_over_on_a_terminal():
    terminal = Terminal()
    with contextlib.redirect_stdout(terminal):
        lines = Lines()
        lines._progress.every = 0.0
        for made in (1, 2, 3):
            lines(None, made, 3)
    first, second, last = terminal.getvalue().split("\r")[1:]
    assert first == "1 of 3" and second.startswith("2 of 3  done in ")
    assert last.startswith("3 of 3") and last.endswith("\n") and len(last) == len(second) + 1
