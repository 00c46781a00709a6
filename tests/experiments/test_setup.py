from pathlib import Path

import pytest
from ml_collections.config_flags import config_flags

from experiments import setup
from experiments.configs import synthetic
from experiments.tasks import segmentation
from isa_tf import data

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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("null", "line 1: NameError: name 'null' is not defined"),
        ("def get_config(:", "SyntaxError"),
        ("x = 1", "no attribute 'get_config'"),
        ("import nowhere_at_all", "line 1: ModuleNotFoundError"),
        ("def get_config():\n    raise TypeError('of its own')", "line 2: TypeError: of its own"),
    ],
)
def test_what_is_no_config_is_told_in_a_line(tmp_path, text, said):
    path = tmp_path / "mine.py"
    path.write_text(text)
    # By the name the module is called, and one of the name before would go on.
    parser = setup._ConfigParser(config_flags.ConfigFileFlagParser(tmp_path.name))
    with pytest.raises(ValueError) as refusal:
        parser.parse(str(path))
    told = str(refusal.value)
    assert told.startswith(f"{path} is no config: ") and said in told and "\n" not in told
    with pytest.raises(ValueError, match="^unknown recipe 'nix'; known: "):
        parser.parse("recipes:nix")


@pytest.mark.parametrize(
    ("flag", "said", "told"),
    [
        ("--config.task=3", "'task'", "--config.task: the config has no key 'task'"),
        (
            "--config.trian.steps=3",
            "'trian'",
            "--config.trian.steps: the config has no key 'trian'",
        ),
        (
            "--config.model.context_options.partition=3",
            "'partition'",
            "--config.model.context_options.partition: what is not there yet is given as "
            "--config.model.context_options='{\"partition\": ...}'",
        ),
        ("--workdir=task", "'task'", "'task'"),
    ],
)
def test_a_key_that_is_not_there_is_told_with_its_flag(flag, said, told):
    assert setup._no_key(said, ["train", "--config=synthetic", flag]) == told


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train_split", "trian", "no split 'trian'"),
        ("val_split", "vla", "no split 'vla'"),
        ("val_split", "val", "config.data.val_split='val' has no examples"),
        ("val_batch_size", 0, "config.data.val_batch_size must be at least 1, got 0"),
    ],
)
def test_what_would_end_the_first_validation_is_told_before_training(key, value, message):
    config = synthetic.get_config()
    sizes = {"train": 2, "val": 0 if value == "val" else 2}
    config.data[key] = value
    with pytest.raises(ValueError, match=message):
        setup.check_splits(config, data.create("synthetic", num_examples=sizes))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("steps must be at least 1"), "steps must be at least 1"),
        (
            TypeError("f() got an unexpected keyword argument 'x'"),
            "unexpected keyword argument 'x'",
        ),
        (MemoryError(), "there is not enough memory"),
        (ZeroDivisionError("a defect"), None),
    ],
)
def test_errors_that_are_expected_are_lines(error, line):
    told = setup.line_of(error)
    assert told is None if line is None else line in told


def test_a_split_without_a_label_has_a_headline():
    assert segmentation.headline({"miou": None}) == "mIoU absent"
