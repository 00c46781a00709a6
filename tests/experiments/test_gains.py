"""What a variant gains, read of studies' tables, drawn and told."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import ablate, gains
from experiments.configs import synthetic

ROOT = Path(__file__).resolve().parents[2]
FACTS = {"parameters": 5, "seconds": 1.0, "images": 4, "tensorflow": "2", "keras": "3"}
NONE, ISA = (0.5, 0.6, 0.4), (0.52, 0.65, 0.42)


@pytest.fixture
def study(tmp_path):
    made = ablate.Study("context", synthetic.get_config(), tmp_path, [0, 1, 2], ["none", "isa"])
    for variant, scores in (("none", NONE), ("isa", ISA)):
        for seed, score in enumerate(scores):
            made.results[variant, seed] = {"miou": score, "context_miou": 0.1, **FACTS}
    made.write()
    return made


def test_the_gain_of_a_study(study):
    mean, low, high = (100 * value for value in study.differences("isa", "miou"))
    assert mean == pytest.approx(100 * np.mean(np.subtract(ISA, NONE)))
    for path in (study.folder, study.folder / "results.csv"):
        (found,) = gains.read_gains(f"Harbours:c4:{path}", ["isa"])
        assert (found.mean, found.low, found.high) == pytest.approx((mean, low, high))
        assert (found.series, found.place, found.seeds) == ("Harbours", "c4", 3)
        assert found.against == "none"
        assert found.score == pytest.approx(np.mean(ISA))
        assert found.spread == pytest.approx(np.std(ISA, ddof=1))


def test_of_a_single_seed_there_is_no_interval(study):
    for seed in (1, 2):
        del study.results["isa", seed]
    study.write()
    (found,) = gains.read_gains(f"Harbours:c4:{study.folder}", ["isa"])
    assert found.mean == pytest.approx(2) and found.low is found.high is None
    assert gains.gain_table([found], ["isa"]).endswith("| isa | +2.0 (1) |")
    assert gains.score_table([found], ["isa"]).endswith("| isa | 0.520 (1) |")
    gains.draw([found])


def test_seeds_of_a_score_and_of_a_difference(study):
    del study.results["none", 1]
    study.write()
    none, isa = gains.read_gains(f"Harbours:c4:{study.folder}", ["none", "isa"])
    assert (none.seeds, isa.seeds, isa.pairs) == (2, 3, 2)


def test_tables_have_a_row_for_a_variant_and_a_column_for_a_study(study):
    none, isa = gains.read_gains(f"Harbours:c4:{study.folder}", ["none", "isa"])
    elsewhere = isa._replace(place="c3", score=None, spread=None, mean=None)
    plus = isa._replace(variant="isa_plus", place="c3", score=0.6, spread=0.01, mean=4.0)
    found, variants = [none, isa, elsewhere, plus], ["isa_plus", "none", "isa"]
    assert gains.score_table(found, variants).splitlines() == [
        "| variant | Harbours, c4 | Harbours, c3 |",
        "|---|---|---|",
        "| isa_plus |  | 0.600 ± 0.010 (3) |",
        "| none | 0.500 ± 0.100 (3) |  |",
        "| isa | 0.530 ± 0.115 (3) |  |",
    ]
    # What all are compared with has no row, nor has what was not measured a number.
    assert [line.split(" |")[0] for line in gains.gain_table(found, variants).splitlines()[2:]] == [
        "| isa_plus",
        "| isa",
    ]


def test_several_variants_where_a_study_has_them(study):
    found = gains.read_gains(f"Harbours:c4:{study.folder}", ["isa_plus", "isa", "none"])
    assert [g.variant for g in found] == ["isa", "none"] and found[1].mean is None
    other = found[0]._replace(variant="isa_plus", place="c3")
    (axes,) = gains.draw([found[0], other]).axes
    told = [text.get_text() for text in axes.get_legend().get_texts()]
    assert told == ["Harbours, isa", "Harbours, isa_plus"]
    # Neither the other series with this variant, which it has not, nor what has no gain.
    (axes,) = gains.draw([found[0], other, found[0]._replace(series="Else"), found[1]]).axes
    told = [text.get_text() for text in axes.get_legend().get_texts()]
    assert told == ["Harbours, isa", "Harbours, isa_plus", "Else, isa"]
    assert gains.draw([found[1]]).axes[0].get_legend() is None
    (axes,) = gains.draw([found[0]]).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["Harbours"]


def test_a_variant_that_no_study_has(study):
    named = [f"Harbours:c4:{study.folder}"] * 2
    assert [g.variant for g in gains.read_all(named, ["isa"])] == ["isa", "isa"]
    with pytest.raises(ValueError, match="none of the studies has a variant 'isa_pluss'"):
        gains.read_all(named, ["isa", "isa_pluss"])


@pytest.mark.parametrize(
    ("named", "variant", "reason"),
    [
        ("Harbours:{}", "isa", "a study is SERIES:PLACE:FOLDER"),
        ("Harbours::{}", "isa", "a study is SERIES:PLACE:FOLDER"),
        ("Harbours:c4:{}", "isb", "unknown variant 'isb'; did you mean \"isa\""),
        ("Harbours:c4:{}/other.csv", "isa", "of no study"),
    ],
)
def test_what_is_no_gain_is_told(study, named, variant, reason):
    (study.folder / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=reason):
        gains.read_gains(named.format(study.folder), [variant])


def test_a_study_that_compares_with_nothing(tmp_path):
    alone = ablate.Study("context", synthetic.get_config(), tmp_path, [0], ["isa"])
    alone.write()
    with pytest.raises(ValueError, match="compares with nothing"):
        gains.read_gains(f"Harbours:c4:{alone.folder}", ["isa"])


def test_command_line(study, tmp_path):
    command = [sys.executable, "-m", "experiments.gains", f"--output={tmp_path}/a/gains.png"]
    named = [f"--study={series}:{p}:{study.folder}" for series in "AB" for p in ("c3", "c4")]
    run = {"cwd": ROOT, "capture_output": True, "text": True}
    run["env"] = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([*command, *named], **run)
    assert done.returncode == 0, done.stderr
    assert "| variant | A, c3 | A, c4 | B, c3 | B, c4 |" in done.stdout
    assert "| isa" + " | 0.530 ± 0.115 (3)" * 4 + " |" in done.stdout
    assert "| isa" + " | +3.0, -1.3 to +7.3 (3)" * 4 + " |" in done.stdout
    with Image.open(tmp_path / "a/gains.png") as picture:
        colours = {tuple(c[:3]) for _, c in picture.convert("RGB").getcolors(1 << 20)}
    assert {(31, 119, 180), (255, 127, 14)} <= colours  # of both series
    before = sorted(tmp_path.rglob("*"))
    told = subprocess.run([*command[:-1], *named], **run)
    assert told.returncode == 0 and told.stdout in done.stdout and "written" not in told.stdout
    assert sorted(tmp_path.rglob("*")) == before  # without --output nothing is drawn
    failed = subprocess.run([*command, "--study=A:c3:nowhere"], **run)
    assert failed.returncode == 1 and "nowhere" in failed.stderr
