"""Which cases `pytest.mark.some` leaves to the ordinary tests (conftest.py)."""

import inspect
from pathlib import Path

import pytest

pytest_plugins = "pytester"

CASES = """
import pytest

@pytest.mark.{marker}
@pytest.mark.parametrize("b", "xyz")
@pytest.mark.parametrize("a", range(4))
def test_it(a, b):
    pass

def test_another():
    pass
"""


@pytest.fixture
def collected(pytester, request):
    """Ordinary and slow cases of a test that is so marked."""
    conftest = request.config.pluginmanager.getplugin(str(Path(__file__).with_name("conftest.py")))
    hook = inspect.getsource(conftest.pytest_collection_modifyitems)
    pytester.makeconftest(f"import collections, zlib\nimport pytest\n{hook}")

    def collected(marker):
        pytester.makepyfile(CASES.format(marker=marker))
        flags = "--collect-only", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"
        both = [pytester.runpytest(*flags, "-m", which) for which in ("not slow", "slow")]
        return [[n for n in result.outlines if "::" in n] for result in both], both

    return collected


def test_so_many_are_ordinary_and_the_rest_slow(collected):
    (ordinary, slow), _ = collected("some(5)")
    assert len(ordinary) == 5 + 1 and len(slow) == 7
    assert any(name.endswith("test_it[0-x]") for name in ordinary)
    assert not set(ordinary) & set(slow)
    assert collected("some(5)")[0] == [ordinary, slow]
    drawn = [name.partition("[")[2].rstrip("]") for name in ordinary if "[" in name]
    assert len({case[0] for case in drawn}) > 1 and len({case[2] for case in drawn}) > 1


def test_those_that_are_named(collected):
    (ordinary, slow), _ = collected('some("1-y", "3-z")')
    assert [name.partition("::")[2] for name in ordinary] == [
        "test_it[1-y]",
        "test_it[3-z]",
        "test_another",
    ]
    assert len(slow) == 10


def test_names_of_no_case(collected):
    _, (result, _) = collected('some("renamed")')
    assert "has none of the cases renamed" in result.stderr.str() and result.ret != 0
