"""The segmenter: the battery of a model, its loss, its precision, its replicas."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from isa_tf.backbones import HRNet, TinyNet
from isa_tf.layers import InterlacedSparseAttention
from isa_tf.losses import PixelCrossEntropy, SoftJaccard, SumOfLosses
from isa_tf.metrics import MeanIoU
from isa_tf.models import ISANet, Segmenter
from isa_tf.testing import ModelBattery, randomize, relative_error
from isa_tf.training import CoupledSGD, make_optimizer

SMALL = {"num_classes": 3, "head_filters": 8}
SMALL_HEAD = {"head_filters": 8}
NAMED = {
    "class_names": ("sky", "tree", "road"),
    "palette": ((0, 0, 255), (0, 255, 0), (90, 90, 90)),
}
CASES = {
    "isa": {},
    "auxiliary": {"auxiliary_level": "c1", "auxiliary_filters": 4, **NAMED},
    "decoder": {
        "backbone": "resnet18",
        "context": "none",
        "decoder_levels": ("c3", "c2"),
        "decoder_filters": 8,
        "input_scale": 1.5,
    },
    "efficientnet": {"backbone": "efficientnet_lite0", "context": "self_attention"},
}


def made(seed=0, **arguments):
    model = Segmenter(**{"backbone": "tiny", **SMALL, **arguments})
    randomize(model, seed)
    return model


def images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (*shape, 3)).astype("float32")


def toy(batch=4, size=32):
    """Class by brightness: learnt within a few steps."""
    x = images(batch, size // 8, size // 8).repeat(8, 1).repeat(8, 2)
    y = np.digitize(x.mean(-1), (100, 155)).astype("uint8")
    y[:, :2] = 255
    return x, y


def compiled(model, rate=0.05, **arguments):
    model.compile(
        CoupledSGD(rate, momentum=0.9, l2=1e-4),
        PixelCrossEntropy(),
        metrics=[MeanIoU(3)],
        **arguments,
    )
    return model


@pytest.mark.some("isa", "auxiliary")
@pytest.mark.parametrize("arguments", CASES.values(), ids=CASES.keys())
def test_battery(arguments, capsys):
    battery = ModelBattery(lambda: Segmenter(**{"backbone": "tiny", **SMALL, **arguments}))
    slow = {"fit", "presets", "summary"} if "backbone" in arguments else set()
    battery.run(*(name for name in battery.list_checks() if name not in slow))
    model = made(**arguments)
    model.summary()
    assert "logits" in capsys.readouterr().out
    assert model.class_names == arguments.get("class_names")
    assert model.palette == arguments.get("palette")
    if "auxiliary_level" not in arguments:
        assert model.output_shape == (None, None, None, 3)


def test_context_may_be_a_layer_or_nothing():
    context = InterlacedSparseAttention([4, "auto"], fuse=True, name="mine")
    model = made(context=context)
    assert model.context is context
    config = json.loads(json.dumps(model.get_config()))
    assert Segmenter.from_config(config).context.partitions == [(4, 4), "auto"]
    bare = made(context=None)
    assert bare.context is None and Segmenter.from_config(bare.get_config()).context is None
    assert bare.count_params() < model.count_params()


def test_backbone_may_be_a_model():
    model = made(backbone=TinyNet(output_stride=8, widths=(4, 6, 8)))
    config = json.loads(json.dumps(model.get_config()))
    assert Segmenter.from_config(config).backbone.output_stride == 8
    assert model(images(1, 20, 20)).shape == (1, 20, 20, 3)


def test_over_an_hrnet_a_head_reads_all_scales():
    backbone = HRNet(2, modules=(1, 1, 1), blocks=1, filters=4)
    model = made(backbone=backbone, auxiliary_level="concatenated", auxiliary_filters=4)
    assert model.get_layer("head").conv.kernel.shape == (3, 3, 30, 8)
    assert model.get_layer("auxiliary").conv.kernel.shape == (3, 3, 30, 4)
    x = images(1, 37, 50)
    assert model(x).shape == (1, 37, 50, 3)
    config = json.loads(json.dumps(model.get_config()))
    twin = Segmenter.from_config(config)
    twin.set_weights(model.get_weights())
    np.testing.assert_array_equal(twin(x), model(x))


def test_an_output_stride_that_is_not_said_is_8_or_the_networks_own(monkeypatch):
    asked = []

    def create(name, output_stride, *arguments, **options):
        asked.append((name, output_stride))
        return TinyNet()

    monkeypatch.setattr("isa_tf.backbones.create", create)
    for name in ("resnet50", "tiny", "keras:MobileNetV2", "hrnet_w48"):
        Segmenter(name, context=None, **SMALL)
    Segmenter("tiny", context=None, output_stride=4, **SMALL)
    strides = [8, 8, 8, None, 4]
    assert [stride for _, stride in asked] == strides


def test_input_scale_reads_an_enlarged_image():
    plain, scaled = made(), made(input_scale=1.5)
    scaled.set_weights(plain.get_weights())

    def classifier(model, x):
        layer = model.get_layer("logits_classifier")
        return keras.Model(model.input, layer.output)(x)

    x = images(1, 21, 34)
    enlarged = tf.image.resize(x, (32, 51))
    np.testing.assert_array_equal(classifier(scaled, x), classifier(plain, enlarged))
    assert scaled(x).shape == (1, 21, 34, 3)
    with pytest.raises(ValueError, match="factor must be above 0"):
        made(input_scale=0)


def test_decoder_reads_the_finer_maps():
    model = made(decoder_levels=("c1",), decoder_filters=8)
    fine = model.get_layer("decoder_c1_pointwise2").output
    entry = keras.Model(model.input, fine)
    assert entry(images(1, 32, 48)).shape == (1, 16, 24, 8)
    assert model(images(1, 33, 47)).shape == (1, 33, 47, 3)


AUXILIARY = {"auxiliary_level": "c1", "auxiliary_filters": 4, "auxiliary_weight": 0.25}


def test_auxiliary_head_speaks_in_training_alone():
    model = made(**AUXILIARY, dropout=0.0)
    x = images(2, 16, 24)
    outputs = model(x, training=True)
    assert set(outputs) == {"logits", "auxiliary_logits"}
    assert all(o.shape == (2, 16, 24, 3) and o.dtype == tf.float32 for o in outputs.values())
    np.testing.assert_allclose(model.predict(x, verbose=0), model(x), rtol=1e-4, atol=1e-5)


def test_auxiliary_head_stays_inside_another_model():
    model = made(**AUXILIARY)
    inputs = keras.Input((None, None, 3))
    wrapped = keras.Model(inputs, keras.ops.softmax(model(inputs)))
    x = images(1, 32, 24)
    expected = keras.ops.softmax(model(x))
    np.testing.assert_allclose(wrapped(x), expected, atol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        lambda y, logits: keras.losses.sparse_categorical_crossentropy(y, logits, True),
    ],
    ids=["object", "function"],
)
def test_auxiliary_loss_with_any_keras_loss(loss):
    model = made(dropout=0.0, **AUXILIARY)
    x, y = toy()
    y[y == 255] = 0
    outputs = model(x, training=True)
    expected = sum(
        weight * np.mean(loss(y, outputs[name]))
        for name, weight in (("logits", 1.0), ("auxiliary_logits", 0.25))
    )
    model = made(dropout=0.0, **AUXILIARY)
    model.compile(CoupledSGD(0.0), loss, jit_compile=False)
    history = model.fit(x, y, batch_size=len(x), verbose=0).history
    np.testing.assert_allclose(history["loss"], [expected], rtol=1e-4)


def test_fit_adds_the_weighted_auxiliary_loss():
    x, y = toy()
    model = compiled(made(**AUXILIARY, dropout=0.0), rate=0.0)
    outputs = model(x, training=True)
    loss = PixelCrossEntropy()
    main, auxiliary = (float(loss(y, outputs[k])) for k in ("logits", "auxiliary_logits"))
    history = model.fit(x, y, batch_size=4, verbose=0).history
    np.testing.assert_allclose(history["loss"], [main + 0.25 * auxiliary], rtol=1e-4)
    assert set(history) == {"loss", "miou"}
    evaluated = model.evaluate(x, y, batch_size=4, verbose=0, return_dict=True)
    np.testing.assert_allclose(evaluated["loss"], loss(y, model(x)), rtol=1e-4)


def test_fit_learns_and_goes_on_after_saving(tmp_path):
    x, y = toy(8)
    model = compiled(Segmenter("tiny", **SMALL, dropout=0.0))
    losses = model.fit(x, y, batch_size=4, epochs=12, verbose=0).history["loss"]
    assert losses[-1] < 0.6 * losses[0]
    evaluated = model.evaluate(x, y, batch_size=4, verbose=0, return_dict=True)
    metric = MeanIoU(3)
    metric.update_state(y, model.predict(x, verbose=0))
    np.testing.assert_allclose(evaluated["miou"], metric.result(), rtol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    again = loaded.evaluate(x, y, batch_size=4, verbose=0, return_dict=True)
    np.testing.assert_allclose(again["loss"], evaluated["loss"], rtol=1e-5)
    assert loaded.optimizer.iterations == model.optimizer.iterations


def test_a_step_is_traced_once():
    x, y = toy()
    traces = []

    class Traced(Segmenter):
        def train_step(self, data):
            traces.append(1)
            return super().train_step(data)

    model = compiled(Traced("tiny", **SMALL), jit_compile=False)
    model.fit(x, y, batch_size=2, epochs=2, verbose=0)
    assert len(traces) == 1


@pytest.mark.parametrize("sample_weight", [[2.0, 0.0, 1.0, 0.5], None], ids=["weights", ""])
def test_auxiliary_loss_has_sample_weights(sample_weight):
    x, y = toy()
    weights = None if sample_weight is None else np.array(sample_weight)
    model = compiled(made(**AUXILIARY, dropout=0.0), rate=0.0, jit_compile=False)
    outputs, loss = model(x, training=True), PixelCrossEntropy()
    main, extra = (loss(y, outputs[k], weights) for k in ("logits", "auxiliary_logits"))
    history = model.fit(x, y, 4, **FIT, sample_weight=weights).history
    np.testing.assert_allclose(history["loss"], [main + 0.25 * extra], rtol=1e-4)


def test_frozen_model_is_left_as_it_is():
    x, y = toy()
    model = made()
    model.trainable = False
    compiled(model, jit_compile=False)
    with pytest.warns(UserWarning, match="does not have any trainable weights"):
        history = model.fit(x, y, batch_size=4, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_fit_compiled_by_xla():
    """What Keras does by itself where there is a GPU."""
    x, y = toy()
    results = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(0)
        model = compiled(made(**AUXILIARY, dropout=0.0), jit_compile=jit_compile)
        results.append(model.fit(x, y, batch_size=4, epochs=2, verbose=0, shuffle=False).history)
    np.testing.assert_allclose(results[1]["loss"], results[0]["loss"], rtol=1e-3)


@pytest.mark.some(1)
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy, tmp_path):
    x, y = toy()
    model = made(dtype=policy, auxiliary_level="c1")
    assert model.dtype_policy.name == policy
    assert model.context.compute_dtype == policy.removeprefix("mixed_")
    assert all(v.dtype == "float32" for v in model.trainable_variables)
    logits = model(x)
    assert logits.dtype == tf.float32
    assert relative_error(logits, made(auxiliary_level="c1")(x)) < 0.1
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.dtype_policy.name == policy
    assert loaded.context.dtype_policy.name == loaded.backbone.dtype_policy.name == policy
    np.testing.assert_array_equal(loaded(x), logits)
    assert all(o.dtype == tf.float32 for o in model(x, training=True).values())
    if policy == "mixed_float16":
        compiled(model)
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        assert np.isfinite(model.fit(x, y, batch_size=4, verbose=0).history["loss"]).all()


BAD = [
    ({"num_classes": 0}, "num_classes"),
    ({"class_names": ("a", "b")}, "class_names has 2 entries for 3 classes"),
    ({"palette": ((0, 0, 0),)}, "palette has 1 entries for 3 classes"),
    ({"backbone": "resnet19"}, "resnet18"),
    ({"context": "izas"}, "unknown context module"),
    ({"auxiliary_level": "c9"}, "no map 'c9'; it has c1"),
    ({"decoder_levels": ("c7",)}, "no map 'c7'"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=str)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Segmenter(**{"backbone": "tiny", **SMALL, **arguments})


DEALT = {
    "plain": PixelCrossEntropy(),
    "weighted": PixelCrossEntropy(class_weights=(0.5, 1.0, 3.0)),
    "all": PixelCrossEntropy(average="all"),
    "sum": SumOfLosses([PixelCrossEntropy(class_weights=(1, 2, 1)), SoftJaccard()], [1.0, 0.5]),
    "function": lambda y, logits: keras.losses.sparse_categorical_crossentropy(y, logits, True),
    "name": "sparse_categorical_crossentropy",  # of what it takes for probabilities
}


@pytest.mark.some(6)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "sample_weight"])
@pytest.mark.parametrize("loss", DEALT.values(), ids=DEALT.keys())
def test_loss_over_replicas_is_that_of_one_device(loss, weighted, mirrored):
    """With an auxiliary head, and most of the pixels that count on one of them."""
    rng = np.random.default_rng(0)
    x, y = toy(size=8)
    maps = [rng.uniform(0.1, 2, (*y.shape, 3)) for _ in range(2)]
    if isinstance(loss, keras.losses.Loss):
        y[2:, :, 1:] = 255
    else:
        y[y == 255] = 0
    weights = [rng.uniform(0.5, 2, y.shape)] * weighted

    def run(strategy):
        with strategy.scope():
            model = made(**AUXILIARY)
            model.compile(CoupledSGD(0.0), loss, jit_compile=False)

        def share(x, y, logits, auxiliary, *weights):
            with tf.GradientTape() as tape:
                tape.watch([logits, auxiliary])
                outputs = {"logits": logits, "auxiliary_logits": auxiliary}
                value = model.compute_loss(x, y, outputs, *weights)
            return value, *tape.gradient(value, [logits, auxiliary])

        step = tf.function(lambda *parts: strategy.run(share, parts))
        value, *gradients = step(*(dealt(strategy, a) for a in (x, y, *maps, *weights)))
        locally = strategy.experimental_local_results
        return float(strategy.reduce("SUM", value, axis=None)), [
            np.concatenate(locally(g)) for g in gradients
        ]

    (one, expected), (two, found) = run(tf.distribute.get_strategy()), run(mirrored)
    np.testing.assert_allclose(two, one, rtol=1e-5)
    for a, b in zip(found, expected, strict=True):
        assert np.abs(a - b).max() < 1e-5 * np.abs(b).max()


def dealt(strategy, values):
    parts = np.split(values, strategy.num_replicas_in_sync)
    return strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(parts[context.replica_id_in_sync_group])
    )


FIT = {"epochs": 1, "verbose": 0, "shuffle": False}


def test_two_replicas_train_as_one(mirrored):
    """Step by step, also where all that counts lies in one of them."""
    x, y = toy(8)
    y[:2] = y[6] = 255

    def run(strategy):
        with strategy.scope():
            model = made(synchronized=True, dropout=0.0, **AUXILIARY, dtype="float64")
            optimizer = make_optimizer("sgd", 0.05, 12, clip_norm=1.0, ema=0.5)
            loss = SumOfLosses([PixelCrossEntropy(), SoftJaccard()])
            model.compile(optimizer, loss, metrics=[MeanIoU(3)], jit_compile=False)
        history = model.fit(x, y, 4, **{**FIT, "epochs": 6}).history
        scores = model.evaluate(x[:4], y[:4], batch_size=4, verbose=0)
        return history["loss"], history["miou"], scores, model

    one, two = run(tf.distribute.get_strategy()), run(mirrored)
    assert two[3].distribute_strategy is mirrored
    assert one[0][-1] < 0.9 * one[0][0]
    for a, b in zip(two[:3], one[:3], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    # Not to the last bit of float64: resizing and the softmax are computed in float32.
    for of, tolerance in ((lambda m: m.weights, 1e-6), (lambda m: m.optimizer.variables, 1e-5)):
        for a, b in zip(of(two[3]), of(one[3]), strict=True):
            assert relative_error(a, b) < tolerance, a.path


# === One way to say a module ===


def test_a_module_is_said_by_its_name_and_options():
    named = Segmenter("tiny", "isa", 3, {"partition": (2, 3), "order": "short_long"}, **SMALL_HEAD)
    made = Segmenter("tiny", InterlacedSparseAttention((2, 3), order="short_long"), 3, **SMALL_HEAD)
    for model in (named, made):
        assert model.context.partitions == [(2, 3)] and model.context.order == "short_long"
    with pytest.raises(ValueError, match="context_options are of a module given by name"):
        Segmenter("tiny", named.context, 3, {"partition": 4})
    with pytest.raises(ValueError, match="partition"):
        Segmenter("tiny", "ppm", 3, {"partition": 4})


def test_what_the_network_is_told_a_named_module_is_told_too():
    shared = {"momentum": 0.7, "minimal_filtering": 8, "activation": "silu", "dtype": "float64"}
    context = Segmenter("tiny", "ppm", 3, **SMALL_HEAD, **shared).context
    assert (context.momentum, context.minimal_filtering) == (0.7, 8)
    assert context.pools[0].norm.momentum == 0.7 and context.fusion.filtered
    assert context.activation is keras.activations.silu and context.compute_dtype == "float64"
    kept = Segmenter("tiny", "ppm", 3, {"momentum": 0.5}, **SMALL_HEAD, **shared).context
    assert kept.momentum == 0.5


def test_the_factory_and_the_network_agree():
    ours = ISANet("resnet18", 3, auxiliary_level=None, name="same", **SMALL_HEAD)
    plain = Segmenter("resnet18", num_classes=3, name="same", **SMALL_HEAD)
    assert ours.get_config() == plain.get_config()
    assert ours.backbone.output_stride == 8
    assert ISANet("resnet18", 3, **SMALL_HEAD).auxiliary_level == "c4"


# === What Keras makes of it ===


def test_a_clone_gives_logits():
    model = made(auxiliary_level="c1", auxiliary_filters=4)
    clone = keras.models.clone_model(model)
    clone.set_weights(weights_of(model, clone))
    x = images(1, 33, 41)
    np.testing.assert_allclose(clone(x), model(x), rtol=1e-5, atol=1e-5)
    assert tuple(clone.output.shape) == (None, None, None, 3)


def weights_of(model, clone):
    """The model's, but for those of the head that is there in training alone."""
    named = {layer.name: layer for layer in model.layers}
    return [w for layer in clone.layers for w in named[layer.name].get_weights()]


@pytest.mark.some("isa")
@pytest.mark.parametrize("context", ["isa", "self_attention", "ppm"])
def test_what_keras_exports_of_a_loaded_model_runs_in_litert(tmp_path, context):
    """With built-in operations alone, for images of any size."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    made(context=context, auxiliary_level="c1", auxiliary_filters=4).save(tmp_path / "m.keras")
    model = keras.models.load_model(tmp_path / "m.keras")
    model.export(tmp_path / "m.tflite", format="litert", verbose=False)
    network = interpreter.Interpreter(str(tmp_path / "m.tflite"))
    (entry,), (exit_,) = network.get_input_details(), network.get_output_details()
    for size in [(32, 48), (33, 41)]:
        x = images(1, *size)
        network.resize_tensor_input(entry["index"], x.shape)
        network.allocate_tensors()
        network.set_tensor(entry["index"], x)
        network.invoke()
        expected = model(x).numpy()
        found = network.get_tensor(exit_["index"])
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
