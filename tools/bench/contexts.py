"""What of context modules is measured: forward, backward, attention."""

from tools.typed import parse_module


def make(case):
    """(layer, tf.function, specs of its inputs); no function where there is none to measure.

    Args:
        case: dict of "module", "size", "batch", "channels", "minimal_filtering", "pass" ("forward",
            "backward" or "core") and, where it is to be the layer's twin, "fuse".
    """
    import tensorflow as tf

    from isa_tf import inference
    from isa_tf.layers import create_context

    name, arguments = parse_module(case["module"])
    layer = create_context(name, **{"minimal_filtering": case["minimal_filtering"], **arguments})
    shape = (case["batch"], *case["size"], case["channels"])
    spec = tf.TensorSpec(shape, tf.float32)
    if layer is None:
        return layer, None, None
    layer.build((None, None, None, case["channels"]))
    network = inference.fuse(layer) if case.get("fuse") else layer
    if case["pass"] == "core":
        return make_core(network, shape)

    @tf.function
    def forward(inputs):
        return network(inputs, training=False)

    @tf.function
    def backward(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=True)
            loss = tf.reduce_mean(outputs**2)
        return tape.gradient(loss, [inputs, *layer.trainable_variables])

    return layer, {"forward": forward, "backward": backward}[case["pass"]], [spec]


def make_core(layer, shape):
    """The attention proper of a layer on maps of queries, keys and values, without projections."""
    import tensorflow as tf

    from isa_tf import ops
    from isa_tf.layers import FactorizedAttention, SelfAttention2D
    from isa_tf.layers.self_attention import grouped

    attentions = getattr(layer, "attentions", [layer])
    if not all(isinstance(attention, SelfAttention2D) for attention in attentions):
        return layer, None, None
    batch, *size, channels = shape
    width = attentions[0].filters or channels
    key_filters = attentions[0].key_filters or max(1, width // 2)

    def one(attention, maps):
        size = ops.spatial_size(maps[0])
        partition = attention.resolve_partition(size)
        padded, offsets = zip(*(ops.pad_to_partition(x, partition) for x in maps), strict=True)
        whole = ops.spatial_size(padded[0])
        query, key, value = (grouped(x, partition, attention.kind) for x in padded)
        bias = attention.bias_of(partition, attention.kind, whole)
        compiled = attention.is_compiled(partition)
        context, _ = attention.attend_groups(query, key, lambda: value, None, compiled, bias=bias)
        context = ops.from_groups(context, partition, attention.kind, whole)
        return ops.crop(context, offsets[0], size)

    @tf.function
    def core(query, key, value):
        for attention in attentions:
            if isinstance(attention, FactorizedAttention):
                partition = attention.resolve_partition(ops.spatial_size(value))
                value, _ = attention.gather_levels(query, key, value, partition)
            else:
                value = one(attention, (query, key, value))
        return value

    widths = (key_filters, key_filters, width)
    return layer, core, [tf.TensorSpec((batch, *size, c), tf.float32) for c in widths]
