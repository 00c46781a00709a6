"""Batteries: what holds for every layer, backbone, model, data set and format, for tests.

A context module of one's own is tested by one line, and so is anything else that joins by name:

>>> from isa_tf.testing import ContextBattery
>>> ContextBattery("isa", {"partition": 4}).run("shapes", "gradients")

`run()` without names runs every check. With pytest each can be a test of its own:

    @pytest.mark.parametrize("check", ContextBattery.list_checks())
    def test_my_module(check):
        ContextBattery("my_module").run(check)

What fails is an `AssertionError` that says of what and why. This package tests itself by the same
batteries. Nothing in the library imports them, and `import isa_tf` does not either.
"""

from isa_tf.testing.backbones import BackboneBattery
from isa_tf.testing.battery import (
    Battery,
    outputs_and_gradients,
    random_inputs,
    randomize,
    relative_error,
)
from isa_tf.testing.datasets import DatasetBattery
from isa_tf.testing.formats import FormatBattery
from isa_tf.testing.layers import ContextBattery, LayerBattery
from isa_tf.testing.models import (
    ModelBattery,
    blotches,
    decisions_of,
    small_segmenter,
    trained_segmenter,
)

__all__ = [
    "BackboneBattery",
    "Battery",
    "ContextBattery",
    "DatasetBattery",
    "FormatBattery",
    "LayerBattery",
    "ModelBattery",
    "blotches",
    "decisions_of",
    "outputs_and_gradients",
    "random_inputs",
    "randomize",
    "relative_error",
    "small_segmenter",
    "trained_segmenter",
]
