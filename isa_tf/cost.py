"""What a model costs: the floating-point operations of a forward pass, counted on its graph."""

import math

import keras
import tensorflow as tf

# Per output value: two multiply-adds along a row, twice, and one between the rows.
_RESIZE_FLOPS = 6


def count_flops(model, image_size) -> int:
    """Floating-point operations of one image's forward pass; a multiply-add counts 2.

    Convolutions, matrix products (`tf.einsum` included, which TensorFlow's profiler counts as 0)
    and bilinear resizing are counted; additions, activations and normalisations, a per cent or
    less of a network, are not.

    Args:
        model: Keras model of an image (B, H, W, 3), or a callable.
        image_size: (height, width).

    Returns:
        int.

    Example:

    >>> layer = keras.layers.Conv2D(4, 3, padding="same")
    >>> count_flops(layer, (10, 10)) == 2 * 10 * 10 * 3 * 3 * 3 * 4
    True
    """
    spec = tf.TensorSpec((1, *image_size, 3), tf.float32)
    arguments = {"training": False} if isinstance(model, keras.Model) else {}
    function = tf.function(lambda image: model(image, **arguments), jit_compile=False)
    graph = function.get_concrete_function(spec).graph
    return sum(_flops(op) for op in _operations(graph))


def _operations(graph):
    """Those that a graph's outputs need (an auxiliary head's are not), functions that it calls
    included.
    """
    waiting, seen = [tensor.op for tensor in graph.outputs], set()
    while waiting:
        op = waiting.pop()
        if op in seen:
            continue
        seen.add(op)
        waiting += [*(tensor.op for tensor in op.inputs), *op.control_inputs]
        if op.type in ("PartitionedCall", "StatefulPartitionedCall"):
            yield from _operations(graph._get_function(op.get_attr("f").name).graph)
        else:
            yield op


def _shape(tensor):
    shape = tensor.shape.as_list() if tensor.shape.rank is not None else None
    if shape is None or None in shape:
        raise ValueError(f"{tensor.name} has no known shape: {tensor.shape}")
    return shape


def _flops(op):
    if op.type == "Conv2D":
        height, width, inputs, _ = _shape(op.inputs[1])
        return 2 * math.prod(_shape(op.outputs[0])) * height * width * inputs
    if op.type == "DepthwiseConv2dNative":
        height, width, _, _ = _shape(op.inputs[1])
        return 2 * math.prod(_shape(op.outputs[0])) * height * width
    if op.type in ("MatMul", "BatchMatMul", "BatchMatMulV2"):
        transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
        inner = _shape(op.inputs[0])[-2 if transposed else -1]
        return 2 * math.prod(_shape(op.outputs[0])) * inner
    if op.type == "Einsum":
        terms = op.get_attr("equation").decode().split("->")[0].split(",")
        sizes = {}
        for term, tensor in zip(terms, op.inputs, strict=True):
            shape, letters = _shape(tensor), term.replace("...", "")
            lead = len(shape) - len(letters)
            sizes.update(zip(letters, shape[lead:], strict=True))
            if "..." in term:
                sizes["..."] = math.prod(shape[:lead])
        return 2 * math.prod(sizes.values()) if len(terms) > 1 else 0
    if op.type == "ResizeBilinear":
        return _RESIZE_FLOPS * math.prod(_shape(op.outputs[0]))
    return 0
