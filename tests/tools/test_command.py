import ast
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import setuptools
from PIL import Image

import isa_tf
from isa_tf.models import Segmenter
from tools import command

ROOT = Path(__file__).resolve().parents[2]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
SCRIPT = SETUP["options.entry_points"]["console_scripts"].strip()
# What pip writes into the console script.
START = "import sys; from isa_tf_command.tools.command import main; sys.exit(main())"
IN_CHECKOUT = [sys.executable, "-m", "tools.command"]


def process(argv, cwd, path, **environment):
    """(exit status, standard output, standard error) of a process that finds packages in `path`."""
    variables = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(
        list(map(str, argv)),
        cwd=cwd,
        env={**variables, "PYTHONPATH": str(path), **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout, done.stderr


# === What is installed ===


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder of what a wheel installs: its packages, built by setuptools from setup.cfg."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("isa_tf", "experiments", "tools", "tests"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.keras")
        )
    build = [sys.executable, "-c", "from setuptools import setup; setup()", "build_py"]
    status, _, said = process([*build, f"--build-lib={built}"], source, "")
    assert status == 0, said
    return built


def files_of(folder):
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if "__pycache__" not in name}


def test_no_package_of_a_name_that_others_have_is_installed(site):
    assert {path.name for path in site.iterdir()} == {"isa_tf", "isa_tf_command"}
    assert {p.name for p in (site / "isa_tf_command").iterdir()} == {"tools", "experiments"}


def test_all_that_is_of_the_package_is_installed(site):
    # Under either name, what lies in the checkout, but for trained models.
    assert files_of(site / "isa_tf") == files_of(ROOT / "isa_tf")
    assert files_of(site / "isa_tf_command" / "tools") == files_of(ROOT / "tools")
    kept = {name for name in files_of(ROOT / "experiments") if not name.startswith("trained")}
    assert files_of(site / "isa_tf_command" / "experiments") == kept


def test_packages_in_setup_cfg_are_those_that_there_are():
    told = set(SETUP["options"]["packages"].split())
    found = set(setuptools.find_packages(str(ROOT), include=["isa_tf*"]))
    for room in ("tools", "experiments"):
        inside = setuptools.find_packages(str(ROOT), include=[f"{room}*"])
        found |= {f"isa_tf_command.{name}" for name in inside}
    assert told == found


def test_the_script_starts_main():
    name, _, value = SCRIPT.partition(" = ")
    entry = EntryPoint(name, value, "console_scripts")
    assert (entry.name, entry.module, entry.attr) == (
        "isa-tf",
        "isa_tf_command.tools.command",
        "main",
    )
    assert f"from {entry.module} import {entry.attr}" in START


@pytest.fixture
def elsewhere(tmp_path, site):
    """Runs the installed command in a folder that has nothing to do with the checkout."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def run(*arguments, **environment):
        # -P: a script finds nothing in the folder that it is started in.
        return process([sys.executable, "-P", "-c", START, *arguments], folder, site, **environment)

    run.folder = folder
    return run


@pytest.mark.slow
def test_predicts_outside_of_the_checkout(elsewhere, site):
    model = Segmenter("tiny", None, num_classes=3, head_filters=8, head_kernel_size=1)
    model.save(elsewhere.folder / "model.keras")
    image = np.random.default_rng(0).integers(0, 256, (31, 40, 3), np.uint8)
    Image.fromarray(image).save(elsewhere.folder / "photo.png")
    (elsewhere.folder / "mine.py").write_text(
        "import isa_tf, tools\nprint(isa_tf.__file__, tools.__file__)\n"
    )
    status, said, errors = elsewhere(
        *("predict", "--model=model.keras", "--images=photo.png", "--output=out", "--plugins=mine")
    )
    assert status == 0, errors
    # The installed code, and a plugin beside one.
    packages = site / "isa_tf" / "__init__.py", site / "isa_tf_command/tools/__init__.py"
    assert said.splitlines()[0] == " ".join(map(str, packages))
    assert "1 of 1 images segmented into out" in said
    label = np.asarray(Image.open(elsewhere.folder / "out" / "photo_label.png"))
    expected = isa_tf.load_predictor(elsewhere.folder / "model.keras")(image)[0]
    np.testing.assert_array_equal(label, expected)
    assert errors == "" or command._NVIDIA.exists()


@pytest.mark.slow
def test_trains_outside_of_the_checkout_on_a_config_of_ones_own(elsewhere):
    (elsewhere.folder / "mine.py").write_text(
        "from experiments.configs import synthetic\n\n"
        "def get_config():\n"
        "    config = synthetic.get_config()\n"
        "    config.data.options.num_examples = {'train': 4, 'val': 2}\n"
        "    config.data.batch_size = 2\n"
        "    config.train.pictures = 0\n"
        "    return config\n"
    )
    status, said, errors = elsewhere(
        *("train", "--config=mine.py", "--workdir=run", "--config.train.steps=2")
    )
    assert status == 0, errors
    assert (elsewhere.folder / "run" / "best.keras").is_file()
    kept = json.loads((elsewhere.folder / "run" / "config.json").read_text())
    assert kept["data"]["name"] == "synthetic" and kept["train"]["steps"] == 2
    assert "to evaluate: isa-tf evaluate --config=mine.py --config.train.steps=2" in said
    export = re.search("to export:   isa-tf (export --model=run/best.keras .*)", said)[1]
    status, _, errors = elsewhere(*export.split())
    assert status == 0, errors


def test_configs_are_found_by_name_outside_of_the_checkout(elsewhere):
    # What is wrong with the key is told by the config, which has been read then.
    status, _, errors = elsewhere(
        *("train", "--config=recipes:ade20k-resnet101-isa", "--workdir=run"),
        "--config.train.step=3",
    )
    assert status == 1
    assert 'Did you mean "steps"' in errors and "Traceback" not in errors


# === The command ===


def test_it_runs_what_python_m_runs(tmp_path):
    found = []
    for start in ([*IN_CHECKOUT, "check"], [sys.executable, "-m", command.COMMANDS["check"]]):
        found.append(process([*start, f"--data_dir={tmp_path / 'nothing'}"], ROOT, ROOT)[:2])
    assert found[0] == found[1]
    assert found[0][0] == 1 and found[0][1].startswith("FAULT ")


@pytest.mark.parametrize("module", command.COMMANDS.values())
def test_each_is_a_program_with_a_docstring(module):
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    assert ast.get_docstring(tree).splitlines()[0].endswith((".", "..."))
    assert any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
    last = ast.unparse(tree.body[-1])
    assert last.startswith("if __name__ == '__main__':") and last.endswith("run(main)")


def test_help_waits_for_no_framework():
    code = (
        "import sys; from tools.command import COMMANDS, main\n"
        "assert main(['--help']) == 0 and main(['--version']) == 0\n"
        "for name in COMMANDS:\n"
        "    assert main([name, '--help']) == 0 == main([name, '--model=x', '-h'])\n"
        "assert main(['exprt']) == 2\n"
        "print(sorted({'tensorflow', 'keras', 'numpy', 'isa_tf', 'absl'} & set(sys.modules)))\n"
    )
    status, said, errors = process([sys.executable, "-c", code], ROOT, ROOT)
    assert status == 0, errors
    assert said.splitlines()[-1] == "[]"
    assert said.count("usage: isa-tf ") == 1 + 2 * len(command.COMMANDS)
    assert errors.startswith("error: unknown command 'exprt'; did you mean \"export\"?")


def test_recorded_help_is_what_the_programs_say(tmp_path):
    status, _, errors = process([*IN_CHECKOUT, "--record", tmp_path], ROOT, ROOT)
    assert status == 0, errors
    assert files_of(command.HELP) == files_of(tmp_path) == {f"{n}.txt" for n in command.COMMANDS}
    for path in sorted(tmp_path.iterdir()):
        assert (command.HELP / path.name).read_text() == path.read_text(), (
            f"{path.name} is of other flags: python -m tools.command --record"
        )


@pytest.mark.parametrize("name", command.COMMANDS)
def test_help_tells_of_the_command_and_of_no_place(name):
    text = (command.HELP / f"{name}.txt").read_text()
    assert text.startswith(f"usage: isa-tf {name} [--FLAG=VALUE ...]\n")
    assert f"\nisa-tf {name}:\n" in text  # above its flags
    assert "python -m" not in text and str(ROOT) not in text
    assert not re.search(r"\S {4,}--", text)  # lines that a backslash has run together
    if name in ("train", "evaluate", "ablate"):
        assert "--config: " in text
    if name in ("export", "predict"):
        assert "--plugins: " in text


def test_overview(capsys):
    assert command.main(["--help"]) == 0
    told = capsys.readouterr().out
    assert command.main([]) == 2  # nothing was asked for
    assert capsys.readouterr().out == told
    for name in command.COMMANDS:
        assert f"\n  {name} " in told


def test_version(capsys):
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"isa-tf {isa_tf.__version__}\n"


@pytest.mark.parametrize("name", ["trian", "--model=x", "tools.export", ""])
def test_unknown_commands(capsys, name):
    assert command.main([name]) == 2
    said = capsys.readouterr()
    assert said.out == "" and f"unknown command {name!r}" in said.err
    assert ('did you mean "train"?' in said.err) == (name == "trian")


@pytest.mark.slow
def test_wrong_flags_are_answered_with_the_command(tmp_path):
    status, said, errors = process([*IN_CHECKOUT, "convert", "--chekpoint=x"], ROOT, ROOT)
    assert status == 1 and "Did you mean: checkpoint" in errors
    status, said, errors = process([*IN_CHECKOUT, "convert"], ROOT, ROOT)
    assert status == 1 and "Give --checkpoint" in errors
    assert "isa-tf convert --checkpoint=FILE" in errors and "python -m" not in errors


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("python -m tools.export --model=m", "isa-tf export --model=m"),
        ("python -m tools.convert_labels x", "isa-tf convert_labels x"),
        ("python -m tools.convert x", "isa-tf convert x"),
        (
            "python -m experiments.train --config=experiments/configs/recipes.py:ade20k-isa",
            "isa-tf train --config=recipes:ade20k-isa",
        ),
        ("python -m tools.benchmark model", "isa-tf benchmark model"),
        ("python -m tools.beside_torch model", "python -m tools.beside_torch model"),
        ("--config=my/configs/a.py", "--config=my/configs/a.py"),
    ],
)
def test_commands_are_spelled_as_the_process_was_started(monkeypatch, text, spelled):
    assert command.spell(text) == text
    monkeypatch.setattr(sys, "argv", ["isa-tf train", "--config=synthetic"])
    assert command.spell(text) == spelled


# === What TensorFlow says as it starts ===

SAID = (
    b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
    b"I0000 00:00:1.2   7 port.cc:153] oneDNN custom operations are on.\n"
    b"E0000 00:00:1.2   7 cuda_platform.cc:52] failed call to cuInit: UNKNOWN ERROR (303)\n"
)
OTHERS = b"E0000 00:00:1.2   7 main.cc:1] disk full\nUserWarning: a line of Python\nno end"


@pytest.mark.parametrize(
    ("level", "has_gpu", "expected"),
    [
        (None, False, OTHERS),
        ("3", False, OTHERS),
        (None, True, SAID.splitlines(True)[2] + OTHERS),
        ("0", False, SAID + OTHERS),
        ("1", True, SAID + OTHERS),
    ],
)
def test_chatter_is_left_out_and_nothing_else(
    monkeypatch, tmp_path, capfdbinary, level, has_gpu, expected
):
    monkeypatch.setattr(command, "_NVIDIA", tmp_path / ("" if has_gpu else "nothing"))
    if level is None:
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")  # so that it is put back
        monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    else:
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level)
    with command.quiet_start():
        os.write(2, SAID + OTHERS)
    os.write(2, b"\nafter")
    assert capfdbinary.readouterr().err == expected + b"\nafter"


def test_an_error_while_it_starts_tells_all(monkeypatch, capfdbinary):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    with pytest.raises(ImportError), command.quiet_start():
        os.write(2, SAID)
        raise ImportError
    assert capfdbinary.readouterr().err == SAID
