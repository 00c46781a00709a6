"""Stored results: what they say, and what is none."""

import csv
import json
import subprocess

import pytest

from isa_tf import __version__
from tools.bench import machine, results

ROWS = [{"name": "isa", "ms": 1.5, "times": [1.0, 2.0]}, {"name": "none", "note": "refused"}]


@pytest.fixture
def result(monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmark", "context", "--modules=a b"])
    return results.of_now(
        "tools.benchmark", "context", ROWS, ["name"], {"ms": "time"}, {"batch": 2}
    )


def test_a_result_says_what_it_was_measured_on(result):
    assert result.command == "python -m tools.benchmark context '--modules=a b'"
    assert result.machine["cores"] >= 1 and result.machine["cpu"]
    assert result.versions["isa_tf"] == __version__
    assert {"python", "tensorflow", "keras", "numpy"} <= result.versions.keys()
    footer = result.footer("2 threads")
    assert result.machine["cpu"] in footer and "TensorFlow " in footer
    assert footer.endswith("; 2 threads. `python -m tools.benchmark context '--modules=a b'`")


def test_what_is_written_is_read_again(result, tmp_path, capsys):
    endings = results.write(result, tmp_path / "new", "the text", ["ms", "mb", "name"])
    assert endings == [".md", ".csv", ".json"] and "the text" in capsys.readouterr().out
    assert results.read(tmp_path / "new/context.json") == result
    assert (tmp_path / "new/context.md").read_text() == "the text\n"
    rows = list(csv.DictReader((tmp_path / "new/context.csv").open()))
    assert rows == [{"ms": "1.5", "name": "isa"}, {"ms": "", "name": "none"}]
    assert results.write(result, tmp_path, "the text") == [".md", ".json"]
    assert not (tmp_path / "context.csv").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: "", "no stored result, and no JSON"),
        (lambda s: s[: len(s) // 2], "no stored result, and no JSON"),
        (lambda s: b"\xff\xfe\x00", "no stored result, and no JSON"),
        (lambda s: "[1, 2]", "no stored result of a benchmark"),
        (lambda s: '{"rows": []}', "no stored result of a benchmark"),
        (lambda s: {"version": 2}, "of version 2, and this program reads version 1"),
        (lambda s: {"rows": None}, "damaged: rows is None"),
        (lambda s: {"rows": [3]}, "damaged: row 0 is 3"),
        (lambda s: {"rows": [{"ms": "fast"}]}, "damaged: ms of row 0 is 'fast'"),
        (lambda s: {"rows": [{"ms": float("nan")}]}, "damaged: ms of row 0 is nan"),
        (lambda s: {"rows": [{"ms": -1.0}]}, "damaged: ms of row 0 is -1.0"),
        (lambda s: {"rows": [{"ms": True}]}, "damaged: ms of row 0 is True"),
        (lambda s: {"machine": "a fast one"}, "damaged: machine is 'a fast one'"),
        (lambda s: {"costs": ...}, "damaged: it has no 'costs'"),
    ],
)
def test_what_is_no_stored_result(result, tmp_path, change, message):
    results.write(result, tmp_path, "")
    path = tmp_path / "context.json"
    changed = change(path.read_text())
    if isinstance(changed, dict):
        stored = {**json.loads(path.read_text()), **changed}
        changed = json.dumps({k: v for k, v in stored.items() if v is not ...})
    path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    with pytest.raises(ValueError, match=message) as error:
        results.read(path)
    assert str(path) in str(error.value)


def test_a_revision_and_whether_files_differ(tmp_path):
    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True)

    assert machine.revision(tmp_path) == (None, None)
    git("init", "-q")
    assert machine.revision(tmp_path) == (None, None)  # no commit yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "one")
    commit, dirty = machine.revision(tmp_path)
    assert len(commit) == 40 and dirty is False
    (tmp_path / "a").write_text("2")
    assert machine.revision(tmp_path) == (commit, True)
    # An install may lie within a repository of somebody's.
    (tmp_path / "inside").mkdir()
    assert machine.revision(tmp_path / "inside") == (None, None)


def test_instruction_sets_are_those_of_the_processor(monkeypatch):
    flags = "flags\t\t: sse2 avx avx2 avx512f avx512_vnni avx512_bf16 amx_tile avx512vl\n"
    told = {"/proc/cpuinfo": f"model name\t: A Processor @ 2 GHz\n{flags}", "/proc/meminfo": ""}
    monkeypatch.setattr(machine, "_read", told.get)
    found = machine.describe(packages=["no-such-package"])
    assert found["machine"]["cpu"] == "A Processor @ 2 GHz"
    expected = ["amx_tile", "avx", "avx2", "avx512_bf16", "avx512_vnni", "avx512f"]
    assert found["machine"]["instructions"] == expected
    assert found["machine"]["memory_gb"] is None and "no-such-package" not in found["versions"]
    found["machine"]["matmul_gflops"], found["dirty"], found["commit"] = 99.6, True, "abc" * 10
    line = machine.line(found)
    assert "cores, 100 GFLOP/s of float32" in line and "commit abcabcabca, with changes" in line
