import pytest


@pytest.fixture
def run(capsys):
    """Runs a tool's `main` on flags, in this process; gives (exit status, what it printed)."""

    def run(tool, *arguments):
        tool.FLAGS.unparse_flags()
        for name in tool.FLAGS:
            tool.FLAGS[name].unparse()
        status = tool.main(tool.FLAGS(["tool", *arguments]))
        return status, capsys.readouterr().out

    return run
