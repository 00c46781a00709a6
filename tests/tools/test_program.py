import pytest

from tools import program


def test_what_the_machine_refuses_is_a_line(capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")

    def main(argv):
        (tmp_path / argv[0]).mkdir(parents=True)
        return 0

    assert program.guarded(main)(["new"]) == 0 and capsys.readouterr().out == ""
    assert program.guarded(main)(["file/folder"]) == 1
    said = capsys.readouterr().out
    assert said.startswith("FAULT ") and str(tmp_path / "file") in said


def test_interrupted_and_what_nobody_expects():
    def main(error):
        raise error

    assert program.guarded(main)(KeyboardInterrupt()) == 130
    with pytest.raises(KeyError):
        program.guarded(main)(KeyError("a defect"))
