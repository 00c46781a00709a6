"""The tool that kills trainings and damages their files: a little of it, and all of it."""

import collections

import pytest
from absl import app

from experiments import torture
from experiments.faults import compared, damages, kills, restoring
from experiments.faults.sources import prepare
from experiments.train import train
from isa_tf import training


@pytest.fixture
def sources(tmp_path):
    return prepare(tmp_path / "damages", steps=16, other=False)


@pytest.mark.slow
def test_a_kill_and_some_damages(sources, tmp_path):
    # The command's training is that which was done here, so there is no need of another.
    start = kills.Start(tmp_path / "killed", 16, 1, tmp_path / "output")
    faults = []
    moment = kills.Moment("writing", 2, "safetensors")
    kills.await_moment(start, tmp_path / "killed", moment, 16, 8, faults)
    start.kill([0])
    step, what, wrong = kills.examine(tmp_path / "killed")
    assert not faults and not wrong and step < 16, (start.said(), what)
    train(sources.config, tmp_path / "killed", verbose=0)
    assert compared.differences(tmp_path / "damages/end", tmp_path / "killed") == []
    assert compared.differences(tmp_path / "damages/end", tmp_path / "damages/halfway") != []

    restorer = restoring.Restorer(sources)
    drawn = damages.draw_damages(sources, seed=0, each=2)
    assert len(drawn) >= 60
    newest = str(sources.newest)
    expected = {
        (training.CONFIG, "emptied"): "recovered",
        (training.CONFIG, "another number"): "refused",
        (training.LOG, "another number"): "recovered",
        (training.BEST_SCORE, "NaN"): "recovered",
        (training.BEST, "removed"): "recovered",
        (newest, "cut"): "recovered",
        (newest, "both cut"): "refused",
        (".lock", "removed"): "harmless",
    }
    for damage in drawn:
        outcome = expected.pop((damage.file, damage.kind), None)
        if outcome is None:
            continue
        folder = sources.copy(damage.folder, tmp_path / "damaged")
        damage.act(folder)
        assert restorer.judge(damage, folder, False) == (outcome, ""), damage
    assert not expected

    # What is not as it must be is no success: here, a state that is older than need be, and a
    # damage that must be refused.
    copy = sources.copy("halfway", tmp_path / "damaged")
    (copy / newest).unlink()
    hidden = damages.Damage(newest, "removed", None)
    assert restorer.judge(hidden, copy, False)[0] == "fault"
    (copy / training.LOG).write_text("step\n1\n")
    strict = damages.Damage(training.LOG, "changed", None, ("refused",))
    outcome, why = restorer.judge(strict, copy, False)
    assert outcome == "fault" and "recovered, where it must be refused" in why


def test_moments_are_of_every_kind_and_a_third_in_writing():
    for seed in range(3):
        moments = kills.draw_moments(12, seed)
        counts = collections.Counter(moment.kind for moment in moments)
        assert counts == {"writing": 6, "validating": 3, "time": 3}
        suffixes = {moment.suffix for moment in moments if moment.kind == "writing"}
        assert {"safetensors", "best.keras", "log.csv", "best.json", "config.json"} == suffixes
    assert kills.draw_moments(12, 0) != kills.draw_moments(12, 1)


def test_usage(run, tmp_path):
    with pytest.raises(app.UsageError, match="--workdir"):
        run(torture)
    (tmp_path / "mine").write_text("")
    with pytest.raises(app.UsageError, match="not empty"):
        run(torture, f"--workdir={tmp_path}")
    with pytest.raises(app.UsageError, match="not empty, or no folder"):
        run(torture, f"--workdir={tmp_path / 'mine'}")
    with pytest.raises(app.UsageError, match="--parts takes kills,damages"):
        run(torture, f"--workdir={tmp_path / 'new'}", "--parts=")
    with pytest.raises(app.UsageError, match="got knives"):
        run(torture, f"--workdir={tmp_path / 'new'}", "--parts=kills,knives")


@pytest.mark.slow
def test_all_of_it(run, tmp_path):
    status, printed = run(torture, f"--workdir={tmp_path / 'torture'}", "--kills=12")
    assert status == 0, printed
    assert "12 kills" in printed and printed.rstrip().endswith("No faults")
