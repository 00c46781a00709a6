"""The parts of Mask R-CNN that `tools.benchmark detector` and `tools.beside_torch` measure."""

import numpy as np

from tools.bench import steps
from tools.typed import parse_module

# From images to masks, in the order of the network; "whole" is all of it.
PARTS = (
    "backbone",
    "pyramid",
    "rpn_head",
    "proposals",
    "box_align",
    "box_head",
    "detections",
    "mask_align",
    "mask_head",
    "whole",
)
# What learns, or lets gradients through; the last is a training step.
TRAINED = ("backbone", "pyramid", "rpn_head", "box_align", "box_head", "mask_align", "mask_head")
WIDTH, CLASSES = 256, 80
# Boxes whose maps are cut out of an image's: proposals and detections; in training what is drawn,
# of which a quarter may have masks.
ROIS, MASKS = 1000, 100
DRAWN = 512


def make_model(
    backbone="resnet50", context="none", minimal_filtering=None, recompute=False, **options
):
    """`isa_tf.models.MaskRCNN` with a context module in its backbone, at "c4", or none.

    Args:
        backbone: name of a ResNet. Defaults to "resnet50".
        context: name of a context module, or a dict of it and arguments. Defaults to "none".
        minimal_filtering: int or `None`, of the backbone. Defaults to `None`.
        recompute: bool, of the backbone. Defaults to `False`.
        **options: of the model.
    """
    from isa_tf import backbones
    from isa_tf.models import MaskRCNN

    inside = None if context == "none" else {"c4": context}
    made = backbones.create(
        backbone,
        32,
        context_at=inside,
        minimal_filtering=minimal_filtering,
        recompute=recompute,
    )
    return MaskRCNN(made, CLASSES, **options)


def boxes(size, number, seed=0):
    """float32 (1, number, 4): boxes of all sizes within an image, most of them small."""
    rng, (height, width) = np.random.default_rng(seed), size
    sides = np.exp(rng.uniform(np.log(16), np.log(0.9 * min(size)), (number, 2)))
    corners = rng.uniform(0, 1, (number, 2)) * ([width, height] - sides)
    return np.concatenate([corners, corners + sides], 1).astype("float32")[None]


def _pyramid_sizes(size, levels=4):
    return [[-(-n // stride) for n in size] for stride in (4, 8, 16, 32, 64)[:levels]]


def inputs_of(part, size, network, training=False):
    """Arrays that a part reads, in the structure that `function_of` takes."""
    rng = np.random.default_rng(0)

    def maps(levels, widths):
        sizes = zip(_pyramid_sizes(size, levels), widths, strict=True)
        return [rng.normal(size=(1, *s, c)).astype("float32") for s, c in sizes]

    whole = np.int32([size])
    rois, masks = (DRAWN, DRAWN // 4) if training else (ROIS, MASKS)
    if part in ("backbone", "whole"):
        image = rng.uniform(0, 255, (1, *size, 3)).astype("float32")
        return image if part == "backbone" else {"image": image, "size": whole}
    if part == "pyramid":
        widths = [x.shape[-1] for x in network.get_layer("pyramid").inputs]
        return dict(zip(("c2", "c3", "c4", "c5"), maps(4, widths), strict=True))
    if part == "rpn_head":
        return maps(5, [WIDTH] * 5)
    if part in ("box_align", "mask_align"):
        number = rois if part == "box_align" else masks
        return [boxes(size, number), *maps(4, [WIDTH] * 4)]
    if part == "box_head":
        return rng.normal(size=(rois, 7, 7, WIDTH)).astype("float32")
    if part == "mask_head":
        return rng.normal(size=(masks, 14, 14, WIDTH)).astype("float32")
    if part == "proposals":
        image, pyramid = np.zeros((1, *size, 3), "float32"), maps(5, [1] * 5)
        anchors = network.get_layer("anchors")([image, *pyramid])
        counts = [len(a) for a in anchors]
        return {
            "logits": [rng.normal(size=(1, n)).astype("float32") for n in counts],
            "codes": [rng.normal(0, 0.2, (1, n, 4)).astype("float32") for n in counts],
            "anchors": [np.asarray(a) for a in anchors],
            "size": whole,
        }
    # Of a trained network, some classes of a proposal reach the threshold, if any.
    return {
        "logits": rng.normal(0, 2, (ROIS, CLASSES + 1)).astype("float32"),
        "codes": rng.normal(size=(ROIS, 4 * CLASSES)).astype("float32"),
        "proposals": boxes(size, ROIS),
        "proposals_valid": np.ones((1, ROIS), bool),
        "size": whole,
    }


def truth(size, number=20, mask_size=112):
    """What is true of an image, as `isa_tf.data.instance_train_pipeline` gives it."""
    rng, found = np.random.default_rng(1), boxes(size, number, seed=1)
    return {
        "boxes": found,
        "classes": rng.integers(0, CLASSES, (1, number)).astype("int32"),
        "valid": np.ones((1, number), bool),
        "crowd": np.zeros((1, number), bool),
        "masks": np.full((1, number, mask_size, mask_size), 255, "uint8"),
        "mask_boxes": found,
        "seed": np.zeros((1, 2), "int32"),
    }


def layer_of(part, network):
    """The layer that is a part of a network; a backbone has a name of its own."""
    if part == "whole":
        return network
    if part == "backbone":
        return next(layer for layer in network.layers if layer.name.startswith("resnet"))
    return network.get_layer(part)


def function_of(part, network):
    """The function of a part's inputs, in inference."""
    layer = layer_of(part, network)
    if part == "rpn_head":
        return lambda maps: [layer(x, training=False) for x in maps]
    return lambda inputs: layer(inputs, training=False)


def bytes_moved(part, size):
    """Of a part without products, what must be read and written at least."""
    number = {"box_align": (ROIS, 7), "mask_align": (MASKS, 14)}.get(part)
    if number:
        positions = sum(h * w for h, w in _pyramid_sizes(size))
        return 4 * WIDTH * (positions + number[0] * number[1] ** 2)
    anchors = 3 * sum(h * w for h, w in _pyramid_sizes(size, 5))
    read = {"proposals": 5 * anchors, "detections": ROIS * (5 * CLASSES + 1 + 4)}
    return 4 * read[part] if part in read else None


def make(case):
    """(model, call of its inputs, inputs, graph): one pass of a part.

    Args:
        case: dict of "part", "backbone", "module" (a context module at "c4", or "none"), "size",
            "minimal_filtering", "pass" ("forward" or "backward") and, where forward is to be the
            twin's, "fuse".

    Returns:
        The Keras model; the call; the list of what it is called with, structures of tensors; and a
        function that gives a `tf.Graph` of its tensors.
    """
    import tensorflow as tf

    from isa_tf import inference

    part, backward = case["part"], case["pass"] == "backward"
    name, arguments = parse_module(case["module"])
    model = make_model(
        case["backbone"],
        {"name": name, **arguments} if name != "none" else "none",
        case["minimal_filtering"] if backward else None,
        **({"recompute": True} if backward else {}),
    )
    network = inference.fuse(model) if case.get("fuse") and not backward else model
    inputs = inputs_of(part, case["size"], network, backward)
    given = [tf.nest.map_structure(tf.constant, inputs)]
    if not backward:
        call = tf.function(function_of(part, network))
    elif part == "whole":
        given.append(tf.nest.map_structure(tf.constant, truth(case["size"])))
        specs = tuple(tf.nest.map_structure(tf.type_spec_from_value, each) for each in given)
        step = steps.of_detector(model, specs)
        learnt = tf.function(lambda x: model(x, training=True))
        return model, step, given, lambda: learnt.get_concrete_function(*given).graph
    else:
        call = tf.function(_learning(part, model))
    return model, call, given, lambda: call.get_concrete_function(*given).graph


def graph_of(part, model, inputs):
    """The graph of a part as Keras calls it, on which operations are counted."""
    import tensorflow as tf

    plain = tf.function(function_of(part, model), jit_compile=False)
    return plain.get_concrete_function(inputs).graph


def _learning(part, model):
    """The function of a part's inputs that gives the gradients of maps and weights."""
    import tensorflow as tf

    layer = layer_of(part, model)

    def backward(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            parts = inputs if part == "rpn_head" else [inputs]
            outputs = tf.nest.flatten([layer(x, training=True) for x in parts])
            loss = tf.add_n([tf.reduce_mean(tf.cast(y, tf.float32) ** 2) for y in outputs])
        learned = [x for x in tf.nest.flatten(inputs) if x.shape.rank == 4]
        return tape.gradient(loss, [*learned, *layer.trainable_variables])

    return backward
