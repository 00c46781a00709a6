"""Whole models of segmentation: forward, and a training step."""

from tools.bench import steps
from tools.typed import parse_module


def make(case):
    """(model, call of its inputs, specs of them, graph): one pass of a model.

    Args:
        case: dict of "backbone", "output_stride", "module", "num_classes", "dtype", "jit_compile",
            "minimal_filtering", "size", "batch", "pass" ("forward" or "backward") and, where
            forward is to be the twin's, "fuse".

    Returns:
        The Keras model; the call; a list of `tf.TensorSpec`; and a function that gives a
        `tf.Graph` of its tensors, by which one knows whether it fits into the memory.
    """
    import tensorflow as tf

    from isa_tf import inference, runtime

    model = make_model(case)
    image = tf.TensorSpec((case["batch"], *case["size"], 3), tf.float32)
    if case["pass"] == "forward":
        network = model
        if case.get("fuse"):
            product = runtime.product_dtype(case["dtype"])
            network = inference.fuse(model, product_dtype=product)
        function = tf.function(
            lambda x: network(x, training=False), jit_compile=case["jit_compile"]
        )
        return model, function, [image], lambda: function.get_concrete_function(image).graph
    step = steps.of_segmenter(model, case["size"], case["batch"], case["jit_compile"])
    label = tf.TensorSpec((case["batch"], *case["size"]), tf.uint8)
    # What is kept for the gradients are tensors of this graph; the step's own takes far longer.
    trained = tf.function(lambda x: model(x, training=True), jit_compile=False)
    return model, step, [image, label], lambda: trained.get_concrete_function(image).graph


def make_model(case):
    """`isa_tf.models.Segmenter` as it trains in least time and memory on a CPU.

    With an auxiliary head where the backbone has a map for it, minimal filtering where the case
    says so, and, of a ResNet, recomputation.
    """
    from isa_tf import backbones
    from isa_tf.models import Segmenter

    name, arguments = parse_module(case["module"])
    shared = {"dtype": case["dtype"]}
    if case["minimal_filtering"] is not None:
        shared["minimal_filtering"] = case["minimal_filtering"]
    options = {"recompute": True} if case["backbone"].startswith("resnet") else {}
    backbone = backbones.create(case["backbone"], case["output_stride"], **options, **shared)
    levels = sorted(backbone.feature_strides)
    return Segmenter(
        backbone,
        name,
        case["num_classes"],
        context_options=arguments,
        auxiliary_level=levels[-2] if len(levels) > 1 else None,
        **shared,
    )
