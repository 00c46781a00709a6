"""Every command of README, CONTRIBUTING, docs/: its flags exist, and what runs it or why not."""

import ast
import configparser
import copy
import importlib
import re

import handbook
import pytest
from handbook import ROOT
from ml_collections import ConfigDict

from experiments import setup
from experiments.configs import default
from tools import command as isa_tf_command

PAGES = [*handbook.PAGES, ROOT / "CONTRIBUTING.md"]
COMMANDS = [made for page in PAGES for made in handbook.commands(page)]
MODULES = isa_tf_command.COMMANDS
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")

# What is not run, as it is written, by any test; the first that fits a command tells why.
NOT_RUN = [
    (r"isa-tf NAME", "it stands for any of them"),
    (r"^pip |^bash |^make (test|test-slow|demo|lint|types|docs|docs-test|walk)\b", "it runs tests"),
    (r"^make (web|parity|test-\w+)\b", "it fetches packages, and runs tests of its own"),
    (r"^make (golden|record|notebooks|release)\b", "it makes what tests hold against the code"),
    (r"^ray ", "it needs several machines"),
    (r"^docker ", "no docker at hand; tests/formats/test_tf_serving.py runs the requests"),
    (r"^curl ", "tests/serving/test_app.py sends the same requests"),
    (r"Flink|/shared/|--strategy=tpu|=\.\.\.", "it needs a cluster, GPUs or TPUs"),
    (r"--camera", "it needs a camera; tests/tools/test_predict_videos.py has one of frames"),
    (r"(recipes|mask_rcnn|camvid|context|frozen)(\.py)?:|camvid\.py", "it needs published data"),
    (
        r"tools\.(benchmark|beside_torch|bench_\w+|bench\.\w+|load)\b",
        "its test measures small sizes",
    ),
    (r"isa-tf benchmark\b", "its test measures small sizes"),
    (r"experiments\.torture|tools\.draw_docs", "it takes minutes; its parts are tested"),
    (r"experiments\.ablate", "it takes hours; tests/experiments/test_ablate.py trains two steps"),
]
# What runs each program on small data: a test, or the pages that are walked.
WALKED = ("docs/quickstart.md", "docs/own_data.md", "docs/fine_tuning.md", "docs/deploy.md")
RUN = {
    "tools.check_dataset": "tests/tools/test_check_dataset.py",
    "tools.prepare_dataset": "tests/tools/test_prepare_dataset.py",
    "tools.convert_labels": "tests/tools/test_convert_labels.py",
    "tools.convert": "tests/tools/test_convert_tool.py",
    "tools.export": "tests/tools/test_export_tool.py",
    "tools.predict": "tests/tools/test_predict_tool.py",
    "tools.compare": "tests/tools/test_compare.py",
    "experiments.gains": "tests/experiments/test_gains.py",
    "tools.visualize_affinity": "tests/tools/test_visualize_affinity.py",
    "tools.draw_rooms": "tests/tools/test_draw_rooms.py",
    "tools.serve": "tests/tools/test_serve.py",
    "tools.demo_web": "tests/tools/test_demo_web.py",
    "tools.command": "tests/tools/test_command.py",
    "experiments.train": "tests/experiments/test_train.py",
    "experiments.evaluate": "tests/experiments/test_evaluate.py",
    "experiments.elsewhere.whole": "tests/experiments/test_whole_elsewhere.py",
    "experiments.elsewhere.study": "tests/experiments/test_study_elsewhere.py",
    "experiments.features": "tests/experiments/test_features.py",
    "experiments.configs.recipes": "tests/experiments/test_recipes.py",
    "experiments.configs.mask_rcnn": "tests/experiments/test_mask_rcnn_recipes.py",
}
# Values that stand for one of the reader's own.
PLACEHOLDER = re.compile(r"\.\.\.|NAME")


def module_of(made):
    """The module that a command runs; `None` where it is no program of the repository."""
    first, *rest = made.program.split()
    if first == "python":
        return rest[-1]
    if first == "isa-tf" and rest and not rest[0].startswith("-"):
        return MODULES.get(rest[0], rest[0])
    return "tools.command" if first == "isa-tf" else None


def test_there_are_commands():
    # So that nothing below is about no command.
    assert len(COMMANDS) > 150
    assert {made.page for made in COMMANDS} >= {"README.md", *WALKED}


@pytest.mark.parametrize("made", COMMANDS, ids=lambda made: f"{made.page}:{made}")
def test_command_is_one_that_there_is(made):
    first, *rest = made.program.split()
    if first == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert rest[0] in targets
    elif first == "pip":
        for extras in re.findall(r"\[([a-z_,]+)\]", " ".join(made.arguments)):
            assert {*extras.split(",")} <= {*SETUP["options.extras_require"]}
    elif (module := module_of(made)) and "NAME" not in module:
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
        check_flags(module, made.arguments)


def test_what_runs_each_is_known():
    for made in COMMANDS:
        walked = made.page in WALKED and made.program.startswith("isa-tf")
        if walked or any(re.search(pattern, str(made)) for pattern, _ in NOT_RUN):
            continue
        module = module_of(made)
        assert module in RUN, f"{made.page}: what runs, or why does nothing run: {made}"
        assert module.split(".")[-1] in (ROOT / RUN[module]).read_text()


def test_every_reason_is_of_a_command():
    for pattern, reason in NOT_RUN:
        assert any(re.search(pattern, str(made)) for made in COMMANDS), (pattern, reason)


def check_flags(module, arguments):
    """Raises where a program would refuse its arguments for a flag or a key that is not there."""
    for word in arguments:
        assert not word.endswith(","), f"{word} goes on in another word: the next line is indented"
    given = [word for word in arguments if word.startswith("--") and word != "--help"]
    config = config_of(given)
    for word in given:
        flag, _, value = word.removeprefix("--").partition("=")
        if flag.startswith("config."):
            assert has_key(config, flag.removeprefix("config.")), f"{word}: there is no such key"
    own = [word for word in given if not word.startswith("--config.")]
    program = importlib.import_module(module)
    if hasattr(program, "FLAGS"):
        values = copy.deepcopy(program.FLAGS)
        values(["program", *own], known_only=False)  # raises for what is no flag or no value
        return
    for word in own:
        flag = word.removeprefix("--").partition("=")[0]
        assert flag.removeprefix("no") in defined(module) or flag in defined(module), word


def config_of(given):
    """The config that --config names, or the default one."""
    named = [word.partition("=")[2] for word in given if word.startswith("--config=")]
    if not named or PLACEHOLDER.search(named[0]) or not named[0]:
        return default.get_config()
    if named[0].removesuffix(".py") in ("mine", "other"):  # of the page that tells to write it
        return default.get_config()
    path, _, rest = setup.find_config(named[0]).partition(":")
    name = path.removesuffix(".py").rpartition("/")[2]
    get_config = importlib.import_module(f"experiments.configs.{name}").get_config
    return get_config(rest) if rest else get_config()


def has_key(config, key):
    """Whether a config has a key, or takes any key there."""
    first, _, rest = key.partition(".")
    if first not in config:
        return not config.is_locked
    inside = config[first]
    return not rest or (isinstance(inside, ConfigDict) and has_key(inside, rest))


def defined(module):
    """The flags that a program without flags of its own module defines: by its help or its text."""
    names = {value: key for key, value in MODULES.items()}
    if module in names:
        text = (isa_tf_command.HELP / f"{names[module]}.txt").read_text()
        return set(re.findall(r"^  --(?:\[no\])?([a-z_]+):", text, re.MULTILINE))
    if module == "tools.command":
        return {"help", "version", "record"}
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    called = {getattr(node.func, "attr", "") for node in calls}
    found = {
        node.args[0].value.removeprefix("--")
        for node in calls
        if re.match("DEFINE_|add_argument$", getattr(node.func, "attr", ""))
    }
    return found | ({"config"} if "define_config_flag" in called else set())


@pytest.mark.parametrize(
    ("module", "argument", "told"),
    [
        ("tools.export", "--modle=x", "Unknown command line flag 'modle'"),
        ("tools.export", "--minimal_filtering=few", "flag --minimal_filtering=few"),
        ("experiments.train", "--wrkdir=x", "--wrkdir=x"),
        ("experiments.train", "--config.train.stps=3", "there is no such key"),
        ("experiments.train", "--config=synthetik", 'mean "synthetic"'),
        ("experiments.train", "--config=recipes:ade20k-resnet101-ias", "ade20k-resnet101-isa"),
        ("tools.draw_docs", "--outptu=x", "--outptu=x"),
        ("tools.benchmark", "--modules=isa,", "goes on in another word"),
    ],
)
def test_stale_flags_are_told(module, argument, told):
    with pytest.raises(Exception, match=re.escape(told)):
        check_flags(module, [argument])
