"""Makes a program of `tools.stablehlo.lower` a function of JAX again; needs JAX and NumPy alone."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export, tree_util
from jax._src.interpreters import mlir
from jax._src.lib import _jax
from jax._src.lib.mlir import ir
from jax._src.lib.mlir.dialects import hlo


class Program:
    """A program, to be called within `jax.jit`, `jax.lax.scan` and the like.

    Integers and floats of 64 bits, such as the counters of Keras, need
    `jax.config.update("jax_enable_x64", True)`.

    Args:
        path: of its two files, without an ending.

    Attributes:
        inputs, outputs: lists of dicts of "name", "shape" and "dtype".

    Example:

    >>> twice = Program("twice")
    >>> (doubled,) = jax.jit(twice)(np.ones((2, 3), np.float32))
    """

    def __init__(self, path):
        about = json.loads(Path(f"{path}.json").read_text())
        self.inputs, self.outputs = about["inputs"], about["outputs"]
        self._unread = [kind_of(kind) for kind in about["unread"]]
        takes = [kind_of(kind) for kind in (*about["inputs"], *about["unread"])]
        gives = [kind_of(kind) for kind in (*about["outputs"], *about["unused"])]
        self._exported = _exported(
            _without_copies(Path(f"{path}.stablehlo").read_bytes()), takes, gives
        )

    def __call__(self, *arrays):
        unread = [jnp.zeros(kind.shape, kind.dtype) for kind in self._unread]
        return self._exported.call(*arrays, *unread)[: len(self.outputs)]


def kind_of(about):
    """What a dict of "shape" and "dtype" says, as JAX has it."""
    return jax.core.ShapedArray(tuple(about["shape"]), jnp.dtype(about["dtype"]))


def _without_copies(artifact):
    """A portable artifact without the copies that TensorFlow makes of outputs.

    They are no operations of StableHLO, and newer versions of XLA refuse them.
    """
    with mlir.make_ir_context():
        module = _jax.mlir.deserialize_portable_artifact(artifact)
        copies = []

        def find(operation):
            if operation.name == "mhlo.copy":
                copies.append(operation)
            return ir.WalkResult.ADVANCE

        module.operation.walk(find)
        for copy in copies:
            copy.results[0].replace_all_uses_with(copy.operands[0])
            copy.erase()
        version = hlo.get_version_from_compatibility_requirement(
            hlo.StablehloCompatibilityRequirement.WEEK_4
        )
        return _jax.mlir.serialize_portable_artifact(module, version, False)


def _exported(artifact, takes, gives):
    # JAX makes such an object of a function of its own, or of a file of its own form; here it is
    # made of its parts, some of which come and go with JAX's versions.
    none = [None] * max(len(takes), len(gives))
    parts = {
        "fun_name": "program",
        "in_tree": tree_util.tree_structure((tuple(takes), {})),
        "in_avals": tuple(takes),
        "out_tree": tree_util.tree_structure(list(gives)),
        "out_avals": tuple(gives),
        "in_shardings_hlo": tuple(none[: len(takes)]),
        "out_shardings_hlo": tuple(none[: len(gives)]),
        "_in_named_shardings": tuple(none[: len(takes)]),
        "_out_named_shardings": tuple(none[: len(gives)]),
        "_has_named_shardings": False,
        "nr_devices": 1,
        "platforms": (jax.default_backend().replace("gpu", "cuda"),),
        "ordered_effects": (),
        "unordered_effects": (),
        "disabled_safety_checks": (),
        "mlir_module_serialized": artifact,
        "calling_convention_version": export.maximum_supported_calling_convention_version,
        "module_kept_var_idx": tuple(range(len(takes))),
        "uses_global_constants": False,
        "_get_vjp": None,
    }
    known = {field.name for field in dataclasses.fields(export.Exported)}
    return export.Exported(**{name: part for name, part in parts.items() if name in known})


def step_function(program):
    """A function of (state, *batch) that gives (next state, loss), of a training step's program.

    Args:
        program: `Program` of `tools.stablehlo.lower.TrainingStep`.

    Returns:
        Function whose state is a list of arrays, in the order of the program's inputs.
    """
    count = len(program.outputs) - 1

    def step(state, *batch):
        *state, loss = program(*state, *batch)
        return state, loss

    step.names = [about["name"] for about in program.outputs[:count]]
    return step
