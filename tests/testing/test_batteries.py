"""Each battery finds what is wrong with a subject that is made so, and says what."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from outside import Arrays, Stripes

import isa_tf
from isa_tf.backbones.backbone import Backbone, image_input, normalize
from isa_tf.testing import (
    BackboneBattery,
    Battery,
    ContextBattery,
    DatasetBattery,
    FormatBattery,
    LayerBattery,
    ModelBattery,
    small_segmenter,
)


def finds(battery, check, message):
    with pytest.raises(AssertionError, match=message):
        battery.run(check)


def test_checks_are_chosen_by_name():
    assert LayerBattery.list_checks()[:2] == ["shapes", "gradients"]
    assert {*LayerBattery.list_checks()} < {*ContextBattery.list_checks()}
    with pytest.raises(AttributeError, match="check_shape"):
        LayerBattery(Sound).run("shape")


def test_a_summary_names_layers_however_they_are_called():
    for name in ("conv-1", "a+b", "c.d"):
        model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Conv2D(2, 1, name=name)])
        Battery().expect_summary(model, [name])
        with pytest.raises(AssertionError, match="does not name other"):
            Battery().expect_summary(model, ["other"])


# === Layers ===


@keras.saving.register_keras_serializable("test_batteries")
class Sound(isa_tf.layers.ContextModule):
    """The map, and its weighted mean at every position; read out by a convolution."""

    both_forms = True

    def __init__(self, weight=1.0, **kwargs):
        super().__init__(**kwargs)
        self.weight = weight

    def build(self, input_shape):
        super().build(input_shape)
        channels = input_shape[-1]
        self.fusion = self.read_out_conv("fusion", self.filters or channels, channels)

    def call(self, inputs, training=None):
        mean = tf.reduce_mean(inputs, (1, 2), keepdims=True)
        x = self.fusion(inputs + self.weight * mean, training=training)
        return self.finish(inputs, x, training)

    def get_config(self):
        return {**super().get_config(), "weight": self.weight}


class Forgetful(Sound):
    def get_config(self):
        config = super().get_config()
        del config["weight"]
        return config


class Mistaken(Sound):
    def get_config(self):
        return {**super().get_config(), "weight": 7.0}


class Halved(Sound):
    def call(self, inputs, training=None):
        return super().call(inputs, training)[:, ::2]


class Deaf(Sound):
    def build(self, input_shape):
        super().build(input_shape)
        self.unheard = self.add_weight(shape=(3,), name="unheard")


class OfOneSize(Sound):
    def call(self, inputs, training=None):
        height, width = 10, 7
        grid = tf.reshape(tf.range(height * width, dtype=inputs.dtype), (1, height, width, 1))
        return super().call(inputs + 0.01 * grid, training)


class AlwaysTraining(Sound):
    def call(self, inputs, training=None):
        return super().call(inputs, training=True)


class InFloat32(Sound):
    def call(self, inputs, training=None):
        return tf.cast(super().call(inputs, training), tf.float32)


class Random(Sound):
    def call(self, inputs, training=None):
        return super().call(inputs, training) + tf.random.uniform(())


class ItsTwinIsOther(Sound):
    def fill_twin(self, other):
        super().fill_twin(other)
        other.fusion.conv.kernel.assign(2 * other.fusion.conv.kernel)


class NoIdentity(Sound):
    def call(self, inputs, training=None):
        return super().call(inputs, training) + 1.0


class Rounds(Sound):
    def call(self, inputs, training=None):
        default = getattr(self.dtype_policy, "default_policy", self.dtype_policy)
        x = tf.cast(inputs, default.compute_dtype)  # not the one of its path
        return super().call(tf.cast(x, inputs.dtype), training)


class NoArguments(Sound):
    def __init__(self, weight=1.0, activation="relu", **kwargs):
        super().__init__(weight, activation="relu", **kwargs)


def test_a_sound_module():
    ContextBattery(Sound).run(*(c for c in ContextBattery.list_checks() if c != "keras"))


def test_a_module_by_name():
    isa_tf.layers.register_context("sound", Sound)
    ContextBattery("sound", {"weight": 0.5}).run("config", "size", "arguments", "segmenter")


@pytest.mark.parametrize(
    ("cls", "check", "message"),
    [
        (Forgetful, "config", "Forgetful: get_config lacks weight"),
        (Mistaken, "config", "Mistaken: made of its config and weights: .* of the values differ"),
        (Halved, "shapes", r"promises \(2, 10, 7, 6\), a call gives \(2, 5, 7, 6\)"),
        (Halved, "size", r"makes \(1, 5, 7, 6\) of \(1, 10, 7, 6\)"),
        (Deaf, "gradients", "no gradient of .*unheard, training=False"),
        (AlwaysTraining, "training_flag", "training=False changes .*moving_mean"),
        (InFloat32, "mixed_bfloat16", "gives float32 by mixed_bfloat16"),
        (Random, "saving", "saved and loaded: .* of the values differ"),
        (Random, "graph", "output in a graph: differs by"),
        (ItsTwinIsOther, "twin", "its twin by .*: differs by"),
        (NoIdentity, "residual", "fresh, residual, training=False: 100.0% of the values"),
        (Rounds, "dtype_map", "by a DTypePolicyMap: differs by"),
        (NoArguments, "arguments", "does not keep activation, which all modules have"),
    ],
)
def test_a_module_that_is_not(cls, check, message):
    arguments = {"weight": 0.5}
    # A layer that is saved is found by its name.
    with keras.saving.custom_object_scope({cls.__name__: cls}):
        finds(ContextBattery(cls, arguments), check, message)


def test_a_module_of_one_size():
    with pytest.raises(Exception, match="[Ii]ncompatible|broadcast"):
        ContextBattery(OfOneSize).run("dynamic_shape")


def test_keras_own_battery():
    class Unsaid(keras.layers.Layer):
        def __init__(self, scale, **kwargs):
            super().__init__(**kwargs)
            self.scale = scale

        def call(self, inputs):
            return self.scale * inputs

        def get_config(self):
            return super().get_config()

    with pytest.raises(TypeError, match="required positional argument: 'scale'"):
        LayerBattery(Unsaid, {"scale": 2.0}).run("keras")


# === Backbones ===


@keras.saving.register_keras_serializable("test_batteries")
class OneConvolution(Backbone):
    """A convolution of stride 4."""

    told = 4  # the stride that it tells

    def __init__(self, filters=8, weights=None, synchronized=False, dtype=None, **kwargs):
        image = image_input()
        x = normalize(127.5, 127.5)(image)
        x = isa_tf.layers.ConvNormAct(
            filters, 3, strides=4, synchronized=synchronized, dtype=dtype, name="conv"
        )(x)
        super().__init__(image, {"c2": x}, {"c2": self.told}, dtype=dtype, **kwargs)
        self.filters = filters
        if weights is not None:
            self.load_file(weights, convert=None)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters, "weights": None}


@keras.saving.register_keras_serializable("test_batteries")
class OneOfMany(Backbone):
    """Two convolutions, which are told the first one's policy."""

    def __init__(self, filters=8, dtype=None, **kwargs):
        image = image_input()
        conv = isa_tf.layers.ConvNormAct(filters, 3, strides=4, dtype=dtype, name="conv1")
        x = conv(normalize(127.5, 127.5)(image))
        told = conv.compute_dtype
        x = isa_tf.layers.ConvNormAct(filters, dtype=told, name="conv2")(x)
        super().__init__(image, {"c2": x}, {"c2": 4}, dtype=dtype, **kwargs)
        self.filters = filters

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


class WrongStride(OneConvolution):
    told = 8


class ForgetsFilters(OneConvolution):
    def get_config(self):
        config = super().get_config()
        del config["filters"]
        return config


class LosesWeights(OneConvolution):
    def load_preset_weights(self, path):
        super().load_preset_weights(path)
        if path.parent.name == "kept":  # not where it is written aside
            self.get_layer("conv").norm.beta.assign(np.zeros(self.filters))


class NoFile(OneConvolution):
    def __init__(self, weights=None, **kwargs):
        super().__init__(**kwargs)


class KeepsThePath(OneConvolution):
    def __init__(self, weights=None, **kwargs):
        super().__init__(weights=weights, **kwargs)
        self.file = weights

    def get_config(self):
        return {**super().get_config(), "weights": self.file}


class Unnamed(OneConvolution):
    def summary(self, *args, **kwargs):
        return keras.Sequential([keras.layers.Dense(1)]).summary(*args, **kwargs)


class IgnoresDtype(OneConvolution):
    def __init__(self, dtype=None, **kwargs):
        super().__init__(dtype="float32", **kwargs)


def test_a_sound_backbone():
    BackboneBattery(OneConvolution, {"filters": 6}).run()


@pytest.mark.parametrize(
    ("cls", "check", "message"),
    [
        (WrongStride, "strides", r"WrongStride: of images of 64x64, 'c2' is \(1, 16, 16, 6\); by"),
        (ForgetsFilters, "config", "made of its config has shapes"),
        (LosesWeights, "presets", "conv/.* of a preset: .* of the values differ"),
        (NoFile, "weights_file", "conv.* of a file: .* of the values differ"),
        (KeepsThePath, "weights_file", "its config keeps the path of the file, .*weights.h5"),
        (IgnoresDtype, "mixed_precision", "'c2' by mixed_bfloat16 is float32"),
        (Unnamed, "summary", "its summary tells no shape of"),
        (OneOfMany, "dtype_map", "conv2 computes in float32; by the map it is bfloat16"),
    ],
)
def test_a_backbone_that_is_not(cls, check, message):
    with keras.saving.custom_object_scope({cls.__name__: cls}):
        finds(BackboneBattery(cls, {"filters": 6}), check, message)


def test_what_is_no_backbone():
    def plain():
        image = keras.Input((None, None, 3))
        return keras.Model(image, {"c1": image})

    finds(BackboneBattery(plain), "strides", "is a Functional, which is no isa_tf.*Backbone")


# === Models ===


class OfWholeImage(keras.Model):
    """One decision an image, spread over it: of no weight that its config tells."""

    def __init__(self, num_classes=3, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.dense = keras.layers.Dense(num_classes)
        self.build()

    def call(self, image, training=None):
        logits = self.dense(tf.reduce_mean(tf.cast(image, self.compute_dtype), (1, 2)))
        return tf.ones_like(image[..., :1]) * logits[:, None, None]

    def build(self, shape=None):
        self.dense.build((None, 3))
        self.built = True

    def get_config(self):
        return {"num_classes": self.num_classes, "name": self.name}


class OfOtherSize(OfWholeImage):
    """As a network whose map is enlarged by its stride, and not cut."""

    def call(self, image, training=None):
        height = -(-image.shape[1] // 8) * 8
        return super().call(tf.image.pad_to_bounding_box(image, 0, 0, height, image.shape[2]))


class Nan(OfWholeImage):
    def call(self, image, training=None):
        return super().call(image) * np.nan


class ForgetsClasses(OfWholeImage):
    def get_config(self):
        return {}


class LearnsNothing(OfWholeImage):
    def call(self, image, training=None):
        return tf.stop_gradient(super().call(image))


def test_a_model_of_another_kind():
    with keras.saving.custom_object_scope({"OfWholeImage": OfWholeImage}):
        ModelBattery(OfWholeImage).run("sizes", "config", "saving")


@pytest.mark.parametrize(
    ("make", "check", "message"),
    [
        (OfOtherSize, "sizes", r"makes \(1, 72, 97, 3\) of \(1, 65, 97\)"),
        (Nan, "sizes", r"logits of \(1, 65, 97\) are not finite"),
        (lambda: ForgetsClasses(5), "config", "made of its config has weights"),
        (LearnsNothing, "fit", "no gradient of .*kernel in training"),
    ],
)
def test_a_model_that_is_not(make, check, message):
    finds(ModelBattery(make), check, message)


# === Data sets ===


class OtherSize(Stripes):
    def read(self, split, index):
        image, label = super().read(split, index)
        return image, label[::2]


class OtherIds(Stripes):
    def read(self, split, index):
        image, label = super().read(split, index)
        return image, label * np.uint8(7)


class Floats(Stripes):
    def read(self, split, index):
        image, label = super().read(split, index)
        return image / 255, label


class TakesAnySplit(Stripes):
    def _check_split(self, split):
        pass


class NamesTwice(Stripes):
    def examples(self, split):
        self._check_split(split)
        return ("a", "b", "a")


class Shuffles(Stripes):
    def read(self, split, index):
        image, label = super().read(split, index)
        image[0, 0, 0] = np.random.randint(0, 256)
        return image, label


class OtherGraph(Stripes):
    def graph_reader(self, split):
        images, labels = zip(*(self.read(split, i) for i in range(3)), strict=True)
        images, labels = tf.constant(np.stack(images)), tf.constant(np.stack(labels))
        return isa_tf.data.GraphReader(lambda i: (images[i], 1 - labels[i]))


def test_a_sound_data_set():
    DatasetBattery(Stripes()).run()


@pytest.mark.parametrize(
    ("cls", "check", "message"),
    [
        (OtherSize, "labels", r"stripes: train 0: the label is \(16, 48\), the image \(32, 48\)"),
        (OtherIds, "labels", "the label has 7; classes are 0 to 1, and 255 is ignored"),
        (Floats, "images", "the image is no array of uint8, but an array of float64"),
        (TakesAnySplit, "names", "an unknown split is not refused"),
        (NamesTwice, "examples", "train: a name stands there twice"),
        (Shuffles, "order", "train .: is another when it is read again"),
        (OtherGraph, "graph_reader", "train 0: its graph reader gives other pixels than read"),
        (OtherGraph, "eval_pipeline", "val 0: the pipeline gives other pixels than read"),
    ],
)
def test_a_data_set_that_is_not(cls, check, message):
    finds(DatasetBattery(cls()), check, message)


class Shortened(isa_tf.data.SyntheticInstances):
    def read(self, split, index):
        image, found = super().read(split, index)
        return image[:-1], found

    def size_of(self, split, index):
        return (47, 48)


class OtherSizes(isa_tf.data.SyntheticInstances):
    def size_of(self, split, index):
        return (3, 4)


class SameIds(isa_tf.data.SyntheticInstances):
    def read(self, split, index):
        image, found = super().read(split, index)
        return image, found._replace(ids=np.ones_like(found.ids))


@pytest.mark.parametrize(
    ("cls", "check", "message"),
    [
        (Shortened, "instances", r"a mask of \(48, 48\) in an image of \(47, 48\)"),
        (OtherSizes, "instances", "size_of tells otherwise than read"),
        (SameIds, "ground_truth", "train: instances have the same id"),
    ],
)
def test_instances_that_are_not(cls, check, message):
    finds(DatasetBattery(cls(48, {"train": 4, "val": 2})), check, message)


# === Formats ===


class Talkative(Arrays):
    def export(self, model, path):
        print("writing")
        return super().export(model, path)


class LeavesMore(Arrays):
    def export(self, model, path):
        path = super().export(model, path)
        path.with_suffix(".log").write_text("written")
        return path


class Coarse(Arrays):
    def export(self, model, path):
        weights = model.get_weights()
        model.set_weights([np.round(w, 1) for w in weights])
        path = super().export(model, path)
        model.set_weights(weights)
        return path


class Unknown(Arrays):
    def recognises(self, path):
        return False


class Trusting(Arrays):
    def load(self, path, num_threads=None, protocol=None):
        with np.load(path) as file:
            return super().load(path, num_threads, protocol) if file else None


class TakesAnything(Arrays):
    def export(self, model, path):
        path.write_text("anything")
        return path


@pytest.fixture(scope="module")
def segmenter():
    return small_segmenter()


def battery_of(cls, model):
    isa_tf.formats._formats._entries.pop("arrays", None)
    isa_tf.formats.register(cls)
    return FormatBattery("arrays", model=model)


def test_a_sound_format(segmenter):
    battery = battery_of(Arrays, segmenter)
    battery.run(*(c for c in battery.list_checks() if c != "verified"))


@pytest.mark.parametrize(
    ("cls", "check", "message"),
    [
        (Talkative, "written", "format 'arrays': export prints 'writing"),
        (LeavesMore, "written", r"export leaves \[.*model.log.*\], where model.npz is asked for"),
        (Coarse, "decisions", "of the decisions are the model's|scores differ by"),
        (Coarse, "verified", "verified with an agreement of 0.[0-9]"),
        (Trusting, "damage", "a damaged file raises BadZipFile.*, no ValueError"),
        (TakesAnything, "refusals", "what is no keras.Model is not refused"),
    ],
)
def test_a_format_that_is_not(cls, check, message, segmenter):
    finds(battery_of(cls, segmenter), check, message)


def test_a_format_whose_files_nobody_knows(segmenter):
    with pytest.raises(ValueError, match="not a model"):
        battery_of(Unknown, segmenter).run("found")
