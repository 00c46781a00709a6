"""What somebody else could add: a context module, a backbone, a data set, a format."""

import json

import keras
import numpy as np
import tensorflow as tf

import isa_tf
from isa_tf.backbones.backbone import Backbone, image_input, normalize
from isa_tf.formats.base import check_model


@keras.saving.register_keras_serializable("outside")
class MeanOfMap(isa_tf.layers.ContextModule):
    """The map, and its mean at every position; read out by a convolution."""

    def __init__(self, weight=1.0, **kwargs):
        super().__init__(**kwargs)
        self.weight = weight

    def build(self, input_shape):
        super().build(input_shape)
        channels = input_shape[-1]
        self.fusion = self.conv_norm("fusion", self.filters or channels, channels)

    def call(self, inputs, training=None):
        mean = tf.reduce_mean(inputs, (1, 2), keepdims=True)
        return self.drop(self.fusion(inputs + self.weight * mean, training=training))

    def get_config(self):
        return {**super().get_config(), "weight": self.weight}


@keras.saving.register_keras_serializable("outside")
class OneConvolution(Backbone):
    output_strides = (4,)

    def __init__(self, output_stride=4, weights=None, synchronized=False, dtype=None, **kwargs):
        image = image_input()
        x = normalize(127.5, 127.5)(image)
        conv = isa_tf.layers.ConvNormAct(
            8, 3, strides=4, synchronized=synchronized, dtype=dtype, name="conv"
        )
        super().__init__(image, {"c2": conv(x)}, {"c2": 4}, dtype=dtype, **kwargs)
        if weights is not None:
            self.load_file(weights, convert=None)

    def get_config(self):
        return {**super().get_config(), "weights": None}


class Stripes(isa_tf.data.SegmentationDataset):
    """Bright stripes are class 1."""

    def __init__(self, count=4):
        super().__init__("stripes", ("dark", "bright"), ("train", "val"))
        self.count = count

    def examples(self, split):
        self._check_split(split)
        return tuple(f"{split}{i}" for i in range(self.count))

    def read(self, split, index):
        self._check_split(split)
        label = np.zeros((32, 48), np.uint8)
        label[:, 8 * index : 8 * index + 16] = 1
        return np.repeat(label[..., None] * np.uint8(255), 3, axis=-1), label


class Arrays(isa_tf.formats.Format):
    """The weights as arrays beside the config, in one file."""

    name, suffix = "arrays", ".npz"

    def export(self, model, path):
        check_model(model)
        path = self.check_path(path)
        text = json.dumps(keras.saving.serialize_keras_object(model))
        with isa_tf.files.replacing(path) as new:
            weights = {f"w{i}": w for i, w in enumerate(model.get_weights())}
            np.savez(new, text=np.array(text), **weights)
        return path

    def load(self, path, num_threads=None, protocol=None):
        try:
            with np.load(path) as file:
                model = keras.saving.deserialize_keras_object(json.loads(str(file["text"])))
                model.set_weights([file[f"w{i}"] for i in range(len(model.get_weights()))])
        except Exception as error:
            raise ValueError(f"{path}: cannot be read ({error})") from error
        return isa_tf.inference.predictor_of_model(model, protocol)


def register():
    """Gives each the name that it is known by."""
    isa_tf.layers.register_context("mean_of_map", MeanOfMap)
    isa_tf.backbones.register("one_convolution", OneConvolution)
    isa_tf.data.register("stripes", Stripes)
    isa_tf.formats.register(Arrays)
