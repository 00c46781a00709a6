"""LiteRT files: built-in operations alone, one size, float32."""

import json
import os
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from exporting import BEYOND, NAMES, PALETTE, assert_agree, expected, make_model, random_images
from PIL import Image
from tensorflow.lite.python import schema_py_generated as schema

import isa_tf
from isa_tf.formats import float32_clone, litert
from isa_tf.inference import Predictor, Protocol
from isa_tf.models import Segmenter


@pytest.mark.some(4)
@pytest.mark.parametrize(
    "context,size",
    [
        ({"partition": 8}, (90, 118)),
        ({"partition": 8}, (20, 26)),
        ({"partition": "auto"}, (90, 118)),
        ({"partition": [4, (2, 8)]}, (64, 72)),
        *[(context, (90, 118)) for context in BEYOND.values()],
    ],
    ids=str,
)
def test_litert_agrees_and_needs_built_in_operations_only(tmp_path, context, size):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    model = make_model(**context)
    path = isa_tf.export(model, tmp_path / "new" / "model.tflite", image_size=size)
    images = random_images(2, *size)
    assert_agree(isa_tf.load_predictor(path)(images), expected(model, images))

    loaded = interpreter.Interpreter(
        str(path),
        experimental_op_resolver_type=interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    names = {op["op_name"] for op in loaded._get_ops_details()}
    assert "CONV_2D" in names
    assert not [n for n in names if n.startswith("Flex") or n in ("CUSTOM", "DELEGATE")], names
    (image,) = loaded.get_input_details()
    assert tuple(image["shape"]) == (1, *size, 3) and image["dtype"] == np.uint8


def test_half_precision(tmp_path):
    pytest.importorskip("ai_edge_litert")
    model = make_model(dtype="mixed_bfloat16", auxiliary_level="c1", auxiliary_filters=8)
    images = random_images(1, 45, 70)
    saved = isa_tf.load_predictor(isa_tf.export(model, tmp_path / "saved"))
    # bfloat16 rounds to 8 bits, and what is folded otherwise.
    assert_agree(saved(images), expected(model, images), agreement=0.9, rtol=0.1)

    clone = float32_clone(model)
    path = isa_tf.export(model, tmp_path / "model.tflite", image_size=(45, 70))
    litert = isa_tf.load_predictor(path)
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


def test_another_size_is_resized_and_back(tmp_path):
    pytest.importorskip("ai_edge_litert")
    model = Segmenter("tiny", None, 7, head_filters=8, head_kernel_size=1)
    path = isa_tf.export(model, tmp_path / "model.tflite", image_size=(32, 48))
    predictor = isa_tf.load_predictor(path, num_threads=1)
    assert predictor.image_size == (32, 48)
    flat = np.full((1, 50, 70, 3), (200, 30, 90), np.uint8)
    class_id, score = predictor(flat)
    assert class_id.shape == score.shape == (1, 50, 70)
    inner = np.s_[:, 20:30, 30:40]
    truth = Predictor.from_model(model)(flat)
    np.testing.assert_array_equal(class_id[inner], truth[0][inner])
    assert predictor.protocol == Protocol()
    with pytest.raises(ValueError, match="model.tflite: an exported model sees whole images alone"):
        isa_tf.load_predictor(path, protocol={"flip": True})


@pytest.mark.parametrize("size", [None, (0, 32), (32, 32, 3), "ab", 1.5])
def test_wrong_size(tmp_path, size):
    with pytest.raises(ValueError, match="image_size must be an int above 0 or two of them"):
        isa_tf.export(make_model(), tmp_path / "model.tflite", image_size=size)
    assert not os.listdir(tmp_path)


def test_litert_path_and_operations(tmp_path):
    with pytest.raises(ValueError, match="a file of format 'litert' ends in .tflite"):
        isa_tf.export(make_model(), tmp_path / "model.lite", "litert", image_size=32)

    class Foreign(keras.layers.Layer):
        def call(self, x):
            return tf.math.digamma(x)

    image = keras.Input((None, None, 3))
    model = keras.Model(image, Foreign()(image))
    older = isa_tf.export(make_model(), tmp_path / "model.tflite", image_size=32).read_bytes()
    with pytest.raises(RuntimeError, match="no built-in operation for Digamma"):
        isa_tf.export(model, tmp_path / "model.tflite", image_size=32)
    assert os.listdir(tmp_path) == ["model.tflite"]
    assert (tmp_path / "model.tflite").read_bytes() == older


def test_without_litert(tmp_path, monkeypatch):
    (tmp_path / "model.tflite").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(ImportError, match=r"pip install isa_tf\[litert\]"):
        isa_tf.load_predictor(tmp_path / "model.tflite")


def made_by_operations(tmp_path):
    """The types of what the operations of a model in int8 make, by their names."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    pytest.importorskip("ai_edge_quantizer")
    path = isa_tf.export(
        make_model(),
        tmp_path / "model.tflite",
        "litert_int8",
        image_size=(40, 50),
        calibration=[*random_images(2, 40, 50), *random_images(1, 80, 90)],
    )
    loaded = interpreter.Interpreter(
        str(path),
        experimental_op_resolver_type=interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    types = {detail["index"]: detail["dtype"] for detail in loaded.get_tensor_details()}
    made = {}
    for operation in loaded._get_ops_details():
        made.setdefault(operation["op_name"], set()).add(types[operation["outputs"][0]])
    return made


def test_what_is_computed_in_int8(tmp_path):
    """All but masks, weights of keys and logits between classes; of 40x50 the map is masked."""
    made = made_by_operations(tmp_path)
    assert made["CONV_2D"] == made["BATCH_MATMUL"] == {np.int8}
    assert made["SELECT_V2"] == made["SOFTMAX"] == made["RESIZE_BILINEAR"] == {np.float32}
    assert "CUSTOM" not in made


def test_what_reads_a_kernel_that_the_quantiser_cannot_do_stays_in_float32(tmp_path, monkeypatch):
    monkeypatch.setattr(litert, "_MOST_BYTES", 2000)
    assert made_by_operations(tmp_path)["CONV_2D"] == {np.int8, np.float32}


@pytest.mark.slow
def test_calibration_on_a_folder(tmp_path):
    pytest.importorskip("ai_edge_quantizer")
    (tmp_path / "photos").mkdir()
    for i, image in enumerate(random_images(3, 48, 40)):
        Image.fromarray(image).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "photos" / "note.txt").write_text("no image")
    model, size = make_model(), (40, 50)
    resized = [
        np.asarray(Image.fromarray(image).resize((50, 40), Image.Resampling.BILINEAR))
        for image in random_images(3, 48, 40)
    ]
    paths = [
        isa_tf.export(model, tmp_path / name, "litert_int8", image_size=size, calibration=given)
        for name, given in (
            ("a.tflite", tmp_path / "photos"),
            ("b.tflite", np.stack(resized)),
            ("c.tflite", random_images(3, 40, 50, seed=7)),
        )
    ]
    first, second, other = (path.read_bytes() for path in paths)
    assert first == second != other


SIZES = [(40, 50), (66, 74), (32, 32)]


def constants_in(path):
    file = schema.Model.GetRootAs(path.read_bytes())
    return sum(file.Buffers(i).DataLength() for i in range(file.BuffersLength()))


@pytest.mark.parametrize(
    "format",
    [
        "litert",
        pytest.param("litert_fp16", marks=pytest.mark.slow),
        pytest.param("litert_int8", marks=pytest.mark.slow),
    ],
)
def test_several_sizes_in_one_file(tmp_path, format):
    """Each size is seen as by a file of its own, and the weights are there once."""
    pytest.importorskip("ai_edge_litert")
    options, model = {}, make_model()
    if format == "litert_int8":
        pytest.importorskip("ai_edge_quantizer")
        options = {"calibration": random_images(2, 60, 70, seed=4)}
    one, two, several = (
        isa_tf.export(model, tmp_path / f"{i}.tflite", format, image_size=sizes, **options)
        for i, sizes in enumerate((SIZES[0], SIZES[1], SIZES))
    )
    assert constants_in(several) < 1.2 * constants_in(one)  # what comes with a size is its graph
    predictor = isa_tf.load_predictor(several)
    assert predictor.image_sizes == tuple(SIZES) and predictor.image_size == SIZES[0]
    metadata = json.loads(zipfile.ZipFile(several).read("isa_tf.json"))
    assert metadata["image_sizes"] == [[40, 50], [66, 74], [32, 32]]
    for path, size in ((one, SIZES[0]), (two, SIZES[1])):
        images = random_images(2, *size)
        alone = isa_tf.load_predictor(path)
        assert alone.image_sizes == (size,)
        for found, same in zip(predictor(images), alone(images), strict=True):
            np.testing.assert_allclose(found, same, rtol=1e-5)
    # The nearest size is taken, and the result is of the image's.
    image = random_images(1, 132, 148)[0]
    found, same = (isa_tf.load_predictor(path)(image)[0] for path in (several, two))
    np.testing.assert_array_equal(found, same)


@pytest.mark.parametrize("damaged", [b"PK\x01\x02", b"litert_int8"], ids=["list", "file"])
def test_damage_to_what_is_packed(tmp_path, damaged):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"\x1c\0\0\0TFL3")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("format.txt", "litert_int8")
    assert isa_tf.formats.find(path).name == "litert_int8"
    path.write_bytes(path.read_bytes().replace(damaged, b"?" * len(damaged)))
    with pytest.raises(ValueError, match="model.tflite: what is packed into it is damaged"):
        isa_tf.load_predictor(path)


@pytest.mark.parametrize("sizes", [[], [(32, 32), 32], [(32, 32), (0, 8)], [(32, 32), "ab"]])
def test_wrong_sizes(tmp_path, sizes):
    with pytest.raises(ValueError, match="image_size must be"):
        isa_tf.export(make_model(), tmp_path / "model.tflite", image_size=sizes)
    assert not os.listdir(tmp_path)


def test_wrong_calibration(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no picture")
    for given, message in (
        (tmp_path / "none", "none is no folder of images"),
        (str(tmp_path / "empty"), "empty ends in .jpg"),
        (tmp_path / "bad", "a.png"),
        ([], "there is no image"),
        (np.zeros((2, 8, 8, 3)), "got one of float64"),
        (np.zeros((8, 8, 3), np.uint8), r"got one of uint8 \(8, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            isa_tf.export(
                make_model(),
                tmp_path / "model.tflite",
                "litert_int8",
                image_size=32,
                calibration=given,
            )
    assert sorted(os.listdir(tmp_path)) == ["bad", "empty"]


def test_calibration_takes_so_many_images_evenly():
    assert litert._evenly([*range(100)]) == [*range(100)]
    some = litert._evenly([*range(250)])
    assert len(some) == 100 and some[:3] == [0, 2, 5] and some[-1] == 247
