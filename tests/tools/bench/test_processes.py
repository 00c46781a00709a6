"""Fresh processes: what they answer, and how they end."""

import os

import pytest

from tools.bench import machine, processes, timing


@pytest.fixture
def module(monkeypatch, tmp_path):
    """Writes a module that a process can be of, and gives its name."""

    def write(text):
        (tmp_path / "of_a_test.py").write_text("import sys, json, os\n" + text)
        path = f"{machine.ROOT}:{tmp_path}"
        monkeypatch.setenv("PYTHONPATH", path)
        return "of_a_test"

    return write


ECHO = """
from tools.bench import processes
print("what a library says")
told = json.loads(sys.argv[2])
"""


def test_a_process_of_its_own_tells_one_answer(module):
    text = ECHO + "processes.tell([sys.argv[1], told, os.getpid(), os.environ['A']])"
    what, told, pid, variable = processes.apart(module(text), {"a": [1]}, {"A": "b"})
    assert (what, told, variable) == ("measure", {"a": [1]}, "b")
    assert pid != os.getpid()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise ValueError('of no use')", "^ValueError: of no use$"),
        ("print('answer 3'); sys.exit(1)", "killed, perhaps for its memory"),
        ("os.kill(os.getpid(), 9)", "killed, perhaps for its memory"),
        ("print('nothing to tell')", "killed"),
    ],
)
def test_a_process_that_fails(module, text, message):
    with pytest.raises(processes.Failed, match=message):
        processes.apart(module(text), {})


def test_a_contestant_answers_in_its_turn_and_ends(module):
    text = ECHO + (
        "calls = []\n"
        "def call(*given):\n"
        "    print('also this'); calls.append(given); return [told, len(calls), *given]\n"
        "processes.serve({'call': call, 'end': lambda: os._exit(0)})\n"
    )
    with processes.Contestant("one", module(text), {"a": 1}) as one:
        assert one.ask("call", "b", 2) == [{"a": 1}, 1, "b", 2]
        assert one.ask("call") == [{"a": 1}, 2]
        with pytest.raises(processes.Failed, match="one has ended"):
            one.ask("end")
        with pytest.raises(processes.Failed, match="one has ended"):
            one.ask("call")
    assert one.process.poll() is not None
    with processes.Contestant("two", module(text), {}) as two:
        pass
    assert two.process.poll() is not None and two.process.stdout.closed


def test_turns_and_ratios():
    assert list(timing.in_turn(["a", "b", "c"], 3)) == [*"abc", *"cba", *"abc"]
    assert list(timing.in_turn([], 3)) == list(timing.in_turn("ab", 0)) == []
    assert timing.ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    assert timing.ratio_of_medians([2.0, 100.0, 4.0], [1.0, 2.0, 50.0]) == 2.0


def test_latency_calls_for_as_long_as_it_is_told():
    calls = []
    assert timing.latency(lambda: calls.append(1), 0.0) >= 0 and len(calls) == timing.LEAST_CALLS
    assert timing.latency(lambda: calls.append(1), 0.05) < 5 and len(calls) > 10
