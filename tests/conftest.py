"""What every test shares: two logical devices, seeds, the modules beside this one."""

import collections
import gc
import os
import sys
import zlib
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers that each count on all processors wait for one another.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

# Tracing makes objects by the million, of which few are garbage before the end of a file.
gc.set_threshold(100_000, 20, 20)

import keras  # noqa: E402
import pytest  # noqa: E402
import tensorflow as tf  # noqa: E402
from tensorflow.python.framework import ops  # noqa: E402

from isa_tf.names import Registry  # noqa: E402

# `import reference` from any test file.
sys.path.insert(0, str(Path(__file__).parent))

# Two logical devices on one processor, for MirroredStrategy; must precede TensorFlow's first op.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    """Marks slow what `some` leaves out of a test's cases.

    `some(6)` leaves the first and five more, drawn by their names, so that they are the same in
    every process and of all parameters; `some("isa", "ppm")` leaves those two.
    """
    cases = collections.defaultdict(list)
    for item in items:
        if item.get_closest_marker("some"):
            cases[item.nodeid.partition("[")[0]].append(item)
    for name, group in cases.items():
        wanted = group[0].get_closest_marker("some").args
        if isinstance(wanted[0], str):
            left = [item for item in group if item.callspec.id in wanted]
            if not left and len(group) > 1:
                raise pytest.UsageError(f"{name} has none of the cases {', '.join(wanted)}")
        else:
            drawn = sorted(group[1:], key=lambda item: zlib.crc32(item.callspec.id.encode()))
            left = [group[0], *drawn[: wanted[0] - 1]]
        for item in group:
            if item not in left:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def _registries(monkeypatch):
    """What a test or an example registers is known to it alone, whatever runs after it."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "isa_tf":
            for value in vars(module).values():
                if isinstance(value, Registry):
                    monkeypatch.setattr(value, "_entries", dict(value._entries))


@pytest.fixture(scope="module", autouse=True)
def _garbage():
    """Let go of the graphs of a file.

    TensorFlow keeps the gradient of every traced `tf.custom_gradient`, and with it the graph, in a
    registry for good; without this a worker of the whole suite grows to 7 GB, and the collector
    goes through all of it again and again.
    """
    yield
    registry = ops.gradient_registry._registry
    for name in [name for name in registry if name.startswith("CustomGradient-")]:
        del registry[name]
    gc.collect()
    gc.freeze()


@pytest.fixture
def run(capsys):
    """Runs a tool's `main` on flags, in this process; gives (exit status, what it printed)."""

    def run(tool, *arguments):
        tool.FLAGS.unparse_flags()
        for name in tool.FLAGS:
            tool.FLAGS[name].unparse()
        status = tool.main(tool.FLAGS(["tool", *arguments]))
        return status, capsys.readouterr().out

    return run


@pytest.fixture(scope="session")
def mirrored():
    """A MirroredStrategy over two logical CPUs."""
    return tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
