"""isa_tf's side of `tools.beside_torch`: a process of one network, and OpenVINO's of the same."""

import numpy as np

from tools.bench import beside, detector, steps, timing
from tools.bench.beside import CLASSES, DETECTOR, INTERLACED, KEYS, OPENVINO, WIDTH


def make(case):
    """(call, matrix product, facts) of isa_tf's network."""
    import keras
    import tensorflow as tf

    from isa_tf import backbones, cost, inference, runtime
    from isa_tf.layers import ConvNormAct, InterlacedSparseAttention, SelfAttention2D
    from isa_tf.models import ISANet

    tf.config.threading.set_intra_op_parallelism_threads(case["threads"])
    if case["what"] in DETECTOR:
        return make_detector(case)
    dtype = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[case["dtype"]]
    rng, (height, width) = np.random.default_rng(0), case["size"]
    channels = beside.channels_of(case["what"])
    shape = (case["batch"], height, width, channels)
    if channels == 3:
        inputs = rng.integers(0, 256, shape).astype("float32")
        auxiliary = "c4" if case["what"] == "train" else None
        train = {"minimal_filtering": 256} if case["what"] == "train" else {}
        backbone = backbones.create(
            "resnet50_v1c", 8, recompute=case["what"] == "train", dtype=dtype, **train
        )
        model = ISANet(backbone, CLASSES, auxiliary_level=auxiliary, dtype=dtype, **train)
    else:
        inputs = rng.normal(size=shape).astype("float32")
        keras.config.set_dtype_policy(dtype)
        map_ = x = keras.Input((None, None, channels))
        if case["what"] == "dense":
            layer = SelfAttention2D(key_filters=KEYS)
            if case["name"] == INTERLACED:
                layer = InterlacedSparseAttention(8, key_filters=KEYS, fuse=False)
            x = layer(x)
        else:
            x = ConvNormAct(WIDTH, 3)(x)
            x = InterlacedSparseAttention(partition=8, key_filters=KEYS)(x)
            x = keras.layers.Conv2D(CLASSES, 1)(x)
        model = keras.Model(map_, x)
    facts = {"gflops": cost.flops_by_kind(model, shape).total / 1e9}
    inputs = tf.constant(inputs)
    if case["what"] == "train":
        labels = tf.constant(rng.integers(0, CLASSES, (*shape[:3],)).astype("uint8"))
        facts["gflops"] *= 3  # the products of a backward pass are twice those of the forward one
        step = steps.of_segmenter(model, case["size"], case["batch"])

        def call():
            step(inputs, labels)

    else:
        network = model
        if case["name"] not in ("isa_tf", OPENVINO):
            network = inference.fuse(model, product_dtype=runtime.product_dtype(dtype))
        function = tf.function(lambda x: network(x, training=False)).get_concrete_function(inputs)
        if case["name"] == OPENVINO:
            call = _in_openvino(function, inputs.numpy(), case["threads"])
        elif "saved_model" in case["name"]:
            call = _in_saved_model(network, inputs, "without" not in case["name"])
        else:

            def call():
                function(inputs).numpy()

    return call, timing.matmul(), facts


def make_detector(case):
    """(call, matrix product, facts) of parts of isa_tf's Mask R-CNN."""
    import keras
    import tensorflow as tf

    from isa_tf import cost, inference, runtime

    dtype = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[case["dtype"]]
    keras.config.set_dtype_policy(dtype)
    model, parts = detector.make_model(), DETECTOR[case["what"]]
    inputs = tf.constant(detector.inputs_of(parts[0], case["size"], model))

    def chain(network):
        functions = [detector.function_of(part, network) for part in parts]

        def run(x):
            for function in functions:
                x = function(x)
                if isinstance(x, dict):  # a backbone's maps
                    x = {level: x[level] for level in ("c2", "c3", "c4", "c5")}
            return x

        return tf.function(run, jit_compile=False).get_concrete_function(inputs)

    plain = chain(model)
    facts = {"gflops": cost.graph_flops(plain.graph).total / 1e9}
    function = plain
    if case["name"] != "isa_tf":
        product = runtime.product_dtype(dtype)
        function = chain(inference.fuse(model, product_dtype=product))

    def call():
        for tensor in tf.nest.flatten(function(inputs)):
            tensor.numpy()

    return call, timing.matmul(), facts


def _in_openvino(function, inputs, threads):
    """The call of a concrete function's graph in OpenVINO, in float32."""
    import openvino

    core = openvino.Core()
    network = openvino.convert_model(function)
    network.reshape(inputs.shape)
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    options["PERFORMANCE_HINT"] = "LATENCY"
    compiled = core.compile_model(network, "CPU", options)
    return lambda: compiled([inputs])


def _in_saved_model(network, inputs, jit_compile):
    """The call of what is exported of a network and loaded again."""
    import tempfile

    import tensorflow as tf

    import isa_tf

    folder = tempfile.mkdtemp()
    isa_tf.export(network, f"{folder}/served", format="saved_model", jit_compile=jit_compile)
    loaded = tf.saved_model.load(f"{folder}/served")
    serve, image = loaded.signatures["serving_default"], tf.cast(inputs, tf.uint8)

    def call():
        serve(image=image)["class_id"].numpy()

    call.loaded = loaded  # its variables live no longer than this object
    return call


if __name__ == "__main__":
    beside.serve(make)
