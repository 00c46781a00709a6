"""What is private in Keras and TensorFlow and relied on: a release that changes it is told here."""

import ast
import inspect
from pathlib import Path

import keras
import pytest
import tensorflow as tf

import isa_tf
from isa_tf import compat

PACKAGE = Path(isa_tf.__file__).parent


def functional():
    entry = keras.Input((1,))
    return keras.Model(entry, keras.layers.Dense(1)(entry))


# What classes of this package override of their Keras base's, or call of it: the arguments that it
# has there, but `self`; `None` for what is no method. An instance is asked, as some are attributes.
RELIED_ON = {
    # The functions of isa_tf.compat.
    keras.layers.Layer: {
        "_flatten_layers": ("include_self", "recursive"),
        "_trainable_variables": None,
    },
    # Metrics, optimizers and losses: models.mask_rcnn, models.segmenter, training.replicas. One
    # output outside of training, two in it: models.segmenter.
    functional: {
        "_compile_loss": None,
        "_compute_loss": ("x", "y", "y_pred", "sample_weight", "training"),
        "_loss_tracker": None,
        "_run_through_graph": ("inputs", "operation_fn", "call_fn"),
        "_standardize_inputs": ("inputs",),
        "_maybe_symbolic_build": ("iterator", "data_batch"),
        "_symbolic_build": ("iterator", "data_batch"),
    },
    # Gradients are summed over replicas before they are clipped: training.optimizers.
    lambda: keras.optimizers.SGD(gradient_accumulation_steps=2, use_ema=True): {
        "_accumulated_gradients": None,
        "_all_reduce_sum_gradients": ("grads_and_vars",),
        "_apply_weight_decay": ("variables",),
        "_backend_apply_gradients": ("grads", "trainable_variables"),
        "_backend_update_step": ("grads", "trainable_variables", "learning_rate"),
        "_clip_gradients": ("grads",),
        "_filter_empty_gradients": ("grads", "vars"),
        "_get_current_learning_rate": (),
        "_get_variable_index": ("variable",),
        "_iterations": None,
        "_learning_rate": None,
        "_model_variables_moving_average": None,
        "_trainable_variables": None,
        "_update_model_variables_moving_average": ("trainable_variables",),
        "_use_weight_decay": ("variable",),
        "_var_key": ("variable",),
    },
    lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()): {
        "_stateful_handle_finite_grads": ("grads", "trainable_variables"),
        "_stateful_handle_non_finite_grads": (),
    },
    # Statistics of what is synchronized: layers.normalization.
    keras.layers.BatchNormalization: {"_reduction_axes": None},
}
# Names that are private in Keras, too, of functions and attributes that have nothing to do with it.
OWN = {"_losses", "_operations", "_variables"}
EACH = [(make, name) for make, members in RELIED_ON.items() for name in members]


def made(make):
    """An instance, built and compiled where there is something to it."""
    instance = make()
    if isinstance(instance, keras.Model):
        instance.compile("sgd", "mse")
    elif isinstance(instance, keras.optimizers.Optimizer):
        instance.build([keras.Variable([1.0])])
    elif isinstance(instance, keras.layers.Layer):
        instance.build((None, 4, 4, 3))
    return instance


@pytest.mark.parametrize(("make", "name"), EACH, ids=[name for _, name in EACH])
def test_keras_has_it(make, name):
    instance = made(make)
    what = f"{type(instance).__name__}.{name} of Keras {keras.__version__}"
    assert hasattr(instance, name), f"{what} is gone"
    arguments = RELIED_ON[make][name]
    if arguments is not None:
        found = tuple(inspect.signature(getattr(instance, name)).parameters)
        assert found == arguments, f"{what} takes {found}, not {arguments}"


def test_no_other_is_used():
    """Names that are private in Keras's classes are listed above, or are this package's own."""
    used, own = {}, set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
                used.setdefault(node.attr, path.relative_to(PACKAGE))
                if isinstance(node.ctx, ast.Store):
                    own.add(node.attr)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                used.setdefault(node.name, path.relative_to(PACKAGE))
    listed = {name for members in RELIED_ON.values() for name in members}
    theirs = {name for make in RELIED_ON for name in dir(made(make))}
    for cls in (keras.Loss, keras.Metric, keras.callbacks.Callback, keras.optimizers.AdamW):
        theirs |= {*dir(cls)}
    private = {n for n in theirs if n.startswith("_") and not n.endswith("__")}
    unlisted = {
        name: str(path) for name, path in used.items() if name in private - listed - own - OWN
    }
    assert not unlisted, f"private in Keras {keras.__version__}, and not listed in RELIED_ON"
    unused = listed - used.keys()
    assert not unused, f"listed, but no longer used: {sorted(unused)}"


def test_what_is_internal_is_imported_in_one_place():
    found = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                if name.startswith(("keras.src", "pytest", "tensorflow.python")):
                    found.setdefault(str(path.relative_to(PACKAGE)), []).append(name)
    # The second is Keras's own battery of layers, which is for tests.
    assert found == {
        "compat.py": ["tensorflow.python.distribute"],
        "testing/layers.py": ["keras.src.testing"],
    }


def test_tensorflow_has_it():
    cls = compat.collective_extended()
    arguments = inspect.signature(cls._initialize_local_devices).parameters
    assert list(arguments) == ["self", "cluster_resolver", "worker_device"], (
        f"TensorFlow {tf.__version__} finds a worker's devices otherwise: training.strategy"
    )
    double = tf.function(lambda x: tf.function(lambda y: y * y)(x)).get_concrete_function(
        tf.TensorSpec(())
    )
    calls = [op for op in double.graph.get_operations() if "PartitionedCall" in op.type]
    (inner,) = (compat.function_graph(double.graph, op.get_attr("f").name) for op in calls)
    assert any(op.type == "Mul" for op in inner.get_operations())
