"""Plug-ins of installed packages: found by entry points, once, and told apart where broken."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from absl import logging
from PIL import Image

import isa_tf
from isa_tf import layers, plugins
from isa_tf.names import Registry
from isa_tf.testing import ContextBattery, DatasetBattery

PAGE = Path(__file__).resolve().parents[1] / "docs" / "plugins.md"

SOUND = """
from isa_tf.layers import PointwiseConvolutions, register_context

register_context("from_outside", PointwiseConvolutions)
with open(__file__ + ".log", "a") as log:
    log.write("imported ")
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that installs packages of one module each; plug-ins are as yet not loaded."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_begun", False)
    monkeypatch.setattr(plugins, "_faults", None)

    def install(name, source, entry_points=None):
        (tmp_path / f"{name}.py").write_text(source)
        told = tmp_path / f"{name}-1.2.dist-info"
        told.mkdir()
        (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        lines = entry_points or f"all = {name}"
        (told / "entry_points.txt").write_text(f"[isa_tf.plugins]\n{lines}\n")
        return tmp_path / f"{name}.py.log"

    return install


def test_there_are_none():
    assert plugins.load() == ()


def test_a_name_that_is_missed_is_looked_for_once(install):
    log = install("plugin_missed", SOUND)
    assert layers.create_context("isa", partition=4).order  # a name that is known asks for none
    assert not log.exists()
    assert type(layers.create_context("from_outside")) is layers.PointwiseConvolutions
    with pytest.raises(ValueError, match="unknown context module 'from_outsid'"):
        layers.create_context("from_outsid")
    assert log.read_text() == "imported "


ASKS = {
    "asked": lambda: "from_outside" in layers.context._CONTEXTS,
    "listed": lambda: "from_outside" in layers.list_contexts(),
    # What stands on the left is taken first: those of the package alone.
    "counted": lambda: len(layers.context._CONTEXTS._entries) + 1 == len(layers.context._CONTEXTS),
}


@pytest.mark.parametrize("how", ASKS)
def test_names_that_are_listed_are_looked_for(install, how):
    install(f"plugin_{how}", SOUND)
    assert ASKS[how]()


def test_one_that_is_broken_is_named_and_keeps_nobody_away(install, monkeypatch):
    install("plugin_broken", "import no_such_module_of_any_package\n")
    install("plugin_sound", SOUND)
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: warnings.append(text % args))
    assert "from_outside" in layers.list_contexts()
    told = (
        "the plug-in 'all' of plugin_broken 1.2 cannot be loaded (ModuleNotFoundError: No module "
        "named 'no_such_module_of_any_package')"
    )
    assert warnings == [f"isa_tf.plugins: {told}"]
    assert plugins.load() == (told,)
    assert layers.create_context("from_outside") is not None
    with pytest.raises(ValueError) as raised:
        Registry("shape")["square"]
    assert str(raised.value) == f"unknown shape 'square'; there is none; {told}"


def test_a_name_that_is_taken_is_told(install):
    install("plugin_takes", "import isa_tf\nisa_tf.backbones.register('tiny', dict)\n")
    (fault,) = plugins.load()
    assert "plugin_takes 1.2" in fault and "there is a backbone 'tiny' already" in fault


def test_a_plugin_may_ask_for_names(install):
    source = "import isa_tf\nNAMES = isa_tf.data.list_names()\n" + SOUND
    install("plugin_asks", source, "one = plugin_asks\ntwo = plugin_asks:NAMES")
    assert plugins.load() == ()
    assert "from_outside" in layers.list_contexts()


def test_threads_that_ask_meanwhile_wait(install):
    install("plugin_slow", f"import time\ntime.sleep(0.3)\n{SOUND}")
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(layers.create_context, ["from_outside"] * 4))
    assert {type(each) for each in made} == {layers.PointwiseConvolutions}


def test_the_example_of_the_page(install, tmp_path):
    example, *_ = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    install("coast_models", example)
    ContextBattery("mean_of_map", {"weight": 0.5}).run("config", "size", "residual", "segmenter")
    folder = tmp_path / "coast"
    for kind in ("images", "labels"):
        (folder / "train" / kind).mkdir(parents=True)
        for i in range(2):
            shape = (40, 56, 3) if kind == "images" else (40, 56)
            picture = np.random.default_rng(i).integers(0, 3, shape, "uint8")
            Image.fromarray(picture).save(folder / "train" / kind / f"{i}.png")
    DatasetBattery(isa_tf.data.create("coast", folder)).run("names", "labels")
