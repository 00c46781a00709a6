from pathlib import Path

import pytest

from experiments import setup

CONFIGS = Path(setup.__file__).parent / "configs"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("camvid", f"{CONFIGS}/camvid.py"),
        ("camvid.py", f"{CONFIGS}/camvid.py"),
        ("experiments/configs/camvid.py", f"{CONFIGS}/camvid.py"),
        ("recipes:ade20k-resnet101-isa", f"{CONFIGS}/recipes.py:ade20k-resnet101-isa"),
        ("recipes:a:b", f"{CONFIGS}/recipes.py:a:b"),
        # Paths of one's own stay, also where there is nothing.
        ("other/camvid.py", "other/camvid.py"),
        ("configs/camvid.py:x", "configs/camvid.py:x"),
        ("/camvid", "/camvid"),
    ],
)
def test_configs_are_found_by_name(monkeypatch, tmp_path, given, found):
    monkeypatch.chdir(tmp_path)
    assert setup.find_config(given) == found


def test_a_file_goes_before_a_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "camvid.py").write_text("")
    assert setup.find_config("camvid.py:x") == "camvid.py:x"
    assert setup.find_config("camvid") == f"{CONFIGS}/camvid.py"


@pytest.mark.parametrize("given", ["camvd", "camvd.py", "__init__", "", "experiments/configs/x.py"])
def test_unknown_configs_are_told(monkeypatch, tmp_path, given):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="unknown config .*known: camvid, coco_mini"):
        setup.find_config(given)
