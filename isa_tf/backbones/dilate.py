"""Backbones made of `keras.applications` models: strides become dilation, the weights stay.

One principle says what the dilated network computes. An operation that loses its stride is
evaluated at every position, its window centred there (padding "same" of stride 1; of an even
window the larger half lies behind); every operation after it is dilated, so that its taps lie as
far apart in the image as they did. `ZeroPadding2D` ahead of such an operation, which served the
stride, goes. Up to the output stride the network is untouched: it keeps the paddings it has.

So the dilated map holds the original's: it is every (stride / output_stride)-th position, from an
offset on. An operation with a window of k that padded p ahead, and lost its stride where the map
was r times denser already, adds r * (k - 1) // 2 - r * p to that offset:

| family | k and p | offset at 16 | at 8 |
|---|---|---|---|
| ResNet, ResNetV2 | 1 and 0, 3 and 1 | 0 | 0 |
| MobileNet, V2, V3, EfficientNet | 3 and 0, 5 and 1 | 1 | 3 |
| EfficientNetV2, even maps | 3 and 0, 5 and 1 | 1 | 3 |
| EfficientNetV2, odd maps | 3 and 1, 5 and 2 | 0 | 0 |
| DenseNet, ConvNeXt | 2 and 0 | 0 | 1 |
| Xception | see below | 0 | 0 |

In Xception a strided pooling, which TensorFlow centres on odd maps alone, is added to a strided
1x1 convolution. There is but one grid for both, so that pooling pads what it padded in the
original, on the map of the original's size.

At the border, too, the maps agree, with one exception: of an odd map DenseNet and ConvNeXt leave
the last row and column out where they halve it, and the dilated network does not.

Odd sizes. `keras.applications` chooses explicit paddings by the size that a model is built for,
and as for even maps where it is unknown. They are part of the model and are kept for images of
any size: build with `input_shape=(None, None, 3)`, unless all images are of one odd size. Of
images that the strides don't divide, maps may be a pixel smaller than ceil(size / stride).
"""

import dataclasses
import functools
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from isa_tf.backbones.backbone import (
    Backbone,
    check_output_stride,
    count_arrays,
    image_input,
)
from isa_tf.backbones.contexts import check_no_context
from isa_tf.hints import DType, Shape, StrPath
from isa_tf.layers.normalization import FusedBatchNormalization


@dataclasses.dataclass(frozen=True)
class Family:
    """What `dilate` has to know of a family.

    Args:
        names: of the functions in `keras.applications`.
        mark: regular expression of a layer's name that no other family has.
        block: regular expression of the layers that begin a block. What the last of them at some
            stride reads is that stride's map.
        preprocessing: mode of `imagenet_utils.preprocess_input`; `None` where it is part of the
            model.
    """

    names: tuple[str, ...]
    mark: str
    block: str
    preprocessing: str | None = None


FAMILIES = (
    Family(
        ("ResNet50", "ResNet101", "ResNet152"),
        mark="conv5_block1_3_bn",
        block=r"pool1_pad|conv\d_block\d+_1_conv",
        preprocessing="caffe",
    ),
    Family(
        ("ResNet50V2", "ResNet101V2", "ResNet152V2"),
        mark="conv5_block1_preact_bn",
        block=r"pool1_pad|conv\d_block\d+_preact_bn",
        preprocessing="tf",
    ),
    Family(("MobileNet",), mark="conv_pw_13", block=r"conv_dw_\d+", preprocessing="tf"),
    Family(
        ("MobileNetV2",), mark="block_16_project", block=r"block_\d+_expand", preprocessing="tf"
    ),
    Family(
        ("MobileNetV3Small", "MobileNetV3Large"),
        mark="expanded_conv_10_project",
        block=r"expanded_conv_(depthwise|\d+_expand)",
    ),
    Family(
        tuple(f"EfficientNetB{i}" for i in range(8)),
        mark="block7a_dwconv",
        block=r"block\d[a-z]_expand_conv",
    ),
    Family(
        tuple(f"EfficientNetV2{size}" for size in ("B0", "B1", "B2", "B3", "S", "M", "L")),
        mark="block6a_dwconv2",
        block=r"block\d[a-z]_expand_conv",
    ),
    Family(
        ("DenseNet121", "DenseNet169", "DenseNet201"),
        mark="pool4_conv",
        block=r"pool1|pool\d_conv",
        preprocessing="torch",
    ),
    Family(
        tuple(f"ConvNeXt{size}" for size in ("Tiny", "Small", "Base", "Large", "XLarge")),
        mark=r".*_stage_3_block_0_depthwise_conv",
        block=r".*_downsampling_block_\d",
    ),
    Family(
        ("Xception",),
        mark="block14_sepconv2",
        block=r"block2_sepconv1|block\d+_sepconv1_act",
        preprocessing="tf",
    ),
)
_CONVOLUTIONS = (
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
)
_POOLINGS = {keras.layers.MaxPooling2D: "max", keras.layers.AveragePooling2D: "average"}


def dilate(
    model: keras.Model,
    output_stride: int = 8,
    synchronized: bool = False,
    dtype: DType = None,
    **kwargs: Any,
) -> Backbone:
    """Makes a backbone of a `keras.applications` model; the model itself stays as it is.

    Weights are copied, strides beyond the output stride become dilation (see the module's
    docstring for the grid), and the family's preprocessing becomes the first layer. Batch
    normalisation runs as the fused kernel, grouped convolutions with a channel a group as
    depthwise ones, with the variables they had.

    Args:
        model: what a function of `keras.applications` returned with `include_top=False` and
            without pooling: ResNet, ResNetV2, MobileNet, MobileNetV2, MobileNetV3, EfficientNet,
            EfficientNetV2, DenseNet, ConvNeXt, Xception, of any size and width.
        output_stride: int, 8, 16 or 32. Defaults to 8.
        synchronized: bool, whether replicas share batch statistics. Defaults to `False`.
        dtype: name or policy of the layers; the preprocessing computes in float32 all the same.
            Defaults to `None`, the model's own.
        **kwargs: name (the model's own by default), trainable, last_level.

    Shapes:
        (B, H, W, 3), RGB 0..255 -> {"c1", ..., "c5"}; "c5" is the model's output, "c1" .. "c4"
        are the outputs of the last blocks of stride 2 .. 16, as they are: the sums of ResNetV2
        and the narrow maps of MobileNetV2 and its kin have no activation behind them. ConvNeXt,
        whose stem has stride 4, has no "c1".

    Raises:
        ValueError: for what is no such model, or one with its classifier, with pooling, without
            the preprocessing that belongs to it or with layers ahead of it; for an output stride
            that is none of 8, 16, 32.

    Example:

    >>> model = keras.applications.MobileNetV2(include_top=False, weights=None)
    >>> backbone = dilate(model, output_stride=8)
    >>> backbone(np.zeros((1, 64, 64, 3), "float32"))["c5"].shape
    TensorShape([1, 8, 8, 1280])

    Paper: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", arXiv
    1706.05587.
    """
    check_output_stride(output_stride)
    family = _check(model)
    policy = keras.dtype_policies.get(model.dtype_policy if dtype is None else dtype)
    image = start = image_input()
    if family.preprocessing is not None:
        preprocessing = ImageNetPreprocessing(
            family.preprocessing, dtype="float32", name="normalize"
        )
        start = preprocessing(image)
    # By id: the stride that a tensor has in `model`, and the rate by which it is denser here.
    places = {id(image): (1, 1), id(start): (1, 1)}
    unpadded: dict[int, keras.KerasTensor] = {}
    maps = {}

    def call(layer, *args, **kwargs):
        """Calls what stands here for a layer of `model`."""

        def source(x):
            return start if x is image else x

        args, kwargs = keras.tree.map_structure(source, (args, kwargs))
        x = next(x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, keras.KerasTensor))
        stride, rate = places[id(x)]
        if re.fullmatch(family.block, layer.name):
            maps[stride] = (unpadded.get(id(x), x), stride // rate)
        twin, place, changed = _twin(layer, (stride, rate), output_stride, synchronized, policy)
        if changed and id(x) in unpadded:
            args = (unpadded[id(x)],)
        y = twin(*args, **kwargs)
        places[id(y)] = place
        if isinstance(layer, keras.layers.ZeroPadding2D):
            unpadded[id(y)] = x
        return y

    clone = keras.models.clone_model(
        model,
        input_tensors=keras.tree.map_structure(lambda _: image, model.input),
        clone_function=lambda layer: layer,
        call_function=call,
    )
    stride, rate = places[id(clone.outputs[0])]
    if stride != 32:
        raise ValueError(f"{model.name} ends at stride {stride}, not at 32: it is not whole")
    maps[stride] = (clone.outputs[0], stride // rate)
    levels = {f"c{stride.bit_length() - 1}": maps[stride] for stride in sorted(maps) if stride > 1}
    kwargs.setdefault("name", model.name)
    backbone = Dilated(
        image,
        {level: x for level, (x, _) in levels.items()},
        {level: kept for level, (_, kept) in levels.items()},
        output_stride,
        dtype=policy,
        **kwargs,
    )
    twins = {layer.name: layer for layer in backbone.layers}
    for layer in model.layers:
        if layer.variables and layer.name in twins:
            twin = twins[layer.name]
            for old, new in zip(layer.variables, twin.variables, strict=True):
                new.assign(old)
    return backbone


def application(
    function: str,
    output_stride: int = 32,
    weights: StrPath | None = None,
    synchronized: bool = False,
    dtype: DType = None,
    name: str | None = None,
    trainable: bool = True,
    last_level: str | None = None,
    **kwargs: Any,
) -> Backbone:
    """Makes a backbone of a `keras.applications` model by the name of its function.

    Args:
        function: str, such as "EfficientNetV2S"; see `FAMILIES`.
        output_stride: int, 8, 16 or 32. Defaults to 32.
        weights: `None` for random ones; "imagenet", which Keras downloads; the path of a
            `.weights.h5` of such a backbone; or another path, which goes to Keras's function.
            Defaults to `None`.
        synchronized, dtype: see `dilate`.
        name: str. Defaults to `None`, that of the function.
        trainable: bool. Defaults to `True`.
        last_level: see `Backbone`.
        **kwargs: the function's other arguments, such as alpha or minimalistic.

    Raises:
        ValueError: for weights that Keras would read wrongly, or as `dilate` does.
        OSError: where the weights cannot be downloaded, with the address.

    Example:

    >>> backbone = application("MobileNetV2", output_stride=8, alpha=0.35)
    >>> backbone.feature_strides
    {'c1': 2, 'c2': 4, 'c3': 8, 'c4': 8, 'c5': 8}
    """
    check_output_stride(output_stride)
    check_no_context(kwargs.pop("context_at", None), function)
    weights = None if weights is None else str(weights)
    own = weights if weights is not None and weights.endswith(".weights.h5") else None
    if function.startswith("EfficientNetB") and not own and weights not in (None, "imagenet"):
        raise ValueError(
            f'{function} takes weights=None, "imagenet" or the .weights.h5 of such a backbone, '
            f'got {weights!r}: only when told "imagenet" does Keras normalise as its files need; '
            "such a file belongs into the folder models of Keras's home (~/.keras)"
        )
    arguments = {"input_shape": (None, None, 3), **kwargs}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`input_shape` is undefined")
            model = getattr(keras.applications, function)(
                include_top=False, weights=None if own else weights, **arguments
            )
    except Exception as error:
        if "URL fetch failure" not in str(error):
            raise
        raise OSError(
            f"{error}; a file carried by hand belongs into the folder models of Keras's home "
            "(~/.keras)"
        ) from error
    more = {"name": name or function, "trainable": trainable}
    backbone = dilate(model, output_stride, synchronized, dtype, last_level=last_level, **more)
    if own and last_level is not None and count_arrays(Path(own)) != len(backbone.weights):
        whole = dilate(model, output_stride, synchronized, dtype, **more)
        whole.load_weights(own)
        backbone.take_weights(whole)
    elif own:
        backbone.load_weights(own)
    return backbone


@keras.saving.register_keras_serializable("isa_tf")
class Dilated(Backbone):
    """What `dilate` returns: a backbone whose config is its whole graph.

    So it is revived without Keras's function, and its weights' download, as it was saved.

    Args:
        inputs, feature_maps, feature_strides, dtype, **kwargs: those of `Backbone`.
        output_stride: int, which `dilate` was told.
    """

    def __init__(
        self,
        inputs: keras.KerasTensor,
        feature_maps: dict[str, keras.KerasTensor],
        feature_strides: dict[str, int],
        output_stride: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(inputs, feature_maps, feature_strides, **kwargs)
        self.output_stride = output_stride

    def get_config(self) -> dict[str, Any]:
        graph = keras.Model(self.input, self.output, name=self.name)
        return {
            **super().get_config(),
            "graph": graph.get_config(),
            "feature_strides": self.feature_strides,
            "output_stride": self.output_stride,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> "Dilated":
        config = dict(config)
        graph = keras.Model.from_config(dict(config.pop("graph")), custom_objects)
        return cls(graph.input, graph.output, **config)


# === Layers ===


@keras.saving.register_keras_serializable("isa_tf")
class ImageNetPreprocessing(keras.layers.Layer):
    """`keras.applications.imagenet_utils.preprocess_input` as a layer.

    Args:
        mode: "caffe" (BGR less their means), "tf" (-1..1) or "torch" (mean and deviation).

    Shapes:
        (B, H, W, 3), RGB 0..255 -> (B, H, W, 3).

    Example:

    >>> ImageNetPreprocessing("tf")(np.full((1, 1, 1, 3), 255.0, "float32")).numpy().ravel()
    array([1., 1., 1.], dtype=float32)
    """

    def __init__(self, mode: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mode = mode

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return keras.applications.imagenet_utils.preprocess_input(
            inputs, data_format="channels_last", mode=self.mode
        )

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "mode": self.mode}


@keras.saving.register_keras_serializable("isa_tf")
class StoredNormalization(keras.layers.Normalization):
    """`keras.layers.Normalization` of channels that goes by its variables, however they were set.

    Keras's layer copies them into constants when it is adapted or loaded, and does not notice
    `set_weights`.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        deviation = keras.ops.sqrt(self.adapt_variance)
        deviation = keras.ops.maximum(deviation, keras.config.epsilon())
        return (inputs - self.adapt_mean) / deviation


@keras.saving.register_keras_serializable("isa_tf")
class ChannelwiseConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` with a group a channel, computed as the depthwise one that it is.

    Keras leaves grouped convolutions to XLA, which compiles them anew for each size and which
    LiteRT does not have.
    """

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return keras.ops.depthwise_conv(
            inputs,
            keras.ops.transpose(kernel, (0, 1, 3, 2)),
            strides=self.strides,
            padding=self.padding,
            data_format="channels_last",
            dilation_rate=self.dilation_rate,
        )


@keras.saving.register_keras_serializable("isa_tf")
class DilatedPooling2D(keras.layers.Layer):
    """Pooling at every position, over windows with holes.

    Positions outside the map don't count: neither as a maximum nor in an average.

    Args:
        mode: "max" or "average".
        pool_size: int.
        dilation_rate: int, how far apart the positions of a window lie. Defaults to 1.
        strides: `None` centres the windows as "same" does without strides. An int, at most
            pool_size, begins them where "same" with these strides does on every
            `dilation_rate`-th position of the map, which depends on its size. Defaults to
            `None`.

    Shapes:
        (B, H, W, C) -> (B, H, W, C).

    Raises:
        ValueError: for an unknown mode.

    Example:

    >>> DilatedPooling2D("max", 3, dilation_rate=2)(tf.zeros((1, 5, 4, 2))).shape
    TensorShape([1, 5, 4, 2])
    """

    def __init__(
        self,
        mode: str,
        pool_size: int,
        dilation_rate: int = 1,
        strides: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if mode not in ("max", "average"):
            raise ValueError(f'mode must be "max" or "average", got {mode!r}')
        self.mode = mode
        self.pool_size = pool_size
        self.dilation_rate = dilation_rate
        self.strides = strides

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        if self.mode == "max":
            return self._pool(inputs, tf.maximum, inputs.dtype.min)
        ones = tf.ones_like(inputs[:1, :, :, :1])
        return self._pool(inputs, tf.add, 0) / self._pool(ones, tf.add, 0)

    def _pool(self, x, combine, outside):
        for axis in (1, 2):
            size = x.shape[axis]
            if size is None:
                size = tf.shape(x)[axis]
            before = self._before(size)
            after = self.dilation_rate * (self.pool_size - 1) - before
            paddings = [[before, after] if i == axis else [0, 0] for i in range(4)]
            padded = tf.pad(x, paddings, constant_values=outside)
            shifted = []
            for i in range(self.pool_size):
                window = slice(i * self.dilation_rate, i * self.dilation_rate + size)
                shifted.append(padded[:, window] if axis == 1 else padded[:, :, window])
            x = functools.reduce(combine, shifted)
        return x

    def _before(self, size):
        if self.strides is None:
            return self.dilation_rate * (self.pool_size - 1) // 2
        # Rounded up, of numbers above 0: ONNX's division has no other rounding than towards 0.
        coarse = (size + self.dilation_rate - 1) // self.dilation_rate
        reach = (coarse - 1) // self.strides * self.strides + self.pool_size
        return self.dilation_rate * ((reach - coarse) // 2)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "mode": self.mode,
            "pool_size": self.pool_size,
            "dilation_rate": self.dilation_rate,
            "strides": self.strides,
        }


# === From layer to layer ===


def _check(model):
    """The family of a model; raises ValueError where `dilate` cannot take it."""
    if isinstance(model, keras.Sequential) or not hasattr(model, "operations"):
        raise ValueError(
            "dilate takes the functional model that a function of keras.applications returns, "
            f"got {type(model).__name__}"
        )
    names = [layer.name for layer in model.layers]
    family = next((f for f in FAMILIES if any(re.fullmatch(f.mark, name) for name in names)), None)
    if family is None:
        known = ", ".join(name for f in FAMILIES for name in f.names)
        raise ValueError(f"{model.name} is no model that dilate knows, which are {known}")
    if len(model.outputs) != 1 or len(model.output_shape) != 4:
        raise ValueError(
            f"{model.name} has outputs {model.output_shape}; a backbone is built with "
            "include_top=False and pooling=None"
        )
    if len(model.inputs) != 1 or model.input_shape[-1] != 3:
        raise ValueError(f"{model.name} reads {model.input_shape}, not RGB images")
    ahead = []
    for operation in model.operations:
        if isinstance(operation, (*_CONVOLUTIONS, keras.Sequential)):
            break
        if not isinstance(operation, (keras.layers.InputLayer, keras.layers.ZeroPadding2D)):
            ahead.append(operation)
    if family.preprocessing is None and not ahead:
        raise ValueError(
            f"{model.name} lacks its preprocessing; build it with include_preprocessing=True"
        )
    normalizations = (keras.layers.Rescaling, keras.layers.Normalization)
    for operation in ahead:
        if family.preprocessing is not None or not isinstance(operation, normalizations):
            raise ValueError(
                f"{model.name} has {operation.name} ahead of its first layer; build it without "
                "input_tensor"
            )
    return family


def _twin(layer, place, output_stride, synchronized, policy):
    """What stands for a layer, its place, and whether its windows have changed.

    A place is a stride in the original and how many times denser the map is here.
    """
    if isinstance(layer, keras.Sequential):
        twins = []
        for part in layer.layers:
            twin, place, _ = _twin(part, place, output_stride, synchronized, policy)
            twins.append(twin)
        return keras.Sequential(twins, name=layer.name), place, False
    config = layer.get_config()
    if not isinstance(layer, keras.layers.Layer):  # a bare operation, such as x + y
        return type(layer).from_config(config), place, False
    cls, changed = type(layer), False
    config["dtype"] = policy
    if isinstance(layer, (keras.layers.Rescaling, keras.layers.Normalization)):
        config["dtype"] = "float32"
    if cls is keras.layers.Normalization and layer.input_mean is None:
        cls = StoredNormalization
    if cls is keras.layers.BatchNormalization:
        cls = FusedBatchNormalization
        config["synchronized"] = synchronized or layer.synchronized
    if cls is keras.layers.Conv2D and 1 < layer.groups == layer.filters:
        if layer.kernel.shape[2] == 1:
            cls = ChannelwiseConv2D
    if isinstance(layer, (*_CONVOLUTIONS, *_POOLINGS)):
        stride, rate = place
        strides = layer.strides[0]
        lost = stride // rate * strides > output_stride
        place = (stride * strides, rate * strides if lost else rate)
        changed = lost or rate > 1
        if changed and cls in _POOLINGS:
            config = {
                "name": layer.name,
                "dtype": policy,
                "mode": _POOLINGS[cls],
                "pool_size": layer.pool_size[0],
                "dilation_rate": rate,
                "strides": strides if layer.padding == "same" else None,
            }
            cls = DilatedPooling2D
        elif changed:
            rate = 1 if max(layer.kernel_size) == 1 else rate
            config.update(strides=1, dilation_rate=rate, padding="same")
    return cls.from_config(config), place, changed
