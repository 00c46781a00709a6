"""`tools.benchmark compare`: what got slower, bigger or missing, and what cannot be compared."""

import pytest
from absl import app

from tools import benchmark
from tools.bench import comparison, results

COSTS = {"forward_ms": "forward (ms)", "forward_mb": "memory (MB)"}


def result(rows, what="context", settings=None, **changes):
    names = ("name", "forward_ms", "forward_mb", "note")
    rows = [{k: v for k, v in zip(names, row, strict=False) if v is not None} for row in rows]
    made = results.of_now("tools.benchmark", what, rows, ["name"], COSTS, settings or {})
    return made._replace(**changes)


OLD = [("isa", 100.0, 50.0), ("dense", 900.0, 800.0), ("gone", 1.0, 1.0), ("none", None, None)]
NEW = [("isa", 120.0, 50.0), ("dense", 700.0, 900.0), ("fresh", 2.0, 2.0), ("none", None, None)]


@pytest.fixture
def files(tmp_path, capsys):
    """Writes results into two folders, and gives their paths."""

    def write(*made):
        for folder, each in zip(("old", "new"), made, strict=True):
            results.write(each, tmp_path / folder, "")
        capsys.readouterr()
        return [str(tmp_path / folder) for folder in ("old", "new")]

    return write


def test_row_by_row(run, files):
    folders = files(result(OLD), result(NEW))
    status, printed = run(benchmark, "compare", *(f"{f}/context.json" for f in folders))
    assert status == 1
    assert "| isa | forward (ms) | 100 | 120 | 1.20 |" in printed
    assert "| dense | memory (MB) | 800 | 900 | 1.12 |" in printed
    slower, quicker = printed.split("| quicker or smaller")
    assert "| dense | forward (ms) | 900 | 700 | 0.78 |" in quicker and "0.78" not in slower
    assert "MISSING: gone: old alone" in printed and "MISSING: fresh: new alone" in printed
    assert "none: " not in printed and "| isa | memory" not in printed
    assert "4 figures compared, 2 slower or bigger by more than 1.1." in printed
    assert run(benchmark, "compare", *folders) == (status, printed)


@pytest.mark.parametrize(
    ("threshold", "status", "told"),
    [("1.1", 1, "2 slower"), ("1.15", 1, "1 slower"), ("1.2", 0, "none slower"), ("3", 0, "none")],
)
def test_what_is_told_is_beyond_the_threshold(run, files, threshold, status, told):
    folders = files(result(OLD), result(NEW))
    found, printed = run(benchmark, "compare", *folders, f"--threshold={threshold}")
    assert found == status and f"compared, {told}" in printed


def test_the_same_is_no_slower(run, files):
    status, printed = run(benchmark, "compare", *files(result(OLD), result(OLD)))
    assert status == 0 and "6 figures compared, none slower" in printed
    assert "WARNING" not in printed and "MISSING" not in printed


def test_nothing_of_nothing():
    """A call that took next to nothing is not three times as slow for taking as little again."""
    rows = [("a", 0.01, 0.0), ("b", 0.01, 0.0), ("c", 0.0, 0.0)]
    later = [("a", 0.04, 0.9), ("b", 0.2, 8.0), ("c", 0.0, 0.0)]
    found = comparison.compare(result(rows), result(later))
    assert [c.ratio for c in found.changes] == [1, 1, pytest.approx(4), 8, 1, 1]


def test_a_figure_that_is_refused_now():
    refused = [("isa", None, None, "forward: refused: its largest tensor")]
    found = comparison.compare(result([("isa", 1.0, 2.0)]), result(refused))
    reason = "(forward: refused: its largest tensor)"
    expected = [f"isa, {label}: old alone {reason}" for label in COSTS.values()]
    assert found.missing == expected and not found.changes


def test_rows_of_one_name_are_told_apart():
    old, new = ([("isa", 1.0, 1.0), ("isa", later, 1.0)] for later in (2.0, 4.0))
    found = comparison.compare(result(old), result(new))
    assert [(c.row, c.ratio) for c in found.worse(1.1)] == [("isa (2)", 2.0)]


def test_other_machines_versions_and_settings_are_warned_of(run, files):
    old, new = result(OLD, settings={"channels": 512}), result(OLD, settings={"channels": 256})
    machine = {**old.machine, "cpu": "Another", "instructions": ["avx2"], "matmul_gflops": 100.0}
    versions = {**old.versions, "keras": "3.14.0", "isa_tf": "0.0.1"}
    old = old._replace(machine=machine, versions=versions)
    new.machine["matmul_gflops"] = 150.0
    status, printed = run(benchmark, "compare", *files(old, new))
    assert status == 0
    assert f"WARNING: cpu differs: Another, now {new.machine['cpu']}" in printed
    assert "WARNING: instructions differs: avx2, now " in printed
    assert "WARNING: keras differs: 3.14.0, now 3." in printed
    assert "WARNING: channels differs: 512, now 256" in printed
    assert "WARNING: the machine itself multiplied at 100 GFLOP/s, now at 150" in printed
    assert "isa_tf differs" not in printed  # which is what is compared


def test_folders_are_compared_by_names(run, files, tmp_path):
    files(result(OLD, "model"), result(OLD, "detector"))
    folders = files(result(OLD), result(NEW))
    (tmp_path / "old" / "of_something_else.json").write_text("{}")
    status, printed = run(benchmark, "compare", *folders)
    assert status == 1 and printed.count("tools.benchmark context:") == 1
    assert f"MISSING: model.json is in {folders[0]} alone" in printed
    assert f"MISSING: detector.json is in {folders[1]} alone" in printed
    assert "of_something_else" not in printed


def test_what_cannot_be_compared(run, files, tmp_path, capsys):
    old, new = files(result(OLD), result(NEW, "model"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.json").write_text("never")
    (tmp_path / "table.md").write_text("| a |")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/context.json").write_text('{"kind": "isa_tf benchmark", "version": 1}')
    context = f"{old}/context.json"
    for given, message in [
        ([context, f"{new}/model.json"], "of tools.benchmark context, the other of tools.bench"),
        ([old, new], f"no name is in both: {old} holds context.json, {new} holds model.json"),
        ([old, context], "give two files or two folders"),
        ([context, f"{tmp_path}/nowhere.json"], "there is no "),
        ([old, f"{tmp_path}/empty"], "empty holds no stored result"),
        ([context, f"{tmp_path}/text.json"], "text.json is no stored result, and no JSON"),
        ([f"{tmp_path}/table.md", context], "table.md is no stored result"),
        ([old, f"{tmp_path}/damaged"], "context.json is a stored result, but damaged"),
    ]:
        benchmark.FLAGS.unparse_flags()
        assert benchmark.main(benchmark.FLAGS(["benchmark", "compare", *given])) == 2
        said = capsys.readouterr()
        assert message in said.err and not said.out, given


@pytest.mark.parametrize("given", [[], ["a"], ["a", "b", "c"]])
def test_two_are_compared(run, given):
    with pytest.raises(app.UsageError, match="compare OLD NEW"):
        run(benchmark, "compare", *given)
