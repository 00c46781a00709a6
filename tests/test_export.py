import contextlib
import io
import json
import os
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2

from isa_tf.export import export_litert, export_saved_model, float32_clone
from isa_tf.inference import Predictor, fuse, load_model, load_predictor
from isa_tf.layers import InterlacedSparseAttention
from isa_tf.models import Segmenter

NAMES = ("void", "sky", "tree", "road", "wall", "sign", "Bäume")
PALETTE = tuple((i, 2 * i, 255 - i) for i in range(7))


def make_model(partition=8, names=NAMES, dtype=None, jit_compile=False, **kwargs):
    """A small segmenter with random weights and statistics, whose classes are well mixed."""
    keras.utils.set_random_seed(3)
    context = InterlacedSparseAttention(
        partition, key_filters=8, jit_compile=jit_compile, dtype=dtype, name="context"
    )
    model = Segmenter(
        "tiny",
        context,
        num_classes=7,
        head_filters=16,
        head_kernel_size=1,
        class_names=names,
        palette=None if names is None else PALETTE,
        dtype=dtype,
        **kwargs,
    )
    rng = np.random.default_rng(0)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            n = layer.gamma.shape[0]
            layer.gamma.assign(rng.uniform(0.5, 1.5, n))
            layer.beta.assign(rng.normal(0, 0.5, n))
            layer.moving_mean.assign(rng.normal(0, 0.5, n))
            layer.moving_variance.assign(rng.uniform(0.5, 1.5, n))
    # Every class wins somewhere: their mean logits are made equal.
    logits = model(random_images(2, 64, 64, seed=9).astype("float32"))
    classifier = model.get_layer("logits_classifier")
    classifier.bias.assign(-np.asarray(logits).mean((0, 1, 2)))
    return model


def random_images(batch, height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (batch, 7, 9, 3), np.uint8)
    resized = (Image.fromarray(c).resize((width, height), Image.BICUBIC) for c in coarse)
    return np.stack([np.asarray(image) for image in resized])


def expected(model, images):
    logits = np.asarray(model(images.astype("float32"), training=False), np.float64)
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    return logits.argmax(-1), (probabilities / probabilities.sum(-1, keepdims=True)).max(-1)


def assert_agree(result, truth, agreement=0.999, rtol=1e-4):
    """Class ids agree but for near-ties, scores to `rtol`."""
    (class_id, score), (true_id, true_score) = result, truth
    assert len(np.unique(true_id)) > 2
    assert (np.asarray(class_id) == np.asarray(true_id)).mean() >= agreement
    np.testing.assert_allclose(score, true_score, rtol=rtol)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model with all there is to it, and its three files; LiteRT's for 66x74."""
    folder = tmp_path_factory.mktemp("exported") / "new"
    model = make_model(jit_compile=True, auxiliary_level="c1", auxiliary_filters=8)
    saved = export_saved_model(model, folder / "saved")
    litert = export_litert(model, folder / "model.tflite", (66, 74))
    model.save(folder / "model.keras")
    return model, {"keras": folder / "model.keras", "saved": saved, "litert": litert}


# 90x118: a map of 23x30, which 8 does not divide. 20x26: a map of 5x7, smaller than 8.
SIZES = ((2, 90, 118), (1, 64, 64), (3, 20, 26), (1, 1, 1))


def assert_agrees_at_any_size(model, path):
    predictor = load_predictor(path)
    for size in SIZES:
        images = random_images(*size)
        result = predictor(images)
        if size[1] > 1:
            assert_agree(result, expected(model, images))
        assert result[0].shape == size and result[0].dtype == np.uint8
        assert result[1].shape == size and result[1].dtype == np.float32


def test_saved_model_holds_each_weight_once(exported):
    model, paths = exported
    kept = tf.train.list_variables(str(paths["saved"] / "variables" / "variables"))
    shapes = sorted(tuple(shape) for name, shape in kept if "GRAPH" not in name)
    assert shapes == sorted(tuple(v.shape) for v in model.variables)


def test_saved_model_agrees_at_any_size(exported):
    model, paths = exported
    assert_agrees_at_any_size(model, paths["saved"])


@pytest.mark.parametrize("partition", ["auto", [4, (2, 8)]])
def test_saved_model_of_other_partitions(tmp_path, partition):
    model = make_model(partition)
    assert_agrees_at_any_size(model, export_saved_model(model, tmp_path / "saved"))


@pytest.mark.parametrize(
    "partition,size", [(8, (90, 118)), (8, (20, 26)), ("auto", (90, 118)), ([4, (2, 8)], (64, 72))]
)
def test_litert_agrees_and_needs_built_in_operations_only(tmp_path, partition, size):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    model = make_model(partition)
    path = export_litert(model, tmp_path / "new" / "model.tflite", size)
    images = random_images(2, *size)
    assert_agree(load_predictor(path)(images), expected(model, images))

    loaded = interpreter.Interpreter(
        str(path),
        experimental_op_resolver_type=interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    names = {op["op_name"] for op in loaded._get_ops_details()}
    assert "CONV_2D" in names
    assert not [n for n in names if n.startswith("Flex") or n in ("CUSTOM", "DELEGATE")], names
    (image,) = loaded.get_input_details()
    assert tuple(image["shape"]) == (1, *size, 3) and image["dtype"] == np.uint8


def test_keras_saved_model_and_litert_through_one_interface(exported):
    pytest.importorskip("ai_edge_litert")
    model, paths = exported
    images = random_images(2, 66, 74)
    for path in paths.values():
        predictor = load_predictor(path)
        assert_agree(predictor(images), expected(model, images))
        assert predictor.class_names == NAMES
        assert predictor.palette == PALETTE
        assert predictor.num_classes == 7
    assert_agree(Predictor.from_model(model)(images), expected(model, images))


def test_without_names(tmp_path):
    pytest.importorskip("ai_edge_litert")
    model = make_model(names=None)
    saved = export_saved_model(model, tmp_path / "saved")
    litert = export_litert(model, tmp_path / "model.tflite", (32, 32))
    for predictor in (load_predictor(saved), load_predictor(litert)):
        assert predictor.num_classes == 7
        assert predictor.class_names is None and predictor.palette is None
    assert zipfile.ZipFile(litert).namelist() == ["isa_tf.json"]


def test_names_lie_where_other_tools_look(exported):
    _, paths = exported
    with zipfile.ZipFile(paths["litert"]) as archive:
        assert archive.read("labels.txt").decode().splitlines() == list(NAMES)
    metadata = json.loads((paths["saved"] / "assets.extra/isa_tf.json").read_text("utf-8"))
    assert metadata["class_names"] == list(NAMES)


_ELSEWHERE = """
import sys
sys.modules["isa_tf"] = None  # an import of it is an error
import numpy as np
import tensorflow as tf

loaded = tf.saved_model.load(sys.argv[1])
images = np.load("images.npy")
out = loaded.signatures["serving_default"](image=tf.constant(images))
assert sorted(out) == ["class_id", "score"]
np.savez("raw.npz", **{k: v.numpy() for k, v in out.items()})
for kind in ("png", "jpg"):
    files = [open(f"{i}.{kind}", "rb").read() for i in range(len(images))]
    out = loaded.signatures["encoded"](image_bytes=tf.constant(files))
    decoded = np.stack([tf.io.decode_image(f, channels=3).numpy() for f in files])
    np.savez(f"{kind}.npz", images=decoded, **{k: v.numpy() for k, v in out.items()})
"""


def test_saved_model_in_a_process_without_the_package(tmp_path, exported):
    model, paths = exported
    images = random_images(2, 45, 70)
    np.save(tmp_path / "images.npy", images)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
        Image.fromarray(image).save(tmp_path / f"{i}.jpg", quality=80)
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", _ELSEWHERE, str(paths["saved"])],
        cwd=tmp_path,
        env={**env, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for kind in ("raw", "png", "jpg"):
        out = np.load(tmp_path / f"{kind}.npz")
        seen = out["images"] if kind == "jpg" else images
        assert_agree((out["class_id"], out["score"]), expected(model, seen))


def test_encoded_images_of_two_sizes_are_refused(exported):
    loaded = tf.saved_model.load(str(exported[1]["saved"]))
    files = []
    for size in ((32, 32), (32, 40)):
        buffer = io.BytesIO()
        Image.new("RGB", size).save(buffer, "PNG")
        files.append(buffer.getvalue())
    with pytest.raises(tf.errors.InvalidArgumentError):
        loaded.signatures["encoded"](image_bytes=tf.constant(files))


def test_compiled_attention_is_exported_uncompiled_and_stays_compiled(exported):
    model, paths = exported
    layers = [x for x in model._flatten_layers() if not isinstance(x, keras.Model)]
    assert sum(getattr(layer, "jit_compile", False) for layer in layers) == 3
    proto = saved_model_pb2.SavedModel.FromString((paths["saved"] / "saved_model.pb").read_bytes())
    functions = proto.meta_graphs[0].graph_def.library.function
    assert len(functions) > 1
    assert not any(function.attr["_XlaMustCompile"].b for function in functions)


def test_half_precision(tmp_path):
    pytest.importorskip("ai_edge_litert")
    model = make_model(dtype="mixed_bfloat16", auxiliary_level="c1", auxiliary_filters=8)
    images = random_images(1, 45, 70)
    saved = load_predictor(export_saved_model(model, tmp_path / "saved"))
    # The same graph, yet bfloat16 rounds to 8 bits: kernels may differ in the last of them.
    assert_agree(saved(images), expected(model, images), agreement=0.99, rtol=0.03)

    clone = float32_clone(model)
    litert = load_predictor(export_litert(model, tmp_path / "model.tflite", (45, 70)))
    assert_agree(litert(images), expected(clone, images))
    assert_agree(litert(images), expected(model, images), agreement=0.9, rtol=0.1)


def test_float32_clone():
    model = make_model()
    assert float32_clone(model) is model
    for dtype in ("mixed_bfloat16", "bfloat16", "mixed_float16"):
        half = make_model(dtype=dtype)
        clone = float32_clone(half)
        assert {layer.compute_dtype for layer in clone._flatten_layers()} == {"float32"}
        assert clone.class_names == NAMES and clone.palette == PALETTE
        for a, b in zip(half.get_weights(), clone.get_weights(), strict=True):
            assert b.dtype == np.float32
            np.testing.assert_array_equal(a.astype(np.float32), b)
    assert keras.config.dtype_policy().name == "float32"


def test_keras_file(exported):
    model, paths = exported
    images = random_images(1, 40, 44).astype("float32")
    again = load_model(paths["keras"])
    np.testing.assert_allclose(again(images), model(images), rtol=1e-4, atol=1e-4)


def test_nothing_is_printed_and_nothing_changed(tmp_path):
    model = make_model()
    images = random_images(1, 40, 40).astype("float32")
    before = np.asarray(model(images))
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        export_saved_model(model, tmp_path / "saved")
        export_litert(model, tmp_path / "model.tflite", (32, 32))
    assert output.getvalue() == ""
    np.testing.assert_array_equal(before, np.asarray(model(images)))


def test_any_keras_model_of_the_right_shape(tmp_path):
    image = keras.Input((24, 40, 3))
    model = keras.Model(image, keras.layers.Conv2D(4, 3, padding="same")(image))
    images = random_images(2, 24, 40)
    predictor = load_predictor(export_saved_model(model, tmp_path / "saved"))
    assert predictor.image_size == (24, 40) and predictor.num_classes == 4
    assert_agree(predictor(images), expected(model, images))
    with pytest.raises(ValueError, match="does not take images"):
        export_litert(model, tmp_path / "model.tflite", (32, 32))


def test_wrong_models(tmp_path):
    image = keras.Input((None, None, 3))
    pooled = keras.Model(image, keras.layers.GlobalAveragePooling2D()(image))
    halved = keras.Model(image, keras.layers.AveragePooling2D(2)(image))
    many = keras.Model(image, keras.layers.Conv2D(257, 1)(image))
    words = keras.Input((5,))
    vector = keras.Model(words, keras.layers.Dense(3)(words))
    for export in (
        export_saved_model,
        lambda model, path: export_litert(model, f"{path}.tflite", (32, 32)),
    ):
        for model, message in (
            (pooled, r"not logits \(1, \d+, \d+\) \+ \(classes,\)"),
            (halved, "no segmentation model"),
            (vector, "no segmentation model"),
            (many, "256 classes at most, got 257"),
            (lambda x: x, "a keras.Model is needed, got function"),
        ):
            with pytest.raises(ValueError, match=message):
                export(model, tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [None, 32, (32,), (0, 32), (32, 32, 3), "ab"])
def test_wrong_size(tmp_path, size):
    with pytest.raises(ValueError, match=r"image_size is \(height, width\)"):
        export_litert(make_model(), tmp_path / "model.tflite", size)


def test_fused_models_are_refused(tmp_path):
    fused = fuse(make_model())
    for write in (
        lambda: export_saved_model(fused, tmp_path / "saved_model"),
        lambda: export_litert(fused, tmp_path / "model.tflite", (32, 32)),
    ):
        with pytest.raises(ValueError, match="fused for inference: export the model it was made"):
            write()
    assert not list(tmp_path.iterdir())
    # What Keras saves of it is the plain model, which may be exported.
    fused.save(tmp_path / "model.keras")
    assert_agrees_at_any_size(
        load_model(tmp_path / "model.keras"),
        export_saved_model(load_model(tmp_path / "model.keras"), tmp_path / "saved_model"),
    )


def test_litert_path_and_operations(tmp_path):
    with pytest.raises(ValueError, match="ends in .tflite"):
        export_litert(make_model(), tmp_path / "model.lite", (32, 32))

    class Foreign(keras.layers.Layer):
        def call(self, x):
            return tf.math.digamma(x)

    image = keras.Input((None, None, 3))
    with pytest.raises(RuntimeError, match="no built-in operation for Digamma"):
        export_litert(keras.Model(image, Foreign()(image)), tmp_path / "model.tflite", (32, 32))
    assert not (tmp_path / "model.tflite").exists()
