"""What a model costs: the floating-point operations of a forward pass, counted on its graph."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from isa_tf.compat import function_graph
from isa_tf.hints import Shape

# Per output value: two multiply-adds along a row, twice, and one between the rows.
_RESIZE_FLOPS = 6


class Flops(NamedTuple):
    """Floating-point operations by what does them; a multiply-add counts 2.

    Attributes:
        convolutions: int, depthwise ones included: in attention, the projections.
        products: int, matrix products and `tf.einsum`: attention proper.
        resizing: int, bilinear.
    """

    convolutions: int
    products: int
    resizing: int

    @property
    def total(self) -> int:
        return sum(self)


def flops_by_kind(model: keras.Model, input_shape: Shape) -> Flops:
    """Floating-point operations of a forward pass, by kind; a multiply-add counts 2.

    Convolutions, matrix products (`tf.einsum` included, which TensorFlow's profiler counts as 0)
    and bilinear resizing are counted; additions, activations and normalisations, a per cent or
    less of a network, are not.

    Args:
        model: Keras model or layer of one tensor, or a callable.
        input_shape: shape of the tensor, without unknown sizes, such as (1, 97, 97, 512).

    Returns:
        `Flops`.

    Raises:
        ValueError: where the shape of an operation's tensors cannot be told beforehand.

    Example:

    >>> flops_by_kind(isa_tf.layers.SelfAttention2D(key_filters=4), (1, 6, 6, 8)).products
    31104
    """
    spec = tf.TensorSpec(input_shape, tf.float32)
    arguments = {"training": False} if isinstance(model, keras.Model) else {}
    function = tf.function(lambda inputs: model(inputs, **arguments), jit_compile=False)
    return graph_flops(function.get_concrete_function(spec).graph)


def graph_flops(graph: tf.Graph) -> Flops:
    """Floating-point operations of what a graph's outputs need, as `flops_by_kind` counts them.

    Args:
        graph: `tf.Graph` of a concrete function, such as one of several inputs. What XLA is told to
            compile in it, or runs in a loop, is not counted.

    Returns:
        `Flops`.

    Raises:
        ValueError: where the shape of an operation's tensors cannot be told beforehand.

    Example:

    >>> function = tf.function(tf.matmul).get_concrete_function(tf.ones((2, 3)), tf.ones((3, 5)))
    >>> graph_flops(function.graph).products
    60
    """
    total = dict.fromkeys(Flops._fields, 0)
    for op in _operations(graph):
        kind, flops = _flops(op)
        total[kind] += flops
    return Flops(**total)


def count_flops(model: keras.Model, image_size: Sequence[int]) -> int:
    """Floating-point operations of one image's forward pass; see `flops_by_kind`.

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
    return flops_by_kind(model, (1, *image_size, 3)).total


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
            yield from _operations(function_graph(graph, op.get_attr("f").name))
        else:
            yield op


def _shape(tensor):
    shape = tensor.shape.as_list() if tensor.shape.rank is not None else None
    if shape is None or None in shape:
        raise ValueError(f"{tensor.name} has no known shape: {tensor.shape}")
    return shape


def _flops(op):
    """(kind, operations) of one operation of a graph."""
    if op.type == "Conv2D":
        height, width, inputs, _ = _shape(op.inputs[1])
        return "convolutions", 2 * math.prod(_shape(op.outputs[0])) * height * width * inputs
    if op.type == "Conv2DBackpropInput":  # a transposed convolution
        height, width, outputs, _ = _shape(op.inputs[1])
        return "convolutions", 2 * math.prod(_shape(op.inputs[2])) * height * width * outputs
    if op.type == "DepthwiseConv2dNative":
        height, width, _, _ = _shape(op.inputs[1])
        return "convolutions", 2 * math.prod(_shape(op.outputs[0])) * height * width
    if op.type in ("MatMul", "BatchMatMul", "BatchMatMulV2"):
        transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
        inner = _shape(op.inputs[0])[-2 if transposed else -1]
        return "products", 2 * math.prod(_shape(op.outputs[0])) * inner
    if op.type == "Einsum":
        terms = op.get_attr("equation").decode().split("->")[0].split(",")
        sizes = {}
        for term, tensor in zip(terms, op.inputs, strict=True):
            shape, letters = _shape(tensor), term.replace("...", "")
            lead = len(shape) - len(letters)
            sizes.update(zip(letters, shape[lead:], strict=True))
            if "..." in term:
                sizes["..."] = math.prod(shape[:lead])
        return "products", 2 * math.prod(sizes.values()) if len(terms) > 1 else 0
    if op.type == "ResizeBilinear":
        return "resizing", _RESIZE_FLOPS * math.prod(_shape(op.outputs[0]))
    return "products", 0
